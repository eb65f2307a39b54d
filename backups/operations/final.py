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
from projects.models import Database, DatabaseSlot, DesiredStatus, LockMode, Operation, Placement, Project
from projects.operations import pooled, removal, wiring
from projects.operations.base import RetryPolicy, Step, StepFailed, Wait, prepend_steps
from projects.operations.context import Context
from projects.operations.move_sides import ensure_up
from projects.operations.queue import also_hold
from projects.operations.removal import FINAL as PARAM
from projects.operations.removal import WAIVED

log = structlog.get_logger(__name__)
WAY_OUT = "Nothing is deleted until it is taken and verified; `final_backup=false` deletes without it."
NONE = "final_backup_none"  # why none is taken, in the operation's params
RETRY = RetryPolicy(attempts=5, delay_seconds=10, cap_seconds=900)
HOURS = 3600.0
_LIVE = [ProofState.QUEUED, ProofState.RUNNING]


class FinalBackups:
    """What deletions ask."""

    def plan(self, project: Project, asked: bool | None, label: str) -> tuple[dict[str, Any], set[str]]:
        """Params and optional steps of a deletion. `asked`: None takes one where it can be; True raises where it can't
        be; False is the waiver. In a transaction that holds the project."""
        if asked is False:
            return {WAIVED: True}, set()
        if asked is None and _settled(project):
            return {}, set()
        try:
            if project.ready_at is None or project.purging_at is not None or not _has_database(project):
                raise ActionNotAllowed("There is no database of which a final backup could be taken.")
            row = taking.backup_row(project, trigger=BackupTrigger.FINAL, created_by_label=label)
        except Conflict as refusal:
            if asked:
                raise
            return {NONE: refusal.detail}, set()
        return {PARAM: str(row.pk)}, {step.name for step in STEPS}

    def recorded(self, operation: Operation) -> None:
        """In the same transaction: nobody removes the backup under its deletion's hands."""
        backup = Backup.objects.filter(pk=operation.params.get(PARAM)).first() if PARAM in operation.params else None
        if backup is not None:
            also_hold(operation, subject_of(backup), LockMode.SHARED)
            Backup.objects.filter(pk=backup.pk).update(operation_id=operation.pk)

    def removed(self, project_id: UUID) -> None:
        """Its rows go: its backups are kept for the plan's days. In that transaction."""
        project = Project.objects.select_related("plan").filter(pk=project_id).first()
        if project is not None:
            until = now() + timedelta(days=project.plan.backup_keep_days)
            Backup.objects.filter(project_uuid=project_id).update(keep_until=until, due_since=None)


def _has_database(project: Project) -> bool:
    return Database.objects.filter(project=project, slot=DatabaseSlot.CURRENT, drop_due_at=None).exists()


def _settled(project: Project) -> bool:
    """In the bin, or on its way there, with its final backup, or with the waiver: nothing was written since."""
    if project.desired_status != DesiredStatus.RECYCLED:
        return False
    rows = Operation.objects.filter(project_uuid=project.pk, kind="delete").order_by("-created_at")
    last = rows.first()
    if last is None:
        return False
    if last.params.get(WAIVED):
        return True
    backup = Backup.objects.filter(pk=last.params.get(PARAM)).first() if PARAM in last.params else None
    return backup is not None and (last.live or backup.status in {BackupStatus.VERIFIED, BackupStatus.VERIFYING})


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
                taking_steps.Taking(PARAM).undo(ctx)
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
    backup = Backup.objects.select_related("storage").filter(pk=ctx.operation.params[PARAM]).first()
    if backup is None or backup.delete_requested_at is not None:
        raise StepFailed("final_backup_gone", "The final backup was removed.", retryable=False)
    if backup.status == BackupStatus.VERIFIED:
        ctx.explain(f"Restored and compared; stored at {backup.storage.name}")
        return
    if backup.status == BackupStatus.CORRUPT:
        _anew(ctx)
        raise StepFailed("final_backup_corrupt", "What it restored was not what was dumped; another one is taken.")
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


def _anew(ctx: Context) -> None:
    """Another one in its place, by the same steps; the corrupt one stays, for people to look at."""
    ctx.guard()
    with transaction.atomic():
        row = taking.backup_row(
            ctx.project, trigger=BackupTrigger.FINAL, created_by_label=ctx.operation.created_by_label
        )
        Backup.objects.filter(pk=row.pk).update(operation_id=ctx.operation.pk)
    with ctx.fenced():
        params = {**Operation.objects.values_list("params", flat=True).get(pk=ctx.operation.pk), PARAM: str(row.pk)}
        Operation.objects.filter(pk=ctx.operation.pk).update(params=params)
    ctx.operation.params = params
    for step in taking.backup_steps(param=PARAM):
        step.run(ctx)


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
