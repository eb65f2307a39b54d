"""Watching: health by real logins, usage, sizes. Bounded in parallelism, due by time, writes only what changed."""

from __future__ import annotations

import contextlib
import functools
import time
from collections import defaultdict
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

import structlog
from django.db import transaction
from django.db.models import F, Q

from novastack.common.clock import now
from projects import domain, registry
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
)
from projects.operations import fanout, fences, status, wiring
from projects.querysets import ProjectQuerySet

log = structlog.get_logger(__name__)
PARALLEL = 8
HEALTH_EVERY_SECONDS = 30
RETRY_EVERY_SECONDS = 4
STARTING_SECONDS = 120
HEALTH_BATCH = 200  # of each region
PASS_SECONDS = 10.0
USAGE_SECONDS = 25.0  # below the 30 between two readings
WELL_FOR_SECONDS = 600
SAMPLE_EVERY_SECONDS = 30  # usage by beat's schedule, statistics with each look at a healthy server
CURRENT = timedelta(seconds=2 * SAMPLE_EVERY_SECONDS)  # an older reading says nothing about now


@dataclass(frozen=True, slots=True)
class _Target:
    project_id: UUID
    region_id: UUID
    engine: str
    endpoint: domain.Endpoint
    control: domain.Credentials
    fence_applied: bool


@dataclass(frozen=True, slots=True)
class _Result:
    healthy: bool
    detail: str
    stats: domain.ServerStats | None = None
    fence_applied: bool = False  # what the row said before the look


def check_health() -> int:
    """Log in to every running database that is due, as the platform's own role of that project (rule 19)."""
    moment = now()
    healthy_due = Q(health=Health.HEALTHY, health_checked_at__lt=moment - timedelta(seconds=HEALTH_EVERY_SECONDS))
    other_due = ~Q(health=Health.HEALTHY) & Q(health_checked_at__lt=moment - timedelta(seconds=RETRY_EVERY_SECONDS))
    wanted = Q(health_checked_at=None) | healthy_due | other_due
    # Of each region so many, or one whose logins hang would always be the first in the row.
    due = {
        pk: checked_at
        for region in Region.objects.filter(reachable=True).values_list("pk", flat=True)
        for pk, checked_at in _running()
        .filter(wanted, region=region)
        .order_by(F("health_checked_at").asc(nulls_first=True))
        .values_list("pk", "health_checked_at")[:HEALTH_BATCH]
    }
    if not due:
        return 0
    results = _look_at(_targets(list(due)))
    changed, well = _record(results, due)
    status.refresh(changed)
    _forgive(well)
    return len(results)


def _look_at(targets: dict[UUID, _Target]) -> dict[UUID, _Result]:
    """Each region has its own threads: where logins hang, those of the others go on. What was not begun when the time of a
    pass is over stays due, and is the first of the next one."""
    by_region: dict[UUID, dict[UUID, _Target]] = defaultdict(dict)
    for pk, target in targets.items():
        by_region[target.region_id][pk] = target
    until = time.monotonic() + PASS_SECONDS
    results: dict[UUID, _Result] = {}
    with contextlib.ExitStack() as stack:
        begun: list[tuple[UUID, Future[_Result]]] = []
        for some in by_region.values():
            pool = stack.enter_context(ThreadPoolExecutor(PARALLEL, thread_name_prefix="health"))
            begun += [(pk, pool.submit(_look, target)) for pk, target in some.items()]
        for pk, future in begun:
            if time.monotonic() > until and future.cancel():
                continue
            results[pk] = future.result()
    return results


def _running() -> ProjectQuerySet:
    return Project.objects.live().filter(
        ready_at__isnull=False, region__reachable=True, databases__slot=DatabaseSlot.CURRENT,
        databases__server__observed_state=ObservedState.RUNNING,
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
                project.connections_limit, project.stats_at = result.stats.connections_limit, moment
                if project.write_fence_applied == result.fence_applied:
                    project.write_fence_applied = fences.seen(project, result.stats.fenced)
            rows.append(project)
            if before != project.health:
                changed.append(project.pk)
        Project.objects.bulk_update(
            rows,
            [
                "health", "health_detail", "health_checked_at", "size_bytes", "connections", "connections_limit",
                "stats_at", "write_fence_applied",
            ],
            batch_size=500,
        )  # fmt: skip
    return changed, [p.pk for p in rows if p.health == Health.HEALTHY]


def _judge(project: Project, result: _Result, moment: datetime) -> str:
    if result.healthy:
        return Health.HEALTHY
    started = DatabaseServer.objects.filter(project_uuid=project.pk).values_list("started_at", flat=True).first()
    young = started is not None and moment - started < timedelta(seconds=STARTING_SECONDS)
    # A server that comes up, perhaps out of a crash, is not unhealthy yet.
    return Health.UNKNOWN if project.health == Health.UNKNOWN and young else Health.UNHEALTHY


def _targets(project_ids: list[UUID]) -> dict[UUID, _Target]:
    found = {}
    roles = DatabaseRole.objects.filter(
        kind=RoleKind.CONTROL, database__project_id__in=project_ids, database__slot=DatabaseSlot.CURRENT
    ).select_related("database__project", "server")
    for role in roles:
        if role.secret is not None:
            found[role.database.project_id] = _Target(
                role.database.project_id,
                role.server.region_id,
                role.server.engine,
                role.server.control_endpoint,
                domain.Credentials(role.name, role.secret.open(), role.database.name),
                role.database.project.write_fence_applied,
            )
    return found


def _look(target: _Target) -> _Result:
    """Runs in a thread: no ORM here."""
    engine = registry.engine(target.engine)
    try:
        with engine.admin(target.endpoint, target.control, timeout_seconds=4) as session:
            session.ping()
            return _Result(True, "", session.stats(target.control.database), target.fence_applied)
    except domain.LoginRefused:
        return _Result(False, "The server answers, but refuses NovaStack's own login.")
    except domain.ServerNotReady as error:
        return _Result(False, str(error) or "The server does not answer.")
    except domain.TlsNotTrusted as error:
        return _Result(False, f"Not trusted: {error}")
    except domain.EngineError as error:
        return _Result(True, f"Logged in; statistics failed: {error}")


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
    projects: dict[UUID, Project] = {row.server_id: row.project for row in rows}
    for server in servers:
        seen = usage.get(server.handle, domain.Usage())
        server.cpu_percent, server.memory_used_bytes, server.usage_at = seen.cpu_percent, seen.memory_bytes, moment
        if project := projects.get(server.pk):
            samples.append(
                MetricSample(
                    project=project, at=moment, cpu_percent=seen.cpu_percent, memory_bytes=seen.memory_bytes,
                    size_bytes=project.size_bytes,
                    connections=project.connections if is_current(project.stats_at, moment) else None,
                )
            )  # fmt: skip
    DatabaseServer.objects.bulk_update(servers, ["cpu_percent", "memory_used_bytes", "usage_at"], batch_size=500)
    MetricSample.objects.bulk_create(samples, batch_size=1000)
    return len(samples)
