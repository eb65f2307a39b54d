"""How the whole install does, over all tenants: counts only, for the health answer and for Prometheus."""

from __future__ import annotations

import shutil
import threading
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

from celery import current_app
from django.conf import settings
from django.db.models import Avg, Count, Q, Sum

from novastack.common import health
from novastack.common.clock import now
from novastack.common.models import Heartbeat, Install
from projects import registry
from projects.models import (
    DISK_WARN_PERCENT,
    DatabaseServer,
    DesiredStatus,
    Health,
    Operation,
    Project,
    ProjectStatus,
    Region,
    ServerKind,
    StandbyTarget,
)
from projects.operations import disks, pools
from projects.operations.standby_upkeep import Standing, standings
from projects.operations.watch import CURRENT

QUEUES = ("provisioning", "monitoring", "maintenance", "backups")
ENGINES = tuple(registry.engines())
ILL_SHARE = 0.1
_BROKER_SECONDS = 5.0


@dataclass(slots=True)
class _BrokerState:
    at: float = -_BROKER_SECONDS
    ok: bool = False


_broker = _BrokerState()
_broker_lock = threading.Lock()


def broker_ok() -> bool:
    """Whether a message could be sent. Asked at most every 5 s by one thread; the others take the last answer."""
    if time.monotonic() - _broker.at < _BROKER_SECONDS or not _broker_lock.acquire(blocking=_broker.at < 0):
        return _broker.ok
    try:
        with current_app.connection_for_write() as link:
            link.ensure_connection(max_retries=1, interval_start=0, interval_step=0, timeout=2)
        _broker.ok = True
    except Exception:  # each transport has errors of its own
        _broker.ok = False
    finally:
        _broker.at = time.monotonic()
        _broker_lock.release()
    return _broker.ok


def checks() -> dict[str, dict[str, Any]]:
    """Each part's `status` (`healthy` or `degraded`) and `detail`. A part that can't be asked is degraded, never an error."""
    found = {"api": health.check(True), "database": health.check(health.database_ok())}
    names = ("broker", "worker", "beat", "runtime", "storage", *ENGINES)
    if found["database"]["status"] != "healthy":
        return found | {name: health.check(False, "Unknown: the database does not answer.") for name in names}
    regions = list(Region.objects.filter(enabled=True).exclude(runtime=""))  # examples without one are no trouble
    found["broker"] = health.check(broker_ok(), "" if _broker.ok else "No message can be sent.")
    found["worker"] = _workers()
    alive = bool(health.fresh_heartbeats("beat"))
    found["beat"] = health.check(alive, "" if alive else "No sign of life for a minute.")
    found["runtime"] = _runtimes(regions)
    found["storage"] = _storage(regions)
    return found | _engines()


def _workers() -> dict[str, Any]:
    alive = {name.removeprefix("worker:") for name in health.fresh_heartbeats("worker:")}
    missing = [queue for queue in QUEUES if queue not in alive]
    return health.check(not missing, f"No sign of life for: {', '.join(missing)}." if missing else "")


def _runtimes(regions: list[Region]) -> dict[str, Any]:
    if Install.load().read_only:
        return health.check(False, "The install is read-only.")
    away = [f"{r.slug}: {r.reason or 'not reachable'}" for r in regions if not (r.available and r.reachable)]
    if not regions:
        return health.check(False, "There is no region.")
    return health.check(not away, "; ".join(away))


def _storage(regions: list[Region]) -> dict[str, Any]:
    full = [f"{region.slug}: {region.disk_problem}" for region in regions if region.disk_problem]
    if own := control_disk_problem():
        full.append(f"control database: {own}")
    return health.check(not full, "; ".join(full))


def control_disk_problem() -> str:
    """What is wrong with the disk of the control database, where it is on this machine (`make run`)."""
    try:
        usage = shutil.disk_usage(settings.NOVASTACK_BALLAST_FOLDER) if settings.NOVASTACK_BALLAST_FOLDER else None
    except OSError:
        return ""
    used = disks.used_percent(usage) if usage else 0
    return f"its disk is {used:.0f} % full" if used >= DISK_WARN_PERCENT else ""


def _engines() -> dict[str, dict[str, Any]]:
    """An engine is degraded when a region with databases of it can't be reached, or when more than max(1, 10 %) of its
    databases that should run don't, also those that failed since they were made. One database that is ill is its owner's
    trouble, not the install's; a provisioning that failed was told to who asked for it. An engine without databases is
    healthy."""
    broken = Q(status=ProjectStatus.FAILED, ready_at__isnull=False, desired_status=DesiredStatus.RUNNING)
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    kept = Project.objects.order_by().exclude(status=ProjectStatus.RECYCLED)
    grouped = kept.values("engine", "status", "region__reachable")
    for row in grouped.annotate(count=Count("id"), broken=Count("id", filter=broken)):
        kinds = ("total", row["status"] if row["region__reachable"] else "away")
        counts[row["engine"]].update(dict.fromkeys(kinds, row["count"]))
        counts[row["engine"]]["broken"] += row["broken"] if row["region__reachable"] else 0
    answer = {}
    for engine in ENGINES:
        found = counts[engine]
        ill = found[ProjectStatus.UNHEALTHY] + found[ProjectStatus.NOT_AVAILABLE] + found["broken"]
        run = found[ProjectStatus.RUNNING] + ill
        told = {"in regions that can't be reached": found["away"], f"of {run} unhealthy": ill}
        detail = ", ".join(f"{n} {what}" for what, n in told.items() if n)
        ok = not found["away"] and ill <= max(1, run * ILL_SHARE)
        answer[engine] = health.check(ok, detail or (f"{found['total']} databases" if found["total"] else "none"))
    return answer


def figures() -> dict[str, Any]:
    """What Prometheus gets."""
    regions = list(Region.objects.all())
    sums = Project.objects.aggregate(size=Sum("size_bytes"), connections=Sum("connections"))
    return {
        "version": settings.VERSION,
        "projects": _grouped(Project, "engine", "status"),
        "servers": _grouped(DatabaseServer, "engine", "observed_state"),
        "operations": _grouped(Operation, "kind", "state"),
        "size_bytes": sums["size"] or 0,
        "connections": sums["connections"] or 0,
        "rates": _rates(),
        "regions": {region.slug: region.available and region.reachable for region in regions},
        "disks": {r.slug: r.disk_used_percent for r in regions if r.disk_used_percent is not None},
        "fenced": dict(
            Project.objects.order_by().exclude(write_fence="").values_list("write_fence").annotate(Count("pk"))
        ),
        "standbys": {
            (s.target.region.slug, s.target.engine, s.target.version, s.target.plan.slug): (s.ready, s.target.count)
            for s in standbys()
        },
        "pools": _pools(),
        "heartbeats": dict(Heartbeat.objects.values_list("name", "at")),
    }


def standbys() -> list[Standing]:
    """Each target that operators have set, how many of it are ready, and why there are fewer than wanted."""
    targets = list(StandbyTarget.objects.select_related("region", "plan"))
    rows = DatabaseServer.objects.filter(kind=ServerKind.STANDBY).defer(
        "admin_secret", "admin_pending_secret", "tls_key"
    )
    return standings(targets, list(rows)) if targets else []


def _pools() -> dict[tuple[str, ...], dict[str, float | None]]:
    """Region, engine, version, name → its figures; `healthy` is None where nobody knows."""
    rows = list(pools.pools().select_related("region").defer("admin_secret", "admin_pending_secret", "tls_key"))
    used = pools.used_by_pool(rows)
    well = {Health.HEALTHY: 1.0, Health.UNHEALTHY: 0.0}
    return {
        (row.region.slug, row.engine, row.version, row.name): {
            "databases": float(used.get(row.pk, 0)),
            "max_databases": float(row.max_databases),
            "healthy": well.get(Health(pools.health_of(row)[0])),
            "size_bytes": row.pool_size_bytes,
        }
        for row in rows
    }


def _rates() -> dict[str, dict[str, float]]:
    """Per engine: sums of what its databases do now, and the mean of their cache hits (a part of one)."""
    rows: Any = (
        Project.objects.order_by()
        .filter(stats_at__gt=now() - CURRENT, status=ProjectStatus.RUNNING)
        .values("engine")
        .annotate(
            transactions=Sum("transactions_per_second"),
            queries=Sum("queries_per_second"),
            hits=Avg("cache_hit_percent"),
        )
    )
    found: dict[str, dict[str, float]] = {"transactions": {}, "queries": {}, "hits": {}}
    for row in rows:
        for name, values in found.items():
            if row[name] is not None:
                values[row["engine"]] = row[name] / (100 if name == "hits" else 1)
    return found


def _grouped(model: Any, *fields: str) -> dict[tuple[str, ...], int]:
    rows = model.objects.order_by().values(*fields).annotate(count=Count("pk"))
    return {tuple(row[field] for field in fields): row["count"] for row in rows}
