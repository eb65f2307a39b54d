"""What became of operations, for Prometheus: counts, durations, retries and failures, from their rows. Three queries over
those of the last hours: what ended before is summed up once, and kept in the cache. Who loses the cache sums up again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeVar

from django.core.cache import cache
from django.db.models import Count, DurationField, ExpressionWrapper, F, Q, Sum

from novastack.common.clock import now
from projects.models import Operation, OperationState, OperationStep, StepState

K = TypeVar("K")
SETTLED = timedelta(hours=1)  # after its end nothing of an operation changes, nor is it still to be committed
EVERY = timedelta(hours=1)  # what has settled since is added
KEY = "operation-figures:1"
BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0)  # seconds
ENDED = (OperationState.SUCCEEDED, OperationState.FAILED, OperationState.CANCELLED)


@dataclass(frozen=True, slots=True)
class Durations:
    """`buckets`: how many took at most so many seconds."""

    buckets: Mapping[float, int]
    count: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Figures:
    ended: Mapping[tuple[str, str], int]  # kind, state
    failures: Mapping[tuple[str, str], int]  # kind, code
    operations: Mapping[tuple[str], Durations]  # kind: those that succeeded, from being asked for to their end
    steps: Mapping[
        tuple[str, str], Durations
    ]  # kind, step: those that succeeded, from their first begin, retries included
    retries: Mapping[tuple[str, str], int]  # kind, step


def _durations(began: str, ok: Q) -> dict[str, Any]:
    """Annotations of a query: how many of `ok` took how long."""
    took = ExpressionWrapper(F("finished_at") - F(began), output_field=DurationField())
    parts = {f"le_{n}": Count("id", filter=ok & Q(took__lte=timedelta(seconds=le))) for n, le in enumerate(BUCKETS)}
    return {"took": took, "parts": {**parts, "done": Count("id", filter=ok), "seconds": Sum("took", filter=ok)}}


def _read(row: Mapping[str, Any]) -> Durations:
    seconds = row["seconds"].total_seconds() if row["seconds"] is not None else 0.0
    return Durations({le: row[f"le_{n}"] for n, le in enumerate(BUCKETS)}, row["done"], seconds)


def operation_figures() -> Figures:
    """Whatever there is on record."""
    settled, until = _settled()
    recent = _figures(Q(finished_at__gt=until) | Q(finished_at=None))
    return _sum(settled, recent)


def _settled() -> tuple[Figures, datetime]:
    """Of all that ended until some moment of the last two hours, and that moment."""
    try:
        known = cache.get(KEY)
    except Exception:  # each cache has errors of its own, and losing it costs time only
        known = None
    newest = now() - SETTLED
    if known is not None and newest - known[1] < EVERY:
        return known  # type: ignore[no-any-return]
    if known is None:
        found = _figures(Q(finished_at__lte=newest))
    else:
        found = _sum(known[0], _figures(Q(finished_at__gt=known[1], finished_at__lte=newest)))
    try:
        cache.set(KEY, (found, newest), None)
    except Exception:
        return found, newest
    return found, newest


def _sum(one: Figures, other: Figures) -> Figures:
    return Figures(
        _added(one.ended, other.ended), _added(one.failures, other.failures),
        _joined(one.operations, other.operations), _joined(one.steps, other.steps), _added(one.retries, other.retries),
    )  # fmt: skip


def _added(one: Mapping[K, int], other: Mapping[K, int]) -> dict[K, int]:
    return {key: one.get(key, 0) + other.get(key, 0) for key in {**one, **other}}


def _joined(one: Mapping[K, Durations], other: Mapping[K, Durations]) -> dict[K, Durations]:
    return {
        key: Durations(
            _added(one[key].buckets, other[key].buckets),
            one[key].count + other[key].count,
            one[key].seconds + other[key].seconds,
        )
        if key in one and key in other
        else one.get(key) or other[key]
        for key in {**one, **other}
    }


def _figures(which: Q) -> Figures:
    whole = _durations("created_at", Q(state=OperationState.SUCCEEDED))
    mine = Operation.objects.order_by().filter(which)
    ended = list(
        mine.filter(state__in=ENDED).annotate(took=whole["took"]).values("kind", "state")
        .annotate(number=Count("id"), **whole["parts"])
    )  # fmt: skip
    failed = (
        mine.filter(state__in=ENDED, error__isnull=False).values("kind", "error__code").annotate(number=Count("id"))
    )
    part = _durations("started_at", Q(state=StepState.SUCCEEDED, started_at__isnull=False, finished_at__isnull=False))
    steps: list[Any] = list(
        OperationStep.objects.order_by().filter(operation__in=mine.values("pk")).annotate(took=part["took"])
        .values("operation__kind", "name").annotate(retries=Sum("retries"), **part["parts"])
    )  # fmt: skip
    return Figures(
        ended={(r["kind"], r["state"]): r["number"] for r in ended},
        failures={(r["kind"], str(r["error__code"])): r["number"] for r in failed},
        operations={(r["kind"],): _read(r) for r in ended if r["state"] == OperationState.SUCCEEDED},
        steps={(r["operation__kind"], r["name"]): _read(r) for r in steps if r["done"]},
        retries={(r["operation__kind"], r["name"]): r["retries"] for r in steps if r["retries"]},
    )
