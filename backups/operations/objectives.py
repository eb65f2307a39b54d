"""What a project promises about its backups, against what is so: red when a promise is broken, with reasons."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db.models import Count, QuerySet
from django.db.models.functions import Coalesce

from backups.models import (
    Backup,
    BackupPolicy,
    BackupStatus,
    BackupTrigger,
    Proof,
    ProofKind,
    ProofState,
    RunOutcome,
    ScheduleRun,
)
from novastack.common.clock import now
from projects.models import Project

MISSED_DAYS = 7


@dataclass(frozen=True, slots=True)
class Objective:
    """`last_verified_age_seconds`: how old what the newest proven backup holds is now. `rto_measured_seconds`: what
    restoring that one took. `missed_runs`: slots of schedules in the last seven days that made no backup."""

    policy: BackupPolicy  # perhaps on no row: the defaults
    last_backup: Backup | None
    last_verified: Backup | None
    last_verified_age_seconds: float | None
    rto_measured_seconds: float | None
    missed_runs: int
    corrupt: int
    broken: bool
    reasons: tuple[str, ...]

    @property
    def promised(self) -> bool:
        """There is a target that can be kept or broken."""
        return self.policy.rpo_seconds is not None or self.policy.rto_seconds is not None


def policy_of(project: Project) -> BackupPolicy:
    """The project's, or the defaults, on no row."""
    found = BackupPolicy.objects.filter(project=project).first()
    return found or BackupPolicy(project=project, organization_id=project.organization_id)


def taken_at(backup: Backup) -> datetime:
    """Of what moment it is, at the latest."""
    return backup.started_at or backup.created_at


def objective_of(project: Project) -> Objective:
    """Six queries."""
    return objectives_of([project])[project.pk]


def objectives_of(projects: Collection[Project]) -> dict[UUID, Objective]:
    """Of each, in six queries however many there are."""
    ids, moment = [project.pk for project in projects], now()
    policies = {policy.project_id: policy for policy in BackupPolicy.objects.filter(project__in=ids)}
    # What somebody uploaded says nothing about what is in the project.
    rows = Backup.objects.filter(project_uuid__in=ids).exclude(trigger=BackupTrigger.UPLOAD).defer("manifest")
    ended = rows.exclude(status__in=[BackupStatus.QUEUED, BackupStatus.DUMPING, BackupStatus.DELETING])
    last = {row.project_uuid: row for row in _first(ended, "-created_at", "-id")}
    proven = rows.filter(status__in=[BackupStatus.VERIFIED, BackupStatus.VERIFYING], verified_at__isnull=False)
    verified = {row.project_uuid: row for row in _first(proven, Coalesce("started_at", "created_at").desc())}
    missed = dict(
        ScheduleRun.objects.filter(
            schedule__project__in=ids, due_at__gte=moment - timedelta(days=MISSED_DAYS),
            outcome__in=[RunOutcome.SKIPPED, RunOutcome.FAILED],
        ).order_by().values_list("schedule__project").annotate(number=Count("id"))
    )  # fmt: skip
    corrupt: dict[UUID, list[datetime]] = {}
    for pk, at in rows.filter(status=BackupStatus.CORRUPT).values_list("project_uuid", "created_at"):
        corrupt.setdefault(pk, []).append(at)
    ran = Proof.objects.filter(
        kind=ProofKind.DRILL, drill__project__in=ids, state__in=[ProofState.PASSED, ProofState.FAILED]
    )
    drills = dict(
        ran.order_by("drill__project", "-created_at", "-id")
        .distinct("drill__project")
        .values_list("drill__project", "state")
    )
    found = {}
    for project in projects:
        policy = policies.get(project.pk)
        if policy is None:
            policy = BackupPolicy(project=project, organization_id=project.organization_id)
        good = verified.get(project.pk)
        age = (moment - taken_at(good)).total_seconds() if good else None
        damaged = corrupt.get(project.pk, [])
        newer = sum(good is None or at > good.created_at for at in damaged)
        reasons = list(_reasons(policy, good, age))
        if newer:
            reasons.append(f"{_backups(newer)} newer than the last verified one, and corrupt.")
        if drills.get(project.pk) == ProofState.FAILED:
            reasons.append("The last drill failed.")
        found[project.pk] = Objective(
            policy, last.get(project.pk), good, age, good.rto_seconds if good else None, missed.get(project.pk, 0),
            len(damaged), bool(reasons), tuple(reasons),
        )  # fmt: skip
    return found


def _first(rows: QuerySet[Any], *order: Any) -> QuerySet[Any]:
    """The first of each project."""
    return rows.order_by("project_uuid", *order).distinct("project_uuid")


def _reasons(policy: BackupPolicy, verified: Backup | None, age: float | None) -> Any:
    if policy.rpo_seconds is not None:
        if age is None:
            yield "There is no verified backup."
        elif age > policy.rpo_seconds:
            yield f"The last verified backup is {_span(age)} old; at most {_span(policy.rpo_seconds)} are promised."
    measured = verified.rto_seconds if verified else None
    if policy.rto_seconds is not None and measured is not None and measured > policy.rto_seconds:
        yield f"The last restore took {_span(measured)}; at most {_span(policy.rto_seconds)} are promised."


def _backups(number: int) -> str:
    return "1 backup is" if number == 1 else f"{number} backups are"


def _span(seconds: float) -> str:
    for size, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {name}"
    return f"{seconds:.0f} seconds"
