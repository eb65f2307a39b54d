"""Projects on pools as people meet them: API and pages show what is theirs, and refuse with a reason what is not."""

from __future__ import annotations

from typing import Any

import pytest
from django.test import Client
from rest_framework.test import APIClient

from novastack.common.clock import now
from projects.models import Database, DatabaseServer, Plan, Project
from projects.operations import placing, status
from tests.factories import Team, api_client, finish_provisioning, make_catalogue, make_project


@pytest.fixture
def pool(team: Team) -> DatabaseServer:
    from novastack.common.secrets import Sealed

    region, plan = make_catalogue()
    return DatabaseServer.objects.create(
        kind="pool", name="pg-18-local-1", region=region, plan=plan, engine="postgresql", version="18", runtime="memory",
        image="postgres:18", port=20001, memory_bytes=1 << 30, cpus=2, max_connections=1000, max_databases=3,
        observed_state="running", started_at=now(), initialised_at=now(), pool_ready_at=now(), admin_username="novastack",
        admin_secret=Sealed.of("unused"), cpu_percent=50.0, memory_used_bytes=1 << 29, usage_at=now(),
    )  # fmt: skip


@pytest.fixture
def shop(team: Team, pool: DatabaseServer) -> Project:
    """On the pool, as if its provisioning had ended well."""
    project = make_project(team.alice, team.organization, running=False, placement="pool", version="18")
    project = Project.objects.select_related("plan", "region").get(pk=project.pk)
    database = placing.take(project)
    assert database is not None
    placing.address(project, pool)
    Database.objects.update(created_in_engine_at=now())
    return finish_provisioning(project)


@pytest.fixture
def bob(team: Team) -> APIClient:
    return api_client(team.bob)


@pytest.fixture
def web(team: Team) -> Client:
    client = Client()
    client.force_login(team.alice)
    return client


def url(project: Project, rest: str = "") -> str:
    return f"/api/v1/projects/{project.pk}/{rest}"


# --- API ----------------------------------------------------------------------------------------------------------------
def test_the_api_shows_what_is_the_projects_and_nothing_of_the_server(bob: APIClient, shop: Project) -> None:
    body = bob.get(url(shop)).json()
    assert (body["placement"], body["status"]) == ("pool", "running")
    assert body["limits"] == {"memory_bytes": None, "cpus": None, "storage_bytes": shop.storage_bytes}
    server = bob.get(url(shop, "status/")).json()["server"]
    hidden = ("name", "image", "started_at", "cpu_percent", "memory_bytes", "memory_limit_bytes")
    assert {server[name] for name in hidden} == {None}
    assert server["runtime"] == "memory"
    assert "pg-18-local-1" not in bob.get(url(shop, "status/")).content.decode()


def test_an_operator_sees_which_pool_it_is(team: Team, shop: Project) -> None:
    team.alice.is_staff = True
    team.alice.save()
    server = api_client(team.alice).get(url(shop, "status/")).json()["server"]
    assert (server["name"], server["image"]) == ("pg-18-local-1", "postgres:18")


def test_the_connection_is_the_pools_address_and_opaque_names(bob: APIClient, shop: Project) -> None:
    body = bob.get(url(shop, "connection/")).json()
    assert (body["port"], body["username"]) == (20001, f"tenant_{shop.pk.hex[-12:]}")
    assert body["database"] == f"tenant_{str(shop.pk).replace('-', '_')}"


@pytest.mark.parametrize(
    ("method", "rest", "body", "expected", "code", "field"),
    [
        ("post", "action/", {"action": "restart"}, 409, "action_not_allowed", None),
        ("patch", "", {"limits": {"memory_bytes": 1 << 28}}, 400, "invalid", "limits"),
        ("patch", "", {"tls_required": True}, 400, "invalid", "tls_required"),
        ("get", "logs/", None, 409, "action_not_allowed", None),
    ],
)
def test_what_only_a_server_of_its_own_can_do_is_refused_with_words(
    bob: APIClient, shop: Project, method: str, rest: str, body: Any, expected: int, code: str, field: str | None
) -> None:
    answer = getattr(bob, method)(url(shop, rest), body, format="json") if body else bob.get(url(shop, rest))
    assert (answer.status_code, answer.json()["code"]) == (expected, code)
    assert len(answer.json()["detail"]) > 20
    if field:
        assert [e["field"] for e in answer.json()["errors"]] == [field]
        assert answer.json()["errors"][0]["code"] == "not_available"


def test_a_plan_that_lives_on_pools_is_obeyed_and_shown(bob: APIClient, pool: DatabaseServer) -> None:
    Plan.objects.update(placement="pool")
    assert bob.get("/api/v1/plans/").json()["results"][0]["placement"] == "pool"
    answer = bob.post("/api/v1/projects/", {"name": "Small"}, format="json")
    assert (answer.status_code, answer.json()["placement"]) == (201, "pool")
    answer = bob.post("/api/v1/projects/", {"name": "Ferret", "engine": "ferretdb"}, format="json")
    assert answer.status_code == 400
    assert answer.json()["errors"][0]["field"] == "placement"


def test_lists_filter_by_placement(bob: APIClient, team: Team, shop: Project) -> None:
    make_project(team.alice, team.organization, "Own", placement="dedicated")
    found = bob.get("/api/v1/projects/?placement=pool").json()["results"]
    assert [each["slug"] for each in found] == [shop.slug]


# --- pages --------------------------------------------------------------------------------------------------------------
def test_the_new_project_page_offers_both_places_and_makes_one_on_a_pool(web: Client, pool: DatabaseServer) -> None:
    text = web.get("/projects/new/").content.decode()
    assert "Shared pool" in text
    assert "Not in this release" not in text
    answer = web.post("/projects/new/", {"name": "Small", "engine": "postgresql", "placement": "pool"})
    assert answer.status_code == 302, answer.content.decode()[-2000:]
    assert Project.objects.get(name="Small").placement == "pool"


def test_a_refusal_of_the_place_stands_at_its_field(web: Client, pool: DatabaseServer) -> None:
    answer = web.post("/projects/new/", {"name": "Small", "engine": "ferretdb", "placement": "pool"})
    assert answer.status_code == 400
    text = answer.content.decode()
    assert "share a server" in text
    assert 'value="pool" checked' in text


def test_its_pages_have_no_restart_no_log_no_limits_and_no_figures_of_the_server(web: Client, shop: Project) -> None:
    text = web.get(f"/projects/{shop.pk}/").content.decode()
    assert "On a pool, shared with others" in text
    for absent in (
        f"/projects/{shop.pk}/actions/restart/",
        f"/projects/{shop.pk}/logs/",
        "pg-18-local-1",
        "postgres:18",
        "<dt>CPU</dt>",
    ):
        assert absent not in text, absent
    assert "20001" in text
    settings = web.get(f"/projects/{shop.pk}/settings/").content.decode()
    assert "Apply limits" not in settings
    assert "those of the pool" in settings
    assert web.get(f"/projects/{shop.pk}/logs/").status_code == 200  # says why there is none
    assert "operators only" in web.get(f"/projects/{shop.pk}/logs/").content.decode()


def test_a_project_that_waits_shows_no_port_that_is_none(web: Client, team: Team, pool: DatabaseServer) -> None:
    project = make_project(team.alice, team.organization, "Waiting", running=False, placement="pool")
    for address in ("/projects/", f"/projects/{project.pk}/"):
        assert ":0<" not in web.get(address).content.decode()


# --- state --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("server", "locked", "desired", "expected"),
    [
        ("running", False, "running", "running"),
        ("running", True, "stopped", "stopped"),
        ("running", False, "stopped", "stopping"),
        ("running", True, "running", "unhealthy"),
        ("stopped", False, "running", "unhealthy"),
        ("stopped", True, "stopped", "stopped"),
        ("unreachable", False, "running", "not_available"),
    ],
)
def test_the_status_is_that_of_the_database_and_not_of_the_pool(
    shop: Project, server: str, locked: bool, desired: str, expected: str
) -> None:
    DatabaseServer.objects.update(observed_state=server, observed_detail="killed: out of memory")
    Database.objects.update(locked_at=now() if locked else None)
    Project.objects.update(desired_status=desired)
    status.refresh([shop.pk])
    shop.refresh_from_db()
    assert shop.status == expected
    assert "memory" not in shop.status_detail
