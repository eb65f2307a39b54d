"""Proofs: a backup is restored into a throw-away server and compared with its manifest, down to every row. Only that makes
it `verified`; `corrupt` needs a hash, a decryption or a content that is wrong; what could not run says nothing (rule 51).

The verdict is written with the comparison, in one transaction that there is no way back from; what comes after it only
cleans up. Drills are proofs that also ask the user's own SQL.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import structlog

from backups.models import MISSED, MISSING, Backup, BackupStatus, Drill, Proof, ProofKind, ProofState
from backups.operations import proving_steps, scratch, stalls
from backups.operations.proving_steps import DRILL, KINDS, PROVABLE, VERIFY
from backups.operations.queueing import backup_operation_create
from backups.operations.restoring_data import CORRUPT
from backups.operations.stalls import LIVE
from backups.operations.taking import BackupNotSupported, verifies, when_stored
from novastack.common.clock import now
from novastack.common.errors import ActionNotAllowed, Conflict, OperationInProgress
from projects import domain, registry
from projects.models import DatabaseServer, LockMode, OnGiveUp, Operation, OperationStep, Region, StepState
from projects.operations.base import DATABASE_RETRY, SERVER_RETRY, Definition, RetryPolicy, Step, register
from projects.operations.queue import hint_on_commit

log = structlog.get_logger(__name__)
RESTORE_SECONDS = 12 * 3600.0  # the most that a proof's restore may take
AGAIN_HOURS = 6  # after a proof that could not run
READ_RETRY = RetryPolicy(attempts=3, delay_seconds=30)


def verify_begin(
    backup: Backup, *, kind: str, drill: Drill | None = None, created_by: Any = None, created_by_label: str = ""
) -> Operation:
    """Record a proof of the backup and the operation that runs it. In a transaction. Raises `ActionNotAllowed`,
    `BackupNotSupported` and `OperationInProgress`; what runs by itself after a backup waits for that to end."""
    check(backup)
    if Proof.objects.filter(backup=backup, state__in=LIVE).exists():
        raise OperationInProgress("This backup is being verified already.")
    proof = Proof.objects.create(backup=backup, kind=kind, drill=drill)
    operation = backup_operation_create(
        backup=backup, kind=DRILL if drill is not None else VERIFY, mode=LockMode.SHARED,
        queue_behind=kind == ProofKind.AFTER_BACKUP, params={"proof": str(proof.pk), "proof_kind": str(kind)},
        created_by=created_by, created_by_label=created_by_label,
    )  # fmt: skip
    Proof.objects.filter(pk=proof.pk).update(operation_id=operation.pk)
    return operation


@when_stored
def after_backup(backup: Backup, operation: Operation) -> None:
    """Every backup is proven, unless the policy or who asked for it says otherwise. One that can't be is no reason for the
    backup to fail."""
    if not operation.params.get("verify") or not verifies(backup):
        return
    try:
        verify_begin(backup, kind=ProofKind.AFTER_BACKUP, created_by_label=operation.created_by_label)
    except Conflict as refusal:
        log.warning("backup not verified", backup=str(backup.pk), reason=refusal.detail)


def check(backup: Backup) -> None:
    """Whether a proof of it makes sense."""
    if backup.delete_requested_at is not None or backup.status not in PROVABLE:
        raise ActionNotAllowed(
            f"Only a stored backup can be verified; this one is {backup.get_status_display().lower()}."
        )
    if backup.engine not in registry.engines():
        raise BackupNotSupported(f"There is no engine {backup.engine} here.")
    engine = registry.engine(backup.engine)
    if domain.Capability.COPY not in engine.capabilities:
        raise BackupNotSupported(f"Backups of {engine.title} can't be verified yet.")
    if not backup.trusted:
        raise BackupNotSupported("It was uploaded: without a manifest of ours there is nothing to compare it with.")


def region_of(operation: Operation) -> Region | None:
    """Of the scratch server, once there is one."""
    if operation.server_uuid is None:
        return None
    found = DatabaseServer.objects.filter(pk=operation.server_uuid).select_related("region").first()
    return found.region if found else None


# --- ends ---------------------------------------------------------------------------------------------------------------
def ended(operation: Operation) -> None:
    """What the end means for backup and proof; the verdict, if there was one, stands. Rows only."""
    proof = Proof.objects.filter(pk=operation.params.get("proof")).first()
    if proof is not None and proof.state == ProofState.FAILED and (proof.error or {}).get("code") in CORRUPT:
        _wake()  # however its clean-up ended
        return
    moment, error = now(), operation.error or {}
    code = str(error.get("code", ""))
    told = {"code": code, "detail": str(error.get("detail", ""))[:500], "retryable": bool(error.get("retryable"))}
    corrupt, cancelled = code in CORRUPT, code == "cancelled"
    open_proof = Proof.objects.filter(pk=operation.params.get("proof"), state__in=LIVE)
    state = ProofState.FAILED if corrupt else ProofState.CANCELLED if cancelled else ProofState.ERROR
    ran = open_proof.update(state=state, error=told if code else None, finished_at=moment, updated_at=moment)
    if ran and proof is not None and proof.drill_id is not None:
        _of_drill(proof, state, told)
    mine = Backup.objects.filter(pk=operation.params["backup"], status__in=[BackupStatus.VERIFYING, *PROVABLE])
    if corrupt:
        proving_steps.put_corrupt(operation, told)
    elif code:
        failed: dict[str, Any] = {}
        if not cancelled:
            failed["reverify_at"] = moment + timedelta(hours=AGAIN_HOURS)
            # What was missed stays so until it is seen again (`fetch`): one that could not look has no say in it.
            if code == MISSED or not mine.filter(MISSING).exists():
                failed["verify_error"] = told
        _back(mine, failed)
    _wake()


def _of_drill(proof: Proof, state: str, told: dict[str, Any]) -> None:
    """What ended without a word of its own: damage is a verdict, and who cancels it knows why."""
    assert proof.drill_id is not None  # noqa: S101 - for the type checker
    if state == ProofState.FAILED:
        stalls.clear(proof.drill_id)
    elif state == ProofState.ERROR:
        stalls.put(proof.drill_id, told, since=proof.created_at)


def _back(mine: Any, changes: dict[str, Any]) -> None:
    """As it was before the proof began: what could not run says nothing about it."""
    moment = now()
    mine.filter(status=BackupStatus.VERIFYING, error__isnull=False).update(status=BackupStatus.CORRUPT)
    mine.filter(status=BackupStatus.VERIFYING, verified_at__isnull=False).update(status=BackupStatus.VERIFIED)
    mine.filter(status=BackupStatus.VERIFYING).update(status=BackupStatus.STORED)
    mine.update(updated_at=moment, **changes)


def _wake() -> None:
    """The one that has waited longest for a turn looks now rather than at its next look."""
    waiting = OperationStep.objects.filter(name="claim", state=StepState.WAITING).values("operation_id")
    rows = Operation.objects.live().filter(kind__in=KINDS, lease_until=None, pk__in=waiting).order_by("created_at")
    for operation in rows.only("pk")[:1]:
        Operation.objects.filter(pk=operation.pk).update(next_attempt_at=None, hinted_at=None)
        hint_on_commit(operation.pk)


_FIRST = (
    Step("claim", "Wait for its turn", proving_steps.claim, scratch.remove, READ_RETRY, 60),
    Step("fetch", "Read the manifest", proving_steps.fetch, None, READ_RETRY, 120),
    Step(scratch.STEP, "Start a throw-away server", proving_steps.server, None, SERVER_RETRY, 900),
    Step("restore", "Restore into it", proving_steps.restore, None, SERVER_RETRY, RESTORE_SECONDS, scratch.STEP),
    Step(
        "compare",
        "Compare with the manifest",
        proving_steps.compare,
        None,
        DATABASE_RETRY,
        RESTORE_SECONDS,
        scratch.STEP,
    ),
)
_ASK = Step("assertions", "Ask the drill's questions", proving_steps.ask, None, DATABASE_RETRY, 1800, scratch.STEP)
_LAST = (
    Step("clean_up", "Remove the throw-away server", scratch.remove, retry=SERVER_RETRY),
    Step("tell", "Call the heartbeat", proving_steps.tell, retry=RetryPolicy(attempts=1), deadline_seconds=30),
)
for _kind, _title, _steps in (
    (VERIFY, "Verify a backup", (*_FIRST, *_LAST)),
    (DRILL, "Drill", (*_FIRST, _ASK, *_LAST)),
):
    register(
        Definition(
            kind=_kind, title=_title, on_give_up=OnGiveUp.UNDO, while_running=None, cancellable=True, once=True,
            queue="backups", region=region_of, on_success=ended, on_failure=ended, steps=_steps,
        )
    )  # fmt: skip
