"""Cron expressions with a zone, without rows: what they mean, when they are due, how they are spread.

Cron is Debian's: what is named at an hour that the clocks skip runs right after the gap, at one that comes twice it runs
the first time; wildcards follow real time (cronsim). Moments in and out are UTC.
"""

from __future__ import annotations

import hashlib
import zoneinfo
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import islice, pairwise
from uuid import UUID

from cronsim import CronSim, CronSimError

SPREAD_SECONDS = 3600  # begun within the hour after the slot
_SHIFT = timedelta(hours=3)  # more than any zone's clocks are put back by
_SHOWN_GAPS = 8
MAX_CRON = 100


class BadSchedule(ValueError):
    """`field` is `cron` or `time_zone`; the text is for people."""

    def __init__(self, field: str, code: str, detail: str) -> None:
        super().__init__(detail)
        self.field, self.code, self.detail = field, code, detail


@dataclass(frozen=True, slots=True)
class Preset:
    """How often, in one word, with what is kept unless something else is asked for."""

    name: str
    title: str
    cron: str
    retention: dict[str, int]


PRESETS = {
    preset.name: preset
    for preset in (
        Preset("hourly", "Hourly", "0 * * * *", {"keep_last": 24, "keep_daily": 7}),
        Preset("every_4_hours", "Every 4 hours", "0 */4 * * *", {"keep_last": 12, "keep_daily": 14, "keep_weekly": 8}),
        Preset("daily", "Daily", "0 2 * * *", {"keep_daily": 7, "keep_weekly": 4, "keep_monthly": 6}),
        Preset("weekly", "Weekly", "0 2 * * 0", {"keep_weekly": 8, "keep_monthly": 12}),
    )
}  # fmt: skip


@lru_cache(maxsize=1)
def zones() -> frozenset[str]:
    return frozenset(zoneinfo.available_timezones()) | {"UTC"}


def clean_zone(text: object) -> str:
    """The zone's name as the tz database spells it. Raises `BadSchedule`."""
    if not isinstance(text, str) or text not in zones():
        raise BadSchedule("time_zone", "unknown", "Use a name of the tz database, such as Europe/Berlin or UTC.")
    return text


def clean_cron(text: object) -> str:
    """Five fields that come true at some time, single spaces between them. Raises `BadSchedule`."""
    fields = text.split() if isinstance(text, str) else []
    wanted = "Use five fields: minute, hour, day of the month, month, day of the week, such as “0 2 * * *”."
    if not isinstance(text, str) or len(fields) != 5 or len(text) > MAX_CRON or not text.isascii():
        raise BadSchedule("cron", "invalid", wanted)
    cron = " ".join(fields)
    try:
        first = next(CronSim(cron, datetime(2024, 1, 1, tzinfo=UTC)), None)
    except (CronSimError, ValueError, OverflowError) as error:
        raise BadSchedule("cron", "invalid", f"{error}. {wanted}") from None
    if first is None:
        raise BadSchedule("cron", "never", "There is no such day: it would never run.")
    return cron


def describe(cron: str, time_zone: str) -> str:
    """In plain English: “At 02:00 every day, Europe/Berlin”."""
    return f"{CronSim(cron, datetime.now(UTC)).explain()}, {time_zone}"


def slots(cron: str, time_zone: str, *, after: datetime) -> Iterator[datetime]:
    """The slots later than `after`, each later than the one before."""
    last = after
    # Begun a little earlier: an hour that comes twice is the first one's to cron, and may be the second one's here.
    for found in CronSim(cron, (after - _SHIFT).astimezone(zoneinfo.ZoneInfo(time_zone))):
        slot = found.astimezone(UTC)
        if slot > last:
            yield slot
            last = slot


def next_slot(cron: str, time_zone: str, *, after: datetime) -> datetime | None:
    """The first slot later than that; None when there is none in fifty years."""
    return next(slots(cron, time_zone, after=after), None)


def latest_slot(cron: str, time_zone: str, *, upto: datetime) -> datetime | None:
    """The last slot that is not later than that."""
    begin = (upto + _SHIFT).astimezone(zoneinfo.ZoneInfo(time_zone))
    for found in CronSim(cron, begin, reverse=True):
        slot = found.astimezone(UTC)
        if slot <= upto:
            return slot
    return None


def spread_of(key: UUID, cron: str, time_zone: str, *, at: datetime) -> int:
    """Seconds after the slot at which this schedule begins: always the same for the same one, evenly over an hour, and
    less than half of its shortest gap, so that a slot is over before the next one comes."""
    coming = list(islice(slots(cron, time_zone, after=at), _SHOWN_GAPS))
    gaps = [int((b - a).total_seconds()) for a, b in pairwise(coming)]
    window = min(SPREAD_SECONDS, min(gaps, default=SPREAD_SECONDS * 2) // 2)
    return int.from_bytes(hashlib.sha256(key.bytes).digest()[:8], "big") % max(1, window)


def missed(cron: str, time_zone: str, *, first: datetime, last: datetime, most: int = 1000) -> int:
    """How many slots there are from `first` (itself one) to before `last`, counted up to `most`."""
    count = 0
    for slot in slots(cron, time_zone, after=first - timedelta(seconds=1)):
        if slot >= last or count >= most:
            break
        count += 1
    return count
