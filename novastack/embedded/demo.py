"""`make demo`: the main job once, against a throw-away install, over the real HTTP API and real SQL. Each step with its
time; anything that is not as promised ends it loudly."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg

from novastack.embedded.install import CHECKOUT
from projects.runtimes.process import remove_all_servers
from projects.runtimes.process_start import port_is_free

ROWS = 1000
START_SECONDS = 120
OPERATION_SECONDS = 180


class DemoFailed(Exception):
    """A promise was not kept; the text says which."""


def demo(*, keep: bool = False) -> int:
    """0 when all went as promised, else 1. Leaves nothing behind unless `keep`."""
    folder = Path(tempfile.mkdtemp(prefix="novastack-demo-"))
    folder.chmod(0o711)  # the servers' accounts must pass through it
    install = _Install(folder / "home")
    began = time.monotonic()
    code = 1
    try:
        with _stopping_on_signals():
            _main_job(install)
        code = 0
        print(f"\nAll as promised, {time.monotonic() - began:.1f} s in all.")
    except (DemoFailed, psycopg.Error, OSError, http.client.HTTPException, KeyError) as error:
        print(f"\nFAILED: {type(error).__name__}: {error}\n", file=sys.stderr)
        install.show_logs()
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
    finally:
        if not install.stop() and code == 0:
            print("FAILED: the install did not stop cleanly", file=sys.stderr)
            code = 1
        if keep:
            print(f"Kept: {folder}")
        else:
            install.remove_traces()
            shutil.rmtree(folder, ignore_errors=True)
    return code


@contextlib.contextmanager
def _stopping_on_signals() -> Iterator[None]:
    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _step(title: str) -> Iterator[Callable[[str], None]]:
    print(f"  {title:<46}", end="", flush=True)
    began = time.monotonic()
    said: list[str] = []
    yield said.append
    print(f"{time.monotonic() - began:7.2f} s   {'; '.join(said)}".rstrip(), flush=True)


def _main_job(install: _Install) -> None:
    print("NovaStack demo: one database, from nothing to nothing\n")
    with _step("Start a throw-away install") as say:
        install.start()
        say(install.runtime)
    api = install.api
    with _step("Register"):
        answer = api("POST", "auth/register", {
            "email": f"demo-{secrets.token_hex(4)}@example.com", "password": secrets.token_urlsafe(18),
            "full_name": "Demo",
        }, expect=201)  # fmt: skip
        install.token = answer["access"]
    with _step("POST projects/ until it is running") as say:
        project = api("POST", "projects/", {"name": "Demo database"}, expect=201)
        install.wait(project["operation"])
        project = api("GET", f"projects/{project['id']}/")
        _expect(project["status"] == "running", f"status is {project['status']}")
        say(f"PostgreSQL {project['version']}")
    path = f"projects/{project['id']}/"
    uri = install.uri(path)
    with _step("SQL in") as say, psycopg.connect(uri) as connection:
        connection.execute("CREATE TABLE demo (id bigint PRIMARY KEY, word text NOT NULL)")
        connection.execute("INSERT INTO demo SELECT n, md5(n::text) FROM generate_series(1, %s) n", [ROWS])
        checksum = _checksum(connection)
        say(f"{ROWS} rows")
    with _step("Restart"):
        install.act(path, "restart")
    with _step("SQL out"), psycopg.connect(uri) as connection:
        _expect(_checksum(connection) == checksum, "the rows changed over the restart")
    with _step("Rotate the password") as say:
        install.act(path, "rotate_password")
        _expect_refused(uri, "the old password still works")
        uri = install.uri(path)
        _connects(uri, checksum)
        say("old refused, new works")
    with _step("Delete: into the recycle bin") as say:
        install.wait(api("DELETE", path, expect=202)["operation"])
        _expect(api("GET", path)["status"] == "recycled", "it is not recycled")
        _expect_refused(uri, "a deleted database can still be reached")
        say("refuses connections")
    with _step("Undelete") as say:
        install.act(path, "undelete")
        _connects(uri, checksum)
        say("all rows are there")
    with _step("Purge") as say:
        found = api("DELETE", f"{path}?purge=true&confirm={project['slug']}", expect=202)
        install.wait(found["operation"])
        api("GET", path, expect=404)
        _expect_refused(uri, "a purged database can still be reached")
        port = psycopg.conninfo.conninfo_to_dict(uri)["port"]
        _expect(port_is_free("127.0.0.1", int(port or 0)), f"something still listens on port {port}")
        left = [str(found) for found in (install.state() / "servers" / "servers").glob("nvs-*")]
        _expect(not left, f"data was left behind: {left}")
        say("no server, no data, no row")


def _expect(kept: bool, complaint: str) -> None:
    if not kept:
        raise DemoFailed(complaint)


def _checksum(connection: psycopg.Connection[tuple[Any, ...]]) -> str:
    row = connection.execute("SELECT count(*) || ':' || md5(string_agg(word, ',' ORDER BY id)) FROM demo").fetchone()
    return str(row and row[0])


def _connects(uri: str, checksum: str) -> None:
    with psycopg.connect(uri, connect_timeout=5) as connection:
        _expect(_checksum(connection) == checksum, "the rows are not the same")


def _expect_refused(uri: str, complaint: str) -> None:
    try:
        psycopg.connect(uri, connect_timeout=3).close()
    except psycopg.OperationalError:
        return
    raise DemoFailed(complaint)


class _Install:
    """A child `up` with its own home, and a small client for its API."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.token = ""
        self.runtime = ""
        self.port = 0
        self.process: subprocess.Popen[str] | None = None
        self.said: list[str] = []

    def state(self) -> Path:
        with contextlib.suppress(OSError):
            return Path((self.home / "state-folder").read_text().strip())
        return self.home / "state"

    def start(self) -> None:
        first = 30000 + secrets.randbelow(2000)
        env = {
            key: value for key, value in os.environ.items() if key not in {"DATABASE_URL", "BROKER_URL", "CACHE_URL"}
        }
        env |= {
            "NOVASTACK_HOME": str(self.home), "NOVASTACK_FIRST_PROJECT": "0", "NOVASTACK_REGISTRATION": "open",
            "NOVASTACK_BIND": "127.0.0.1", "NOVASTACK_PORT_RANGE": f"{first}-{first + 200}",
            "NOVASTACK_DATA_GRACE_SECONDS": "1", "NOVASTACK_ENV_FILE": os.devnull,
        }  # fmt: skip
        self.process = subprocess.Popen(
            [sys.executable, "-m", "novastack.embedded", "up"], cwd=CHECKOUT, env=env, text=True, errors="replace",
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        threading.Thread(target=self._listen, daemon=True).start()
        deadline = time.monotonic() + START_SECONDS
        while not any(line.startswith("Ready after") for line in self.said):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise DemoFailed("it did not start")
            time.sleep(0.05)

    def _listen(self) -> None:
        assert self.process is not None and self.process.stdout is not None  # noqa: S101 - started
        for line in self.process.stdout:
            if "http://localhost:" in line:
                self.port = int(line.rsplit(":", 1)[1])
            if "run on: " in line:
                self.runtime = "runtime " + line.split("run on: ")[1].split()[0]
            self.said.append(line)

    def stop(self) -> bool:
        """Stop it as Ctrl-C does; whether it went cleanly."""
        if self.process is None:
            return True
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(40)
            except subprocess.TimeoutExpired:
                self.process.kill()
                return False
        return self.process.returncode == 0

    def remove_traces(self) -> None:
        """Servers that a failed demo left, and what containers share."""
        remove_all_servers(self.state() / "servers")
        if self.runtime.endswith("docker"):
            from projects.runtimes.docker import DockerRuntime

            identity = (self.home / "run" / "install").read_text().strip()
            url = os.environ.get("NOVASTACK_DOCKER_URL") or os.environ.get("DOCKER_HOST", "")
            DockerRuntime(identity, base_url=url).remove_install()
        shutil.rmtree(self.state(), ignore_errors=True)

    def show_logs(self) -> None:
        print("".join(self.said[-30:]), file=sys.stderr)
        for log in sorted((self.home / "logs").glob("*.log")):
            lines = log.read_text(errors="replace").splitlines()
            if lines:
                print(f"--- {log.name}", *lines[-25:], sep="\n", file=sys.stderr)

    # --- the API --------------------------------------------------------------------------------------------------

    def api(self, method: str, path: str, body: dict[str, Any] | None = None, *, expect: int = 200) -> dict[str, Any]:
        """One call; anything but the expected status is a failure, with the problem's code."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        headers = {"Content-Type": "application/json", "Idempotency-Key": secrets.token_hex(16)}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        try:
            connection.request(method, f"/api/v1/{path}", json.dumps(body) if body is not None else None, headers)
            response = connection.getresponse()
            text = response.read()
        finally:
            connection.close()
        found: dict[str, Any] = json.loads(text) if text.startswith(b"{") else {}
        if response.status != expect:
            raise DemoFailed(
                f"{method} {path}: {response.status} {found.get('code')} {found.get('detail', text[:300])}"
            )
        return found

    def wait(self, operation: dict[str, Any]) -> None:
        """Until the operation ended; only success will do."""
        deadline = time.monotonic() + OPERATION_SECONDS
        while True:
            found = self.api("GET", f"operations/{operation['id']}/?wait=20")
            if found["state"] == "succeeded":
                return
            if found["state"] in {"failed", "cancelled"} or time.monotonic() > deadline:
                raise DemoFailed(f"{found['kind']} {found['state']}: {found.get('error')} {found.get('steps')}")

    def act(self, path: str, action: str) -> None:
        self.wait(self.api("POST", f"{path}action", {"action": action}, expect=202)["operation"])

    def uri(self, path: str) -> str:
        return str(self.api("GET", f"{path}connection")["uri"])
