"""Moves and changes of plan as people ask for them: previews, refusals with their codes, and what is recorded."""

from __future__ import annotations

from typing import Any

import pytest
from django.test import Client

from accounts.models import AuditEvent
from projects.engines.ferretdb import FerretDB
from projects.models import DatabaseServer, Operation, Plan, Project, Region
from tests.factories import PlanFactory, RegionFactory, Team, UserFactory, api_client, make_project

GIB = 1 << 30


@pytest.fixture
def project(team: Team) -> Project:
    project = make_project(team.alice, team.organization)
    Project.objects.filter(pk=project.pk).update(size_bytes=300 << 20, status="running", health="healthy")
    project.refresh_from_db()
    return project


@pytest.fixture
def large(project: Project) -> Plan:
    return PlanFactory(
        slug="large",
        name="Large",
        is_default=False,
        memory_bytes=GIB,
        cpus="1",
        storage_bytes=20 * GIB,
        connection_limit=50,
    )


def url(project: Project) -> str:
    return f"/api/v1/projects/{project.pk}/"


def move(team: Team, project: Project, body: dict[str, Any], status: int) -> dict[str, Any]:
    answer = api_client(team.alice).post(f"{url(project)}move/", body, format="json")
    assert answer.status_code == status, answer.content
    return dict(answer.json())


def test_a_dry_run_says_what_would_happen_and_does_nothing(team: Team, project: Project, large: Plan) -> None:
    seen = move(team, project, {"target": {"plan": "large"}, "dry_run": True}, 200)
    assert (seen["kind"], seen["plan"], seen["placement"], seen["problems"]) == ("move", "large", "dedicated", [])
    assert seen["limits"] == {"memory_bytes": GIB, "cpus": 1.0, "storage_bytes": 20 * GIB}
    assert seen["quotas"] == {
        "memory_bytes": GIB - project.memory_bytes, "storage_bytes": 20 * GIB - project.storage_bytes,
    }  # fmt: skip
    assert seen["expected_downtime_seconds"] > 10
    assert (seen["address_changes"], seen["names_change"]) == (False, False)
    pool = move(team, project, {"target": {"placement": "pool"}, "dry_run": True}, 200)
    assert (pool["address_changes"], pool["names_change"]) == (True, True)
    RegionFactory(slug="far", name="Far")
    far = move(team, project, {"target": {"region": "far"}, "dry_run": True}, 200)
    assert (far["region"], far["address_changes"], far["names_change"]) == ("far", True, False)
    assert not Operation.objects.filter(kind="move").exists()


def test_a_move_is_recorded_once_and_audited(team: Team, project: Project) -> None:
    answer = move(team, project, {"target": {}}, 202)
    assert answer["operation"]["kind"] == "move"
    operation = Operation.objects.get(kind="move")
    assert operation.params["before"]["port"] == project.endpoint.port
    assert move(team, project, {"target": {}}, 409)["code"] == "operation_in_progress"
    assert AuditEvent.objects.filter(action="project.move", project_id=project.pk).count() == 1
    shown = api_client(team.alice).get(f"/api/v1/operations/{operation.pk}/").json()
    assert (shown["result"], shown["cancellable"]) == ({}, True)


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"target": {"plan": "none"}}, 400, "invalid"),
        ({"target": {"region": "none"}}, 400, "invalid"),
        ({"target": {"placement": "external"}}, 400, "invalid"),
        ({"target": {"pool": "x"}}, 400, "invalid"),
        ({"target": "large"}, 400, "invalid"),
        ({"target": {"plan": "tiny"}}, 409, "plan_too_small"),
        ({"target": {"plan": "huge"}}, 409, "quota_exceeded"),
    ],
)
def test_what_is_refused(team: Team, project: Project, body: dict[str, Any], status: int, code: str) -> None:
    PlanFactory(slug="tiny", name="Tiny", is_default=False, storage_bytes=200 << 20)
    PlanFactory(slug="huge", name="Huge", is_default=False, memory_bytes=1 << 50, storage_bytes=1 << 50)
    told = move(team, project, body, status)
    assert told["code"] == code
    if code == "plan_too_small":
        assert "300 MiB" in told["detail"]
        assert "200 MiB" in told["detail"]
        dry = move(team, project, {**body, "dry_run": True}, 200)
        assert [p["code"] for p in dry["problems"]] == [code]
    assert not Operation.objects.filter(kind="move").exists()


def test_only_a_running_project_is_moved_and_only_by_those_who_may(team: Team, project: Project) -> None:
    assert api_client(team.vera).post(f"{url(project)}move/", {}, format="json").status_code == 403
    assert api_client(team.charlie).post(f"{url(project)}move/", {}, format="json").status_code == 404
    Project.objects.filter(pk=project.pk).update(desired_status="stopped")
    DatabaseServer.objects.update(observed_state="stopped", desired_state="stopped")
    assert move(team, project, {"target": {}}, 409)["code"] == "action_not_allowed"


def test_an_engine_that_can_not_be_copied_says_so(
    team: Team, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FerretDB, "capabilities", frozenset())
    Project.objects.filter(pk=project.pk).update(engine="ferretdb", version="1.24")
    assert move(team, project, {"target": {}}, 409)["code"] == "move_not_supported"


def test_where_the_tools_are_missing_it_says_so(team: Team, project: Project) -> None:
    Project.objects.filter(pk=project.pk).update(engine="ferretdb", version="1.24")
    Region.objects.filter(pk=project.region_id).update(lacks={"ferretdb": {"tools": "this machine has no mongodump"}})
    refused = move(team, project, {"target": {}}, 409)
    assert refused["code"] == "move_not_supported" and "no mongodump" in refused["detail"]


def test_another_plan_at_the_same_place(team: Team, project: Project, large: Plan) -> None:
    api = api_client(team.alice)
    mixed = api.patch(url(project), {"plan": "large", "name": "Other"}, format="json")
    assert (mixed.status_code, mixed.json()["errors"][0]["field"]) == (400, "plan")
    answer = api.patch(url(project), {"plan": "large"}, format="json")
    assert answer.status_code == 200, answer.content
    assert answer.json()["operation"]["kind"] == "change_plan"
    project.refresh_from_db()
    assert (project.plan, project.storage_bytes, project.memory_bytes) == (large, 20 * GIB, GIB)
    assert AuditEvent.objects.filter(action="project.plan_changed").count() == 1
    same = api.patch(url(project), {"plan": "large"}, format="json")
    assert (same.status_code, Operation.objects.filter(kind="change_plan").count()) == (200, 1)


def test_a_plan_that_lives_on_pools_is_a_move(team: Team, project: Project) -> None:
    PlanFactory(slug="shared", name="Shared", is_default=False, placement="pool", storage_bytes=GIB)
    answer = api_client(team.alice).patch(url(project), {"plan": "shared"}, format="json")
    assert answer.json()["operation"]["kind"] == "move", answer.content
    assert Operation.objects.get(kind="move").params["placement"] == "pool"


def test_the_page_shows_what_happens_and_then_does_it(team: Team, project: Project, large: Plan) -> None:
    browser = Client()
    browser.force_login(team.alice)
    page = f"/projects/{project.pk}/settings/"
    asked = {"form": "move", "plan": "small", "region": project.region.slug, "placement": "pool", "go": "preview"}
    asked["plan"] = project.plan.slug
    shown = browser.post(page, asked)
    assert shown.status_code == 200, shown.content
    assert b"Database and user get other names" in shown.content
    assert b"Move it" in shown.content
    assert not Operation.objects.filter(kind="move").exists()
    short = browser.post(page, {**asked, "plan": "large", "placement": "dedicated"})
    assert b"Show what happens" in short.content
    assert browser.post(page, {**asked, "go": "apply"}).status_code == 302
    assert Operation.objects.get(kind="move").params["placement"] == "pool"
    again = browser.post(page, {**asked, "go": "apply"})
    assert (again.status_code, b"is running" in again.content) == (400, True)


def test_operators_change_plans_in_the_admin(team: Team, project: Project, large: Plan) -> None:
    console = Client()
    console.force_login(UserFactory(email="root@example.test", is_staff=True, is_superuser=True))
    page = "/admin/projects/project/"
    body = {"action": "change_plan", "_selected_action": [str(project.pk)]}
    assert b"Show what happens" in console.post(page, body).content
    shown = console.post(page, {**body, "plan": "large"})
    assert b"in place" in shown.content, shown.content
    assert not Operation.objects.filter(kind="change_plan").exists()
    console.post(page, {**body, "plan": "large", "confirmed": "yes"})
    assert Operation.objects.get(kind="change_plan").project_uuid == project.pk
    assert AuditEvent.objects.filter(action="operator.acted", data__action="change_plan").exists()
