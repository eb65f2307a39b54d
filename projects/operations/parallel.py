"""Many servers at once: a few threads each for those that answer and those that did not last time, and a deadline.

Who hangs delays who hangs, and nobody else; what a tick does not come to is begun by the next one.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

import structlog
from django.core.cache import cache

log = structlog.get_logger(__name__)
T = TypeVar("T")
R = TypeVar("R")


class Lane(Generic[T, R]):
    """Work under way. `collect` waits for what has begun; every call is bounded in time by itself."""

    def __init__(self, pool: ThreadPoolExecutor, work: Sequence[tuple[T, Future[R | _Skipped]]]) -> None:
        self._pool, self._work = pool, work

    def collect(self) -> list[tuple[T, R]]:
        """Item and result of those that were begun before the deadline, in their order."""
        try:
            answers = [(item, future.result()) for item, future in self._work]
        finally:
            self._pool.shutdown()
        return [(item, answer) for item, answer in answers if not isinstance(answer, _Skipped)]


@dataclass(frozen=True, slots=True)
class _Skipped:
    """Its turn came too late."""


def start(
    name: str,
    call: Callable[[T], R],
    broken: Callable[[Exception], R],
    items: Sequence[T],
    *,
    threads: int,
    seconds: float,
) -> Lane[T, R]:
    """Call `call` for each item in `threads` threads (no ORM there); none is begun after `seconds`. An error that nobody
    expected is logged and becomes what `broken` makes of it: it is that item's and nobody else's."""
    until = time.monotonic() + seconds

    def one(item: T) -> R | _Skipped:
        if time.monotonic() > until:
            return _Skipped()
        try:
            return call(item)
        except Exception as error:
            log.error("a server's turn broke", work=name, error=type(error).__name__, exc_info=error)
            return broken(error)

    pool = ThreadPoolExecutor(max(1, min(threads, len(items))), thread_name_prefix=name)
    return Lane(pool, [(item, pool.submit(one, item)) for item in items])


@contextlib.contextmanager
def alone(name: str, *, seconds: float) -> Iterator[bool]:
    """True for one process at a time: of two ticks of a kind the second has nothing to do but to hold a thread. Given up
    after `seconds`, should its holder have died. Not a promise: two at once do no harm."""
    key = f"tick:{name}"
    try:
        mine = cache.add(key, True, seconds)
    except Exception as error:  # each cache has errors of its own; watching goes on without one
        log.warning("tick not claimed", tick=name, error=type(error).__name__)
        yield True
        return
    try:
        yield mine
    finally:
        if mine:
            with contextlib.suppress(Exception):
                cache.delete(key)
