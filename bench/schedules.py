"""1,000 schedules that are due in one minute, by two dispatchers at once: seconds, queries, none twice. Real commits; the
rows are removed afterwards. Hints are counted, not sent."""

from __future__ import annotations

import threading
import time
from unittest import mock

from django.db import connection, connections
from django.test.utils import CaptureQueriesContext

from accounts.models import Organization
from backups.models import Backup, Schedule, ScheduleRun, StorageTarget
from backups.operations import dispatching
from bench import stats
from bench.fixtures import many_projects, person
from novastack.common.clock import now
from projects.models import Database, DatabaseServer, Endpoint, Operation, Project
from projects.operations import bulk

COUNT = 1_000
SECONDS, QUERIES = 10.0, 0.2  # bounds: of the whole minute; for each schedule


def run() -> list[str]:
    user, organization = person()
    Organization.objects.filter(pk=organization.pk).update(max_backups=10 * COUNT)
    try:
        projects = many_projects(organization, COUNT)
        StorageTarget.objects.get_or_create(organization=organization, name="bench", kind="filesystem", is_default=True)
        return [_one(projects), _two(projects)]
    finally:
        keys = list(Project.objects.filter(organization=organization).values_list("pk", flat=True))
        Backup.objects.filter(project_uuid__in=keys).delete()
        Operation.objects.filter(project_uuid__in=keys).delete()
        Schedule.objects.filter(project__in=keys).delete()
        Endpoint.objects.filter(project__in=keys).delete()
        Database.objects.filter(project__in=keys).delete()
        DatabaseServer.objects.filter(project_uuid__in=keys).delete()
        Project.objects.filter(pk__in=keys).delete()
        StorageTarget.objects.filter(organization=organization).delete()
        user.delete()


def _due(projects: list[Project]) -> None:
    keys = [project.pk for project in projects]
    Backup.objects.filter(project_uuid__in=keys).delete()
    Operation.objects.filter(project_uuid__in=keys).delete()
    Schedule.objects.filter(project__in=keys).delete()
    moment = now().replace(second=0, microsecond=0)
    Schedule.objects.bulk_create(
        Schedule(
            project=project, organization_id=project.organization_id, cron="0 * * * *", next_slot_at=moment,
            next_run_at=moment,
        )
        for project in projects
    )  # fmt: skip
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE")


def _one(projects: list[Project]) -> str:
    _due(projects)
    with mock.patch.object(bulk, "send_hints"), CaptureQueriesContext(connection) as seen:
        began = time.perf_counter()
        done = dispatching.dispatch_due()
        seconds = time.perf_counter() - began
    assert done.started == COUNT, done
    each = len(seen) / COUNT
    return (
        f"{COUNT:,} schedules due in one minute, one dispatcher: {seconds:.2f} s, {len(seen)} queries, {each:.3f} for each"
        f" (bounds: {SECONDS:g} s {stats.verdict(seconds, SECONDS)}, {QUERIES:g} {stats.verdict(each, QUERIES)})"
    )


def _two(projects: list[Project]) -> str:
    _due(projects)
    begin = threading.Barrier(2)

    def beat() -> None:
        try:
            begin.wait()
            for _ in range(10):
                dispatching.dispatch_due()
        finally:
            connections.close_all()

    threads = [threading.Thread(target=beat) for _ in range(2)]
    with mock.patch.object(bulk, "send_hints"):
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        dispatching.dispatch_due()
        seconds = time.perf_counter() - began
    keys = [project.pk for project in projects]
    begun = Backup.objects.filter(project_uuid__in=keys).count()
    runs = ScheduleRun.objects.filter(schedule__project__in=keys).count()
    twice = begun - Backup.objects.filter(project_uuid__in=keys).values("schedule").distinct().count()
    return (
        f"the same, two dispatchers at once: {seconds:.2f} s, {begun} backups and {runs} runs, {twice} twice"
        f" (bounds: {COUNT} of each {stats.verdict(abs(begun - COUNT) + abs(runs - COUNT), 0)}, none twice"
        f" {stats.verdict(twice, 0)})"
    )
