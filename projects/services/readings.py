"""What pages and API show of a running database: status, samples over time, log lines."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

from django.conf import settings
from django.core.cache import cache
from django.db import connection

from accounts.permissions import Capability, Principal, require
from novastack.common.clock import now
from novastack.common.errors import ActionNotAllowed, RuntimeNotAvailable, Throttled
from projects import tasks
from projects.models import (
    Database,
    DatabaseServer,
    DatabaseSlot,
    ObservedState,
    Placement,
    Project,
    ServerKind,
    TableSnapshot,
)
from projects.operations import metrics
from projects.operations.logs import LogText, read_on
from projects.operations.watch import is_current

LOG_LINES_MAX = 5000
RELAY_SECONDS = 8.0
FOLLOW_SECONDS_MAX = 30
FOLLOW_EVERY_SECONDS = 0.5
FOLLOWS_MAX = 3  # at a time, for each principal
CURSOR_MAX = 200
# At most half of this process's threads follow a log at a time; one more gets its answer at once (rule 49).
waiters = threading.BoundedSemaphore(max(1, settings.NOVASTACK_WEB_THREADS // 2))
# range → (its length, the width of a bucket): at most 400 points each
RANGES: dict[str, tuple[timedelta, timedelta]] = {
    "1h": (timedelta(hours=1), timedelta(seconds=30)),
    "24h": (timedelta(hours=24), timedelta(minutes=5)),
    "7d": (timedelta(days=7), timedelta(minutes=30)),
    "30d": (timedelta(days=30), timedelta(hours=3)),
    "90d": (timedelta(days=90), timedelta(hours=6)),
}


def server_of(project: Project) -> DatabaseServer | None:
    """The server that the project's database is on now, without its secrets."""
    row = (
        Database.objects.filter(project=project, slot=DatabaseSlot.CURRENT)
        .select_related("server", "server__region")
        .defer("server__admin_secret", "server__admin_pending_secret", "server__tls_key")
        .first()
    )
    return row.server if row else None


@dataclass(frozen=True, slots=True)
class Figures:
    """Percent of one core, bytes, a count, and rates since the look before: what was measured just now. None where there is
    no reading of now: it does not run, or nobody has looked for two sampling periods. `measured_at` is the last reading's
    time, however old."""

    cpu_percent: float | None
    memory_bytes: int | None
    connections: int | None
    transactions_per_second: float | None
    queries_per_second: float | None
    cache_hit_percent: float | None
    measured_at: datetime | None


def figures_of(project: Project, server: DatabaseServer | None) -> Figures:
    moment = now()
    usage_at = server.usage_at if server else None
    last = max((at for at in (usage_at, project.stats_at) if at), default=None)
    if server is None or server.observed_state != ObservedState.RUNNING or not project.region.reachable:
        return Figures(None, None, None, None, None, None, last)
    if server.kind == ServerKind.POOL:  # its own figures are no tenant's
        usage_at, last = None, project.stats_at
    used, counted = is_current(usage_at, moment), is_current(project.stats_at, moment)
    return Figures(
        cpu_percent=server.cpu_percent if used else None,
        memory_bytes=server.memory_used_bytes if used else None,
        connections=project.connections if counted else None,
        transactions_per_second=project.transactions_per_second if counted else None,
        queries_per_second=project.queries_per_second if counted else None,
        cache_hit_percent=project.cache_hit_percent if counted else None,
        measured_at=last,
    )


def status_of(project: Project, *, operator: bool = False) -> dict[str, Any]:
    """The `status` answer of the API but for `operation`. Everything was observed; null is not known. What is a pool's
    rather than the project's is for operators."""
    server = server_of(project)
    own = operator or server is None or server.kind != ServerKind.POOL
    seen = [moment for moment in (project.health_checked_at, server.observed_at if server else None) if moment]
    figures = figures_of(project, server)
    return {
        "status": project.status,
        "desired_status": project.desired_status,
        "observed_at": max(seen, default=None),
        "health": project.health,
        "detail": project.status_detail or project.health_detail,
        "server": None if server is None else {
            "runtime": server.runtime,
            "name": str(server) if own else None,
            "image": server.image if own else None,
            "started_at": server.started_at if own else None,
            "cpu_percent": figures.cpu_percent,
            "memory_bytes": figures.memory_bytes,
            "memory_limit_bytes": server.memory_bytes if own else None,
            "restart_pending": own and server.restart_pending,
            "connections": figures.connections,
            "connections_limit": project.connections_limit,
            "size_bytes": project.size_bytes,
            "transactions_per_second": _rounded(figures.transactions_per_second),
            "queries_per_second": _rounded(figures.queries_per_second),
            "cache_hit_percent": _rounded(figures.cache_hit_percent),
            "version": project.server_version,
            "measured_at": figures.measured_at,
            "tls": server.tls_enabled,
            "tls_not_after": server.tls_not_after if server.tls_enabled else None,
            "tls_reason": server.tls_reason,
        },
    }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tables:
    """The largest tables, largest first, as estimated at `measured_at` (None: not yet); `total`: how many there are."""

    rows: list[dict[str, Any]]
    total: int
    measured_at: datetime | None


def tables_of(project: Project) -> Tables:
    snapshot = TableSnapshot.objects.filter(project=project).first()
    if snapshot is None or snapshot.at is None:
        return Tables([], 0, None)
    rows = [{"name": name, "rows": rows, "size_bytes": size} for name, rows, size in snapshot.tables]
    return Tables(rows, snapshot.total, snapshot.at)


@dataclass(frozen=True, slots=True)
class Series:
    bucket_seconds: int
    points: list[dict[str, Any]]


def metrics_of(project: Project, range_: str) -> Series:
    """Readings of the last `1h` to `90d`, oldest first: mean and peak per bucket (sizes: the largest). At most 400 points,
    and no finer than what is still kept of so long ago."""
    length, wanted = RANGES[range_]
    width = metrics.width_for(length, wanted)
    rows = metrics.series(project.pk, since=now() - length, width=width)
    points = [
        {
            "at": at,
            "cpu_percent": _rounded(cpu),
            "cpu_percent_max": _rounded(cpu_max),
            "memory_bytes": _whole(memory),
            "memory_bytes_max": memory_max,
            "size_bytes": size,
            "connections": _whole(sessions),
            "connections_max": sessions_max,
            "transactions_per_second": _rounded(transactions),
            "transactions_per_second_max": _rounded(transactions_max),
            "queries_per_second": _rounded(queries),
            "queries_per_second_max": _rounded(queries_max),
            "cache_hit_percent": _rounded(hits),
        }
        for (
            at, cpu, cpu_max, memory, memory_max, sessions, sessions_max, transactions, transactions_max, queries,
            queries_max, hits, _, size,
        ) in rows
    ]  # fmt: skip
    return Series(int(width.total_seconds()), points)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def _whole(value: Any) -> int | None:
    return None if value is None else round(value)


def logs_read(*, principal: Principal, project: Project, tail: int = 200, cursor: str = "") -> LogText:
    """The last `tail` lines (at most 5,000) of the server's log, or what came after the cursor, oldest first.
    `RuntimeNotAvailable` if nobody answers.

    Live by nature. Where the web has no way to runtimes (production, rule 23), the monitoring worker reads them for it.
    """
    require(principal, project.organization_id, Capability.PROJECT_LOGS)
    if project.placement == Placement.POOL:  # rule 22
        raise ActionNotAllowed("The server's log is about all projects on its pool: it is for operators only.")
    server = server_of(project)
    if server is None or server.initialised_at is None:
        raise ActionNotAllowed("The server has not been made yet; there is no log.")
    tail = max(1, min(tail, LOG_LINES_MAX))
    if settings.NOVASTACK_WEB_SEES_RUNTIMES:
        found = read_on(server, cursor=cursor, tail=tail)
    else:
        found = _relayed(server, tail, cursor)
    if found.failure:
        raise RuntimeNotAvailable(found.failure)
    return found


def logs_follow(*, principal: Principal, project: Project, tail: int, cursor: str, seconds: float) -> LogText:
    """As `logs_read`, but where nothing was logged after the cursor it waits for a line, at most `seconds`; at once when
    half of this process's threads wait already. `Throttled`: this principal follows three logs already."""
    place = _follower(principal, seconds)
    slot = waiters.acquire(blocking=False)
    try:
        until = time.monotonic() + (seconds if slot else 0)
        while True:
            found = logs_read(principal=principal, project=project, tail=tail, cursor=cursor)
            if found.lines or found.gap or time.monotonic() + FOLLOW_EVERY_SECONDS > until:
                return found
            if not connection.in_atomic_block:
                connection.close()
            cursor = found.cursor
            time.sleep(FOLLOW_EVERY_SECONDS)
    finally:
        if slot:
            waiters.release()
        cache.delete(place)


def _follower(principal: Principal, seconds: float) -> str:
    """One of the places that each may follow from, over all processes; given back by itself if nobody does."""
    who = getattr(principal.user, "pk", "")
    for number in range(FOLLOWS_MAX):
        place = f"log-follower:{who}:{number}"
        if cache.add(place, True, int(seconds) + 10):
            return place
    raise Throttled(f"You follow {FOLLOWS_MAX} logs already.", retry_after_seconds=5)


def _relayed(server: DatabaseServer, tail: int, cursor: str) -> LogText:
    """Asks a worker; the answer comes by the cache. Holds no database connection meanwhile."""
    ticket = f"logs:{uuid4()}"
    try:
        tasks.read_logs.apply_async(args=[str(server.pk), tail, ticket, cursor], expires=RELAY_SECONDS, retry=False)
    except Exception:  # every broker has errors of its own
        return LogText([], cursor, failure="No worker can be asked for the log now.")
    if not connection.in_atomic_block:
        connection.close()
    until = time.monotonic() + RELAY_SECONDS
    while time.monotonic() < until:
        time.sleep(0.05)
        answer = cache.get(ticket)
        if answer is not None:
            cache.delete(ticket)
            return LogText(**answer)
    return LogText([], cursor, failure="No worker has answered in time; try again.")
