"""Watching: health by real logins, usage, sizes. Bounded in parallelism, due by time, writes only what changed."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import structlog
from django.db import transaction
from django.db.models import F, Q

from novastack.common.clock import now
from projects import domain, registry
from projects.engines.admin import EngineAdmin
from projects.models import (
    Database,
    DatabaseRole,
    DatabaseServer,
    DatabaseSlot,
    Health,
    MetricSample,
    ObservedState,
    Project,
    Region,
    RoleKind,
    ServerKind,
    TableSnapshot,
)
from projects.operations import fanout, fences, parallel, status, wiring
from projects.operations.rates import rates_between
from projects.querysets import ProjectQuerySet

log = structlog.get_logger(__name__)
PARALLEL = 8
PARALLEL_ILL = 4  # those that were ill at the last look have threads of their own, and delay nobody else
TICK_SECONDS = 4.0  # no look begins later than this into a tick
LOOK_SECONDS = 3.0  # for a login, and for each answer
TABLES_EVERY = timedelta(minutes=5)
HEALTH_EVERY_SECONDS = 30
RETRY_EVERY_SECONDS = 4
STARTING_SECONDS = 120
HEALTH_BATCH = 250  # of each region
USAGE_SECONDS = 25.0  # below the 30 between two readings
WELL_FOR_SECONDS = 600
SAMPLE_EVERY_SECONDS = 30  # usage by beat's schedule, statistics with each look at a healthy server
COUNTED = ("connections", "transactions_per_second", "queries_per_second", "cache_hit_percent")
CURRENT = timedelta(seconds=2 * SAMPLE_EVERY_SECONDS)  # an older reading says nothing about now


@dataclass(frozen=True, slots=True)
class _Target:
    project_id: UUID
    region_id: UUID
    engine: str
    endpoint: domain.Endpoint
    control: domain.Credentials
    fence_applied: bool
    pooled: bool
    count_tables: bool


@dataclass(frozen=True, slots=True)
class _Result:
    healthy: bool
    detail: str
    stats: domain.ServerStats | None = None
    fence_applied: bool = False  # what the row said before the look
    pooled: bool = False
    tried_tables: bool = False
    tables: domain.TableCounts | None = None


def check_health() -> int:
    """Log in to every running database that is due, as the platform's own role of that project (rule 19); one session each
    for health, figures and tables. Ends within TICK_SECONDS and the time of one look: those that it did not come to are
    first in the next tick."""
    moment = now()
    healthy_due = Q(health=Health.HEALTHY, health_checked_at__lt=moment - timedelta(seconds=HEALTH_EVERY_SECONDS))
    other_due = ~Q(health=Health.HEALTHY) & Q(health_checked_at__lt=moment - timedelta(seconds=RETRY_EVERY_SECONDS))
    wanted = Q(health_checked_at=None) | healthy_due | other_due
    # Of each region so many, or one whose logins hang would always be the first in the row.
    rows = {
        pk: (checked_at, health == Health.UNHEALTHY)
        for region in Region.objects.filter(reachable=True).values_list("pk", flat=True)
        for pk, checked_at, health in _running()
        .filter(wanted, region=region)
        .order_by(F("health_checked_at").asc(nulls_first=True))
        .values_list("pk", "health_checked_at", "health")[:HEALTH_BATCH]
    }
    if not rows:
        return 0
    due = {pk: checked_at for pk, (checked_at, _) in rows.items()}
    looked = 0
    # The healthy ones are put down before the others are waited for.
    for lane in _begin(_targets(list(rows), moment), {pk for pk, (_, ill) in rows.items() if ill}):
        results = {target.project_id: result for target, result in lane.collect()}
        changed, well = _record(results, due)
        status.refresh(changed)
        _forgive(well)
        looked += len(results)
    return looked


def _begin(targets: dict[UUID, _Target], ill: set[UUID]) -> list[parallel.Lane[_Target, _Result]]:
    """Each region has threads of its own for those that were well and for those that were not: where logins hang, the
    others go on."""
    lanes: dict[tuple[bool, UUID], list[_Target]] = defaultdict(list)
    for pk, target in targets.items():
        lanes[pk in ill, target.region_id].append(target)
    return [
        parallel.start(
            "health", _look, _broken, some, threads=PARALLEL_ILL if was_ill else PARALLEL, seconds=TICK_SECONDS
        )
        for (was_ill, _), some in sorted(lanes.items(), key=lambda lane: lane[0])
    ]


def _running() -> ProjectQuerySet:
    return Project.objects.live().filter(
        ready_at__isnull=False, region__reachable=True, databases__slot=DatabaseSlot.CURRENT,
        databases__server__observed_state=ObservedState.RUNNING, databases__locked_at=None,
    )  # fmt: skip


def _record(results: dict[UUID, _Result], due: dict[UUID, datetime | None]) -> tuple[list[UUID], list[UUID]]:
    """Store the results, except where somebody stopped, started or looked meanwhile: theirs is newer than ours.
    Returns whose health changed, and who is well."""
    moment = now()
    changed, rows = [], []
    with transaction.atomic():
        still = set(_running().filter(pk__in=results).values_list("pk", flat=True))
        for project in Project.objects.select_for_update(no_key=True).filter(pk__in=still).order_by("pk"):
            if project.health_checked_at != due[project.pk]:
                continue
            result, before = results[project.pk], project.health
            project.health = _judge(project, result, moment)
            project.health_detail, project.health_checked_at = result.detail[:500], moment
            if result.stats is not None:
                project.size_bytes, project.connections = result.stats.size_bytes, result.stats.connections
                project.connections_limit, project.server_version = (
                    result.stats.connections_limit,
                    result.stats.version[:40],
                )
                _put_rates(project, result, moment)
                project.stats_at = moment
                if project.write_fence_applied == result.fence_applied:
                    project.write_fence_applied = fences.seen(project, result.stats.fenced)
            rows.append(project)
            if before != project.health:
                changed.append(project.pk)
        Project.objects.bulk_update(
            rows,
            [
                "health", "health_detail", "health_checked_at", "size_bytes", "connections", "connections_limit",
                "stats_at", "write_fence_applied", "server_version", "counters", "transactions_per_second",
                "queries_per_second", "cache_hit_percent",
            ],
            batch_size=500,
        )  # fmt: skip
        _put_tables({project.pk: results[project.pk] for project in rows}, moment)
    return changed, [p.pk for p in rows if p.health == Health.HEALTHY]


def _put_rates(project: Project, result: _Result, moment: datetime) -> None:
    """What was done since the look before. Figures of a whole pool are no tenant's."""
    counters = result.stats.counters if result.stats is not None else None
    if counters is not None and counters.server_wide and result.pooled:
        counters = None
    rates, kept = rates_between(project.counters, counters, moment)
    project.counters, project.cache_hit_percent = kept, rates.cache_hit_percent
    project.transactions_per_second = rates.transactions_per_second
    project.queries_per_second = rates.queries_per_second


def _put_tables(results: dict[UUID, _Result], moment: datetime) -> None:
    """Two statements at most. What could not be read this time stays as it was."""
    read, failed = [], []
    for pk, result in results.items():
        if result.tables is not None:
            rows = [[t.name.replace("\0", "\ufffd"), t.rows, t.size_bytes] for t in result.tables.tables]
            read.append(
                TableSnapshot(project_id=pk, tried_at=moment, at=moment, total=result.tables.total, tables=rows)
            )
        elif result.tried_tables:
            failed.append(TableSnapshot(project_id=pk, tried_at=moment))
    for snapshots, fields in ((read, ["tried_at", "at", "total", "tables"]), (failed, ["tried_at"])):
        if snapshots:
            TableSnapshot.objects.bulk_create(
                snapshots, update_conflicts=True, unique_fields=["project"], update_fields=fields, batch_size=200
            )


def _judge(project: Project, result: _Result, moment: datetime) -> str:
    if result.healthy:
        return Health.HEALTHY
    mine = DatabaseServer.objects.filter(databases__project=project, databases__slot=DatabaseSlot.CURRENT)
    started = mine.values_list("started_at", flat=True).first()
    young = started is not None and moment - started < timedelta(seconds=STARTING_SECONDS)
    # A server that comes up, perhaps out of a crash, is not unhealthy yet.
    return Health.UNKNOWN if project.health == Health.UNKNOWN and young else Health.UNHEALTHY


def _targets(project_ids: list[UUID], moment: datetime | None = None) -> dict[UUID, _Target]:
    """Two queries. Without a moment no tables are counted."""
    found = {}
    recent: set[UUID] = set()
    if moment is not None:
        fresh = TableSnapshot.objects.filter(project_id__in=project_ids, tried_at__gt=moment - TABLES_EVERY)
        recent = set(fresh.values_list("project_id", flat=True))
    roles = DatabaseRole.objects.filter(
        kind=RoleKind.CONTROL, database__project_id__in=project_ids, database__slot=DatabaseSlot.CURRENT
    ).select_related("database__project", "server")
    for role in roles:
        if role.secret is not None:
            pk = role.database.project_id
            found[pk] = _Target(
                pk, role.server.region_id, role.server.engine, role.server.control_endpoint,
                domain.Credentials(role.name, role.secret.open(), role.database.name),
                role.database.project.write_fence_applied, role.server.kind == ServerKind.POOL,
                moment is not None and pk not in recent,
            )  # fmt: skip
    return found


def _look(target: _Target) -> _Result:
    """Runs in a thread: no ORM here."""
    engine = registry.engine(target.engine)
    try:
        with engine.admin(
            target.endpoint, target.control, timeout_seconds=LOOK_SECONDS, statement_seconds=LOOK_SECONDS
        ) as session:
            session.ping()
            stats = session.stats(target.control.database)
            return _Result(
                True, "", stats, target.fence_applied, target.pooled, target.count_tables,
                _count_tables(session, target) if target.count_tables else None,
            )  # fmt: skip
    except domain.LoginRefused:
        return _Result(False, "The server answers, but refuses NovaStack's own login.")
    except domain.ServerNotReady as error:
        return _Result(False, str(error) or "The server does not answer.")
    except domain.TlsNotTrusted as error:
        return _Result(False, f"Not trusted: {error}")
    except domain.EngineError as error:
        return _Result(True, f"Logged in; statistics failed: {error}")


def _count_tables(session: EngineAdmin, target: _Target) -> domain.TableCounts | None:
    """The server was well a moment ago: what goes wrong here says nothing about its health."""
    try:
        return session.table_counts(target.control.database)
    except Exception as error:
        log.info("tables not counted", project=str(target.project_id), error=str(error)[:200])
        return None


def _broken(error: Exception) -> _Result:
    """Nobody expected it: a driver that breaks on what a server sent, say."""
    return _Result(False, f"NovaStack could not look at it ({type(error).__name__}); see the worker's log.")


def _forgive(project_ids: list[UUID]) -> None:
    """Servers that have been well for a while start with a clean sheet."""
    well = now() - timedelta(seconds=WELL_FOR_SECONDS)
    DatabaseServer.objects.filter(project_uuid__in=project_ids, recoveries__gt=0, started_at__lt=well).update(
        recoveries=0, recover_after=None
    )


def collect_usage() -> int:
    """CPU and memory of all running servers, one batch per region, all regions at once, and a sample per project."""
    regions = {region.pk: region for region in Region.objects.filter(enabled=True, reachable=True).exclude(runtime="")}
    servers = {pk: _running_servers(region) for pk, region in regions.items()}
    questions = {}
    for pk, found in servers.items():
        if found:
            try:
                questions[pk] = functools.partial(wiring.runtime_of(regions[pk]).usage, [s.handle for s in found])
            except domain.NovaStackRuntimeError as error:
                log.warning("usage not read", region=regions[pk].slug, error=str(error))
    count = 0
    for pk, usage in fanout.ask("usage", questions, fanout.patience(regions, USAGE_SECONDS)):
        if isinstance(usage, domain.NovaStackRuntimeError):
            log.warning("usage not read", region=regions[pk].slug, error=str(usage))
        elif isinstance(usage, Exception):
            log.error("usage not read", region=regions[pk].slug, exc_info=usage)
        else:
            count += _keep_usage(servers[pk], usage)
    return count


def _sample(project: Project, seen: domain.Usage, moment: datetime) -> MetricSample:
    counted: dict[str, Any] = (
        {name: getattr(project, name) for name in COUNTED} if is_current(project.stats_at, moment) else {}
    )
    return MetricSample(
        project=project, at=moment, cpu_percent=seen.cpu_percent, memory_bytes=seen.memory_bytes,
        size_bytes=project.size_bytes, **counted,
    )  # fmt: skip


def is_current(read_at: datetime | None, moment: datetime) -> bool:
    """Whether a reading taken then still says something at `moment`."""
    return read_at is not None and moment - read_at <= CURRENT


def _running_servers(region: Region) -> list[DatabaseServer]:
    rows = DatabaseServer.objects.filter(region=region, observed_state=ObservedState.RUNNING)
    # Standbys: nobody asks what they use, and each reading costs.
    return list(rows.exclude(kind=ServerKind.STANDBY).defer("admin_secret", "admin_pending_secret"))


def _keep_usage(servers: list[DatabaseServer], usage: Mapping[domain.Handle, domain.Usage]) -> int:
    moment, samples = now(), []
    rows = Database.objects.filter(server__in=servers, slot=DatabaseSlot.CURRENT).select_related("project")
    projects: dict[UUID, list[Project]] = defaultdict(list)
    for row in rows.exclude(locked_at__isnull=False):
        projects[row.server_id].append(row.project)
    read = []
    for server in servers:
        seen = usage.get(server.handle, domain.Usage())
        if seen != domain.Usage():  # who was not come to this time keeps what was read before, with its time
            server.cpu_percent, server.memory_used_bytes, server.usage_at = seen.cpu_percent, seen.memory_bytes, moment
            read.append(server)
        # What a pool uses is no single tenant's figure.
        own = domain.Usage() if server.kind == ServerKind.POOL else seen
        samples += [_sample(project, own, moment) for project in projects[server.pk]]
    DatabaseServer.objects.bulk_update(read, ["cpu_percent", "memory_used_bytes", "usage_at"], batch_size=500)
    MetricSample.objects.bulk_create(samples, batch_size=1000)
    return len(samples)
