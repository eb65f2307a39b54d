"""What a project promises about its backups, against what is so: red when a promise is broken, with reasons."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db.models import Case, Count, Exists, F, OuterRef, Q, QuerySet, Subquery, When
from django.db.models.functions import Coalesce

from backups.models import (
    MISSING,
    THERE,
    Backup,
    BackupPolicy,
    BackupStatus,
    BackupTrigger,
    Drill,
    Proof,
    ProofKind,
    ProofState,
    RunOutcome,
    ScheduleRun,
)
from backups.operations import schedules
from backups.retention import AHEAD
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
    # What a clock that was wrong has dated in the future would be the newest until then, and never too old.
    known = Q(created_at__lte=moment + AHEAD)
    last = {row.project_uuid: row for row in _first(ended.filter(known), "-created_at", "-id")}
    # One whose object is not there any more was proven once, and protects nobody now.
    proven = rows.filter(
        THERE, known, status__in=[BackupStatus.VERIFIED, BackupStatus.VERIFYING], verified_at__isnull=False
    )
    verified = {row.project_uuid: row for row in _first(proven, Coalesce("started_at", "created_at").desc())}
    # Without a backup: none was begun, the one that was has failed, or nobody was there to look (`missed`).
    failed = Backup.objects.filter(pk=OuterRef("backup_uuid"), status=BackupStatus.FAILED)
    without = Q(outcome__in=[RunOutcome.SKIPPED, RunOutcome.FAILED]) | Q(Exists(failed))
    missed = _missed(ids, without, since=moment - timedelta(days=MISSED_DAYS))
    corrupt: dict[UUID, list[datetime]] = {}
    gone: dict[UUID, list[datetime]] = {}
    bad = rows.filter(Q(status=BackupStatus.CORRUPT) | MISSING)
    for pk, at, status in bad.values_list("project_uuid", "created_at", "status"):
        (corrupt if status == BackupStatus.CORRUPT else gone).setdefault(pk, []).append(at)
    drills = _drills(ids)
    found = {}
    for project in projects:
        policy = policies.get(project.pk)
        if policy is None:
            policy = BackupPolicy(project=project, organization_id=project.organization_id)
        good = verified.get(project.pk)
        age = (moment - taken_at(good)).total_seconds() if good else None
        damaged = corrupt.get(project.pk, [])
        reasons = list(_reasons(policy, good, age))
        for bad_ones, what in ((damaged, "corrupt"), (gone.get(project.pk, []), "missing in its storage")):
            if newer := sum(good is None or at > good.created_at for at in bad_ones):
                reasons.append(f"{_backups(newer)} newer than the last verified one, and {what}.")
        told = drills.get(project.pk, [])
        if wrong := [drill.name for drill in told if drill.last_word == ProofState.FAILED]:
            reasons.append(f"The last drill failed: {', '.join(wrong)}.")
        reasons += [_stalled(drill) for drill in told if drill.stalled_since is not None]
        found[project.pk] = Objective(
            policy, last.get(project.pk), good, age, good.rto_seconds if good else None, missed.get(project.pk, 0),
            len(damaged), bool(reasons), tuple(reasons),
        )  # fmt: skip
    return found


def _drills(ids: Collection[UUID]) -> dict[UUID, list[Any]]:
    """Each project's, by name, those that are no reason to worry left out: each with `last_word`, its own last verdict, since
    another one's success says nothing about it. One query."""
    verdicts = Proof.objects.filter(
        kind=ProofKind.DRILL, drill=OuterRef("pk"), state__in=[ProofState.PASSED, ProofState.FAILED]
    ).order_by("-created_at", "-id")
    rows = Drill.objects.filter(project__in=ids).annotate(last_word=Subquery(verdicts.values("state")[:1]))
    found: dict[UUID, list[Any]] = {}
    stalled = Q(stalled_since__isnull=False, next_run_at__isnull=False)  # a paused one is not expected to run
    for drill in rows.filter(Q(last_word=ProofState.FAILED) | stalled).order_by("name", "id"):
        found.setdefault(drill.project_id, []).append(drill)
    return found


def _stalled(drill: Drill) -> str:
    assert drill.stalled_since is not None  # noqa: S101 - for the type checker
    why = (drill.stalled_error or {}).get("detail") or "Nothing was recorded."
    return f"The drill “{drill.name}” could not run since {drill.stalled_since:%-d %b %Y, %H:%M} UTC: {why}"


def _missed(ids: Collection[UUID], without: Q, *, since: datetime) -> dict[UUID, int]:
    """Each project's slots from `since` on that made no backup. A run stands for what was missed before it: of
    that only the slots that are not before `since`, as the schedule is now. One query."""
    rows = (
        ScheduleRun.objects.filter(schedule__project__in=ids, due_at__gte=since)
        .order_by()
        .values_list(
            "schedule__project", "schedule", "schedule__cron", "schedule__time_zone", "missed",
            Case(When(missed__gt=0, then=F("due_at"))),
        )
        .annotate(number=Count("id", filter=without))
    )  # fmt: skip
    found: dict[UUID, int] = {}
    slots: dict[tuple[str, str, datetime], int] = {}  # many projects have the same schedule
    for pk, _schedule, cron, zone, before, due_at, number in rows:
        if before:
            key = (cron, zone, due_at)
            if key not in slots:
                slots[key] = schedules.missed(cron, zone, first=since, last=due_at)
            number += min(before, slots[key])
        found[pk] = found.get(pk, 0) + number
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
