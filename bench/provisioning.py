"""From POST to the first accepted query as the tenant, for every engine that has an image here, interleaved in one run with
the raw way: `docker run` of the same image, wait for the login, make user and database by hand, first query.

Cold: p50 and p95 at most raw + 0.4 s. With a warm standby ready: at most 0.3 s.
Ours goes the whole way that a client goes: HTTP, database row, hint, worker, container, real login, connection answer.
`BENCH_ROUNDS`, `BENCH_ENGINES` (comma-separated) and `BENCH_MODES` (cold,standby) make a run shorter.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

import psycopg
import requests

from bench import stats
from bench.engines import PASSWORD, RAW, Raw
from novastack.embedded.paths import remove_state
from novastack.embedded.postgres import EmbeddedPostgres

ROUNDS = int(os.environ.get("BENCH_ROUNDS", "12"))
ENGINES = os.environ.get("BENCH_ENGINES", ",".join(RAW)).split(",")
MODES = os.environ.get("BENCH_MODES", "cold,standby").split(",")
BOUND_SECONDS = 0.4
STANDBY_SECONDS = 0.3


def run() -> list[str]:
    """Lines for the report."""
    found = {name: _image(RAW[name]) for name in ENGINES}
    lines = [f"{name}: not measured, no Docker engine with its image" for name, image in found.items() if not image]
    if not any(found.values()):
        return lines
    with instance() as install:
        for name, image in found.items():
            if image and "cold" in MODES:
                lines += _cold(install, RAW[name], image)
            if image and "standby" in MODES:
                lines += _standby(install, RAW[name])
    return lines


def _cold(install: Install, raw: Raw, image: str) -> list[str]:
    ours: list[float] = []
    theirs: list[float] = []
    for number in range(ROUNDS + 1):
        one, other = _ours(install.client, raw, f"{raw.engine} {number}"), _raw(raw, image)
        if number:  # the first pair warms caches up
            ours.append(one)
            theirs.append(other)
    pairs = [a - b for a, b in zip(ours, theirs, strict=True)]
    p50 = statistics.median(ours) - statistics.median(theirs)
    p95 = stats.percentile(ours, 0.95) - stats.percentile(theirs, 0.95)
    return [
        f"{raw.engine} {raw.version}, cold: {stats.summary(ours, unit='s', scale=1)}",
        f"{raw.engine} {raw.version}, raw docker run + CREATE: {stats.summary(theirs, unit='s', scale=1)}",
        f"{raw.engine} {raw.version}, ratio of medians {statistics.median(ours) / statistics.median(theirs):.2f};"
        f" p50 raw {p50:+.2f} s ({stats.verdict(p50, BOUND_SECONDS)}),"
        f" p95 raw {p95:+.2f} s ({stats.verdict(p95, BOUND_SECONDS)}),"
        f" median of pairs {statistics.median(pairs):+.2f} s; bound +{BOUND_SECONDS} s; image {image}",
    ]


def _standby(install: Install, raw: Raw) -> list[str]:
    """Each round begins with two standbys ready; making the next one begins whenever its tick comes."""
    region, plan = install.names()
    install.manage("standbys", "set", region, raw.engine, raw.version, plan, "2")
    taken = []
    for number in range(ROUNDS + 1):
        install.await_standbys(raw.engine, 2)
        seconds = _ours(install.client, raw, f"{raw.engine} warm {number}", install)
        if number:
            taken.append(seconds)
    install.manage("standbys", "set", region, raw.engine, raw.version, plan, "0")
    install.await_standbys(raw.engine, 0)
    p50, p95 = statistics.median(taken), stats.percentile(taken, 0.95)
    return [
        f"{raw.engine} {raw.version}, standby: {stats.summary(taken)}; p50 {stats.verdict(p50, STANDBY_SECONDS)},"
        f" p95 {stats.verdict(p95, STANDBY_SECONDS)}; bound {STANDBY_SECONDS} s"
    ]


def _image(raw: Raw) -> str:
    for name in raw.images:
        found = subprocess.run(["docker", "image", "inspect", name], capture_output=True)
        if found.returncode == 0:
            return name
    return ""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def instance(runtime: str = "docker", **extra: str) -> Iterator[Install]:
    """A throw-away embedded install, signed in. `extra`: its environment's own."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        env = {
            **os.environ, "NOVASTACK_HOME": folder, "NOVASTACK_PORT": str(port), "NOVASTACK_RUNTIME": runtime,
            "NOVASTACK_FIRST_PROJECT": "0", "NOVASTACK_ADMIN_EMAIL": "bench@example.com",
            "NOVASTACK_ADMIN_PASSWORD": PASSWORD, "NOVASTACK_DATA_GRACE_SECONDS": "0",
            "NOVASTACK_PORT_RANGE": "31000-31999", "NOVASTACK_MODE": "embedded",
        }  # fmt: skip
        env.pop("DATABASE_URL", None)
        env.pop("BROKER_URL", None)
        env |= extra
        before = _networks()
        log = (Path(folder) / "bench.log").open("wb")
        supervisor = subprocess.Popen(
            [sys.executable, "-m", "novastack.embedded", "up"], env=env, stdout=log, stderr=log, start_new_session=True
        )
        try:
            client = Client(f"http://localhost:{port}/")
            _await_web(client, supervisor, Path(folder) / "bench.log")
            answer = client.call("POST", "auth/login/", {"email": "bench@example.com", "password": PASSWORD})
            client.session.headers["Authorization"] = f"Bearer {answer['access']}"
            yield Install(client, env, Path(folder))
        finally:
            supervisor.send_signal(signal.SIGINT)
            supervisor.wait(timeout=60)
            log.close()
            remove_state(Path(folder))
            for network in _networks() - before:  # an install keeps its own; nobody is on this one any more
                subprocess.run(["docker", "network", "rm", network], capture_output=True)


def _networks() -> set[str]:
    """Of installs, on this machine's Docker engine; none without one."""
    argv = ["docker", "network", "ls", "-q", "--filter", "label=io.novastack.install"]
    with contextlib.suppress(OSError):
        return set(subprocess.run(argv, capture_output=True, text=True).stdout.split())
    return set()


class Install:
    """The throw-away install: what its operator does and sees."""

    def __init__(self, client: Client, env: Mapping[str, str], home: Path) -> None:
        self.client, self._env, self._home = client, env, home

    def manage(self, *words: str) -> str:
        """What it printed."""
        argv = [sys.executable, "-m", "novastack.embedded.manage", *words]
        return subprocess.run(argv, env=dict(self._env), check=True, capture_output=True, text=True).stdout

    def names(self) -> tuple[str, str]:
        """Slugs of the region and of the plan that a project gets which names none."""
        regions = "SELECT slug FROM projects_region WHERE enabled AND runtime <> '' ORDER BY created_at"
        plans = "SELECT slug FROM projects_plan WHERE enabled ORDER BY is_default DESC, position"
        return self.value(regions), self.value(plans)

    def await_standbys(self, engine: str, count: int) -> None:
        """Return when so many are ready, and nothing else is at work."""
        ready = f"SELECT count(*) FROM projects_databaseserver WHERE kind = 'standby' AND engine = '{engine}'"
        live = (
            "SELECT count(*) FROM projects_operation WHERE state IN ('queued', 'running') AND kind <> 'remove_standby'"
        )
        for _ in range(1200):
            made = self.value(f"{ready} AND standby_ready_at IS NOT NULL" if count else ready)
            if made == count and not self.value(live):
                return
            time.sleep(0.1)
        raise SystemExit(f"no {count} standbys of {engine} after two minutes")

    def was_claimed(self, operation: str) -> bool:
        query = f"SELECT count(*) FROM projects_operationstep WHERE operation_id = '{operation}' AND data ? 'standby'"
        return bool(self.value(query))

    def value(self, query: str) -> Any:
        with psycopg.connect(EmbeddedPostgres(self._home).url) as session:
            found = session.execute(query).fetchone()  # type: ignore[call-overload]
        return found[0] if found else None


class Client:
    """The API, as a script would call it."""

    def __init__(self, base: str) -> None:
        self.base, self.session = base, requests.Session()

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """The JSON answer; an error stops the benchmark with the problem document."""
        answer = self.session.request(method, f"{self.base}api/v1/{path}", json=body, timeout=60)
        if not answer.ok:
            raise SystemExit(f"{method} {path}: {answer.status_code} {answer.text[:500]}")
        return dict(answer.json()) if answer.content else {}

    def status(self, path: str) -> int:
        return self.session.get(f"{self.base}{path}", timeout=10).status_code


def _await_web(client: Client, supervisor: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(600):
        if supervisor.poll() is not None:
            break
        try:
            if client.status("readyz") == 200:
                return
        except (requests.ConnectionError, requests.Timeout):
            pass
        time.sleep(0.1)
    raise SystemExit("the instance did not start:\n" + log.read_text()[-2000:])


def _ours(client: Client, raw: Raw, name: str, install: Install | None = None) -> float:
    begun = perf_counter()
    made = client.call("POST", "projects/", {"name": name, "engine": raw.engine, "version": raw.version})
    operation = made["operation"]["id"]
    while True:
        state = client.call("GET", f"operations/{operation}/?wait=30")
        if state["state"] not in {"queued", "running"}:
            break
    if state["state"] != "succeeded":
        raise SystemExit(f"provisioning ended {state['state']}: {state['error']}")
    raw.query(client.call("GET", f"projects/{made['id']}/connection/"))
    taken = perf_counter() - begun
    if install is not None and not install.was_claimed(operation):
        raise SystemExit("no standby was claimed: nothing was measured")
    client.call("DELETE", f"projects/{made['id']}/?purge=true&confirm={made['slug']}")
    await_gone(client, made["id"])
    return taken


def await_gone(client: Client, project: str) -> None:
    for _ in range(300):
        if client.status(f"api/v1/projects/{project}/") == 404:
            return
        time.sleep(0.2)
    raise SystemExit("a purge took more than a minute")


def _raw(raw: Raw, image: str) -> float:
    name, port = f"bench-{uuid.uuid4().hex[:12]}", free_port()
    env = [word for variable, value in raw.env.items() for word in ("-e", f"{variable}={value}")]
    begun = perf_counter()
    subprocess.run(
        ["docker", "run", "-d", "--name", name, *env, "-p", f"127.0.0.1:{port}:{raw.port}", image],
        check=True, capture_output=True,
    )  # fmt: skip
    try:
        raw.make(port)
        return perf_counter() - begun
    finally:
        subprocess.run(["docker", "rm", "-f", "-v", name], check=False, capture_output=True)
