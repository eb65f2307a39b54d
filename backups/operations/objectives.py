"""What a project promises about its backups, against what is so: red when a promise is broken, with reasons."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db.models import Count, Q
from django.db.models.functions import Coalesce

from backups.models import Backup, BackupPolicy, BackupStatus, Proof, ProofKind, ProofState, RunOutcome, ScheduleRun
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
    """Five queries."""
    policy, moment = policy_of(project), now()
    rows = Backup.objects.filter(project_uuid=project.pk).defer("manifest")
    last = rows.exclude(status__in=[BackupStatus.QUEUED, BackupStatus.DUMPING, BackupStatus.DELETING]).first()
    proven = rows.filter(status__in=[BackupStatus.VERIFIED, BackupStatus.VERIFYING], verified_at__isnull=False)
    verified = proven.order_by(Coalesce("started_at", "created_at").desc()).first()
    age = (moment - taken_at(verified)).total_seconds() if verified else None
    missed = ScheduleRun.objects.filter(
        schedule__project=project, due_at__gte=moment - timedelta(days=MISSED_DAYS),
        outcome__in=[RunOutcome.SKIPPED, RunOutcome.FAILED],
    ).count()  # fmt: skip
    corrupt = rows.filter(status=BackupStatus.CORRUPT).aggregate(
        all=Count("id"), newer=Count("id", filter=Q(created_at__gt=verified.created_at) if verified else Q())
    )
    drill = Proof.objects.filter(
        kind=ProofKind.DRILL, drill__project=project, state__in=[ProofState.PASSED, ProofState.FAILED]
    ).first()
    reasons = list(_reasons(policy, verified, age))
    if corrupt["newer"]:
        reasons.append(f"{_backups(corrupt['newer'])} newer than the last verified one, and corrupt.")
    if drill is not None and drill.state == ProofState.FAILED:
        reasons.append("The last drill failed.")
    rto = verified.rto_seconds if verified else None
    return Objective(policy, last, verified, age, rto, missed, int(corrupt["all"]), bool(reasons), tuple(reasons))


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
