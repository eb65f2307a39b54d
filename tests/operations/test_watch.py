"""Looking at many servers: figures and tables of each, and nobody held up by those that hang or break."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.core.cache import cache
from django.db import connection
from django.test.utils import CaptureQueriesContext

from bench.fixtures import many_projects, person, region
from novastack.common.clock import now
from projects import domain, tasks
from projects.domain import Counters, TableCount, TableCounts
from projects.models import (
    DatabaseRole,
    DatabaseServer,
    MetricSample,
    ObservedState,
    Project,
    TableSnapshot,
)
from projects.operations import fences, parallel, watch, wiring
from projects.operations.rates import Rates, rates_between
from projects.runtimes.memory import MemoryRuntime
from tests.factories import Team
from tests.operations.conftest import create, drive, operation_of
from tests.operations.paper import PaperPostgreSQL


@pytest.fixture
def shops(team: Team, runtime: MemoryRuntime) -> list[Project]:
    """Four projects that were really provisioned, on paper."""
    made = [create(team, f"Shop {n}") for n in range(4)]
    for project in made:
        drive(operation_of(project))
    return made


def due() -> None:
    Project.objects.update(health_checked_at=None)


def look(project: Project) -> Project:
    due()
    watch.check_health()
    project.refresh_from_db()
    return project


# --- rates --------------------------------------------------------------------------------------------------------------
MOMENT = now()


def later(seconds: float, before: Counters, after: Counters) -> Rates:
    _, kept = rates_between({}, before, MOMENT)
    return rates_between(kept, after, MOMENT + timedelta(seconds=seconds))[0]


def test_a_first_look_says_nothing() -> None:
    rates, kept = rates_between({}, Counters(transactions=10), MOMENT)
    assert rates == Rates()
    assert kept["transactions"] == 10


def test_rates_are_what_grew_over_the_time() -> None:
    rates = later(20, Counters(100, 1000, 500, 50, 60), Counters(140, 1100, 590, 60, 80))
    assert rates == Rates(2.0, 5.0, 90.0)


@pytest.mark.parametrize(
    ("seconds", "before", "after"),
    [
        (30, Counters(100, 100, 5, 5), Counters(90, 90, 4, 4)),  # it began anew
        (30, Counters(100, uptime_seconds=50), Counters(5000, uptime_seconds=10)),  # and did more since
        (30, Counters(100, uptime_seconds=50), Counters(5000, uptime_seconds=60)),
        (0.2, Counters(100), Counters(5000)),  # two looks at once
        (3600, Counters(100), Counters(5000)),  # nobody looked for an hour
        (30, Counters(), Counters()),  # it can't tell
    ],
)
def test_nothing_is_made_up(seconds: float, before: Counters, after: Counters) -> None:
    assert later(seconds, before, after) == Rates()


def test_no_page_asked_for_is_no_ratio() -> None:
    assert later(30, Counters(1, 1, 7, 7), Counters(2, 2, 7, 7)).cache_hit_percent is None


# --- figures of a project -----------------------------------------------------------------------------------------------
def test_rates_are_put_down_and_sampled(ready: Project, paper: PaperPostgreSQL) -> None:
    paper.counters = Counters(transactions=1000, cache_hits=100, cache_misses=100)
    look(ready)
    assert (ready.transactions_per_second, ready.server_version) == (None, "18.0")
    ago = now().timestamp() - 10
    Project.objects.update(counters={"transactions": 900, "cache_hits": 10, "cache_misses": 70, "at": ago})
    look(ready)
    assert ready.transactions_per_second == pytest.approx(10, rel=0.1)
    assert ready.cache_hit_percent == pytest.approx(75)
    assert ready.queries_per_second is None
    assert watch.collect_usage() == 1
    sample = MetricSample.objects.latest("at")
    assert sample.transactions_per_second == ready.transactions_per_second
    Project.objects.update(stats_at=now() - timedelta(minutes=5))
    watch.collect_usage()
    assert MetricSample.objects.latest("at").transactions_per_second is None, "an old rate says nothing about now"


def test_a_pools_own_figures_are_no_tenants(ready: Project, paper: PaperPostgreSQL) -> None:
    for server_wide, expected in ((True, set()), (False, {"queries"})):
        paper.counters = Counters(queries=5, server_wide=server_wide)
        DatabaseServer.objects.update(kind="pool", project_uuid=None)
        look(ready)
        assert ready.counters.keys() - {"at"} == expected


def test_tables_are_counted_every_five_minutes_in_the_same_session(ready: Project, paper: PaperPostgreSQL) -> None:
    paper.tables = TableCounts((TableCount("orders\0", 12, 8192), TableCount("few", None, None)), 7)
    paper.diary.clear()
    look(ready)
    look(ready)
    assert paper.diary == ["ping", "stats", "table_counts", "ping", "stats"]
    snapshot = TableSnapshot.objects.get(project=ready)
    assert snapshot.tables == [["orders\ufffd", 12, 8192], ["few", None, None]]
    assert snapshot.total == 7
    TableSnapshot.objects.update(tried_at=now() - timedelta(minutes=6))
    paper.fails["table_counts"] = [domain.ServerNotReady("gone in the middle")]
    assert look(ready).health == "healthy", "it was well a moment ago"
    after = TableSnapshot.objects.get(project=ready)
    assert (after.at, after.tables) == (snapshot.at, snapshot.tables)
    assert after.tried_at > snapshot.tried_at
    paper.tables = TableCounts((), 0)
    TableSnapshot.objects.update(tried_at=now() - timedelta(minutes=6))
    look(ready)
    assert TableSnapshot.objects.get(project=ready).tables == []


def test_looking_costs_as_many_statements_for_many_as_for_one(shops: list[Project]) -> None:
    counts = []
    for some in (shops[:1], shops):
        TableSnapshot.objects.all().delete()
        Project.objects.update(health_checked_at=now())
        Project.objects.filter(pk__in=[p.pk for p in some]).update(health_checked_at=None)
        with CaptureQueriesContext(connection) as asked:
            assert watch.check_health() == len(some)
        counts.append(len(asked))
    assert counts[0] == counts[1], counts


# --- those that break, and those that hang ------------------------------------------------------------------------------
def test_an_error_that_nobody_expected_is_one_servers(shops: list[Project], paper: PaperPostgreSQL) -> None:
    paper.fails["stats"] = [ZeroDivisionError("a driver broke")]
    due()
    assert watch.check_health() == 4
    found = sorted(Project.objects.values_list("health", flat=True))
    assert found == ["healthy", "healthy", "healthy", "unhealthy"]
    assert "ZeroDivisionError" in Project.objects.get(health="unhealthy").health_detail


def test_nor_does_it_end_the_tick_of_fences(shops: list[Project], paper: PaperPostgreSQL) -> None:
    Project.objects.update(size_bytes=2**50)
    paper.fails["fence"] = [ZeroDivisionError("a driver broke")]
    fences._acted.clear()
    fences.keep()
    assert sorted(Project.objects.values_list("write_fence_applied", flat=True)) == [False, True, True, True]
    fences._acted.clear()
    fences.keep()
    assert set(Project.objects.values_list("write_fence_applied", flat=True)) == {True}
    assert not fences._failed


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[set[Any]], list[Any]]]:
    """Makes looks at those projects last half a second, and every fence on them; returns who was looked at, in order."""
    monkeypatch.setattr(watch, "TICK_SECONDS", 0.6)
    monkeypatch.setattr(fences, "TICK_SECONDS", 0.6)
    monkeypatch.setattr(fences, "_failed", set())

    def hang(projects: set[Any]) -> list[Any]:
        order: list[Any] = []
        real_look, real_act = watch._look, fences._act

        def look(target: Any) -> Any:
            order.append(target.project_id)
            if target.project_id in projects:
                time.sleep(0.5)
                return watch._Result(False, "the server did not answer in time")
            return real_look(target)

        def act(target: Any) -> str:
            order.append(target.project_id)
            if target.project_id in projects:
                time.sleep(0.5)
                return "the server did not answer in time"
            return real_act(target)

        monkeypatch.setattr(watch, "_look", look)
        monkeypatch.setattr(fences, "_act", act)
        return order

    yield hang


@pytest.fixture
def crowd(runtime: MemoryRuntime, monkeypatch: pytest.MonkeyPatch) -> list[Project]:
    """A hundred projects on paper rows only: looks at them are made up."""
    where = region("local")
    projects = many_projects(person()[1], 100, where=where)
    DatabaseServer.objects.update(observed_state=ObservedState.RUNNING)
    target = watch._Target
    monkeypatch.setattr(
        watch, "_targets",
        lambda ids, moment=None: {
            pk: target(pk, where.pk, "postgresql", domain.Endpoint("", 0), domain.Credentials("", ""), False, False, False)
            for pk in ids
        },
    )  # fmt: skip
    monkeypatch.setattr(watch, "_look", lambda target: watch._Result(True, "", domain.ServerStats(1, 1, 1)))
    return projects


def test_servers_that_hang_hold_up_no_other(crowd: list[Project], hanging: Callable[[set[Any]], list[Any]]) -> None:
    ill = {project.pk for project in crowd[:60]}
    Project.objects.filter(pk__in=ill).update(health="unhealthy", health_checked_at=now() - timedelta(seconds=90))
    looked = hanging(ill)
    first = watch.check_health()
    healthy = Project.objects.filter(health="healthy")
    assert {p.pk for p in healthy} == {p.pk for p in crowd[60:]}, "all of the others were looked at in this tick"
    assert 40 < first <= 40 + 2 * watch.PARALLEL_ILL, "a look of 0.5 s begins twice in a tick of 0.6 s, in each thread"
    seen = set(looked)
    for _ in range(12):
        Project.objects.filter(pk__in=ill, health_checked_at__gt=now() - timedelta(seconds=60)).update(
            health_checked_at=now()
        )
        watch.check_health()
        seen |= set(looked)
    assert ill <= seen, "those that a tick did not come to are first in the next"


def test_also_when_they_were_well_until_now(crowd: list[Project], hanging: Callable[[set[Any]], list[Any]]) -> None:
    """The first tick does not know yet who hangs: it ends in time, and the next one knows."""
    ill = {project.pk for project in crowd[:60]}
    looked = hanging(ill)
    for tick in range(16):  # eight of 60 in each at the least
        before = len(looked)
        watch.check_health()
        waited = [pk for pk in looked[before:] if pk in ill]
        assert len(waited) <= 2 * (watch.PARALLEL + watch.PARALLEL_ILL), tick
        if Project.objects.filter(health="healthy").count() == 40:
            break
    assert Project.objects.filter(health="healthy").count() == 40


def test_fences_reach_the_others_while_some_hang(
    shops: list[Project], paper: PaperPostgreSQL, hanging: Callable[[set[Any]], list[Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    Project.objects.update(size_bytes=2**50)
    acted = hanging({shops[0].pk})
    monkeypatch.setattr(fences, "PARALLEL", 1)
    fences._acted.clear()
    for tick in range(1, 4):
        fences.keep()
        assert acted.count(shops[0].pk) <= 2 * tick
    assert Project.objects.filter(write_fence_applied=True).count() == 3
    assert fences._failed == {shops[0].pk}


def test_of_two_ticks_at_once_the_second_leaves(monkeypatch: pytest.MonkeyPatch, db: None) -> None:
    cache.clear()
    inside, leave, count = threading.Event(), threading.Event(), []

    def tick() -> int:
        count.append(1)
        inside.set()
        assert leave.wait(10)
        return 0

    monkeypatch.setattr(watch, "check_health", tick)
    thread = threading.Thread(target=tasks.check_health)
    thread.start()
    assert inside.wait(10)
    tasks.check_health()
    leave.set()
    thread.join(10)
    assert count == [1]
    tasks.check_health()
    assert count == [1, 1]


def test_without_a_cache_every_tick_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def down(*_: Any) -> bool:
        raise ConnectionError

    monkeypatch.setattr(cache, "add", down)
    with parallel.alone("health", seconds=5) as mine:
        assert mine


# --- usage --------------------------------------------------------------------------------------------------------------
def test_who_was_not_come_to_keeps_its_reading(shops: list[Project], runtime: MemoryRuntime, monkeypatch: Any) -> None:
    watch.collect_usage()
    server = DatabaseServer.objects.get(project_uuid=shops[0].pk)
    real = runtime.usage

    def partly(handles: Any) -> Any:
        return {h: u if h.server_id != str(server.pk) else domain.Usage() for h, u in real(handles).items()}

    monkeypatch.setattr(runtime, "usage", partly)
    watch.collect_usage()
    after = DatabaseServer.objects.get(pk=server.pk)
    assert (after.memory_used_bytes, after.usage_at) == (server.memory_used_bytes, server.usage_at)
    other = DatabaseServer.objects.get(project_uuid=shops[1].pk)
    assert other.usage_at is not None and server.usage_at is not None and other.usage_at > server.usage_at


def test_sampling_costs_as_many_statements_for_a_thousand(runtime: MemoryRuntime) -> None:
    counts = []
    for more in (10, 990):
        many_projects(person()[1], more, where=region(f"part-{more}"))
        DatabaseServer.objects.update(observed_state=ObservedState.RUNNING)
        watch.collect_usage()
        with CaptureQueriesContext(connection) as asked:
            watch.collect_usage()
        counts.append(len(asked))
    assert counts[1] <= counts[0] + 8, counts  # a region more, and batches of 500


def test_the_control_role_is_who_looks(ready: Project) -> None:
    (target,) = watch._targets([ready.pk], now()).values()
    role = DatabaseRole.objects.get(database__project=ready, kind="control")
    assert target.control.username == role.name
    assert target.count_tables
    assert wiring.runtime_of(ready.region).name == "memory"
