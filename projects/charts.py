"""Small charts without JavaScript: samples to the points of an SVG line. Pure; gaps stay gaps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

BUCKETS = 120


@dataclass(frozen=True, slots=True)
class Chart:
    """`lines` are point lists in a box of 1000 × 100, y downwards; `top` is the value of the upper edge."""

    lines: tuple[str, ...]
    areas: tuple[str, ...]
    top: float
    low: float
    high: float
    last: float

    @property
    def middle(self) -> float:
        return self.top / 2


def chart(
    samples: Iterable[tuple[datetime, float | None]], *, start: datetime, end: datetime, top: float | None = None
) -> Chart | None:
    """The mean of each of 120 spans between `start` and `end`; None when fewer than two spans hold a value."""
    width = (end - start) / BUCKETS
    sums: dict[int, list[float]] = {}
    for at, value in samples:
        if value is None or not start <= at <= end:
            continue
        sums.setdefault(min(BUCKETS - 1, int((at - start) / width)), []).append(value)
    if len(sums) < 2:
        return None
    means = {bucket: sum(values) / len(values) for bucket, values in sorted(sums.items())}
    upper = max(top or 0.0, *means.values()) or 1.0
    runs = _runs(list(means))
    lines = tuple(" ".join(_point(b, means[b], upper) for b in run) for run in runs)
    areas = tuple(f"{_x(run[0])},100 {line} {_x(run[-1])},100" for run, line in zip(runs, lines, strict=True))
    values = list(means.values())
    return Chart(lines, areas, upper, min(values), max(values), values[-1])


def _runs(buckets: Sequence[int]) -> list[list[int]]:
    """Neighbouring buckets together; one missing bucket is bridged, more are a gap."""
    runs: list[list[int]] = []
    for bucket in buckets:
        if runs and bucket - runs[-1][-1] <= 2:
            runs[-1].append(bucket)
        else:
            runs.append([bucket])
    return runs


def _x(bucket: int) -> str:
    return f"{1000 * bucket / (BUCKETS - 1):.0f}"


def _point(bucket: int, value: float, upper: float) -> str:
    return f"{_x(bucket)},{100 - 100 * value / upper:.1f}"


DAY = timedelta(hours=24)
