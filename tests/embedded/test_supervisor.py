"""`make run` for real: one home, started, hurt and stopped as people and machines do it. Process runtime."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from novastack.embedded.paths import remove_state
from novastack.embedded.supervisor import Supervisor
from projects.runtimes.process import remove_all_servers
from projects.runtimes.process_binaries import find
from projects.runtimes.process_table import ProcessRef

CHECKOUT = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(find("postgres", "18") is None, reason="PostgreSQL 18 is neither installed nor bundled here"),
]
_LEAKS = ("DATABASE_URL", "BROKER_URL", "CACHE_URL", "SECRET_KEY", "NOVASTACK_SECRET_KEYS", "NOVASTACK_MODE",
          "DJANGO_SETTINGS_MODULE")  # fmt: skip


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Run:
    """One `up`, with what it said so far."""

    def __init__(self, home: Path, port: int, **extra: str) -> None:
        env = {key: value for key, value in os.environ.items() if key not in _LEAKS}
        first = 21000 + secrets.randbelow(4000)
        env |= {
            "NOVASTACK_HOME": str(home), "NOVASTACK_PORT": str(port), "NOVASTACK_RUNTIME": "process",
            "NOVASTACK_PORT_RANGE": f"{first}-{first + 50}", "NOVASTACK_ENV_FILE": os.devnull, **extra,
        }  # fmt: skip
        self.port = port
        self.text = ""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "novastack.embedded", "up"], cwd=CHECKOUT, env=env, text=True, errors="replace",
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
            # a shell that runs the tests in the background has them ignore it, and children inherit that
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.text += line

    def wait_for(self, pattern: str, seconds: float = 60) -> re.Match[str]:
        deadline = time.monotonic() + seconds
        while True:
            if match := re.search(pattern, self.text):
                return match
            if time.monotonic() > deadline or (self.process.poll() is not None and not self._reader.is_alive()):
                if match := re.search(pattern, self.text):
                    return match
                pytest.fail(f"never said {pattern!r}:\n{self.text}")
            time.sleep(0.05)

    def stop(self, number: int = signal.SIGINT, seconds: float = 25) -> int:
        self.process.send_signal(number)
        code = self.process.wait(seconds)
        self._reader.join(5)
        return code


def answers(port: int, path: str = "/healthz") -> int:
    with contextlib.suppress(OSError):
        return int(urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5).status)
    return 0


def wait_until(check: object, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not check():  # type: ignore[operator]
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.1)


def processes_of(home: Path) -> list[str]:
    """Command lines of every process that has to do with this home."""
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            with contextlib.suppress(OSError):
                line = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                env = (path / "environ").read_bytes().decode(errors="replace") if "novastack" in line else ""
                if str(home) in line or f"NOVASTACK_HOME={home}\0" in env:
                    found.append(line)
    return found


def roster(home: Path) -> dict[str, ProcessRef]:
    kept = json.loads((home / "run" / "children.json").read_text())
    return {role: ref for role, text in kept.items() if (ref := ProcessRef.parse(text))}


def server_refs(home: Path) -> list[ProcessRef]:
    state = Path((home / "state-folder").read_text().strip())
    texts = [json.loads(path.read_text())["ref"] for path in state.glob("servers/servers/*/.novastack/run.json")]
    return [ref for text in texts if (ref := ProcessRef.parse(text))]


@pytest.fixture(scope="class")
def home() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="nvs-up-", dir="/tmp"))
    folder.chmod(0o755)
    home = folder / "home"
    yield home
    left = processes_of(home)
    subprocess.run([sys.executable, "-m", "novastack.embedded", "postgres", "stop", "--home", str(home)], check=False,
                   cwd=CHECKOUT)  # fmt: skip
    remove_all_servers(Path((home / "state-folder").read_text().strip()) / "servers")
    remove_state(home)
    shutil.rmtree(folder, ignore_errors=True)
    assert left == []


@pytest.mark.timeout(240)
@pytest.mark.in_order
class TestUp:
    """The tests build on each other: one install lives through all of them."""

    uri = ""

    def test_first_start_shows_a_working_database(self, home: Path) -> None:
        taken = socket.create_server(("127.0.0.1", 0))
        wanted = taken.getsockname()[1]
        run = Run(home, wanted)
        try:
            found = run.wait_for(r"psql '(postgresql://[^']+)'", 90)
            assert run.wait_for(r"Password +\S+ +\(shown only this once\)")
            assert f"Port {wanted} is taken" in run.text
            port = int(run.wait_for(r"http://localhost:(\d+)").group(1))
            assert port != wanted
            assert answers(port) == 200
            type(self).uri = found.group(1)
            with psycopg.connect(self.uri, autocommit=True) as connection:
                connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")

            second = Run(home, free_port())
            assert second.process.wait(120) == 1
            second.wait_for("already runs from")
        finally:
            taken.close()
            assert run.stop() == 0
        assert "Stopped, with 1 database server" in run.text
        assert processes_of(home) == []
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(self.uri, connect_timeout=2)

    def test_secrets_are_for_us_only(self, home: Path) -> None:
        assert self.uri
        for path in [*(home / "secrets").iterdir(), home / "control-db.password"]:
            assert path.stat().st_mode & 0o077 == 0, path
        for folder in ("secrets", "logs", "run", "broker/queues"):
            assert (home / folder).stat().st_mode & 0o077 == 0, folder

    def test_everything_is_found_again_and_heals(self, home: Path) -> None:
        run = Run(home, free_port())
        try:
            run.wait_for("Ready after")
            assert "Password" not in run.text
            wait_until(lambda: self.answer() == 42, 40)
            before = roster(home)
            assert set(before) >= {"web", "worker", "worker-monitoring", "beat"}
            for role in ("worker", "web", "beat"):
                os.kill(before[role].pid, signal.SIGKILL)
                run.wait_for(rf"{role} ended \(signal 9\); starting it again")
                wait_until(lambda role=role: role in roster(home) and roster(home)[role] != before[role])
            wait_until(lambda: answers(run.port) == 200)
            control = ProcessRef.parse(json.loads(self.control_record(home).read_text())["ref"])
            assert control is not None
            os.kill(control.pid, signal.SIGKILL)
            run.wait_for("control database ended; starting it again", 20)
            wait_until(lambda: answers(run.port, "/readyz") == 200, 30)
        finally:
            assert run.stop(signal.SIGTERM) == 0
        assert processes_of(home) == []

    def test_a_killed_supervisor_is_succeeded(self, home: Path) -> None:
        run = Run(home, free_port())
        run.wait_for("Ready after")
        wait_until(lambda: self.answer() == 42, 40)
        servers, children = server_refs(home), roster(home)
        run.process.kill()
        run.process.wait()
        assert self.answer() == 42  # databases don't care
        again = Run(home, run.port)
        try:
            again.wait_for("The last run was killed")
            again.wait_for("Ready after")
            assert f"Port {run.port} is taken" not in again.text
            assert not any(ref.alive() for role, ref in children.items() if role != "nursery")
            assert server_refs(home) == servers
            assert all(ref.alive() for ref in servers)
            assert self.answer() == 42
        finally:
            assert again.stop() == 0
        assert processes_of(home) == []

    def test_ctrl_c_while_starting(self, home: Path) -> None:
        for pause in (0.3, 2.0):
            run = Run(home, free_port())
            time.sleep(pause)
            assert run.stop() in {0, -signal.SIGINT}
            assert processes_of(home) == []

    def test_ctrl_c_right_after_the_children_were_forked(self, home: Path) -> None:
        """Before the supervisor has heard of them: nobody would ever end them but themselves."""
        run = Run(home, free_port())
        deadline = time.monotonic() + 60
        while sum("child nursery" in line for line in processes_of(home)) < 3 and time.monotonic() < deadline:
            time.sleep(0.002)
        assert run.stop() in {0, -signal.SIGINT}
        deadline = time.monotonic() + 90
        while processes_of(home) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert processes_of(home) == []

    def answer(self) -> int:
        with contextlib.suppress(psycopg.Error), psycopg.connect(self.uri, connect_timeout=2) as connection:
            row = connection.execute("SELECT answer FROM kept").fetchone()
            return int(row[0]) if row else 0
        return 0

    @staticmethod
    def control_record(home: Path) -> Path:
        return Path((home / "state-folder").read_text().strip()) / "control-db" / "run.json"


def test_answers_are_not_held_back_by_the_kernel(tmp_path: Path) -> None:
    """An answer's head and body are two writes: without this the second waits for the client's delayed acknowledgement."""
    supervisor = Supervisor(tmp_path, bind="127.0.0.1", port=free_port())
    with supervisor._listen() as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
