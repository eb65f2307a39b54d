"""Readings become coarser with age: exactly, once, and at a cost that does not grow with the number of projects."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.db import OperationalError, connection, connections
from django.test.utils import CaptureQueriesContext

from bench.fixtures import many_projects, person, region
from novastack.common.clock import now
from projects.models import MetricRollup, MetricSample, Project
from projects.operations import metrics
from projects.services.readings import RANGES, metrics_of

HOUR, DAY = timedelta(hours=1), timedelta(days=1)


@pytest.fixture
def moment(monkeypatch: pytest.MonkeyPatch) -> Iterator[datetime]:
    """A time that stands still, in the middle of a bucket."""
    fixed = metrics.bucket_of(now(), HOUR) + timedelta(minutes=32, seconds=10)
    monkeypatch.setattr(metrics, "now", lambda: fixed)
    monkeypatch.setattr("projects.services.readings.now", lambda: fixed)
    yield fixed


def projects_of(count: int) -> list[Project]:
    return many_projects(person()[1], count, where=region(f"bench-{count}"))


def fill(begin: datetime, end: datetime, every_seconds: int = 30) -> int:
    """A reading of every project at every step: CPU and memory count up, connections are missing each third time."""
    with connection.cursor() as cursor:
        cursor.execute(
            """INSERT INTO projects_metricsample (project_id, at, cpu_percent, memory_bytes, size_bytes, connections)
               SELECT p.id, t, n %% 100, 1000 + n, n, CASE WHEN n %% 3 = 0 THEN NULL ELSE n %% 7 END
               FROM projects_project p, generate_series(%s, %s - interval '1 microsecond', %s)
                 WITH ORDINALITY AS g(t, n)""",
            [begin, end, timedelta(seconds=every_seconds)],
        )
        return cursor.rowcount


def totals() -> tuple[Any, ...]:
    """Of all readings, wherever they are: counts and sums. What thinning must not change."""
    with connection.cursor() as cursor:
        cursor.execute(
            """SELECT sum(cpu_count), sum(cpu_sum), max(cpu_max), sum(memory_count), sum(memory_sum),
                      sum(connections_count), sum(connections_sum), max(size_bytes) FROM (
                 SELECT (cpu_percent IS NOT NULL)::int cpu_count, coalesce(cpu_percent, 0) cpu_sum, cpu_percent cpu_max,
                   (memory_bytes IS NOT NULL)::int memory_count, coalesce(memory_bytes, 0) memory_sum,
                   (connections IS NOT NULL)::int connections_count, coalesce(connections, 0) connections_sum, size_bytes
                   FROM projects_metricsample
                 UNION ALL SELECT cpu_count, cpu_sum, cpu_max, memory_count, memory_sum, connections_count,
                   connections_sum, size_bytes FROM projects_metricrollup) AS everything"""
        )
        return tuple(cursor.fetchone())


def thin_all() -> metrics.Thinned:
    """As often as beat would, after a long pause; what all runs did."""
    everything = metrics.Thinned()
    while (done := metrics.thin()) != metrics.Thinned():
        everything.to_fine += done.to_fine
        everything.to_coarse += done.to_coarse
        everything.ended += done.ended
    return everything


@pytest.mark.django_db
class TestThinning:
    def test_means_and_peaks_are_exact(self, moment: datetime) -> None:
        (project,) = projects_of(1)
        start = metrics.bucket_of(moment - 26 * HOUR, metrics.FINE)
        for seconds, cpu, sessions in ((0, 10.0, None), (30, 20.0, 4), (299, 60.0, 8), (300, 7.0, 1)):
            MetricSample.objects.create(
                project=project, at=start + timedelta(seconds=seconds), cpu_percent=cpu, memory_bytes=None,
                size_bytes=5 + seconds, connections=sessions,
            )  # fmt: skip
        assert metrics.thin().to_fine == 4
        first, second = MetricRollup.objects.order_by("at")
        assert (first.at, second.at, first.step) == (start, start + metrics.FINE, 300)
        assert (first.cpu_sum, first.cpu_max, first.cpu_count) == (90.0, 60.0, 3)
        assert (first.memory_sum, first.memory_max, first.memory_count) == (0, None, 0)
        assert (first.connections_sum, first.connections_max, first.connections_count) == (12, 8, 2)
        assert first.size_bytes == 304 and second.cpu_sum == 7.0

    def test_the_last_day_stays_raw_and_nothing_is_lost(self, moment: datetime) -> None:
        projects_of(3)
        fill(moment - 30 * HOUR, moment, 60)
        before, raw = totals(), MetricSample.objects.filter(at__gte=moment - DAY).count()
        done = metrics.thin()
        assert totals() == before
        assert done.to_fine and not done.to_coarse
        assert MetricSample.objects.filter(at__gte=moment - DAY).count() == raw
        oldest = MetricSample.objects.earliest("at").at
        assert moment - DAY - metrics.FINE <= oldest <= moment - DAY
        assert metrics.thin() == metrics.Thinned()
        assert totals() == before

    def test_from_raw_to_hours_to_nothing(self, moment: datetime, settings: Any) -> None:
        settings.NOVASTACK_METRICS_5MIN_DAYS, settings.NOVASTACK_METRICS_HOURLY_DAYS = 2, 4
        (project,) = projects_of(1)
        fill(moment - timedelta(days=6), moment, 300)
        before = totals()
        done = thin_all()
        fine, coarse, last = metrics.boundaries(moment)
        steps = MetricRollup.objects.values_list("step", "at")
        assert all(coarse <= at < fine for step, at in steps if step == 300)
        assert all(last <= at < coarse for step, at in steps if step == 3600)
        assert {step for step, _ in steps} == {300, 3600}
        hours = MetricRollup.objects.filter(step=3600)
        assert hours.count() == (coarse - last) / HOUR and done.ended > 24
        assert set(hours.values_list("cpu_count", flat=True)) == {12}
        assert totals()[0] < before[0] and project.metrics.earliest("at").at >= fine

    def test_what_comes_late_is_added_to_its_bucket(self, moment: datetime) -> None:
        (project,) = projects_of(1)
        start = metrics.bucket_of(moment - 30 * HOUR, metrics.FINE)
        for cpu in (10.0, 50.0):
            MetricSample.objects.create(project=project, at=start, cpu_percent=cpu, connections=2)
            metrics.thin()
        row = MetricRollup.objects.get()
        assert (row.cpu_sum, row.cpu_count, row.cpu_max, row.connections_sum) == (60.0, 2, 50.0, 4)

    def test_a_thousand_projects_cost_as_many_statements_as_one(self, moment: datetime) -> None:
        counts = []
        for more in (1, 999):
            projects_of(more)
            begin = metrics.boundaries(moment)[0] - 2 * HOUR
            expected = fill(begin, begin + HOUR)
            with CaptureQueriesContext(
                connection,
            ) as asked:
                assert metrics.thin().to_fine == expected
            counts.append(len(asked))
        assert MetricRollup.objects.filter(cpu_count=10).count() == 1000 * 12 - 12
        assert MetricRollup.objects.filter(cpu_count=20).count() == 12  # the first project got them twice
        assert counts[0] == counts[1] <= 30

    def test_a_purged_project_takes_its_figures_along(self, moment: datetime) -> None:
        one, other = projects_of(2)
        fill(moment - 30 * HOUR, moment, 600)
        metrics.thin()
        one.delete()
        assert set(MetricRollup.objects.values_list("project_id", flat=True)) == {other.pk}


@pytest.mark.django_db
class TestReading:
    def test_all_ranges_from_all_resolutions(self, moment: datetime) -> None:
        (project,) = projects_of(1)
        fill(moment - timedelta(days=100), moment, 300)
        for range_, (_, wanted) in RANGES.items():
            before = metrics_of(project, range_)
            assert before.bucket_seconds == wanted.total_seconds()
            assert len(before.points) <= 401
        thin_all()
        assert set(MetricRollup.objects.values_list("step", flat=True)) == {300, 3600}
        for range_, (length, wanted) in RANGES.items():
            after = metrics_of(project, range_)
            assert len(after.points) >= length / max(wanted, timedelta(minutes=5)) - 1, range_
            steps = {b["at"] - a["at"] for a, b in zip(after.points, after.points[1:], strict=False)}
            assert len(steps) == 1, (range_, steps)  # no gap

    def test_the_answer_is_the_same_before_and_after_thinning(self, moment: datetime) -> None:
        (project,) = projects_of(1)
        fill(metrics.bucket_of(moment - timedelta(days=6), HOUR), moment)
        before = metrics_of(project, "7d")
        thin_all()
        after = metrics_of(project, "7d")
        assert after == before
        assert before.points[0]["cpu_percent_max"] > before.points[0]["cpu_percent"] > 0
        assert {type(p["memory_bytes"]) for p in after.points} == {int}

    def test_buckets_are_no_finer_than_what_is_kept(self, moment: datetime, settings: Any) -> None:
        settings.NOVASTACK_METRICS_RAW_HOURS, settings.NOVASTACK_METRICS_5MIN_DAYS = 1, 3
        (project,) = projects_of(1)
        assert metrics_of(project, "7d").bucket_seconds == 3600
        assert metrics_of(project, "24h").bucket_seconds == 300

    def test_by_index_at_a_fixed_cost(self, moment: datetime) -> None:
        projects = projects_of(200)
        fill(moment - 2 * HOUR, moment)
        fill(moment - 60 * HOUR, moment - 24 * HOUR, 300)
        metrics.thin()
        with connection.cursor() as cursor:
            cursor.execute("ANALYZE projects_metricsample")
            cursor.execute("ANALYZE projects_metricrollup")
            cursor.execute(
                "EXPLAIN " + metrics._SERIES,
                {"project": projects[5].pk, "since": moment - DAY, "width": metrics.FINE, "epoch": metrics.EPOCH},
            )
            plan = "\n".join(row[0] for row in cursor.fetchall())
        assert "Seq Scan" not in plan, plan
        assert "metric_project_at" in plan and "rollup_once" in plan, plan
        with CaptureQueriesContext(connection) as asked:
            metrics_of(projects[7], "7d")
        assert len(asked) == 1


@pytest.mark.django_db(transaction=True)
class TestInterrupted:
    def test_two_at_once_move_everything_once(self, moment: datetime) -> None:
        projects_of(5)
        fill(moment - 48 * HOUR, moment - 25 * HOUR)
        before, found = totals(), []

        def go() -> None:
            try:
                found.append(metrics.thin())
            finally:
                connections.close_all()

        threads = [threading.Thread(target=go) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert len(found) == 4
        metrics.thin()
        assert totals() == before
        assert not MetricSample.objects.exists()

    def test_killed_in_the_middle_of_a_move(self, moment: datetime) -> None:
        """Its session is ended while it waits for the last row to add to: all readings are where they were."""
        (project,) = projects_of(1)
        start = metrics.bucket_of(moment - 30 * HOUR, metrics.FINE)
        MetricSample.objects.create(project=project, at=start, cpu_percent=1)
        metrics.thin()
        fill(start, start + HOUR)
        before, raw, error = totals(), MetricSample.objects.count(), []
        holder = connections.create_connection("default")
        holder.set_autocommit(False)
        with holder.cursor() as cursor:
            cursor.execute("SELECT 1 FROM projects_metricrollup FOR UPDATE")

        def go() -> None:
            try:
                metrics.thin()
            except OperationalError as raised:
                error.append(raised)
            finally:
                connections.close_all()

        thread = threading.Thread(target=go)
        thread.start()
        ended = False
        for _ in range(100):
            with connection.cursor() as cursor:
                cursor.execute(
                    """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                       WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%WITH moved%'
                         AND pid <> pg_backend_pid()"""
                )
                ended = bool(cursor.fetchall())
            if ended:
                break
            time.sleep(0.1)
        thread.join(20)
        holder.rollback()
        holder.close()
        assert ended and error
        assert (totals(), MetricSample.objects.count()) == (before, raw)
        assert metrics.thin().to_fine == raw
        assert totals() == before and not MetricSample.objects.exists()

    def test_a_project_that_is_purged_meanwhile_is_not_waited_for(self, moment: datetime) -> None:
        one, other = projects_of(2)
        fill(moment - 30 * HOUR, moment - 29 * HOUR, 60)
        holder = connections.create_connection("default")
        holder.set_autocommit(False)
        with holder.cursor() as cursor:
            cursor.execute("DELETE FROM projects_metricsample WHERE project_id = %s", [one.pk])
        try:
            assert metrics.thin().to_fine == 60
        finally:
            holder.rollback()
            holder.close()
        assert set(MetricSample.objects.values_list("project_id", flat=True)) == {one.pk}
        assert set(MetricRollup.objects.values_list("project_id", flat=True)) == {other.pk}
