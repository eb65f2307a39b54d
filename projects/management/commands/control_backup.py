"""`manage.py control_backup --output FILE|FOLDER`: the control database and its keys in one encrypted file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from novastack.common.vault import VaultError
from projects.management.commands._passphrase import passphrase
from projects.services.control_backup import control_backup
from projects.services.control_database import ControlError


class Command(BaseCommand):
    help = "Back up the control plane: its database and its keys, without the tenants' data"

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--output", default=".", help="a new file, or a folder (default: here)")
        parser.add_argument("--passphrase-file", help="its content encrypts the backup")
        parser.add_argument(
            "--no-encryption", action="store_true", help="write everything in the clear, keys and all: guard the file"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        secret = None if options["no_encryption"] else passphrase(options["passphrase_file"], twice=True)
        try:
            made = control_backup(output=Path(options["output"]).expanduser(), passphrase=secret)
        except (ControlError, VaultError) as error:
            raise CommandError(str(error)) from error
        except OSError as error:
            raise CommandError(f"The backup can't be written: {error}") from error
        rows = sum(made.manifest["tables"].values())
        self.stdout.write(f"{made.path}: {made.size_bytes} bytes, {rows} rows in {len(made.manifest['tables'])} tables")
        secrets = made.manifest["secrets"]
        self.stdout.write(
            f"Read back and compared. Stored secrets that the keys open: {secrets['stored'] - secrets['unreadable']}."
        )
        if secrets["unreadable"]:
            self.stderr.write(f"Warning: {secrets['unreadable']} stored secrets do not open with the configured keys.")
        if secret is None:
            self.stderr.write("Warning: the keys are in this file in the clear.")
        else:
            self.stdout.write("Keep the passphrase apart from the file: without it nothing of this can be read.")
