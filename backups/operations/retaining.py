"""Retention: what a schedule's rules no longer keep goes, by the clock, and therefore slowly (rules 8 and 33)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from uuid import UUID

import structlog
from django.db import transaction
from django.db.models import Q

from accounts.services import audit
from backups.models import MISSING, THERE, Backup, BackupStatus, BackupTrigger, Restore, RestoreStatus, Schedule
from backups.operations import deleting, safety
from backups.retention import AHEAD, Content, Item, Rules, State, Verdict, decide, most_at_once, shrank
from novastack.common.clock import now
from novastack.common.errors import Conflict, OperationInProgress
from novastack.common.models import Install
from projects.models import OperationLock, Project
from projects.operations import locks

log = structlog.get_logger(__name__)

TWO_LOOKS = timedelta(hours=20)  # between two daily looks, whatever the minute
RULES = ("keep_last", "keep_days", "keep_daily", "keep_weekly", "keep_monthly", "max_bytes")
STATES = {
    BackupStatus.QUEUED: State.UNDER_WAY, BackupStatus.DUMPING: State.UNDER_WAY, BackupStatus.STORED: State.WHOLE,
    BackupStatus.VERIFYING: State.WHOLE, BackupStatus.VERIFIED: State.WHOLE, BackupStatus.FAILED: State.FAILED,
    BackupStatus.CORRUPT: State.CORRUPT,
}  # fmt: skip
BY_CLOCK = "retention"


@dataclass(frozen=True, slots=True)
class Look:
    """One schedule's backups with a verdict each, newest first. `refusal`: why the clock removes nothing."""

    verdicts: list[Verdict]
    rows: dict[UUID, Backup]
    removed: list[Backup] = field(default_factory=list)
    refusal: str = ""

    def due(self, moment: datetime) -> list[Backup]:
        """Those that nothing keeps, and that nothing kept at an earlier look either."""
        return [row for row in self.going if row.due_since is not None and row.due_since <= moment - TWO_LOOKS]

    @property
    def going(self) -> list[Backup]:
        return [self.rows[v.item.id] for v in self.verdicts if not v.keep]

    @property
    def digest(self) -> str:
        """Of what goes: the same as long as it is the same backups."""
        names = sorted(str(row.pk) for row in self.going)
        return hashlib.sha256(" ".join(names).encode()).hexdigest()


class RetentionChanged(Conflict):
    """Not what somebody was shown, and agreed to, any more."""

    code, title = "retention_changed", "Other backups would be removed than were shown"


def rules_of(schedule: Schedule) -> Rules:
    return Rules(**{name: getattr(schedule, name) for name in RULES}, time_zone=schedule.time_zone)


def look(schedule: Schedule, rules: Rules | None = None) -> Look:
    """What its rules, or others, would keep of what it made. Changes nothing."""
    mine = Backup.objects.filter(schedule=schedule).exclude(status=BackupStatus.DELETING)
    rows = {row.pk: row for row in mine.defer("manifest")}
    used = _used(rows)
    items = [
        Item(
            row.pk, row.created_at, row.size_bytes or 0, _state(row),
            verified=row.verified_at is not None, pinned=row.pinned, in_use=row.pk in used,
        )
        for row in rows.values()
    ]  # fmt: skip
    return Look(decide(items, rules or rules_of(schedule), now=now()), rows)


def _state(row: Backup) -> State:
    state = STATES[BackupStatus(row.status)]
    return State.GONE if state is State.WHOLE and row.missing else state


def _used(rows: dict[UUID, Backup]) -> set[UUID]:
    """Those that an operation holds or waits for, and those of a restore that has not ended."""
    subjects = {deleting.subject_of(row): pk for pk, row in rows.items()}
    held = OperationLock.objects.filter(subject__in=subjects).values_list("subject", flat=True)
    restores = Restore.objects.filter(status__in=[RestoreStatus.QUEUED, RestoreStatus.RUNNING, RestoreStatus.UNDOING])
    restored = restores.filter(Q(backup__in=rows) | Q(safety_backup__in=rows)).values_list("backup", "safety_backup")
    return {subjects[subject] for subject in held} | {pk for pair in restored for pk in pair if pk in rows}


@transaction.atomic
def apply(schedule_id: UUID, *, by_hand: str = "", seen: str | None = None) -> Look:
    """Pick and mark in one transaction, under the project's lock, with everything read anew. By the clock only what was
    due at two daily looks, and few at once; else it stops and says so in `retention_paused_reason`. `by_hand` (who) is the
    answer to that: all that nothing keeps goes now, and the clock goes on; with `seen` (a `Look.digest`) only if it is what
    they were shown, else `RetentionChanged`."""
    project_id = Schedule.objects.values_list("project_id", flat=True).get(pk=schedule_id)
    project = Project.objects.select_for_update(of=("self",), no_key=True).get(pk=project_id)
    locks.lock_subject(locks.subject_of("project", project_id))  # who pins a backup does it under this
    schedule = Schedule.objects.select_for_update(no_key=True, of=("self",)).get(pk=schedule_id)
    compare(project, paused_for=None if by_hand else schedule)
    found, moment = look(schedule), now()
    if by_hand:
        if seen is not None and seen != found.digest:
            raise RetentionChanged("It is no longer what you were shown: look again, then decide.")
        picked, schedule.retention_paused_reason = found.going, ""
    else:
        if schedule.retention_paused_reason:
            return Look(found.verdicts, found.rows, refusal=schedule.retention_paused_reason)
        picked = found.due(moment)
        refusal = _too_many(schedule, found, picked)
        if refusal:
            schedule.retention_paused_reason = refusal[:300]
            schedule.save(update_fields=["retention_paused_reason", "updated_at"])
            _alert(project, "backup.retention_stopped", str(schedule), {"reason": refusal})
            return Look(found.verdicts, found.rows, refusal=refusal)
    removed = [row for row in picked if _remove(row, by_hand)]
    _remember(found, moment)
    schedule.retention_at = moment
    schedule.save(update_fields=["retention_at", "retention_paused_reason", "updated_at"])
    return Look(found.verdicts, found.rows, removed)


def _too_many(schedule: Schedule, found: Look, picked: Sequence[Backup]) -> str:
    came, since = 0, schedule.retention_at
    if since is not None:  # what is dated in the future takes nobody's place
        came = sum(1 for row in found.rows.values() if since < row.created_at <= now() + AHEAD)
    most = most_at_once(len(found.rows), came=came)
    if len(picked) <= most:
        return ""
    return (
        f"{len(picked)} of {len(found.rows)} backups are due at once, and at most {most} go by the clock: nothing was removed."
        " Look at them, and apply retention by hand if it is right."
    )


def _remember(found: Look, moment: datetime) -> None:
    """Since when nothing keeps each. A moment in the future was a clock's that was wrong."""
    going = {row.pk for row in found.going}
    new = [row for row in found.rows.values() if row.pk in going and (row.due_since is None or row.due_since > moment)]
    kept = [row for row in found.rows.values() if row.pk not in going and row.due_since is not None]
    for rows, value in ((new, moment), (kept, None)):
        if rows:
            Backup.objects.filter(pk__in=[row.pk for row in rows]).update(due_since=value)
            for row in rows:
                row.due_since = value


def _remove(row: Backup, by_hand: str) -> bool:
    try:
        with transaction.atomic():
            deleting.delete_begin(row, created_by_label=by_hand or BY_CLOCK, reason="retention", queue_behind=False)
    except OperationInProgress:  # somebody began to use it since: it stays
        return False
    return True


# --- rule 33 --------------------------------------------------------------------------------------------------------------
def compare(project: Project, *, paused_for: Schedule | None = None) -> str:
    """Each newly verified backup of the project against the verified one before. When half of it is gone, the one before
    is pinned, retention stops for all schedules of the project, and somebody is told. Once for each. In a transaction that
    holds the project; returns why, empty if nothing is wrong. `paused_for` is told as well, as it is in memory."""
    verified = Backup.objects.filter(project_uuid=project.pk, verified_at__isnull=False, status__in=_PROVEN)
    verified = verified.exclude(trigger=BackupTrigger.UPLOAD).defer("manifest")  # that is other data
    fresh = list(verified.filter(compared_at=None).order_by("created_at", "id"))
    why = ""
    for row in fresh:
        before = verified.filter(created_at__lt=row.created_at).order_by("-created_at", "-id").first()
        if before is None:
            continue
        found = shrank(Content(before.rows, before.dump_bytes), Content(row.rows, row.dump_bytes))
        if found:
            why = _suspicious(project, before, row, found)
    Backup.objects.filter(pk__in=[row.pk for row in fresh]).update(compared_at=now())
    if why and paused_for is not None:
        paused_for.retention_paused_reason = why
    return why


_PROVEN = (BackupStatus.VERIFIED, BackupStatus.VERIFYING)  # the latter: proven before, and again now


def _suspicious(project: Project, before: Backup, after: Backup, found: str) -> str:
    reason = f"The backup of {after.created_at:%Y-%m-%d %H:%M} UTC holds {found}."
    if not before.pinned:
        Backup.objects.filter(pk=before.pk).update(pinned=True, pinned_reason=reason[:200], updated_at=now())
    paused = f"{reason} The one before is pinned, and nothing is removed until somebody has looked."
    Schedule.objects.filter(project=project).update(retention_paused_reason=paused[:300], updated_at=now())
    _alert(project, "backup.shrank", str(after), {"backup": str(after.pk), "before": str(before.pk), "reason": found})
    return paused[:300]


def _alert(project: Project, action: str, target: str, data: dict[str, str]) -> None:
    audit.record(
        None, action, organization_id=project.organization_id, project_id=project.pk, project_name=project.name,
        target=target, data=data,
    )  # fmt: skip
    log.error("backups need a look", action=action, project=str(project.pk), reason=data["reason"])


@transaction.atomic
def verified(backup: Backup) -> str:
    """A backup was just proven: look at its size at once. What it finds is as `compare` says."""
    project = Project.objects.select_for_update(of=("self",), no_key=True).filter(pk=backup.project_uuid).first()
    return compare(project) if project is not None else ""


# --- the daily tick -------------------------------------------------------------------------------------------------------
def daily() -> int:
    """Once in 20 hours however often it is called: retention of every schedule that has rules, then what outlived its
    project. Returns how many are removed."""
    Install.load()
    with transaction.atomic():
        install = Install.objects.select_for_update().get(pk=1)
        last = install.notes.get("backups_kept_at", "")
        if install.read_only or (last and (now() - TWO_LOOKS).isoformat() < last <= now().isoformat()):
            return 0
        Install.merge_notes(backups_kept_at=now().isoformat())
    any_rule = Q()
    for name in RULES:
        any_rule |= Q(**{f"{name}__isnull": False})
    removed = 0
    for pk in Schedule.objects.filter(any_rule).values_list("pk", flat=True):
        try:
            removed += len(apply(pk).removed)
        except Schedule.DoesNotExist:  # it went with its project since
            continue
        except Exception as error:  # nobody expected it: it is this schedule's alone
            log.error("retention of a schedule broke", schedule=str(pk), error=type(error).__name__, exc_info=error)
    safety.let_go()
    return removed + expire()


def expire() -> int:
    """Backups of removed projects whose days are over: those due at two daily looks, and at most max(3, 5 %) of all at
    once, else none, and the note says so (rule 8). What a person pinned stays. Then safety backups of living projects."""
    moment = now()
    with transaction.atomic():
        left = Backup.objects.exclude(status=BackupStatus.DELETING)
        over = left.filter(_FREE, keep_until__lte=moment).exclude(
            project_uuid__in=Project.objects.values_list("pk", flat=True)
        )
        over = over.defer("manifest").order_by("keep_until")
        rows = list(over.select_for_update(skip_locked=True, of=("self",)))
        total, used = left.count(), _used({row.pk: row for row in rows})
        fresh = [row.pk for row in rows if row.due_since is None or row.due_since > moment]
        Backup.objects.filter(pk__in=fresh).update(due_since=moment)
        due = [r for r in rows if r.due_since is not None and r.due_since <= moment - TWO_LOOKS and r.pk not in used]
        most = most_at_once(total)
        refusal = ""
        if len(due) > most:
            refusal = (
                f"{len(due)} of {total} backups outlived their projects and their days, and at most {most} go by the clock:"
                " remove them by hand."
            )
            log.error("backups of removed projects not removed", reason=refusal)
            due = []
        Install.merge_notes(backups_expired_refused=refusal)
    return sum(_expire(row) for row in [*due, *_safety_due(moment)])


_FREE = Q(pinned=False) | safety.OURS


def _safety_due(moment: datetime) -> list[Backup]:
    """Safety backups of living projects that were let go, and whose days are over at two daily looks; those that waited
    longest, few at once. Never a project's last verified one, nor what was missed in its storage: a folder that is not
    mounted looks the same, and comes back (`State.GONE`)."""
    let_go = Backup.objects.filter(trigger=BackupTrigger.SAFETY, pinned=False, keep_until__lte=moment)
    let_go = let_go.filter(project_uuid__in=Project.objects.values_list("pk", flat=True))
    let_go = let_go.exclude(status__in=[BackupStatus.DELETING, BackupStatus.CORRUPT])
    rows: list[Backup] = [*let_go.filter(THERE).order_by("keep_until")[:500]]
    if not rows:
        return []
    fresh = [row.pk for row in rows if row.due_since is None or row.due_since > moment]
    Backup.objects.filter(pk__in=fresh).update(due_since=moment)
    stay = _used({row.pk: row for row in rows}) | _last_verified({row.project_uuid for row in rows})
    due = [r for r in rows if r.due_since is not None and r.due_since <= moment - TWO_LOOKS and r.pk not in stay]
    return due[: most_at_once(Backup.objects.exclude(status=BackupStatus.DELETING).count())]


def _last_verified(projects: set[UUID]) -> set[UUID]:
    rows = Backup.objects.filter(project_uuid__in=projects, verified_at__isnull=False, status__in=_PROVEN)
    rows = rows.filter(created_at__lte=now() + AHEAD)  # how old the others are nobody knows
    # One whose object was missed is nothing to fall back on.
    rows = rows.filter(THERE).exclude(trigger=BackupTrigger.UPLOAD)
    newest = rows.order_by("project_uuid", "-created_at", "-id").distinct("project_uuid")
    return set(newest.values_list("pk", flat=True))


def _expire(row: Backup) -> int:
    """Remove it, if it still may go now that nobody else works on its project's backups."""
    try:
        with transaction.atomic():
            locks.lock_subject(locks.subject_of("project", row.project_uuid))
            if not Backup.objects.filter(_FREE, pk=row.pk, keep_until__lte=now()).exists():
                return 0
            reason = "outlived its project"
            if Project.objects.filter(pk=row.project_uuid).exists():
                missed = Backup.objects.filter(MISSING, pk=row.pk).exists()
                if missed or row.pk in _last_verified({row.project_uuid}):
                    return 0
                reason = "its restore is over"
            deleting.delete_begin(row, created_by_label=BY_CLOCK, reason=reason, queue_behind=False)
    except (OperationInProgress, Backup.DoesNotExist):
        return 0
    return 1
