"""Requests that wait for the end of an operation (`?wait=30`): each asks for itself in the first moment; after that one
thread and one connection of the process watch for all of them, while each of them holds none."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterable
from uuid import UUID

import structlog
from django.conf import settings
from django.db import Error as DatabaseError
from django.db import connection

from projects.models import Operation, OperationState

log = structlog.get_logger(__name__)
POLL_SECONDS = 0.02
EAGER_POLL_SECONDS = 0.004  # for as long as it is likely to end soon: a start, or a standby that is claimed
EAGER_SECONDS = 0.5
ENDED = [str(state) for state in (OperationState.SUCCEEDED, OperationState.FAILED, OperationState.CANCELLED)]
_ENDED = "SELECT FROM projects_operation WHERE id = %s AND state = ANY(%s)"
# At most half of this process's threads wait at a time; one more gets its answer at once (rule 49).
waiters = threading.BoundedSemaphore(max(1, settings.NOVASTACK_WEB_THREADS // 2))


def wait_for_end(pk: UUID, seconds: float) -> None:
    """Return when the operation has ended, or after `seconds`, or at once when too many wait already.

    Holds no database connection meanwhile, but for the first moment: who is answered then need not open another one.
    """
    if seconds <= 0 or not waiters.acquire(blocking=False):
        return
    try:
        if _ends_soon(pk, min(seconds, EAGER_SECONDS)) or seconds <= EAGER_SECONDS:
            return
        if not connection.in_atomic_block:
            connection.close()
        _watch.wait(pk, seconds - EAGER_SECONDS)
    finally:
        waiters.release()


def _ends_soon(pk: UUID, seconds: float) -> bool:
    """Whether it ends within these seconds, asked on the request's own connection: most that are short are waited for by
    one, and a thread and a connection for them would cost more than the questions."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        time.sleep(min(EAGER_POLL_SECONDS, left))
        try:
            with connection.cursor() as cursor:
                cursor.execute(_ENDED, [pk, ENDED])
                if cursor.rowcount:
                    return True
        except DatabaseError as error:  # answered with what can be read
            log.warning("can't watch an operation", error=type(error).__name__)
            if not connection.in_atomic_block:
                connection.close()
            return True
    return False


class _Watch:
    """Who waits for what. The thread lives while anybody does."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[UUID, set[threading.Event]] = defaultdict(set)
        self._thread: threading.Thread | None = None

    def wait(self, pk: UUID, seconds: float) -> bool:
        """Whether it has ended, or the watch did."""
        ended = threading.Event()
        with self._lock:
            self._waiting[pk].add(ended)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="operation-ends", daemon=True)
                self._thread.start()
        try:
            return ended.wait(seconds)
        finally:
            with self._lock:
                self._waiting[pk].discard(ended)
                if not self._waiting[pk]:
                    del self._waiting[pk]

    def _run(self) -> None:
        try:
            while wanted := self._wanted():
                self._wake(Operation.objects.filter(pk__in=wanted, state__in=ENDED).values_list("pk", flat=True))
                time.sleep(POLL_SECONDS)
        except DatabaseError as error:
            log.warning("can't watch operations", error=type(error).__name__)
        finally:
            self._give_up()
            connection.close()

    def _give_up(self) -> None:
        """Whatever ended the watch: whoever still waits answers with what it can read, and the next one starts another."""
        with self._lock:
            if self._thread is threading.current_thread():
                wanted, self._thread = list(self._waiting), None
            else:
                wanted = []
        self._wake(wanted)

    def _wanted(self) -> list[UUID]:
        """What is waited for; nothing ends the thread, and the next one to wait starts another."""
        with self._lock:
            if not self._waiting:
                self._thread = None
            return list(self._waiting)

    def _wake(self, ended: Iterable[UUID]) -> None:
        with self._lock:
            for pk in ended:
                for event in self._waiting.get(pk, ()):
                    event.set()


_watch = _Watch()
