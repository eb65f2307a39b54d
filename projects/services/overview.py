"""Figures over all projects that somebody may see. A constant number of queries."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, time, timedelta
from typing import Any
from uuid import UUID

from django.db.models import Count, Sum
from django.db.models.functions import TruncDate

from accounts.models import AuditEvent
from novastack.common.clock import now
from projects.models import Project

DAYS = 14
BackupCounter = Callable[[list[UUID]], dict[str, Any]]
_backups: list[BackupCounter] = []


def backups_by(count: BackupCounter) -> None:
    """Another app tells of backups, from its `AppConfig.ready()`."""
    _backups[:] = [count]


def overview_of(organization_ids: list[UUID]) -> dict[str, Any]:
    """The `stats/overview` answer. Projects in the recycle bin count under `by_status` and in `storage_bytes` only."""
    groups = (
        Project.objects.filter(organization_id__in=organization_ids)
        .order_by()
        .values("status", "engine", "region__slug")
        .annotate(count=Count("id"), size=Sum("size_bytes"), sessions=Sum("connections"))
    )
    by_status: Counter[str] = Counter()
    by_engine: Counter[str] = Counter()
    by_region: Counter[str] = Counter()
    storage = sessions = 0
    for row in groups:
        by_status[row["status"]] += row["count"]
        storage += row["size"] or 0
        sessions += row["sessions"] or 0
        if row["status"] != "recycled":
            by_engine[row["engine"]] += row["count"]
            by_region[row["region__slug"]] += row["count"]
    return {
        "projects": {
            "total": by_engine.total(),
            "by_status": dict(by_status),
            "by_engine": dict(by_engine),
            "by_region": dict(by_region),
        },
        "storage_bytes": storage,
        "connections": sessions,
        "backups": {"available": bool(_backups)} | (_backups[0](organization_ids) if _backups else {}),
        "activity": _activity(organization_ids),
    }


def _activity(organization_ids: list[UUID]) -> list[dict[str, Any]]:
    """Events per day (UTC) of the last two weeks, oldest first; days without one as well."""
    today = now().date()
    first = today - timedelta(days=DAYS - 1)
    start = datetime.combine(first, time.min, tzinfo=UTC)
    counted = dict(
        AuditEvent.objects.filter(organization_id__in=organization_ids, created_at__gte=start)
        .order_by()
        .annotate(day=TruncDate("created_at"))
        .values("day")
        .annotate(count=Count("id"))
        .values_list("day", "count")
    )
    days = [first + timedelta(days=n) for n in range(DAYS)]
    return [{"date": day.isoformat(), "count": counted.get(day, 0)} for day in days]
