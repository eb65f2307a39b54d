"""A backup goes from its storage first, seen gone, and then its row: whatever storage and workers do."""

from __future__ import annotations

from typing import Any

import pytest
from django.db import transaction

from backups.models import ADOPTED, Backup, BackupStatus, StorageTarget
from backups.operations import deleting, storages
from backups.operations.deleting import delete_begin
from backups.operations.queueing import backup_operation_create, subject_of
from backups.storage.base import StorageError
from backups.storage.filesystem import FilesystemStorage
from novastack.common.errors import OperationInProgress
from projects.models import Operation, OperationLock, Project, Region
from tests.backups.keeping import make_backup, put, store
from tests.operations.conftest import Killed, drive, killed_at, let_lease_expire, let_time_pass, once, states


@pytest.fixture
def backup(idle: Project, storage: StorageTarget) -> Backup:
    return make_backup(idle, storage, attempt=3)


def begin(backup: Backup, **options: Any) -> Operation:
    with transaction.atomic():
        return delete_begin(backup, created_by_label="alice", **options)


def test_everything_of_it_goes_and_nothing_else(backup: Backup, idle: Project, storage: StorageTarget) -> None:
    place, other = store(backup), make_backup(idle, storage)
    store(other)
    folder = deleting.folder_of(backup)
    for key in (f"{folder}2", f"{folder}2.manifest", f"{folder}9", f"{folder}notes.txt"):
        put(place, key)
    operation = begin(backup)
    backup.refresh_from_db()
    assert backup.status == BackupStatus.DELETING and backup.delete_requested_at is not None
    assert drive(operation).state == "succeeded"
    assert not Backup.objects.filter(pk=backup.pk).exists() and not list(place.objects(folder))
    assert place.head(other.object_key) is not None and place.head(other.manifest_key) is not None


def test_a_forged_attempt_takes_no_other_with_it(idle: Project, storage: StorageTarget) -> None:
    """Adopted, and signed by nobody whom we know: only what it names itself is its own."""
    forged = make_backup(idle, storage, attempt=3, trusted=False, created_by_label=ADOPTED)
    Backup.objects.filter(pk=forged.pk).update(object_key=f"{forged.object_key[:-2]}/3")
    forged.refresh_from_db()
    place, folder = store(forged), forged.object_key[:-1]
    genuine = {f"{folder}2", f"{folder}2.manifest"}
    for key in genuine:
        put(place, key)
    assert drive(begin(forged)).state == "succeeded"
    assert {found.key for found in place.objects(folder)} == genuine


def test_asked_twice_it_is_one_operation(backup: Backup) -> None:
    assert begin(backup).pk == begin(backup).pk


def test_one_that_never_stored_anything(idle: Project, storage: StorageTarget) -> None:
    row = make_backup(idle, storage, status=BackupStatus.FAILED)
    Backup.objects.filter(pk=row.pk).update(object_key="")
    assert drive(begin(row)).state == "succeeded"
    assert not Backup.objects.exists()


def test_of_a_project_that_is_gone_and_of_a_region_that_is_away(backup: Backup, idle: Project) -> None:
    store(backup)
    Region.objects.update(reachable=False)
    assert drive(begin(backup)).state == "succeeded"


def test_it_waits_for_who_reads_it_and_nobody_begins_to(backup: Backup) -> None:
    store(backup)
    with transaction.atomic():
        reader = backup_operation_create(backup=backup, kind="delete_backup", mode="shared")
        Operation.objects.filter(pk=reader.pk).update(kind="verify")
    with pytest.raises(OperationInProgress):
        begin(backup, queue_behind=False)
    backup.refresh_from_db()
    assert backup.status == BackupStatus.VERIFIED
    operation = begin(backup)
    assert once(operation).state == "queued" and Backup.objects.filter(pk=backup.pk).exists()
    reader.refresh_from_db()
    assert reader.cancel_requested_at is not None
    with pytest.raises(OperationInProgress), transaction.atomic():
        backup_operation_create(backup=backup, kind="delete_backup", mode="shared")
    OperationLock.objects.filter(operation=reader).delete()
    Operation.objects.filter(pk=reader.pk).update(state="cancelled")
    assert drive(operation).state == "succeeded"
    assert not OperationLock.objects.filter(subject=subject_of(backup)).exists()


def test_being_taken_it_is_asked_to_end_first(idle: Project, storage: StorageTarget) -> None:
    row = make_backup(idle, storage, status=BackupStatus.DUMPING)
    taking = Operation.objects.create(
        kind="backup", on_give_up="undo", project_uuid=idle.pk, params={"backup": str(row.pk)}
    )
    operation = once(begin(row))
    taking.refresh_from_db()
    assert taking.cancel_requested_at is not None
    assert states(operation) == {"objects": "waiting", "row": "pending"}
    Operation.objects.filter(pk=taking.pk).update(state="cancelled")
    assert drive(operation).state == "succeeded"


@pytest.mark.parametrize("code", ["object_locked", "storage_refused", "storage_unreachable"])
def test_what_the_storage_refuses_is_shown_and_tried_until_it_is_gone(
    code: str, backup: Backup, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = store(backup)

    def refuse(self: Any, key: str) -> None:
        raise StorageError(code, "Not now.", retryable=code != "storage_refused")

    with monkeypatch.context() as patch:
        patch.setattr(FilesystemStorage, "delete", refuse)
        operation = begin(backup)
        for _ in range(8):
            let_time_pass(operation)
            once(operation)
            assert operation.live and operation.next_attempt_at is not None
        step = operation.steps.get(name="objects")
        assert step.state == "retrying" and step.error_code == code and "Not now." in step.detail
        backup.refresh_from_db()
        assert backup.status == BackupStatus.DELETING and backup.error == {
            "code": code, "detail": "Not now.", "retryable": True
        }  # fmt: skip
        assert place.head(backup.object_key) is not None
    assert drive(operation).state == "succeeded"
    assert place.head(backup.object_key) is None


def test_a_storage_that_says_so_and_keeps_it_is_not_believed(backup: Backup, monkeypatch: pytest.MonkeyPatch) -> None:
    store(backup)
    monkeypatch.setattr(FilesystemStorage, "delete", lambda self, key: None)
    operation = once(begin(backup))
    assert operation.live and operation.steps.get(name="objects").error_code == "object_locked"
    assert Backup.objects.filter(pk=backup.pk).exists()


def test_nothing_is_removed_from_a_place_that_is_anothers(backup: Backup) -> None:
    place = store(backup)
    StorageTarget.objects.update(owner_epoch="of-before-a-restore")
    operation = once(begin(backup))
    assert states(operation)["objects"] == "waiting" and place.head(backup.object_key) is not None
    assert "took it over" in operation.steps.get(name="objects").detail


def test_killed_before_any_statement_it_is_gone_in_the_end(
    backup: Backup, idle: Project, storage: StorageTarget
) -> None:
    store(backup)
    operation = begin(backup)
    with killed_at(0) as seen, transaction.atomic():
        drive(operation)
        transaction.set_rollback(True)
    assert seen.count > 10
    for number in range(1, seen.count + 1, 2):
        row = make_backup(idle, storage)
        place = store(row)
        doomed = begin(row)
        try:
            with killed_at(number):
                drive(doomed)
        except Killed:
            pass
        gone = not Backup.objects.filter(pk=row.pk).exists()
        assert not gone or place.head(row.object_key) is None, "never the row before the storage"
        let_lease_expire(doomed)
        doomed.refresh_from_db()
        assert not doomed.live or drive(doomed).state == "succeeded"
        assert not Backup.objects.filter(pk=row.pk).exists() and place.head(row.manifest_key) is None


def test_what_was_left_deleting_is_taken_up_again(backup: Backup) -> None:
    store(backup)
    operation = begin(backup)
    Operation.objects.filter(pk=operation.pk).update(state="failed")
    OperationLock.objects.all().delete()
    assert deleting.go_on() == 1 and deleting.go_on() == 0
    assert drive(Operation.objects.live().get(kind="delete_backup")).state == "succeeded"
    assert not Backup.objects.exists()


def test_uploads_that_nobody_will_finish_are_swept(
    backup: Backup, idle: Project, storage: StorageTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    aborted: list[tuple[str, str]] = []
    swept: list[str] = []
    monkeypatch.setattr(FilesystemStorage, "abort_upload", lambda s, key, upload: aborted.append((key, upload)))
    monkeypatch.setattr(FilesystemStorage, "sweep", lambda s, prefix, before: swept.append(prefix) or 2)
    failed = make_backup(idle, storage, status=BackupStatus.FAILED, upload_id="u-1")
    make_backup(idle, storage, status=BackupStatus.DUMPING, upload_id="u-2")
    assert deleting.sweep_uploads() == 3
    assert aborted == [(failed.object_key, "u-1")]
    assert swept == [f"{backup.object_key.split('/')[0]}/"]
    failed.refresh_from_db()
    assert failed.upload_id == ""
    storages.claim(storage)
    assert deleting.sweep_uploads() == 0, "its epoch is another one now: nothing is touched"
