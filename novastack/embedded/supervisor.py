"""`make run`: the control database, web, workers and beat as one thing that starts, watches and stops together."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from novastack.embedded import broker
from novastack.embedded.children import Child, end_leftovers, remember, stop_all
from novastack.embedded.install import Home
from novastack.embedded.paths import write_private
from novastack.embedded.postgres import EmbeddedPostgres, EmbeddedPostgresError
from projects.runtimes.process import end_all_servers
from projects.runtimes.process_table import ProcessRef

ROLES = ("worker", "web", "worker-monitoring", "beat")
_PR_SET_CHILD_SUBREAPER = 36
CHILD_GRACE_SECONDS = 5.0


class StartRefused(Exception):
    """It can't start; the text says why and what to do."""


class Supervisor:
    """One run of one install. `say` shows a line to the person at the terminal."""

    def __init__(self, path: Path, *, bind: str, port: int, quiet: bool = False) -> None:
        self.began = time.monotonic()
        self.home = Home(path)
        self.bind = bind
        self.wanted_port = port
        self.quiet = quiet
        self.children: list[Child] = []
        self.first_start: dict[str, Any] = {}
        self.postgres: EmbeddedPostgres | None = None
        self._stopping = threading.Event()
        self._signals = 0
        self._nursery: Child | None = None
        self._output: BinaryIO
        self._gates: dict[str, BinaryIO] = {}
        self._roster = self.home.run / "children.json"

    def say(self, text: str = "") -> None:
        with contextlib.suppress(OSError, ValueError):  # the terminal may be gone; the databases must stop all the same
            print(text, flush=True)

    # --- life -----------------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Until a signal. Returns the exit code; `StartRefused` when it could not start."""
        with self._only_one():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup means it
                    signal.signal(number, self._on_signal)
            with contextlib.suppress(AttributeError, OSError):
                ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)  # servers' processes are reaped, whoever is pid 1
            try:
                self._start()
                self._watch()
            except _Stopped:
                pass
            finally:
                self._stop()
        return 0

    def _on_signal(self, number: int, _frame: object) -> None:
        self._signals += 1
        self._stopping.set()
        if self._signals == 1:
            with contextlib.suppress(OSError, ValueError):
                databases = b"in containers go on" if self._contained else b"too; nothing is lost"
                os.write(sys.stdout.fileno(), b"\nStopping (databases " + databases + b") ...\n")

    def _check_stop(self) -> None:
        if self._stopping.is_set():
            raise _Stopped

    @contextlib.contextmanager
    def _only_one(self) -> Iterator[None]:
        with self.home.lock.open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise StartRefused(
                    f"NovaStack already runs from {self.home.path} ({file.read().strip() or 'just starting'}).\n"
                    "Stop that one first, or start a second install with its own NOVASTACK_HOME."
                ) from None
            file.truncate(0)
            file.write(f"process {os.getpid()}")
            file.flush()
            self._lock_file = file
            try:
                yield
            finally:
                file.truncate(0)

    def _start(self) -> None:
        if roles := end_leftovers(self._roster):
            self.say(f"The last run was killed: ended its {', '.join(roles)}; databases that still run are taken over.")
        broker.prepare(self.home.path)
        listener = self._listener = self._listen()  # ours for the whole run: a restarted web gets it again
        port = listener.getsockname()[1]
        url = None
        own_database = not os.environ.get("DATABASE_URL")
        if own_database:
            self.postgres = EmbeddedPostgres(self.home.path)
            url = self.postgres.reserve()
        env = self.home.environment(database_url=url, bind=self.bind, port=port)
        self._open_nursery(env, listener)
        if self.postgres:
            try:
                started = self.postgres.start()
            except EmbeddedPostgresError as error:
                raise StartRefused(str(error)) from error
            if started != url:  # its port was taken between the look and the start
                stop_all(self._everybody(), grace_seconds=1)
                env = self.home.environment(database_url=started, bind=self.bind, port=port)
                self._open_nursery(env, listener)
        self._open_gate("database")
        self._adopt_children()
        self.first_start = self._read_line(120) or {}
        if not self.first_start:
            raise StartRefused(self._failure("The first start failed"))
        self._open_gate("go")
        write_private(self.home.run / "install", str(self.first_start["install_id"]))
        self._lock_file.truncate(0)
        self._lock_file.write(f"process {os.getpid()}, {self._url(port)}")
        self._lock_file.flush()
        self._greet(port)
        self._wait_web(port)
        if self.first_start.get("project_id"):
            self._show_first_project()
        self.say("Ctrl-C stops everything" + (", but databases in containers go on." if self._contained else "."))

    @property
    def _contained(self) -> bool:
        return self.first_start.get("runtime") not in {"process", None}

    def _listen(self) -> socket.socket:
        """The web's socket, held by us for the whole run: the wanted port, or the next free one."""
        family = socket.AF_INET6 if ":" in self.bind else socket.AF_INET
        for port in [*range(self.wanted_port, min(self.wanted_port + 100, 65536)), 0]:
            listener = socket.socket(family, socket.SOCK_STREAM)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # Inherited by every connection: else the kernel holds an answer's second part back for 40 ms.
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                listener.bind((self.bind, port))
                listener.listen(128)
            except OSError as error:
                listener.close()
                if error.errno not in (98, 13, 48):
                    raise StartRefused(f"can't listen on {self.bind}: {error.strerror}") from error
                continue
            if port != self.wanted_port:
                found = listener.getsockname()[1]
                self.say(f"Port {self.wanted_port} is taken: using {found}.")
            return listener
        raise StartRefused(f"no free port on {self.bind}")

    def _open_nursery(self, env: dict[str, str], listener: socket.socket) -> None:
        """Start the process that loads the code and forks the children; both wait at their gates."""
        env = env | {"NOVASTACK_WEB_FD": str(listener.fileno())}
        self.children = [
            Child(role, self.home.logs / f"{role}.log", env, (listener.fileno(),) if role == "web" else ())
            for role in ROLES
        ]
        output, write_output = os.pipe()
        self._output = os.fdopen(output, "rb", buffering=0)
        inherited = [listener.fileno()]
        extra = {"NOVASTACK_ROLES": ",".join(ROLES)}
        for name, variable in (("database", "NOVASTACK_GATE_FD"), ("go", "NOVASTACK_GO_FD")):
            reader, writer = os.pipe()
            self._gates[name] = os.fdopen(writer, "wb")
            inherited.append(reader)
            extra[variable] = str(reader)
        self._nursery = Child("nursery", self.home.logs / "nursery.log", env, tuple(inherited))
        for child in (*self.children, self._nursery):
            child.cap_log()
        self._nursery.start(stdout=write_output, extra_env=extra)
        for number in (write_output, *inherited[1:]):
            os.close(number)
        remember(self._roster, [self._nursery])

    def _open_gate(self, name: str) -> None:
        """Let those who wait there go on, a byte for each. One that is closed without a byte ends them."""
        with contextlib.suppress(BrokenPipeError), self._gates.pop(name) as gate:
            gate.write(b"." * (len(ROLES) + 1))

    def _adopt_children(self) -> None:
        """The nursery says whom it forked; from now on they are ours."""
        found = self._read_line(120)
        if not found or "children" not in found:
            raise StartRefused(self._failure("The code could not be loaded"))
        for child in self.children:
            child.adopt(ProcessRef.parse(found["children"][child.role]))
        remember(self._roster, self._everybody())

    def _everybody(self) -> list[Child]:
        return [child for child in (*self.children, self._nursery) if child]

    def _read_line(self, seconds: float) -> dict[str, Any] | None:
        """The next line of JSON from the nursery; None when it ended without one, or the time is over."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self._check_stop()
            if select.select([self._output], [], [], 0.1)[0]:
                line = self._output.readline()
                if not line or line.startswith(b"{"):
                    return json.loads(line) if line else None
            elif "go" not in self._gates:
                self._watch_once()
        return None

    def _failure(self, title: str) -> str:
        if self._nursery is None:
            return title
        return "\n".join([f"{title}. The end of {self._nursery.log}:", *self._nursery.last_lines(20)])

    # --- telling --------------------------------------------------------------------------------------------------

    def _url(self, port: int) -> str:
        """Browsers refuse passkeys on an IP address: a name, when only this machine is meant anyway (rule 40)."""
        host = "localhost" if self.bind in {"127.0.0.1", "::1", "0.0.0.0", "::"} else self.bind  # noqa: S104
        return f"http://{host}:{port}"

    def _elapsed(self) -> str:
        return f"{time.monotonic() - self.began:.1f} s"

    def _greet(self, port: int) -> None:
        found = self.first_start
        self.say()
        self.say(f"  NovaStack   {self._url(port)}")
        if found.get("admin_email"):
            self.say(f"  Sign in     {found['admin_email']}")
        if found.get("admin_password"):
            self.say(f"  Password    {found['admin_password']}   (shown only this once)")
        self.say(f"  Databases   run on: {found.get('runtime')} ({found.get('runtime_reason')})")
        self.say(f"  Home        {self.home.path}   (logs in logs/)")
        if self.home.state.parent != self.home.path:
            self.say(f"  Data        {self.home.state}")
        self.say()

    def _wait_web(self, port: int) -> None:
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.bind, self.bind)  # noqa: S104
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            self._check_stop()
            self._watch_once()
            with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1) as probe:
                probe.settimeout(2)
                probe.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                if probe.recv(16).startswith(b"HTTP/1."):
                    self.say(f"Ready after {self._elapsed()}.")
                    return
            time.sleep(0.05)
        self.say("The web does not answer yet; see logs/web.log.")

    def _show_first_project(self) -> None:
        found = self._read_line(200)
        if found and found.get("uri"):
            self.say(f"First database, after {self._elapsed()}:\n\n  psql '{found['uri']}'\n")
        elif found:
            self.say(f"The first database is {found.get('status')}: {found.get('detail') or 'see the dashboard'}")
        else:
            self.say("The first database is not ready yet: see the dashboard.")

    # --- watching -------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        rounds = 0
        while not self._stopping.wait(0.2):
            self._watch_once()
            self._reap_strangers()
            rounds += 1
            if rounds % 300 == 0:
                broker.drop_messages(self.home.path, older_than_seconds=600)
                for child in self.children:
                    child.cap_log()
            if rounds % 25 == 0 and self.postgres and self.postgres.ref() is None:
                self.say("The control database ended; starting it again.")
                try:
                    self.postgres.start()
                except EmbeddedPostgresError as error:
                    self.say(f"{error}\nTrying again.")

    def _watch_once(self) -> None:
        """Start children again that ended by themselves."""
        changed = False
        for child in self.children:
            code = child.ended()
            if code is not None:
                why = f"signal {-code}" if code < 0 else f"exit code {code}"
                pause = child.plan_restart()
                self.say(f"{child.role} ended ({why}); starting it again in {pause:g} s. Its last lines:")
                for line in child.last_lines():
                    self.say(f"    {line[:200]}")
            if child.ref is None and child.next_start and time.monotonic() >= child.next_start:
                child.start()
                changed = True
        if changed:
            remember(self._roster, self.children)

    def _reap_strangers(self) -> None:
        """Zombies of servers whose starter has gone come to us; children keep theirs until `ended` asked."""
        own = {child.ref.pid for child in self.children if child.ref}
        with contextlib.suppress(ChildProcessError):
            while found := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                if found.si_pid in own:
                    return
                os.waitpid(found.si_pid, os.WNOHANG)

    # --- stopping -------------------------------------------------------------------------------------------------

    def _stop(self) -> None:
        began = time.monotonic()
        for gate in self._gates.values():
            with contextlib.suppress(OSError):
                gate.close()
        stop_all(self._everybody(), grace_seconds=CHILD_GRACE_SECONDS)
        self._roster.unlink(missing_ok=True)
        count = end_all_servers(self.home.servers, grace_seconds=5)
        if self.postgres:
            self.postgres.stop(grace_seconds=5)
        end_all_servers(self.home.servers, grace_seconds=3)  # one that was just being started
        said = f", with {count} database server{'s' if count != 1 else ''}" if count else ""
        self.say(f"Stopped{said} ({time.monotonic() - began:.1f} s).")


class _Stopped(Exception):
    """A signal came while starting."""
