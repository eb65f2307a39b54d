"""What a run of an operation writes: its steps' rows, events, the end. All of it fenced: only who holds the lease."""

from __future__ import annotations

from datetime import timedelta

import structlog
from django.db import Error as DatabaseError
from django.db import transaction
from django.db.models import prefetch_related_objects

from novastack.common.clock import DatabaseNow, now
from novastack.common.logs import without_places
from projects import domain
from projects.models import Operation, OperationState, OperationStep, Project
from projects.operations import base, leases, locks, status
from projects.operations.base import Definition, StepFailed
from projects.operations.queue import hint_on_commit

log = structlog.get_logger(__name__)


class Recorder:
    def __init__(self, operation: Operation, lease: leases.Lease, heartbeat: leases.Heartbeat) -> None:
        self.operation, self.lease, self.heartbeat = operation, lease, heartbeat
        prefetch_related_objects([operation], "steps")  # steps look at each other's rows, too
        self.rows = list(operation.steps.all())
        self._succeeded: OperationStep | None = None

    def _save_row(self, row: OperationStep | None = None, *, awaited: bool = True) -> leases.Standing:
        """Fenced: whoever lost the lease while away writes nothing over what its successor wrote."""
        before = self._succeeded if self._succeeded is not row else None
        standing = leases.put_down(self.lease, [step for step in (before, row) if step is not None], awaited=awaited)
        self._succeeded = None
        return standing

    def _event(self, level: str, message: str) -> None:
        self.operation.events.create(at=now(), level=level, message=message[:500])

    def _fenced(self) -> None:
        """Lock the row if our fence is still the newest; else `LeaseLost`. In a transaction."""
        leases.fenced(self.lease)

    def _release(self, seconds: float) -> None:
        """Give the worker back until `seconds` from now. In a transaction, with the rows that say why."""
        self._fenced()
        delta = timedelta(seconds=seconds)
        Operation.objects.filter(pk=self.operation.pk).update(
            lease_until=None, lease_owner="", next_attempt_at=DatabaseNow() + delta, hinted_at=None
        )

    def _end(self, definition: Definition | None, state: str, code: str, detail: str, retryable: bool) -> None:
        project_uuid = self.operation.project_uuid
        with transaction.atomic():
            # Project, then subjects, then the operation: the order of everybody who makes operations.
            if project_uuid is not None:
                list(
                    Project.objects.select_for_update(of=("self",), no_key=True)
                    .filter(pk=project_uuid)
                    .values_list("pk")
                )
            subjects = locks.lock_subjects_of(self.operation)
            if self._succeeded is not None:
                self._save_row()
            else:
                self._fenced()
            row = Operation.objects.get(pk=self.operation.pk)
            row.state, row.finished_at, row.lease_until, row.lease_owner = state, now(), None, ""
            row.next_attempt_at = None
            row.error = {"code": code, "detail": detail[:500], "retryable": retryable} if code else None
            row.save(
                update_fields=[
                    "state", "finished_at", "lease_until", "lease_owner", "next_attempt_at", "error", "updated_at",
                ]
            )  # fmt: skip
            state = self._hook(definition, row)
            for waiting in locks.release(row, subjects):
                hint_on_commit(waiting)
            if project_uuid is not None:
                status.refresh([project_uuid])
        log.info("operation ended", state=state, code=code)

    def _hook(self, definition: Definition | None, row: Operation) -> str:
        """What the end means for the project. A hook that breaks makes a success a failure, and never keeps the
        operation from ending. Returns the state it ended in."""
        known = definition or base.latest_of(row.kind, row.variant)
        try:
            with transaction.atomic():
                if row.state == OperationState.SUCCEEDED and known is not None:
                    known.on_success(row)
                elif known is not None:
                    known.on_failure(row)
        except DatabaseError:
            raise
        except Exception as error:
            log.error("the end of an operation broke", kind=row.kind, error=type(error).__name__, exc_info=error)
            if row.state == OperationState.SUCCEEDED:
                row.state, row.error = OperationState.FAILED, error_of(as_failure(error))
                row.save(update_fields=["state", "error", "updated_at"])
                return self._hook(definition, row)
        return str(row.state)

    def _refresh_status(self) -> None:
        if self.operation.project_uuid is not None:
            status.refresh([self.operation.project_uuid])


def error_of(failure: StepFailed) -> dict[str, object]:
    return {"code": failure.code, "detail": failure.detail[:500], "retryable": failure.retryable}


def as_failure(error: Exception) -> StepFailed:
    """What people see of an exception: drivers' own texts are fit for them, but for places of the runtime's host; all
    others are logged and named only."""
    if isinstance(error, StepFailed):
        return error
    if isinstance(error, domain.NovaStackRuntimeError):
        said = str(error)[:500]
        shown = without_places(said)
        return StepFailed(error.code, shown, retryable=error.retryable, raw=said if shown != said else "")
    if isinstance(error, domain.EngineError):
        return StepFailed(error.code, str(error)[:500], retryable=error.retryable)
    log.error("unexpected error in a step", error=type(error).__name__, exc_info=error)
    return StepFailed("internal_error", f"Something broke on our side ({type(error).__name__}); see the worker's log.")
