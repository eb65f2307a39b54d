"""Where an embedded install keeps what.

`NOVASTACK_HOME` holds secrets and files of our own processes. Database servers run as unprivileged accounts: when those
can't reach the home (root's own folder, say), what they need lives in `/var/lib/novastack/<hash of the home>-…`, and the
file `state-folder` in the home says so, as does `home` there.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from pathlib import Path

from projects.runtimes.process_accounts import Account, can_reach, make_passable

SYSTEM_STATE = Path("/var/lib/novastack")


def default_home() -> Path:
    """`NOVASTACK_HOME`, or `.novastack` in the checkout."""
    given = os.environ.get("NOVASTACK_HOME", "")
    return Path(given).expanduser().resolve() if given else Path(__file__).resolve().parents[2] / ".novastack"


def make_home(home: Path) -> Path:
    """The home, made if missing. Others may pass through it when we are root (the servers' accounts), never list it."""
    home = home.resolve()
    if not home.is_dir():
        home.mkdir(parents=True, exist_ok=True)
        home.chmod(0o711 if os.geteuid() == 0 else 0o700)
    return home


def state_folder(home: Path, account: Account) -> Path:
    """Where servers' data lives: in the home if `account` can pass through it, else in the system's state folder.

    Chosen once, then remembered.
    """
    pointer = home / "state-folder"
    if pointer.is_file():
        state = Path(pointer.read_text().strip())
    else:
        state = home / "state"
        if not account.is_current and not _passes(home, account):
            digest = hashlib.sha256(str(home).encode()).hexdigest()[:12]
            # The random end: a home that was removed and made again never meets the data of the old one.
            state = SYSTEM_STATE / f"{digest}-{secrets.token_hex(3)}"
        write_private(pointer, f"{state}\n")
    make_passable(state)
    state.chmod(0o711 if os.geteuid() == 0 else 0o700)
    if state.parent == SYSTEM_STATE and not (state / "home").is_file():
        write_private(state / "home", f"{home}\n")  # whose it is, for who finds it there
    return state


def remove_state(home: Path) -> None:
    """Remove what a throw-away install kept outside of its home: nobody else knows of it once the home is gone."""
    pointer = home / "state-folder"
    if pointer.is_file():
        shutil.rmtree(pointer.read_text().strip(), ignore_errors=True)


def _passes(folder: Path, account: Account) -> bool:
    """Whether `account` may traverse `folder` and all above it."""
    probe = folder / ".probe"
    probe.mkdir(exist_ok=True)
    try:
        probe.chmod(0o755)
        return can_reach(probe, account)
    finally:
        probe.rmdir()


def write_private(path: Path, text: str) -> None:
    """Write a file for our eyes only, whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
