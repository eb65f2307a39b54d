"""A project is deleted: first its final backup, of a real PostgreSQL, restored and compared; or the waiver."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from django.db import transaction

from accounts.permissions import Principal
from backups.models import Backup, BackupStatus, Proof, StorageTarget
from backups.operations import final, retaining, storages, taking_steps
from backups.operations.taking import BackupStorageReadOnly, NoBackupStorage
from novastack.common.clock import now
from novastack.common.errors import ActionNotAllowed
from novastack.common.models import Install
from projects import tasks
from projects.models import Operation, OperationLock, OperationStep, Project
from projects.operations import doctor, removal
from projects.operations.base import StepFailed, Wait
from projects.services import project_action, project_delete, project_purge
from tests.backups import taken
from tests.backups.keeping import make_backup
from tests.factories import Team, api_client, make_project
from tests.faults.conftest import Site, _fresh, process_site  # noqa: F401

FINAL = [step.name for step in final.STEPS]


def steps_of(operation: Operation) -> list[str]:
    return list(operation.steps.values_list("name", flat=True))


# --- what is recorded ---------------------------------------------------------------------------------------------------
@pytest.mark.django_db
class TestPlan:
    def test_by_default_where_it_can_be(self, idle: Project, alice: Principal, storage: StorageTarget) -> None:
        operation = project_delete(principal=alice, project=idle)
        backup = Backup.objects.get()
        assert steps_of(operation) == [*FINAL, "shut", "stop"]
        assert (backup.trigger, backup.operation_id) == ("final", operation.pk)
        assert operation.params == {"final_backup": str(backup.pk)}
        assert set(operation.locks.values_list("subject", "mode")) == {
            (f"project:{idle.pk}", "exclusive"), (f"backup:{backup.pk}", "shared"),
        }  # fmt: skip
        idle.refresh_from_db()
        assert idle.status == "deleting"

    def test_not_without_a_storage_unless_it_is_asked_for(self, idle: Project, alice: Principal) -> None:
        with pytest.raises(NoBackupStorage), transaction.atomic():
            project_delete(principal=alice, project=idle, final_backup=True)
        operation = project_delete(principal=alice, project=idle)
        assert steps_of(operation) == ["shut", "stop"]
        assert "storage" in operation.params["final_backup_none"]

    def test_not_of_what_never_had_a_database(self, shop: Project, alice: Principal, storage: StorageTarget) -> None:
        with pytest.raises(ActionNotAllowed), transaction.atomic():
            project_delete(principal=alice, project=shop, final_backup=True)
        assert steps_of(project_delete(principal=alice, project=shop)) == ["shut", "stop"]
        assert not Backup.objects.exists()

    @pytest.mark.parametrize("purge", [False, True])
    def test_waived(self, purge: bool, idle: Project, alice: Principal, storage: StorageTarget) -> None:
        if purge:
            operation = project_purge(principal=alice, project=idle, confirm=idle.slug, final_backup=False)
        else:
            operation = project_delete(principal=alice, project=idle, final_backup=False)
        assert not set(steps_of(operation)) & set(FINAL) and not Backup.objects.exists()
        assert operation.params == {"final_backup_waived": True}

    def test_a_purge_takes_one_as_well(self, idle: Project, alice: Principal, storage: StorageTarget) -> None:
        operation = project_purge(principal=alice, project=idle, confirm=idle.slug)
        assert steps_of(operation)[: len(FINAL)] == FINAL and operation.kind == "purge"

    def test_over_the_api(self, team: Team, runtime: Any, storage: StorageTarget) -> None:
        project = make_project(team.alice, team.organization, "Books")
        url = f"/api/v1/projects/{project.pk}/"
        api = api_client(team.alice)
        begun = api.delete(url)
        assert begun.status_code == 202
        assert api.delete(url).json()["code"] == "action_not_allowed"
        waived = api.delete(f"{url}?final_backup=false")
        assert waived.status_code == 202 and waived.json()["operation"]["id"] == begun.json()["operation"]["id"]
        assert Operation.objects.get(pk=begun.json()["operation"]["id"]).params["final_backup_waived"] is True
        assert api.delete(f"{url}?final_backup=false").json()["code"] == "action_not_allowed"

    def test_backups_outlive_the_project_by_the_plans_days(
        self, idle: Project, alice: Principal, storage: StorageTarget
    ) -> None:
        backup = make_backup(idle, storage)
        with transaction.atomic():
            removal.remove_rows(idle.pk)
        backup.refresh_from_db()
        assert backup.keep_until is not None
        assert abs((backup.keep_until - now()).days - 30) <= 1
        assert retaining.expire() == 0


@pytest.fixture
def read_only(storage: StorageTarget) -> StorageTarget:
    storage.read_only_reason = "It was taken over by another installation."
    storage.save()
    return storage


@pytest.mark.django_db
class TestRefused:
    """A storage that refuses never makes a deletion for good go without."""

    def test_a_purge_is_refused_and_names_the_waiver(
        self, idle: Project, alice: Principal, read_only: StorageTarget
    ) -> None:
        with pytest.raises(BackupStorageReadOnly) as refused, transaction.atomic():
            project_purge(principal=alice, project=idle, confirm=idle.slug)
        assert "taken over" in refused.value.detail and "final_backup=false" in refused.value.detail
        assert not Operation.objects.filter(kind="purge").exists()
        assert project_purge(principal=alice, project=idle, confirm=idle.slug, final_backup=False).live

    def test_a_purge_without_any_storage_is_refused_where_there_were_backups(
        self, idle: Project, alice: Principal, storage: StorageTarget
    ) -> None:
        storage.is_default = False
        storage.save()
        with transaction.atomic():
            assert project_purge(principal=alice, project=idle, confirm=idle.slug).live
            transaction.set_rollback(True)
        make_backup(idle, storage)
        with pytest.raises(NoBackupStorage), transaction.atomic():
            project_purge(principal=alice, project=idle, confirm=idle.slug)

    def test_the_bin_goes_on_and_says_so(self, idle: Project, alice: Principal, read_only: StorageTarget) -> None:
        operation = project_delete(principal=alice, project=idle)
        assert steps_of(operation) == ["shut", "stop"]
        event = operation.events.get()
        assert event.level == "warning" and "taken over" in event.message

    def test_the_bins_clock_goes_on_with_the_others(
        self, idle: Project, alice: Principal, read_only: StorageTarget
    ) -> None:
        other = make_project(idle.created_by, idle.organization, "Other")
        project_delete(principal=alice, project=idle)
        project_delete(principal=alice, project=other, final_backup=False)
        Operation.objects.live().update(state="succeeded")
        OperationLock.objects.all().delete()
        Project.objects.update(recycled_at=now() - timedelta(days=9), recycle_until=now() - timedelta(days=1))
        seen = [str(idle.pk), str(other.pk)]
        Install.load()
        Install.merge_notes(purge_due_seen=seen, purge_due_at="")
        tasks.purge_due()
        assert list(Operation.objects.filter(kind="purge").values_list("project_uuid", flat=True)) == [other.pk]
        assert idle.name in Install.load().notes["purge_due_refused"]
        assert [found.code for found in doctor._install()] == ["bin.refused"]


@pytest.mark.django_db
class TestBehind:
    """A purge behind a deletion that has not ended."""

    def test_it_has_the_same_backup_and_sees_to_it(
        self, idle: Project, alice: Principal, storage: StorageTarget
    ) -> None:
        first = project_delete(principal=alice, project=idle)
        purge = project_purge(principal=alice, project=idle, confirm=idle.slug)
        backup = Backup.objects.get()
        assert purge.params == first.params == {"final_backup": str(backup.pk)}
        assert backup.operation_id == first.pk
        assert steps_of(purge)[: len(FINAL)] == FINAL
        assert purge.locks.filter(subject=f"backup:{backup.pk}").exists()

    def test_the_waiver_is_for_both(self, idle: Project, alice: Principal, storage: StorageTarget) -> None:
        first = project_delete(principal=alice, project=idle)
        purge = project_purge(principal=alice, project=idle, confirm=idle.slug)
        with transaction.atomic():
            assert removal.waive_final(idle) is not None
        for operation in (first, purge):
            operation.refresh_from_db()
            assert operation.params["final_backup_waived"] is True

    def test_a_failed_deletion_leaves_it_to_the_purge_and_fails_it_without_one(
        self, idle: Project, alice: Principal, storage: StorageTarget
    ) -> None:
        first = project_delete(principal=alice, project=idle)
        purge = project_purge(principal=alice, project=idle, confirm=idle.slug)
        backup = Backup.objects.get()
        for operation, status in ((first, "queued"), (purge, "failed")):
            Operation.objects.filter(pk=operation.pk).update(state="failed")
            operation.refresh_from_db()
            removal.not_removed(operation)
            backup.refresh_from_db()
            assert backup.status == status

    @pytest.mark.parametrize("status", ["stored", "verifying"])
    def test_what_is_not_verified_settles_nothing(
        self, status: str, idle: Project, alice: Principal, storage: StorageTarget
    ) -> None:
        project_delete(principal=alice, project=idle)
        Backup.objects.update(status=status)
        idle.refresh_from_db()
        assert not final._settled(idle)
        Backup.objects.update(status="verified")
        assert final._settled(idle)
        Backup.objects.update(verify_error={"code": "target_full", "detail": "…"})
        assert final._settled(idle)
        Backup.objects.update(verify_error={"code": "object_missing", "detail": "The storage has no such object."})
        assert not final._settled(idle), "else a purge removes the last copy there is"


@pytest.mark.django_db
class TestProve:
    """What is wrong with the final backup, step by step; taking it is stood in for."""

    @pytest.fixture
    def ctx(
        self, idle: Project, alice: Principal, storage: StorageTarget, monkeypatch: pytest.MonkeyPatch
    ) -> SimpleNamespace:
        operation = project_delete(principal=alice, project=idle)
        row = operation.steps.get(name="final_proof")

        def taken_now(ctx: Any) -> None:
            Backup.objects.filter(pk=ctx.operation.params["final_backup"]).update(status="stored")

        step = SimpleNamespace(run=taken_now)
        monkeypatch.setattr(final.taking, "backup_steps", lambda **_: (step,))
        return SimpleNamespace(
            operation=operation, project=idle, row=row, guard=lambda: None, fenced=transaction.atomic,
            explain=lambda _: None, record=lambda **_: None,
        )  # fmt: skip

    @pytest.mark.parametrize("status", ["queued", "dumping", "failed"])
    def test_what_is_not_taken_is_taken(self, status: str, ctx: Any) -> None:
        Backup.objects.update(status=status)
        with pytest.raises(Wait):
            final.prove(ctx)
        assert Backup.objects.get().status == "stored" and Proof.objects.count() == 1

    def test_a_corrupt_one_is_taken_anew_once(self, ctx: Any) -> None:
        Backup.objects.update(status="corrupt")
        with pytest.raises(StepFailed, match="another one is taken"):
            final.prove(ctx)
        ctx.operation.refresh_from_db()
        again = Backup.objects.get(pk=ctx.operation.params["final_backup"])
        assert again.status == "queued" and again.operation_id == ctx.operation.pk
        assert ctx.operation.locks.filter(subject=f"backup:{again.pk}").exists()
        with pytest.raises(Wait):  # cut short in between, it goes on with the new one
            final.prove(ctx)
        again.refresh_from_db()
        assert again.status == "stored"
        Backup.objects.update(status="corrupt")
        with pytest.raises(StepFailed, match=r"Two final backups.*final_backup=false") as failed:
            final._guarded(final.prove)(ctx)
        assert not failed.value.retryable and Backup.objects.count() == 2


# --- on the real parts ----------------------------------------------------------------------------------------------------
def run(site: Site, operation: Operation, seconds: float = 150) -> Operation:
    """The deletion and the proof that it begins, as workers and ticks would."""
    from projects.operations import runner

    until = time.monotonic() + seconds
    while time.monotonic() < until:
        Operation.objects.live().update(next_attempt_at=None)
        for pk in Operation.objects.live().order_by("created_at").values_list("pk", flat=True):
            runner.run(pk)
        operation.refresh_from_db()
        if not operation.live:
            return operation
        time.sleep(0.2)
    raise AssertionError(list(operation.steps.values_list("name", "state", "detail")))


def rows(site: Site, project: Project) -> None:
    with site.client.administrator(project) as session:
        session.execute("CREATE TABLE IF NOT EXISTS kept (id int)")
        session.execute("INSERT INTO kept SELECT generate_series(1, 500)")


@pytest.mark.django_db(transaction=True)
class TestReal:
    def test_deleted_with_its_final_backup_verified_then_undeleted(
        self,
        process_site: Site,  # noqa: F811
        settings: Any,
        tmp_path: Path,
    ) -> None:
        site, project = process_site, process_site.ready()
        target = taken.target(settings, tmp_path, is_default=True)
        storages.claim(target)
        target.save()
        principal = Principal.of(project.created_by)  # type: ignore[arg-type]
        operation = run(site, project_delete(principal=principal, project=project))
        told = list(operation.steps.values_list("name", "state", "detail"))
        assert operation.state == "succeeded", told
        backup = Backup.objects.get(trigger="final")
        assert backup.status == BackupStatus.VERIFIED and backup.tables, told
        project.refresh_from_db()
        assert project.status == "recycled"
        # From the bin no second one is needed.
        with transaction.atomic():
            purge = project_purge(principal=principal, project=project, confirm=project.slug)
            assert not set(steps_of(purge)) & set(FINAL)
            transaction.set_rollback(True)
        project.refresh_from_db()
        back = site.finish(project_action(principal=principal, project=project, action="undelete"))
        assert back.state == "succeeded", list(back.steps.values_list("name", "state", "detail"))

    def test_a_stopped_one_is_started_for_it_and_a_storage_that_fails_keeps_everything(
        self,
        process_site: Site,  # noqa: F811
        settings: Any,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        site, project = process_site, process_site.ready()
        target = taken.target(settings, tmp_path, is_default=True)
        storages.claim(target)
        target.save()
        principal = Principal.of(project.created_by)  # type: ignore[arg-type]
        site.finish(project_action(principal=principal, project=project, action="stop"))
        project.refresh_from_db()
        operation = project_delete(principal=principal, project=project)

        def refuse(*_: Any) -> None:
            raise StepFailed("storage_full", "The storage is full.")

        from projects.operations import runner

        with monkeypatch.context() as patch:
            patch.setattr(taking_steps, "_check_room", refuse)
            for _ in range(4):
                Operation.objects.live().update(next_attempt_at=None)
                runner.run(operation.pk)
            operation.refresh_from_db()
            step = OperationStep.objects.get(operation=operation, name="final_prepare")
            assert operation.live and step.error_code == "storage_full" and "final_backup=false" in step.detail
            project.refresh_from_db()
            assert project.status == "deleting" and "final_backup=false" in project.status_detail
            assert project.purging_at is None
            # The way out.
            assert project_delete(principal=principal, project=project, final_backup=False).pk == operation.pk
            operation = run(site, operation)
        assert operation.state == "succeeded"
        backup = Backup.objects.get(trigger="final")
        assert backup.status == BackupStatus.FAILED
        assert OperationStep.objects.get(operation=operation, name="final_dump").detail == "Waived"
