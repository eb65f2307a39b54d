"""Operations over the API: list, wait, retry, cancel."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from django.db import connection
from rest_framework.test import APIClient

from novastack.common.clock import now
from projects.api import waiting as waiting_api
from projects.models import Operation, Project
from projects.operations.context import COMMITTED
from tests.factories import Team, api_client, make_project, make_team, make_token

OPERATIONS = "/api/v1/operations/"
FIELDS = {
    "id", "kind", "title", "state", "project", "project_name", "steps", "error", "result", "attempt", "next_attempt_at",
    "cancel_requested_at", "cancellable", "created_by", "created_at", "started_at", "finished_at", "url",
}  # fmt: skip


@pytest.fixture
def waiting(team: Team) -> Project:
    return make_project(team.bob, team.organization, running=False)


@pytest.fixture
def bob(team: Team) -> APIClient:
    return api_client(team.bob)


def operation_of(project: Project) -> Operation:
    return Operation.objects.get(project_uuid=project.pk)


class TestReading:
    def test_one(self, bob: APIClient, waiting: Project, team: Team) -> None:
        operation = operation_of(waiting)
        body = bob.get(f"{OPERATIONS}{operation.pk}").json()
        assert set(body) == FIELDS
        assert body["kind"] == "provision" and body["state"] == "queued" and body["project"] == str(waiting.pk)
        assert body["created_by"] == team.bob.email and body["cancellable"] is True
        assert set(body["steps"][0]) == {"name", "title", "state", "attempt", "started_at", "finished_at", "detail"}

    def test_lists_and_filters(self, bob: APIClient, waiting: Project, team: Team) -> None:
        make_project(team.charlie, team.elsewhere, "Theirs")
        ready = make_project(team.bob, team.organization, "Ready")
        assert bob.get(OPERATIONS).json()["count"] == 2
        assert bob.get(f"{OPERATIONS}?state=queued").json()["count"] == 1
        assert bob.get(f"{OPERATIONS}?project={ready.pk}&kind=provision&organization=acme").json()["count"] == 1
        assert bob.get(f"/api/v1/projects/{ready.pk}/operations/").json()["count"] == 1
        assert bob.get(f"{OPERATIONS}?search=ready").json()["count"] == 1

    @pytest.mark.parametrize(
        ("query", "status"),
        [("state=odd", 400), ("kind=odd", 400), ("project=1", 400), ("organization=elsewhere", 404),
         ("ordering=lease_owner", 400)],
    )  # fmt: skip
    def test_what_it_does_not_know(self, bob: APIClient, query: str, status: int) -> None:
        assert bob.get(f"{OPERATIONS}?{query}").status_code == status

    def test_they_outlive_their_project(self, bob: APIClient, waiting: Project) -> None:
        operation = operation_of(waiting)
        Operation.objects.update(project_uuid="01890000-0000-7000-8000-000000000000")
        assert bob.get(f"{OPERATIONS}{operation.pk}/").status_code == 200

    @pytest.mark.parametrize("size", [1, 40])
    def test_a_constant_number_of_queries(self, team: Team, size: int, django_assert_max_num_queries: Any) -> None:
        team.organization.max_projects = 100
        team.organization.max_memory_bytes = team.organization.max_storage_bytes = 2**50
        team.organization.save()
        for number in range(size):
            make_project(team.bob, team.organization, f"P{number}", running=False)
        _, clear = make_token(team.bob)
        client = APIClient(headers={"Authorization": f"Bearer {clear}"})
        with django_assert_max_num_queries(8):
            assert len(client.get(f"{OPERATIONS}?page_size=100").json()["results"]) == size


class TestRetryAndCancel:
    def test_cancel(self, bob: APIClient, waiting: Project) -> None:
        operation = operation_of(waiting)
        response = bob.post(f"{OPERATIONS}{operation.pk}/cancel", headers={"Idempotency-Key": "c"})
        assert response.status_code == 202, response.content
        body = response.json()
        assert body["id"] == body["operation"]["id"] == str(operation.pk) and body["cancel_requested_at"]
        again = bob.post(f"{OPERATIONS}{operation.pk}/cancel", headers={"Idempotency-Key": "c"})
        assert again.status_code == 202 and again["Idempotency-Replayed"] == "true"

    def test_what_has_ended_or_works_can_be_neither(self, bob: APIClient, waiting: Project, team: Team) -> None:
        assert bob.post(f"{OPERATIONS}{operation_of(waiting).pk}/retry/").json()["code"] == "action_not_allowed"
        ready = operation_of(make_project(team.bob, team.organization, "Ready"))
        for call in ("retry", "cancel"):
            response = bob.post(f"{OPERATIONS}{ready.pk}/{call}/")
            assert (response.status_code, response.json()["code"]) == (409, "action_not_allowed")

    def test_what_is_past_its_point_of_no_return_only_finishes(self, bob: APIClient, waiting: Project) -> None:
        """A worker would not hear it, and the caller would be told that it is undone."""
        operation = operation_of(waiting)
        url = f"{OPERATIONS}{operation.pk}/"
        assert bob.get(url).json()["cancellable"] is True
        step = operation.steps.first()
        assert step is not None
        step.data = {COMMITTED: True}
        step.save(update_fields=["data"])
        assert bob.get(url).json()["cancellable"] is False
        response = bob.post(f"{url}cancel/")
        assert (response.status_code, response.json()["code"]) == (409, "action_not_allowed")
        operation.refresh_from_db()
        assert operation.cancel_requested_at is None

    def test_a_waiting_one_goes_on_at_once(self, bob: APIClient, waiting: Project) -> None:
        operation = operation_of(waiting)
        Operation.objects.update(state="running", next_attempt_at=now())
        response = bob.post(f"{OPERATIONS}{operation.pk}/retry/", {})
        assert response.status_code == 202 and response.json()["next_attempt_at"] is None

    def test_roles_scopes_and_bodies(self, bob: APIClient, waiting: Project, team: Team) -> None:
        path = f"{OPERATIONS}{operation_of(waiting).pk}/cancel/"
        assert api_client(team.vera).post(path).status_code == 403
        assert api_client(team.charlie).post(path).status_code == 404
        assert api_client(team.bob, scopes=["read"]).post(path).status_code == 403
        assert bob.post(path, {"force": True}).status_code == 400


class TestWait:
    @pytest.mark.parametrize("wait", ["31", "-1", "x", "1.5", "%00"])
    def test_it_takes_0_to_30(self, bob: APIClient, waiting: Project, wait: str) -> None:
        assert bob.get(f"{OPERATIONS}{operation_of(waiting).pk}/?wait={wait}").status_code == 400

    def test_it_holds_the_answer_for_that_long(self, bob: APIClient, waiting: Project) -> None:
        begin = time.monotonic()
        body = bob.get(f"{OPERATIONS}{operation_of(waiting).pk}/?wait=1").json()
        assert body["state"] == "queued" and 0.9 < time.monotonic() - begin < 20

    def test_when_too_many_wait_it_answers_at_once(
        self, bob: APIClient, waiting: Project, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        full = threading.BoundedSemaphore(1)
        full.acquire()
        monkeypatch.setattr(waiting_api, "waiters", full)
        begin = time.monotonic()
        assert bob.get(f"{OPERATIONS}{operation_of(waiting).pk}/?wait=30").status_code == 200
        assert time.monotonic() - begin < 20

    @pytest.mark.django_db(transaction=True)
    def test_it_answers_soon_after_the_end_and_holds_no_connection(self, monkeypatch: pytest.MonkeyPatch) -> None:
        team = make_team()
        operations = [
            operation_of(make_project(team.bob, team.organization, name, running=False)).pk for name in ("One", "Two")
        ]
        held: list[tuple[float, bool]] = []
        original = threading.Event.wait

        def wait(event: threading.Event, timeout: float | None = None) -> bool:
            held.append((timeout or 0, connection.connection is not None))
            return original(event, timeout)

        def end_all() -> None:
            time.sleep(waiting_api.EAGER_SECONDS + 0.3)
            Operation.objects.update(state="failed", finished_at=now())
            connection.close()

        client = api_client(team.bob)
        monkeypatch.setattr(threading.Event, "wait", wait)
        ending = threading.Thread(target=end_all)
        ending.start()
        held.clear()
        begin = time.monotonic()
        body = client.get(f"{OPERATIONS}{operations[0]}/?wait=30").json()
        assert body["state"] == "failed" and time.monotonic() - begin < 25
        long = [connected for timeout, connected in held if timeout > waiting_api.EAGER_SECONDS]
        assert long == [False], "but for the first moment"
        assert client.get(f"{OPERATIONS}{operations[1]}/?wait=30").json()["state"] == "failed"
        ending.join()
        deadline = time.monotonic() + 60
        while waiting_api._watch._thread is not None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert waiting_api._watch._thread is None, "nobody waits, nothing watches"

    @pytest.mark.django_db(transaction=True)
    def test_a_control_database_that_ends_the_session_meanwhile_costs_the_waiting_only(self) -> None:
        team = make_team()
        pk = operation_of(make_project(team.bob, team.organization, "One", running=False)).pk
        client = api_client(team.bob)
        connection.ensure_connection()
        mine = connection.connection.info.backend_pid

        def end_it() -> None:
            time.sleep(0.2)
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_terminate_backend(%s)", [mine])
            connection.close()

        ending = threading.Thread(target=end_it)
        ending.start()
        answer = client.get(f"{OPERATIONS}{pk}/?wait=30")
        ending.join()
        assert answer.status_code == 200 and answer.json()["state"] == "queued"
