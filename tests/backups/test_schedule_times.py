"""When a schedule is due: across gaps and overlaps of the clocks, and words for people."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import islice
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backups.operations import schedules
from backups.operations.schedules import BadSchedule
from novastack.common.ids import uuid7

BERLIN = "Europe/Berlin"
ZONES = ["UTC", BERLIN, "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu", "America/Santiago"]
CRONS = ["0 2 * * *", "30 2 * * *", "0,30 1-3 * * *", "*/15 * * * *", "0 */4 * * *", "17 3 * * 1", "0 0 1 * *",
         "59 23 L * *", "* * * * *", "5 0 29 2 *"]  # fmt: skip
MOMENTS = st.integers(0, 5 * 365 * 86400).map(lambda s: datetime(2024, 1, 1, tzinfo=UTC) + timedelta(seconds=s))


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def local(moment: datetime) -> str:
    return moment.astimezone(ZoneInfo(BERLIN)).strftime("%d %H:%M %Z")


def first(cron: str, after: str, count: int) -> list[str]:
    return [local(s) for s in islice(schedules.slots(cron, BERLIN, after=at(after)), count)]


def test_what_the_clocks_skip_runs_right_after_the_gap_and_once() -> None:
    """On 29 March 2026 Berlin has no 02:30."""
    assert first("30 2 * * *", "2026-03-28T03:00+01:00", 3) == ["29 03:00 CEST", "30 02:30 CEST", "31 02:30 CEST"]
    assert first("0,30 2 * * *", "2026-03-28T03:00+01:00", 2) == ["29 03:00 CEST", "30 02:00 CEST"]


def test_what_comes_twice_runs_the_first_time_only() -> None:
    """On 25 October 2026 Berlin has 02:30 twice."""
    assert first("30 2 * * *", "2026-10-24T03:00+02:00", 2) == ["25 02:30 CEST", "26 02:30 CET"]


@pytest.mark.parametrize("now", ["2026-10-25T02:10+01:00", "2026-10-25T02:29:59+01:00", "2026-10-25T02:45+01:00"])
def test_asked_within_the_second_of_the_two_hours_it_is_over(now: str) -> None:
    assert first("30 2 * * *", now, 1) == ["26 02:30 CET"]
    last = schedules.latest_slot("30 2 * * *", BERLIN, upto=at(now))
    assert last is not None and local(last) == "25 02:30 CEST"


def test_wildcards_follow_real_time() -> None:
    assert first("*/30 * * * *", "2026-10-25T02:10+02:00", 4) == [
        "25 02:30 CEST", "25 02:00 CET", "25 02:30 CET", "25 03:00 CET",
    ]  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(cron=st.sampled_from(CRONS), zone=st.sampled_from(ZONES), moment=MOMENTS)
def test_slots_grow_and_the_latest_one_is_one_of_them(cron: str, zone: str, moment: datetime) -> None:
    coming = list(islice(schedules.slots(cron, zone, after=moment), 5))
    assert all(a < b for a, b in zip([moment, *coming], coming, strict=False))
    for slot in coming:
        assert slot.astimezone(ZoneInfo(zone)).utcoffset() is not None
        assert schedules.latest_slot(cron, zone, upto=slot) == slot
        assert schedules.latest_slot(cron, zone, upto=slot + timedelta(seconds=1)) == slot
    before = schedules.latest_slot(cron, zone, upto=coming[0] - timedelta(seconds=1))
    assert before is not None and before <= moment < coming[0]
    assert schedules.next_slot(cron, zone, after=before) == coming[0]


@pytest.mark.parametrize(
    ("cron", "said"),
    [
        ("0 2 * * *", "At 02:00 every day, Europe/Berlin"),
        ("30 2 * * 1", "At 02:30 on Monday, Europe/Berlin"),
        ("0 */4 * * *", "At minute 0 past every fourth hour, Europe/Berlin"),
    ],
)
def test_it_says_what_it_means(cron: str, said: str) -> None:
    assert schedules.describe(cron, BERLIN) == said


@pytest.mark.parametrize(
    "text",
    [
        "",
        "* * * *",
        "* * * * * *",
        "61 * * * *",
        "@daily",
        "0 25 * * *",
        "0 0 30 2 *",
        None,
        7,
        "a" * 200,
        "0 2 * * *" + " " * 100,
        "0 0 31 4 *",
        "٠ 2 * * *",
        "*/0 * * * *",
    ],
)
def test_what_cron_does_not_know_is_refused_with_the_field(text: object) -> None:
    with pytest.raises(BadSchedule) as refused:
        schedules.clean_cron(text)
    assert refused.value.field == "cron" and refused.value.detail


@pytest.mark.parametrize("text", ["", "Mars/Base", "europe/berlin", "../etc/passwd", None, "CEST"])
def test_unknown_zones_are_refused(text: object) -> None:
    with pytest.raises(BadSchedule) as refused:
        schedules.clean_zone(text)
    assert refused.value.field == "time_zone"


def test_presets_are_good_schedules() -> None:
    for preset in schedules.PRESETS.values():
        assert schedules.clean_cron(preset.cron) == preset.cron
        assert preset.retention


def test_many_of_one_slot_are_spread_over_the_hour() -> None:
    moment = at("2026-11-20T12:00+00:00")
    found = [schedules.spread_of(uuid7(), "0 2 * * *", "UTC", at=moment) for _ in range(600)]
    assert min(found) >= 0 and max(found) < 3600
    counts = [sum(1 for s in found if s // 600 == part) for part in range(6)]
    assert min(counts) > 50, counts
    key = UUID("01980000-0000-7000-8000-0000000000aa")
    again = {schedules.spread_of(key, "0 2 * * *", "UTC", at=moment + timedelta(days=d)) for d in range(5)}
    assert len(again) == 1


def test_frequent_ones_are_spread_within_their_own_gap() -> None:
    moment = at("2026-11-20T12:00+00:00")
    assert max(schedules.spread_of(uuid7(), "*/5 * * * *", "UTC", at=moment) for _ in range(200)) < 150


def test_missed_slots_are_counted() -> None:
    first_one, last = at("2026-11-20T02:00+00:00"), at("2026-11-23T02:00+00:00")
    assert schedules.missed("0 2 * * *", "UTC", first=first_one, last=last) == 3
    assert schedules.missed("* * * * *", "UTC", first=first_one, last=last) == 1000
