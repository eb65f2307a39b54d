"""What is not protected: each project's backups judged, the worst first; storages that fail; kits that nobody holds.

However many projects there are, the same number of queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import IntEnum
from typing import Any
from uuid import UUID

from django.db.models import Count, Exists, Min, OuterRef, Q, QuerySet

from accounts.models import Organization
from backups.models import Backup, BackupStatus, OfflineKey, Schedule, StorageTarget
from backups.operations.objectives import Objective, objectives_of
from projects import domain, registry
from projects.models import DesiredStatus, Project

STALE = timedelta(days=7)  # without an objective: a verified backup older than this protects little


class Level(IntEnum):
    """The order is that of the page."""

    BROKEN = 0  # an objective is broken, or nothing that is known to restore
    AT_RISK = 1  # it is proven now, and something will keep it from staying so
    UNSUPPORTED = 2  # NovaStack can't back it up: somebody has to do it otherwise
    PROTECTED = 3


@dataclass(frozen=True, slots=True)
class Protection:
    """Of one project. `reasons`: what is wrong, the worst first; empty only if it is protected."""

    project: Project
    level: Level
    reasons: tuple[str, ...]
    objective: Objective
    schedules: int
    next_run_at: datetime | None


@dataclass(frozen=True, slots=True)
class Overview:
    projects: Sequence[Protection]
    failing: Sequence[StorageTarget]
    kits_missing: Sequence[Organization]

    def count(self, level: Level) -> int:
        return sum(found.level == level for found in self.projects)


def overview(organization: Organization | None) -> Overview:
    """Of an organization, or of the whole install. Projects in the recycle bin have their final backup, and are left out."""
    projects = Project.objects.select_related("organization", "plan", "region").filter(
        recycled_at=None, purging_at=None, ready_at__isnull=False
    )
    targets, organizations = StorageTarget.objects.select_related("organization"), Organization.objects.all()
    if organization is not None:
        projects = projects.filter(organization=organization)
        targets = targets.filter(Q(organization=None) | Q(organization=organization))
        organizations = organizations.filter(pk=organization.pk)
    failing = targets.filter(Q(test_ok=False) | ~Q(read_only_reason="")).order_by("name", "id")
    return Overview(judged(projects.order_by("name", "id")), list(failing), list(_without_kit(organizations)))


def judged(projects: QuerySet[Any]) -> list[Protection]:
    """The worst first, then by name. Eight queries."""
    rows: list[Project] = list(projects)
    promises = objectives_of(rows)
    kept: dict[UUID, Any] = {
        row["project"]: row
        for row in Schedule.objects.filter(project__in=[project.pk for project in rows])
        .order_by()
        .values("project")
        .annotate(
            on=Count("id", filter=Q(enabled=True)), off=Count("id", filter=Q(enabled=False)),
            stopped=Count("id", filter=~Q(retention_paused_reason="")),
            next_at=Min("next_run_at", filter=Q(enabled=True)),
        )
    }  # fmt: skip
    found = [_judge(project, promises[project.pk], kept.get(project.pk) or {}) for project in rows]
    return sorted(found, key=lambda each: (each.level, each.project.name.casefold(), str(each.project.pk)))


def _judge(project: Project, objective: Objective, kept: dict[str, Any]) -> Protection:
    engine = registry.engine(project.engine)
    if domain.Capability.COPY not in engine.capabilities:
        reasons = (f"Backups of {engine.title} are not supported.",)
        return Protection(project, Level.UNSUPPORTED, reasons, objective, 0, None)
    broken, risks = list(objective.reasons), list(_risks(project, objective, kept))
    if objective.last_verified is None and not any("no verified backup" in reason for reason in broken):
        broken.insert(0, "There is no verified backup.")
    elif objective.policy.rpo_seconds is None and (objective.last_verified_age_seconds or 0) > STALE.total_seconds():
        risks.insert(0, f"The last verified backup is more than {STALE.days} days old, and no objective is set.")
    level = Level.BROKEN if broken else Level.AT_RISK if risks else Level.PROTECTED
    return Protection(
        project, level, (*broken, *risks), objective, kept.get("on", 0), kept.get("next_at")
    )  # fmt: skip


def _risks(project: Project, objective: Objective, kept: dict[str, Any]) -> Any:
    if not kept.get("on"):
        yield "Its schedule is paused." if kept.get("off") else "It has no schedule: backups are taken by hand only."
    elif project.desired_status == DesiredStatus.STOPPED:
        yield "It is stopped, and so are its backups."
    last = objective.last_backup
    if last is not None and last.status == BackupStatus.FAILED:
        why = (last.error or {}).get("detail") or "Nothing was recorded."
        yield f"The last backup failed: {why}"
    elif last is not None and last.verify_error:
        yield f"The last backup could not be verified: {last.verify_error.get('detail', '')}"
    if objective.missed_runs:
        yield f"{objective.missed_runs} run{'s' if objective.missed_runs != 1 else ''} missed in 7 days."
    if not objective.policy.verify_after_backup:
        yield "Backups are not verified after they are taken."
    if kept.get("stopped"):
        yield "Retention has stopped and waits for somebody to look."


def _without_kit(organizations: QuerySet[Any]) -> QuerySet[Any]:
    """Those with encrypted backups whose keys are here and nowhere else."""
    held = OfflineKey.objects.filter(organization=OuterRef("pk"), retired_at=None, confirmed_at__isnull=False)
    sealed = Backup.objects.filter(organization_id=OuterRef("pk"), encrypted=True, size_bytes__isnull=False)
    return organizations.filter(Exists(sealed), ~Exists(held)).order_by("name", "id")
