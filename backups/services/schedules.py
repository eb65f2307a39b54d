"""Schedules of a project: made, changed, run by hand; and what their rules would remove."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from itertools import islice
from typing import Any
from uuid import UUID

from django.db import transaction

from accounts.models import Organization
from accounts.permissions import Capability, Principal, require
from accounts.services import audit
from backups.models import Backup, BackupTrigger, Schedule, StorageTarget
from backups.operations import dispatching, retaining, storages, taking
from backups.operations import schedules as times
from backups.retention import Rules
from novastack.common.clock import now
from novastack.common.errors import ActionNotAllowed, Invalid, NotFound, QuotaExceeded
from projects import domain, registry
from projects.models import DesiredStatus, Project
from projects.services.actions import lock_project

MOST = 10  # schedules of one project
RETENTION = retaining.RULES
MOST_KEPT = {"keep_last": 10_000, "keep_days": 36_500, "keep_daily": 3_650, "keep_weekly": 520, "keep_monthly": 120,
             "max_bytes": 2**53}  # fmt: skip
CHANGEABLE = ("cron", "preset", "time_zone", "enabled", "storage", "retention", "retention_paused")


def describe(cron: str, time_zone: str) -> str:
    """What it means, in plain English. `Invalid` with the field for what cron or the tz database doesn't know."""
    return times.describe(*_clean(cron, time_zone))


def next_runs(cron: str, time_zone: str, *, count: int = 5, after: datetime | None = None) -> list[datetime]:
    """The coming slots, UTC. `Invalid` with the field."""
    return list(islice(times.slots(*_clean(cron, time_zone), after=after or now()), count))


def _clean(cron: object, time_zone: object) -> tuple[str, str]:
    try:
        return times.clean_cron(cron), times.clean_zone(time_zone)
    except times.BadSchedule as error:
        raise Invalid.field(error.field, error.code, error.detail) from None


def paused_reason(schedule: Schedule) -> str:
    """Why its slots pass without a backup; empty: they don't."""
    project = schedule.project
    if not schedule.enabled:
        return "The schedule is paused."
    if project.desired_status in {DesiredStatus.RECYCLED, DesiredStatus.ABSENT}:
        return dispatching.DELETED
    return dispatching.STOPPED if project.desired_status != DesiredStatus.RUNNING else ""


@transaction.atomic
def schedule_create(
    *,
    principal: Principal,
    project: Project,
    cron: str | None = None,
    preset: str | None = None,
    time_zone: str = "UTC",
    enabled: bool = True,
    storage: StorageTarget | UUID | None = None,
    retention: Mapping[str, int | None] | None = None,
) -> Schedule:
    """Make one; `preset` stands for a cron expression and rules. Raises `Invalid` with the field, `NotFound` for a foreign
    storage, `BackupNotSupported`, `QuotaExceeded`, `ActionNotAllowed` for a deleted project."""
    require(principal, project.organization_id, Capability.PROJECT_CHANGE)
    cron, kept = _cron_and_rules(cron, preset, retention)
    cron, time_zone = _clean(cron, time_zone)
    project = lock_project(project)
    _refuse_gone(project)
    refuse_unsupported(project.engine)
    if Schedule.objects.filter(project=project).count() >= MOST:
        raise QuotaExceeded(f"A project has at most {MOST} schedules.")
    schedule = Schedule(
        project=project, organization_id=project.organization_id, cron=cron, time_zone=time_zone, enabled=enabled,
        storage=_storage(principal, project, storage), **kept,
    )  # fmt: skip
    _plan(schedule)
    schedule.save()
    _audit(principal, "schedule.created", schedule)
    return schedule


@transaction.atomic
def schedule_update(*, principal: Principal, schedule: Schedule, changes: Mapping[str, Any]) -> Schedule:
    """Change some of `cron, preset, time_zone, enabled, storage, retention`; rules that `retention` leaves out stay, null
    takes one away. `retention_paused=False` lets retention go on after it was stopped."""
    require(principal, schedule.organization_id, Capability.PROJECT_CHANGE)
    unknown = set(changes) - set(CHANGEABLE)
    if unknown:
        raise Invalid.field(min(unknown), "read_only", f"Only these can be changed: {', '.join(CHANGEABLE)}.")
    schedule = _locked(schedule)
    _refuse_gone(schedule.project)
    due = schedule.enabled and schedule.next_slot_at is not None and schedule.next_slot_at <= now()
    if "cron" in changes or "preset" in changes:
        cron, kept = _cron_and_rules(changes.get("cron"), changes.get("preset"), changes.get("retention"))
    else:
        cron, kept = schedule.cron, clean_retention(changes.get("retention") or {})
    schedule.cron, schedule.time_zone = _clean(cron, changes.get("time_zone", schedule.time_zone))
    for name, value in kept.items():
        setattr(schedule, name, value)
    schedule.enabled = changes.get("enabled", schedule.enabled)
    if "storage" in changes:
        schedule.storage = _storage(principal, schedule.project, changes["storage"])
    if "retention_paused" in changes:
        if changes["retention_paused"] is not False:
            raise Invalid.field("retention_paused", "invalid", "Only `false`: it is stopped by what was found.")
        schedule.retention_paused_reason = ""
    if {"cron", "preset", "time_zone", "enabled"} & set(changes):
        _plan(schedule, due=due and schedule.enabled)
    schedule.save()
    _audit(principal, "schedule.changed", schedule, fields=sorted(changes))
    return schedule


@transaction.atomic
def schedule_delete(*, principal: Principal, schedule: Schedule) -> None:
    """No further runs. What it made stays, and is nobody's to remove by a clock any more."""
    require(principal, schedule.organization_id, Capability.PROJECT_CHANGE)
    schedule = _locked(schedule)
    Backup.objects.filter(schedule=schedule).update(due_since=None)
    _audit(principal, "schedule.deleted", schedule)
    schedule.delete()


@transaction.atomic
def schedule_run(*, principal: Principal, schedule: Schedule) -> Backup:
    """One backup now, as the schedule would take it; its slots stay as they are. Raises as `backup_create` does."""
    require(principal, schedule.organization_id, Capability.PROJECT_ACT)
    project = schedule.project
    _refuse_gone(project)
    if project.ready_at is None or project.desired_status != DesiredStatus.RUNNING:
        raise ActionNotAllowed("Only a running project can be backed up.")
    backup = taking.backup_begin(  # locks organization and project, in this order
        project, trigger=BackupTrigger.SCHEDULE, storage=schedule.storage, schedule=schedule,
        created_by=principal.user, created_by_label=principal.label,
    )  # fmt: skip
    _audit(principal, "schedule.run", schedule, backup=str(backup.pk))
    return backup


def retention_preview(
    *, principal: Principal, schedule: Schedule, retention: Mapping[str, int | None] | None = None
) -> retaining.Look:
    """What its rules would keep and remove, or those rules; changes nothing."""
    require(principal, schedule.organization_id, Capability.PROJECT_VIEW)
    if retention is None:
        return retaining.look(schedule)
    changed = {name: getattr(schedule, name) for name in RETENTION} | clean_retention(retention)
    return retaining.look(schedule, Rules(**changed, time_zone=schedule.time_zone))


@transaction.atomic
def retention_apply(*, principal: Principal, schedule: Schedule, seen: str | None = None) -> retaining.Look:
    """Remove now what no rule keeps, however many: the answer when the clock stopped and asked. `seen`: the digest of the
    look that somebody agreed to; `RetentionChanged` if it would be others now."""
    require(principal, schedule.organization_id, Capability.PROJECT_DELETE)
    found = retaining.apply(schedule.pk, by_hand=principal.label, seen=seen)
    _audit(principal, "backup.retention_applied", schedule, removed=len(found.removed))
    return found


NO_STORAGE = "There is no storage for backups yet; add one first."


def lacks_for_new_project(organization: Organization, engine_name: str) -> str:
    """Why `for_new_project` would refuse, for people; empty: it would not."""
    engine = registry.engine(engine_name)
    if domain.Capability.COPY not in engine.capabilities:
        return f"Backups of {engine.title} are not supported."
    return "" if storages.default_target(organization.pk) is not None else NO_STORAGE


def for_new_project(principal: Principal, project: Project) -> None:
    """“Backups on”: daily, in the zone of who asks. In the transaction that makes the project."""
    refuse_unsupported(project.engine, field="backups")
    if storages.default_target(project.organization_id) is None:
        raise Invalid.field("backups", "no_storage", NO_STORAGE)
    zone = getattr(principal.user, "time_zone", "") or "UTC"
    schedule_create(
        principal=principal, project=project, preset="daily", time_zone=zone if zone in times.zones() else "UTC"
    )


def clean_retention(retention: Mapping[str, Any], *, field: str = "retention") -> dict[str, int | None]:
    """Whole numbers; 0 and null: no such rule. `Invalid` with the field."""
    kept: dict[str, int | None] = {}
    for name, value in retention.items():
        if name not in RETENTION:
            raise Invalid.field(f"{field}.{str(name)[:40]}", "unknown", f"Rules are {', '.join(RETENTION)}.")
        whole = isinstance(value, int) and not isinstance(value, bool)
        if value is not None and not (whole and 0 <= value <= MOST_KEPT[name]):
            raise Invalid.field(f"{field}.{name}", "out_of_range", f"A whole number up to {MOST_KEPT[name]}, or null.")
        kept[name] = value or None
    return kept


def refuse_unsupported(engine_name: str, *, field: str = "") -> None:
    engine = registry.engine(engine_name)
    if domain.Capability.COPY in engine.capabilities:
        return
    text = f"Backups of {engine.title} are not supported."
    raise Invalid.field(field, "not_supported", text) if field else taking.BackupNotSupported(text)


def cron_of(cron: str | None, preset: str | None) -> str:
    """The expression that either of them stands for. `Invalid` with the field."""
    return _cron_and_rules(cron, preset, None)[0]


def refuse_rules(wanted: Mapping[str, Any]) -> None:
    """What is removed is removed by the schedule's own rules, which are changed on the schedule."""
    if "retention" in wanted:
        raise Invalid.field("retention", "invalid", "Only with `dry_run`: change the schedule's own rules first.")


def _cron_and_rules(
    cron: str | None, preset: str | None, retention: Mapping[str, Any] | None
) -> tuple[str, dict[str, int | None]]:
    if (cron is None) == (preset is None):
        raise Invalid.field("cron", "required", "Give either `cron` or a `preset`.")
    if preset is None:
        return str(cron), clean_retention(retention or {})
    known = times.PRESETS.get(preset)
    if known is None:
        raise Invalid.field("preset", "unknown", f"Use one of: {', '.join(times.PRESETS)}.")
    rules = {name: known.retention.get(name) for name in RETENTION}
    return known.cron, rules if retention is None else {**dict.fromkeys(RETENTION), **clean_retention(retention)}


def _storage(principal: Principal, project: Project, storage: StorageTarget | UUID | None) -> StorageTarget | None:
    if storage is None:
        return None
    key = storage.pk if isinstance(storage, StorageTarget) else storage
    found: StorageTarget | None = StorageTarget.objects.for_principal(principal).filter(pk=key).first()
    if found is None or found.organization_id not in {None, project.organization_id}:
        raise NotFound.field("storage", "There is no such storage here.")
    return found


def _plan(schedule: Schedule, *, due: bool = False) -> None:
    """`due`: its slot has come, and waits for its spread or for somebody to be there. That one is run whatever it was
    changed to; else a change in the hour after a slot would take a day's backup away, and nobody would see it."""
    moment = now()
    schedule.spread_seconds = times.spread_of(schedule.pk, schedule.cron, schedule.time_zone, at=moment)
    if not due:
        dispatching.plan_next(schedule, after=moment)


def _locked(schedule: Schedule) -> Schedule:
    """Fresh, with its project, both locked in this order. `NotFound` when it is gone."""
    lock_project(schedule.project)
    rows = Schedule.objects.select_for_update(of=("self",), no_key=True).select_related(
        "project__organization", "project__plan", "project__region", "storage"
    )
    found = rows.filter(pk=schedule.pk).first()
    if found is None:
        raise NotFound
    return found


def _refuse_gone(project: Project) -> None:
    if project.desired_status in {DesiredStatus.RECYCLED, DesiredStatus.ABSENT}:
        raise ActionNotAllowed("The project is deleted: nothing is backed up.")


def _audit(principal: Principal, action: str, schedule: Schedule, **data: Any) -> None:
    project = schedule.project
    audit.record(
        principal, action, organization=project.organization, project_id=project.pk, project_name=project.name,
        target=str(schedule), data={"schedule": str(schedule.pk), **data},
    )  # fmt: skip
