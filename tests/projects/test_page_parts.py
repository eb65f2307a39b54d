"""Pure parts of the pages: sizes, times, charts, log lines."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from django.utils import timezone

from novastack.common.templatetags.ui import ago_text, duration_text, size_text
from projects.charts import chart
from projects.templatetags.projects_ui import axis, with_code
from projects.views.logs import parse

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("size", "text"),
    [(None, "–"), (0, "0 B"), (1023, "1,023 B"), (1024, "1 kB"), (512 * 2**20, "512 MB"), (5 * 2**30, "5 GB"),
     (int(18.4 * 2**30), "18.4 GB"), (300 * 2**40, "300 TB")],
)  # fmt: skip
def test_sizes_are_for_people(size: int | None, text: str) -> None:
    assert size_text(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, ""), (0.31, "0.3 s"), (14, "14 s"), (211, "3:31"), (7500, "2 h 05 min"), (90_000 * 2, "2 d 2 h")],
)
def test_durations_are_for_people(seconds: float | None, text: str) -> None:
    assert duration_text(seconds) == text


@pytest.mark.parametrize(
    ("ago", "text"),
    [(timedelta(seconds=3), "now"), (timedelta(minutes=5), "5 min ago"), (timedelta(hours=31), "31 h ago"),
     (timedelta(days=4), "4 days ago"), (timedelta(days=18), "2 Nov"), (-timedelta(days=7), "in 7 days"),
     (-timedelta(hours=3), "in 3 h")],
)  # fmt: skip
def test_moments_are_told_from_now(ago: timedelta, text: str) -> None:
    assert ago_text(NOON - ago, NOON) == text


def test_a_chart_keeps_its_gaps() -> None:
    start = NOON - timedelta(hours=24)
    near = [(start + timedelta(minutes=12 * i), 1.0) for i in range(10)]
    late = [(NOON - timedelta(minutes=12 * i), 3.0) for i in range(10)]
    drawn = chart([*near, *late], start=start, end=NOON, top=20)
    assert drawn is not None
    assert len(drawn.lines) == 2
    assert (drawn.low, drawn.high, drawn.last, drawn.top) == (1, 3, 3, 20)


def test_one_reading_is_no_chart() -> None:
    assert chart([(NOON, 1.0), (NOON, None)], start=NOON - timedelta(hours=24), end=NOON) is None


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (5.0, "5"), (0.254, "0.25"), (2.5, "2.5"), (12.6, "13"), (1200.0, "1\u202f200")]
)
def test_a_small_rate_has_an_axis(value: float, text: str) -> None:
    assert axis(value) == text


def test_backticks_are_code_and_nothing_else_is() -> None:
    assert with_code("Run `a <b>` & go") == "Run <code>a &lt;b&gt;</code> &amp; go"
    assert with_code("one ` <alone>") == "one ` &lt;alone&gt;"


def test_log_lines_are_read_and_escaped() -> None:
    line = parse('2026-11-20 12:00:00.123 UTC [77] ERROR:  no table "<x>" here', "TABLE")
    assert (line.time, line.level, line.css) == ("12:00:00.123", "ERROR", "err")
    assert line.message == "no <mark>table</mark> &quot;&lt;x&gt;&quot; here"


@pytest.mark.parametrize(
    ("text", "time", "level", "css", "message"),
    [
        ("2026-11-20 12:00:00 0 [Warning] Access denied", "12:00:00", "WARN", "warn", "Access denied"),  # MariaDB
        ("2026-11-20T12:00:00.123456Z 0 [ERROR] [MY-1] [Server] Out", "07:00:00.123", "ERROR", "err", "[MY-1] [Server] Out"),
        ("2026-11-20T12:00:00.123Z\tWARN\ta/b.go:1\tSlow\t{}", "07:00:00.123", "WARN", "warn", "Slow\t{}"),  # FerretDB
        ('{"t":{"$date":"2026-11-20T12:00:00.123+00:00"},"s":"E","c":"-","ctx":"x","msg":"Bad","attr":{"n":1}}',
         "07:00:00.123", "ERROR", "err", "Bad {&quot;n&quot;: 1}"),  # MongoDB
        ("2026-11-20 12:00:00.123 UTC [7] LOG:  fine", "07:00:00.123", "LOG", "", "fine"),
    ],
)  # fmt: skip
def test_every_engine_s_lines_have_a_level_and_the_reader_s_time(
    text: str, time: str, level: str, css: str, message: str
) -> None:
    with timezone.override("America/New_York"):
        line = parse(text)
    assert (line.time, line.level, line.css, line.message) == (time, level, css, message)
    assert "2026-11-20" in line.stamp


@pytest.mark.parametrize(
    "text",
    [
        "",
        "plain",
        "LOG:  x",
        "2026-99-99 27:00:00 UTC LOG:  x",
        '{"t":',
        '{"t":1}',
        '{"t":{"$date":1}}',
        "2026-11-20T12:00:00Z [Note]",
        "2026-11-20T12:00:00Z hello",
        "\ud83d\ude00" * 3,
    ],
)
def test_any_line_can_be_shown(text: str) -> None:
    assert parse(text, "x").message is not None
