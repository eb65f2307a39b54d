"""A verdict stands whatever becomes of the clean-up; and what is missing or corrupt counts for nothing meanwhile."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from django.db import transaction

from backups.models import Backup, Proof, StorageTarget
from backups.operations import drills, proving, proving_steps, retaining
from backups.operations.restoring_data import BackupCorrupt
from projects.models import Project
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
