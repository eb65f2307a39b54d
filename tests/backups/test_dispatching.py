"""Schedules begin what is due: once for each slot, whoever looks, whatever the clocks do."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any

import pytest
import time_machine
from django.db import connection, connections, transaction
from django.test.utils import CaptureQueriesContext

from backups.models import Backup, BackupStatus, Schedule, ScheduleRun, StorageTarget
from backups.operations import dispatching, taking
from backups.operations.dispatching import dispatch_due
from backups.operations.objectives import objective_of
from novastack.common.clock import now
from novastack.common.ids import uuid7
from novastack.common.models import Install
from projects.engines.ferretdb import FerretDB
from projects.models import Operation, OperationLock, Project
from projects.operations import locks
from tests.backups.keeping import make_backup, make_schedule, utc
from tests.factories import Team, make_project

NOON = "2026-11-20T12:00:00"


def run_at(moment: str) -> dispatching.Dispatched:
    with time_machine.travel(utc(moment), tick=False):
        return dispatch_due()


def all_done() -> None:
    Backup.objects.update(status=BackupStatus.VERIFIED)
    OperationLock.objects.all().delete()
    Operation.objects.live().update(state="succeeded")


def outcomes(schedule: Schedule) -> list[tuple[str, str]]:
    rows = ScheduleRun.objects.filter(schedule=schedule).order_by("due_at")
    return [(f"{run.due_at:%d %H:%M}", run.outcome) for run in rows]


@pytest.fixture
def daily(idle: Project, storage: StorageTarget) -> Schedule:
    with time_machine.travel(utc(NOON), tick=False):
        return make_schedule(idle, "0 2 * * *", spread_seconds=600)


def test_a_slot_begins_one_backup(daily: Schedule, idle: Project, storage: StorageTarget) -> None:
    assert run_at("2026-11-21T02:09:59").started == 0
    assert run_at("2026-11-21T02:10:00").started == 1
    backup = Backup.objects.get(schedule=daily)
    assert (backup.status, backup.trigger, backup.storage_id) == ("queued", "schedule", storage.pk)
    operation = Operation.objects.get(pk=backup.operation_id)
    assert operation.kind == "backup" and operation.live
    assert set(OperationLock.objects.filter(operation=operation).values_list("subject", "mode", "granted")) == {
        (f"project:{idle.pk}", "shared", True), (f"dump:{idle.pk}", "exclusive", True),
        (f"backup:{backup.pk}", "shared", True),
    }  # fmt: skip
    run = ScheduleRun.objects.get(schedule=daily)
    assert run.backup_uuid == backup.pk and run.due_at == utc("2026-11-21T02:00:00") and run.detail == ""
    daily.refresh_from_db()
    assert daily.next_slot_at == utc("2026-11-22T02:00:00") and daily.next_run_at == utc("2026-11-22T02:10:00")
    assert run_at("2026-11-21T02:10:15").started == 0


def test_what_it_begins_is_what_a_person_begins(daily: Schedule, idle: Project) -> None:
    """The same rows as one by hand: steps, locks, params, columns."""
    with transaction.atomic():
        by_hand = taking.backup_begin(idle, trigger="schedule", schedule=daily, created_by_label="schedule")
        first = shape(by_hand)
        transaction.set_rollback(True)
    assert run_at("2026-11-21T02:10:00").started == 1
    assert shape(Backup.objects.get(schedule=daily)) == first


def shape(backup: Backup) -> Any:
    operation = Operation.objects.get(pk=backup.operation_id)
    plain = {"id", "created_at", "updated_at", "started_at", "hinted_at", "request_id", "operation_id", "params"}
    rows = [
        {name: value for name, value in vars(row).items() if not name.startswith("_") and name not in plain}
        for row in (backup, operation)
    ]
    steps = list(operation.steps.values_list("position", "name", "title", "state"))
    held = sorted((lock.subject.split(":")[0], lock.mode, lock.granted) for lock in operation.locks.all())
    params = {name: value for name, value in operation.params.items() if name != "backup"}
    return rows, steps, held, params


def test_two_schedules_of_a_project_take_turns(daily: Schedule, idle: Project) -> None:
    with time_machine.travel(utc(NOON), tick=False):
        other = make_schedule(idle, "0 2 * * *", spread_seconds=600)
    done = run_at("2026-11-21T02:10:00")
    assert (done.started, done.busy) == (1, 1)
    OperationLock.objects.all().delete()
    assert run_at("2026-11-21T02:11:01").started == 1
    assert outcomes(daily) == outcomes(other) == [("21 02:00", "started")]


def test_after_days_without_us_it_catches_up_once(daily: Schedule) -> None:
    assert run_at("2026-11-25T09:00:00").started == 1
    run = ScheduleRun.objects.get(schedule=daily)
    assert run.due_at == utc("2026-11-25T02:00:00") and run.detail == "4 missed before"
    assert run.missed == 4
    daily.refresh_from_db()
    assert daily.next_slot_at == utc("2026-11-26T02:00:00")
    assert run_at("2026-11-25T10:00:00").started == 0


def test_after_a_month_without_us_the_last_week_s_slots_are_counted(daily: Schedule) -> None:
    assert run_at("2026-12-25T09:00:00").started == 1
    run = ScheduleRun.objects.get(schedule=daily)
    assert run.detail == "34 missed before" and run.missed == 34
    with time_machine.travel(utc("2026-12-25T09:00:00"), tick=False):
        assert objective_of(daily.project).missed_runs == 6  # the 19th to the 24th, at 2


def test_a_worker_of_the_version_before_writes_runs_too(daily: Schedule) -> None:
    """During an upgrade it goes on, and knows no `missed`."""
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO backups_schedulerun (id, created_at, updated_at, schedule_id, due_at, outcome, detail)"
            " VALUES (%s, now(), now(), %s, now(), 'started', '')",
            [uuid7(), daily.pk],
        )
    assert ScheduleRun.objects.get().missed == 0


def test_a_clock_that_is_put_back_runs_no_slot_again(daily: Schedule) -> None:
    assert run_at("2026-11-21T02:10:00").started == 1
    all_done()
    for moment in ("2026-11-21T01:59:00", "2026-11-21T02:10:30", "2026-11-20T23:00:00", "2026-11-21T02:30:00"):
        assert run_at(moment).started == 0
    assert run_at("2026-11-22T02:10:00").started == 1


def test_a_clock_that_was_a_year_ahead_does_not_silence_it_for_a_year(daily: Schedule) -> None:
    assert run_at("2027-11-21T05:00:00").started == 1
    all_done()
    assert run_at("2026-11-20T13:00:00").started == 0
    daily.refresh_from_db()
    assert daily.next_slot_at == utc("2026-11-21T02:00:00")
    assert run_at("2026-11-21T02:10:00").started == 1


def test_what_was_planned_by_a_clock_that_was_ahead_is_planned_again(daily: Schedule) -> None:
    """It has run nothing then: somebody changed it."""
    with time_machine.travel(utc("2027-11-20T12:00:00"), tick=False):
        dispatching.plan_next(daily, after=now())
        daily.save()
    assert run_at("2026-11-20T13:00:00").started == 0
    daily.refresh_from_db()
    assert daily.next_slot_at == utc("2026-11-21T02:00:00")
    assert run_at("2026-11-21T02:10:00").started == 1


def test_across_the_days_on_which_clocks_change(idle: Project, storage: StorageTarget) -> None:
    """Every minute of the night is asked: one run a night, also at an hour that does not exist or comes twice."""
    for begin, slots in (
        ("2026-03-28T20:00:00", ["29 01:00", "30 00:30"]),  # 02:30 of the 29th is skipped: 03:00 summer time
        ("2026-10-24T20:00:00", ["25 00:30", "26 01:30"]),  # 02:30 of the 25th comes twice: the first
    ):
        ScheduleRun.objects.all().delete()
        with time_machine.travel(utc(begin), tick=False) as clock:
            schedule = make_schedule(idle, "30 2 * * *", "Europe/Berlin", spread_seconds=0)
            for _ in range(33 * 12):
                all_done()
                dispatch_due()
                clock.shift(timedelta(minutes=5))
        assert outcomes(schedule) == [(slot, "started") for slot in slots]
        schedule.delete()


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"desired_status": "stopped"}, dispatching.STOPPED),
        ({"desired_status": "recycled"}, dispatching.DELETED),
        ({"ready_at": None}, dispatching.NOT_READY),
        ({"engine": "ferretdb"}, "Backups of FerretDB (MongoDB-compatible) are not supported."),
    ],
)
def test_a_slot_that_passes_says_why(
    fields: dict[str, Any], reason: str, daily: Schedule, idle: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FerretDB, "capabilities", frozenset())
    Project.objects.filter(pk=idle.pk).update(**fields)
    done = run_at("2026-11-21T02:10:00")
    assert (done.started, done.skipped) == (0, 1)
    run = ScheduleRun.objects.get(schedule=daily)
    assert run.outcome == "skipped"
    assert run.detail == reason or (run.detail.startswith("Backups of ") and "engine" in fields)
    daily.refresh_from_db()
    assert daily.next_slot_at == utc("2026-11-22T02:00:00"), "it goes on by itself when the project does"


def test_the_one_before_still_runs(daily: Schedule, idle: Project, storage: StorageTarget) -> None:
    make_backup(idle, storage, schedule=daily, status=BackupStatus.DUMPING)
    assert run_at("2026-11-21T02:10:00").skipped == 1
    assert ScheduleRun.objects.get(schedule=daily).detail == dispatching.STILL_RUNNING


def test_without_a_storage_the_slot_has_failed(daily: Schedule, storage: StorageTarget) -> None:
    StorageTarget.objects.update(is_default=False)
    assert run_at("2026-11-21T02:10:00").failed == 1
    assert ScheduleRun.objects.get(schedule=daily).detail == dispatching.NO_STORAGE


def test_a_read_only_storage_and_a_full_quota(daily: Schedule, idle: Project, storage: StorageTarget) -> None:
    StorageTarget.objects.update(read_only_reason="Another install took it over.")
    assert run_at("2026-11-21T02:10:00").failed == 1
    assert ScheduleRun.objects.get(schedule=daily).detail == "Another install took it over."
    StorageTarget.objects.update(read_only_reason="")
    idle.organization.max_backups = 1
    idle.organization.save()
    make_backup(idle, storage)
    assert run_at("2026-11-22T02:10:00").failed == 1
    assert ScheduleRun.objects.filter(schedule=daily).first().detail == dispatching.QUOTA  # type: ignore[union-attr]


def test_a_project_that_somebody_works_on_is_asked_again(daily: Schedule, idle: Project) -> None:
    other = Operation.objects.create(kind="restart", on_give_up="undo", project_uuid=idle.pk)
    OperationLock.objects.create(operation=other, subject=locks.subject_of("project", idle.pk))
    done = run_at("2026-11-21T02:10:00")
    assert (done.started, done.busy) == (0, 1) and not ScheduleRun.objects.exists()
    assert run_at("2026-11-21T02:10:30").busy == 0
    other.locks.all().delete()
    assert run_at("2026-11-21T02:11:05").started == 1
    assert outcomes(daily) == [("21 02:00", "started")]


def test_a_read_only_install_begins_nothing_and_catches_up(daily: Schedule) -> None:
    Install.load()
    Install.objects.update(read_only=True)
    assert run_at("2026-11-21T02:10:00").started == 0
    Install.objects.update(read_only=False)
    assert run_at("2026-11-21T08:00:00").started == 1


def test_paused_ones_are_silent(daily: Schedule) -> None:
    daily.enabled = False
    dispatching.plan_next(daily, after=utc(NOON))
    daily.save()
    assert run_at("2026-12-21T02:10:00") == dispatching.Dispatched()


def due(team: Team, count: int) -> None:
    """That many projects, each with a schedule that is due."""
    first = Project.objects.first() or make_project(team.alice, team.organization, "p0")
    Schedule.objects.all().delete()
    OperationLock.objects.all().delete()
    new = []
    for _ in range(count):
        fields = {
            f.attname: getattr(first, f.attname) for f in Project._meta.concrete_fields if f.name != "search_text"
        }
        key = uuid7()
        new.append(Project(**{**fields, "id": key, "name": str(key), "slug": f"p-{key}"[:63]}))
    Project.objects.bulk_create(new)
    Schedule.objects.bulk_create(
        Schedule(project=project, organization_id=project.organization_id, cron="* * * * *", next_slot_at=utc(NOON),
                 next_run_at=utc(NOON))
        for project in new
    )  # fmt: skip
    team.organization.max_backups = 10_000
    team.organization.save()


def test_the_number_of_queries_does_not_grow_with_the_schedules(
    runtime: Any, team: Team, storage: StorageTarget
) -> None:
    counts = []
    for size in (10, 100):
        due(team, size)
        with time_machine.travel(utc(NOON), tick=False), CaptureQueriesContext(connection) as seen:
            assert dispatch_due().started == size
        counts.append(len(seen))
    assert abs(counts[1] - counts[0]) <= 2, counts
    assert counts[1] <= 45, counts


@pytest.mark.django_db(transaction=True)
def test_two_at_once_begin_none_twice(runtime: Any, team: Team, storage: StorageTarget, monkeypatch: Any) -> None:
    monkeypatch.setattr(dispatching, "BATCH", 7)
    due(team, 60)
    failures: list[Exception] = []
    begin = threading.Barrier(2)

    def beat() -> None:
        try:
            begin.wait()
            for _ in range(20):
                dispatch_due()
        except Exception as error:
            failures.append(error)
        finally:
            connections.close_all()

    with time_machine.travel(utc(NOON), tick=False):
        threads = [threading.Thread(target=beat) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        dispatch_due()
    assert not failures, failures
    assert Backup.objects.count() == ScheduleRun.objects.count() == 60
    assert Backup.objects.values("schedule").distinct().count() == 60
    assert Operation.objects.filter(kind="backup").count() == 60


def test_killed_in_the_middle_nothing_is_half_begun(daily: Schedule, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.operations.conftest import Killed, killed_at

    with killed_at(0) as seen, transaction.atomic():
        run_at("2026-11-21T02:10:00")
        transaction.set_rollback(True)
    assert not Backup.objects.exists()
    for number in range(1, seen.count + 1):
        try:
            with transaction.atomic(), killed_at(number):
                run_at("2026-11-21T02:10:00")
                raise Killed
        except Killed:
            pass
        assert not Backup.objects.exists() and not Operation.objects.filter(kind="backup").exists()
        assert not ScheduleRun.objects.exists()
    assert run_at("2026-11-21T02:10:00").started == 1
    assert now() > utc(NOON)
