"""What is due is begun: schedules by their `next_run_at`, many with a few statements, each slot once.

Two at once share the work, since rows that another one holds are left to it; a slot has one row (`run_once_per_slot`)
whoever looks. After a time without any of us each schedule catches up with one run, not with one per slot that was missed.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TypeVar
from uuid import UUID

import structlog
from django.db import connection, transaction
from django.db.models import Count, Q, QuerySet, Sum

from accounts.models import Organization, QuotaDefaults
from backups.models import Backup, BackupStatus, BackupTrigger, RunOutcome, Schedule, ScheduleRun, StorageTarget
from backups.operations import schedules
from backups.operations.queueing import subject_of
from backups.operations.taking import KIND
from backups.retention import AHEAD
from novastack.common.clock import now
from novastack.common.models import BaseModel, Install
from projects import domain, registry
from projects.models import DesiredStatus, LockMode, Operation, OperationLock, Project
from projects.operations import bulk, locks

log = structlog.get_logger(__name__)
Row = TypeVar("Row", bound=BaseModel)

BATCH = 250
BUSY_SECONDS = 60  # a project that somebody works on is asked for again after this
UNENDED = (BackupStatus.QUEUED, BackupStatus.DUMPING)
STOPPED = "The project is stopped."
DELETED = "The project is deleted."
NOT_READY = "The database has not been made yet."
STILL_RUNNING = "The backup before is still being taken."
NO_STORAGE = "There is no storage for it: add one, or make one the default."
QUOTA = "The organization's quota of backups is used up."


@dataclass(slots=True)
class Dispatched:
    started: int = 0
    skipped: int = 0
    failed: int = 0
    busy: int = 0


@dataclass(frozen=True, slots=True)
class _Slot:
    """What one schedule is due for: the latest slot that has come, however many were missed."""

    schedule: Schedule
    project: Project
    due_at: datetime
    missed: int


@dataclass(slots=True)
class _Room:
    """What an organization may still store."""

    backups: int
    backup_bytes: int


@dataclass(slots=True)
class _Batch:
    runs: list[ScheduleRun] = field(default_factory=list)
    backups: list[Backup] = field(default_factory=list)
    operations: list[tuple[Operation, Project]] = field(default_factory=list)
    locks: list[OperationLock] = field(default_factory=list)
    busy: list[UUID] = field(default_factory=list)


def dispatch_due(*, batches: int = 40) -> Dispatched:
    """Begin what is due now, batch by batch; what is left is begun by the next tick. A read-only install begins
    nothing, and catches up later."""
    done = Dispatched()
    if Install.load().read_only:
        return done
    set_right()
    moment = now()
    for _ in range(batches):
        with transaction.atomic():
            looked_at = _dispatch(moment, done)
        if looked_at < BATCH:
            break
    return done


def set_right() -> int:
    """Schedules that ran, or were planned, in the future, by a clock that was wrong, would be silent until then: they are due
    from now on again. What runs then still has one row a slot."""
    moment = now()
    planned = Q(updated_at__gt=moment + AHEAD, next_run_at__gt=moment)  # what is due is begun
    ahead = Schedule.objects.filter(Q(last_slot_at__gt=moment + AHEAD) | planned)
    with transaction.atomic():
        rows = list(ahead.select_for_update(skip_locked=True, of=("self",))[:1000])
        if not rows:
            return 0
        for schedule in rows:
            if schedule.last_slot_at is not None and schedule.last_slot_at > moment + AHEAD:
                schedule.last_slot_at = None
            plan_next(schedule, after=moment)
        save_plans(rows)
    log.warning("the clock was ahead: schedules are set right", schedules=len(rows))
    return len(rows)


def plan_next(schedule: Schedule, *, after: datetime) -> None:
    """When it is due next; nothing is saved. Never a slot again that was run."""
    if not schedule.enabled:
        schedule.next_slot_at = schedule.next_run_at = None
        return
    since = max(after, schedule.last_slot_at) if schedule.last_slot_at is not None else after
    slot = schedules.next_slot(schedule.cron, schedule.time_zone, after=since)
    schedule.next_slot_at = slot
    schedule.next_run_at = slot + timedelta(seconds=schedule.spread_seconds) if slot is not None else None


def save_plans(rows: Sequence[Schedule]) -> None:
    """`next_slot_at`, `next_run_at` and `last_slot_at` of many, in one statement."""
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE backups_schedule s SET next_slot_at = v.slot, next_run_at = v.run, last_slot_at = v.last, updated_at = %s"
            " FROM unnest(%s::uuid[], %s::timestamptz[], %s::timestamptz[], %s::timestamptz[]) AS v(id, slot, run, last)"
            " WHERE s.id = v.id",
            [
                now(), [row.pk for row in rows], [row.next_slot_at for row in rows],
                [row.next_run_at for row in rows], [row.last_slot_at for row in rows],
            ],
        )  # fmt: skip


def _dispatch(moment: datetime, done: Dispatched) -> int:
    """One batch, in a transaction; returns how many were found due. Organizations, projects, schedules: the order of
    everybody, and nobody is waited for."""
    due = Schedule.objects.filter(enabled=True, next_run_at__lte=moment)
    found = list(due.order_by("next_run_at").values_list("pk", "project_id", "organization_id")[:BATCH])
    if not found:
        return 0
    organizations = _locked(Organization.objects.filter(pk__in={row[2] for row in found}))
    projects = _locked(
        Project.objects.filter(pk__in={row[1] for row in found}, organization__in=organizations).select_related(
            "region"
        )
    )
    rows = _locked(due.filter(pk__in=[row[0] for row in found], project__in=projects))
    slots = [_slot(schedule, projects[schedule.project_id], moment) for schedule in rows.values()]
    batch = _decide(slots, organizations, done)
    _write(batch)
    left = set(batch.busy)
    for slot in slots:
        if slot.schedule.pk in left:
            slot.schedule.next_run_at = moment + timedelta(seconds=BUSY_SECONDS)
        else:
            slot.schedule.last_slot_at = slot.due_at
            plan_next(slot.schedule, after=moment)
    save_plans([slot.schedule for slot in slots])
    done.busy += len(left)
    return len(found) if rows else 0


def _locked(rows: QuerySet[Row]) -> dict[UUID, Row]:
    """Those that nobody else holds, locked, by id."""
    free = rows.select_for_update(skip_locked=True, no_key=True, of=("self",)).order_by("pk")
    return {row.pk: row for row in free}


def _slot(schedule: Schedule, project: Project, moment: datetime) -> _Slot:
    planned = schedule.next_slot_at or moment
    latest = schedules.latest_slot(schedule.cron, schedule.time_zone, upto=moment)
    due_at = max(planned, latest) if latest is not None else planned
    count = schedules.missed(schedule.cron, schedule.time_zone, first=planned, last=due_at) if due_at > planned else 0
    return _Slot(schedule, project, due_at, count)


def _decide(slots: Sequence[_Slot], organizations: dict[UUID, Organization], done: Dispatched) -> _Batch:
    """What becomes of each; a constant number of queries."""
    batch = _Batch()
    keys = [slot.schedule.pk for slot in slots]
    had = set(
        ScheduleRun.objects.filter(schedule__in=keys, due_at__in={slot.due_at for slot in slots})
        .values_list("schedule_id", "due_at")
    )  # fmt: skip
    running = set(Backup.objects.filter(schedule__in=keys, status__in=UNENDED).values_list("schedule_id", flat=True))
    free = bulk.free_projects([slot.project for slot in slots], alone="dump")
    defaults = _defaults(organizations)
    chosen = StorageTarget.objects.in_bulk({slot.schedule.storage_id for slot in slots if slot.schedule.storage_id})
    rooms = rooms_of(organizations.values())
    for slot in slots:
        schedule, project = slot.schedule, slot.project
        if (schedule.pk, slot.due_at) in had:
            continue
        if why := _skipped(slot, running):
            done.skipped += 1
            batch.runs.append(_run(slot, RunOutcome.SKIPPED, why))
            continue
        if project.pk not in free:
            batch.busy.append(schedule.pk)
            continue
        storage = chosen.get(schedule.storage_id) if schedule.storage_id else defaults.get(schedule.organization_id)
        room = rooms[schedule.organization_id]
        if storage is None or storage.read_only_reason or room.backups < 1 or room.backup_bytes <= 0:
            why = NO_STORAGE if storage is None else storage.read_only_reason or QUOTA
            done.failed += 1
            batch.runs.append(_run(slot, RunOutcome.FAILED, why))
            continue
        room.backups -= 1
        _begin(slot, storage, batch)
        free.discard(project.pk)  # one at a time of a project: its other schedules are next
        done.started += 1
    return batch


def _skipped(slot: _Slot, running: Collection[UUID]) -> str:
    """Why nothing is begun in this slot; empty: it is."""
    project = slot.project
    if project.desired_status in {DesiredStatus.RECYCLED, DesiredStatus.ABSENT} or project.purging_at is not None:
        return DELETED
    if project.desired_status != DesiredStatus.RUNNING:
        return STOPPED
    if project.ready_at is None:
        return NOT_READY
    engine = registry.engine(project.engine)
    if domain.Capability.COPY not in engine.capabilities:
        return f"Backups of {engine.title} are not supported."
    return STILL_RUNNING if slot.schedule.pk in running else ""


def _run(slot: _Slot, outcome: str, detail: str, backup: UUID | None = None) -> ScheduleRun:
    more = f"{slot.missed} missed before" if slot.missed else ""
    text = f"{detail} ({more})" if detail and more else detail or more
    return ScheduleRun(
        schedule=slot.schedule, due_at=slot.due_at, outcome=outcome, detail=text[:300], backup_uuid=backup,
        missed=slot.missed,
    )  # fmt: skip


def _begin(slot: _Slot, storage: StorageTarget, batch: _Batch) -> None:
    project = slot.project
    backup = Backup(
        organization_id=project.organization_id, project_uuid=project.pk, project_name=project.name,
        project_slug=project.slug, engine=project.engine, version=project.version, trigger=BackupTrigger.SCHEDULE,
        schedule=slot.schedule, storage=storage, encrypted=storage.encrypt, created_by_label="schedule",
    )  # fmt: skip
    operation = Operation(params={"backup": str(backup.pk), "verify": True})
    backup.operation_id = operation.pk
    batch.backups.append(backup)
    batch.operations.append((operation, project))
    # As `taking.backup_begin` does: the dump tool's login is one per project.
    for subject, mode in (
        (locks.subject_of("dump", project.pk), LockMode.EXCLUSIVE),
        (subject_of(backup), LockMode.SHARED),
    ):
        batch.locks.append(OperationLock(operation=operation, subject=subject, mode=mode, granted=True))
    batch.runs.append(_run(slot, RunOutcome.STARTED, "", backup.pk))


def _write(batch: _Batch) -> None:
    ScheduleRun.objects.bulk_create(batch.runs)
    if batch.backups:
        Backup.objects.bulk_create(batch.backups)
        bulk.shared_operations_create(KIND, batch.operations, batch.locks, created_by_label="schedule")


def _defaults(organizations: Collection[UUID]) -> dict[UUID, StorageTarget]:
    """Where backups of each go: its own default, else the install's."""
    rows = list(StorageTarget.objects.filter(Q(organization=None) | Q(organization__in=organizations), is_default=True))
    everybodys = next((row for row in rows if row.organization_id is None), None)
    own = {row.organization_id: row for row in rows}
    found = {pk: own.get(pk, everybodys) for pk in organizations}
    return {pk: row for pk, row in found.items() if row is not None}


def rooms_of(organizations: Collection[Organization]) -> dict[UUID, _Room]:
    """What is left of their quotas; their rows are locked."""
    defaults = QuotaDefaults.load()
    used = {
        row["organization_id"]: row
        for row in Backup.objects.filter(organization_id__in=[o.pk for o in organizations])
        .values("organization_id")
        .annotate(backups=Count("id", filter=~Q(status=BackupStatus.FAILED)), backup_bytes=Sum("size_bytes", default=0))
        .order_by()
    }
    found = {}
    for organization in organizations:
        limits, has = organization.quotas(defaults), used.get(organization.pk, {"backups": 0, "backup_bytes": 0})
        found[organization.pk] = _Room(
            limits["max_backups"] - has["backups"], limits["max_backup_bytes"] - int(has["backup_bytes"] or 0)
        )
    return found
