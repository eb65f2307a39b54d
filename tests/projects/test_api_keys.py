"""API keys of a project: made once, told apart by services, ended at once."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any

import pytest
from django.core.cache import cache
from django.db import connection
from django.test import Client
from rest_framework.test import APIClient

from accounts.models import AuditEvent
from accounts.permissions import Principal
from novastack.common.clock import now
from novastack.common.errors import QuotaExceeded
from projects.models import ApiKey, Operation, Plan, Project
from projects.models.keys import KEY_FORMAT, hash_key, new_key
from projects.services import key_create, project_delete, project_purge
from projects.services.keys import keys_suspend_after_restore
from tests.factories import Team, api_client, make_catalogue, make_project, make_team

pytestmark = pytest.mark.django_db
VERIFY = "/api/v1/api-keys/verify/"


@pytest.fixture
def project(team: Team) -> Project:
    return make_project(team.bob, team.organization)


@pytest.fixture
def bob(team: Team) -> APIClient:
    return api_client(team.bob)


def url(project: Project, rest: str = "") -> str:
    return f"/api/v1/projects/{project.pk}/api-keys/{rest}"


def verify(clear: str, **more: Any) -> dict[str, Any]:
    response = APIClient().post(VERIFY, {"key": clear, **more})
    assert response.status_code == 200, response.content
    assert response["Cache-Control"] == "no-store"
    return dict(response.json())


class TestMaking:
    def test_its_value_is_in_that_answer_only(self, bob: APIClient, project: Project) -> None:
        response = bob.post(url(project), {"name": "web", "prefix": "shop"})
        assert response.status_code == 201, response.content
        body = response.json()
        match = KEY_FORMAT.fullmatch(body["key"])
        assert match and match["prefix"] == "shop" and abs(int(match["made"]) - now().timestamp()) < 60
        assert body["scopes"] == ["read", "write"] and body["state"] == "active"
        assert response["Cache-Control"] == "no-store"
        assert bob.get(response["Location"]).json()["id"] == body["id"]

        row = ApiKey.objects.get()
        assert row.key_hash == hash_key(body["key"])
        listed = bob.get(url(project))
        random = match["random"]
        assert random not in listed.content.decode() and listed.json()["count"] == 1
        event = AuditEvent.objects.get(action="api_key.created")
        assert random not in f"{event.data} {event.target}" and event.project_id == project.pk
        assert body["key"] not in str(list(ApiKey.objects.values()))

    def test_a_replay_shows_no_value(self, bob: APIClient, project: Project) -> None:
        first = bob.post(url(project), {"name": "web"}, headers={"Idempotency-Key": "k1"}).json()
        again = bob.post(url(project), {"name": "web"}, headers={"Idempotency-Key": "k1"})
        assert again["Idempotency-Replayed"] == "true" and again.status_code == 201
        assert again.json()["id"] == first["id"] and again.json()["key"] is None and again.json()["already_shown"]
        assert ApiKey.objects.count() == 1

    @pytest.mark.parametrize(
        ("body", "field"),
        [
            ({}, "name"), ({"name": ""}, "name"), ({"name": "a\nb"}, "name"), ({"name": "x" * 81}, "name"),
            ({"name": "w", "prefix": "Shop"}, "prefix"), ({"name": "w", "prefix": "a_b"}, "prefix"),
            ({"name": "w", "prefix": "nvs"}, "prefix"), ({"name": "w", "prefix": "1a"}, "prefix"),
            ({"name": "w", "scopes": []}, "scopes"), ({"name": "w", "scopes": ["admin"]}, "scopes.0"),
            ({"name": "w", "expires_at": "2020-01-01T00:00:00Z"}, "expires_at"), ({"name": "w", "kind": 1}, "kind"),
        ],
    )  # fmt: skip
    def test_bad_input_names_its_field(
        self, bob: APIClient, project: Project, body: dict[str, Any], field: str
    ) -> None:
        response = bob.post(url(project), body)
        assert response.status_code == 400
        assert response.json()["errors"][0]["field"] == field, response.json()
        assert not ApiKey.objects.exists()

    def test_the_plan_s_number_counts_working_ones(self, bob: APIClient, project: Project) -> None:
        Plan.objects.filter(pk=project.plan_id).update(max_api_keys=2)
        first, _ = (bob.post(url(project), {"name": f"k{n}"}).json() for n in range(2))
        refused = bob.post(url(project), {"name": "one too many"})
        assert refused.status_code == 409 and refused.json()["code"] == "quota_exceeded"
        assert bob.delete(url(project, f"{first['id']}/")).status_code == 204
        assert bob.post(url(project), {"name": "again"}).status_code == 201
        ApiKey.objects.filter(name="again").update(expires_at=now())
        assert bob.post(url(project), {"name": "after one ended"}).status_code == 201

    def test_not_in_the_recycle_bin(self, bob: APIClient, project: Project, team: Team) -> None:
        made = bob.post(url(project), {"name": "web"}).json()
        Project.objects.filter(pk=project.pk).update(recycled_at=now(), desired_status="recycled")
        assert bob.post(url(project), {"name": "late"}).json()["code"] == "action_not_allowed"
        assert verify(made["key"])["code"] == "project_gone"


class TestVerifying:
    def test_what_a_service_learns(self, bob: APIClient, project: Project) -> None:
        made = bob.post(url(project), {"name": "web", "scopes": ["read"]}).json()
        assert verify(made["key"]) == {
            "valid": True, "code": None, "key": made["id"], "project": str(project.pk),
            "organization": str(project.organization_id), "scopes": ["read"], "expires_at": None,
        }  # fmt: skip
        assert verify(made["key"], project=str(project.pk), scope="read")["valid"]
        assert verify(made["key"], scope="write")["code"] == "scope_missing"
        other = verify(made["key"], project="01980000-0000-7000-8000-0000000000aa")
        assert other["code"] == "wrong_project" and other["project"] is None, "not told whose it is"

    def test_it_says_why_not(self, bob: APIClient, project: Project) -> None:
        made = bob.post(url(project), {"name": "web"}).json()
        clear = made["key"]
        for broken in (
            "",
            "x",
            clear[:-1],
            clear + "0",
            clear.upper(),
            f" {clear}",
            "nvs_" + "a" * 40,
            "pk_1_" + "0" * 48,
        ):
            response = APIClient().post(VERIFY, {"key": broken})
            if broken:
                assert response.json() | {"valid": False, "code": "malformed", "key": None} == response.json(), broken
            else:
                assert response.status_code == 400
        assert verify(new_key("pk"))["code"] == "unknown"
        ApiKey.objects.update(expires_at=now() - timedelta(seconds=1))
        assert verify(clear)["code"] == "expired"
        bob.delete(url(project, f"{made['id']}/"))
        assert verify(clear)["code"] == "revoked"

    def test_when_it_was_used_is_written_once_a_minute(self, bob: APIClient, project: Project) -> None:
        clear = bob.post(url(project), {"name": "web"}).json()["key"]
        verify(clear)
        first = ApiKey.objects.get().last_used_at
        assert first is not None
        verify(clear)
        assert ApiKey.objects.get().last_used_at == first
        ApiKey.objects.update(last_used_at=first - timedelta(seconds=61))
        verify(clear)
        assert ApiKey.objects.get().last_used_at >= first

    def test_one_look_up_whatever_the_text(
        self, bob: APIClient, project: Project, django_assert_num_queries: Any
    ) -> None:
        from projects.services import key_verify

        clear = bob.post(url(project), {"name": "web"}).json()["key"]
        key_verify(clear=clear)  # writes when it was used
        for text in ("broken", new_key("pk"), clear[:-1] + ("0" if clear[-1] != "0" else "1")):
            with django_assert_num_queries(1):
                key_verify(clear=text)

    def test_it_is_throttled_by_address(self, settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        from novastack.common.api import AnonThrottle

        cache.clear()
        monkeypatch.setattr(AnonThrottle, "rate", "3/min", raising=False)
        codes = [APIClient().post(VERIFY, {"key": "x"}).status_code for _ in range(5)]
        assert codes == [200, 200, 200, 429, 429]


class TestRights:
    def test_viewers_see_and_change_nothing(self, team: Team, project: Project, bob: APIClient) -> None:
        made = bob.post(url(project), {"name": "web"}).json()
        vera = api_client(team.vera)
        assert vera.get(url(project)).json()["count"] == 1
        assert vera.post(url(project), {"name": "mine"}).status_code == 403
        assert vera.delete(url(project, f"{made['id']}/")).status_code == 403
        reader = api_client(team.bob, scopes=["read"])
        assert reader.get(url(project)).status_code == 200
        assert reader.post(url(project), {"name": "mine"}).status_code == 403

    def test_a_key_of_another_project_is_not_found_here(self, team: Team, project: Project, bob: APIClient) -> None:
        other = make_project(team.bob, team.organization, "Other")
        made = bob.post(url(other), {"name": "web"}).json()
        assert bob.delete(url(project, f"{made['id']}/")).status_code == 404
        assert ApiKey.objects.get().revoked_at is None

    def test_a_project_s_key_opens_nothing_of_novastack(self, bob: APIClient, project: Project) -> None:
        clear = bob.post(url(project), {"name": "web"}).json()["key"]
        for header in ({"HTTP_AUTHORIZATION": f"Bearer {clear}"}, {"HTTP_X_API_KEY": clear}):
            assert APIClient().get("/api/v1/projects/", **header).status_code == 401  # type: ignore[arg-type]


class TestWithTheProject:
    def body(self, **more: Any) -> dict[str, Any]:
        return {"name": "Shop", "api_keys": {"count": 2, "prefix": "nm"}, **more}

    def test_they_work_once_it_is_ready(self, team: Team, bob: APIClient) -> None:
        make_catalogue()
        response = bob.post("/api/v1/projects/", self.body(), headers={"Idempotency-Key": "p1"})
        assert response.status_code == 201, response.content
        keys = response.json()["api_keys"]
        assert [k["name"] for k in keys] == ["Key 1", "Key 2"] and all(k["key"].startswith("nm_") for k in keys)
        assert {k["state"] for k in keys} == {"pending"}
        assert verify(keys[0]["key"])["code"] == "inactive"
        operation = Operation.objects.get()
        assert "api_keys" in [step.name for step in operation.steps.all()]

        again = bob.post("/api/v1/projects/", self.body(), headers={"Idempotency-Key": "p1"}).json()
        assert [k["id"] for k in again["api_keys"]] == [k["id"] for k in keys]
        assert all(k["key"] is None and k["already_shown"] for k in again["api_keys"])

    def test_too_many_and_bad_ones_make_no_project(self, team: Team, bob: APIClient) -> None:
        make_catalogue()
        for keys, field in (({"count": 11}, "api_keys.count"), ({"count": 1, "prefix": "No"}, "api_keys.prefix")):
            response = bob.post("/api/v1/projects/", {"name": "Shop", "api_keys": keys})
            assert response.status_code == 400 and response.json()["errors"][0]["field"] == field
        assert not Project.objects.exists() and not ApiKey.objects.exists()

    def test_without_keys_there_is_no_such_step(self, bob: APIClient) -> None:
        make_catalogue()
        assert "api_keys" not in bob.post("/api/v1/projects/", {"name": "Shop"}).json()
        assert "api_keys" not in [step.name for step in Operation.objects.get().steps.all()]


class TestPages:
    def test_made_shown_once_and_revoked(self, team: Team, project: Project) -> None:
        client = Client()
        client.force_login(team.bob)
        page = f"/projects/{project.pk}/keys/"
        response = client.post(page, {"name": "web", "scopes": ["read"], "expires": "30", "begins_with": "shop"})
        assert response.status_code == 200
        key = ApiKey.objects.get()
        clear = next(word for word in response.content.decode().split("<code>")[1].split("</code>")[:1])
        assert verify(clear)["scopes"] == ["read"] and "no-store" in response["Cache-Control"]
        assert clear not in client.get(page).content.decode()
        assert client.post(f"{page}{key.pk}/revoke/").status_code == 302
        assert verify(clear)["code"] == "revoked"

    def test_errors_stand_at_their_field(self, team: Team, project: Project) -> None:
        client = Client()
        client.force_login(team.bob)
        response = client.post(f"/projects/{project.pk}/keys/", {"name": "w", "begins_with": "Nö", "scopes": ["read"]})
        assert response.status_code == 400 and not ApiKey.objects.exists()
        assert "a letter first" in response.content.decode()


@pytest.mark.django_db(transaction=True)
def test_twenty_at_once_never_pass_the_plan_s_number() -> None:
    team = make_team()
    project = make_project(team.bob, team.organization)
    results: list[str] = []

    def make() -> None:
        try:
            key_create(principal=Principal.of(team.bob), project=project, name="k")
            results.append("made")
        except QuotaExceeded:
            results.append("refused")
        finally:
            connection.close()

    threads = [threading.Thread(target=make) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["made"] * 10 + ["refused"] * 10
    assert ApiKey.objects.count() == 10


def test_a_purged_project_takes_its_keys_along(team: Team, project: Project, bob: APIClient) -> None:
    clear = bob.post(url(project), {"name": "web"}).json()["key"]
    alice = Principal.of(team.alice)
    project_delete(principal=alice, project=project)
    project_purge(principal=alice, project=project, confirm=project.slug)
    assert verify(clear)["code"] == "project_gone"
    Project.objects.filter(pk=project.pk).delete()
    assert verify(clear)["code"] == "unknown"


class TestAfterAControlRestore:
    """A key may have been revoked since the backup: it waits until somebody says that it was not."""

    @pytest.fixture
    def clear(self, bob: APIClient, project: Project) -> str:
        return str(bob.post(url(project), {"name": "web"}).json()["key"])

    def test_it_waits_and_works_again_once_it_is_confirmed(self, bob: APIClient, project: Project, clear: str) -> None:
        key = ApiKey.objects.get()
        assert verify(clear)["valid"]
        assert keys_suspend_after_restore() == 1
        assert keys_suspend_after_restore() == 0, "once is enough"
        assert (verify(clear)["code"], verify(clear)["key"]) == ("suspended", str(key.pk))
        assert bob.get(url(project, f"{key.pk}/")).json()["state"] == "suspended"
        for _ in range(2):
            answer = bob.post(url(project, f"{key.pk}/confirm/"))
            assert (answer.status_code, answer.json()["state"]) == (200, "active")
        assert verify(clear)["valid"]
        assert AuditEvent.objects.filter(action="api_key.confirmed").count() == 1

    def test_what_was_revoked_stays_so(self, bob: APIClient, project: Project, clear: str) -> None:
        key = ApiKey.objects.get()
        keys_suspend_after_restore()
        assert bob.delete(url(project, f"{key.pk}/")).status_code == 204
        refused = bob.post(url(project, f"{key.pk}/confirm/"))
        assert (refused.status_code, refused.json()["code"]) == (409, "action_not_allowed")
        assert verify(clear)["code"] == "revoked"

    def test_what_would_not_work_anyway_is_not_counted(self, bob: APIClient, project: Project, clear: str) -> None:
        ApiKey.objects.update(expires_at=now() - timedelta(days=1))
        assert keys_suspend_after_restore() == 0
        assert verify(clear)["code"] == "expired"

    def test_the_page_says_so_and_has_the_button(self, team: Team, project: Project, clear: str) -> None:
        keys_suspend_after_restore()
        key = ApiKey.objects.get()
        viewer, member = Client(), Client()
        viewer.force_login(team.vera)
        member.force_login(team.bob)
        page = f"/projects/{project.pk}/keys/"
        assert b"Suspended" in viewer.get(page).content and b"Confirm web" not in viewer.get(page).content
        assert viewer.post(f"{page}{key.pk}/confirm/").status_code == 403
        assert b"restored from a backup" in member.get(page).content and b"Confirm web" in member.get(page).content
        answer = member.post(f"{page}{key.pk}/confirm/", follow=True)
        assert "Key “web” works again." in answer.content.decode() and b"restored from a backup" not in answer.content
        assert verify(clear)["valid"]
