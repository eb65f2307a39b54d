"""The folder of one incarnation of one server.

<root>/servers/nvs-<server>-<incarnation>/   root's; the server's account may pass through it
    .novastack/   marker.json  spec.json  run.json  log.json  lock  server.log  initialised  secrets/  files/
                   (never writable by it)
    <data_subdir>/                            the server's own, 0700
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from projects.domain import DataExists, DataInUse, DataMissing, Handle, Limits
from projects.runtimes.process_accounts import Account, ensure_account
from projects.runtimes.process_table import ProcessRef

_NAME = re.compile(r"nvs-(?P<server>[A-Za-z0-9][A-Za-z0-9_-]{0,62})-(?P<incarnation>\d{1,9})")
LOG_LIMIT_BYTES = 10 << 20
HELD_SECONDS = 12.0
LOG_KEEP_BYTES = 1 << 20


def handle_of(name: str) -> Handle | None:
    """The reverse of `Handle.name`, without its ref."""
    match = _NAME.fullmatch(name)
    return Handle(match["server"], int(match["incarnation"])) if match else None


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class Volume:
    """Paths and small files of one server. Knows no engine."""

    def __init__(self, root: Path, handle: Handle) -> None:
        if not _NAME.fullmatch(handle.name):
            raise ValueError(f"not a server's name: {handle.name!r}")
        self.root = root
        self.name = handle.name
        self.handle = handle
        self.path = root / "servers" / handle.name
        self.own = self.path / ".novastack"
        self.log = self.own / "server.log"
        self.lock = self.own / "lock"
        self.record = self.own / "run.json"
        self.files = self.own / "files"

    def without_paths(self, line: bytes) -> bytes:
        """A log line without this host's folders: `<data>` stands for the server's own, and for the root of them all."""
        for path in (self.path, self.path.resolve(), self.root, self.root.resolve()):
            line = line.replace(os.fsencode(path), b"<data>")
        return line

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """One caller at a time per server, in all processes. `DataInUse` when another one does not end in time: a call
        never outlives the lease of who makes it."""
        folder = self.root / "locks"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (folder / self.name).open("w") as file:
            deadline = time.monotonic() + HELD_SECONDS
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise DataInUse("another worker is at work on this server") from None
                    time.sleep(0.02)
            yield

    @contextlib.contextmanager
    def locked(self) -> Iterator[int]:
        """The data's own lock (a file descriptor to hand on). What a worker that was killed had begun (making the data, say)
        may hold it for a moment more: waited for; `DataInUse` when it does not end in time."""
        descriptor = os.open(self.lock, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            deadline = time.monotonic() + HELD_SECONDS
            while not _lock(descriptor):
                if time.monotonic() > deadline:
                    raise DataInUse("another process still uses this data")
                time.sleep(0.02)
            yield descriptor
        finally:
            os.close(descriptor)

    def read(self, name: str) -> dict[str, Any]:
        """One of our JSON files; empty if there is none."""
        with contextlib.suppress(OSError, ValueError):
            value = json.loads((self.own / name).read_bytes())
            return value if isinstance(value, dict) else {}
        return {}

    def write(self, name: str, value: Mapping[str, Any]) -> None:
        write_file(self.own / name, json.dumps(value).encode(), mode=0o600)

    def exists(self) -> bool:
        return (self.own / "marker.json").is_file()

    def initialised(self) -> bool:
        return (self.own / "initialised").is_file()

    def marked_for(self, install: str) -> bool:
        marker = self.read("marker.json")
        return (marker.get("install"), marker.get("server"), marker.get("incarnation")) == (
            install, self.handle.server_id, self.handle.incarnation,
        )  # fmt: skip

    def account(self) -> Account:
        """The account that owns the data: as recorded; made again, with the same number, when this machine lost it."""
        marker = self.read("marker.json")
        return ensure_account(str(marker.get("account") or "novastack"), uid=marker.get("uid"))

    def create(self, install: str, account: Account) -> None:
        """Make the folder and its marker, or go on with what the same handle began. `DataExists` for anything else."""
        if self.exists():
            if not self.marked_for(install):
                raise DataExists("there is data of another server in this place")
            return
        if self.path.is_dir() and any(entry.name != ".novastack" for entry in self.path.iterdir()):
            raise DataExists("there is data of unknown origin in this place")
        group = account.gid if os.geteuid() == 0 else -1
        for folder in (self.root, self.root / "servers"):
            if not folder.is_dir():
                folder.mkdir(parents=True, exist_ok=True)
                folder.chmod(0o711 if os.geteuid() == 0 else 0o700)
        for folder in (self.path, self.own):
            folder.mkdir(exist_ok=True)
            if group != -1:
                os.chown(folder, 0, group)
            folder.chmod(0o710 if group != -1 else 0o700)
        self.write("marker.json", {
            "install": install, "server": self.handle.server_id, "incarnation": self.handle.incarnation,
            "account": account.name, "uid": account.uid, "own_account": account.own,
        })  # fmt: skip

    def check(self, install: str, initialised_file: Path) -> None:
        """`DataMissing` unless this server's own, initialised data is here."""
        if not self.exists():
            raise DataMissing("the data of this server is not here")
        if not self.marked_for(install):
            raise DataMissing("the data in this place belongs to another server")
        if not self.initialised() or not initialised_file.is_file():
            raise DataMissing("the data of this server is gone or was never initialised")

    @contextlib.contextmanager
    def secrets(self, files: Mapping[str, bytes], account: Account) -> Iterator[Path]:
        """A folder with secret files that the server's account can read; removed at the end."""
        folder = self.own / "secrets"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700)
        if os.geteuid() == 0:
            os.chown(folder, 0, account.gid)
            folder.chmod(0o750)  # not by mkdir: our umask may take the group's rights away
        try:
            for name, content in files.items():
                if Path(name).name != name:
                    raise ValueError(f"not a file name: {name!r}")
                write_file(folder / name, content, mode=0o640, group=account.gid if os.geteuid() == 0 else -1)
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def put_files(self, files: Mapping[str, bytes], account: Account) -> None:
        """The server's own files (keys among them): it reads them, nobody but us writes them. Each is replaced whole."""
        if not files:
            return
        root = os.geteuid() == 0
        self.files.mkdir(mode=0o700, exist_ok=True)
        if root:
            os.chown(self.files, 0, account.gid)
            self.files.chmod(0o750)  # not by mkdir: our umask may take the group's rights away
        for name, content in files.items():
            if Path(name).name != name:
                raise ValueError(f"not a file name: {name!r}")
            # Of root, readable for the group: servers that are strict about their key files take that.
            write_file(self.files / name, content, mode=0o640 if root else 0o600, group=account.gid if root else -1)

    def last_ref(self) -> ProcessRef | None:
        """The process of the last start; None if it was never started, or was destroyed."""
        return ProcessRef.parse(str(self.read("run.json").get("ref", "")))

    def limits(self) -> Limits:
        kept = self.read("spec.json").get("limits", {})
        return Limits(int(kept["memory_bytes"]), float(kept["cpus"]), int(kept["pids"]))

    def last_line(self) -> str:
        """The log's last line, shortened: a reason for people."""
        with contextlib.suppress(FileNotFoundError):
            lines = self.without_paths(tail_bytes(self.log, 4096)).decode(errors="replace").strip().splitlines()
            return lines[-1][-300:] if lines else ""
        return ""


def tail_bytes(path: Path, count: int) -> bytes:
    with path.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - count))
        return file.read()


def write_file(path: Path, content: bytes, *, mode: int, group: int = -1) -> None:
    """Write whole or not at all, with its final rights from the start."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        if group != -1:
            os.fchown(file.fileno(), -1, group)
        os.fchmod(file.fileno(), mode)
    temporary.replace(path)
