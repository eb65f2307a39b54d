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
from time import perf_counter
from typing import Any

import httpx
import psycopg

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
def _instance() -> Iterator[httpx.Client]:
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
        log = open(f"{folder}/bench.log", "wb")  # noqa: SIM115 - lives as long as the process
        supervisor = subprocess.Popen(
            [sys.executable, "-m", "novastack.embedded", "up"], env=env, stdout=log, stderr=log, start_new_session=True
        )
        try:
            with httpx.Client(base_url=f"http://localhost:{port}/api/v1/", timeout=60) as client:
                _await_web(client, supervisor, f"{folder}/bench.log")
                answer = client.post("auth/login/", json={"email": "bench@example.com", "password": PASSWORD})
                client.headers["Authorization"] = f"Bearer {answer.raise_for_status().json()['access']}"
                yield client
        finally:
            supervisor.send_signal(signal.SIGINT)
            supervisor.wait(timeout=60)
            log.close()


def _await_web(client: httpx.Client, supervisor: subprocess.Popen[bytes], log: str) -> None:
    for _ in range(600):
        if supervisor.poll() is not None:
            break
        try:
            if client.get("/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    with open(log) as lines:  # noqa: PTH123
        raise SystemExit("the instance did not start:\n" + lines.read()[-2000:])


def _ours(client: httpx.Client, number: int) -> float:
    begun = perf_counter()
    made: dict[str, Any] = client.post("projects/", json={"name": f"bench {number}"}).raise_for_status().json()
    operation = made["operation"]["id"]
    while True:
        state = client.get(f"operations/{operation}/?wait=30").raise_for_status().json()
        if state["state"] not in {"queued", "running"}:
            break
    if state["state"] != "succeeded":
        raise SystemExit(f"provisioning ended {state['state']}: {state['error']}")
    info = client.get(f"projects/{made['id']}/connection/").raise_for_status().json()
    with psycopg.connect(info["uri"]) as session:
        session.execute("SELECT 1")
    taken = perf_counter() - begun
    client.delete(f"projects/{made['id']}/?purge=true&confirm={made['slug']}").raise_for_status()
    _await_gone(client, made["id"])
    return taken


def _await_gone(client: httpx.Client, project: str) -> None:
    for _ in range(300):
        if client.get(f"projects/{project}/").status_code == 404:
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
