"""Unprivileged OS accounts for servers (rule 37), and whether they can reach a path. Only root can make one."""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import shutil
import stat
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_NAME = re.compile(r"[a-z][a-z0-9-]{0,30}")
_FALLBACKS = ("postgres", "nobody")


@dataclass(frozen=True, slots=True)
class Account:
    """Who a process runs as. `own`: made by us for exactly one purpose, so that it is a trust domain of its own."""

    name: str
    uid: int
    gid: int
    own: bool

    @property
    def is_current(self) -> bool:
        return self.uid == os.geteuid()


def current_account() -> Account:
    """The account of this process; a user id without passwd entry has its number for a name."""
    uid = os.geteuid()
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = str(uid)
    return Account(name, uid, os.getegid(), own=False)


def can_make_accounts() -> bool:
    """Whether `ensure_account` can give every server an account of its own."""
    return os.geteuid() == 0 and (shutil.which("useradd") is not None or shutil.which("adduser") is not None)


def ensure_account(name: str, *, uid: int | None = None) -> Account:
    """The system account `name`, made if it is not there (with `uid`, if that is free).

    Not root: the current account. Root on a system that can't make accounts: an existing unprivileged one, `own=False`.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"not an account name: {name!r}")
    if os.geteuid() != 0:
        return current_account()
    if uid is not None:
        with contextlib.suppress(KeyError):  # data of an earlier install: whoever owns it now is the right one
            entry = pwd.getpwuid(uid)
            return Account(entry.pw_name, entry.pw_uid, entry.pw_gid, own=entry.pw_name == name)
    for attempt in range(20):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return Account(name, entry.pw_uid, entry.pw_gid, own=True)
        command = _add_command(name, uid)
        if command is None:
            break
        done = subprocess.run(command, capture_output=True, check=False, stdin=subprocess.DEVNULL)
        if done.returncode:  # another one holds the lock of /etc/passwd, or it can't be written at all
            if attempt >= 3 and not os.access("/etc/passwd", os.W_OK):
                break
            time.sleep(0.05 * (attempt + 1))
    for fallback in _FALLBACKS:
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(fallback)
            return Account(fallback, entry.pw_uid, entry.pw_gid, own=False)
    raise RuntimeError("there is no unprivileged account to run servers as, and none can be made: install `useradd`")


def _add_command(name: str, uid: int | None) -> list[str] | None:
    number = [] if uid is None else ["-u", str(uid)]
    if shutil.which("useradd"):
        shell = "/usr/sbin/nologin"
        return ["useradd", "--system", "--user-group", "--no-create-home", "--home-dir", "/nonexistent",
                "--shell", shell, *number, name]  # fmt: skip
    if shutil.which("adduser"):  # BusyBox
        return ["adduser", "-S", "-D", "-H", "-h", "/nonexistent", "-s", "/sbin/nologin", *number, name]
    return None


def remove_account(name: str) -> None:
    """Remove an account that `ensure_account` made; absent is success, and so is being unable to."""
    if os.geteuid() != 0 or not _NAME.fullmatch(name) or not name.startswith("nvs"):
        return
    with contextlib.suppress(KeyError):
        pwd.getpwnam(name)
        for program in ("userdel", "deluser"):
            if shutil.which(program):
                subprocess.run([program, name], capture_output=True, check=False, stdin=subprocess.DEVNULL)
                return


def can_reach(path: Path, account: Account) -> bool:
    """Whether `account` can traverse every folder above `path` and enter (or read) `path` itself; by mode bits."""
    path = Path(os.path.realpath(path))
    if account.uid == 0:
        return True
    for part in (path, *path.parents):
        try:
            info = part.stat()
        except OSError:
            return False
        shift = 6 if info.st_uid == account.uid else 3 if info.st_gid == account.gid else 0
        need = 0o5 if part == path else 0o1
        if stat.S_ISREG(info.st_mode):
            need = 0o4
        if (info.st_mode >> shift) & need != need:
            return False
    return True


def make_passable(folder: Path) -> None:
    """Make the folder and those above it that are missing; as root others may pass through, whatever our umask is."""
    for part in (*reversed(folder.parents), folder):
        if not part.is_dir():
            part.mkdir(exist_ok=True)
            part.chmod(0o711 if os.geteuid() == 0 else 0o700)


def give_tree(folder: Path, account: Account) -> None:
    """Make `account` the owner of the whole tree (links are not followed)."""
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            os.lchown(Path(parent) / name, account.uid, account.gid)
    os.lchown(folder, account.uid, account.gid)


def as_account(account: Account) -> dict[str, Any]:
    """Arguments for `subprocess` that make the child run as `account`; empty when that is what we are."""
    if os.geteuid() != 0 or account.is_current:
        return {}
    return {"user": account.uid, "group": account.gid, "extra_groups": []}
