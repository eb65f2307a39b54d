"""Drills that could not run: since when, and why, until one has a verdict again.

It is put down with the drill, where the objective and the pages find it. In the activity it stands once for each reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import structlog
from django.db import transaction

from accounts.services import audit
from backups.models import Drill, Proof, ProofKind, ProofState
from novastack.common.clock import now
from projects.models import OperationStep, StepState

log = structlog.get_logger(__name__)
ACTION = "drill.not_run"
PATIENCE = timedelta(hours=6)  # one that waits for longer counts as one that could not run
LIVE = (ProofState.QUEUED, ProofState.RUNNING)


def put(drill_id: UUID, error: Mapping[str, Any], *, since: datetime | None = None) -> None:
    """It could not run, by `error` (`code`, `detail`), `since` then or now, unless it could not before for the same reason.
    Of one that is not to run by itself, or not any more, nobody waits for a word. In a transaction."""
    drill = (
        Drill.objects.select_for_update(of=("self",), no_key=True).select_related("project").filter(pk=drill_id).first()
    )
    if drill is None or drill.next_run_at is None:
        return
    code, detail = str(error.get("code", "")), str(error.get("detail", ""))[:500]
    before = drill.stalled_error or {}
    if drill.stalled_since is not None and before.get("code") == code:  # how far it waits changes all the time
        return
    drill.stalled_since = drill.stalled_since or since or now()
    drill.stalled_error = {"code": code, "detail": detail, "retryable": bool(error.get("retryable", True))}
    drill.save(update_fields=["stalled_since", "stalled_error", "updated_at"])
    log.error("drill could not run", drill=str(drill.pk), project=str(drill.project_id), code=code, reason=detail)
    audit.record(
        None, ACTION, organization_id=drill.organization_id, project_id=drill.project_id,
        project_name=drill.project.name, target=drill.name,
        data={"drill": str(drill.pk), "code": code, "reason": detail},
    )  # fmt: skip


def clear(drill_id: UUID | None) -> None:
    """It ran, whatever it found; or it is not meant to."""
    if drill_id is not None:
        stalled = Drill.objects.filter(pk=drill_id, stalled_since__isnull=False)
        stalled.update(stalled_since=None, stalled_error=None, updated_at=now())


def look_at_waiting() -> int:
    """Drills that were begun long ago and wait: for a region that is away, say. Returns how many there are."""
    waiting = OperationStep.objects.filter(state__in=[StepState.WAITING, StepState.RETRYING])
    old = Proof.objects.filter(
        kind=ProofKind.DRILL, drill__isnull=False, state__in=LIVE, created_at__lt=now() - PATIENCE
    )
    proofs = {proof.operation_id: proof for proof in old if proof.operation_id is not None}
    steps = list(waiting.filter(operation__in=list(proofs)))
    for step in steps:
        proof = proofs[step.operation_id]
        assert proof.drill_id is not None  # noqa: S101 - for the type checker
        detail = f"It was begun and waits. {step.title}: {step.detail}"
        with transaction.atomic():
            put(proof.drill_id, {"code": "waiting", "detail": detail}, since=proof.created_at)
    return len(steps)
