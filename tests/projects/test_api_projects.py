"""Projects over the API: make, list, change, delete, act; and hostile input."""

from __future__ import annotations

import json
from typing import Any

import pytest
from rest_framework.test import APIClient

from accounts.models import AuditEvent, Role
from projects.models import DatabaseServer, Operation, Project
from tests.factories import (
    MembershipFactory,
    RegionFactory,
    Team,
    api_client,
    make_catalogue,
    make_project,
    make_token,
    set_observed,
)

PROJECTS = "/api/v1/projects/"
FIELDS = {
    "id", "name", "slug", "description", "organization", "engine", "version", "region", "plan", "placement", "status",
    "desired_status", "status_detail", "limits", "labels", "exposure", "tls_required", "deletion_protection",
    "bootstrap_schema", "size_bytes", "write_fence", "operation", "created_by", "created_at", "updated_at", "recycle_until",
}  # fmt: skip


@pytest.fixture
def bob(team: Team) -> APIClient:
    make_catalogue()
    return api_client(team.bob)


def fields_of(response: Any) -> dict[str, str]:
    return {error["field"]: error["code"] for error in response.json()["errors"]}


class TestCreate:
    def test_it_answers_201_with_location_and_operation(self, bob: APIClient, team: Team) -> None:
        response = bob.post(PROJECTS, {"name": "My Shop"})
        assert response.status_code == 201, response.content
        body = response.json()
        assert set(body) == FIELDS
        assert response["Location"].endswith(f"/api/v1/projects/{body['id']}/")
        assert body["operation"]["kind"] == "provision" and body["operation"]["state"] == "queued"
        assert bob.get(body["operation"]["url"]).json()["project"] == body["id"]
        assert body["slug"] == "my-shop" and body["status"] == "queued" and body["organization"] == "acme"
        assert body["engine"] == "postgresql" and body["region"] == "local" and body["plan"] == "small"
        assert body["limits"] == {"memory_bytes": 512 * 2**20, "cpus": 0.5, "storage_bytes": 5 * 2**30}
        assert body["created_by"] == team.bob.email
        assert AuditEvent.objects.filter(action="project.created", project_id=body["id"]).count() == 1

    def test_without_the_last_slash_nothing_is_lost(self, bob: APIClient) -> None:
        assert bob.post("/api/v1/projects", {"name": "Shop"}).status_code == 201

    def test_all_fields_are_taken(self, bob: APIClient) -> None:
        wanted = {
            "name": "Shop", "engine": "postgresql", "version": "16", "description": "Orders\nand more",
            "region": "local", "plan": "small", "organization": "acme", "placement": "dedicated",
            "database_name": "orders", "username": "orders_app", "limits": {"memory_bytes": 268435456, "cpus": 0.25},
            "labels": {"team": "web"}, "exposure": "local", "tls_required": False, "deletion_protection": True,
            "services": {"auth": False}, "api_keys": {"count": 0}, "bootstrap_schema": False,
        }  # fmt: skip
        response = bob.post(PROJECTS, wanted)
        assert response.status_code == 201, response.content
        body = response.json()
        for name in ("name", "version", "description", "labels", "deletion_protection"):
            assert body[name] == wanted[name]
        assert body["limits"]["memory_bytes"] == 268435456 and body["limits"]["cpus"] == 0.25
        database = Project.objects.get().databases.get()
        assert database.name == "orders" and database.roles.filter(kind="login", name="orders_app").exists()

    @pytest.mark.parametrize(
        ("body", "field"),
        [
            ({}, "name"),
            ({"name": ""}, "name"),
            ({"name": "   "}, "name"),
            ({"name": None}, "name"),
            ({"name": 5}, "name"),
            ({"name": ["x"]}, "name"),
            ({"name": "a\nb"}, "name"),
            ({"name": "a\x00b"}, "name"),
            ({"name": "\ud800"}, "name"),
            ({"name": "x" * 64}, "name"),
            ({"name": "x" * 100_000}, "name"),
            ({"name": "a‮b"}, "name"),
            ({"name": "ok", "engine": "oracle"}, "engine"),
            ({"name": "ok", "engine": 7}, "engine"),
            ({"name": "ok", "engine": "../../etc/passwd"}, "engine"),
            ({"name": "ok", "version": "6.6.6"}, "version"),
            ({"name": "ok", "version": 16}, "version"),
            ({"name": "ok", "region": "atlantis"}, "region"),
            ({"name": "ok", "region": {"slug": "local"}}, "region"),
            ({"name": "ok", "plan": "gold"}, "plan"),
            ({"name": "ok", "placement": "moon"}, "placement"),
            ({"name": "ok", "placement": "external"}, "placement"),
            ({"name": "ok", "placement": "pool", "engine": "ferretdb"}, "placement"),
            ({"name": "ok", "placement": "pool", "database_name": "mine"}, "database_name"),
            ({"name": "ok", "placement": "pool", "tls_required": True}, "tls_required"),
            ({"name": "ok", "database_name": "a b"}, "database_name"),
            ({"name": "ok", "database_name": "-x"}, "database_name"),
            ({"name": "ok", "database_name": "host=evil dbname=x"}, "database_name"),
            ({"name": "ok", "database_name": 'x"; DROP DATABASE y; --'}, "database_name"),
            ({"name": "ok", "database_name": "template1"}, "database_name"),
            ({"name": "ok", "database_name": "naïve"}, "database_name"),
            ({"name": "ok", "database_name": "x" * 64}, "database_name"),
            ({"name": "ok", "database_name": ["x"]}, "database_name"),
            ({"name": "ok", "username": "postgres"}, "username"),
            ({"name": "ok", "username": "pg_signal_backend"}, "username"),
            ({"name": "ok", "username": "o'brien"}, "username"),
            ({"name": "ok", "username": "a\nb"}, "username"),
            ({"name": "ok", "username": "x" * 100_000}, "username"),
            ({"name": "ok", "limits": 5}, "limits"),
            ({"name": "ok", "limits": {"memory_bytes": "lots"}}, "limits.memory_bytes"),
            ({"name": "ok", "limits": {"memory_bytes": True}}, "limits.memory_bytes"),
            ({"name": "ok", "limits": {"memory_bytes": 1}}, "limits.memory_bytes"),
            ({"name": "ok", "limits": {"memory_bytes": 10**30}}, "limits.memory_bytes"),
            ({"name": "ok", "limits": {"memory_bytes": -1}}, "limits.memory_bytes"),
            ({"name": "ok", "limits": {"cpus": "0.5"}}, "limits.cpus"),
            ({"name": "ok", "limits": {"cpus": 99}}, "limits.cpus"),
            ({"name": "ok", "limits": {"cpus": 0}}, "limits.cpus"),
            ({"name": "ok", "limits": {"gpus": 1}}, "limits.gpus"),
            ({"name": "ok", "labels": ["a"]}, "labels"),
            ({"name": "ok", "labels": {"Key With Spaces": "x"}}, "labels"),
            ({"name": "ok", "labels": {"team\n": "x"}}, "labels"),
            ({"name": "ok", "labels": {"a": 1}}, "labels.a"),
            ({"name": "ok", "labels": {"\x00": "x"}}, "labels"),
            ({"name": "ok", "description": 1}, "description"),
            ({"name": "ok", "description": "x" * 501}, "description"),
            ({"name": "ok", "exposure": "public"}, "exposure"),
            ({"name": "ok", "exposure": "everywhere"}, "exposure"),
            ({"name": "ok", "tls_required": "no"}, "tls_required"),
            ({"name": "ok", "deletion_protection": 1}, "deletion_protection"),
            ({"name": "ok", "services": {"mail": True}}, "services.mail"),
            ({"name": "ok", "api_keys": {"count": 11}}, "api_keys.count"),
            ({"name": "ok", "bootstrap_schema": "yes"}, "bootstrap_schema"),
            ({"name": "ok", "nmae": "typo"}, "nmae"),
            ({"name": "ok", "status": "running"}, "status"),
            ({"name": "ok", "id": "01999999-0000-7000-8000-000000000001"}, "id"),
        ],
    )
    def test_bad_input_is_a_400_that_names_the_field_and_makes_nothing(
        self, bob: APIClient, body: dict[str, Any], field: str
    ) -> None:
        response = bob.generic("POST", PROJECTS, json.dumps(body), content_type="application/json")
        assert response.status_code == 400, response.content
        assert response["Content-Type"] == "application/problem+json"
        assert field in fields_of(response), response.json()
        assert not Project.objects.exists() and not Operation.objects.exists() and not DatabaseServer.objects.exists()

    @pytest.mark.parametrize("body", [b"", b"[]", b'"x"', b"null", b"{", b"\xff", b'{"name": NaN}', b"[" * 100_000])
    def test_a_body_that_is_no_object_is_a_400(self, bob: APIClient, body: bytes) -> None:
        response = bob.generic("POST", PROJECTS, body, content_type="application/json")
        assert response.status_code == 400 and response.json()["code"] == "invalid", response.content
        assert not Project.objects.exists()

    def test_a_form_is_a_415_and_a_huge_body_a_413(self, bob: APIClient) -> None:
        assert bob.generic("POST", PROJECTS, "name=x", "application/x-www-form-urlencoded").status_code == 415
        assert bob.post(PROJECTS, {"name": "x", "description": "y" * 3_000_000}).status_code == 413

    @pytest.mark.parametrize("name", ["'; DROP TABLE projects_project; --", '"quoted"', "-rf", "select", "Größe 数据"])
    def test_strange_but_harmless_names_are_kept_as_they_are(self, bob: APIClient, name: str) -> None:
        response = bob.post(PROJECTS, {"name": name})
        assert response.status_code == 201, response.content
        assert response.json()["name"] == name
        assert bob.get(PROJECTS).json()["results"][0]["name"] == name

    @pytest.mark.parametrize("reference", ["elsewhere", "01999999-0000-7000-8000-000000000000", "no/such", "\x00"])
    def test_a_foreign_organization_is_a_404_that_names_the_field(self, bob: APIClient, reference: str) -> None:
        response = bob.post(PROJECTS, {"name": "x", "organization": reference})
        assert response.status_code == 404, response.content
        assert fields_of(response) == {"organization": "not_found"}
        assert not Project.objects.exists()

    def test_a_foreign_organization_by_id_too(self, bob: APIClient, team: Team) -> None:
        response = bob.post(PROJECTS, {"name": "x", "organization": str(team.elsewhere.pk)})
        assert response.status_code == 404 and fields_of(response) == {"organization": "not_found"}

    def test_without_organization_it_is_the_default_one_or_the_tokens(self, team: Team) -> None:
        make_catalogue()
        MembershipFactory(organization=team.elsewhere, user=team.bob, role=Role.MEMBER)
        assert api_client(team.bob).post(PROJECTS, {"name": "a"}).json()["organization"] == "acme"
        bound = api_client(team.bob, organization=team.elsewhere)
        assert bound.post(PROJECTS, {"name": "b"}).json()["organization"] == "elsewhere"
        assert bound.post(PROJECTS, {"name": "c", "organization": "acme"}).status_code == 404

    def test_a_taken_name_and_a_full_quota_are_409(self, bob: APIClient, team: Team) -> None:
        assert bob.post(PROJECTS, {"name": "Shop"}).status_code == 201
        taken = bob.post(PROJECTS, {"name": "shop"})
        assert (taken.status_code, taken.json()["code"]) == (409, "name_taken")
        team.organization.max_projects = 1
        team.organization.save()
        full = bob.post(PROJECTS, {"name": "Other"})
        assert (full.status_code, full.json()["code"]) == (409, "quota_exceeded")
        assert Project.objects.count() == 1

    def test_roles_and_scopes(self, team: Team) -> None:
        make_catalogue()
        assert api_client(team.vera).post(PROJECTS, {"name": "x"}).status_code == 403
        assert api_client(team.bob, scopes=["read"]).post(PROJECTS, {"name": "x"}).status_code == 403
        assert api_client(team.bob, scopes=["connect"]).post(PROJECTS, {"name": "x"}).status_code == 403
        assert APIClient().post(PROJECTS, {"name": "x"}).status_code == 401
        assert api_client(team.bob, scopes=["write"]).post(PROJECTS, {"name": "x"}).status_code == 201


class TestIdempotency:
    def test_the_same_key_and_body_answer_again_without_making_again(self, bob: APIClient) -> None:
        first = bob.post(PROJECTS, {"name": "Shop"}, headers={"Idempotency-Key": "k1"})
        again = bob.post(PROJECTS, {"name": "Shop"}, headers={"Idempotency-Key": "k1"})
        assert first.status_code == again.status_code == 201
        assert "Idempotency-Replayed" not in first and again["Idempotency-Replayed"] == "true"
        assert first.json()["id"] == again.json()["id"] and first["Location"] == again["Location"]
        assert first.json()["operation"] == again.json()["operation"]
        assert Project.objects.count() == 1

    def test_the_same_key_with_another_body_is_a_422(self, bob: APIClient) -> None:
        bob.post(PROJECTS, {"name": "Shop"}, headers={"Idempotency-Key": "k1"})
        other = bob.post(PROJECTS, {"name": "Other"}, headers={"Idempotency-Key": "k1"})
        assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
        assert Project.objects.count() == 1

    def test_keys_are_each_principals_own(self, bob: APIClient, team: Team) -> None:
        bob.post(PROJECTS, {"name": "Shop"}, headers={"Idempotency-Key": "k1"})
        alice = api_client(team.alice).post(PROJECTS, {"name": "Other"}, headers={"Idempotency-Key": "k1"})
        assert alice.status_code == 201 and Project.objects.count() == 2

    def test_a_failed_call_frees_its_key(self, bob: APIClient) -> None:
        bob.post(PROJECTS, {"name": "Taken"})
        refused = bob.post(PROJECTS, {"name": "Taken"}, headers={"Idempotency-Key": "k1"})
        assert refused.status_code == 409
        assert bob.post(PROJECTS, {"name": "Free"}, headers={"Idempotency-Key": "k1"}).status_code == 201

    def test_a_replay_is_authorised_again(self, bob: APIClient, team: Team) -> None:
        bob.post(PROJECTS, {"name": "Shop"}, headers={"Idempotency-Key": "k1"})
        team.bob.memberships.all().delete()
        replay = bob.post(PROJECTS, {"name": "Shop", "organization": "acme"}, headers={"Idempotency-Key": "k1"})
        assert replay.status_code == 404

    def test_actions_take_it_too(self, bob: APIClient, team: Team) -> None:
        project = make_project(team.bob, team.organization)
        url = f"{PROJECTS}{project.pk}/action/"
        first = bob.post(url, {"action": "stop"}, headers={"Idempotency-Key": "s"})
        again = bob.post(url, {"action": "stop"}, headers={"Idempotency-Key": "s"})
        assert first.status_code == again.status_code == 202, first.content
        assert first.json()["operation"]["id"] == again.json()["operation"]["id"]
        assert Operation.objects.filter(kind="stop").count() == 1


class TestChange:
    def test_patch_changes_what_may_be_changed(self, bob: APIClient, team: Team) -> None:
        project = make_project(team.bob, team.organization)
        change = {"name": "New", "description": "d", "labels": {"a": "b"}, "deletion_protection": True}
        response = bob.patch(f"{PROJECTS}{project.pk}/", change)
        assert response.status_code == 200, response.content
        assert {name: response.json()[name] for name in change} == change
        assert response.json()["slug"] == project.slug and response.json()["operation"] is None

    def test_limits_start_a_resize(self, bob: APIClient, team: Team) -> None:
        project = make_project(team.bob, team.organization)
        response = bob.patch(f"{PROJECTS}{project.pk}/", {"limits": {"memory_bytes": 268435456}})
        assert response.status_code == 200, response.content
        assert response.json()["operation"]["kind"] == "resize"
        assert response.json()["limits"]["memory_bytes"] == 268435456 and response.json()["limits"]["cpus"] == 0.5

    def test_put_takes_a_project_as_it_was_read(self, bob: APIClient, team: Team) -> None:
        project = make_project(team.bob, team.organization)
        url = f"{PROJECTS}{project.pk}/"
        body = bob.get(url).json()
        response = bob.put(url, {**body, "name": "Renamed", "updated_at": "2020-01-01T00:00:00Z"})
        assert response.status_code == 200, response.content
        assert response.json()["name"] == "Renamed" and response.json()["operation"] is None

    @pytest.mark.parametrize(
        ("method", "body", "field"),
        [
            ("put", {}, "name"),
            ("put", {"name": "x", "engine": "mysql"}, "engine"),
            ("put", {"name": "x", "slug": "other"}, "slug"),
            ("put", {"name": "x", "bogus": 1}, "bogus"),
            ("patch", {"status": "stopped"}, "status"),
            ("patch", {"region": "moon"}, "region"),
            ("patch", {"name": None}, "name"),
            ("patch", {"name": "a\nb"}, "name"),
            ("patch", {"labels": "x"}, "labels"),
            ("patch", {"deletion_protection": "yes"}, "deletion_protection"),
            ("patch", {"limits": {"memory_bytes": 1}}, "limits.memory_bytes"),
            ("patch", {"limits": {"storage_bytes": 1}}, "limits.storage_bytes"),
            ("patch", {"limits": None}, "limits"),
        ],
    )
    def test_what_can_not_be_changed_is_a_400(
        self, bob: APIClient, team: Team, method: str, body: dict[str, Any], field: str
    ) -> None:
        project = make_project(team.bob, team.organization)
        response = getattr(bob, method)(f"{PROJECTS}{project.pk}/", body)
        assert response.status_code == 400, response.content
        assert field in fields_of(response)

    def test_a_list_as_a_body_is_a_400(self, bob: APIClient, team: Team) -> None:
        project = make_project(team.bob, team.organization)
        assert bob.patch(f"{PROJECTS}{project.pk}/", [1]).status_code == 400
        assert bob.post(f"{PROJECTS}{project.pk}/action/", [1]).status_code == 400


class TestDelete:
    def test_into_the_bin_and_protected(self, bob: APIClient, team: Team) -> None:
        project = make_project(team.bob, team.organization, deletion_protection=True)
        url = f"{PROJECTS}{project.pk}/"
        refused = bob.delete(url)
        assert (refused.status_code, refused.json()["code"]) == (409, "deletion_protected")
        bob.patch(url, {"deletion_protection": False})
        response = bob.delete(url)
        assert response.status_code == 202, response.content
        assert response.json()["operation"]["kind"] == "delete" and response.json()["status"] == "deleting"
        assert bob.delete(url).status_code == 409

    def test_purge_needs_the_slug_the_right_and_no_backup(self, team: Team) -> None:
        project = make_project(team.bob, team.organization)
        url, adam = f"{PROJECTS}{project.pk}/", api_client(team.adam)
        assert api_client(team.bob).delete(f"{url}?purge=true&confirm=shop").status_code == 403
        assert adam.delete(f"{url}?purge=true").json()["code"] == "confirm_required"
        assert adam.delete(f"{url}?purge=true&confirm=").json()["code"] == "confirm_required"
        assert adam.delete(f"{url}?purge=true&confirm=Shop").json()["code"] == "confirm_mismatch"
        assert adam.delete(f"{url}?purge=perhaps&confirm=shop").status_code == 400
        refused = adam.delete(f"{url}?purge=true&confirm=shop&final_backup=true")
        assert (refused.status_code, refused.json()["code"]) == (409, "no_backup_storage")
        assert not Operation.objects.live().exists()
        response = adam.delete(f"{url}?purge=true&confirm=shop&final_backup=false")
        assert response.status_code == 202 and response.json()["operation"]["kind"] == "purge"

    def test_it_is_accepted_while_another_operation_runs(self, bob: APIClient, team: Team) -> None:
        project = make_project(team.bob, team.organization, running=False)
        response = bob.delete(f"{PROJECTS}{project.pk}/")
        assert response.status_code == 202 and response.json()["operation"]["kind"] == "delete"


class TestActions:
    @pytest.mark.parametrize("action", ["stop", "restart", "rotate_password"])
    def test_a_running_project_can(self, bob: APIClient, team: Team, action: str) -> None:
        project = make_project(team.bob, team.organization)
        response = bob.post(f"{PROJECTS}{project.pk}/action/", {"action": action})
        assert response.status_code == 202, response.content
        assert response.json()["operation"]["kind"] == action

    @pytest.mark.parametrize("action", ["start", "undelete", "retry"])
    def test_a_running_project_can_not(self, bob: APIClient, team: Team, action: str) -> None:
        project = make_project(team.bob, team.organization)
        response = bob.post(f"{PROJECTS}{project.pk}/action/", {"action": action})
        assert (response.status_code, response.json()["code"]) == (409, "action_not_allowed")
        assert not Operation.objects.live().exists()

    def test_a_stopped_one_starts(self, bob: APIClient, team: Team) -> None:
        project = set_observed(make_project(team.bob, team.organization), "stopped", desired="stopped")
        response = bob.post(f"{PROJECTS}{project.pk}/action/", {"action": "start"})
        assert response.status_code == 202 and response.json()["operation"]["kind"] == "start"

    def test_one_operation_at_a_time(self, bob: APIClient, team: Team) -> None:
        project = make_project(team.bob, team.organization)
        bob.patch(f"{PROJECTS}{project.pk}/", {"limits": {"memory_bytes": 268435456}})
        response = bob.post(f"{PROJECTS}{project.pk}/action/", {"action": "restart"})
        assert (response.status_code, response.json()["code"]) == (409, "operation_in_progress")

    @pytest.mark.parametrize(
        ("body", "field"),
        [
            ({}, "action"),
            ({"action": "explode"}, "action"),
            ({"action": 1}, "action"),
            ({"action": ["stop"]}, "action"),
            ({"action": "stop", "force": True}, "force"),
            ({"action": "stop", "name": "x"}, "name"),
            ({"action": "rotate_password", "end_sessions": "yes"}, "end_sessions"),
        ],
    )
    def test_bad_bodies_are_400(self, bob: APIClient, team: Team, body: dict[str, Any], field: str) -> None:
        project = make_project(team.bob, team.organization)
        response = bob.post(f"{PROJECTS}{project.pk}/action/", body)
        assert response.status_code == 400, response.content
        assert field in fields_of(response)

    def test_a_viewer_may_not(self, team: Team) -> None:
        project = make_project(team.bob, team.organization)
        assert api_client(team.vera).post(f"{PROJECTS}{project.pk}/action/", {"action": "stop"}).status_code == 403


class TestLists:
    def test_filters_search_and_order(self, bob: APIClient, team: Team) -> None:
        for name in ("Alpha", "Beta", "Gamma 50%"):
            make_project(team.bob, team.organization, name)
        make_project(team.charlie, team.elsewhere, "Theirs")
        RegionFactory(slug="other", name="Other")

        def names(query: str) -> list[str]:
            response = bob.get(f"{PROJECTS}?{query}")
            assert response.status_code == 200, response.content
            return [project["name"] for project in response.json()["results"]]

        assert names("") == ["Gamma 50%", "Beta", "Alpha"]
        assert names("ordering=name") == ["Alpha", "Beta", "Gamma 50%"]
        assert names("ordering=-name,created_at") == ["Gamma 50%", "Beta", "Alpha"]
        assert names("search=BET") == ["Beta"]
        assert names("search=%25") == ["Gamma 50%"]
        assert names("search=gamma+50") == ["Gamma 50%"]
        assert (
            names("status=running&status=failed&engine=postgresql&region=local&placement=dedicated&search=a").__len__()
            == 3
        )
        assert names("status=stopped") == [] and names("region=other") == []
        assert names("organization=acme&page_size=1") == ["Gamma 50%"]
        page = bob.get(f"{PROJECTS}?page_size=2").json()
        assert page["count"] == 3 and page["next"] and page["previous"] is None

    def test_the_recycle_bin_is_listed_when_asked_for(self, bob: APIClient, team: Team) -> None:
        project = make_project(team.bob, team.organization)
        Project.objects.filter(pk=project.pk).update(
            recycled_at=project.created_at, desired_status="recycled", status="recycled"
        )
        assert bob.get(PROJECTS).json()["count"] == 0
        assert bob.get(f"{PROJECTS}?status=recycled").json()["count"] == 1

    @pytest.mark.parametrize(
        ("query", "status", "field"),
        [
            ("status=happy", 400, "status"),
            ("engine=oracle", 400, "engine"),
            ("placement=x", 400, "placement"),
            ("region=atlantis", 400, "region"),
            ("organization=elsewhere", 404, "organization"),
            ("ordering=password", 400, "ordering"),
            ("ordering=organization__name", 400, "ordering"),
            ("search=%00", 400, "search"),
            ("search=" + "x" * 101, 400, "search"),
            ("region=%00", 400, "region"),
        ],
    )
    def test_what_it_does_not_know_is_named(self, bob: APIClient, query: str, status: int, field: str) -> None:
        response = bob.get(f"{PROJECTS}?{query}")
        assert response.status_code == status, response.content
        assert field in fields_of(response)

    @pytest.mark.parametrize("page", ["0", "-1", "x", "99999999999999999999", "%00"])
    def test_a_page_that_is_not_there_is_a_404(self, bob: APIClient, page: str) -> None:
        assert bob.get(f"{PROJECTS}?page={page}").status_code == 404

    @pytest.mark.parametrize("size", [1, 100])
    def test_a_constant_number_of_queries(self, team: Team, size: int, django_assert_max_num_queries: Any) -> None:
        team.organization.max_projects = 200
        team.organization.max_memory_bytes = team.organization.max_storage_bytes = 2**50
        team.organization.save()
        for number in range(size):
            make_project(team.bob, team.organization, f"P{number}", running=False)
        _, clear = make_token(team.bob)
        client = APIClient()
        client.credentials(HTTP_AUTHORIZATION=f"Bearer {clear}")
        with django_assert_max_num_queries(8):
            page = client.get(f"{PROJECTS}?page_size=100&search=p&organization=acme&region=local").json()
        assert len(page["results"]) == size and all(row["operation"] for row in page["results"])
