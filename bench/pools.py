"""From POST to the tenant's first login on a pool of PostgreSQL, in turns with the raw way on the same server: CREATE
ROLE, CREATE DATABASE, a first login as that role.

Ours goes the whole way that a client goes: HTTP, rows, hint, worker, a place on the pool, database and roles closed to
everybody else, a proving login, the connection's answer, the tenant's login; services and API keys are not asked for. With
blanks (databases made ahead) at most 3 × raw with the embedded file broker and 2 × with Redis; without at most 5 ×.
`BENCH_ROUNDS`, `BENCH_RUNTIME` (process, docker), `BENCH_BROKERS` (file,redis) and `BENCH_MODES` (blanks,without) make a run
shorter.
"""

from __future__ import annotations

import functools
import os
import shutil
import statistics
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from time import perf_counter

import psycopg
from psycopg import sql

from bench import stats
from bench.provisioning import Client, Install, free_port, instance

ROUNDS = int(os.environ.get("BENCH_ROUNDS", "20"))
RUNTIME = os.environ.get("BENCH_RUNTIME", "process")
BROKERS = os.environ.get("BENCH_BROKERS", "file,redis").split(",")
MODES = os.environ.get("BENCH_MODES", "blanks,without").split(",")
BOUNDS = {("blanks", "file"): 3.0, ("blanks", "redis"): 2.0, ("without", "file"): 5.0, ("without", "redis"): 5.0}
BLANKS = 4
VERSION = "18"
_ROOM = """
from accounts.models import Organization
Organization.objects.update(max_projects=1000, max_storage_bytes=1 << 60)
"""
_ADMIN = """
from projects.models import DatabaseServer
pool = DatabaseServer.objects.get(kind="pool")
print("POOL", pool.control_host, pool.port, pool.admin_username, pool.admin_secret.open())
"""


def run() -> Iterator[str]:
    """Lines for the report, each as soon as it is known."""
    for broker in BROKERS:
        if broker == "redis" and shutil.which("redis-server") is None:
            yield "pools with Redis: not measured, no redis-server"
            continue
        for mode in MODES:
            with _redis() if broker == "redis" else nullcontext("") as url:
                yield from _measured(mode, broker, url)


def _measured(mode: str, broker: str, url: str) -> list[str]:
    extra = {
        "NOVASTACK_POOL_BLANKS": str(BLANKS if mode == "blanks" else 0), "NOVASTACK_POOL_FILL_PERCENT": "0",
        "NOVASTACK_POOL_MAX_DATABASES": str(2 * ROUNDS + 9), **({"BROKER_URL": url} if url else {}),
    }  # fmt: skip
    plain: list[float] = []
    ours: list[float] = []
    theirs: list[float] = []
    with instance(RUNTIME, **extra) as install:
        install.manage("shell", "-c", _ROOM)
        _ours(install, "first", bootstrap=False)  # it waits for the pool to be made
        admin = _admin_of(install)
        for number in range(ROUNDS + 1):
            each: dict[str, Callable[[], float]] = {
                "plain": functools.partial(_ours, install, f"plain {number}", bootstrap=False),
                "usual": functools.partial(_ours, install, f"usual {number}", bootstrap=True),
                "raw": functools.partial(_raw, admin),
            }
            taken = {}
            for place in range(3):  # each is the first one in its turn
                name = list(each)[(number + place) % 3]
                if mode == "blanks":
                    _await_blanks(install)  # nobody is timed while others are made
                taken[name] = each[name]()
            if number:  # the first round warms caches up
                plain.append(taken["plain"])
                ours.append(taken["usual"])
                theirs.append(taken["raw"])
    bound = BOUNDS[mode, broker]
    base = statistics.median(theirs)
    what = f"pool, PostgreSQL {VERSION}, {RUNTIME}, {broker} broker, {'with' if mode == 'blanks' else 'without'} blanks"
    return [
        f"{what}: {stats.summary(plain)}; {statistics.median(plain) / base:.2f} × raw"
        f" ({stats.verdict(statistics.median(plain) / base, bound)}, bound {bound:g} ×)",
        f"{what}, and the bootstrap tables: {stats.summary(ours)}; {statistics.median(ours) / base:.2f} × raw"
        f" ({stats.verdict(statistics.median(ours) / base, bound)})",
        f"{what}: raw CREATE ROLE, CREATE DATABASE, login {stats.summary(theirs)}",
    ]


def _ours(install: Install, name: str, *, bootstrap: bool) -> float:
    client: Client = install.client
    body = {"name": name, "version": VERSION, "placement": "pool", "bootstrap_schema": bootstrap}
    begun = perf_counter()
    made = client.call("POST", "projects/", body)
    operation = made["operation"]["id"]
    while True:
        state = client.call("GET", f"operations/{operation}/?wait=30")
        if state["state"] not in {"queued", "running"}:
            break
    if state["state"] != "succeeded":
        raise SystemExit(f"provisioning ended {state['state']}: {state['error']}")
    uri = client.call("GET", f"projects/{made['id']}/connection/")["uri"]
    with psycopg.connect(uri) as session:
        session.execute("SELECT 1")
    taken = perf_counter() - begun
    return taken  # it stays: there is room for all of one run, and nothing is dropped while others are timed


def _admin_of(install: Install) -> dict[str, str]:
    words = next(line for line in install.manage("shell", "-c", _ADMIN).splitlines() if line.startswith("POOL")).split()
    return {"host": words[1], "port": words[2], "user": words[3], "password": words[4], "dbname": "postgres"}


def _await_blanks(install: Install) -> None:
    """All blanks are ready and nothing else is at work."""
    ready = "SELECT count(*) FROM projects_blankdatabase WHERE ready_at IS NOT NULL"
    live = "SELECT count(*) FROM projects_operation WHERE state IN ('queued', 'running')"
    for _ in range(600):
        if install.value(ready) >= BLANKS and not install.value(live):
            return
        time.sleep(0.1)
    raise SystemExit(f"no {BLANKS} blanks after a minute")


def _raw(admin: dict[str, str]) -> float:
    name, password = f"bench_{uuid.uuid4().hex[:12]}", uuid.uuid4().hex
    begun = perf_counter()
    with psycopg.connect(**admin, autocommit=True) as session:  # type: ignore[arg-type]
        role = sql.Identifier(name)
        session.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(role, sql.Literal(password)))
        session.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(role, role))
    with psycopg.connect(**admin | {"user": name, "password": password, "dbname": name}) as session:  # type: ignore[arg-type]
        session.execute("SELECT 1")
    taken = perf_counter() - begun
    with psycopg.connect(**admin, autocommit=True) as session:  # type: ignore[arg-type]
        session.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
        session.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))
    return taken


@contextmanager
def _redis() -> Iterator[str]:
    """A Redis of its own, without persistence; its address as a broker's."""
    port = free_port()
    argv = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    server = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
    try:
        time.sleep(0.5)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        server.terminate()
        server.wait(10)
