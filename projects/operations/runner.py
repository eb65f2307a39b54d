"""The one loop that runs operations: claim, step, record, release. It never holds a row lock across a side effect."""

from __future__ import annotations

import os
import socket
import threading
from datetime import timedelta
from typing import Any
from uuid import UUID

import structlog
from django.core.cache import cache
from django.core.exceptions import ObjectDoesNotExist
from django.db import Error as DatabaseError
from django.db import connection, transaction

from novastack.common.clock import now
from projects import domain
from projects.models import OnGiveUp, Operation, OperationState, OperationStep, Orphan, Region, StepState
from projects.models.catalogue import UNREACHABLE
from projects.models.servers import LEFT_BY_UNDO
from projects.operations import base, leases, status, wiring
from projects.operations.base import CancelRequested, Definition, LeaseLost, Step, StepFailed, Wait
from projects.operations.context import COMMITTED, Context
from projects.operations.recording import Recorder, as_failure, error_of

log = structlog.get_logger(__name__)
TRY_EVERY_SECONDS = 15

DONE = {StepState.SUCCEEDED, StepState.SKIPPED}
SERVER_LOST = {"server_exited", "server_not_ready"}
MAX_RESTARTS = 2  # of a server that went away under one step
MAX_COUNT = 30_000  # a small integer's column; what rolls forward may try for months


def worker_name() -> str:
    return f"{socket.gethostname()}:{os.getpid()}:{threading.get_ident()}"[:80]


def run(operation_id: UUID, *, owner: str | None = None) -> bool:
    """Run the operation as far as it goes now. False if there was nothing to do (ended, leased, not due, locked).

    Called twice for one id, or for one that ended, it does nothing: messages may come any number of times.
    """
    lease = leases.claim(operation_id, owner or worker_name())
    if lease is None:
        return False
    operation = lease.operation
    structlog.contextvars.bind_contextvars(operation=str(operation_id), kind=operation.kind)
    if operation.request_id:
        structlog.contextvars.bind_contextvars(request_id=operation.request_id)
    try:
        with leases.Heartbeat(lease) as heartbeat:
            _Run(operation, lease, heartbeat).go()
    except LeaseLost:
        log.warning("lease lost; another worker goes on")
    except DatabaseError as error:
        # Nothing can be recorded: the lease runs out and the reconciler resumes it.
        log.warning("control database failed mid-operation", error=type(error).__name__)
        connection.close()
    except Exception as error:
        # A bug of ours outside of a step. The lease runs out, and resuming counts it as a crash: five of them end it.
        log.error("unexpected error in the runner", error=type(error).__name__, exc_info=error)
    return True


class _Run(Recorder):
    def __init__(self, operation: Operation, lease: leases.Lease, heartbeat: leases.Heartbeat) -> None:
        super().__init__(operation, lease, heartbeat)
        self._seen: dict[str, Any] = {}  # rows that the next step need not load
        self._shown = False  # whether the project's status says that this operation is at work

    def go(self) -> None:
        definition = base.definition_of(self.operation.kind, self.operation.definition_version, self.operation.variant)
        rows = self.rows
        known = {step.name: step for step in definition.steps} if definition else {}
        if definition is None or any(row.name not in known for row in rows):
            self._end(None, OperationState.FAILED, "definition_changed",
                      "This operation was begun by another version of NovaStack, which knew its steps.", False)  # fmt: skip
            return
        if self.lease.crashed_at is not None and not self._count_crash(definition):
            return
        if not self.operation.undoing:
            for row in rows:
                if row.state in DONE:
                    continue
                if not self._step(definition, known[row.name], row):
                    return
                if self.operation.undoing:
                    break
            if not self.operation.undoing:
                self._end(definition, OperationState.SUCCEEDED, "", "", False)
                return
        self._undo(definition, known, rows)

    @property
    def _committed(self) -> bool:
        return any(row.data.get(COMMITTED) for row in self.rows)

    # --- one step ---------------------------------------------------------------------------------------------
    def _step(self, definition: Definition, step: Step, row: OperationStep) -> bool:
        """True to go on with the next step (or with the undo)."""
        if self._asks_anew(row):
            before = self._context(row, definition, 0)
            if not self._may_try(self._region(before, definition)):
                self._wait(row, Wait(UNREACHABLE, seconds=5))
                return False
            if definition.carries:
                self._seen = before.rows_seen()
        seconds = step.deadline_seconds
        if row.state == StepState.RUNNING and self.lease.crashed_at is not None and row.deadline_at is not None:
            # What was left when the worker died; the time without any worker is not the step's.
            last_seen = self.lease.crashed_at - timedelta(seconds=base.LEASE_SECONDS)
            seconds = max(2.0, min(seconds, (row.deadline_at - last_seen).total_seconds()))
        elif row.state != StepState.WAITING:
            row.attempt = min(row.attempt + 1, MAX_COUNT)
        row.deadline_at = now() + timedelta(seconds=seconds)
        row.state, row.started_at, row.finished_at = StepState.RUNNING, row.started_at or now(), None
        # Who resumes has nothing on the disk yet that says so; who begins puts rows there before it touches anything.
        resumed = not self._shown and row.pk != self.rows[0].pk
        standing = self._save_row(row, awaited=resumed or not definition.carries)
        if not self._shown:
            if self.operation.project_uuid is not None:
                status.begun(self.operation.project_uuid, definition)
            self._shown = True
        context = self._context(row, definition, seconds, self._seen)
        self._seen = {}
        self.heartbeat.set_deadline(seconds)
        try:
            if definition.cancellable or definition.yields:
                context.guard(standing)
            step.run(context)
        except Wait as wait:
            self._wait(row, wait)
            return False
        except domain.RuntimeUnreachable as error:
            self._unreachable(row, self._region(context, definition), error)
            return False
        except CancelRequested:
            self._give_up(row, "cancelled", "Cancelled on request.", retryable=False)
            return True
        except LeaseLost:
            raise
        except DatabaseError:
            raise
        except Exception as error:
            return self._failed(definition, step, row, as_failure(error))
        finally:
            self.heartbeat.set_deadline(None)
        row.state, row.finished_at, row.error_code, row.crashes = StepState.SUCCEEDED, now(), "", 0
        for other in self.rows:
            if other.name in context.skipped:
                other.state = StepState.SKIPPED  # as the step has put it down
        # Written with the next one's begin, or with the end: a step that is run again does no harm.
        self._succeeded = row
        if definition.carries:
            self._seen = context.rows_seen()
        return True

    def _context(
        self, row: OperationStep, definition: Definition, seconds: float, seen: dict[str, Any] | None = None
    ) -> Context:
        return Context(
            operation=self.operation, row=row, lease=self.lease, heartbeat=self.heartbeat,
            cancellable=(definition.cancellable or definition.yields)
            and not self.operation.undoing
            and not self._committed,
            deadline_seconds=seconds, seen=seen,
        )  # fmt: skip

    def _asks_anew(self, row: OperationStep) -> bool:
        """Whether this is the first question to its region that a worker asks for this operation since it took it up: it
        waits for the region, or has not begun. Not once it is to be cancelled: that needs no region."""
        if self.operation.cancel_requested_at is not None:
            return False
        waits = row.state == StepState.WAITING and row.detail == UNREACHABLE
        return waits or (row.state == StepState.PENDING and not self._shown)

    def _region(self, context: Context, definition: Definition) -> Region | None:
        """Where the operation works; None: nowhere, or its project, and with it that, is gone."""
        if definition.region is not None:
            return definition.region(self.operation)
        try:
            return context.region
        except ObjectDoesNotExist:
            return None

    def _may_try(self, region: Region | None) -> bool:
        """Where the region is known to be away, one operation asks every so often, and the others wait, those that are new as
        well: each question may hang for as long as a call may take (12 s, twice), and workers are for those who can work.
        """
        if region is None or region.reachable:
            return True
        try:
            return bool(cache.add(f"region-asked:{region.pk}", True, TRY_EVERY_SECONDS))
        except Exception:  # each cache has errors of its own, and losing it loses nothing
            return True

    def _wait(self, row: OperationStep, wait: Wait) -> None:
        row.state, row.detail = StepState.WAITING, wait.reason[:500]
        with transaction.atomic():
            self._save_row(row)
            self._release(wait.seconds)
        self._refresh_status()  # after it: a project is locked before its operation

    def _unreachable(self, row: OperationStep, region: Region | None, error: Exception) -> None:
        """Rule 4: no attempt is used, nothing is undone, the project shows `not_available` at once."""
        reason = str(error)[:500] or UNREACHABLE
        if row.detail != UNREACHABLE:
            log.warning("runtime unreachable", step=row.name, error=reason)
        self._wait(row, Wait(UNREACHABLE, seconds=5))
        self._outage(region, reason)

    def _outage(self, region: Region | None, reason: str) -> None:
        """All projects of the region show it at once, if it really is so: one call that timed out on a busy host is no
        outage."""
        if region is None or not region.reachable:
            return
        try:
            wiring.runtime_of(region).ping()
        except domain.NovaStackRuntimeError:
            status.set_reachable(region, False, reason)

    def _failed(self, definition: Definition, step: Step, row: OperationStep, failure: StepFailed) -> bool:
        log.warning("step failed", step=row.name, attempt=row.attempt, code=failure.code, detail=failure.detail)
        row.error_code, row.detail = failure.code, failure.detail[:500]
        if failure.raw:
            log.warning("what the runtime said", step=row.name, raw=failure.raw)
            row.data = {**row.data, "raw": failure.raw[:1000]}  # operators see it in the admin
        committed = self._committed
        forward = definition.on_give_up == OnGiveUp.ROLL_FORWARD or committed
        if failure.retryable and self._start_again(step, row, failure):
            return False
        if definition.insists or committed or (failure.retryable and (forward or row.attempt < step.retry.attempts)):
            delay = step.retry.delay(row.attempt) if failure.retryable else step.retry.cap_seconds
            self._retry(row, delay, f"{row.title}: {failure.detail} Next try in {delay:.0f} s.")
            self._refresh_status()
            return False
        if failure.retryable and not definition.once and self.operation.attempt < base.OPERATION_ATTEMPTS:
            with transaction.atomic():
                self._rewind(row, self.rows[0].name)
                row.attempt = 0
                self.operation.attempt += 1
                self.operation.error = error_of(failure)
                self.operation.save(update_fields=["attempt", "error", "updated_at"])
                text = f"{row.title}: {failure.detail} The whole operation is tried again in 5 min."
                self._retry(row, base.OPERATION_RETRY_SECONDS, text)
            self._refresh_status()
            return False
        if forward:
            row.state, row.finished_at = StepState.FAILED, now()
            self._save_row(row)
            self._end(definition, OperationState.FAILED, failure.code, failure.detail, failure.retryable)
            return False
        self._give_up(row, failure.code, failure.detail, retryable=failure.retryable)
        return True

    def _retry(self, row: OperationStep, delay: float, message: str) -> None:
        row.state, row.retries = StepState.RETRYING, row.retries + 1
        with transaction.atomic():
            self._save_row(row)
            self._event("warning", message)
            self._release(delay)

    def _start_again(self, step: Step, row: OperationStep, failure: StepFailed) -> bool:
        """A server that went away under a step (its host's runtime was restarted, say) is started again at once: waiting
        for a server that nobody starts would only use up the attempts."""
        restarts = int(row.data.get("restarts", 0))
        if not step.back_to or failure.code not in SERVER_LOST or restarts >= MAX_RESTARTS:
            return False
        row.data = {**row.data, "restarts": restarts + 1}
        with transaction.atomic():
            self._rewind(row, step.back_to)
            delay = step.retry.delay(restarts + 1)
            self._retry(row, delay, f"{row.title}: {failure.detail} The server is started again in {delay:.0f} s.")
        self._refresh_status()
        return True

    def _rewind(self, until: OperationStep, first: str) -> None:
        """The steps from `first` to before `until` are run again: each is idempotent. In a transaction."""
        begun = False
        for row in self.rows:
            begun = begun or row.name == first
            if row.pk == until.pk:
                return
            if begun and row.state in DONE:
                row.state, row.attempt, row.finished_at = StepState.PENDING, 0, None
                self._save_row(row)

    def _give_up(self, row: OperationStep, code: str, detail: str, *, retryable: bool) -> None:
        """Turn round: from here on the operation undoes what it did, in reverse."""
        row.state, row.finished_at, row.error_code, row.detail = StepState.FAILED, now(), code, detail[:500]
        with transaction.atomic():
            self._save_row(row)
            self.operation.undoing = True
            self.operation.error = {"code": code, "detail": detail[:500], "retryable": retryable}
            self.operation.save(update_fields=["undoing", "error", "updated_at"])
            self._event("error", f"{row.title}: {detail}")

    # --- undo -------------------------------------------------------------------------------------------------
    def _undo(self, definition: Definition, known: dict[str, Step], rows: list[OperationStep]) -> None:
        undoable = any(step.undo for step in definition.steps)
        for row in reversed(rows):
            step = known[row.name]
            if row.started_at is None or row.data.get("_undone"):
                continue
            if step.undo is not None and not self._undo_step(definition, step, row):
                return
            row.data = {**row.data, "_undone": True}
            if row.error_code:
                row.state = StepState.FAILED
            elif undoable:
                row.state = StepState.UNDONE
            self._save_row(row)
        error = self.operation.error or {"code": "failed", "detail": "", "retryable": False}
        ended = OperationState.CANCELLED if error["code"] == "cancelled" else OperationState.FAILED
        self._end(definition, ended, error["code"], error["detail"], error["retryable"])

    def _undo_step(self, definition: Definition, step: Step, row: OperationStep) -> bool:
        assert step.undo is not None  # noqa: S101 - for the type checker
        tries = int(row.data.get("_undo_tries", 0)) + 1
        row.state = StepState.UNDOING
        self._save_row(row)
        context = self._context(row, definition, step.deadline_seconds)
        self.heartbeat.set_deadline(step.deadline_seconds)
        try:
            step.undo(context)
        except (Wait, domain.RuntimeUnreachable) as error:
            away = isinstance(error, domain.RuntimeUnreachable)
            reason = f"Undo of “{row.title}” waits: {UNREACHABLE if away else error}"[:500]
            with transaction.atomic():
                if row.data.get("_undo_waits") != reason:  # said once, not every five seconds for a week
                    row.data = {**row.data, "_undo_waits": reason}
                    self._event("warning", reason)
                row.state = StepState.WAITING
                self._save_row(row)
                self._release(getattr(error, "seconds", 5))
            if away:
                self._outage(self._region(context, definition), str(error) or UNREACHABLE)
            return False
        except (LeaseLost, DatabaseError):
            raise
        except Exception as error:
            failure = as_failure(error)
            row.data = {**row.data, "_undo_tries": tries}
            if tries < base.UNDO_ATTEMPTS:
                self._retry(
                    row, min(60, 2**tries), f"Undo of “{row.title}” failed: {failure.detail} It is tried again."
                )
                return False
            row.data = {**row.data, "undo_failed": failure.code}
            with transaction.atomic():
                self._leave_behind(self._region(context, definition), row, failure)
        finally:
            self.heartbeat.set_deadline(None)
        return True

    def _leave_behind(self, region: Region | None, row: OperationStep, failure: StepFailed) -> None:
        """What can't be taken back is named, not hidden: an orphan, which the doctor shows until an operator has settled
        it. In a transaction."""
        self._fenced()
        self._event("error", f"Undo of “{row.title}” failed for good: {failure.detail}")
        if region is None:  # its rows are gone, and with them what it was about
            return
        whose = f" of project {self.operation.project_name}" if self.operation.project_name else ""
        note = f"“{row.title}”{whose} could not be undone ({failure.code}): {failure.detail}"
        Orphan.objects.update_or_create(
            region=region, kind=LEFT_BY_UNDO, name=f"{self.operation.kind}:{row.name}:{self.operation.pk}",
            defaults={"note": note[:500], "resolved_at": None},
        )  # fmt: skip

    # --- crashes ----------------------------------------------------------------------------------------------
    def _count_crash(self, definition: Definition) -> bool:
        """Count a crash for the step that was at work; after five the operation is poison (rule 2). True to go on."""
        row = self._at_work()
        row.crashes += 1
        self._save_row(row)
        self._event("warning", f"A worker died during “{row.title}”; resumed by another one.")
        if row.crashes < base.MAX_CRASHES:
            return True
        text = f"“{row.title}” ended its worker {row.crashes} times."
        if self._committed and not self.operation.undoing:
            return True  # there is nothing but to go on; the lease and its expiry set the pace
        if self.operation.undoing or definition.on_give_up == OnGiveUp.ROLL_FORWARD:
            row.state, row.finished_at, row.error_code = StepState.FAILED, now(), "poison"
            self._save_row(row)
            self._end(definition, OperationState.FAILED, "poison", text, True)
            return False
        row.crashes = 0
        self._give_up(row, "poison", text, retryable=True)
        return True

    def _at_work(self) -> OperationStep:
        """The step that was running or being undone; between two steps the one that was next; after them the last."""
        for row in self.rows:
            if row.state in {StepState.RUNNING, StepState.UNDOING}:
                return row
        if self.operation.undoing:
            return next((r for r in reversed(self.rows) if r.started_at and not r.data.get("_undone")), self.rows[0])
        return next((r for r in self.rows if r.state not in DONE), self.rows[-1])
