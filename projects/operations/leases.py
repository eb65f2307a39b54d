"""Leases: one worker at a time, by the database's clock, with a fencing number (rules 2 and 3)."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

import structlog
from django.core.serializers.json import DjangoJSONEncoder
from django.db import connection, connections, transaction

from projects.models import Operation, OperationStep
from projects.operations import locks
from projects.operations.base import HEARTBEAT_SECONDS, LEASE_SECONDS, LeaseLost

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Lease:
    operation: Operation = field(repr=False)  # the row as it was claimed
    owner: str
    fence: int
    crashed_at: datetime | None = None  # when the lease of the one before ran out, if it did not give it back

    @property
    def operation_id(self) -> UUID:
        return self.operation.pk


# One statement, because everybody who creates a database waits for it. Its commit is not awaited: whoever claims writes
# its step down before it touches anything, and that commit (or, of a place on a pool, the one that takes it) makes the claim
# durable as well. A claim that is lost with the control database led to nothing.
_CLAIM = """
WITH unawaited AS MATERIALIZED (SELECT set_config('synchronous_commit', 'off', true)),
due AS (
  SELECT id, lease_until FROM projects_operation
  WHERE id = %s AND state IN ('queued', 'running')
    AND (lease_until IS NULL OR lease_until <= clock_timestamp())
    AND (next_attempt_at IS NULL OR next_attempt_at <= clock_timestamp())
    AND NOT EXISTS (
      SELECT FROM projects_operationlock waiting
      WHERE waiting.operation_id = projects_operation.id AND NOT waiting.granted
    )
  FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE projects_operation operation SET
  fence = operation.fence + 1, lease_owner = %s, lease_until = clock_timestamp() + %s * interval '1 second',
  state = 'running', started_at = coalesce(operation.started_at, clock_timestamp()), next_attempt_at = NULL,
  updated_at = clock_timestamp()
FROM due, unawaited WHERE operation.id = due.id
RETURNING operation.*, due.lease_until AS crashed_at
"""


def claim(operation_id: UUID, owner: str) -> Lease | None:
    """Take the operation if it is live, due, unlocked and not leased; None otherwise."""
    lease = _take(operation_id, owner)
    if lease is None and _grant_locks(operation_id):
        lease = _take(operation_id, owner)
    return lease


def _take(operation_id: UUID, owner: str) -> Lease | None:
    for operation in Operation.objects.raw(_CLAIM, [operation_id, owner, LEASE_SECONDS]):
        return Lease(operation, owner, operation.fence, vars(operation)["crashed_at"])
    return None


def _grant_locks(operation_id: UUID) -> bool:
    """Grant what a live operation queued for; True when there was something, and it holds all its locks now."""
    with transaction.atomic():
        operation = (
            Operation.objects.live()
            .filter(pk=operation_id, lease_until=None, next_attempt_at=None, locks__granted=False)
            .select_for_update(of=("self",), skip_locked=True, no_key=True)
            .first()
        )
        return operation is not None and locks.grant_waiting(operation)


# Asked before every side effect, so in one round trip: whether the lease is ours and alive by the database's clock, whether
# somebody asked to cancel, and whether the install may be changed.
_STANDING = """
SELECT operation.fence = %s AND operation.lease_owner = %s AND operation.lease_until > clock_timestamp(),
       operation.cancel_requested_at IS NOT NULL, install.read_only, install.read_only_reason
FROM projects_operation operation LEFT JOIN common_install install ON true WHERE operation.id = %s
"""


@dataclass(frozen=True, slots=True)
class Standing:
    held: bool
    cancel_requested: bool
    read_only: bool
    read_only_reason: str


def standing(lease: Lease) -> Standing:
    with connection.cursor() as cursor:
        cursor.execute(_STANDING, [lease.fence, lease.owner, lease.operation_id])
        held, cancel, read_only, reason = cursor.fetchone() or (False, False, False, "")
    return Standing(bool(held), bool(cancel), bool(read_only), str(reason or ""))


# A step's rows, the lock that keeps others from writing meanwhile, and how things stand: every step begins with it.
_PUT_DOWN = """
WITH unawaited AS MATERIALIZED (
  SELECT set_config('synchronous_commit', CASE WHEN %s THEN current_setting('synchronous_commit') ELSE 'off' END, true)
),
mine AS MATERIALIZED (
  SELECT id, lease_until > clock_timestamp() AS alive, cancel_requested_at IS NOT NULL AS cancel FROM projects_operation
  WHERE id = %s AND fence = %s AND lease_owner = %s FOR NO KEY UPDATE
)
UPDATE projects_operationstep step SET
  state = new.state, attempt = new.attempt, retries = new.retries, crashes = new.crashes, detail = new.detail,
  error_code = new.error_code, data = new.data, started_at = new.started_at, deadline_at = new.deadline_at,
  finished_at = new.finished_at, updated_at = clock_timestamp()
FROM unawaited, mine, jsonb_to_recordset(%s::jsonb) AS new(
  id uuid, state text, attempt smallint, retries smallint, crashes smallint, detail text, error_code text, data jsonb,
  started_at timestamptz, deadline_at timestamptz, finished_at timestamptz
)
WHERE step.id = new.id AND step.operation_id = mine.id
RETURNING mine.alive, mine.cancel, (SELECT read_only FROM common_install LIMIT 1),
          (SELECT read_only_reason FROM common_install LIMIT 1)
"""
_STEP_FIELDS = (
    "id", "state", "attempt", "retries", "crashes", "detail", "error_code", "data", "started_at", "deadline_at",
    "finished_at",
)  # fmt: skip


def put_down(lease: Lease, steps: Sequence[OperationStep], *, awaited: bool = True) -> Standing:
    """Write these steps if nobody claimed the operation since, else `LeaseLost`; and say how the lease stands. Not
    `awaited`, outside of a transaction: it reaches the disk a moment later, or with the next commit that is."""
    rows = [{name: getattr(step, name) for name in _STEP_FIELDS} for step in steps]
    with connection.cursor() as cursor:
        found = json.dumps(rows, cls=DjangoJSONEncoder)
        cursor.execute(_PUT_DOWN, [awaited, lease.operation_id, lease.fence, lease.owner, found])
        answers = cursor.fetchall()
    if len(answers) != len(rows):
        raise LeaseLost
    held, cancel, read_only, reason = answers[0]
    return Standing(bool(held), bool(cancel), bool(read_only), str(reason or ""))


# Nobody waits for the disk here: the rows say what counts. In somebody's transaction that is for its commit to decide.
_SAY = """
WITH unawaited AS MATERIALIZED (
  SELECT set_config('synchronous_commit', CASE WHEN %s THEN 'off' ELSE current_setting('synchronous_commit') END, true)
),
mine AS MATERIALIZED (
  SELECT id FROM projects_operation WHERE id = %s AND fence = %s AND lease_owner = %s FOR NO KEY UPDATE
)
INSERT INTO projects_operationevent (operation_id, at, level, message)
SELECT mine.id, %s, %s, %s FROM mine, unawaited
"""


def say(lease: Lease, at: datetime, level: str, message: str) -> None:
    """A line of the operation's log, if nobody claimed it since; else `LeaseLost`."""
    with connection.cursor() as cursor:
        alone = not connection.in_atomic_block
        cursor.execute(_SAY, [alone, lease.operation_id, lease.fence, lease.owner, at, level, message])
        if cursor.rowcount != 1:
            raise LeaseLost


def holds(lease: Lease) -> bool:
    """Whether the lease is still ours and alive, by the database's clock."""
    return standing(lease).held


def fenced(lease: Lease, *, awaited: bool = True) -> None:
    """Lock the operation's row if nobody claimed it since; else `LeaseLost`. In a transaction; whether its commit waits for
    the disk is said here."""
    with connection.cursor() as cursor:
        if not awaited:
            cursor.execute("SET LOCAL synchronous_commit = off")
        cursor.execute(
            "SELECT FROM projects_operation WHERE id = %s AND fence = %s AND lease_owner = %s FOR NO KEY UPDATE",
            [lease.operation_id, lease.fence, lease.owner],
        )
        if cursor.rowcount != 1:
            raise LeaseLost


def extend(lease: Lease) -> bool:
    """One heartbeat: True when the lease was still ours."""
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE projects_operation SET lease_until = clock_timestamp() + %s * interval '1 second'"
            " WHERE id = %s AND fence = %s AND lease_owner = %s AND lease_until > clock_timestamp()",
            [LEASE_SECONDS, lease.operation_id, lease.fence, lease.owner],
        )
        return bool(cursor.rowcount == 1)


class Heartbeat:
    """Extends the lease from its own thread and connection while a step works. Stops at the step's deadline, which it
    cannot extend: what hangs beyond it loses the lease."""

    def __init__(self, lease: Lease) -> None:
        self.lease = lease
        self.lost = threading.Event()
        self._deadline: float | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"heartbeat-{lease.operation_id}", daemon=True)

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._stop.set()
        self._thread.join(timeout=2)

    def set_deadline(self, seconds: float | None) -> None:
        """Seconds from now until heartbeats stop; None for no step at work."""
        self._deadline = None if seconds is None else time.monotonic() + seconds

    def _beat(self) -> None:
        alive_until = time.monotonic() + LEASE_SECONDS
        try:
            while not self._stop.wait(HEARTBEAT_SECONDS):
                if self._deadline is not None and time.monotonic() > self._deadline + HEARTBEAT_SECONDS:
                    log.warning(
                        "step ran beyond its deadline; giving up the lease", operation=str(self.lease.operation_id)
                    )
                    self.lost.set()
                    return
                try:
                    if not extend(self.lease):
                        self.lost.set()
                        return
                    alive_until = time.monotonic() + LEASE_SECONDS
                except Exception as error:
                    connections.close_all()
                    log.warning("heartbeat failed", operation=str(self.lease.operation_id), error=type(error).__name__)
                    if time.monotonic() > alive_until:
                        self.lost.set()
                        return
        finally:
            connections.close_all()
