"""From POST to the first accepted query as the tenant, against raw `docker run` + ready + CREATE ROLE + CREATE DATABASE
of the same image, interleaved in one run: p50 and p95 at most raw + 0.4 s.

Ours goes the whole way that a client goes: HTTP, database row, hint, worker, container, real login, connection answer.
"""

from __future__ import annotations

import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

import psycopg
import requests

from bench import stats

ROUNDS = int(os.environ.get("BENCH_ROUNDS", "12"))
BOUND_SECONDS = 0.4
PASSWORD = "bench-password-1234567890"


def run() -> list[str]:
    """Lines for the report."""
    image = _image()
    if image is None:
        return ["provisioning: not measured, no Docker engine with a PostgreSQL image"]
    ours: list[float] = []
    raw: list[float] = []
    with _instance() as client:
        for number in range(ROUNDS + 1):
            one, other = _ours(client, number), _raw(image)
            if number:  # the first pair warms caches up
                ours.append(one)
                raw.append(other)
    extra = [a - b for a, b in zip(ours, raw, strict=True)]
    p50 = statistics.median(ours) - statistics.median(raw)
    p95 = stats.percentile(ours, 0.95) - stats.percentile(raw, 0.95)
    return [
        f"provisioning, NovaStack: {stats.summary(ours, unit='s', scale=1)}",
        f"provisioning, raw docker run + CREATE: {stats.summary(raw, unit='s', scale=1)}",
        f"provisioning, ratio of medians {statistics.median(ours) / statistics.median(raw):.2f}; p50 raw {p50:+.2f} s"
        f" ({stats.verdict(p50, BOUND_SECONDS)}), p95 raw {p95:+.2f} s ({stats.verdict(p95, BOUND_SECONDS)}),"
        f" median of pairs {statistics.median(extra):+.2f} s; bound +{BOUND_SECONDS} s; image {image}",
    ]


def _image() -> str | None:
    for name in ("postgres:18", "novastack-postgresql:18"):
        found = subprocess.run(["docker", "image", "inspect", name], capture_output=True)
        if found.returncode == 0:
            return name
    return None


def _port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _instance() -> Iterator[Client]:
    """A throw-away embedded install on Docker, signed in."""
    port = _port()
    with tempfile.TemporaryDirectory() as folder:
        env = {
            **os.environ, "NOVASTACK_HOME": folder, "NOVASTACK_PORT": str(port), "NOVASTACK_RUNTIME": "docker",
            "NOVASTACK_FIRST_PROJECT": "0", "NOVASTACK_ADMIN_EMAIL": "bench@example.com",
            "NOVASTACK_ADMIN_PASSWORD": PASSWORD, "NOVASTACK_DATA_GRACE_SECONDS": "0",
            "NOVASTACK_PORT_RANGE": "31000-31999", "NOVASTACK_MODE": "embedded",
        }  # fmt: skip
        env.pop("DATABASE_URL", None)
        env.pop("BROKER_URL", None)
        log = (Path(folder) / "bench.log").open("wb")
        supervisor = subprocess.Popen(
            [sys.executable, "-m", "novastack.embedded", "up"], env=env, stdout=log, stderr=log, start_new_session=True
        )
        try:
            client = Client(f"http://localhost:{port}/")
            _await_web(client, supervisor, Path(folder) / "bench.log")
            answer = client.call("POST", "auth/login/", {"email": "bench@example.com", "password": PASSWORD})
            client.session.headers["Authorization"] = f"Bearer {answer['access']}"
            yield client
        finally:
            supervisor.send_signal(signal.SIGINT)
            supervisor.wait(timeout=60)
            log.close()


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
        except requests.ConnectionError:
            pass
        time.sleep(0.1)
    raise SystemExit("the instance did not start:\n" + log.read_text()[-2000:])


def _ours(client: Client, number: int) -> float:
    begun = perf_counter()
    made = client.call("POST", "projects/", {"name": f"bench {number}"})
    operation = made["operation"]["id"]
    while True:
        state = client.call("GET", f"operations/{operation}/?wait=30")
        if state["state"] not in {"queued", "running"}:
            break
    if state["state"] != "succeeded":
        raise SystemExit(f"provisioning ended {state['state']}: {state['error']}")
    info = client.call("GET", f"projects/{made['id']}/connection/")
    with psycopg.connect(info["uri"]) as session:
        session.execute("SELECT 1")
    taken = perf_counter() - begun
    client.call("DELETE", f"projects/{made['id']}/?purge=true&confirm={made['slug']}")
    _await_gone(client, made["id"])
    return taken


def _await_gone(client: Client, project: str) -> None:
    for _ in range(300):
        if client.status(f"api/v1/projects/{project}/") == 404:
            return
        time.sleep(0.2)
    raise SystemExit("a purge took more than a minute")


def _raw(image: str) -> float:
    name, port = f"bench-{uuid.uuid4().hex[:12]}", _port()
    admin = f"postgresql://postgres:{PASSWORD}@127.0.0.1:{port}/postgres?connect_timeout=2"
    begun = perf_counter()
    subprocess.run(
        ["docker", "run", "-d", "--name", name, "-e", f"POSTGRES_PASSWORD={PASSWORD}", "-p", f"127.0.0.1:{port}:5432",
         image],
        check=True, capture_output=True,
    )  # fmt: skip
    try:
        while True:
            try:
                session = psycopg.connect(admin, autocommit=True)
                break
            except psycopg.OperationalError:
                time.sleep(0.02)
        with session:
            session.execute(f"CREATE ROLE tenant LOGIN PASSWORD '{PASSWORD}'")
            session.execute("CREATE DATABASE tenant OWNER tenant")
        with psycopg.connect(f"postgresql://tenant:{PASSWORD}@127.0.0.1:{port}/tenant") as tenant:
            tenant.execute("SELECT 1")
        return perf_counter() - begun
    finally:
        subprocess.run(["docker", "rm", "-f", "-v", name], check=False, capture_output=True)
