"""What pages show of backups: figures, the last good one per project, what was restored and can be undone.

Read-only and cheap: each function asks a fixed number of queries, however many rows there are.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db import connection
from django.db.models import Count, Max, Min, Q, QuerySet, Sum

from accounts.models import Organization
from backups.models import (
    MISSING,
    THERE,
    USABLE,
    Backup,
    BackupPolicy,
    BackupStatus,
    BackupTrigger,
    OfflineKey,
    Restore,
    RestoreStatus,
    RestoreTarget,
    Schedule,
    StorageTarget,
)
from backups.operations import restoring
from backups.retention import AHEAD
from novastack.common.clock import now
from projects.models import Project

OWN = ~Q(trigger=BackupTrigger.UPLOAD)  # what was uploaded says nothing about the project's own data
ENDED = (BackupStatus.STORED, BackupStatus.VERIFYING, BackupStatus.VERIFIED, BackupStatus.FAILED, BackupStatus.CORRUPT)
BUSY = (BackupStatus.QUEUED, BackupStatus.DUMPING, BackupStatus.VERIFYING, BackupStatus.DELETING)
WINDOW = timedelta(days=30)


def proven() -> Q:
    """Restored and compared, and still there. What a wrong clock has dated in the future proves nothing now: how old it is
    nobody knows."""
    return Q(status__in=USABLE, verified_at__isnull=False, created_at__lte=now() + AHEAD) & OWN & THERE


def backups_of(project: Project) -> QuerySet[Any]:
    """All of the project's, newest first."""
    return Backup.objects.filter(organization_id=project.organization_id, project_uuid=project.pk)


def last_good(project: Project) -> Backup | None:
    """The newest that was restored and compared."""
    found: Backup | None = backups_of(project).filter(proven()).order_by("-created_at").first()
    return found


def next_run(project: Project) -> datetime | None:
    """When a schedule takes the next backup; None: by hand only, or paused with the project."""
    due: datetime | None = Schedule.objects.filter(project=project, enabled=True).aggregate(at=Min("next_run_at"))["at"]
    return due


def figures_of(project: Project) -> dict[str, Any]:
    """`last_good` (a Backup), `next_run` (a moment), `count`, `size_bytes`, and of the last 30 days `ended`, `verified`,
    `corrupt`, `failed`, `missing`, and the last three in words: `bad`."""
    recent = Q(created_at__gte=now() - WINDOW)
    counted = backups_of(project).aggregate(
        count=Count("id", filter=Q(status__in=USABLE)),
        size_bytes=Sum("size_bytes", default=0),
        ended=Count("id", filter=recent & OWN & Q(status__in=ENDED)),
        verified=Count("id", filter=recent & proven()),
        corrupt=Count("id", filter=recent & OWN & Q(status=BackupStatus.CORRUPT)),
        failed=Count("id", filter=recent & OWN & Q(status=BackupStatus.FAILED)),
        missing=Count("id", filter=recent & OWN & Q(status__in=USABLE) & MISSING),
        busy=Count("id", filter=Q(status__in=BUSY)),
    )
    bad = [f"{counted[name]} {name}" for name in ("corrupt", "missing", "failed") if counted[name]]
    return counted | {
        "bad": ", ".join(bad),
        "last_good": last_good(project),
        "next_run": next_run(project),
    }


def last_good_of(projects: Iterable[Project]) -> dict[UUID, dict[str, Any]]:
    """For a list: project id → `at` (when its newest proven backup was begun, or None) and `late` (older than the
    objective allows). Two queries."""
    ids = [project.pk for project in projects]
    at: dict[UUID, datetime] = dict(
        Backup.objects.filter(proven(), project_uuid__in=ids)
        .values_list("project_uuid")
        .annotate(at=Max("started_at"))
        .values_list("project_uuid", "at")
    )
    allowed: dict[UUID, int | None] = dict(
        BackupPolicy.objects.filter(project__in=ids, rpo_seconds__isnull=False).values_list("project_id", "rpo_seconds")
    )
    moment = now()
    return {pk: {"at": at.get(pk), "late": _late(at.get(pk), allowed.get(pk), moment)} for pk in ids}


def _late(at: datetime | None, allowed_seconds: int | None, moment: datetime) -> bool:
    if allowed_seconds is None:
        return False
    return at is None or (moment - at).total_seconds() > allowed_seconds


def undoable(project: Project) -> Restore | None:
    """The restore over this project's database that can still be undone, or is being undone. At most four queries."""
    found: Restore | None = (
        Restore.objects.filter(
            project_uuid=project.pk, organization_id=project.organization_id, undone_at=None,
            target__in=(RestoreTarget.IN_PLACE, RestoreTarget.PROJECT),
            status__in=(RestoreStatus.SUCCEEDED, RestoreStatus.UNDOING), undo_until__gt=now(),
        )
        .select_related("backup")
        .order_by("-created_at")
        .first()
    )  # fmt: skip
    if found is None or found.status == RestoreStatus.UNDOING or restoring.kept_of(found, project) is not None:
        return found
    return None  # moved, or restored again, since


def kit_confirmed(organization_id: UUID) -> bool:
    """Whether somebody has proven that they saved this organization's recovery kit (rule 30)."""
    return OfflineKey.objects.filter(
        organization_id=organization_id, retired_at=None, confirmed_at__isnull=False
    ).exists()


def opened_by(organization_id: UUID) -> dict[str, int]:
    """Recipient → how many of the organization's stored backups its identity opens. One query."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT recipient, count(*) FROM backups_backup, jsonb_array_elements_text(key_ids) AS recipient"
            " WHERE organization_id = %s AND encrypted AND size_bytes IS NOT NULL AND status <> 'failed'"
            " GROUP BY recipient",
            [organization_id],
        )
        return dict(cursor.fetchall())


def storages_of(organization: Organization) -> list[dict[str, Any]]:
    """The organization's own targets and those for everybody, each with what it holds: `target`, `backups`,
    `size_bytes` of this organization's backups there, `own`, `default` (backups go there unless told otherwise). Two
    queries."""
    return _held(
        Q(organization=None) | Q(organization=organization), Backup.objects.filter(organization_id=organization.pk)
    )


def install_storages() -> list[dict[str, Any]]:
    """For operators: those for everybody, with all that they hold."""
    return _held(Q(organization=None), Backup.objects.all())


def _held(which: Q, backups: QuerySet[Any]) -> list[dict[str, Any]]:
    targets = list(StorageTarget.objects.filter(which).select_related("organization").order_by("name", "id"))
    held = {
        row["storage"]: row
        for row in backups.filter(storage__in=targets)
        .exclude(status=BackupStatus.FAILED)
        .order_by()
        .values("storage")
        .annotate(backups=Count("id"), size_bytes=Sum("size_bytes", default=0))
    }
    empty = {"backups": 0, "size_bytes": 0}
    # An organization's own default goes before that of the install.
    defaults = sorted((t for t in targets if t.is_default), key=lambda t: t.organization_id is None)
    return [
        {"target": target, "own": target.organization_id is not None, "default": target in defaults[:1]}
        | {name: held.get(target.pk, empty)[name] for name in empty}
        for target in targets
    ]
