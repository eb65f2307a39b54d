"""The allocation service: one database per instance, whoever asks, how often, and what happened to it since."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
import requests
from django.db import transaction
from pytest_django.live_server_helper import LiveServer

from accounts.models import AuditEvent, Organization, User
from accounts.permissions import Principal
from novastack.common.clock import now
from projects.models import Allocation, DatabaseServer, Operation, Project
from projects.operations import placing, status
from projects.operations.removal import remove_rows
from projects.services import allocation as allocation_service
from projects.services import project_action
from tests.factories import (
    PlanFactory,
    Team,
    api_client,
    finish_provisioning,
    make_catalogue,
    make_project,
    make_team,
    make_token,
)

ALLOCATE, DEDICATED, HEALTH = (
    "/api/v1/database/allocate/",
    "/api/v1/database/provision-dedicated/",
    "/api/v1/database/health/",
)


@pytest.fixture(autouse=True)
def _catalogue(db: None) -> None:
    make_catalogue()


def ask(user: User, path: str = ALLOCATE, *, key: str = "", scopes: list[str] | None = None, **body: Any) -> Any:
    headers = {"HTTP_IDEMPOTENCY_KEY": key} if key else {}
    body = {"instance_id": "odoo-1", **body}
    return api_client(user, scopes=scopes).post(path, body, **headers)


def only_project() -> Project:
    return Project.objects.get()


def ready() -> Project:
    """As after a provisioning that went well, on a pool or not."""
    project = only_project()
    if project.placement == "pool":
        pool = DatabaseServer.objects.create(
            kind="pool", name="p1", region=project.region, engine=project.engine, version=project.version, port=21000,
            memory_bytes=2**32, cpus=2, admin_username="postgres", max_databases=50, max_connections=200,
            pool_ready_at=now(), initialised_at=now(), observed_state="running", observed_at=now(),
        )  # fmt: skip
        with transaction.atomic():
            placing.put_rows(project, pool, number=1, slot="current")
        project.endpoint.port = project.endpoint.control_port = 21000
        project.endpoint.save()
    return finish_provisioning(project)


def failed(code: str, *, retryable: bool) -> Project:
    """As after a provisioning that gave up."""
    project = only_project()
    error = {"code": code, "detail": "It did not come up.", "retryable": retryable}
    Operation.objects.live().filter(project_uuid=project.pk).update(
        state="failed", error=error, started_at=now(), finished_at=now()
    )
    for operation in Operation.objects.filter(project_uuid=project.pk):
        operation.locks.all().delete()
    Project.objects.filter(pk=project.pk).update(failure=error)
    status.refresh([project.pk])
    project.refresh_from_db()
    assert project.status == "failed"
    return project


class TestAtTheSameMoment:
    """The answer is made of two looks: at the project, and at what works on it."""

    @pytest.fixture
    def between(self, monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], object]]:
        """What happens once between the two."""
        events: list[Callable[[], object]] = []

        class Looked:
            @property
            def objects(self) -> Any:
                if events:
                    events.pop()()
                return Operation.objects

        monkeypatch.setattr(allocation_service, "Operation", Looked())
        return events

    def test_it_becomes_ready(self, team: Team, between: list[Callable[[], object]]) -> None:
        ask(team.bob, DEDICATED)
        between.append(ready)
        answer = ask(team.bob, DEDICATED)
        assert (answer.status_code, answer.json()["project"]["status"]) == (200, "running"), answer.json()

    def test_it_fails_for_good(self, team: Team, between: list[Callable[[], object]]) -> None:
        ask(team.bob, DEDICATED)
        between.append(lambda: failed("image_missing", retryable=False))
        answer = ask(team.bob, DEDICATED)
        assert (answer.status_code, answer.json()["code"]) == (409, "provisioning_failed")
        assert answer.json()["errors"][0]["code"] == "image_missing"


def test_the_first_call_makes_it_and_says_when_to_ask_again(team: Team) -> None:
    answer = ask(team.bob)
    body = answer.json()
    assert answer.status_code == 202 and body["status"] == "provisioning" and body["instance_id"] == "odoo-1"
    assert answer["Retry-After"] == str(body["retry_after_seconds"]) and body["retry_after_seconds"] > 0
    assert body["operation"]["kind"] == "provision" and body["operation"]["state"] == "queued"
    assert body["project"]["name"] == "odoo-1" and body["project"]["operation"]["id"] == body["operation"]["id"]
    assert body["previous_error"] is None and "connection" not in body
    again = ask(team.bob).json()
    assert (again["project"]["id"], again["operation"]["id"]) == (body["project"]["id"], body["operation"]["id"])
    event = AuditEvent.objects.get(action="allocation.created")
    assert (event.target, event.project_id, event.actor) == ("odoo-1", only_project().pk, team.bob)


def test_once_ready_it_comes_with_the_connection_audited_and_never_stored(team: Team) -> None:
    ask(team.bob)
    project = ready()
    answer = ask(team.bob)
    body = answer.json()
    assert answer.status_code == 200 and body["status"] == "allocated" and answer["Cache-Control"] == "no-store"
    shown = api_client(team.bob).get(f"/api/v1/projects/{project.pk}/connection/").json()
    assert body["connection"] == shown and shown["password"] in shown["uri"]
    purposes = AuditEvent.objects.filter(action="credentials.revealed").order_by("id").values_list("data", flat=True)
    assert [data["purpose"] for data in purposes] == ["allocation", "api"]
    project.refresh_from_db()
    assert project.credentials_shown_at is not None


def test_without_the_right_to_connect_there_is_no_password_in_any_form(team: Team) -> None:
    ask(team.bob)
    project = ready()
    secret = project.databases.get().roles.get(kind="login").secret
    answer = ask(team.bob, scopes=["write"])
    connection = answer.json()["connection"]
    assert answer.status_code == 200 and connection["port"] == project.endpoint.port
    assert {name for name, value in connection.items() if value is None} >= {
        "password", "uri", "jdbc_url", "env", "snippets",
    }  # fmt: skip
    assert secret is not None and secret.open() not in answer.content.decode() and "•" not in answer.content.decode()
    assert not AuditEvent.objects.filter(action="credentials.revealed").exists()


@pytest.mark.parametrize("scopes", [["read"], ["connect"], ["read", "connect"]])
def test_it_takes_the_right_to_make_projects(team: Team, scopes: list[str]) -> None:
    assert ask(team.vera).status_code == ask(team.vera, DEDICATED).status_code == 403
    assert ask(team.bob, scopes=scopes).status_code == 403
    assert not Project.objects.exists()


def place_of(answer: Any) -> tuple[str, str]:
    project = answer.json()["project"]
    return project["placement"], project["plan"]


def test_it_lives_on_a_pool_unless_engine_or_plan_say_otherwise(team: Team) -> None:
    assert place_of(ask(team.bob, instance_id="a")) == ("pool", "small")
    assert place_of(ask(team.bob, instance_id="b", engine="ferretdb")) == ("dedicated", "small")
    assert place_of(ask(team.bob, instance_id="c", plan="small")) == ("dedicated", "small")  # its projects live so
    PlanFactory(slug="shared", is_default=False, placement="pool")
    assert place_of(ask(team.bob, instance_id="d")) == ("pool", "shared")
    assert place_of(ask(team.bob, instance_id="e", plan="shared")) == ("pool", "shared")
    assert place_of(ask(team.bob, instance_id="f", plan="shared", engine="ferretdb")) == ("dedicated", "shared")
    assert place_of(ask(team.bob, DEDICATED, instance_id="g", plan="shared")) == ("dedicated", "shared")
    assert place_of(ask(team.bob, instance_id="a")) == ("pool", "small")


def test_each_organization_has_instances_of_its_own(team: Team) -> None:
    mine, theirs = ask(team.bob).json(), ask(team.charlie).json()
    assert mine["project"]["id"] != theirs["project"]["id"]
    assert ask(team.charlie, organization="acme").status_code == 404
    assert ask(team.bob, organization="acme").json()["project"]["id"] == mine["project"]["id"]


def test_the_same_below_api_and_without_the_last_slash(team: Team) -> None:
    first = ask(team.bob).json()["project"]["id"]
    for path in ("/api/database/allocate/", "/api/database/allocate", ALLOCATE.rstrip("/")):
        answer = ask(team.bob, path)
        assert (answer.status_code, answer.json()["project"]["id"]) == (202, first), path
        assert "/api/v1/operations/" in answer.json()["operation"]["url"]


@pytest.mark.parametrize(
    ("asked", "field"),
    [({"plan": "other"}, "plan"), ({"engine": "mariadb"}, "engine"), ({"version": "15"}, "version"),
     ({"region": "moon"}, "region")],
)  # fmt: skip
def test_another_one_for_a_known_instance_is_refused_by_name(team: Team, asked: dict[str, str], field: str) -> None:
    first = ask(team.bob, version="17").json()["project"]
    same = {name: first[name] for name in ("engine", "version", "plan", "region")}
    assert ask(team.bob, **same).status_code == 202
    answer = ask(team.bob, **same | asked)
    body = answer.json()
    assert (answer.status_code, body["code"]) == (409, "allocation_mismatch")
    assert [(e["field"], e["code"]) for e in body["errors"]] == [(field, "mismatch")]
    assert first[field] in body["errors"][0]["detail"] and asked[field] in body["errors"][0]["detail"]
    assert Project.objects.count() == 1


def test_a_server_of_its_own_is_another_thing(team: Team) -> None:
    answer = ask(team.bob, DEDICATED)
    assert answer.status_code == 202 and answer.json()["project"]["placement"] == "dedicated"
    assert ask(team.bob, DEDICATED).json()["project"]["id"] == answer.json()["project"]["id"]
    ready()
    assert ask(team.bob, DEDICATED).json()["status"] == "allocated"
    for path, instance in ((ALLOCATE, "odoo-1"), (DEDICATED, "odoo-2")):
        ask(team.bob, instance_id="odoo-2")
        body = ask(team.bob, path, instance_id=instance).json()
        assert (body["code"], body["errors"][0]["field"]) == ("allocation_mismatch", "placement"), path


@pytest.mark.parametrize("instance", ["", " ", "a b", "ä", "-x", "x" * 129, "a\n", "a\u0000", "../x"])
def test_ids_that_are_none(team: Team, instance: str) -> None:
    answer = ask(team.bob, instance_id=instance)
    assert answer.status_code == 400 and answer.json()["errors"][0]["field"] == "instance_id"
    assert not Project.objects.exists()


@pytest.mark.parametrize(
    ("body", "field"),
    [({"engine": "oracle"}, "engine"), ({"plan": "huge"}, "plan"), ({"region": "moon"}, "region"),
     ({"version": "1"}, "version"), ({"instance": "x"}, "instance"), ({"instance_id": 4711}, "instance_id"),
     ({"name": ""}, "name")],
)  # fmt: skip
def test_what_can_not_be_had_is_refused_and_leaves_nothing(team: Team, body: dict[str, Any], field: str) -> None:
    answer = ask(team.bob, **body)
    assert answer.status_code == 400 and answer.json()["errors"][0]["field"] == field
    assert not Allocation.objects.exists() and not Project.objects.exists()
    assert ask(team.bob).status_code == 202  # and the instance can have one


def test_names_are_found_where_none_is_given(team: Team) -> None:
    make_project(team.alice, team.organization, "odoo-1")
    long = "x" * 100
    names = [
        ask(team.bob, instance_id=i).json()["project"]["name"] for i in ("odoo-1", "ODOO-1", f"{long}1", f"{long}2")
    ]
    assert names == ["odoo-1 2", "ODOO-1 3", "x" * 63, "x" * 56 + " 2"]
    given = ask(team.bob, instance_id="odoo-9", name="odoo-1")
    assert (given.status_code, given.json()["code"]) == (409, "name_taken")
    assert ask(team.bob, instance_id="odoo-9", name="Shop").json()["project"]["name"] == "Shop"
    assert ask(team.bob, instance_id="odoo-9", name="Other").json()["project"]["name"] == "Shop"  # a name is no demand


def test_quota(team: Team) -> None:
    Organization.objects.update(max_projects=1)
    assert ask(team.bob).status_code == 202
    assert ask(team.bob, instance_id="odoo-2").json()["code"] == "quota_exceeded"
    assert ask(team.bob).status_code == 202  # what it has, it has


def test_a_failure_that_may_pass_is_tried_again_by_asking(team: Team) -> None:
    ask(team.bob)
    failed("start_failed", retryable=True)
    answer = ask(team.bob)
    body = answer.json()
    assert answer.status_code == 202 and body["operation"]["state"] == "queued"
    assert body["previous_error"] == {"code": "start_failed", "detail": "It did not come up.", "retryable": True}
    assert Operation.objects.filter(kind="provision").count() == 2 and Project.objects.count() == 1
    assert ask(team.bob).json()["operation"]["id"] == body["operation"]["id"]  # one attempt at a time
    ready()
    assert ask(team.bob).status_code == 200


def test_a_failure_that_stays_says_why_and_what_to_do(team: Team) -> None:
    ask(team.bob)
    project = failed("image_missing", retryable=False)
    body = ask(team.bob).json()
    assert (body["status"], body["code"]) == (409, "provisioning_failed")
    assert body["errors"] == [{"field": "operation", "code": "image_missing", "detail": "It did not come up."}]
    assert "retry" in body["detail"] and "purge" in body["detail"]
    assert Operation.objects.filter(kind="provision").count() == 1
    project_action(principal=Principal.of(team.bob), project=project, action="retry")
    assert ask(team.bob).status_code == 202


def test_a_failure_while_its_region_is_away_is_told_not_hidden(team: Team) -> None:
    ask(team.bob)
    project = failed("start_failed", retryable=True)
    project.region.reachable = False
    project.region.save()
    status.refresh([project.pk])
    answer = ask(team.bob)
    assert (answer.status_code, answer.json()["code"]) == (409, "provisioning_failed")
    assert int(answer["Retry-After"]) > 0 and "again" in answer.json()["detail"]


def test_in_the_bin_being_removed_and_gone(team: Team) -> None:
    client = api_client(team.alice)
    first = ask(team.bob).json()["project"]
    project = ready()
    client.delete(f"/api/v1/projects/{project.pk}/")
    for _ in range(2):  # on its way there, and there
        body = ask(team.bob).json()
        assert (body["status"], body["code"]) == (409, "allocation_recycled") and first["slug"] in body["detail"]
        Operation.objects.live().update(state="succeeded", finished_at=now())
        Project.objects.update(recycled_at=now(), recycle_until=now() + timedelta(days=7))
    Project.objects.update(desired_status="absent", purging_at=now())
    answer = ask(team.bob)
    assert (answer.status_code, answer.json()["code"]) == (409, "allocation_deleting") and answer["Retry-After"]
    remove_rows(project.pk)
    again = ask(team.bob)
    assert again.status_code == 202 and again.json()["project"]["id"] != first["id"]
    assert Allocation.objects.count() == 1


def test_a_stopped_one_is_still_the_instances(team: Team) -> None:
    ask(team.bob)
    project = ready()
    Project.objects.filter(pk=project.pk).update(desired_status="stopped")
    status.refresh([project.pk])
    body = ask(team.bob).json()
    assert body["status"] == "allocated" and body["project"]["status"] in {"stopping", "stopped"}


def test_idempotency_keys(team: Team) -> None:
    first = ask(team.bob, key="k1")
    replay = ask(team.bob, key="k1")
    assert replay.status_code == 202 and replay["Idempotency-Replayed"] == "true" and replay.json() == first.json()
    other = ask(team.bob, key="k1", instance_id="odoo-2")
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
    ready()
    later = ask(team.bob, key="k1")  # the row holds no secret: it is authorised again, and told how it is now
    assert (
        later.status_code == 200 and later["Idempotency-Replayed"] == "true" and later.json()["connection"]["password"]
    )
    assert ask(team.bob, key="k2", engine="mysql").status_code == 409
    assert ask(team.bob, key="k2").status_code == 200  # a refused call leaves its key free


def test_health_says_one_word_to_strangers_and_the_room_to_operators(team: Team) -> None:
    for user in (None, team.alice):
        body = api_client(user).get(HEALTH).json()
        assert set(body) == {"status"} and body["status"] in {"healthy", "degraded"}
    team.adam.is_staff = True
    team.adam.save()
    region, plan = make_catalogue()
    fields: dict[str, Any] = {
        "kind": "pool", "region": region, "engine": "postgresql", "version": "17", "memory_bytes": 2**32, "cpus": 2,
        "admin_username": "postgres", "max_databases": 2,
    }  # fmt: skip
    full = DatabaseServer.objects.create(**fields, name="p1", pool_ready_at=now())
    for name in ("a", "b"):
        project = make_project(team.alice, team.organization, name)
        project.databases.update(server=full)
    DatabaseServer.objects.create(**fields, name="p2")
    DatabaseServer.objects.create(**fields, name="p3", pool_ready_at=now(), draining_at=now())
    DatabaseServer.objects.create(**fields, name="p4", pool_ready_at=now(), pool_health="unhealthy")
    DatabaseServer.objects.create(**fields, name="p5", pool_ready_at=now(), plan=plan)
    rows = api_client(team.adam).get(HEALTH).json()["pools"]
    common = {"engine": "postgresql", "version": "17", "region": "local"}
    assert rows == [
        {**common, "plan": "", "pools": 1, "preparing": 1, "databases": 2, "max_databases": 2, "room": False},
        {**common, "plan": "small", "pools": 1, "preparing": 0, "databases": 0, "max_databases": 2, "room": True},
    ]
    token = api_client(team.adam, scopes=["read"]).get(HEALTH).json()
    assert set(token) == {"status"}  # a token is an operator's only with `admin`


class TestFiftyAtATime:
    """On the real server with its threads, and real transactions in the control database."""

    @pytest.fixture
    def token(self, transactional_db: None) -> str:
        team = make_team()
        make_catalogue()
        Organization.objects.update(max_projects=100, max_memory_bytes=2**50, max_storage_bytes=2**50)
        _, clear = make_token(team.bob)
        return clear

    def at_once(self, server: LiveServer, token: str, instances: list[str], path: str) -> list[tuple[int, Any]]:
        def one(instance: str) -> tuple[int, Any]:
            answer = requests.post(
                f"{server.url}{path}", json={"instance_id": instance}, timeout=60,
                headers={"Authorization": f"Bearer {token}"},
            )  # fmt: skip
            return answer.status_code, answer.json()

        server.thread.httpd.socket.listen(128)  # Django's own queue is of 10; more are reset
        with ThreadPoolExecutor(len(instances)) as pool:
            return list(pool.map(one, instances))

    @pytest.mark.parametrize("path", [ALLOCATE, DEDICATED])
    def test_one_instance_gets_one_database(self, live_server: LiveServer, token: str, path: str) -> None:
        answers = self.at_once(live_server, token, ["odoo-1"] * 50, path)
        assert {status for status, _ in answers} == {202}, answers
        assert len({body["project"]["id"] for _, body in answers}) == 1
        assert len({body["operation"]["id"] for _, body in answers}) == 1
        assert Project.objects.count() == Allocation.objects.count() == Operation.objects.count() == 1
        assert AuditEvent.objects.filter(action="allocation.created").count() == 1
        ready()
        answers = self.at_once(live_server, token, ["odoo-1"] * 50, path)
        assert {status for status, _ in answers} == {200}, answers
        assert len({body["connection"]["uri"] for _, body in answers}) == 1

    def test_fifty_instances_get_fifty(self, live_server: LiveServer, token: str) -> None:
        answers = self.at_once(live_server, token, [f"odoo-{n}" for n in range(50)], ALLOCATE)
        assert {status for status, _ in answers} == {202}, answers
        assert len({body["project"]["id"] for _, body in answers}) == Project.objects.count() == 50
        assert {body["project"]["name"] for _, body in answers} == {f"odoo-{n}" for n in range(50)}

    def test_a_failed_one_is_tried_again_once(self, live_server: LiveServer, token: str) -> None:
        self.at_once(live_server, token, ["odoo-1"], ALLOCATE)
        failed("start_failed", retryable=True)
        answers = self.at_once(live_server, token, ["odoo-1"] * 20, ALLOCATE)
        assert {status for status, _ in answers} == {202}, answers
        assert Operation.objects.filter(state="queued").count() == 1 and Operation.objects.count() == 2
