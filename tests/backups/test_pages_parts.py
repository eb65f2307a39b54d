"""The page on which tables of a backup are chosen, and what it and the API refuse."""

from __future__ import annotations

from typing import Any

import pytest

from accounts.models import AuditEvent
from backups.models import Backup, Restore
from projects.models import Operation, Project
from tests.backups.test_pages import Shop, browser, shop  # noqa: F401
from tests.factories import api_client

pytestmark = pytest.mark.django_db
PARTS = "/backups/{}/restore/tables/"


@pytest.fixture
def backup(shop: Shop) -> Backup:  # noqa: F811
    tables = {f"public.t{number:03}": [number, "x"] for number in range(150)}
    tables['"my app"."a.b"'] = [7, "x"]
    facts = [["table", "public.parted", "p|owner"], ["schema", "public", ""], ["schema", '"my app"', ""]]
    shop.backup.manifest = {**shop.backup.manifest, "contents": {"tables": tables, "facts": facts}}
    shop.backup.save()
    return shop.backup


def test_tables_are_found_chosen_and_on_their_way(shop: Shop, backup: Backup) -> None:  # noqa: F811
    client = browser(shop.team.alice)
    url = PARTS.format(backup.pk)
    assert url in client.get(f"/backups/{backup.pk}/restore/").content.decode()
    page = client.get(url).content.decode()
    assert "Search 152 tables" in page and "52 more: search by name" in page and "&quot;my app&quot;" in page
    found = client.get(url, {"search": "T07", "tables": ["public.t001"]}, HTTP_HX_REQUEST="true").content.decode()
    assert found.count('name="tables"') == 11 and 'value="public.t001" checked' in found
    assert "csrf" not in found

    refused = client.post(url, {"project": str(shop.project.pk)})
    assert refused.status_code == 400 and "Choose a table first." in refused.content.decode()
    refused = client.post(url, {"tables": ["public.t001"], "project": "nobody"})
    assert refused.status_code == 400 and "Choose the project" in refused.content.decode()
    assert 'value="public.t001" checked' in refused.content.decode()
    assert Restore.objects.count() == 1 and not Operation.objects.live().exists()

    answer = client.post(url, {"tables": ["public.t001", '"my app"."a.b"'], "project": str(shop.project.pk)})
    assert answer.status_code == 302
    made = Restore.objects.get(selection__tables__0="public.t001")
    assert answer.url == f"/restores/{made.pk}/"
    operation = Operation.objects.get(pk=made.operation_id)
    assert (operation.kind, made.target, made.status) == ("extract", "in_place", "queued")
    assert made.preflight["rows_in_backup"] == 8
    said = AuditEvent.objects.filter(action="restore.started").latest("id")
    assert said.data["selection"]["tables"] == ["public.t001", '"my app"."a.b"']
    assert "Where they are" not in client.get(answer.url).content.decode()
    Restore.objects.filter(pk=made.pk).update(
        status="succeeded",
        outcome={"places": ["restored_1"], "tables": {"public.t001": "restored_1.t001"}, "notes": ["Left out: <x>."],
                 "rows": 8, "bytes": 1},
    )  # fmt: skip
    page = client.get(answer.url).content.decode()
    assert "restored_1.t001" in page and "Left out: &lt;x&gt;." in page and "beside what" in page


def test_who_may_only_look_begins_nothing(shop: Shop, backup: Backup) -> None:  # noqa: F811
    url = PARTS.format(backup.pk)
    body = {"tables": ["public.t001"], "project": str(shop.project.pk)}
    for person, status in (("vera", 403), ("charlie", 404)):
        client = browser(getattr(shop.team, person))
        assert client.get(url).status_code == status
        assert client.post(url, body).status_code == status
    assert api_client(shop.team.vera).get(f"/api/v1/backups/{backup.pk}/tables/").status_code == 200
    assert api_client(shop.team.charlie).get(f"/api/v1/backups/{backup.pk}/tables/").status_code == 404
    assert Restore.objects.count() == 1


def test_what_the_engine_can_t_do_is_told(shop: Shop, backup: Backup) -> None:  # noqa: F811
    Backup.objects.filter(pk=backup.pk).update(engine="ferretdb", version="1.24")
    body = {"target": "in_place", "tables": ["public.t001"]}
    answer = api_client(shop.team.alice).post(f"/api/v1/backups/{backup.pk}/restore/", body, format="json")
    (error,) = answer.json()["errors"]
    assert (answer.status_code, error["field"], error["code"]) == (400, "tables", "not_available")
    page = browser(shop.team.alice).get(f"/backups/{backup.pk}/restore/").content.decode()
    assert "Only some tables" not in page
    assert browser(shop.team.alice).get(PARTS.format(backup.pk)).status_code == 409


def test_a_part_can_not_be_undone_and_one_at_a_time(shop: Shop, backup: Backup) -> None:  # noqa: F811
    client = api_client(shop.team.alice)
    body: dict[str, Any] = {"target": "in_place", "tables": ["t001", "t001"]}
    first = client.post(f"/api/v1/backups/{backup.pk}/restore/", body, format="json")
    assert first.status_code == 202, first.content
    assert first.json()["selection"] == {"tables": ["public.t001"], "schemas": []}
    again = client.post(f"/api/v1/backups/{backup.pk}/restore/", body, format="json")
    assert (again.status_code, again.json()["code"]) == (409, "operation_in_progress")
    Restore.objects.filter(pk=first.json()["id"]).update(status="succeeded")
    undo = client.post(f"/api/v1/restores/{first.json()['id']}/undo/", {}, format="json")
    assert (undo.status_code, undo.json()["code"]) == (409, "undo_not_possible")


def test_without_a_safety_backup_is_asked_for_and_put_down(shop: Shop, backup: Backup) -> None:  # noqa: F811
    client = api_client(shop.team.alice)
    url = f"/api/v1/backups/{backup.pk}/restore/"
    for body in ({"target": "in_place", "tables": ["t001"]}, {"target": "new_project", "name": "New"}):
        answer = client.post(url, {**body, "safety_backup": False}, format="json")
        assert answer.status_code == 400 and answer.json()["errors"][0]["field"] == "safety_backup", answer.content
    unconfirmed = client.post(url, {"target": "in_place", "safety_backup": False}, format="json")
    assert unconfirmed.json()["code"] == "confirm_required"
    count = Backup.objects.count()
    answer = client.post(
        url, {"target": "in_place", "safety_backup": False, "confirm": shop.project.slug}, format="json"
    )
    assert answer.status_code == 202, answer.content
    assert answer.json()["safety_backup"] is None and answer.json()["preflight"]["safety_backup"] is False
    assert Backup.objects.count() == count
    operation = Operation.objects.get(kind="restore", state="queued")
    assert "safety" not in operation.params
    assert AuditEvent.objects.filter(action="restore.started").latest("id").data["safety_backup"] is False
    Operation.objects.filter(pk=operation.pk).update(state="cancelled", finished_at=operation.created_at)
    operation.locks.all().delete()
    Project.objects.filter(pk=shop.project.pk).update(status="running")
    page = browser(shop.team.alice)
    page.post(f"/backups/{backup.pk}/restore/", {"target": "in_place", "confirm": shop.project.slug, "no_safety": "on"})
    second = Operation.objects.filter(kind="restore").exclude(pk=operation.pk).get(state="queued")
    assert "safety" not in second.params
