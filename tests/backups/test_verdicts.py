"""A verdict stands whatever becomes of the clean-up; and what is missing or corrupt counts for nothing meanwhile."""

from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.db import transaction

from backups.models import Backup, Proof, StorageTarget
from backups.operations import drills, proving, proving_steps, restoring_data, retaining
from backups.operations.restoring_data import BackupCorrupt
from novastack.common.clock import now
from projects.models import Project
from projects.operations.base import StepFailed, Wait
from tests.backups.keeping import make_backup, make_schedule

pytestmark = pytest.mark.django_db


def begin(backup: Backup) -> SimpleNamespace:
    """Its proof, after `claim` took a place for it."""
    with transaction.atomic():
        operation = proving.verify_begin(backup, kind="manual")
    operation.server_uuid = operation.pk  # it has its place
    ctx = SimpleNamespace(operation=operation, fenced=transaction.atomic)
    proving_steps.claim(ctx)  # type: ignore[arg-type]
    return ctx


def corrupt(_ctx: Any) -> None:
    raise BackupCorrupt("content_differs", "What it restores is not what was dumped.")


def test_a_verdict_is_written_at_once_and_a_broken_clean_up_leaves_it(idle: Project, storage: StorageTarget) -> None:
    backup = make_backup(idle, storage)
    ctx = begin(backup)
    with pytest.raises(BackupCorrupt):
        proving_steps.judged(corrupt)(ctx)
    backup.refresh_from_db()
    proof = Proof.objects.get()
    assert (backup.status, proof.state) == ("corrupt", "failed")
    assert backup.error["code"] == proof.error["code"] == "content_differs"
    ctx.operation.error = {"code": "internal_error", "detail": "The clean-up crashed.", "retryable": False}
    proving.ended(ctx.operation)
    backup.refresh_from_db()
    proof.refresh_from_db()
    assert (backup.status, proof.state, backup.verify_error) == ("corrupt", "failed", None)


def test_every_step_that_judges_writes_its_verdict() -> None:
    judging = {step.name: step.run.__qualname__ for step in proving._FIRST}
    assert {name for name, run in judging.items() if "judged" in run} == {"fetch", "restore", "compare"}


def test_a_corrupt_one_is_not_usable_while_it_is_proven_again(idle: Project, storage: StorageTarget) -> None:
    schedule = make_schedule(idle, keep_last=1)
    error = {"code": "hash_mismatch", "detail": "…", "retryable": False}
    old = make_backup(idle, storage, days_ago=5, schedule=schedule)
    backup = make_backup(
        idle, storage, days_ago=1, schedule=schedule, status="corrupt", error=error, verified_at=old.created_at
    )
    ctx = begin(backup)
    backup.refresh_from_db()
    assert backup.status == "corrupt" and not backup.usable
    assert [v.item.id for v in retaining.look(schedule).verdicts if "the last verified one" in v.why] == [old.pk]
    ctx.commit, ctx.say = lambda **_: None, lambda *_: None
    proving_steps._put_verified(ctx, backup, {})  # type: ignore[arg-type]
    backup.refresh_from_db()
    assert (backup.status, backup.error) == ("verified", None)


def test_one_whose_object_is_missed_counts_for_nothing(idle: Project, storage: StorageTarget) -> None:
    schedule = make_schedule(idle, keep_last=1)
    missing = {"code": "object_missing", "detail": "The storage has no such object.", "retryable": False}
    old = make_backup(idle, storage, days_ago=5, schedule=schedule)
    gone = make_backup(idle, storage, days_ago=1, schedule=schedule, verify_error=missing)
    why = {v.item.id: v for v in retaining.look(schedule).verdicts}
    assert why[old.pk].keep and set(why[old.pk].why) == {"the last verified one", "the latest one"}
    assert why[gone.pk].keep and why[gone.pk].why == ("missing in its storage: for people to look at",)
    assert drills.newest(idle.pk) == old
    old.delete()
    assert drills.newest(idle.pk) == gone


def test_what_was_missed_stays_so_until_it_is_seen(
    idle: Project, storage: StorageTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proof that could not look says nothing about it: else retention counts on it, and removes the one that is there."""
    schedule = make_schedule(idle, keep_last=1)
    missing = {"code": "object_missing", "detail": "The storage has no such object.", "retryable": False}
    old = make_backup(idle, storage, days_ago=5, schedule=schedule)
    gone = make_backup(idle, storage, days_ago=1, schedule=schedule, verify_error=missing)

    def unable(operation: Any, code: str) -> str:
        operation.error = {"code": code, "detail": "…", "retryable": False}
        Backup.objects.filter(pk=gone.pk).update(reverify_at=None)
        proving.ended(operation)
        gone.refresh_from_db()
        assert gone.status == "verified" and gone.reverify_at is not None and gone.verify_error is not None
        return str(gone.verify_error["code"])

    for code in ("no_scratch_region", "storage_unreachable", "capacity_exhausted"):
        assert unable(begin(gone).operation, code) == "object_missing"
        kept = {v.item.id: v.why for v in retaining.look(schedule).verdicts if v.keep}
        assert set(kept[old.pk]) == {"the last verified one", "the latest one"}, code
    # Seen again, it counts again, although there is no room to prove it.
    contents = SimpleNamespace(tables=[], rows=0)
    manifest = SimpleNamespace(contents=contents, database={"name": "x"}, names={}, image="", stored={"bytes": 1000})
    monkeypatch.setattr(restoring_data, "read_manifest", lambda *_: manifest)
    head = SimpleNamespace(head=lambda _key: SimpleNamespace(size_bytes=1000))
    monkeypatch.setattr(proving_steps.storages, "storage_of", lambda _target: head)
    monkeypatch.setattr(proving_steps.scratch, "room_for", no_room)
    ctx = begin(gone)
    ctx.seen_as = lambda _side: SimpleNamespace(region=idle.region)
    with pytest.raises(StepFailed):
        proving_steps.fetch(ctx)  # type: ignore[arg-type]
    assert unable(ctx.operation, "capacity_exhausted") == "capacity_exhausted"
    assert [v.item.id for v in retaining.look(schedule).verdicts if "the last verified one" in v.why] == [gone.pk]
    assert unable(begin(gone).operation, "object_missing") == "object_missing"


def no_room(*_: Any) -> None:
    raise StepFailed("capacity_exhausted", "There is no room.", retryable=False)


def test_backups_of_the_region_go_first_for_so_long(idle: Project, storage: StorageTarget, settings: Any) -> None:
    settings.NOVASTACK_VERIFY_PATIENCE_SECONDS = 1800.0
    backup = make_backup(idle, storage, days_ago=1, status="stored")
    with transaction.atomic():
        operation = proving.verify_begin(backup, kind="after_backup")
    ctx: Any = SimpleNamespace(operation=operation, fenced=transaction.atomic)

    def goes(*, waited: float, kind: str = "after_backup") -> bool:
        operation.created_at = now() - timedelta(seconds=waited)
        operation.params["proof_kind"] = kind
        try:
            proving_steps._let_backups_go_first(ctx, idle.region)
        except Wait:
            return False
        return True

    assert goes(waited=0)
    make_backup(idle, storage, status="queued", trigger="upload")
    assert goes(waited=0), "what is uploaded burdens no database"
    other = make_backup(idle, storage, status="queued")
    for status in ("queued", "dumping"):
        Backup.objects.filter(pk=other.pk).update(status=status)
        assert not goes(waited=0) and not goes(waited=1700), status
        assert not goes(waited=0, kind="manual"), status
        assert goes(waited=61, kind="manual"), "somebody waits"
        assert goes(waited=1801), "a backup that nobody proves is none"
    with pytest.raises(Wait):  # and so is what the step itself does, before it takes a place
        operation.created_at = now()
        operation.params["proof_kind"] = "after_backup"
        proving_steps.claim(ctx)
    Backup.objects.filter(pk=other.pk).update(project_uuid=uuid4())
    assert goes(waited=0), "of another region"


def test_one_schedule_s_error_is_its_own(
    idle: Project, storage: StorageTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedules = [make_schedule(idle, cron, keep_last=1) for cron in ("0 2 * * *", "0 3 * * *")]
    asked: list[UUID] = []

    def apply(pk: UUID) -> Any:
        asked.append(pk)
        raise ZeroDivisionError

    monkeypatch.setattr(retaining, "apply", apply)
    assert retaining.daily() == 0
    assert set(asked) == {schedule.pk for schedule in schedules}


def test_manifests_are_not_read_for_retention(idle: Project, storage: StorageTarget) -> None:
    schedule = make_schedule(idle, keep_last=1)
    make_backup(idle, storage, schedule=schedule)
    assert all("manifest" in row.get_deferred_fields() for row in retaining.look(schedule).rows.values())
