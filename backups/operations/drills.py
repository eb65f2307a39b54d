"""Drills: the newest backup is restored and the user's own questions are asked of it, by hand or by a schedule."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import structlog
from django.db import transaction
from django.db.models.functions import Coalesce

from backups.models import THERE, Backup, BackupStatus, BackupTrigger, Drill, Proof, ProofKind
from backups.operations import proving, schedules, stalls
from backups.retention import AHEAD
from novastack.common.clock import database_now, now
from novastack.common.errors import Conflict, OperationInProgress
from novastack.common.models import Install
from projects.models import DesiredStatus, Operation, Project

log = structlog.get_logger(__name__)
AT_ONCE = 50  # of a tick
REVERIFIED_AT_ONCE = 10
LATE = timedelta(hours=6)  # a slot that was missed for longer waits for the next one
AGAIN = timedelta(minutes=10)  # where somebody is at work on its backup
LABEL = "schedule"


class NothingToRestore(Conflict):
    code, title = "no_backup", "There is no backup that could be restored"


def newest(project_id: UUID) -> Backup | None:
    """The newest verified one; without any the newest that is stored. One whose object was missed comes last."""
    rows = Backup.objects.filter(project_uuid=project_id, trusted=True, delete_requested_at=None).select_related(
        "storage"
    )
    rows = rows.filter(
        created_at__lte=now() + AHEAD
    )  # later ones a wrong clock has dated: nobody knows how old they are
    rows = rows.exclude(trigger=BackupTrigger.UPLOAD).order_by(Coalesce("started_at", "created_at").desc())
    for some in (rows.filter(THERE), rows):
        for status in (BackupStatus.VERIFIED, BackupStatus.STORED):
            if (found := some.filter(status=status).first()) is not None:
                return found
    return None


def run_begin(drill: Drill, *, created_by: Any = None, created_by_label: str) -> Operation:
    """Restore the newest backup and ask. In a transaction. Raises `NothingToRestore` and as `proving.verify_begin`."""
    backup = newest(drill.project_id)
    if backup is None:
        raise NothingToRestore("Take a backup first: there is none that could be restored.")
    return proving.verify_begin(
        backup, kind=ProofKind.DRILL, drill=drill, created_by=created_by, created_by_label=created_by_label
    )


def next_run(drill: Drill, after: datetime) -> datetime | None:
    """When it runs by itself after that; None: never."""
    if not drill.enabled or not drill.cron:
        return None
    return schedules.next_slot(drill.cron, drill.time_zone, after=after)


def dispatch_due() -> int:
    """Begin the drills that are due, each slot once; returns how many were begun."""
    if Install.load().read_only:
        return 0
    set_right()
    moment, begun = now(), 0
    due = Drill.objects.filter(next_run_at__lte=moment).order_by("next_run_at").values_list("pk", "project_id")
    for pk, project_id in list(due[:AT_ONCE]):
        with transaction.atomic():
            # Project, drill, subjects: as at the end of a run, which puts its word down with the drill.
            free = Project.objects.select_for_update(of=("self",), no_key=True, skip_locked=True).filter(pk=project_id)
            if not free.values_list("pk"):
                continue
            drill = (
                Drill.objects.select_for_update(of=("self",), no_key=True, skip_locked=True).select_related("project")
                .filter(pk=pk, next_run_at__lte=moment).first()
            )  # fmt: skip
            if drill is None:
                continue
            slot = drill.next_run_at
            drill.last_slot_at, drill.next_run_at = slot, next_run(drill, moment)
            drill.save(update_fields=["last_slot_at", "next_run_at", "updated_at"])
            wanted = drill.project.desired_status in {DesiredStatus.RUNNING, DesiredStatus.STOPPED}
            if wanted and slot is not None:
                begun += _begun(drill, slot, moment)
    return begun


def set_right() -> None:
    """What was planned while a clock was ahead, drills and proofs, would wait until then: as `dispatching.set_right`."""
    moment = database_now()  # one worker's clock that is behind makes nothing wrong of what the others wrote
    for drill in Drill.objects.filter(updated_at__gt=moment + AHEAD, next_run_at__gt=moment)[:AT_ONCE]:
        Drill.objects.filter(pk=drill.pk, updated_at=drill.updated_at).update(
            next_run_at=next_run(drill, moment), updated_at=moment
        )
    # When it was proven nobody knows: it is proven again, and only that says another moment.
    later = moment + timedelta(hours=proving.AGAIN_HOURS)
    proven = Backup.objects.filter(verified_at__gt=moment + AHEAD, reverify_at__gt=later)
    proven.update(reverify_at=moment, updated_at=moment)


def _begun(drill: Drill, slot: datetime, moment: datetime) -> int:
    """A slot that tried nothing leaves no run: it is seen by what is put down with the drill."""
    if moment - slot > LATE:
        late = "At its time nothing was begun: NovaStack was stopped, or read-only. It waits for the next."
        stalls.put(drill.pk, {"code": "slot_missed", "detail": late}, since=slot)
        return 0
    try:
        with transaction.atomic():
            run_begin(drill, created_by_label=LABEL)
    except OperationInProgress as refusal:
        again = moment + AGAIN  # its backup is being verified: a little later, if the next slot is not sooner
        if drill.next_run_at is None or again < drill.next_run_at:
            Drill.objects.filter(pk=drill.pk).update(next_run_at=again)
        others = Proof.objects.filter(backup__project_uuid=drill.project_id, state__in=stalls.LIVE)
        if others.filter(created_at__lt=moment - stalls.PATIENCE).exists():
            stalls.put(drill.pk, {"code": refusal.code, "detail": refusal.detail}, since=slot)
        return 0
    except Conflict as refusal:
        stalls.put(drill.pk, {"code": refusal.code, "detail": refusal.detail}, since=slot)
        return 0
    return 1


def reverify_due() -> int:
    """Begin proofs of backups whose time has come, a few at a time, the longest due first; returns how many."""
    if Install.load().read_only:
        return 0
    moment, begun = now(), 0
    at_work = Operation.objects.live().filter(kind=proving.VERIFY, params__proof_kind=ProofKind.SCHEDULED).count()
    due = Backup.objects.filter(
        reverify_at__lte=moment, status__in=[BackupStatus.STORED, BackupStatus.VERIFIED], delete_requested_at=None
    ).order_by("reverify_at")
    for pk in list(due.values_list("pk", flat=True)[: max(0, REVERIFIED_AT_ONCE - at_work)]):
        with transaction.atomic():
            backup = (
                Backup.objects.select_for_update(of=("self",), skip_locked=True).filter(pk=pk, reverify_at__lte=moment)
                .first()
            )  # fmt: skip
            if backup is None:
                continue
            # However that ends it is not due again at the next tick.
            Backup.objects.filter(pk=pk).update(reverify_at=moment + timedelta(hours=proving.AGAIN_HOURS))
            try:
                with transaction.atomic():
                    proving.verify_begin(backup, kind=ProofKind.SCHEDULED, created_by_label=LABEL)
                begun += 1
            except Conflict as refusal:
                log.info("not verified again now", backup=str(pk), reason=refusal.detail)
    return begun
