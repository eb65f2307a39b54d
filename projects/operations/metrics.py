"""Readings over time: raw, then 5-minute, then hourly figures. Every reading is at exactly one of them.

Thinning moves: one statement takes readings out and adds them to what they become, so that whoever is killed in between
has moved all of them or none, and whoever comes second finds nothing left. The database does the work, in windows; neither
the number of statements nor our memory grows with the number of projects.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from django.conf import settings
from django.db import connection, transaction

from novastack.common.clock import now
from projects.models import MetricRollup, MetricSample

FINE = timedelta(minutes=5)
COARSE = timedelta(hours=1)
WINDOW = {FINE: timedelta(hours=1), COARSE: timedelta(hours=12)}  # moved at once, at most
WINDOWS_PER_RUN = 48  # what is left over after a long pause, or of an older release, is for the next runs
FIRST = datetime(1, 1, 2, tzinfo=UTC)
EPOCH = datetime(2000, 1, 1, tzinfo=UTC)  # every bucket begins a multiple of its width after this
_LOCK = 0x6D6574726963  # "metric": one thins at a time

_RAW, _ROLLUP = MetricSample._meta.db_table, MetricRollup._meta.db_table
# What is averaged: its name in rollups, and in samples. The size is the largest.
_AVERAGED = {
    "cpu": "cpu_percent", "memory": "memory_bytes", "connections": "connections",
    "transactions": "transactions_per_second", "queries": "queries_per_second", "cache_hit": "cache_hit_percent",
}  # fmt: skip


def _each(pattern: str, joint: str = ", ") -> str:
    return joint.join(pattern.format(n=name, raw=raw, t=_ROLLUP) for name, raw in _AVERAGED.items())


_FIGURES = _each("{n}_sum, {n}_max, {n}_count") + ", size_bytes"
_OF_RAW = (
    _each("coalesce({raw}, 0) AS {n}_sum, {raw} AS {n}_max, ({raw} IS NOT NULL)::int AS {n}_count") + ", size_bytes"
)
# Rows that somebody else is deleting right now (a project is purged) are left to them. What belongs to no project any
# more ends here.
_MOVE = f"""
WITH moved AS (
  DELETE FROM {{table}} WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM {{table}} WHERE {{of}} at < %(until)s FOR UPDATE SKIP LOCKED
  )) RETURNING project_id, at, {{figures}}
), became AS (
  INSERT INTO {_ROLLUP} (project_id, step, at, {_FIGURES})
  SELECT project_id, %(step)s, date_bin(%(width)s, at, %(epoch)s),
    {_each("sum({n}_sum), max({n}_max), sum({n}_count)")}, max(size_bytes)
  FROM moved WHERE EXISTS (SELECT FROM projects_project WHERE projects_project.id = moved.project_id)
  GROUP BY 1, 3
  ON CONFLICT (project_id, at, step) DO UPDATE SET
    {_each("{n}_sum = {t}.{n}_sum + excluded.{n}_sum")},
    {_each("{n}_max = greatest({t}.{n}_max, excluded.{n}_max)")},
    {_each("{n}_count = {t}.{n}_count + excluded.{n}_count")},
    size_bytes = greatest({_ROLLUP}.size_bytes, excluded.size_bytes)
)
SELECT count(*) FROM moved
"""  # noqa: S608 - names of our own tables only
_RAW_TO_FINE = _MOVE.format(table=_RAW, of="", figures=_OF_RAW)
_FINE_TO_COARSE = _MOVE.format(table=_ROLLUP, of="step = 300 AND", figures=_FIGURES)
_SERIES = f"""
SELECT date_bin(%(width)s, at, %(epoch)s) AS bucket,
  {_each("sum({n}_sum)::float / nullif(sum({n}_count), 0), max({n}_max)")}, max(size_bytes)
FROM (
  SELECT at, {_OF_RAW} FROM {_RAW} WHERE project_id = %(project)s AND at >= %(since)s
  UNION ALL
  SELECT at, {_FIGURES} FROM {_ROLLUP} WHERE project_id = %(project)s AND at >= %(since)s
) AS readings GROUP BY 1 ORDER BY 1
"""  # noqa: S608


@dataclass(slots=True)
class Thinned:
    """What one run did, in rows."""

    to_fine: int = 0
    to_coarse: int = 0
    ended: int = 0
    busy: bool = False  # somebody else was at it


def thin() -> Thinned:
    """Move what is old enough to its next resolution and delete what is past the last one. At any time, any number of
    times, by any number of workers at once."""
    moment, done = now(), Thinned()
    fine, coarse, last = boundaries(moment)
    done.to_fine = _move(_RAW_TO_FINE, f"SELECT min(at) FROM {_RAW} WHERE at >= %s", FINE, fine, done)  # noqa: S608
    oldest = f"SELECT min(at) FROM {_ROLLUP} WHERE step = 300 AND at >= %s"  # noqa: S608
    done.to_coarse = _move(_FINE_TO_COARSE, oldest, COARSE, coarse, done)
    done.ended = MetricRollup.objects.filter(step=_seconds(COARSE), at__lt=last).delete()[0]
    return done


def boundaries(moment: datetime) -> tuple[datetime, datetime, datetime]:
    """What is older than these is 5-minute, hourly, nothing. They lie between buckets, so that each is made at once."""
    raw = timedelta(hours=settings.NOVASTACK_METRICS_RAW_HOURS)
    fine = max(raw, timedelta(days=settings.NOVASTACK_METRICS_5MIN_DAYS))
    coarse = max(fine + COARSE, timedelta(days=settings.NOVASTACK_METRICS_HOURLY_DAYS))
    return bucket_of(moment - raw, FINE), bucket_of(moment - fine, COARSE), bucket_of(moment - coarse, COARSE)


def bucket_of(moment: datetime, width: timedelta) -> datetime:
    """Where the bucket of that moment begins."""
    return moment - (moment - EPOCH) % width


def width_for(length: timedelta, wanted: timedelta) -> timedelta:
    """The width of buckets for so long a look back: as wanted, but no finer than what is kept."""
    fine, coarse, _ = boundaries(moment := now())
    if moment - length < coarse:
        return max(wanted, COARSE)
    return max(wanted, FINE) if moment - length < fine else wanted


def series(project_id: UUID, *, since: datetime, width: timedelta) -> list[tuple[Any, ...]]:
    """Per bucket that holds a reading, oldest first: (at, then mean and peak of CPU, memory, connections, transactions and
    queries per second and cache hits in percent, then the largest size)."""
    with connection.cursor() as cursor:
        asked: dict[str, Any] = {"project": project_id, "since": since, "width": width, "epoch": EPOCH}
        cursor.execute(_SERIES, asked)
        rows: list[tuple[Any, ...]] = cursor.fetchall()
        return rows


def _move(statement: str, oldest: str, width: timedelta, until: datetime, done: Thinned) -> int:
    moved, end = 0, FIRST
    for _ in range(WINDOWS_PER_RUN):
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SELECT pg_try_advisory_xact_lock(%s)", [_LOCK])
            if not cursor.fetchone()[0]:
                done.busy = True
                return moved
            cursor.execute(oldest, [end])  # what was left to others does not hold up what came after it
            first = cursor.fetchone()[0]
            if first is None or first >= until:
                return moved
            end = min(until, bucket_of(first, WINDOW[width]) + WINDOW[width])
            asked: dict[str, Any] = {"until": end, "step": _seconds(width), "width": width, "epoch": EPOCH}
            cursor.execute(statement, asked)
            moved += cursor.fetchone()[0]
    return moved


def _seconds(width: timedelta) -> int:
    return int(width.total_seconds())
