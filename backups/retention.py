"""Which backups are kept: pure, so that it can be tried on anything.

A backup is kept when any rule wants it, and removed only when there are rules and none does. Sizes in bytes, moments UTC.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from enum import StrEnum
from uuid import UUID
from zoneinfo import ZoneInfo

FAILED_DAYS = 7  # for how long a failed one is there to be looked at
LEAST_AT_ONCE = 3  # rule 8
SHARE_AT_ONCE = 20  # a twentieth: 5 %
AHEAD = timedelta(hours=1)  # what is dated further in the future was dated by a clock that was wrong


class State(StrEnum):
    WHOLE = "whole"  # something can be restored from it
    FAILED = "failed"  # nothing is stored under its name
    CORRUPT = "corrupt"  # a key that was lost looks the same, and comes back: only people remove it
    GONE = "gone"  # its object was missed: a folder that is not mounted looks the same, and comes back
    UNDER_WAY = "under_way"


@dataclass(frozen=True, slots=True)
class Item:
    """A backup as retention sees it. `at`: when it was asked for."""

    id: UUID
    at: datetime
    size_bytes: int
    state: State = State.WHOLE
    verified: bool = False
    pinned: bool = False
    in_use: bool = False


@dataclass(frozen=True, slots=True)
class Rules:
    """None: no such rule. Days, weeks and months are those of the zone."""

    keep_last: int | None = None
    keep_days: int | None = None
    keep_daily: int | None = None
    keep_weekly: int | None = None
    keep_monthly: int | None = None
    max_bytes: int | None = None
    time_zone: str = "UTC"

    @property
    def any(self) -> bool:
        return any(getattr(self, f.name) is not None for f in fields(self) if f.name != "time_zone")

    @property
    def _counts(self) -> bool:
        return any(
            value is not None
            for value in (self.keep_last, self.keep_days, self.keep_daily, self.keep_weekly, self.keep_monthly)
        )


@dataclass(frozen=True, slots=True)
class Verdict:
    """`why`: in words, what keeps it, or why it goes."""

    item: Item
    keep: bool
    why: tuple[str, ...]


def decide(items: Sequence[Item], rules: Rules, *, now: datetime) -> list[Verdict]:
    """A verdict for each, newest first. Never to go: the newest verified one, pinned ones, those in use, those under way,
    corrupt and missing ones. Failed ones count for nothing, and go after a week. Nor does one that is dated in the future:
    nobody knows how old it is, so it stays, and takes nobody's place."""
    ordered = sorted(items, key=lambda item: (item.at, item.id.int), reverse=True)
    ahead = {item.id for item in ordered if item.at > now + AHEAD}
    held = _held(ordered, ahead)
    wanted = _wanted([item for item in ordered if item.state is State.WHOLE and item.id not in ahead], rules, now)
    over = _over(ordered, set(held) | set(wanted), held, rules)
    found = []
    for item in ordered:
        why = (*held.get(item.id, ()), *wanted.get(item.id, ()))
        if item.state is State.FAILED and item.id not in held:
            old = rules.any and item.at < now - timedelta(days=FAILED_DAYS)
            text = f"it failed more than {FAILED_DAYS} days ago" if old else "failed, kept for a while to be looked at"
            found.append(Verdict(item, not old, (text,)))
        elif item.id in over:
            found.append(Verdict(item, False, (f"more than {rules.max_bytes} bytes in all",)))
        elif why:
            found.append(Verdict(item, True, why))
        else:
            found.append(Verdict(item, False, ("no rule keeps it",)))
    return found


def _held(ordered: Sequence[Item], ahead: Collection[UUID]) -> dict[UUID, tuple[str, ...]]:
    """What no rule may take."""
    held: dict[UUID, tuple[str, ...]] = {}
    proven = (item for item in ordered if item.verified and item.state is State.WHOLE and item.id not in ahead)
    last = next(proven, None)
    for item in ordered:
        reasons = (
            ("the last verified one", last is not None and item.id == last.id),
            ("pinned", item.pinned),
            ("in use", item.in_use),
            ("under way", item.state is State.UNDER_WAY),
            ("corrupt: for people to look at", item.state is State.CORRUPT),
            ("missing in its storage: for people to look at", item.state is State.GONE),
            ("dated in the future, by a clock that was wrong", item.id in ahead),
        )
        if found := tuple(text for text, holds in reasons if holds):
            held[item.id] = found
    return held


def _wanted(whole: Sequence[Item], rules: Rules, now: datetime) -> dict[UUID, tuple[str, ...]]:
    """What the rules want, of the whole ones, newest first."""
    wanted: dict[UUID, list[str]] = {}

    def want(item: Item, why: str) -> None:
        wanted.setdefault(item.id, []).append(why)

    if not rules._counts:  # no rule, or one about the size only
        for item in whole:
            want(item, "nothing says that it goes")
    for item in whole[: rules.keep_last or 0]:
        want(item, "the latest one" if rules.keep_last == 1 else f"one of the {rules.keep_last} latest")
    if rules.keep_days is not None:
        for item in whole:
            if item.at > now - timedelta(days=rules.keep_days):
                want(item, "of the last day" if rules.keep_days == 1 else f"of the last {rules.keep_days} days")
    zone = ZoneInfo(rules.time_zone)
    for count, word, period in (
        (rules.keep_daily, "day", lambda at: at.strftime("%Y-%m-%d")),
        (rules.keep_weekly, "week", lambda at: at.strftime("%G-W%V")),
        (rules.keep_monthly, "month", lambda at: at.strftime("%Y-%m")),
    ):
        for item, name in _of_periods(whole, count or 0, lambda item, p=period: p(item.at.astimezone(zone))):  # type: ignore[misc]
            want(item, f"of the {word} {name}")
    return {key: tuple(why) for key, why in wanted.items()}


def _of_periods(whole: Sequence[Item], count: int, period: Callable[[Item], str]) -> list[tuple[Item, str]]:
    """Of each of the latest periods that have any: the newest verified one, else the newest."""
    found: dict[str, Item] = {}
    for item in whole:
        name = period(item)
        if name not in found:
            if len(found) == count:
                continue
            found[name] = item
        elif item.verified and not found[name].verified:
            found[name] = item
    return [(item, name) for name, item in found.items()]


def _over(ordered: Sequence[Item], kept: set[UUID], held: dict[UUID, tuple[str, ...]], rules: Rules) -> set[UUID]:
    """The oldest that make it more than `max_bytes`; what is held counts, and stays."""
    if rules.max_bytes is None:
        return set()
    total = sum(item.size_bytes for item in ordered if item.id in kept)
    over: set[UUID] = set()
    for item in reversed(ordered):
        if total <= rules.max_bytes:
            break
        if item.id in kept and item.id not in held and item.size_bytes:
            over.add(item.id)
            total -= item.size_bytes
    return over


def most_at_once(total: int, *, came: int = 0) -> int:
    """How many of `total` a clock may remove at one tick (rule 8). Each that came since the last one makes one more due:
    what only takes its place is no surprise."""
    return max(LEAST_AT_ONCE, total // SHARE_AT_ONCE) + came


@dataclass(frozen=True, slots=True)
class Content:
    """How much a verified backup holds, as far as known."""

    rows: int | None
    dump_bytes: int | None


def shrank(before: Content, after: Content) -> str:
    """Why the newer one is suspicious: less than half the rows, or the bytes, of the one before (rule 33). Empty: it is
    not."""
    for word, old, new in (
        ("rows", before.rows, after.rows),
        ("bytes", before.dump_bytes, after.dump_bytes),
    ):
        if old and new is not None and new * 2 < old:
            return f"{new} {word}, after {old} in the one before"
    return ""
