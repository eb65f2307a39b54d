"""Every page of backups, for every role: what it shows, what it refuses. Outsiders get 404, members without the right 403."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import pyrage
import pytest
from django.test import Client

from accounts.models import User
from backups.models import (
    Backup,
    BackupPolicy,
    BackupStatus,
    BackupTrigger,
    Drill,
    OfflineKey,
    Restore,
    RestoreStatus,
    Schedule,
    StorageTarget,
)
from novastack.common.clock import now
from novastack.common.secrets import Sealed
from projects.models import Database, DatabaseServer, DatabaseSlot, Operation, Project, TableSnapshot
from projects.operations import removal
from tests.backups.keeping import utc
from tests.backups.rows import MIB, keep_before, make_backup, make_proof, make_restore, make_schedule, make_storage
from tests.factories import PASSWORD, Team, make_project, make_team

pytestmark = pytest.mark.django_db
HTMX = {"headers": {"HX-Request": "true"}}
EVERYBODY, MEMBERS, ADMINS = {"alice", "adam", "bob", "vera"}, {"alice", "adam", "bob"}, {"alice", "adam"}


@dataclass
class Shop:
    team: Team
    project: Project
    storage: StorageTarget
    schedule: Schedule
    backup: Backup
    drill: Drill
    restore: Restore

    def path(self, template: str) -> str:
        ids = {
            name: str(getattr(self, name).pk)
            for name in ("project", "storage", "schedule", "backup", "drill", "restore")
        }
        return template.format(**ids)


@pytest.fixture
def shop() -> Shop:
    team = make_team()
    project = make_project(team.alice, team.organization)
    storage = make_storage(team.organization, "cellar")
    schedule = make_schedule(project, storage=storage)
    backup = make_backup(project, storage, schedule=schedule)
    make_proof(backup)
    drill = Drill.objects.create(project=project, organization_id=team.organization.pk, name="Orders are complete")
    restore = make_restore(backup, project)
    keep_before(restore, project)
    return Shop(team, project, storage, schedule, backup, drill, restore)


def browser(user: User) -> Client:
    client = Client()
    client.force_login(user)
    return client


GETS = [
    ("/projects/{project}/backups/", EVERYBODY), ("/projects/{project}/backups/new/", MEMBERS),
    ("/projects/{project}/backups/upload/", MEMBERS),
    ("/projects/{project}/backups/policy/", MEMBERS), ("/projects/{project}/backups/schedules/new/", MEMBERS),
    ("/projects/{project}/backups/schedules/preview/?card=new&cron=0+*+*+*+*", EVERYBODY),
    ("/projects/{project}/backups/drills/new/", MEMBERS), ("/projects/{project}/backups/drills/{drill}/", MEMBERS),
    ("/backups/{backup}/", EVERYBODY), ("/backups/{backup}/delete/", MEMBERS), ("/backups/{backup}/download/", MEMBERS),
    ("/backups/{backup}/restore/", MEMBERS), ("/restores/{restore}/", EVERYBODY),
    ("/restores/{restore}/undo/", MEMBERS), ("/backup-storages/{storage}/", ADMINS),
    ("/backup-storages/{storage}/remove/", ADMINS),
]  # fmt: skip
POSTS = [
    ("/projects/{project}/backups/upload/", MEMBERS),
    ("/projects/{project}/backups/new/", MEMBERS), ("/projects/{project}/backups/policy/", MEMBERS),
    ("/projects/{project}/backups/schedules/new/", MEMBERS),
    ("/projects/{project}/backups/schedules/{schedule}/pause/", MEMBERS),
    ("/projects/{project}/backups/schedules/{schedule}/delete/", MEMBERS),
    ("/projects/{project}/backups/drills/new/", MEMBERS), ("/projects/{project}/backups/drills/{drill}/run/", MEMBERS),
    ("/backups/{backup}/actions/verify/", MEMBERS), ("/backups/{backup}/actions/pin/", MEMBERS),
    ("/backups/{backup}/actions/cancel/", MEMBERS), ("/backups/{backup}/delete/", MEMBERS),
    ("/backups/{backup}/restore/", MEMBERS), ("/backups/{backup}/restore/preflight/", MEMBERS),
    ("/restores/{restore}/undo/", MEMBERS), ("/backup-storages/{storage}/actions/default/", ADMINS),
    ("/backup-storages/{storage}/remove/", ADMINS),
]  # fmt: skip


@pytest.mark.parametrize("person", ["alice", "adam", "bob", "vera", "charlie", None])
@pytest.mark.parametrize(("path", "may"), GETS)
def test_reading_a_page_needs_its_right(shop: Shop, path: str, may: set[str], person: str | None) -> None:
    client = browser(getattr(shop.team, person)) if person else Client()
    response = client.get(shop.path(path))
    if person is None:
        assert response.status_code == 302
        assert response.url.startswith("/accounts/login/")
    elif person == "charlie":
        assert response.status_code == 404
        assert shop.project.name not in response.content.decode()
    else:
        assert response.status_code == (200 if person in may else 403)


@pytest.mark.parametrize("person", ["vera", "charlie", None])
@pytest.mark.parametrize(("path", "may"), POSTS)
def test_acting_needs_its_right(shop: Shop, path: str, may: set[str], person: str | None) -> None:
    client = browser(getattr(shop.team, person)) if person else Client()
    counts = (Operation.objects.count(), Backup.objects.count(), Schedule.objects.count(), Restore.objects.count())
    response = client.post(shop.path(path), {"cron": "0 * * * *", "target": "in_place", "name": "Other"})
    if person is None:
        assert response.status_code == 302
        assert response.url.startswith("/accounts/login/")
    else:
        assert response.status_code == (404 if person == "charlie" else 403)
    found = (Operation.objects.count(), Backup.objects.count(), Schedule.objects.count(), Restore.objects.count())
    assert found == counts
    assert Backup.objects.get(pk=shop.backup.pk).pinned is False


def test_a_member_may_not_touch_storages(shop: Shop) -> None:
    client = browser(shop.team.bob)
    assert client.get("/backup-storages/").status_code == 200
    assert client.post("/backup-storages/", {"name": "mine"}).status_code == 403
    assert client.get(shop.path("/backup-storages/{storage}/")).status_code == 403
    assert client.get("/recovery-kit/").status_code == 403
    assert client.post("/recovery-kit/download/").status_code in {302, 403}


def test_storage_for_everybody_is_for_operators(shop: Shop) -> None:
    common = make_storage(None, "everybody", config={"path": "a-path-of-the-operator"})
    assert browser(shop.team.alice).get("/operator/storages/").status_code == 403
    assert browser(shop.team.alice).post(f"/backup-storages/{common.pk}/actions/default/").status_code == 403
    page = browser(shop.team.alice).get("/backup-storages/").content.decode()
    assert "everybody" in page and "a-path-of-the-operator" not in page
    shop.team.alice.is_staff = True
    shop.team.alice.save()
    page = browser(shop.team.alice).get("/operator/storages/").content.decode()
    assert "a-path-of-the-operator" in page and "cellar" not in page


class TestTab:
    def path(self, shop: Shop) -> str:
        return f"/projects/{shop.project.pk}/backups/"

    def page(self, shop: Shop, person: str = "alice", query: str = "", **extra: Any) -> str:
        return browser(getattr(shop.team, person)).get(self.path(shop) + query, **extra).content.decode()

    def test_figures(self, shop: Shop) -> None:
        make_backup(shop.project, shop.storage, hours=1, status="failed", verified_at=None, size_bytes=None)
        make_backup(shop.project, shop.storage, hours=3, status="corrupt", verified_at=None)
        make_backup(shop.project, shop.storage, hours=900)
        page = self.page(shop)
        assert "1 of 3 verified" in page
        assert "1 corrupt, 1 failed" in page
        assert "2 h ago" in page and "restored and compared" in page

    def test_a_stored_one_is_not_called_good(self, shop: Shop) -> None:
        Backup.objects.update(status=BackupStatus.STORED, verified_at=None)
        page = self.page(shop)
        assert "none is proven yet" in page
        assert "restored and compared" not in page
        assert "badge-proven" not in page

    def test_progress_is_shown_in_bytes_and_asked_for_every_two_seconds(self, shop: Shop) -> None:
        assert 'data-poll="20"' in self.page(shop)
        make_backup(
            shop.project, shop.storage, hours=0.01, status="dumping", verified_at=None, finished_at=None,
            size_bytes=None, progress_bytes=730 * MIB,
        )  # fmt: skip
        page = self.page(shop)
        assert 'data-poll="2"' in page
        assert "730 MB" in page and 'value="24"' in page

    def test_it_filters(self, shop: Shop) -> None:
        make_backup(
            shop.project, shop.storage, hours=1, status="failed", verified_at=None, label="odd-one",
            trigger=BackupTrigger.MANUAL,
        )  # fmt: skip
        assert "odd-one" in self.page(shop, query="?status=failed", **HTMX)
        assert "odd-one" not in self.page(shop, query="?status=verified", **HTMX)
        assert "odd-one" not in self.page(shop, query="?trigger=schedule", **HTMX)
        assert "No backup matches" in self.page(shop, query="?status=corrupt", **HTMX)
        assert "odd-one" in self.page(shop, query="?status=nonsense%00", **HTMX)

    def test_others_backups_are_not_there(self, shop: Shop) -> None:
        other = make_project(shop.team.alice, shop.team.organization, "Ledger")
        make_backup(other, shop.storage, label="of-the-ledger")
        assert "of-the-ledger" not in self.page(shop)

    def test_a_viewer_is_offered_nothing_that_acts(self, shop: Shop) -> None:
        page = self.page(shop, "vera")
        for words in (
            "/actions/",
            "/restore/",
            "/delete/",
            "/download/",
            "Save changes",
            "backups/new/",
            "backups/upload/",
            "schedules/new/",
            "drills/new/",
            "/policy/",
        ):
            assert words not in page, words
        assert "Every" in page or shop.schedule.cron in page

    def test_the_number_of_queries_does_not_grow(self, shop: Shop, django_assert_max_num_queries: Any) -> None:
        client = browser(shop.team.alice)
        client.get(self.path(shop))
        for n in range(20):
            backup = make_backup(shop.project, shop.storage, hours=5 + n, schedule=shop.schedule)
            make_proof(backup)
            Drill.objects.create(
                project=shop.project, organization_id=shop.team.organization.pk, name=f"Drill {n}"
            )  # fmt: skip
            make_schedule(shop.project, storage=shop.storage)
        with django_assert_max_num_queries(32):
            client.get(self.path(shop))
        with django_assert_max_num_queries(16):
            client.get(self.path(shop), **HTMX)

    def test_a_drill_that_could_not_run_says_since_when_and_why(self, shop: Shop) -> None:
        why = {"code": "no_scratch_region", "detail": "No region can run <it> now."}
        since = utc("2026-11-20T04:00:00")
        Drill.objects.update(stalled_since=since, stalled_error=why, next_run_at=now())
        for page in (
            self.page(shop),
            browser(shop.team.alice).get(shop.path("/projects/{project}/backups/drills/{drill}/")),
        ):
            text = page if isinstance(page, str) else page.content.decode()
            assert "ould not run since <time" in text and "No region can run &lt;it&gt; now." in text
        assert "“Orders are complete” could not run since 20 Nov 2026, 04:00 UTC" in self.page(shop), (
            "what is promised is broken"
        )
        assert "badge-bad" in self.page(shop)

    def test_the_kit_is_asked_for_until_somebody_holds_it(self, shop: Shop) -> None:
        words = "so are the keys of your backups"
        assert words in self.page(shop)
        kit = OfflineKey.objects.create(organization=shop.team.organization, recipient="age1x", fingerprint="f")
        assert words in self.page(shop)
        kit.confirmed_at = now()
        kit.save()
        assert words not in self.page(shop)


class TestUndo:
    def test_the_banner_is_on_every_page_of_the_project(self, shop: Shop) -> None:
        client = browser(shop.team.alice)
        for part in ("", "backups/", "activity/", "settings/", "keys/", "services/", "tables/"):
            assert "Undo restore" in client.get(f"/projects/{shop.project.pk}/{part}").content.decode(), part
        assert "Undo restore" not in browser(shop.team.vera).get(f"/projects/{shop.project.pk}/").content.decode()

    @pytest.mark.parametrize(
        "fields", [{"undo_until": None}, {"status": RestoreStatus.FAILED}, {"target": "new_project"},
                   {"status": RestoreStatus.UNDONE, "undone_at": "now"}],
    )  # fmt: skip
    def test_it_goes_when_nothing_can_be_undone(self, shop: Shop, fields: dict[str, Any]) -> None:
        if fields.get("undone_at"):
            fields["undone_at"] = now()
        Restore.objects.update(**fields)
        assert "was restored" not in browser(shop.team.alice).get(f"/projects/{shop.project.pk}/").content.decode()

    @pytest.mark.parametrize("gone", ["moved", "removed"])
    def test_it_goes_with_the_database_from_before(self, shop: Shop, gone: str) -> None:
        """The project was moved since, or the database from before is gone: then nothing can be swapped back."""
        kept = Database.objects.get(project=shop.project, slot=DatabaseSlot.PREVIOUS)
        client = browser(shop.team.alice)
        assert "is kept until" in client.get(shop.path("/restores/{restore}/")).content.decode()
        if gone == "moved":
            other = DatabaseServer.objects.get(pk=kept.server_id)
            other.pk = uuid4()
            other._state.adding = True
            other.save(force_insert=True)
            Database.objects.filter(project=shop.project, slot=DatabaseSlot.CURRENT).update(server=other)
        else:
            kept.delete()
        assert "was restored" not in client.get(f"/projects/{shop.project.pk}/").content.decode()
        page = client.get(shop.path("/restores/{restore}/")).content.decode()
        assert "Undo restore" not in page and "is kept until" not in page

    def test_its_time_is_over_at_its_end(self, shop: Shop) -> None:
        Restore.objects.update(undo_until=now())
        assert "was restored" not in browser(shop.team.alice).get(f"/projects/{shop.project.pk}/").content.decode()


class TestDetail:
    def test_it_tells_what_is_in_it_and_what_proved_it(self, shop: Shop) -> None:
        Backup.objects.update(
            notes=["Statistics are not in it."],
            manifest={"contents": {"tables": {"public.orders": [1204, "d1"], "public.items": [7, "d2"]}}},
        )
        page = browser(shop.team.vera).get(f"/backups/{shop.backup.pk}/", **HTMX).content.decode()
        for words in ("Statistics are not in it.", "public.orders", "Restored in 2:50", shop.backup.sha256, "128"):
            assert words in page, words

    def test_a_hostile_label_and_name_are_text(self, shop: Shop) -> None:
        Backup.objects.update(
            label="<script>alert(1)</script>", notes=["<img src=x>"],
            manifest={"contents": {"tables": {"<b>t</b>": [1, "d"]}}},
        )  # fmt: skip
        page = browser(shop.team.alice).get(f"/backups/{shop.backup.pk}/", **HTMX).content.decode()
        assert "<script>alert" not in page and "<img src" not in page and "<b>t</b>" not in page

    def test_it_outlives_its_project(self, shop: Shop) -> None:
        Backup.objects.update(project_uuid=uuid4())
        client = browser(shop.team.alice)
        assert client.get(f"/backups/{shop.backup.pk}/").status_code == 200
        page = client.get(f"/backups/{shop.backup.pk}/restore/").content.decode()
        assert "Into a new project" in page and "In place" not in page
        assert shop.backup.project_name in client.get("/backups/?projects=gone").content.decode()
        assert "No backup matches" in client.get("/backups/?projects=there").content.decode()


def test_the_list_of_an_organization_asks_a_fixed_number_of_queries(
    shop: Shop, django_assert_max_num_queries: Any
) -> None:
    client = browser(shop.team.alice)
    for n in range(20):
        make_backup(shop.project, shop.storage, hours=n + 1, schedule=shop.schedule)
    with django_assert_max_num_queries(18):
        assert client.get("/backups/").status_code == 200


def test_foreign_ids_are_not_found(shop: Shop) -> None:
    other = make_project(shop.team.alice, shop.team.organization, "Ledger")
    client = browser(shop.team.alice)
    for path in ("schedules/{schedule}/pause/", "drills/{drill}/run/"):
        assert client.post(f"/projects/{other.pk}/backups/" + shop.path(path)).status_code == 404
    assert client.get(f"/projects/{other.pk}/backups/" + shop.path("drills/{drill}/")).status_code == 404
    assert client.post(f"/backups/{shop.backup.pk}/actions/explode/").status_code == 404
    assert client.get(f"/projects/{shop.project.pk}/backups/schedules/preview/?card=<x>").status_code == 404


class TestStorages:
    """On a real folder: what is added was written to, read and cleaned up."""

    @pytest.fixture
    def operator(self, shop: Shop, settings: Any, tmp_path: Any) -> Client:
        settings.NOVASTACK_BACKUP_ROOT = str(tmp_path)
        shop.team.alice.is_staff = True
        shop.team.alice.save()
        return browser(shop.team.alice)

    def add(self, client: Client, **fields: str) -> Any:
        values = {"name": "nas", "kind": "filesystem", "path": "nas/backups", "encrypt": "on"}
        return client.post("/operator/storages/", values | fields)

    def test_one_is_added_tested_changed_made_the_default_and_removed(self, operator: Client) -> None:
        assert self.add(operator, capacity="2 TB").status_code == 302
        target = StorageTarget.objects.get(name="nas")
        assert target.encrypt and target.test_ok and target.capacity_bytes == 2 << 40
        page = operator.post(f"/backup-storages/{target.pk}/actions/test/").content.decode()
        assert "It is read back and the same" in page and 'class="broken"' not in page
        assert self.add(operator, name="other", path="other").status_code == 302
        other = StorageTarget.objects.get(name="other")
        operator.post(f"/backup-storages/{other.pk}/actions/default/")
        other.refresh_from_db()
        assert other.is_default
        changed = operator.post(
            f"/backup-storages/{other.pk}/", {"name": "attic", "kind": "filesystem", "path": "other"}
        )
        assert changed.status_code == 302
        other.refresh_from_db()
        assert (other.name, other.encrypt) == ("attic", False)
        assert operator.post(f"/backup-storages/{target.pk}/remove/").status_code == 302
        assert not StorageTarget.objects.filter(pk=target.pk).exists()

    @pytest.mark.parametrize(
        ("fields", "words"),
        [({"path": "../etc"}, "below the operator"), ({"name": ""}, "required"), ({"capacity": "much"}, "is no size"),
         ({"kind": "tape"}, "valid choice")],
    )  # fmt: skip
    def test_what_is_wrong_is_said_at_its_field(self, operator: Client, fields: dict[str, str], words: str) -> None:
        answer = self.add(operator, **fields)
        assert answer.status_code == 400
        assert words in answer.content.decode()
        assert not StorageTarget.objects.filter(organization=None).exists()

    def test_what_was_tried_is_shown_up_to_what_failed(self, operator: Client, settings: Any) -> None:
        settings.NOVASTACK_BACKUP_ROOT = "/proc/1/nothing-can-be-made-here"
        page = self.add(operator).content.decode()
        assert '<li class="broken">' in page and "It can be reached" in page

    def test_an_organization_adds_no_folder_of_the_server(self, shop: Shop, operator: Client) -> None:
        page = operator.get("/backup-storages/").content.decode()
        assert 'value="filesystem"' not in page and "Bucket" in page
        answer = operator.post("/backup-storages/", {"name": "nas", "kind": "filesystem", "path": "x"})
        assert answer.status_code == 400
        assert StorageTarget.objects.filter(organization=shop.team.organization).count() == 1

    def test_a_secret_is_on_no_page(self, shop: Shop, operator: Client) -> None:
        target = make_storage(
            shop.team.organization, "s3", kind="s3", is_default=False, config={"endpoint": "https://s3.example", "bucket": "b"},
            secret=Sealed.of('{"access_key": "AKIA", "secret_key": "never-shown"}'),
        )  # fmt: skip
        for path in ("/backup-storages/", f"/backup-storages/{target.pk}/"):
            page = operator.get(path).content.decode()
            assert "never-shown" not in page and "AKIA" not in page

    def test_one_that_holds_backups_stays(self, shop: Shop) -> None:
        client = browser(shop.team.alice)
        assert "holds 1 backup" in client.get(f"/backup-storages/{shop.storage.pk}/remove/").content.decode()
        client.post(f"/backup-storages/{shop.storage.pk}/remove/")
        assert StorageTarget.objects.filter(pk=shop.storage.pk).exists()


class TestKit:
    def test_it_is_given_out_once_and_typed_back(self, shop: Shop) -> None:
        client = browser(shop.team.adam)
        client.post("/accounts/login/", {"login": shop.team.adam.email, "password": PASSWORD})
        asked = client.post("/recovery-kit/download/", follow=True)  # the password once more
        asks, _ = asked.redirect_chain[-1]
        assert asks.startswith("/accounts/reauthenticate/") and not OfflineKey.objects.exists()
        back = client.post(asks, {"password": PASSWORD}, follow=True)
        assert (
            back.redirect_chain[-1][0] == "/recovery-kit/?ready=1"
        )  # the browser is where the kit is, and can try again
        assert "Now download the kit" in back.content.decode() and not OfflineKey.objects.exists()
        answer = client.post("/recovery-kit/download/")
        assert answer.status_code == 200 and "no-store" in answer["Cache-Control"]
        assert answer["Content-Disposition"].startswith("attachment")
        text = answer.content.decode()
        kit = OfflineKey.objects.get(organization=shop.team.organization)
        assert "AGE-SECRET-KEY-1" in text and kit.fingerprint in text
        page = client.get("/recovery-kit/").content.decode()
        assert kit.fingerprint not in page and "AGE-SECRET-KEY-1" not in page
        wrong = client.post("/recovery-kit/", {"fingerprint": "0000"})
        assert wrong.status_code == 400 and "fingerprint" in wrong.content.decode()
        assert client.post("/recovery-kit/", {"fingerprint": kit.fingerprint}).status_code == 302
        kit.refresh_from_db()
        assert kit.confirmed_at is not None
        assert "Somebody holds the kit" in client.get("/recovery-kit/").content.decode()

    def test_the_password_is_asked_for_again(self, shop: Shop) -> None:
        client = browser(shop.team.alice)  # signed in, but not just now
        answer = client.post("/recovery-kit/download/")
        assert answer.status_code == 302 and answer.url == "/recovery-kit/prove/"
        answer = client.get(answer.url)
        assert answer.status_code == 302 and "reauthenticate" in answer.url
        assert client.get("/recovery-kit/download/").status_code == 405 and not OfflineKey.objects.exists()
        assert browser(shop.team.bob).get("/recovery-kit/prove/").status_code == 403

    def test_recipients_of_their_own(self, shop: Shop) -> None:
        client = browser(shop.team.alice)
        bad = client.post("/recovery-kit/recipients/", {"recipient": "age1nonsense"})
        assert bad.status_code == 400 and "Send an age recipient" in bad.content.decode()
        mine = str(pyrage.x25519.Identity.generate().to_public())
        assert client.post("/recovery-kit/recipients/", {"recipient": mine}).status_code == 302
        row = OfflineKey.objects.get(recipient=mine)
        assert mine in client.get("/recovery-kit/").content.decode()
        client.post(f"/recovery-kit/recipients/{row.pk}/remove/")
        row.refresh_from_db()
        assert row.retired_at is not None


class TestRestoring:
    def path(self, shop: Shop) -> str:
        return f"/backups/{shop.backup.pk}/restore/"

    def test_a_new_project_is_the_first_choice(self, shop: Shop) -> None:
        page = browser(shop.team.alice).get(self.path(shop)).content.decode()
        assert f"{shop.project.name}-restored" in page and "Restore into new project" in page
        assert "Type <b" not in page

    def test_one_is_begun(self, shop: Shop) -> None:
        answer = browser(shop.team.alice).post(self.path(shop), {"target": "new_project", "name": "Copy"})
        made = Project.objects.get(name="Copy")
        assert answer.status_code == 302 and answer.url == f"/projects/{made.pk}/"
        assert Restore.objects.get(project_uuid=made.pk).backup == shop.backup

    def test_a_refusal_stands_at_its_field(self, shop: Shop) -> None:
        answer = browser(shop.team.alice).post(self.path(shop), {"target": "new_project", "name": shop.project.name})
        assert answer.status_code == 400
        assert "exists; choose another name" in answer.content.decode()

    def test_in_place_says_what_it_would_do_before_it_asks(self, shop: Shop) -> None:
        TableSnapshot.objects.create(
            project=shop.project, tried_at=now(), at=now(), total=2, tables=[["orders", 1300, 1], ["coupons", 10, 1]]
        )
        Backup.objects.update(
            manifest={"contents": {"tables": {"public.orders": [1204, "d"], "public.coupons": [139, "d"]}}}
        )
        client = browser(shop.team.alice)
        page = client.get(self.path(shop) + "?target=in_place").content.decode()
        assert "/restore/preflight/" in page
        page = client.post(self.path(shop) + "preflight/", {"target": "in_place"}).content.decode()
        assert "safety backup" in page and "Version 18 into 18" in page
        assert "−96 lost" in page and "+129 back" in page and "1\u202f204" in page

    def test_in_place_needs_the_slug(self, shop: Shop) -> None:
        client = browser(shop.team.alice)
        for typed in ("", "other"):
            answer = client.post(self.path(shop), {"target": "in_place", "confirm": typed})
            assert answer.status_code == 400
        assert Restore.objects.count() == 1
        answer = client.post(self.path(shop), {"target": "in_place", "confirm": shop.project.slug})
        made = Restore.objects.exclude(pk=shop.restore.pk).get()
        assert answer.status_code == 302 and answer.url == f"/restores/{made.pk}/"
        page = client.get(answer.url).content.decode()
        assert 'data-poll="2"' in page and "In place" in page

    def test_nothing_to_restore(self, shop: Shop) -> None:
        Backup.objects.update(status=BackupStatus.FAILED)
        assert browser(shop.team.alice).get(self.path(shop)).status_code == 409


class TestActing:
    def test_pin_and_unpin(self, shop: Shop) -> None:
        client = browser(shop.team.bob)
        client.post(f"/backups/{shop.backup.pk}/actions/pin/")
        shop.backup.refresh_from_db()
        assert shop.backup.pinned
        assert "Unpin it first" in client.get(f"/backups/{shop.backup.pk}/delete/").content.decode()
        refused = client.post(f"/backups/{shop.backup.pk}/delete/")
        assert refused.status_code == 400 and "unpin it first" in refused.content.decode()
        client.post(f"/backups/{shop.backup.pk}/actions/unpin/")
        shop.backup.refresh_from_db()
        assert not shop.backup.pinned

    def test_back_up_now_and_cancel(self, shop: Shop) -> None:
        client = browser(shop.team.bob)
        answer = client.post(
            f"/projects/{shop.project.pk}/backups/new/", {"label": "now", "storage": str(shop.storage.pk)}
        )
        assert answer.status_code == 302
        made = Backup.objects.get(label="now")
        assert made.storage == shop.storage and made.created_by_label == "bob@example.test"
        page = client.get(f"/projects/{shop.project.pk}/backups/").content.decode()
        assert 'data-poll="2"' in page and f"/backups/{made.pk}/actions/cancel/" in page
        client.post(f"/backups/{made.pk}/actions/cancel/")
        assert Operation.objects.get(pk=made.operation_id).cancel_requested_at is not None

    def test_a_backup_is_asked_for_in_vain_without_a_storage(self, shop: Shop) -> None:
        other = make_project(shop.team.charlie, shop.team.elsewhere, "Ledger")
        client = browser(shop.team.charlie)
        assert "no storage for backups yet" in client.get(f"/projects/{other.pk}/backups/new/").content.decode()
        answer = client.post(f"/projects/{other.pk}/backups/new/", {"label": ""})
        assert answer.status_code == 400 and "storage" in answer.content.decode()
        foreign = client.post(f"/projects/{other.pk}/backups/new/", {"storage": str(shop.storage.pk)})
        assert foreign.status_code == 400 and not Backup.objects.filter(project_uuid=other.pk).exists()

    def test_verify_now(self, shop: Shop) -> None:
        client = browser(shop.team.bob)
        client.post(f"/backups/{shop.backup.pk}/actions/verify/")
        assert Operation.objects.filter(kind="verify", params__backup=str(shop.backup.pk)).exists()

    def test_deleted(self, shop: Shop) -> None:
        client = browser(shop.team.bob)
        page = client.get(f"/backups/{shop.backup.pk}/delete/").content.decode()
        assert "the newest proven backup" in page
        assert client.post(f"/backups/{shop.backup.pk}/delete/").status_code == 302
        shop.backup.refresh_from_db()
        assert shop.backup.status == BackupStatus.DELETING


class TestSchedules:
    def base(self, shop: Shop) -> str:
        return f"/projects/{shop.project.pk}/backups/schedules/"

    def test_the_words_and_runs_follow_what_is_typed(self, shop: Shop) -> None:
        client = browser(shop.team.vera)
        page = client.get(self.base(shop) + "preview/?card=new&cron=30+3+*+*+*&time_zone=UTC").content.decode()
        assert "03:30" in page and page.count("<li>") == 5
        page = client.get(self.base(shop) + "preview/?card=new&cron=61+*+*+*+*").content.decode()
        assert "Use five fields" in page
        page = client.get(self.base(shop) + "preview/?card=new&preset=4h").content.decode()
        assert 'value="0 */4 * * *"' in page
        for zone in ("Mars/Olympus", "%00", "../etc/passwd"):
            assert client.get(self.base(shop) + f"preview/?cron=0+*+*+*+*&time_zone={zone}").status_code == 200

    def test_one_is_made_changed_paused_and_removed(self, shop: Shop) -> None:
        client = browser(shop.team.bob)
        fields = {"cron": "0 3 * * *", "time_zone": "Europe/Berlin", "keep": "week", "storage": str(shop.storage.pk)}
        assert client.post(self.base(shop) + "new/", fields).status_code == 302
        made = Schedule.objects.exclude(pk=shop.schedule.pk).get()
        assert (made.cron, made.time_zone, made.keep_last, made.keep_daily) == ("0 3 * * *", "Europe/Berlin", 3, 7)
        own = fields | {"keep": "own", "keep_last": "5", "max_bytes": "50 GB", "storage": ""}
        assert client.post(self.base(shop) + f"{made.pk}/save/", own).status_code == 302
        made.refresh_from_db()
        assert (made.keep_last, made.keep_daily, made.max_bytes, made.storage) == (5, None, 50 << 30, None)
        client.post(self.base(shop) + f"{made.pk}/pause/")
        made.refresh_from_db()
        assert made.enabled is False and made.cron == "0 3 * * *"
        client.post(self.base(shop) + f"{made.pk}/resume/")
        client.post(self.base(shop) + f"{made.pk}/delete/")
        assert not Schedule.objects.filter(pk=made.pk).exists()

    @pytest.mark.parametrize(
        ("fields", "words"),
        [({"cron": "every day"}, "Use five fields"), ({"cron": "0 0 30 2 *"}, "day"), ({"cron": ""}, "required"),
         ({"time_zone": "Mars"}, "valid choice"), ({"keep": "own", "max_bytes": "lots"}, "is no size"),
         ({"keep": "own", "keep_last": "-1"}, "greater than or equal")],
    )  # fmt: skip
    def test_what_is_wrong_is_said_and_nothing_is_lost(self, shop: Shop, fields: dict[str, str], words: str) -> None:
        sent = {"cron": "0 3 * * *", "time_zone": "Europe/Berlin", "keep": "week"} | fields
        answer = browser(shop.team.bob).post(self.base(shop) + "new/", sent)
        page = answer.content.decode()
        assert answer.status_code == 400 and words in page
        assert Schedule.objects.count() == 1
        if "time_zone" not in fields:
            assert '<option value="Europe/Berlin" selected>' in page


class TestPromises:
    def test_the_objective_is_saved_and_red_when_broken(self, shop: Shop) -> None:
        client = browser(shop.team.bob)
        base = f"/projects/{shop.project.pk}/backups/"
        answer = client.post(base + "policy/", {"rpo_hours": "1", "rto_minutes": "30", "reverify_days": "7"})
        assert answer.status_code == 302
        policy = BackupPolicy.objects.get(project=shop.project)
        assert (policy.rpo_seconds, policy.rto_seconds, policy.reverify_days) == (3600, 1800, 7)
        assert policy.verify_after_backup is False
        page = client.get(base).content.decode()
        assert "Broken" in page and "The last verified backup is 2 hours old" in page
        assert "Broken" in client.get(f"/projects/{shop.project.pk}/").content.decode()
        assert "late" in client.get("/projects/").content.decode()
        assert "Within target" not in page

    def test_a_bad_heartbeat_is_refused_at_its_field(self, shop: Shop) -> None:
        answer = browser(shop.team.bob).post(
            f"/projects/{shop.project.pk}/backups/policy/",
            {"reverify_days": "7", "heartbeat_url": "ftp://beats.example/x"},
        )
        assert answer.status_code == 400 and 'id="id_heartbeat_url-error"' in answer.content.decode()

    def test_a_drill_is_made_changed_and_removed(self, shop: Shop) -> None:
        client = browser(shop.team.bob)
        base = f"/projects/{shop.project.pk}/backups/drills/"
        fields = {"name": "Nightly", "time_zone": "UTC", "sql_2": "select count(*) > 0 from orders", "expect_2": "true"}
        assert client.post(base + "new/", fields).status_code == 302
        drill = Drill.objects.get(name="Nightly")
        assert drill.assertions[0]["sql"] == "select count(*) > 0 from orders"
        none = client.post(base + "new/", {"name": "Empty", "time_zone": "UTC"})
        assert none.status_code == 400 and "questions" in none.content.decode()
        bad = client.post(base + f"{drill.pk}/", fields | {"cron": "x"})
        assert bad.status_code == 400 and "Use five fields" in bad.content.decode()
        client.post(base + f"{drill.pk}/delete/")
        assert not Drill.objects.filter(pk=drill.pk).exists()


class TestDeletion:
    """A project goes with a final backup, unless somebody says otherwise."""

    @pytest.mark.parametrize(("sent", "wanted"), [({}, None), ({"without_backup": "on"}, False)])
    def test_the_final_backup_is_waived_in_words(
        self, shop: Shop, sent: dict[str, str], wanted: bool | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        told: list[Any] = []
        begun = removal.deletion_create
        monkeypatch.setattr(
            removal,
            "deletion_create",
            lambda *args, **given: told.append(given["final_backup"]) or begun(*args, **given),
        )
        path = f"/projects/{shop.project.pk}/delete/"
        client = browser(shop.team.bob)
        assert "Without a final backup" in client.get(path).content.decode()
        assert client.post(path, {"confirm": shop.project.slug} | sent).status_code == 302
        assert told == [wanted]
