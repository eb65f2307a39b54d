"""What became of operations, for Prometheus: counts, durations, retries and failures, from their rows. Three queries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.db.models import Count, DurationField, ExpressionWrapper, F, Q, Sum

from projects.models import Operation, OperationState, OperationStep, StepState

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
    whole = _durations("created_at", Q(state=OperationState.SUCCEEDED))
    rows = (
        Operation.objects.order_by().filter(state__in=ENDED).annotate(took=whole["took"]).values("kind", "state")
        .annotate(number=Count("id"), **whole["parts"])
    )  # fmt: skip
    ended = list(rows)
    failed = (
        Operation.objects.order_by().filter(state__in=ENDED, error__isnull=False).values("kind", "error__code")
        .annotate(number=Count("id"))
    )  # fmt: skip
    part = _durations("started_at", Q(state=StepState.SUCCEEDED, started_at__isnull=False, finished_at__isnull=False))
    steps: list[Any] = list(
        OperationStep.objects.order_by().annotate(took=part["took"]).values("operation__kind", "name")
        .annotate(retries=Sum("retries"), **part["parts"])
    )  # fmt: skip
    return Figures(
        ended={(r["kind"], r["state"]): r["number"] for r in ended},
        failures={(r["kind"], str(r["error__code"])): r["number"] for r in failed},
        operations={(r["kind"],): _read(r) for r in ended if r["state"] == OperationState.SUCCEEDED},
        steps={(r["operation__kind"], r["name"]): _read(r) for r in steps if r["done"]},
        retries={(r["operation__kind"], r["name"]): r["retries"] for r in steps if r["retries"]},
    )
