"""How the install does: one entry per part. The parts of the process itself are `novastack.common.health`'s."""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any

from celery import current_app
from django.db.models import Count

from novastack.common import health
from novastack.common.health import check
from projects.models import Project, ProjectStatus, Region

ENGINES = ("postgresql", "mysql", "mariadb", "mongodb", "ferretdb")
WORKERS = {"worker:provisioning", "worker:monitoring"}  # without these nothing is made and nothing is seen
SICK = {ProjectStatus.UNHEALTHY, ProjectStatus.NOT_AVAILABLE}
DISK_FULL_PERCENT = 90  # rule 16: nothing new from here on
BROKER_SECONDS = 1.5
BROKER_KEEP_SECONDS = 5.0

_pinger = ThreadPoolExecutor(1, thread_name_prefix="broker-ping")
_broker: tuple[float, bool] = (-BROKER_KEEP_SECONDS, False)


def _ping_broker() -> bool:
    try:
        with current_app.connection_for_write() as link:
            link.ensure_connection(max_retries=1, timeout=BROKER_SECONDS)
        return True
    except Exception:  # every broker has errors of its own
        return False


def broker_ok() -> bool:
    """Whether the broker takes connections; asked at most every 5 s, answered within 1.5 s."""
    global _broker
    asked, answer = _broker
    if time.monotonic() - asked < BROKER_KEEP_SECONDS:
        return answer
    future: Future[bool] = _pinger.submit(_ping_broker)
    try:
        answer = future.result(BROKER_SECONDS)
    except FutureTimeout:
        future.cancel()
        answer = False
    _broker = (time.monotonic(), answer)
    return answer


def health_checks() -> dict[str, dict[str, Any]]:
    """name → `{status, detail, …}`. When the control database is away, what it would tell is degraded too."""
    checks = {"api": check(True), "database": check(True), "broker": check(broker_ok(), "" if broker_ok() else "away")}
    if not health.database_ok():
        away = check(False, "The control database does not answer.")
        return checks | dict.fromkeys(["database", "worker", "beat", "runtime", "storage", *ENGINES], away)
    missing = sorted(name.removeprefix("worker:") for name in WORKERS - set(health.fresh_heartbeats("worker:")))
    beat = bool(health.fresh_heartbeats("beat"))
    checks["worker"] = check(not missing, f"No sign of life of: {', '.join(missing)}" if missing else "")
    checks["beat"] = check(beat, "" if beat else "No sign of life.")
    return checks | _regions() | _fleets()


def _regions() -> dict[str, dict[str, Any]]:
    regions = list(Region.objects.filter(enabled=True).exclude(runtime=""))
    away = [f"{region.name}: {region.reason or 'can not be reached'}" for region in regions if not region.reachable]
    full = [region.name for region in regions if region.disk.get("used_percent", 0) >= DISK_FULL_PERCENT]
    return {
        "runtime": check(bool(regions) and not away, "; ".join(away) if regions else "No region has a runtime."),
        "storage": check(not full, f"Almost full: {', '.join(full)}" if full else ""),
    }


def _fleets() -> dict[str, dict[str, Any]]:
    """A fleet is degraded when more than a tenth of its running databases is; one tenant's trouble is not everybody's."""
    rows = Project.objects.live().filter(desired_status="running").order_by().values_list("engine", "status")
    total: Counter[str] = Counter()
    sick: Counter[str] = Counter()
    for engine, status, count in rows.annotate(count=Count("id")):
        total[engine] += count
        sick[engine] += count if status in SICK else 0
    return {
        engine: check(
            sick[engine] * 10 <= total[engine],
            f"{sick[engine]} of {total[engine]} are not well." if sick[engine] else "",
            databases=total[engine], not_well=sick[engine],
        )
        for engine in ENGINES
    }  # fmt: skip
