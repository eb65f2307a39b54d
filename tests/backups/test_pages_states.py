"""What the pages say of backups that are gone from their storage, and of restores that are cancelled or left alone."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from backups.models import (
    Backup,
    BackupStatus,
    Drill,
    Proof,
    ProofKind,
    ProofState,
    Restore,
    RestoreStatus,
    RestoreTarget,
)
from backups.templatetags.backups_ui import advice
from novastack.common.clock import now
from projects.models import Operation, OperationStep
from projects.operations.context import COMMITTED
from projects.operations.taxonomy import CODES
from tests.backups.rows import make_backup, make_proof
from tests.backups.test_pages import HTMX, Shop, browser, shop  # noqa: F401 - the fixture
from tests.factories import make_project

pytestmark = pytest.mark.django_db
GONE = {"code": "object_missing", "detail": "The storage has no such object.", "retryable": False}


class TestMissing:
    """Proven once, and not in its storage any more: it is nothing that one could restore, and nothing is green."""

    @pytest.mark.parametrize("status", [BackupStatus.VERIFIED, BackupStatus.STORED])
    def test_it_is_not_called_verified(self, shop: Shop, status: str) -> None:  # noqa: F811
        Backup.objects.update(status=status, verify_error=GONE)
        page = browser(shop.team.bob).get(f"/projects/{shop.project.pk}/backups/", **HTMX).content.decode()
        assert "badge-proven" not in page and "Missing</span>" in page
        assert "The storage has no such object." in page and "Could not be tried" not in page
        assert f"/backups/{shop.backup.pk}/restore/" not in page and f"/backups/{shop.backup.pk}/download/" not in page
        assert "Verify again" in page and "Verify now" not in page

    def test_its_page_says_what_to_do(self, shop: Shop) -> None:  # noqa: F811
        Backup.objects.update(verify_error=GONE)
        page = browser(shop.team.bob).get(f"/backups/{shop.backup.pk}/", **HTMX).content.decode()
        assert "There is nothing to restore" in page and "Look who removes objects there." in page
        assert "says nothing about the backup" not in page

    def test_retention_calls_it_missing_too(self, shop: Shop) -> None:  # noqa: F811
        Backup.objects.filter(pk=shop.backup.pk).update(verify_error=GONE)
        path = f"/projects/{shop.project.pk}/backups/schedules/{shop.schedule.pk}/retention/"
        page = browser(shop.team.bob).get(path, **HTMX).content.decode()
        assert '<span class="sub">Missing</span>' in page and ">Verified<" not in page

    def test_it_is_counted(self, shop: Shop) -> None:  # noqa: F811
        make_backup(shop.project, shop.storage, hours=1, status="failed", verified_at=None, size_bytes=None)
        Backup.objects.filter(pk=shop.backup.pk).update(verify_error=GONE)
        page = browser(shop.team.bob).get(f"/projects/{shop.project.pk}/backups/").content.decode()
        assert "0 of 2 verified" in page and "1 missing, 1 failed" in page

    def test_what_could_not_be_tried_stays_verified(self, shop: Shop) -> None:  # noqa: F811
        Backup.objects.update(verify_error={"code": "storage_unreachable", "detail": "No answer."})
        page = browser(shop.team.bob).get(f"/projects/{shop.project.pk}/backups/", **HTMX).content.decode()
        assert "badge-proven" in page and "Could not be tried: No answer." in page
        assert f"/backups/{shop.backup.pk}/restore/" in page


def test_an_upload_is_imported_and_not_dumped(shop: Shop) -> None:  # noqa: F811
    Backup.objects.update(status=BackupStatus.DUMPING, trigger="upload")
    page = browser(shop.team.vera).get(f"/projects/{shop.project.pk}/backups/", **HTMX).content.decode()
    assert "Importing</span>" in page and "After the import" in page and "Dumping" not in page


@pytest.mark.parametrize("path", ["/projects/{project}/backups/", "/backups/{backup}/"])
def test_an_upload_has_no_bar_that_stands_still(shop: Shop, path: str) -> None:  # noqa: F811
    operation = Operation.objects.create(kind="import", state="running", organization_id=shop.team.organization.pk)
    Backup.objects.update(status=BackupStatus.DUMPING, trigger="upload", operation_id=operation.pk)
    client = browser(shop.team.vera)
    page = client.get(shop.path(path), **HTMX).content.decode()
    assert "<progress" not in page and "dumped<" not in page and ' dumped"' not in page
    Backup.objects.update(trigger="manual")
    assert "<progress" in client.get(shop.path(path), **HTMX).content.decode()


def test_a_row_is_called_the_same_tomorrow(shop: Shop) -> None:  # noqa: F811
    """Else the whole list is read out at midnight. Where several projects are listed, it has its project's name."""
    name = f"{shop.backup.created_at:%-d %b %Y %H:%M}: Verified"
    client = browser(shop.team.vera)
    assert f'data-announce="Backup of {name}"' in client.get(shop.path("/projects/{project}/backups/")).content.decode()
    assert f'data-announce="Backup of {shop.project.name}, {name}"' in client.get("/backups/").content.decode()


def test_a_failed_upload_is_not_tried_again_as_a_backup_of_the_project(shop: Shop) -> None:  # noqa: F811
    Backup.objects.update(status=BackupStatus.FAILED, trigger="upload", verified_at=None)
    page = browser(shop.team.bob).get(f"/projects/{shop.project.pk}/backups/", **HTMX).content.decode()
    assert "/actions/again/" not in page


def test_of_many_differences_the_rest_is_counted(shop: Shop) -> None:  # noqa: F811
    make_proof(shop.backup, state=ProofState.FAILED, differences=[f"table {n} differs" for n in range(11)])
    page = browser(shop.team.vera).get(f"/backups/{shop.backup.pk}/", **HTMX).content.decode()
    assert "table 7 differs" in page and "table 8 differs" not in page
    assert "And 3 more" in page


def test_while_it_is_verified_the_proof_s_steps_are_shown(shop: Shop) -> None:  # noqa: F811
    """Else nothing would move until it is proven: the steps that took it have all been done."""
    operation = Operation.objects.create(
        kind="verify", state="running", organization_id=shop.team.organization.pk, started_at=now()
    )
    OperationStep.objects.create(
        operation=operation, position=0, name="compare", title="Compare what came", state="running"
    )
    Backup.objects.update(status=BackupStatus.VERIFYING)
    make_proof(shop.backup, state=ProofState.RUNNING, operation_id=operation.pk)
    page = browser(shop.team.vera).get(f"/backups/{shop.backup.pk}/", **HTMX).content.decode()
    assert "Compare what came" in page


class TestRestoring:
    """The page of a restore that is at work, or was asked to stop."""

    def path(self, shop: Shop) -> str:  # noqa: F811
        return f"/restores/{shop.restore.pk}/"

    def begun(self, shop: Shop, **fields: Any) -> Operation:  # noqa: F811
        """At work, in place."""
        operation = Operation.objects.create(
            project_uuid=shop.project.pk, organization_id=shop.team.organization.pk, kind="restore", state="running",
            started_at=now(), lease_until=now() + timedelta(minutes=1), **fields,
        )  # fmt: skip
        Restore.objects.update(status=RestoreStatus.RUNNING, undo_until=None, operation_id=operation.pk)
        return operation

    def test_it_is_cancelled_from_its_page(self, shop: Shop) -> None:  # noqa: F811
        operation = self.begun(shop)
        act = f"/projects/{shop.project.pk}/operations/{operation.pk}/cancel/"
        page = browser(shop.team.bob).get(self.path(shop)).content.decode()
        assert act in page
        assert act not in browser(shop.team.vera).get(self.path(shop)).content.decode()
        answer = browser(shop.team.bob).post(act, {"next": self.path(shop)})
        assert answer.status_code == 302 and answer.url == self.path(shop)
        page = browser(shop.team.bob).get(self.path(shop)).content.decode()
        assert "Cancelling" in page and act not in page

    def test_after_the_switch_it_is_not_offered(self, shop: Shop) -> None:  # noqa: F811
        operation = self.begun(shop)
        OperationStep.objects.create(
            operation=operation, position=0, name="switch", title="Switch", state="succeeded", data={COMMITTED: True}
        )
        act = f"/projects/{shop.project.pk}/operations/{operation.pk}/cancel/"
        client = browser(shop.team.bob)
        assert act not in client.get(self.path(shop)).content.decode()
        page = client.post(act, {"next": self.path(shop)}, follow=True).content.decode()
        assert "it only finishes" in page and "What it did is undone" not in page
        operation.refresh_from_db()
        assert operation.cancel_requested_at is None

    def test_one_that_was_cancelled_says_so(self, shop: Shop) -> None:  # noqa: F811
        Restore.objects.update(status=RestoreStatus.CANCELLED, undo_until=None)
        page = browser(shop.team.bob).get(self.path(shop)).content.decode()
        assert "It was cancelled." in page and "The live database is as it was." in page
        Restore.objects.update(target=RestoreTarget.NEW_PROJECT)
        assert "The live database" not in browser(shop.team.bob).get(self.path(shop)).content.decode()

    def test_without_a_worker_it_is_not_silent(self, shop: Shop) -> None:  # noqa: F811
        operation = self.begun(shop)
        words = "No worker has given a sign of life"
        assert words not in browser(shop.team.bob).get(self.path(shop)).content.decode()
        Operation.objects.filter(pk=operation.pk).update(lease_until=None, created_at=now() - timedelta(hours=1))
        assert words in browser(shop.team.bob).get(self.path(shop)).content.decode()

    def test_of_what_is_missing_nothing_is_tried_again(self, shop: Shop) -> None:  # noqa: F811
        Restore.objects.update(status=RestoreStatus.FAILED, error=GONE, undo_until=None)
        again = f"/backups/{shop.backup.pk}/restore/"
        assert again in browser(shop.team.bob).get(self.path(shop)).content.decode()
        Backup.objects.update(verify_error=GONE)
        assert again not in browser(shop.team.bob).get(self.path(shop)).content.decode()

    def test_a_new_project_that_failed_can_be_tried_again(self, shop: Shop) -> None:  # noqa: F811
        Restore.objects.update(
            status=RestoreStatus.FAILED, target=RestoreTarget.NEW_PROJECT, error=GONE, undo_until=None
        )
        page = browser(shop.team.bob).get(self.path(shop)).content.decode()
        assert f"/backups/{shop.backup.pk}/restore/?target=new_project" in page
        assert "The live database is as it was." not in page


def test_tables_that_came_beside_are_no_restore_in_place(shop: Shop) -> None:  # noqa: F811
    outcome = {"tables": {"public.coupons": "restored_1.coupons"}, "rows": 7}
    Restore.objects.update(outcome=outcome, selection={"tables": ["public.coupons"]}, undo_until=None)
    page = browser(shop.team.bob).get(f"/restores/{shop.restore.pk}/").content.decode()
    assert f"are beside what {shop.project.name} holds, as of " in page
    assert "In place" not in page and page.count("Some tables, beside what it holds") == 2


def test_advice_is_a_sentence_for_people() -> None:
    told = {code: advice(code) for code in CODES}
    assert told["content_differs"] == "Take another backup."
    assert [code for code, text in told.items() if text[:1].islower() or "`" in text] == []


class TestPreflight:
    def page(self, shop: Shop, target: str = "in_place") -> str:  # noqa: F811
        path = f"/backups/{shop.backup.pk}/restore/preflight/"
        return browser(shop.team.bob).post(path, {"target": target}).content.decode()

    def test_its_result_is_given_to_who_hears_the_page(self, shop: Shop) -> None:  # noqa: F811
        page = self.page(shop)
        assert "Restore about 3:21 as its last proof took" in page
        spoken = page.split('data-announce="')[1].split('"')[0]
        assert spoken.startswith("Preflight at ") and "it can’t begin like this." in spoken  # no manifest lies there

    def test_it_is_said_once(self, shop: Shop) -> None:  # noqa: F811
        """An alert that is swapped in is read by itself, and its words are in the region that stays."""
        path = f"/backups/{shop.backup.pk}/restore/preflight/"
        client = browser(shop.team.bob)
        page = client.post(path, {"target": "in_place"}, **HTMX).content.decode()
        assert "It can’t begin like this." in page and 'role="alert"' not in page
        assert 'role="alert"' in client.post(path, {"target": "in_place"}).content.decode()  # without JavaScript

    def test_the_safety_backup_takes_as_long_as_what_lives_there(self, shop: Shop) -> None:  # noqa: F811
        """Not as long as the backup that is restored, perhaps of another project."""
        said = "after a safety backup and its proof of about 6:29</span>"  # 3:08 and 3:21
        assert said in self.page(shop)
        other = make_project(shop.team.alice, shop.team.organization, "Other")
        path = f"/backups/{shop.backup.pk}/restore/preflight/"
        client = browser(shop.team.bob)
        body = {"target": "project", "project": str(other.pk)}
        page = client.post(path, body).content.decode()
        assert "after a safety backup that is taken and proven first</span>" in page and "6:29" not in page
        make_backup(other, shop.storage, hours=3, rto_seconds=12.0)
        make_backup(other, shop.storage, hours=2, rto_seconds=999.0, trigger="upload")
        assert "its proof of about 3:20</span>" in client.post(path, body).content.decode()

    def test_every_figure_is_there_on_a_phone(self, shop: Shop) -> None:  # noqa: F811
        Backup.objects.update(manifest={"contents": {"tables": {"public.orders": [1204, "d"]}}})
        table = self.page(shop).split('role="table"')[1].split("</table>")[0]
        assert 'data-label="In backup">1\u202f204' in table


class TestDrills:
    """Nobody has to reload a page to see how a drill went."""

    def test_the_cards_follow_a_proof(self, shop: Shop) -> None:  # noqa: F811
        run = make_proof(shop.backup, kind=ProofKind.DRILL, drill=shop.drill, state=ProofState.RUNNING)
        client, path = browser(shop.team.bob), f"/projects/{shop.project.pk}/backups/"
        cards = path + "?part=cards"
        assert f'hx-get="{cards}"' in client.get(path).content.decode()
        page = client.get(cards, **HTMX).content.decode()
        assert 'data-poll="3"' in page and f'data-announce="Drill {shop.drill.name}: Running"' in page
        assert 'id="backup-list"' not in page
        Proof.objects.filter(pk=run.pk).update(state=ProofState.PASSED)
        page = client.get(cards, **HTMX).content.decode()
        assert 'data-poll="20"' in page and f'data-announce="Drill {shop.drill.name}: Passed"' in page

    def test_its_own_page_follows_its_run(self, shop: Shop) -> None:  # noqa: F811
        path = f"/projects/{shop.project.pk}/backups/drills/{shop.drill.pk}/"
        client = browser(shop.team.bob)
        assert 'data-poll="3"' not in client.get(path).content.decode()
        run = make_proof(shop.backup, kind=ProofKind.DRILL, drill=shop.drill, state=ProofState.QUEUED)
        assert 'data-poll="3"' in client.get(path).content.decode()
        Proof.objects.filter(pk=run.pk).update(state=ProofState.FAILED)
        page = client.get(path, **HTMX).content.decode()
        assert "data-poll" not in page and "<form" not in page and "Failed" in page

    def test_the_cards_ask_a_fixed_number_of_queries(self, shop: Shop, django_assert_max_num_queries: Any) -> None:  # noqa: F811
        client = browser(shop.team.bob)
        owner = {"project": shop.project, "organization_id": shop.team.organization.pk}
        for number in range(12):
            drill = Drill.objects.create(name=f"Drill {number}", **owner)
            if number % 3:
                make_proof(make_backup(shop.project, shop.storage), kind=ProofKind.DRILL, drill=drill)
            else:
                Drill.objects.filter(pk=drill.pk).update(stalled_since=now(), stalled_error=GONE)
        with django_assert_max_num_queries(17):
            client.get(f"/projects/{shop.project.pk}/backups/?part=cards", **HTMX)


class TestDownload:
    """What can't be had is said on the page, and is no file that holds an error."""

    @pytest.mark.parametrize("form", ["stored", "decrypted"])
    def test_what_is_missing_is_said(self, shop: Shop, form: str) -> None:  # noqa: F811
        answer = browser(shop.team.bob).get(f"/backups/{shop.backup.pk}/download/?as={form}")
        assert answer.status_code == 503 and "Content-Disposition" not in answer
        page = answer.content.decode()
        assert 'role="alert"' in page and "storage_unavailable" in page and "As stored" in page
        assert browser(shop.team.vera).get(f"/backups/{shop.backup.pk}/download/?as={form}").status_code == 403
