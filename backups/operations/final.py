"""The final backup of a project that is deleted: its deletion takes it, with steps of its own, and goes on when it is proven.

First everybody is shut out, so that nothing is written after it. Whatever keeps it from being taken keeps the deletion
waiting, visibly, with the way out in its words: the waiver. Data is never lost silently.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID

import structlog
from django.db import transaction

from backups.models import Backup, BackupStatus, BackupTrigger, Proof, ProofKind, ProofState
from backups.operations import proving, taking, taking_steps
from backups.operations.queueing import subject_of
from novastack.common.clock import now
from novastack.common.errors import ActionNotAllowed, Conflict
from projects import domain
from projects.models import (
    Database,
    DatabaseSlot,
    DesiredStatus,
    LockMode,
    Operation,
    OperationEvent,
    Placement,
    Project,
)
from projects.operations import pooled, removal, wiring
from projects.operations.base import RetryPolicy, Step, StepFailed, Wait, prepend_steps
from projects.operations.context import Context
from projects.operations.move_sides import ensure_up
from projects.operations.queue import also_hold
from projects.operations.removal import FINAL as PARAM
from projects.operations.removal import WAIVED

log = structlog.get_logger(__name__)
WAY_OUT = "Nothing is deleted until it is taken and verified; `final_backup=false` deletes without it."
# In the operation's params: why none is taken; that the first one was corrupt, and this is another.
NONE, ANEW = "final_backup_none", "final_backup_anew"
RETRY = RetryPolicy(attempts=5, delay_seconds=10, cap_seconds=900)
HOURS = 3600.0
_LIVE = [ProofState.QUEUED, ProofState.RUNNING]


class FinalBackups:
    """What deletions ask."""

    def plan(self, project: Project, kind: str, asked: bool | None, label: str) -> tuple[dict[str, Any], set[str]]:
        """Params and optional steps of a deletion. `asked`: None takes one where it can be; True raises where it can't
        be; False is the waiver. For good (`purge`) what a storage refuses raises as well: only what never could be backed
        up goes without. In a transaction that holds the project."""
        if asked is False:
            return {WAIVED: True}, set()
        optional = {step.name for step in STEPS}
        before = _under_way(project) if asked is None else None
        if before is not None:  # one database, one final backup: this one sees to it if the other doesn't come to it
            return dict(before), set() if WAIVED in before else optional
        if asked is None and _settled(project):
            return {}, set()
        try:
            if project.ready_at is None or project.purging_at is not None or not _has_database(project):
                raise ActionNotAllowed("There is no database of which a final backup could be taken.")
            row = taking.backup_row(project, trigger=BackupTrigger.FINAL, created_by_label=label)
        except Conflict as refusal:
            if asked:
                raise
            if kind == "purge" and not _never_backed_up(project, refusal):
                raise type(refusal)(f"{refusal.detail} {WAY_OUT}") from refusal
            return {NONE: refusal.detail}, set()
        return {PARAM: str(row.pk)}, optional

    def recorded(self, operation: Operation) -> None:
        """In the same transaction: nobody removes the backup under its deletion's hands; and why there is none is said."""
        if NONE in operation.params:
            said = f"No final backup is taken: {operation.params[NONE]}"
            OperationEvent.objects.create(operation=operation, at=now(), level="warning", message=said[:500])
        backup = Backup.objects.filter(pk=operation.params.get(PARAM)).first() if PARAM in operation.params else None
        if backup is not None and WAIVED not in operation.params:
            also_hold(operation, subject_of(backup), LockMode.SHARED)
            Backup.objects.filter(pk=backup.pk, operation_id=None).update(operation_id=operation.pk)

    def failed(self, operation: Operation) -> None:
        """A deletion ended without what it was to do: a final backup that nobody goes on taking has failed."""
        wanted = operation.params.get(PARAM)
        if not wanted or Operation.objects.live().filter(**{f"params__{PARAM}": wanted}).exists():
            return
        row = Backup.objects.filter(pk=wanted, status__in=[BackupStatus.QUEUED, BackupStatus.DUMPING]).first()
        if row is not None:
            nothing = {"code": "internal_error", "detail": "Its deletion failed.", "retryable": False}
            taking_steps.mark_failed(row, operation.error or nothing)

    def removed(self, project_id: UUID) -> None:
        """Its rows go: its backups are kept for the plan's days. In that transaction."""
        project = Project.objects.select_related("plan").filter(pk=project_id).first()
        if project is not None:
            until = now() + timedelta(days=project.plan.backup_keep_days)
            Backup.objects.filter(project_uuid=project_id).update(keep_until=until, due_since=None)


def _has_database(project: Project) -> bool:
    return Database.objects.filter(project=project, slot=DatabaseSlot.CURRENT, drop_due_at=None).exists()


def _never_backed_up(project: Project, refusal: Conflict) -> bool:
    """Whether nobody can expect a backup of it: it can't be taken of it at all, or there is and was no storage."""
    if isinstance(refusal, taking.NoBackupStorage):
        return not Backup.objects.filter(project_uuid=project.pk).exists()
    return isinstance(refusal, taking.BackupNotSupported | ActionNotAllowed)


def _under_way(project: Project) -> dict[str, Any] | None:
    """What a deletion that has not ended does about a final backup: the backup that it takes, or the waiver."""
    rows = Operation.objects.live().filter(project_uuid=project.pk, kind="delete").order_by("-created_at")
    last = rows.first()
    if last is None:
        return None
    if last.params.get(WAIVED):
        return {WAIVED: True}
    going = Backup.objects.filter(pk=last.params.get(PARAM), delete_requested_at=None) if PARAM in last.params else None
    return {PARAM: last.params[PARAM]} if going is not None and going.exists() else None


def _settled(project: Project) -> bool:
    """In the bin with its final backup, or with the waiver: nothing was written since."""
    if project.desired_status != DesiredStatus.RECYCLED:
        return False
    rows = Operation.objects.filter(project_uuid=project.pk, kind="delete").order_by("-created_at")
    last = rows.first()
    if last is None:
        return False
    if last.params.get(WAIVED):
        return True
    backup = Backup.objects.filter(pk=last.params.get(PARAM)).first() if PARAM in last.params else None
    if backup is None or backup.status != BackupStatus.VERIFIED:
        return False
    return not backup.missing  # proven once, and not there any more


# --- steps --------------------------------------------------------------------------------------------------------------
def _waived(ctx: Context) -> bool:
    """Asked for anew: somebody may have waived it since the operation began."""
    params = Operation.objects.values_list("params", flat=True).get(pk=ctx.operation.pk)
    return bool(params.get(WAIVED))


def _guarded(run: Callable[[Context], None]) -> Callable[[Context], None]:
    """Not when it was waived; and what keeps it from being taken says what can be done."""

    def step(ctx: Context) -> None:
        if _waived(ctx):
            if not ctx.row.data.get("given_up"):
                taking_steps.Taking(PARAM).give_up(ctx)
                ctx.record(given_up=True)
            ctx.explain("Waived")
            return
        try:
            run(ctx)
        except StepFailed as failure:
            said = f"{failure.detail} {WAY_OUT}"
            raise StepFailed(failure.code, said, retryable=failure.retryable, raw=failure.raw) from failure
        except domain.EngineError as error:
            raise StepFailed(error.code, f"{str(error)[:300]} {WAY_OUT}", retryable=error.retryable) from error

    return step


def quiet(ctx: Context) -> None:
    """Nobody writes after it: the server is started if it is down, and every login is refused."""
    backup = Backup.objects.filter(pk=ctx.operation.params[PARAM]).first()
    if backup is not None and backup.usable:  # the deletion before this one has done so
        ctx.explain("It is stored")
        return
    ensure_up(ctx)
    if ctx.project.placement == Placement.POOL:
        pooled.shut_out(ctx)
        return
    ctx.guard()
    with wiring.admin_session(ctx.engine, ctx.server) as admin:
        admin.lock_tenant(ctx.names, locked=True)
    ctx.explain("Logins are refused, sessions were ended")


def prove(ctx: Context) -> None:
    """Wait until it is verified; what could not be verified is tried again, what is corrupt is taken anew."""
    backup = _mine(ctx)
    if backup is None or backup.delete_requested_at is not None:
        raise StepFailed("final_backup_gone", "The final backup was removed.", retryable=False)
    if backup.status == BackupStatus.VERIFIED:
        ctx.explain(f"Restored and compared; stored at {backup.storage.name}")
        return
    if backup.status == BackupStatus.CORRUPT:
        if ctx.operation.params.get(ANEW):
            why = (backup.error or {}).get("detail") or ""
            said = f"Two final backups restored what was not dumped. {why}"
            raise StepFailed("final_backup_corrupt", said, retryable=False)
        _anew(ctx, backup)
        raise StepFailed("final_backup_corrupt", "What it restored was not what was dumped; another one is taken.")
    if not backup.usable:  # taken anew, or what a deletion before this one left
        for step in taking.backup_steps(param=PARAM):
            step.run(ctx)
        backup = _mine(ctx)
        if backup is None or not backup.usable:
            raise StepFailed("final_backup_gone", "The final backup was removed.", retryable=False)
    proofs = Proof.objects.filter(backup=backup)
    if proofs.filter(state__in=_LIVE).exists():
        raise Wait("The final backup is being verified.", seconds=3)
    last = proofs.order_by("-created_at", "-id").first()
    if last is not None and ctx.row.data.get("told") != str(last.pk):
        ctx.record(told=str(last.pk))
        why = (last.error or {}).get("detail") or "The proof was cut short."
        raise StepFailed("final_backup_not_verified", f"The final backup could not be verified: {why}")
    ctx.guard()
    with transaction.atomic():
        proving.verify_begin(backup, kind=ProofKind.MANUAL, created_by_label=ctx.operation.created_by_label)
    raise Wait("The final backup is being verified.", seconds=3)


def _mine(ctx: Context) -> Backup | None:
    return Backup.objects.select_related("storage").filter(pk=ctx.operation.params[PARAM]).first()


def _anew(ctx: Context, corrupt: Backup) -> None:
    """Another one in its place, once, for whoever waits for it; the corrupt one stays, for people to look at. All in one
    transaction: who goes on finds the new one, and takes it."""
    ctx.guard()
    try:
        with transaction.atomic():
            row = taking.backup_row(
                ctx.project, trigger=BackupTrigger.FINAL, created_by_label=ctx.operation.created_by_label
            )
            Backup.objects.filter(pk=row.pk).update(operation_id=ctx.operation.pk)
            others = Operation.objects.live().filter(
                project_uuid=ctx.project.pk, **{f"params__{PARAM}": str(corrupt.pk)}
            )
            ids = list(others.exclude(pk=ctx.operation.pk).order_by("created_at").values_list("pk", flat=True))
            for pk in (ctx.operation.pk, *ids):
                operation = Operation.objects.get(pk=pk)
                also_hold(operation, subject_of(row), LockMode.SHARED)
            with ctx.fenced():
                for pk in (ctx.operation.pk, *ids):
                    operation = Operation.objects.select_for_update(no_key=True).get(pk=pk)
                    operation.params = {**operation.params, PARAM: str(row.pk), ANEW: True}
                    Operation.objects.filter(pk=pk).update(params=operation.params)
    except Conflict as refusal:
        raise StepFailed(refusal.code, refusal.detail) from refusal
    ctx.operation.params = Operation.objects.values_list("params", flat=True).get(pk=ctx.operation.pk)


STEPS = (
    Step("final_quiet", "Shut everybody out", _guarded(quiet), None, RETRY, 360, optional=True),
    *(
        replace(
            step, run=_guarded(step.run), undo=None, retry=RETRY, optional=True,
            title={"final_prepare": "Prepare the final backup", "final_dump": "Dump for the final backup",
                   "final_store": "Sign and store the final backup"}[step.name],
        )
        for step in taking.backup_steps(param=PARAM, prefix="final_", optional=True)
    ),
    Step("final_proof", "Verify the final backup", _guarded(prove), None, RETRY, 12 * HOURS, optional=True),
)  # fmt: skip

for _kind in ("delete", "purge"):
    prepend_steps(_kind, STEPS)
removal.final_backups_by(FinalBackups())
