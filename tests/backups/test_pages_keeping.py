"""Pages of what is kept and where: retention's dry run, whose a storage is, keys, drills that pause."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from django.test import Client

from accounts.models import AuditEvent
from backups.models import Backup, BackupKey, BackupStatus, Drill, Restore, RestoreStatus, StorageTarget
from backups.operations import keys, storages
from novastack.common.clock import now
from tests.backups.rows import make_backup, make_schedule, make_storage
from tests.backups.test_pages import HTMX, Shop, browser, shop  # noqa: F401 - the fixture

pytestmark = pytest.mark.django_db


class TestRetention:
    def path(self, shop: Shop) -> str:  # noqa: F811
        return f"/projects/{shop.project.pk}/backups/schedules/{shop.schedule.pk}/retention/"

    @pytest.fixture
    def older(self, shop: Shop) -> list[Backup]:  # noqa: F811
        """Four that no rule keeps, a pinned one, and one by hand that is no schedule's."""
        shop.schedule.keep_last, shop.schedule.keep_daily = 1, None
        shop.schedule.save()
        found = [make_backup(shop.project, shop.storage, hours=10 + n, schedule=shop.schedule) for n in range(4)]
        make_backup(shop.project, shop.storage, hours=30, schedule=shop.schedule, pinned=True)
        make_backup(shop.project, shop.storage, hours=40, label="by hand")
        return found

    @pytest.mark.parametrize("person", ["alice", "vera"])
    def test_what_would_go_and_what_stays_and_why(self, shop: Shop, older: list[Backup], person: str) -> None:  # noqa: F811
        Backup.objects.filter(pk=older[0].pk).update(due_since=now() - timedelta(hours=1))
        page = browser(getattr(shop.team, person)).get(self.path(shop), **HTMX).content.decode()
        assert "4 backups would be removed" in page and "2 would stay" in page
        for words in ("the latest one", "Pinned", "The last verified one", "No rule keeps it", "Not before tomorrow"):
            assert words in page, words
        assert page.count("No rule keeps it") == 4
        assert ("Remove 4 now" in page) is (person == "alice")
        assert Backup.objects.filter(status=BackupStatus.DELETING).count() == 0

    def test_rules_are_tried_before_they_are_saved(self, shop: Shop, older: list[Backup]) -> None:  # noqa: F811
        sent = {"cron": "0 * * * *", "time_zone": "UTC", "keep": "own", "max_bytes": "1 GB", "keep_days": "30"}
        page = browser(shop.team.bob).post(self.path(shop), sent, **HTMX).content.decode()
        assert "not saved yet" in page and "Remove" not in page.split("</h2>")[1].split("Would go")[0]
        assert "More than 1 GB in all" in page and "bytes in all" not in page
        assert 'name="apply"' not in page
        shop.schedule.refresh_from_db()
        assert (shop.schedule.keep_last, shop.schedule.max_bytes) == (1, None)

    def test_what_cannot_be_read_is_said(self, shop: Shop) -> None:  # noqa: F811
        sent = {"cron": "0 * * * *", "time_zone": "UTC", "keep": "own", "max_bytes": "lots"}
        for extra in ({}, HTMX):
            answer = browser(shop.team.bob).post(self.path(shop), sent, **extra)
            assert answer.status_code == 400 and "is no size" in answer.content.decode()

    def test_what_was_shown_is_removed_and_nothing_else(self, shop: Shop, older: list[Backup]) -> None:  # noqa: F811
        client = browser(shop.team.bob)
        page = client.get(self.path(shop)).content.decode()
        seen = page.split('name="seen" value="')[1].split('"')[0]
        Backup.objects.filter(pk=older[3].pk).update(pinned=True)  # since it was shown
        answer = client.post(self.path(shop), {"apply": "1", "seen": seen})
        assert "no longer what you were shown" in answer.content.decode()
        assert "3 backups would be removed" in answer.content.decode()
        assert not Backup.objects.filter(status=BackupStatus.DELETING).exists()
        seen = answer.content.decode().split('name="seen" value="')[1].split('"')[0]
        assert client.post(self.path(shop), {"apply": "1", "seen": seen}).status_code == 302
        gone = set(Backup.objects.filter(status=BackupStatus.DELETING).values_list("pk", flat=True))
        assert gone == {row.pk for row in older[:3]}
        told = AuditEvent.objects.get(action="backup.retention_applied")
        assert told.data["removed"] == 3 and told.actor_label == "bob@example.test"

    def test_removing_needs_its_right(self, shop: Shop, older: list[Backup]) -> None:  # noqa: F811
        assert browser(shop.team.vera).post(self.path(shop), {"apply": "1", "seen": "x"}).status_code == 403
        assert browser(shop.team.vera).post(self.path(shop), {"cron": "0 * * * *"}).status_code == 403
        assert browser(shop.team.charlie).get(self.path(shop)).status_code == 404
        other = make_schedule(shop.project)
        assert (
            browser(shop.team.alice).get(self.path(shop).replace(str(shop.schedule.pk), str(other.pk))).status_code
            == 200
        )
        assert (
            browser(shop.team.alice).get(self.path(shop).replace(str(shop.schedule.pk), str(uuid4()))).status_code
            == 404
        )

    def test_why_it_stopped_stands_with_what_would_go(self, shop: Shop, older: list[Backup]) -> None:  # noqa: F811
        shop.schedule.retention_paused_reason = "9 of 10 backups are due at once"
        shop.schedule.save()
        client = browser(shop.team.alice)
        assert "Look at them" in client.get(f"/projects/{shop.project.pk}/backups/").content.decode()
        page = client.get(self.path(shop), **HTMX).content.decode()
        assert "9 of 10 backups are due at once" in page and "Remove 4 now" in page


class TestWhoseStorage:
    """On a real folder."""

    @pytest.fixture
    def target(self, shop: Shop, settings: Any, tmp_path: Path) -> StorageTarget:  # noqa: F811
        settings.NOVASTACK_BACKUP_ROOT = str(tmp_path)
        shop.team.alice.is_staff = True
        shop.team.alice.save()
        made = browser(shop.team.alice).post(
            "/operator/storages/", {"name": "nas", "kind": "filesystem", "path": "nas"}
        )
        assert made.status_code == 302
        return StorageTarget.objects.get(name="nas")

    def owner(self, tmp_path: Path, **fields: str) -> None:
        found = tmp_path / "nas" / storages.OWNER_KEY
        found.write_text(json.dumps(json.loads(found.read_text()) | fields))

    def page(self, client: Client, target: StorageTarget) -> str:
        return client.get(f"/backup-storages/{target.pk}/take-over/", **HTMX).content.decode()

    def test_ours_has_nothing_to_take_over(self, shop: Shop, target: StorageTarget) -> None:  # noqa: F811
        page = self.page(browser(shop.team.alice), target)
        assert "This target does, and nobody else" in page and "Take it over" not in page

    def test_another_install_took_it_and_we_take_it_back(
        self, shop: Shop, target: StorageTarget, tmp_path: Path  # noqa: F811
    ) -> None:  # fmt: skip
        client = browser(shop.team.alice)
        foreign = str(uuid4())
        self.owner(tmp_path, install=foreign, epoch="theirs", target=str(uuid4()))
        client.post(f"/backup-storages/{target.pk}/actions/test/")
        target.refresh_from_db()
        assert target.read_only_reason and not target.test_ok
        assert "Read-only" in client.get("/operator/storages/").content.decode()
        page = self.page(client, target)
        assert "Another installation of NovaStack" in page and foreign in page and "Take it over" in page
        assert client.post(f"/backup-storages/{target.pk}/take-over/").status_code == 302
        target.refresh_from_db()
        assert target.read_only_reason == "" and storages.write_allowed(target)
        assert AuditEvent.objects.filter(action="storage.taken_over").count() == 1

    @pytest.mark.parametrize("broken", ["gone", "nonsense", "missing"])
    def test_what_the_place_says_is_shown_whatever_it_says(
        self, shop: Shop, target: StorageTarget, tmp_path: Path, broken: str  # noqa: F811
    ) -> None:  # fmt: skip
        found = tmp_path / "nas" / storages.OWNER_KEY
        if broken == "gone":
            found.unlink()
        elif broken == "nonsense":
            found.write_text('{"install": "<script>alert(1)</script>", "claimed_at": "2026-13-99T99:99", "epoch": 7}')
        else:
            target.config = {"path": "not/there"}
            target.save()
        page = self.page(browser(shop.team.alice), target)
        words = {"gone": "owner object is not there", "nonsense": "Another installation", "missing": ""}[broken]
        assert words in page and "<script>alert" not in page and "Take it over" in page

    def test_only_who_keeps_it(self, shop: Shop, target: StorageTarget) -> None:  # noqa: F811
        assert browser(shop.team.bob).get(f"/backup-storages/{target.pk}/take-over/").status_code == 403
        assert browser(shop.team.charlie).post(f"/backup-storages/{shop.storage.pk}/take-over/").status_code == 404
        assert browser(shop.team.bob).post(f"/backup-storages/{shop.storage.pk}/take-over/").status_code == 403

    def test_a_new_target_is_offered_a_place_of_somebody_elses(
        self, shop: Shop, target: StorageTarget, tmp_path: Path  # noqa: F811
    ) -> None:  # fmt: skip
        self.owner(tmp_path, install=str(uuid4()), epoch="theirs")
        StorageTarget.objects.filter(pk=target.pk).delete()
        client = browser(shop.team.alice)
        sent = {"name": "nas", "kind": "filesystem", "path": "nas"}
        refused = client.post("/operator/storages/", sent)
        assert refused.status_code == 400 and 'name="take_over"' in refused.content.decode()
        assert 'name="take_over"' not in client.get("/operator/storages/").content.decode()
        assert client.post("/operator/storages/", sent | {"take_over": "on"}).status_code == 302
        assert storages.write_allowed(StorageTarget.objects.get(name="nas"))

    def test_its_page_says_how_it_is(self, shop: Shop) -> None:  # noqa: F811
        StorageTarget.objects.filter(pk=shop.storage.pk).update(test_ok=False, test_detail="write: No room is left.")
        page = browser(shop.team.alice).get(f"/backup-storages/{shop.storage.pk}/").content.decode()
        assert "write: No room is left." in page and "1 backup," in page and "1 schedule" in page


class TestKeys:
    def test_a_new_key_is_made_and_the_old_one_opens_what_it_sealed(self, shop: Shop) -> None:  # noqa: F811
        first = keys.current_key(shop.team.organization.pk)
        Backup.objects.filter(pk=shop.backup.pk).update(key_ids=[first.recipient])
        client = browser(shop.team.adam)
        asked = client.get("/recovery-kit/keys/rotate/", **HTMX).content.decode()
        assert "goes on to open what it sealed" in asked
        assert BackupKey.objects.filter(organization=shop.team.organization, retired_at=None).get() == first
        assert client.post("/recovery-kit/keys/rotate/").status_code == 302
        first.refresh_from_db()
        assert first.retired_at is not None
        second = BackupKey.objects.get(organization=shop.team.organization, retired_at=None)
        page = client.get("/recovery-kit/").content.decode()
        assert first.recipient in page and second.recipient in page
        assert "Opens older backups" in page and "1 backup" in page and "0 backups" in page
        assert keys.recipients_of(shop.team.organization.pk)[0] == second.recipient

    def test_only_who_may_change_the_organization(self, shop: Shop) -> None:  # noqa: F811
        assert browser(shop.team.bob).post("/recovery-kit/keys/rotate/").status_code == 403
        assert BackupKey.objects.filter(organization=shop.team.organization).count() <= 1


def test_a_drill_is_paused_and_goes_on(shop: Shop) -> None:  # noqa: F811
    client, path = browser(shop.team.bob), f"/projects/{shop.project.pk}/backups/drills/{shop.drill.pk}/"
    fields = {"name": "Monthly", "cron": "0 4 1 * *", "time_zone": "UTC", "sql_0": "select 1", "expect_0": "1"}
    assert client.post(path, fields).status_code == 302
    drill = Drill.objects.get(pk=shop.drill.pk)
    assert drill.enabled and drill.next_run_at is not None
    assert client.post(path + "pause/").status_code == 302
    drill.refresh_from_db()
    assert not drill.enabled and drill.next_run_at is None
    for page in (client.get(path), client.get(f"/projects/{shop.project.pk}/backups/")):
        assert "Resume" in page.content.decode()
    client.post(path + "resume/")
    drill.refresh_from_db()
    assert drill.enabled and drill.next_run_at is not None
    assert browser(shop.team.vera).post(path + "pause/").status_code == 403


def test_an_unowned_storage_row_has_no_page_of_its_own_for_others(shop: Shop) -> None:  # noqa: F811
    other = make_storage(shop.team.elsewhere, "theirs")
    assert browser(shop.team.alice).get(f"/backup-storages/{other.pk}/take-over/").status_code == 404


class TestWhatToDo:
    """A failure has its reason, what to do about it, and the way on."""

    def test_a_failed_backup(self, shop: Shop) -> None:  # noqa: F811
        error = {"code": "storage_full", "detail": "The storage is full.", "retryable": False}
        Backup.objects.filter(pk=shop.backup.pk).update(
            status=BackupStatus.FAILED, verified_at=None, size_bytes=None, error=error
        )
        page = browser(shop.team.bob).get(f"/backups/{shop.backup.pk}/", **HTMX).content.decode()
        for words in (
            "The storage is full.",
            "Make room, or choose another storage.",
            "storage_full",
            "Retry",
            "Nothing stored",
        ):
            assert words in page, words
        assert "Retry" not in browser(shop.team.vera).get(f"/backups/{shop.backup.pk}/", **HTMX).content.decode()

    def test_a_code_that_nobody_knows_has_its_words_alone(self, shop: Shop) -> None:  # noqa: F811
        error = {"code": "<b>odd</b>", "detail": "Something odd.", "retryable": False}
        Backup.objects.filter(pk=shop.backup.pk).update(status=BackupStatus.CORRUPT, error=error)
        page = browser(shop.team.bob).get(f"/backups/{shop.backup.pk}/", **HTMX).content.decode()
        assert "Something odd." in page and "<b>odd</b>" not in page

    def test_a_failed_restore_is_tried_again_from_its_page(self, shop: Shop) -> None:  # noqa: F811
        error = {"code": "content_differs", "detail": "12 rows too few.", "retryable": False}
        Restore.objects.update(status=RestoreStatus.FAILED, error=error, undo_until=None)
        page = browser(shop.team.bob).get(f"/restores/{shop.restore.pk}/").content.decode()
        assert "12 rows too few." in page and "The live database is as it was." in page
        assert f"/backups/{shop.backup.pk}/restore/?target=in_place" in page
        Restore.objects.update(backup=None)
        assert "Try again" not in browser(shop.team.bob).get(f"/restores/{shop.restore.pk}/").content.decode()

    def test_what_becomes_of_a_restore_is_said_to_readers_of_the_page(self, shop: Shop) -> None:  # noqa: F811
        """The script speaks `data-announce` when it changed; the words are the poll's."""
        Restore.objects.update(status=RestoreStatus.RUNNING, undo_until=None)
        path = f"/restores/{shop.restore.pk}/"
        spoken = f'data-announce="Restore of {shop.project.name}: '
        running = browser(shop.team.bob).get(path, **HTMX).content.decode()
        Restore.objects.update(status=RestoreStatus.FAILED)
        failed = browser(shop.team.bob).get(path, **HTMX).content.decode()
        before, after = (page.split(spoken)[1].split('"')[0] for page in (running, failed))
        assert before.startswith("Running") and after == "Failed"

    @pytest.mark.parametrize("what", ["", "delete/", "download/"])
    def test_a_question_on_a_page_of_its_own_has_the_page_s_heading(self, shop: Shop, what: str) -> None:  # noqa: F811
        path = f"/backups/{shop.backup.pk}/{what}"
        assert browser(shop.team.alice).get(path).content.decode().count("<h1") == 1
        dialog = browser(shop.team.alice).get(path, **HTMX).content.decode()
        assert "<h1" not in dialog and '<h2 id="dialog-h">' in dialog
