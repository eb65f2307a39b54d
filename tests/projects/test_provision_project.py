"""Seed 001's usage example as one call of the API, with the parts of its answer; the services' HTTP is real."""

from __future__ import annotations

import re
from typing import Any

import pytest
from rest_framework.test import APIClient

from projects.models import ApiKey, Operation, Project, Region
from projects.services import key_verify
from tests.factories import RegionFactory, Team, api_client
from tests.operations.conftest import drive, once, operation_of, paper, runtime, states  # noqa: F401
from tests.operations.paper import PaperPostgreSQL
from tests.projects.test_services_around import Service, connect, say, service  # noqa: F401

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("paper")]
# database/src/jobs/provision-project, as the customer wrote it
PAYLOAD = {
    "name": "550e8400",
    "region": "us-east-1",
    "services": {"auth": True, "realtime": True, "storage": True},
    "api_keys": {"count": 2, "prefix": "nm"},
    "organization": "acme",
}
KEY = re.compile(r"nm_\d{10}_[0-9a-f]{48}")


@pytest.fixture
def bob(team: Team, paper: PaperPostgreSQL, service: Service) -> APIClient:  # noqa: F811
    Region.objects.filter(pk=RegionFactory().pk).update(slug="us-east-1", name="US East")
    connect(service, Region.objects.get())
    return api_client(team.bob)


def test_the_example(bob: APIClient, service: Service) -> None:  # noqa: F811
    headers = {"Idempotency-Key": "provision-550e8400"}
    answer = bob.post("/api/v1/projects/", PAYLOAD, format="json", headers=headers)
    body: dict[str, Any] = answer.json()
    assert answer.status_code == 201 and "no-store" in answer["Cache-Control"]
    # result.data.api_keys: generated keys (only shown once)
    keys = [key["key"] for key in body["api_keys"]]
    assert len(set(keys)) == 2 and all(KEY.fullmatch(key) for key in keys)
    assert key_verify(clear=keys[0]).code == "inactive", "until the project is ready"
    drive(Operation.objects.get(pk=body["operation"]["id"]))
    operation = bob.get(f"{body['operation']['url']}?wait=5").json()
    assert operation["state"] == "succeeded" and operation["error"] is None
    assert {"database", "schema", "services", "api_keys", "login"} <= {step["name"] for step in operation["steps"]}
    assert {step["state"] for step in operation["steps"]} == {"succeeded"}
    url = f"/api/v1/projects/{body['id']}"
    # result.data.database: connection details
    connection = bob.get(f"{url}/connection/").json()
    assert connection["host"] and 20000 <= connection["port"] <= 29999
    assert connection["database"] and connection["password"] in connection["uri"]
    # result.data.services: auth, realtime, storage endpoints
    services = {row["service"]: row for row in bob.get(f"{url}/services/").json()["results"]}
    assert {name: row["status"] for name, row in services.items()} == dict.fromkeys(PAYLOAD["services"], "active")
    assert {row["endpoint"] for row in services.values()} == {"wss://rt.example/x"}
    assert len(service.known) == 3
    # result.data.metadata: provisioning info
    project = bob.get(f"{url}/").json()
    assert (project["region"], project["status"], project["bootstrap_schema"]) == ("us-east-1", "running", True)
    assert (operation["attempt"], operation["created_by"]) == (1, "bob@example.test")
    assert operation["started_at"] <= operation["finished_at"]
    assert key_verify(clear=keys[1], project=body["id"], scope="write").valid
    # and a job that is queued twice makes one project, and shows no key again
    again = bob.post("/api/v1/projects/", PAYLOAD, format="json", headers=headers)
    assert again.status_code == 201 and again["Idempotency-Replayed"] == "true" and again.json()["id"] == body["id"]
    assert [key["key"] for key in again.json()["api_keys"]] == [None, None]
    assert Project.objects.count() == 1 and ApiKey.objects.count() == 2


def test_its_failure(bob: APIClient, service: Service) -> None:  # noqa: F811
    """`result.error`: a stable code, whether trying again may help, and nothing left."""
    service.answer = lambda handler, told: told["event"] == "project.register" and say(handler, 403, {})
    body = bob.post("/api/v1/projects/", PAYLOAD, format="json").json()
    drive(Operation.objects.get(pk=body["operation"]["id"]))
    operation = bob.get(f"{body['operation']['url']}?wait=5").json()
    assert operation["state"] == "failed"
    assert (operation["error"]["code"], operation["error"]["retryable"]) == ("service_refused", False)
    assert bob.get(f"/api/v1/projects/{body['id']}/connection/").status_code == 409


class TestResources:
    """`project_resources`: what exists, and nothing else."""

    def types(self, bob: APIClient, project: str) -> list[str]:
        body = bob.get(f"/api/v1/projects/{project}/resources/").json()
        assert body["count"] == len(body["results"])
        return sorted(row["type"] for row in body["results"])

    def test_they_appear_with_what_they_stand_for(self, bob: APIClient, service: Service) -> None:  # noqa: F811
        project = bob.post("/api/v1/projects/", PAYLOAD, format="json").json()["id"]
        assert self.types(bob, project) == ["api_keys", "api_keys"], "asked for, and not made yet"
        service.answer = lambda handler, told: told["service"] == "auth" and say(handler, 500, {})
        once(operation_of(Project.objects.get()))
        assert self.types(bob, project) == ["api_keys"] * 2 + ["databases"] + ["services"] * 2 + ["storage"]
        service.answer = lambda *_: False
        drive(operation_of(Project.objects.get()))
        assert self.types(bob, project) == ["api_keys"] * 2 + ["databases"] + ["services"] * 3 + ["storage"]
        body = bob.get(f"/api/v1/projects/{project}/resources/").json()
        assert body["quotas"] == {
            "databases": {"limit": 1, "used": 1}, "api_keys": {"limit": 10, "used": 2}, "services": {"limit": 3, "used": 3},
        }  # fmt: skip
        database = next(row for row in body["results"] if row["type"] == "databases")
        assert database["metadata"]["slot"] == "current"

    def test_they_vanish_with_it(self, bob: APIClient, service: Service) -> None:  # noqa: F811
        project = bob.post("/api/v1/projects/", PAYLOAD, format="json").json()["id"]
        drive(operation_of(Project.objects.get()))
        url = f"/api/v1/projects/{project}"
        key = bob.get(f"{url}/api-keys/").json()["results"][0]["id"]
        assert bob.delete(f"{url}/api-keys/{key}/").status_code in {200, 204}
        operation = bob.post(f"{url}/services/auth/", {"action": "disable"}, format="json").json()["operation"]["id"]
        drive(Operation.objects.get(pk=operation))
        assert self.types(bob, project) == ["api_keys", "databases", "services", "services", "storage"]

    def test_a_rollback_leaves_none_of_the_servers(self, bob: APIClient, service: Service) -> None:  # noqa: F811
        service.answer = lambda handler, told: told["service"] == "auth" and say(handler, 403, {})
        project = bob.post("/api/v1/projects/", PAYLOAD, format="json").json()["id"]
        operation = drive(operation_of(Project.objects.get()))
        assert states(operation)["database"] == "undone"
        assert self.types(bob, project) == ["api_keys", "api_keys"]
