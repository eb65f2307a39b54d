"""Small statistics for the benchmarks."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Callable, Sequence
from time import perf_counter


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` (0 to 1) of the values lie, by the nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, round(share * len(ordered) + 0.5) - 1))]


def summary(values: Sequence[float], *, unit: str = "ms", scale: float = 1000) -> str:
    """`n, p50, p95, max` of durations in seconds."""
    return (
        f"n={len(values)} p50={statistics.median(values) * scale:.1f} {unit}"
        f" p95={percentile(values, 0.95) * scale:.1f} {unit} max={max(values) * scale:.1f} {unit}"
    )


def timed(call: Callable[[], object], times: int) -> list[float]:
    """Durations in seconds of `times` calls, after one that is not counted."""
    call()
    found = []
    for _ in range(times):
        begun = perf_counter()
        call()
        found.append(perf_counter() - begun)
    return found


def machine() -> str:
    """What the figures were taken on."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    system = f"{platform.system()} {platform.release()}, Python {platform.python_version()}"
    return f"{os.cpu_count()} cores, {pages:.0f} GiB memory, {system}"


def verdict(value: float, bound: float) -> str:
    return "kept" if value <= bound else "MISSED"
