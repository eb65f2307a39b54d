"""A light tenant of a pool, alone and beside a neighbour that burns CPU, connections, temporary disk, and bulk writes: what
becomes of the time that one small transaction takes. With NOVASTACK_BENCH_PLAIN=1 the same without a pool's settings too;
NOVASTACK_BENCH_ENGINES names some engines only."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
import pymysql

from bench import stats
from projects import domain, registry
from projects.engines.base import Engine
from projects.runtimes.docker import DockerRuntime

ENGINES = (("postgresql", "17"), ("mysql", "9.7"), ("mariadb", "11.8"))
TENANTS = 5
CONNECTIONS = 20  # of one tenant: the default plan's
PHASE_SECONDS = 4.0
EVERY_SECONDS = 0.01
BOUND_MS = 250.0  # of the 95th percentile: a person does not notice yet
PASSWORD = "bench-password-1234567890"


@dataclass(frozen=True)
class Place:
    engine: Engine
    endpoint: domain.Endpoint
    admin: domain.Credentials

    def login(self, names: domain.TenantNames) -> Any:
        where = {"host": self.endpoint.host, "port": self.endpoint.port, "password": PASSWORD, "autocommit": True}
        if self.engine.name == "postgresql":
            return psycopg.connect(**where, user=names.login, dbname=names.database, connect_timeout=5)
        return pymysql.connect(**where, user=names.login, database=names.database, connect_timeout=5)


# What the neighbour says over and over, on so many connections.
_NOISE: dict[str, dict[str, tuple[int, tuple[str, ...]]]] = {
    "postgresql": {
        "cpu": (CONNECTIONS, (
            "SET max_parallel_workers_per_gather = 8; SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0",
            "SELECT sum(length(md5(w || w))) FROM many, generate_series(1, 20)",
        )),
        "temporary disk": (4, (
            "SET work_mem = '64kB'; SELECT count(*) FROM (SELECT w || g AS x FROM many, generate_series(1, 8) g ORDER BY 1) s",
        )),
        "bulk writes": (4, ("INSERT INTO bulk SELECT w FROM many",)),
    },
    "mysql": {
        "cpu": (CONNECTIONS, ("SELECT BENCHMARK(2000000, SHA2('neighbour', 512))",)),
        "temporary disk": (4, (
            "SET SESSION tmp_table_size = 16384, max_heap_table_size = 16384, sort_buffer_size = 32768",
            "SELECT COUNT(*) FROM (SELECT DISTINCT CONCAT(a.w, b.i) AS x FROM many a JOIN (SELECT 1 i UNION SELECT 2) b"
            " ORDER BY x LIMIT 1000000) s",
        )),
        "bulk writes": (4, ("INSERT INTO bulk SELECT w FROM many",)),
    },
}  # fmt: skip
_MANY = {
    "postgresql": ("CREATE TABLE many AS SELECT md5(g::text) || repeat('x', 200) AS w FROM generate_series(1, 20000) g",),
    "mysql": (
        "CREATE TABLE many (w VARCHAR(300))", "INSERT INTO many VALUES (CONCAT(SHA2(RAND(), 256), REPEAT('x', 200)))",
        *["INSERT INTO many SELECT CONCAT(SHA2(RAND(), 256), REPEAT('x', 200)) FROM many"] * 14,
    ),
}  # fmt: skip


def run() -> list[str]:
    """Lines for the report."""
    lines = []
    wanted = os.environ.get("NOVASTACK_BENCH_ENGINES", "").split()
    for name, version in ENGINES:
        if wanted and name not in wanted:
            continue
        for pool in (True, False) if os.environ.get("NOVASTACK_BENCH_PLAIN") else (True,):
            with _server(name, version, pool=pool) as place:
                lines += _measure(place, version, pool=pool)
    return lines


@contextlib.contextmanager
def _server(name: str, version: str, *, pool: bool) -> Iterator[Place]:
    engine, runtime = registry.engine(name), DockerRuntime(f"bench{uuid.uuid4().hex[:8]}")
    image = runtime.resolve_image(name, version, engine.official_image)
    admin = domain.Credentials(engine.bootstrap_username, PASSWORD)
    with contextlib.closing(_free_port()) as held:
        port = held.getsockname()[1]
    spec = engine.server_spec(
        domain.ServerRequest(
            handle=domain.Handle(str(uuid.uuid4()), 1), version=version, image=image.digest or image.name,
            publish=domain.Endpoint("127.0.0.1", port), limits=domain.Limits(2 << 30, 2.0),
            max_connections=TENANTS * CONNECTIONS, admin=admin, burst=True, pool=pool,
        )
    )  # fmt: skip
    handle = runtime.ensure(spec, data=domain.DataPolicy.CREATE)
    try:
        deadline = time.monotonic() + 90
        while True:
            try:
                engine.probe(spec.publish, admin)
                break
            except domain.EngineError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
        runtime.update(handle, spec.limits)
        yield Place(engine, spec.publish, admin)
    finally:
        runtime.destroy(handle, delete_data=True)
        runtime.remove_network()


def _free_port() -> Any:
    import socket

    held = socket.socket()
    held.bind(("127.0.0.1", 0))
    return held


def _measure(place: Place, version: str, *, pool: bool) -> list[str]:
    tenants = []
    with place.engine.admin(place.endpoint, place.admin) as admin:
        admin.harden()
        for _ in range(TENANTS):
            part = uuid.uuid4().hex[:12]
            names = domain.TenantNames(
                f"tenant_{part}", f"nvs_{part}_o", f"nvs_{part}_g", f"login_{part}", f"nvs_{part}_c", CONNECTIONS
            )
            admin.create_tenant(names, login_password=PASSWORD, control_password=PASSWORD)
            tenants.append(names)
    light, noisy = tenants[:2]
    family = "postgresql" if place.engine.name == "postgresql" else "mysql"
    with contextlib.closing(place.login(light)) as session, contextlib.closing(place.login(noisy)) as heavy:
        _say(session, "CREATE TABLE small (id INT PRIMARY KEY, n INT)")
        for number in range(50):
            _say(session, f"INSERT INTO small VALUES ({number}, 0)")
        for statement in (*_MANY[family], "CREATE TABLE bulk AS SELECT * FROM many"):
            _say(heavy, statement)
        alone = _light(session)
        title = f"{place.engine.title} {version}, {'a pool' if pool else 'without a pool’s settings'}"
        lines = [f"{title}: a small transaction alone: {stats.summary(alone)}"]
        kinds: dict[str, Callable[[threading.Event], list[threading.Thread]]] = {
            kind: (lambda stop, said=said: _noise(place, noisy, stop, *said)) for kind, said in _NOISE[family].items()
        }
        kinds["connections"] = lambda stop: _connecting(place, noisy, stop)
        for kind, begin in kinds.items():
            stop = threading.Event()
            threads = begin(stop)
            time.sleep(1.0)
            beside = _light(session)
            stop.set()
            with place.engine.admin(place.endpoint, place.admin) as admin:
                admin.lock_tenant(noisy, locked=True)
                for thread in threads:
                    thread.join(20)
                admin.lock_tenant(noisy, locked=False)
            ratio = [stats.percentile(beside, share) / stats.percentile(alone, share) for share in (0.5, 0.95)]
            worst = stats.percentile(beside, 0.95) * 1000
            kept = f" (bound: {BOUND_MS:.0f} ms {stats.verdict(worst, BOUND_MS)})" if pool else ""
            lines.append(f"    beside {kind}: {stats.summary(beside)}, {ratio[0]:.1f} × and {ratio[1]:.1f} ×{kept}")
    return lines


def _light(session: Any) -> list[float]:
    """One change and one look, every ten milliseconds."""
    found, until, number = [], time.monotonic() + PHASE_SECONDS, 0
    while time.monotonic() < until:
        number = (number + 1) % 50
        begun = time.perf_counter()
        _say(session, f"UPDATE small SET n = n + 1 WHERE id = {number}")
        _say(session, f"SELECT n FROM small WHERE id = {number}")
        found.append(time.perf_counter() - begun)
        time.sleep(EVERY_SECONDS)
    return found


def _noise(
    place: Place, names: domain.TenantNames, stop: threading.Event, connections: int, said: tuple[str, ...]
) -> list[threading.Thread]:
    def work() -> None:
        with (
            contextlib.suppress(psycopg.Error, pymysql.MySQLError, OSError),
            contextlib.closing(place.login(names)) as own,
        ):
            while not stop.is_set():
                for statement in said:
                    _say(own, statement)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(connections - 1)]  # one is open already
    for thread in threads:
        thread.start()
    return threads


def _connecting(place: Place, names: domain.TenantNames, stop: threading.Event) -> list[threading.Thread]:
    """As many as it may have, and all the time one more."""

    def work() -> None:
        while not stop.is_set():
            with contextlib.suppress(psycopg.Error, pymysql.MySQLError, OSError):
                place.login(names).close()

    held = []
    with contextlib.suppress(psycopg.Error, pymysql.MySQLError, OSError):
        while len(held) < CONNECTIONS - 1:
            held += [place.login(names)]
    threads = [threading.Thread(target=work, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    return threads


def _say(session: Any, statement: str) -> None:
    with session.cursor() as cursor:
        cursor.execute(statement)
        if cursor.description:
            cursor.fetchall()
