"""Pools of real servers, with real workers: what a tenant and its neighbour see of everything that is done to one of them,
and many allocations at a time, also while workers are killed.

`make faults` runs the whole: 200 allocations, 20 at a time, onto pools of 50. CI runs the same with smaller numbers."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest
from django.db import connection, connections

from accounts.permissions import Principal
from projects.models import Database, DatabaseRole, DatabaseServer, Operation, Plan, Project
from projects.operations import doctor, placing
from projects.services import ProjectRequest, project_action, project_create, project_delete, project_purge
from tests.faults.clients import password_of, role_of, server_of
from tests.faults.conftest import ALL, VERSION, Site, make_site
from tests.faults.lanes import require

TOTAL, AT_ONCE, ROOM = (200, 20, 50) if ALL else (18, 6, 6)
WORKERS = 6 if ALL else 4
PATIENCE = 420.0 if ALL else 150.0
pytestmark = pytest.mark.timeout(540)


@pytest.fixture
def site(process_site: Site, settings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    yield from pooled(process_site, settings, monkeypatch)


@pytest.fixture(params=[("postgresql", "process"), ("mariadb", "process"), ("mysql", "docker")], ids="-".join)
def any_site(
    request: pytest.FixtureRequest, _fresh: None, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Site]:
    engine, runtime = request.param
    require(engine, runtime, monkeypatch)
    for made in make_site(runtime, engine):
        yield from pooled(made, settings, monkeypatch)


def pooled(process_site: Site, settings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """No pool is begun ahead of its need: so it can be said how many there must be."""
    sizes = {"MAX_DATABASES": ROOM, "FILL_PERCENT": 0, "BLANKS": 0, "MEMORY": 1 << 30}
    for name, value in sizes.items():
        setattr(settings, f"NOVASTACK_POOL_{name}", value)
        monkeypatch.setenv(f"NOVASTACK_POOL_{name}", str(value))
    Plan.objects.update(connection_limit=5)
    organization = process_site.team.organization
    organization.max_projects, organization.max_storage_bytes = 1000, 1 << 60
    organization.save()
    yield process_site
    process_site.stop_workers()
    Project.objects.all().delete()


def wait(project: Project, status: str, seconds: float = 60) -> None:
    Site.wait_status(project, status, seconds)


def act(site: Site, project: Project, action: str, status: str, **options: Any) -> None:
    Site.wait_ended(project_action(principal=site.alice, project=project, action=action, **options))
    wait(project, status)


def refused(site: Site, project: Project) -> bool:
    try:
        with site.login(project):
            return False
    except site.client.refusals:
        return True


def ask(session: Any) -> None:
    """One statement, in the words of its driver; raises if the session was ended."""
    if isinstance(session, psycopg.Connection):
        session.execute("SELECT 1")
        session.commit()
    else:
        session.query("SELECT 1")


def process_of(site: Site, project: Project) -> Any:
    server = server_of(project)
    return site.runtime.observe([server.handle])[server.handle].started_at


# --- the main path ------------------------------------------------------------------------------------------------------
def test_what_is_done_to_one_project_of_a_pool_its_neighbour_never_notices(any_site: Site) -> None:
    site = any_site
    site.worker()
    one, two = site.create("One", placement="pool"), site.create("Two", placement="pool")
    wait(one, "running")
    wait(two, "running")
    assert server_of(one) == server_of(two)
    assert one.endpoint.port == two.endpoint.port
    site.client.fill(one)
    site.client.fill(two)
    began = process_of(site, one)
    with site.login(two) as neighbour:

        def untouched() -> None:
            ask(neighbour)
            assert site.rows_of(two) == 1000

        with site.login(one) as session:
            ask(session)
            act(site, one, "stop", "stopped")
            with pytest.raises(site.client.refusals):
                ask(session)
        assert refused(site, one)
        untouched()
        act(site, one, "start", "running")
        assert site.rows_of(one) == 1000
        before = password_of(role_of(one))
        act(site, one, "rotate_password", "running", end_sessions=True)
        assert password_of(role_of(one)) != before
        assert site.rows_of(one) == 1000
        untouched()
        Site.wait_ended(project_delete(principal=site.alice, project=one))
        assert refused(site, one)
        act(site, one, "undelete", "running")
        assert site.rows_of(one) == 1000
        untouched()
        assert not [f for f in doctor.examine().findings if f.code.startswith(("unknown", "missing", "login"))]
        own = site.client.own(one)
        purge = project_purge(principal=site.alice, project=one, confirm=one.slug)
        Site.wait_ended(purge)
        purge.refresh_from_db()
        assert purge.state == "succeeded"
        left = set(site.client.things(two))
        assert left == site.client.own(two) | site.client.platform
        assert not left & own
        untouched()
    assert process_of(site, two) == began


# --- many at a time -----------------------------------------------------------------------------------------------------
@dataclass
class Allocations:
    """Clients that each ask, wait until it is ready, and ask again."""

    site: Site
    seconds: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=lambda: iter(range(TOTAL)))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self) -> float:
        """Seconds until all are through."""
        began = time.monotonic()
        clients = [threading.Thread(target=self._client) for _ in range(AT_ONCE)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        return time.monotonic() - began

    def _client(self) -> None:
        try:
            while (number := self._next()) is not None:
                began = time.monotonic()
                project = project_create(
                    principal=Principal.of(self.site.team.alice), organization=self.site.team.organization,
                    request=ProjectRequest(
                        name=f"Instance {number}", engine="postgresql", version=VERSION, region="site", placement="pool"
                    ),
                )  # fmt: skip
                wait(project, "running", PATIENCE)
                self.seconds.append(time.monotonic() - began)
        except BaseException as error:  # told by the test's own thread
            self.failures.append(repr(error)[:500])
        finally:
            connections.close_all()

    def _next(self) -> int | None:
        with self._lock:
            return next(self._numbers, None)


class Killer:
    """Kills one worker after the other, and starts another in its place."""

    def __init__(self, site: Site, every: tuple[float, float]) -> None:
        self.site, self.every, self.kills = site, every, 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Killer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._over.wait(random.uniform(*self.every)):
                victim = self.site.workers.pop(random.randrange(len(self.site.workers)))
                victim.kill()
                victim.wait(60)
                self.kills += 1
                self.site.worker()
        finally:
            connections.close_all()


def check(site: Site, told: Allocations) -> None:
    """Exactly as many pools as are needed, none over its maximum, no duplicate, all log in, and on the servers just that."""
    assert not told.failures, told.failures
    projects = list(Project.objects.all())
    assert len(projects) == TOTAL
    assert {p.status for p in projects} == {"running"}
    on = Counter(Database.objects.values_list("server_id", flat=True))
    assert sorted(on.values()) == [ROOM] * (TOTAL // ROOM)
    assert DatabaseServer.objects.count() == TOTAL // ROOM
    assert Operation.objects.filter(kind="prepare_pool").count() == TOTAL // ROOM
    assert Database.objects.values("project").distinct().count() == Database.objects.count() == TOTAL
    assert Database.objects.values("name").distinct().count() == TOTAL
    for project in projects:
        with site.login(project) as session:
            assert session.execute("SELECT current_database()").fetchone()[0] == role_of(project).database.name
    for server in DatabaseServer.objects.all():
        mine = Project.objects.filter(databases__server=server)
        names = {("database", name) for name in Database.objects.filter(server=server).values_list("name", flat=True)}
        names |= {("role", name) for name in DatabaseRole.objects.filter(server=server).values_list("name", flat=True)}
        assert set(site.client.things(mine[0])) == names | site.client.platform
    assert {h.server_id for h in site.runtime.managed_data()} == {str(pk) for pk in on}


def report(told: Allocations, took: float, kills: int = 0) -> str:
    times = sorted(told.seconds)
    return (
        f"{TOTAL} allocations, {AT_ONCE} at a time, pools of {ROOM}, {WORKERS} workers, {kills} killed: {took:.1f} s in all;"
        f" each p50 {times[len(times) // 2]:.2f} s, p95 {times[int(len(times) * 0.95)]:.2f} s, slowest {times[-1]:.2f} s"
    )


def test_allocations_at_a_time_fill_exactly_the_pools_that_they_need(site: Site) -> None:
    for _ in range(WORKERS):
        site.worker()
    told = Allocations(site)
    took = told.run()
    site.stop_workers()
    print(report(told, took))
    check(site, told)


def test_the_same_while_workers_are_killed(site: Site) -> None:
    for _ in range(WORKERS):
        site.worker()
    told = Allocations(site)
    with Killer(site, (1.0, 3.0) if ALL else (2.0, 4.0)) as killer:
        took = told.run()
    site.stop_workers()
    print(report(told, took, killer.kills))
    assert killer.kills >= (10 if ALL else 3)
    check(site, told)


# --- the placement alone, raced -------------------------------------------------------------------------------------------
def test_raced_by_many_threads_no_pool_takes_more_than_it_may(site: Site) -> None:
    """Every slot is taken once, by somebody; who comes when all are taken is told so."""
    made = [site.create(f"P{number}", placement="pool") for number in range(44)]
    for number in range(2):
        DatabaseServer.objects.create(
            kind="pool", name=f"pool-{number}", region=site.region, engine="postgresql", version=VERSION, port=1 + number,
            runtime="process", memory_bytes=1 << 30, cpus=1, max_connections=400, max_databases=20, observed_state="running",
            pool_ready_at=site.region.created_at, admin_username="x", admin_secret=role_secret(),
        )  # fmt: skip
    left, full, errors = list(made), [], []
    guard = threading.Lock()

    def taker() -> None:
        try:
            while True:
                with guard:
                    if not left:
                        return
                    project = left.pop()
                while True:
                    try:
                        if placing.take(Project.objects.select_related("plan", "region").get(pk=project.pk)) is None:
                            full.append(project)
                        break
                    except placing.AllBusy:
                        time.sleep(0.002)
        except BaseException as error:
            errors.append(repr(error))
        finally:
            connections.close_all()

    threads = [threading.Thread(target=taker) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors
    assert sorted(Counter(Database.objects.values_list("server__name", flat=True)).values()) == [20, 20]
    assert len(full) == 4
    connection.close()


def role_secret() -> Any:
    from novastack.common.secrets import Sealed

    return Sealed.of("unused")
