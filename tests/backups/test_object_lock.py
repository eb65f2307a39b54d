"""A bucket with object lock, on a real server: nothing goes early, it is said until when, and nobody asks all the time."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.db import transaction

from backups.models import Backup, BackupStatus, StorageKind, StorageTarget
from backups.operations import deleting, storages, taking_steps
from backups.storage.checking import left_removed
from backups.storage.s3 import S3Settings
from backups.storage.s3_client import client_of
from novastack.common.clock import now
from novastack.common.secrets import Sealed
from projects.models import Operation, Project
from tests.backups import s3_server
from tests.backups.keeping import make_backup, put, store
from tests.backups.s3_server import Proxy
from tests.operations.conftest import drive, let_time_pass, once


class Locked:
    """A target in a bucket that keeps what is written there for so many days (0: only what is asked for)."""

    def __init__(self, proxy: Proxy, port: int, *, days: int) -> None:
        self.proxy, self.bucket = proxy, f"locked-{uuid.uuid4().hex[:12]}"
        where = {"endpoint": f"http://127.0.0.1:{port}", "bucket": self.bucket, "prefix": "nova"}
        secret = {"access_key": s3_server.ACCESS, "secret_key": s3_server.SECRET}
        self.client = client_of(S3Settings(**where, **secret))
        self.client.create_bucket(Bucket=self.bucket, ObjectLockEnabledForBucket=True)
        if days:
            rule = {"DefaultRetention": {"Mode": "COMPLIANCE", "Days": days}}
            self.client.put_object_lock_configuration(
                Bucket=self.bucket, ObjectLockConfiguration={"ObjectLockEnabled": "Enabled", "Rule": rule}
            )
        self.target = StorageTarget(
            name=self.bucket, kind=StorageKind.S3, config=where, secret=Sealed.of(json.dumps(secret))
        )
        storages.claim(self.target)
        self.target.save()

    def versions(self, key: str) -> int:
        found = self.client.list_object_versions(Bucket=self.bucket, Prefix=f"nova/{key}")
        return len([v for v in found.get("Versions", ()) if v["Key"] == f"nova/{key}"])

    def deletes(self) -> int:
        return len([line for line in self.proxy.requests if line.startswith("DELETE")])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with s3_server.versitygw(tmp_path_factory.mktemp("s3-locked")) as port:
        yield port


@pytest.fixture
def proxy(server: int, settings: Any) -> Iterator[Proxy]:
    settings.NOVASTACK_OUTBOUND_ALLOW = ["127.0.0.0/8"]
    made = Proxy(server)
    yield made
    made.stop()


def begin(backup: Backup) -> Operation:
    with transaction.atomic():
        return deleting.delete_begin(backup, created_by_label="alice")


def test_what_the_bucket_keeps_waits_for_its_day(proxy: Proxy, idle: Project) -> None:
    locked = Locked(proxy, proxy.start(), days=30)
    backup = make_backup(idle, locked.target)
    store(backup)
    operation = once(begin(backup))
    until = now() + timedelta(days=30)
    step = operation.steps.get(name="objects")
    assert (operation.live, step.state, step.retries, step.error_code) == (True, "waiting", 0, "")
    assert f"until {until:%Y-%m-%d}" in step.detail and "object lock" in step.detail
    backup.refresh_from_db()
    assert backup.status == BackupStatus.DELETING
    assert backup.error["code"] == "object_locked" and f"until {until:%Y-%m-%d}" in backup.error["detail"]
    assert operation.next_attempt_at is not None
    # A day, not seconds: hundreds of them do not become a storm.
    assert timedelta(hours=23) < operation.next_attempt_at - now() < timedelta(hours=25)
    asked = locked.deletes()
    assert asked == 1, "one refusal is enough for now"
    for _ in range(5):
        once(operation)
    assert locked.deletes() == asked
    for _ in range(3):  # and after a month of days it has used up nothing
        let_time_pass(operation)
        once(operation)
    step.refresh_from_db()
    operation.refresh_from_db()
    assert (operation.live, step.state, step.retries, locked.deletes()) == (True, "waiting", 0, asked + 3)
    assert locked.versions(backup.object_key) == locked.versions(backup.manifest_key) == 1


def test_when_the_lock_is_over_it_goes_with_its_versions(proxy: Proxy, idle: Project) -> None:
    locked = Locked(proxy, proxy.start(), days=0)
    backup = make_backup(idle, locked.target)
    store(backup)
    until = now() + timedelta(seconds=4)
    locked.client.put_object_retention(
        Bucket=locked.bucket, Key=f"nova/{backup.object_key}",
        Retention={"Mode": "COMPLIANCE", "RetainUntilDate": until},
    )  # fmt: skip
    operation = once(begin(backup))
    step = operation.steps.get(name="objects")
    assert (operation.live, step.state) == (True, "waiting"), step.detail
    assert locked.versions(backup.object_key) == 1, "not a moment early"
    assert operation.next_attempt_at is not None
    assert operation.next_attempt_at > until
    while now() <= until + timedelta(seconds=1):
        time.sleep(0.1)
    let_time_pass(operation)
    assert drive(operation).state == "succeeded"
    assert not Backup.objects.filter(pk=backup.pk).exists()
    assert locked.versions(backup.object_key) == locked.versions(backup.manifest_key) == 0


def test_a_legal_hold_is_told_and_asked_for_hourly(proxy: Proxy, idle: Project) -> None:
    """Nobody knows until when."""
    locked = Locked(proxy, proxy.start(), days=0)
    backup = make_backup(idle, locked.target)
    store(backup)
    place = {"Bucket": locked.bucket, "Key": f"nova/{backup.object_key}"}
    locked.client.put_object_legal_hold(**place, LegalHold={"Status": "ON"})
    operation = begin(backup)
    for _ in range(12):
        let_time_pass(operation)
        once(operation)
    operation.refresh_from_db()
    step = operation.steps.get(name="objects")
    assert operation.live and step.error_code == "object_locked" and "legal hold" in step.detail
    assert operation.next_attempt_at is not None
    assert operation.next_attempt_at - now() > timedelta(minutes=25)
    locked.client.put_object_legal_hold(**place, LegalHold={"Status": "OFF"})
    let_time_pass(operation)
    assert drive(operation).state == "succeeded"
    assert locked.versions(backup.object_key) == 0


def test_what_a_failed_attempt_left_is_noted_and_in_nobodys_way(proxy: Proxy, idle: Project) -> None:
    locked = Locked(proxy, proxy.start(), days=30)
    backup = make_backup(idle, locked.target, status=BackupStatus.DUMPING)
    place = store(backup)
    (note,) = taking_steps.throw_away(backup, place)
    assert note.startswith("Attempt 1 failed, and what it left can't be removed yet.")
    assert f"until {now() + timedelta(days=30):%Y-%m-%d}" in note
    # The next attempt has a name of its own, and its row knows the first one's: it goes when the backup goes.
    Backup.objects.filter(pk=backup.pk).update(attempt=2, object_key=f"{backup.object_key[:-2]}/2")
    backup.refresh_from_db()
    assert f"{backup.object_key[:-2]}/1" in deleting.keys_of(backup)


def test_what_tries_it_by_the_clock_leaves_nothing_there(proxy: Proxy, idle: Project) -> None:
    """Each try would leave what the bucket keeps for a month: some hundred a day."""
    locked = Locked(proxy, proxy.start(), days=30)
    place = storages.storage_of(locked.target)
    assert all(check.passed for check in storages.test(locked.target))
    assert locked.target.object_lock and len(list(place.objects("novastack-test/"))) == 1
    StorageTarget.objects.update(tested_at=None)
    assert storages.test_due() == 1
    locked.target.refresh_from_db()
    assert locked.target.test_ok and locked.target.object_lock
    assert locked.target.test_detail == "It answers, and its list can be read; it was not written to."
    assert len(list(place.objects("novastack-test/"))) == 1


def test_what_failed_when_it_was_written_to_is_not_mended_by_a_look(proxy: Proxy, idle: Project) -> None:
    target = Locked(proxy, proxy.start(), days=30).target
    assert all(check.passed for check in storages.test(target))
    proxy.fail("PUT", "novastack-test", s3_server.error(403, "AccessDenied"))
    storages.test(target)
    assert target.test_ok is False and target.test_detail.startswith("write: ")

    def looked() -> tuple[bool | None, str]:
        StorageTarget.objects.update(tested_at=None)
        assert storages.test_due() == 1
        target.refresh_from_db()
        return target.test_ok, target.test_detail.partition(":")[0]

    assert looked() == (False, "write")
    proxy.fail("HEAD", "", s3_server.error(403, "AccessDenied"))
    assert looked() == (False, "write"), "else the next look would call it mended"
    proxy.rules.clear()
    assert all(check.passed for check in storages.test(target)) and target.test_ok
    proxy.fail("HEAD", "", s3_server.error(403, "AccessDenied"))
    assert looked() == (False, "reach")
    proxy.rules.clear()
    assert looked()[0] is True


def test_that_it_keeps_objects_is_not_forgotten_when_nobody_may_ask(proxy: Proxy, idle: Project) -> None:
    target = Locked(proxy, proxy.start(), days=0).target
    storages.test(target)
    assert target.object_lock
    proxy.fail("GET", "object-lock", s3_server.error(403, "AccessDenied"))
    storages.test(target)
    assert target.test_ok and target.object_lock


def test_that_it_keeps_objects_is_seen_by_what_it_keeps(proxy: Proxy, idle: Project) -> None:
    target = Locked(proxy, proxy.start(), days=30).target
    proxy.fail("GET", "object-lock", s3_server.error(403, "AccessDenied"), after=1)  # of the object, not of the bucket
    storages.test(target)
    target.refresh_from_db()
    assert target.test_ok and target.object_lock


def test_what_a_test_left_goes_when_its_lock_is_over(proxy: Proxy, idle: Project) -> None:
    locked = Locked(proxy, proxy.start(), days=0)
    place = storages.storage_of(locked.target)
    for name in ("a", "b"):
        put(place, f"novastack-test/{name}")
    locked.client.put_object_legal_hold(Bucket=locked.bucket, Key="nova/novastack-test/a", LegalHold={"Status": "ON"})
    assert left_removed(place, before=now() - timedelta(days=1)) == 0, "somebody may be trying it now"
    assert left_removed(place, before=now() + timedelta(minutes=1)) == 1
    assert [stored.key for stored in place.objects("novastack-test/")] == ["novastack-test/a"]
