"""Asking the runtimes of several regions at once. One that hangs costs the others nothing, and us no second thread.

A question runs in a thread of its own, without the ORM. Whoever asked waits only so long; a question that has not come back
is not asked again in this process until it does, and counts as unanswered at once.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar
from uuid import UUID

from projects.domain import RuntimeUnreachable
from projects.models import Region

T = TypeVar("T")
PATIENCE_SECONDS = 4.0
AWAY_PATIENCE_SECONDS = 1.0  # for a region that did not answer before: it may, but nobody waits for it

SLOWEST_SECONDS = 45.0

_took: dict[tuple[str, UUID], float] = {}  # seconds, the last time that it answered
_open: dict[tuple[str, UUID], float] = {}
_lock = threading.Lock()


def ask(
    what: str, questions: Mapping[UUID, Callable[[], T]], patience: Mapping[UUID, float]
) -> Iterator[tuple[UUID, T | Exception]]:
    """The answers as they come, by region; an exception is the answer of who raised it. `RuntimeUnreachable` for who has
    not answered when its patience (seconds) is over, or still owes the answer to the same question (`what`) for so long;
    nothing for who is being asked by another tick."""
    answers: queue.SimpleQueue[tuple[UUID, T | Exception]] = queue.SimpleQueue()
    began = time.monotonic()
    waiting: dict[UUID, float] = {}
    for pk, question in questions.items():
        key = (what, pk)
        with _lock:
            since = _open.get(key)
            if since is None:
                _open[key] = began
        allowed = _grown(patience.get(pk, PATIENCE_SECONDS), _took.get(key))
        if since is not None:
            if began - since >= allowed:  # else who asked still waits for it, and tells
                yield pk, _silent(began - since)
            continue
        waiting[pk] = began + allowed
        threading.Thread(target=_run, args=(key, question, answers), name=f"{what}-{pk.hex[:8]}", daemon=True).start()
    while waiting:
        try:
            pk, answer = answers.get(timeout=max(0.0, min(waiting.values()) - time.monotonic()))
        except queue.Empty:
            for late in [pk for pk, until in waiting.items() if until <= time.monotonic()]:
                del waiting[late]
                yield late, _silent(time.monotonic() - began)
        else:
            if waiting.pop(pk, None) is not None:
                yield pk, answer


def ask_one(
    what: str, region: Region, question: Callable[[], T], *, seconds: float = PATIENCE_SECONDS, patient: bool = False
) -> T:
    """The answer of one region, or what it raised; `RuntimeUnreachable` as in `ask`. `patient`: also where it was away."""
    wait = seconds if region.reachable or patient else AWAY_PATIENCE_SECONDS
    for _, answer in ask(what, {region.pk: question}, {region.pk: wait}):
        if isinstance(answer, Exception):
            raise answer
        return answer
    raise RuntimeUnreachable("it is being asked already")


def patience(regions: Mapping[UUID, Region], seconds: float = PATIENCE_SECONDS) -> dict[UUID, float]:
    return {pk: seconds if region.reachable else AWAY_PATIENCE_SECONDS for pk, region in regions.items()}


def patience_for_calls(regions: Mapping[UUID, Region], seconds: float, calls: int, single: str) -> dict[UUID, float]:
    """As `patience`, for a question that takes up to `calls` calls in series, of regions that have just answered to
    `single`, which takes one: who took long for that gets as long for each of the others."""
    return {pk: _grown(each, calls * _took.get((single, pk), 0.0)) for pk, each in patience(regions, seconds).items()}


def _run(key: tuple[str, UUID], question: Callable[[], Any], answers: queue.SimpleQueue[Any]) -> None:
    answer: Any
    began = time.monotonic()
    try:
        answer = question()
        _took[key] = time.monotonic() - began
    except Exception as error:  # it is the answer
        answer = error
    finally:
        with _lock:
            _open.pop(key, None)
    answers.put((key[1], answer))


def _grown(patience: float, took: float | None) -> float:
    """More of it for one that answered, but late: what is slow is not away."""
    return patience if took is None else max(patience, min(SLOWEST_SECONDS, 1.5 * took + 0.5))


def _silent(seconds: float) -> RuntimeUnreachable:
    return RuntimeUnreachable(f"it has not answered for {max(1, round(seconds))} s")
