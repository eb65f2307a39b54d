"""What Prometheus is told of backups: counts by status, how old the newest proven ones are, how long proofs take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from django.db import connection
from django.db.models import Count, F, Max, Q, Sum, Value
from django.db.models.functions import Coalesce

from backups.models import Backup, BackupStatus, Proof, ProofState
from backups.retention import AHEAD
from novastack.common.clock import now

BUCKETS = (1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0)  # seconds that a proof takes
AGES = (3600.0, 14400.0, 43200.0, 86400.0, 172800.0, 604800.0, 2592000.0)  # seconds
_ENDED = (ProofState.PASSED, ProofState.FAILED, ProofState.ERROR, ProofState.CANCELLED)
# Of projects that are here: what is kept of others has no objective. Nor is what a wrong clock has dated in the future
# (`retention.AHEAD`) the newest.
_NEWEST = """
SELECT count(age), coalesce(sum(age), 0), coalesce(max(age), 0), count(*) FILTER (WHERE age IS NULL), {buckets}
  FROM (SELECT extract(epoch FROM now() - max(coalesce(started_at, created_at))
                       FILTER (WHERE verified_at IS NOT NULL AND status IN ('verified', 'verifying')
                               AND trigger <> 'upload' AND created_at <= now() + interval '1 hour'
                               AND verify_error ->> 'code' IS DISTINCT FROM 'object_missing'))::float AS age
          FROM backups_backup b
         WHERE EXISTS (SELECT FROM projects_project p WHERE p.id = b.project_uuid)
         GROUP BY project_uuid) AS projects
"""


@dataclass(frozen=True, slots=True)
class Figures:
    """`ages`: of how many projects the newest verified backup is at most so old (seconds)."""

    backups: Mapping[tuple[str, str], int]  # engine, status
    stored_bytes: Mapping[str, int]
    projects_verified: int
    projects_unverified: int
    ages: Mapping[float, int]
    ages_seconds: float
    oldest_seconds: float
    proofs: Mapping[tuple[str, str], int]  # kind, state
    durations: Mapping[str, tuple[list[int], int, float]]  # kind → counts up to each of `BUCKETS`, all, seconds


def figures() -> Figures:
    rows = list(
        Backup.objects.order_by().values("engine", "status").annotate(number=Count("id"), size=Sum("size_bytes"))
    )
    stored: dict[str, int] = {}
    for row in rows:
        if row["status"] != BackupStatus.FAILED:
            stored[row["engine"]] = stored.get(row["engine"], 0) + int(row["size"] or 0)
    verified, seconds, oldest, unverified, *ages = _ages()
    proofs = list(
        Proof.objects.order_by().filter(state__in=_ENDED).values("kind", "state").annotate(number=Count("id"))
    )
    return Figures(
        {(row["engine"], row["status"]): row["number"] for row in rows}, stored, int(verified), int(unverified),
        {le: int(number) for le, number in zip(AGES, ages, strict=True)}, float(seconds), float(oldest),
        {(row["kind"], row["state"]): row["number"] for row in proofs}, _durations(),
    )  # fmt: skip


def overview_of(organization_ids: list[UUID]) -> dict[str, Any]:
    """The part of `stats/overview`; one query."""
    known = Q(created_at__lte=now() + AHEAD)
    groups = (
        Backup.objects.filter(organization_id__in=organization_ids)
        .order_by()
        .values("status")
        .annotate(number=Count("id"), size=Sum("size_bytes"), verified=Max("verified_at", filter=known))
    )
    rows = {str(row["status"]): row for row in groups}
    kept = [row for status, row in rows.items() if status != BackupStatus.FAILED]
    return {
        "total": sum(row["number"] for row in kept),
        "by_status": {status: row["number"] for status, row in rows.items()},
        "size_bytes": sum(row["size"] or 0 for row in kept),
        "last_verified_at": max((row["verified"] for row in kept if row["verified"]), default=None),
    }


def _ages() -> tuple[Any, ...]:
    buckets = ", ".join(f"count(*) FILTER (WHERE age <= {le})" for le in AGES)
    with connection.cursor() as cursor:
        cursor.execute(_NEWEST.format(buckets=buckets))
        found: tuple[Any, ...] = cursor.fetchone()
    return found


def _durations() -> dict[str, tuple[list[int], int, float]]:
    took = Coalesce(F("restore_seconds"), Value(0.0)) + Coalesce(F("compare_seconds"), Value(0.0))
    parts = {f"le_{n}": Count("id", filter=Q(took__lte=le)) for n, le in enumerate(BUCKETS)}
    rows: Any = (
        Proof.objects.order_by().filter(state=ProofState.PASSED).annotate(took=took).values("kind")
        .annotate(number=Count("id"), seconds=Sum("took"), **parts)
    )  # fmt: skip
    return {
        row["kind"]: ([row[f"le_{n}"] for n in range(len(BUCKETS))], row["number"], float(row["seconds"] or 0))
        for row in rows
    }
