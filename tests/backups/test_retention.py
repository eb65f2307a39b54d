"""What is kept: examples, and laws that hold for anything."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID
from zoneinfo import ZoneInfo

from hypothesis import given, settings
from hypothesis import strategies as st

from backups.retention import AHEAD, FAILED_DAYS, Content, Item, Rules, State, decide, most_at_once, shrank

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)


def item(number: int, hours_ago: float, **fields: object) -> Item:
    values: dict[str, object] = {"size_bytes": 100, "verified": True, **fields}
    return Item(UUID(int=number), NOW - timedelta(hours=hours_ago), **values)  # type: ignore[arg-type]


def kept(items: list[Item], **rules: object) -> list[int]:
    return [v.item.id.int for v in decide(items, Rules(**rules), now=NOW) if v.keep]  # type: ignore[arg-type]


def daily(count: int, **fields: object) -> list[Item]:
    return [item(n + 1, 24 * n, **fields) for n in range(count)]


def test_without_rules_nothing_goes() -> None:
    assert len(kept([*daily(50), item(99, 24 * 400, state=State.FAILED, verified=False)])) == 51


def test_the_latest() -> None:
    assert kept(daily(10), keep_last=3) == [1, 2, 3]


def test_days() -> None:
    assert kept(daily(10), keep_days=3) == [1, 2, 3]


def test_the_last_verified_one_stays_whatever_the_rules() -> None:
    rows = [*daily(3, verified=False), item(50, 24 * 300), item(51, 24 * 301)]
    assert kept(rows, keep_last=1) == [1, 50]
    assert kept(rows, keep_days=0) == [50]
    assert kept(rows, keep_last=1, max_bytes=1) == [50]


def test_pinned_and_used_ones_stay() -> None:
    rows = [item(1, 0), item(2, 24 * 90, pinned=True), item(3, 24 * 91, in_use=True), item(4, 24 * 92)]
    assert kept(rows, keep_last=1) == [1, 2, 3]


def test_failed_ones_do_not_count_and_go_after_a_week() -> None:
    failed = {"state": State.FAILED, "verified": False, "size_bytes": 0}
    rows = [item(1, 0, **failed), item(2, 1), item(3, 25), item(4, 24 * (FAILED_DAYS + 1), **failed)]
    assert kept(rows, keep_last=2) == [1, 2, 3]


def test_corrupt_ones_are_for_people_to_remove() -> None:
    rows = [item(1, 0), item(2, 24 * 500, state=State.CORRUPT, verified=False)]
    assert kept(rows, keep_last=1) == [1, 2]


def test_father_and_grandfather() -> None:
    """Four a day for a year: seven days, four weeks, six months; each the newest of its time."""
    rows = [item(n + 1, 6 * n) for n in range(4 * 365)]
    found = kept(rows, keep_daily=7, keep_weekly=4, keep_monthly=6)
    # The newest of this week, of the last one (Sunday the 15th) and of this month are among the seven days.
    assert len(found) == 7 + 2 + 5
    moments = [NOW - timedelta(hours=6 * (n - 1)) for n in found]
    assert len({m.date() for m in moments}) == len(moments)


def test_what_a_wrong_clock_dated_in_the_future_takes_nobodys_place() -> None:
    """Else three of next year would be the three latest, and what is taken today would go."""
    ahead = [item(n, -24 * 365, size_bytes=0) for n in (91, 92, 93)]
    assert kept([*ahead, *daily(10)], keep_last=3) == [93, 92, 91, 1, 2, 3]
    assert kept([*ahead, *daily(10)], keep_daily=3) == [93, 92, 91, 1, 2, 3]
    assert kept([*ahead, *daily(3, verified=False), item(50, 24 * 300)], keep_last=1) == [93, 92, 91, 1, 50]
    (why, *_) = [v.why for v in decide([*ahead, *daily(1)], Rules(keep_last=1), now=NOW)]
    assert why == ("dated in the future, by a clock that was wrong",)
    assert kept([item(9, -0.9), *daily(3)], keep_last=1) == [9], "clocks of two machines differ by a little"


def test_days_are_those_of_the_zone() -> None:
    """23:30 UTC is the next day in Berlin."""
    evening = Item(UUID(int=1), datetime(2026, 11, 19, 23, 30, tzinfo=UTC), 1, verified=True)
    morning = Item(UUID(int=2), datetime(2026, 11, 20, 6, tzinfo=UTC), 1, verified=True)
    assert kept([evening, morning], keep_daily=2, time_zone="UTC") == [2, 1]
    assert kept([evening, morning], keep_daily=2, time_zone="Europe/Berlin") == [2]


def test_a_verified_one_speaks_for_its_day() -> None:
    rows = [item(1, 0), item(2, 25, verified=False), item(3, 26), item(4, 27, verified=False)]
    assert kept(rows, keep_daily=2) == [1, 3]


def test_the_oldest_go_when_it_is_too_much() -> None:
    rows = [item(n, n) for n in range(1, 6)]
    assert kept(rows, max_bytes=250) == [1, 2]
    assert kept([*rows, item(9, 99, pinned=True)], max_bytes=250) == [1, 9]


def test_less_than_half_is_suspicious() -> None:
    assert shrank(Content(1000, 10_000), Content(499, 9_000)) == "499 rows, after 1000 in the one before"
    assert shrank(Content(1000, 10_000), Content(1000, 4_999))
    assert not shrank(Content(1000, 10_000), Content(500, 5_000))
    assert not shrank(Content(None, None), Content(0, 0)) and not shrank(Content(0, 0), Content(0, 0))
    assert not shrank(Content(1000, None), Content(None, 7))


def test_a_clock_removes_few() -> None:
    assert [most_at_once(n) for n in (0, 10, 60, 100, 1000)] == [3, 3, 3, 5, 50]
    assert most_at_once(48, came=24) == 27


ITEMS = st.lists(
    st.builds(
        Item,
        id=st.uuids(version=4), at=st.floats(-50, 24 * 800).map(lambda h: NOW - timedelta(hours=h)),
        size_bytes=st.integers(0, 10_000), state=st.sampled_from(State), verified=st.booleans(),
        pinned=st.booleans(), in_use=st.booleans(),
    ),
    max_size=60, unique_by=lambda i: i.id,
)  # fmt: skip
COUNT = st.none() | st.integers(0, 20)
RULES = st.builds(
    Rules, keep_last=COUNT, keep_days=COUNT, keep_daily=COUNT, keep_weekly=COUNT, keep_monthly=COUNT,
    max_bytes=st.none() | st.integers(0, 100_000),
    time_zone=st.sampled_from(["UTC", "Europe/Berlin", "Pacific/Kiritimati", "America/Los_Angeles"]),
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(items=ITEMS, rules=RULES)
def test_laws(items: list[Item], rules: Rules) -> None:
    verdicts = decide(items, rules, now=NOW)
    assert {v.item.id for v in verdicts} == {i.id for i in items} and all(v.why for v in verdicts)
    gone = [v.item for v in verdicts if not v.keep]
    stays = [v.item for v in verdicts if v.keep]
    ahead = {i.id for i in items if i.at > NOW + AHEAD}
    whole = [v.item for v in verdicts if v.item.state is State.WHOLE and v.item.id not in ahead]  # newest first
    assert not any(i.pinned or i.in_use or i.state in {State.CORRUPT, State.UNDER_WAY} for i in gone)
    assert not any(i.id in ahead for i in gone)
    verified = [i for i in whole if i.verified]
    assert not verified or verified[0] in stays
    if not rules.any:
        assert not gone
    for i in gone:
        if i.state is State.FAILED:
            assert i.at < NOW - timedelta(days=FAILED_DAYS)
    if rules.max_bytes is None:
        assert all(i in stays for i in whole[: rules.keep_last or 0])
        if rules.keep_days is not None:
            assert all(i in stays for i in whole if i.at > NOW - timedelta(days=rules.keep_days))
        zone = ZoneInfo(rules.time_zone)
        days = {i.at.astimezone(zone).date() for i in whole}
        have = {i.at.astimezone(zone).date() for i in stays if i in whole}
        assert set(sorted(days)[len(days) - min(len(days), rules.keep_daily or 0) :]) <= have
    else:
        free = [i for i in stays if i in whole and not i.pinned and not i.in_use]
        free = [i for i in free if not verified or i is not verified[0]]
        bound = sum(i.size_bytes for i in stays if i.state is not State.FAILED or i.pinned or i.in_use)
        assert bound <= rules.max_bytes or not any(i.size_bytes for i in free)


@settings(max_examples=200, deadline=None)
@given(items=ITEMS, rules=RULES)
def test_it_is_stable(items: list[Item], rules: Rules) -> None:
    """What was kept is kept when the rest is gone: a second look removes nothing more."""
    stays = [v.item for v in decide(items, rules, now=NOW) if v.keep]
    again = decide(stays, rules, now=NOW)
    assert all(v.keep for v in again), [v for v in again if not v.keep]
