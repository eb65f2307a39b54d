"""Retention by the clock: slowly, never what is needed, and it stops and asks rather than removing much."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
import time_machine
from django.db import transaction

from accounts.models import AuditEvent
from backups.models import (
    Backup,
    BackupStatus,
    BackupTrigger,
    Restore,
    RestoreStatus,
    RestoreTarget,
    Schedule,
    StorageTarget,
)
from backups.operations import deleting, restore_steps, retaining, safety, storages
from backups.operations.queueing import backup_operation_create
from backups.retention import Rules
from novastack.common.models import Install
from projects.models import Operation, Project
from tests.backups.keeping import make_backup, make_schedule, store, utc
from tests.backups.rows import make_restore
from tests.operations.conftest import drive

NOON = utc("2026-11-20T12:00:00")


@pytest.fixture
def schedule(idle: Project, storage: StorageTarget) -> Schedule:
    with time_machine.travel(NOON, tick=False):
        return make_schedule(idle, keep_last=3)


def backups(schedule: Schedule, count: int, **fields: Any) -> list[Backup]:
    """Newest first, a day between them."""
    target = StorageTarget.objects.get()
    return [make_backup(schedule.project, target, days_ago=n, schedule=schedule, **fields) for n in range(count)]


def tick(days: float) -> int:
    with time_machine.travel(NOON + timedelta(days=days), tick=False):
        return retaining.daily()


def going() -> int:
    return Backup.objects.filter(status=BackupStatus.DELETING).count()


def test_what_is_due_at_two_daily_looks_goes_from_storage_and_then_its_row(schedule: Schedule) -> None:
    with time_machine.travel(NOON, tick=False):
        rows = backups(schedule, 5)
    places = [store(row) for row in rows]
    assert tick(0) == 0 and going() == 0
    assert tick(0.5) == 0, "once in 20 hours"
    assert tick(1) == 2
    old = rows[3:]
    assert {row.pk for row in Backup.objects.filter(status=BackupStatus.DELETING)} == {row.pk for row in old}
    for operation in Operation.objects.filter(kind="delete_backup"):
        assert drive(operation).state == "succeeded"
    assert Backup.objects.count() == 3
    for row, place in zip(rows, places, strict=True):
        assert (place.head(row.object_key) is None) == (row in old)
        assert (place.head(row.manifest_key) is None) == (row in old)
    assert AuditEvent.objects.filter(action="backup.deleted").count() == 2


def test_a_clock_that_jumps_removes_nothing(schedule: Schedule) -> None:
    with time_machine.travel(NOON, tick=False):
        backups(schedule, 3)
    Schedule.objects.update(keep_last=None, keep_days=30)
    assert tick(400) == 0
    assert tick(1) == 0
    assert tick(2) == 0 and going() == 0


def test_what_is_kept_again_begins_anew(schedule: Schedule) -> None:
    with time_machine.travel(NOON, tick=False):
        backups(schedule, 5)
    assert tick(0) == 0
    Schedule.objects.update(keep_last=10)
    assert tick(1) == 0
    assert not Backup.objects.exclude(due_since=None).exists()
    Schedule.objects.update(keep_last=3)
    assert tick(2) == 0 and tick(3) == 2


def test_too_many_at_once_stop_it_until_somebody_answers(schedule: Schedule, alice: Any) -> None:
    from backups.services.schedules import retention_apply, retention_preview

    with time_machine.travel(NOON, tick=False):
        backups(schedule, 12)
    assert tick(0) == 0 and tick(1) == 0 and going() == 0
    schedule.refresh_from_db()
    assert schedule.retention_paused_reason.startswith("9 of 12 backups are due at once, and at most 3 go by the clock")
    assert AuditEvent.objects.filter(action="backup.retention_stopped").count() == 1
    assert tick(2) == 0 and AuditEvent.objects.filter(action="backup.retention_stopped").count() == 1
    seen = retention_preview(principal=alice, schedule=schedule)
    assert len(seen.going) == 9 and going() == 0
    done = retention_apply(principal=alice, schedule=schedule)
    assert len(done.removed) == 9 == going()
    schedule.refresh_from_db()
    assert schedule.retention_paused_reason == ""


def test_what_only_takes_the_place_of_another_is_no_surprise(schedule: Schedule) -> None:
    """24 a day, 24 are kept: each day 24 go, which is far more than three."""
    Schedule.objects.update(keep_last=24)
    target = StorageTarget.objects.get()
    with time_machine.travel(NOON, tick=False):
        for hour in range(24):
            make_backup(schedule.project, target, days_ago=hour / 24, schedule=schedule)
    for day in range(5):
        tick(day)
        with time_machine.travel(NOON + timedelta(days=day + 1), tick=False):
            for hour in range(24):
                make_backup(schedule.project, target, days_ago=hour / 24 - 0.01, schedule=schedule)
    schedule.refresh_from_db()
    assert schedule.retention_paused_reason == ""
    assert Backup.objects.exclude(status=BackupStatus.DELETING).count() <= 24 * 3


def test_what_is_dated_in_the_future_makes_no_room_for_more(schedule: Schedule) -> None:
    target = StorageTarget.objects.get()
    with time_machine.travel(NOON, tick=False):
        backups(schedule, 3)
        for day in range(10):
            make_backup(schedule.project, target, days_ago=-365 - day, schedule=schedule)
    assert tick(0) == 0
    with time_machine.travel(NOON, tick=False):
        for day in range(6):
            make_backup(schedule.project, target, days_ago=30 + day, schedule=schedule)
    assert tick(1) == 0 and tick(2) == 0 and going() == 0
    schedule.refresh_from_db()
    assert schedule.retention_paused_reason.startswith("6 of 19 backups are due at once, and at most 3 go by the clock")


def test_the_last_verified_pinned_and_used_ones_stay(schedule: Schedule) -> None:
    Schedule.objects.update(keep_last=1)
    target, project = StorageTarget.objects.get(), schedule.project
    with time_machine.travel(NOON, tick=False):
        newest = make_backup(project, target, schedule=schedule, status=BackupStatus.STORED)
        verified = make_backup(project, target, days_ago=30, schedule=schedule)
        pinned = make_backup(project, target, days_ago=31, schedule=schedule, pinned=True)
        proven = make_backup(project, target, days_ago=32, schedule=schedule)
        with transaction.atomic():
            backup_operation_create(backup=proven, kind="delete_backup", mode="shared")  # any that holds it
        restored = make_backup(project, target, days_ago=33, schedule=schedule)
        Restore.objects.create(
            organization_id=project.organization_id, backup=restored, backup_uuid=restored.pk,
            target=RestoreTarget.IN_PLACE, source_project_uuid=project.pk,
        )  # fmt: skip
        failed = make_backup(project, target, days_ago=3, schedule=schedule, status=BackupStatus.FAILED)
        old = make_backup(project, target, days_ago=34, schedule=schedule)
    tick(0)
    assert tick(1) == 1
    kept = set(Backup.objects.exclude(status=BackupStatus.DELETING).values_list("pk", flat=True))
    assert kept == {newest.pk, verified.pk, pinned.pk, proven.pk, restored.pk, failed.pk}
    assert Backup.objects.get(status=BackupStatus.DELETING).pk == old.pk


def test_used_since_it_was_picked_it_stays(schedule: Schedule, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody begins to restore it between the look and the mark."""
    with time_machine.travel(NOON, tick=False):
        rows = backups(schedule, 4)
    tick(0)
    begin = deleting.delete_begin

    def raced(backup: Backup, **kwargs: Any) -> Operation:
        backup_operation_create(backup=backup, kind="delete_backup", mode="shared")
        Operation.objects.filter(kind="delete_backup").update(kind="verify")
        return begin(backup, **kwargs)

    monkeypatch.setattr(deleting, "delete_begin", raced)
    assert tick(1) == 0
    rows[3].refresh_from_db()
    assert rows[3].status == BackupStatus.VERIFIED


# --- rule 33 --------------------------------------------------------------------------------------------------------------
def test_half_of_it_gone_pins_the_one_before_and_stops_retention(schedule: Schedule) -> None:
    target, project = StorageTarget.objects.get(), schedule.project
    with time_machine.travel(NOON, tick=False):
        rows = [make_backup(project, target, days_ago=n + 1, schedule=schedule, rows=1000) for n in range(5)]
        other = make_schedule(project, "0 5 * * *", keep_last=1)
        after = make_backup(project, target, schedule=schedule, rows=400)
        reason = retaining.verified(after)
    assert "400 rows, after 1000 in the one before" in reason
    rows[0].refresh_from_db()
    assert rows[0].pinned and "400 rows" in rows[0].pinned_reason
    for row in (schedule, other):
        row.refresh_from_db()
        assert row.retention_paused_reason == reason
    assert AuditEvent.objects.get(action="backup.shrank").data["before"] == str(rows[0].pk)
    assert tick(0) == 0 and tick(1) == 0 and going() == 0
    assert AuditEvent.objects.filter(action="backup.shrank").count() == 1, "said once"


def test_it_is_found_before_anything_is_removed_also_when_nobody_said_so(schedule: Schedule) -> None:
    """The proof's end was lost: retention looks itself, before it picks."""
    target, project = StorageTarget.objects.get(), schedule.project
    with time_machine.travel(NOON, tick=False):
        backups(schedule, 5)
        tick(0)
        make_backup(project, target, days_ago=-0.1, schedule=schedule, dump_bytes=1500)
    assert tick(1) == 0 and going() == 0
    schedule.refresh_from_db()
    assert "1500 bytes, after 4000" in schedule.retention_paused_reason


def test_after_somebody_has_looked_it_goes_on(schedule: Schedule, alice: Any) -> None:
    from backups.services.schedules import schedule_update

    target, project = StorageTarget.objects.get(), schedule.project
    with time_machine.travel(NOON, tick=False):
        backups(schedule, 5, rows=1000)
        make_backup(project, target, days_ago=-0.1, schedule=schedule, rows=10)
    tick(0)
    schedule_update(principal=alice, schedule=schedule, changes={"retention_paused": False})
    assert tick(1) == 0, "it is a first look again"
    assert tick(2) == 3
    assert AuditEvent.objects.filter(action="backup.shrank").count() == 1


# --- dry run --------------------------------------------------------------------------------------------------------------
def test_a_dry_run_changes_nothing(schedule: Schedule) -> None:
    with time_machine.travel(NOON, tick=False):
        backups(schedule, 6)
        before = list(Backup.objects.order_by("pk").values())
        found = retaining.look(schedule, Rules(keep_last=1))
    assert len(found.going) == 5
    assert (
        list(Backup.objects.order_by("pk").values()) == before
        and not Operation.objects.filter(kind="delete_backup").exists()
    )


# --- of removed projects --------------------------------------------------------------------------------------------------
def orphaned(project: Project, target: StorageTarget, days: float, **fields: Any) -> Backup:
    backup = make_backup(project, target, keep_until=NOON + timedelta(days=days), **fields)
    Backup.objects.filter(pk=backup.pk).update(project_uuid=uuid4())
    return backup


def test_backups_outlive_their_project_by_their_days(idle: Project, storage: StorageTarget) -> None:
    with time_machine.travel(NOON, tick=False):
        over, later = orphaned(idle, storage, 5), orphaned(idle, storage, 50)
        pinned = orphaned(idle, storage, 5, pinned=True)
        alive = make_backup(idle, storage, keep_until=NOON)
    assert tick(4) == tick(5.5) == 0
    assert tick(6.5) == 1
    assert set(Backup.objects.exclude(status=BackupStatus.DELETING)) == {later, pinned, alive}
    assert Backup.objects.get(status=BackupStatus.DELETING) == over


def test_many_that_are_over_at_once_stop_it(idle: Project, storage: StorageTarget) -> None:
    with time_machine.travel(NOON, tick=False):
        for _ in range(6):
            orphaned(idle, storage, 1)
    assert tick(2) == tick(3) == 0 and going() == 0
    assert "6 of 6 backups outlived" in Install.load().notes["backups_expired_refused"]


def test_a_read_only_install_keeps_everything(schedule: Schedule) -> None:
    with time_machine.travel(NOON, tick=False):
        backups(schedule, 6)
    Install.load()
    Install.objects.update(read_only=True)
    assert tick(0) == tick(1) == tick(2) == 0
    assert storages.storage_of(StorageTarget.objects.get()) is not None


# --- of restores ----------------------------------------------------------------------------------------------------------
def safety_of(project: Project, target: StorageTarget, days_ago: float = 0, **fields: Any) -> Restore:
    """A restore with its safety backup, pinned as the restore did it."""
    pinned = {"trigger": BackupTrigger.SAFETY, "pinned": True, "pinned_reason": safety.PINNED}
    backup = make_backup(project, target, days_ago=days_ago, **pinned)
    values = {"operation_id": uuid4(), "undo_until": NOON + timedelta(days=7), **fields}
    return make_restore(backup, project, safety_backup=backup, **values)


def pinned(restore: Restore) -> bool:
    assert restore.safety_backup is not None
    return Backup.objects.get(pk=restore.safety_backup.pk).pinned


def test_safety_backups_go_a_week_after_the_way_back(idle: Project, storage: StorageTarget) -> None:
    with time_machine.travel(NOON, tick=False):
        failed = safety_of(idle, storage, 3, status=RestoreStatus.FAILED, undo_until=None)
        old = safety_of(idle, storage, 2, undo_until=NOON - timedelta(hours=1))
        mine = safety_of(idle, storage, 1, status=RestoreStatus.UNDONE, undo_until=None)
        Backup.objects.filter(pk=mine.safety_backup_id).update(pinned_reason="An auditor wants it.")
        open_ = safety_of(idle, storage)
    tick(0)
    assert [pinned(row) for row in (failed, old, mine, open_)] == [False, False, True, True]
    assert tick(6) == 0
    assert tick(7.5) == 0, "due at one look"
    assert tick(8.5) == 2
    assert {row.pk for row in Backup.objects.filter(status="deleting")} == {
        failed.safety_backup_id, old.safety_backup_id,
    }  # fmt: skip
    assert not pinned(open_), "its time was over meanwhile"
    tick(20), tick(21), tick(22)
    assert Backup.objects.get(pk=open_.safety_backup_id).status == BackupStatus.VERIFIED, "the last verified one"


def test_what_is_missing_in_its_storage_is_not_the_last_verified_one(idle: Project, storage: StorageTarget) -> None:
    """Else the one that is there goes, and nothing is left. It stays itself: its folder may come back with it."""
    with time_machine.travel(NOON, tick=False):
        whole = safety_of(idle, storage, 3, status=RestoreStatus.FAILED, undo_until=None)
        gone = safety_of(idle, storage, 2, status=RestoreStatus.FAILED, undo_until=None)
        error = {"code": "object_missing", "detail": "The storage has no such object."}
        Backup.objects.filter(pk=gone.safety_backup_id).update(verify_error=error)
    tick(0), tick(8), tick(9), tick(10)
    assert Backup.objects.get(pk=whole.safety_backup_id).status == BackupStatus.VERIFIED
    found = Backup.objects.get(pk=gone.safety_backup_id)
    assert found.status == BackupStatus.VERIFIED, "for people to look at"
    with time_machine.travel(NOON + timedelta(days=10), tick=False):
        assert retaining._expire(found) == 0, "found to be missing after it was picked"
    Backup.objects.filter(pk=found.pk).update(verify_error=None)
    tick(11), tick(12), tick(13)
    assert Backup.objects.get(pk=whole.safety_backup_id).status == BackupStatus.DELETING, "the newer one is there again"
    assert Backup.objects.get(pk=found.pk).status == BackupStatus.VERIFIED


def test_the_end_of_a_restore_lets_its_safety_backup_go(idle: Project, storage: StorageTarget) -> None:
    with time_machine.travel(NOON, tick=False):
        failed = safety_of(idle, storage, status=RestoreStatus.RUNNING, undo_until=None)
        other = safety_of(idle, storage)
        restore_steps.failed(Operation(state="cancelled", params={"restore": str(failed.pk)}))
    assert (pinned(failed), pinned(other)) == (False, True)
    assert Backup.objects.get(pk=failed.safety_backup_id).keep_until == NOON + timedelta(days=7)


def test_a_removed_projects_safety_backups_go_too(idle: Project, storage: StorageTarget) -> None:
    ours = {"trigger": BackupTrigger.SAFETY, "pinned": True, "pinned_reason": safety.PINNED}
    with time_machine.travel(NOON, tick=False):
        over = orphaned(idle, storage, 1, **ours)
        orphaned(idle, storage, 1, **{**ours, "pinned_reason": "An auditor wants it."})
    assert tick(2) == 0
    assert tick(3) == 1
    assert Backup.objects.get(status=BackupStatus.DELETING) == over
