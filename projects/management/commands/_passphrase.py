"""Where a command gets the passphrase of a backup from: a file, the environment, or a question."""

from __future__ import annotations

import getpass
import os
import sys
from pathlib import Path

from django.core.management.base import CommandError

VARIABLE = "NOVASTACK_BACKUP_PASSPHRASE"


def passphrase(file: str | None, *, twice: bool) -> str:
    """`--passphrase-file`, `NOVASTACK_BACKUP_PASSPHRASE`, `NOVASTACK_BACKUP_PASSPHRASE_FILE`, or typed at a terminal."""
    file = file or (None if os.environ.get(VARIABLE) else os.environ.get(f"{VARIABLE}_FILE"))
    if file:
        try:
            text = Path(file).read_text().strip("\r\n")
        except OSError as error:
            raise CommandError(f"The passphrase file can't be read: {error.strerror}") from error
    elif os.environ.get(VARIABLE):
        text = os.environ[VARIABLE]
    elif sys.stdin.isatty():
        text = getpass.getpass("Passphrase: ")
        if twice and getpass.getpass("Once more: ") != text:
            raise CommandError("The two differ.")
    else:
        raise CommandError(f"No passphrase: use --passphrase-file FILE, or set {VARIABLE} or {VARIABLE}_FILE.")
    if not text:
        raise CommandError("The passphrase is empty.")
    return text
