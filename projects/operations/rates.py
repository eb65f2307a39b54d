"""From what an engine counts to what is done per second. Pure."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from projects.domain import Counters

LONGEST_SECONDS = 600.0  # a mean over longer says nothing about now
_KEPT = ("transactions", "queries", "cache_hits", "cache_misses", "uptime_seconds")


@dataclass(frozen=True, slots=True)
class Rates:
    """Per second, and percent; None where nothing can be said."""

    transactions_per_second: float | None = None
    queries_per_second: float | None = None
    cache_hit_percent: float | None = None


def rates_between(before: dict[str, Any], counters: Counters | None, moment: datetime) -> tuple[Rates, dict[str, Any]]:
    """What was done since `before` (of the look before, or empty), and what to keep for the next look. Nothing is said
    where counting began anew in between: a restart, a crash, a reset."""
    if counters is None:
        return Rates(), {}
    found = asdict(counters)
    kept = {name: found[name] for name in _KEPT if found[name] is not None} | {"at": moment.timestamp()}
    seconds = kept["at"] - float(before.get("at", 0))
    if not 1 <= seconds <= LONGEST_SECONDS or _began_anew(before, counters, seconds):
        return Rates(), kept
    hits, misses = _grown(before, kept, "cache_hits"), _grown(before, kept, "cache_misses")
    asked = (hits or 0) + (misses or 0)
    return Rates(
        transactions_per_second=_per(_grown(before, kept, "transactions"), seconds),
        queries_per_second=_per(_grown(before, kept, "queries"), seconds),
        cache_hit_percent=None if hits is None or misses is None or not asked else 100 * hits / asked,
    ), kept


def _began_anew(before: dict[str, Any], counters: Counters, seconds: float) -> bool:
    """It counts for less long than it did then and the time since; a second and a half for clocks in whole seconds."""
    was, now = before.get("uptime_seconds"), counters.uptime_seconds
    if now is None:
        return was is not None
    return now < seconds - 1.5 or (was is not None and now < was + seconds - 1.5 - seconds * 0.05)


def _grown(before: dict[str, Any], after: dict[str, Any], name: str) -> int | None:
    if name not in before or name not in after or after[name] < before[name]:
        return None
    return int(after[name] - before[name])


def _per(count: int | None, seconds: float) -> float | None:
    return None if count is None else count / seconds
