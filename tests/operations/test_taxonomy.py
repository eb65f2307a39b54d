"""Every failure of seed 001's taxonomy, provoked: its code, its schedule as the rows tell it, and how it ends.

The runner, the rows, the leases and the services' HTTP are real; the database server is on paper (real ones refuse in
tests/engines/test_taxonomy_servers.py). Nothing sleeps: each turn begins when the row says that it is due.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
from django.db import connection

from accounts.permissions import Principal
from novastack.common.clock import now
from projects import domain
from projects.models import ApiKey, Operation, Orphan, Project, ProjectService, Region, ServiceConnector, StepState
from projects.operations import base, doctor, provision
from projects.operations.base import SERVER_RETRY, RetryPolicy
from projects.runtimes.memory import MemoryRuntime
from projects.services import ProjectRequest, project_create
from tests.factories import RegionFactory, Team, UserFactory, api_client
from tests.operations.conftest import drive, let_time_pass, once, operation_of, seconds_until_next, states
from tests.operations.paper import PaperPostgreSQL
from tests.projects.test_services_around import Service, connect, say, service  # noqa: F401

AGAIN = base.OPERATION_RETRY_SECONDS


@dataclass
class Seen:
    """What an operation's rows said, turn by turn."""

    operation: Operation
    waits: list[int]

    def step(self, name: str) -> Any:
        return self.operation.steps.get(name=name)


def watch(operation: Operation, *, turns: int = 20) -> Seen:
    """Run it as it becomes due, and write down `next_attempt_at` less the moment each turn ended at."""
    waits: list[int] = []
    for _ in range(turns):
        operation = once(operation)
        if not operation.live:
            return Seen(operation, waits)
        waits.append(round(seconds_until_next(operation)))
        let_time_pass(operation)
    raise AssertionError(f"it does not end: {waits} {states(operation)}")


def schedule(policy: RetryPolicy) -> list[int]:
    """What a step that always fails leads to: its own tries, then all again, three times."""
    own = [round(policy.delay(n)) for n in range(1, policy.attempts)]
    return [*own, AGAIN, *own, AGAIN, *own]


@pytest.fixture
def asked(team: Team, runtime: MemoryRuntime) -> Project:
    """All of it: services, keys, bootstrap tables."""
    RegionFactory()
    return project_create(
        principal=Principal.of(team.alice), organization=team.organization,
        request=ProjectRequest(
            name="Shop", services=frozenset({"auth", "realtime", "storage"}), api_keys=2, api_key_prefix="nm"
        ),
    )  # fmt: skip


def undone(seen: Seen, runtime: MemoryRuntime, code: str, *, at: str, retryable: bool) -> None:
    """It ended as failed with that code at that step, and all before it was taken back."""
    operation = seen.operation
    assert operation.state == "failed"
    assert operation.error is not None
    assert (operation.error["code"], operation.error["retryable"]) == (code, retryable)
    assert states(operation)[at] == StepState.FAILED and seen.step(at).error_code == code
    began = [step for step in operation.steps.all() if step.started_at and step.name != at]
    assert {step.state for step in began} <= {StepState.UNDONE}
    assert not runtime.world.servers, "nothing runs any more"
    project = Project.objects.get(pk=operation.project_uuid)
    assert project.status == "failed" and project.failure == operation.error


def test_the_policies_are_those_of_the_design() -> None:
    found = {step.name: step.retry for step in provision.PROVISION.steps}
    policies = {
        name: (found[name].attempts, found[name].delay_seconds)
        for name in ("database", "schema", "services", "api_keys")
    }
    assert policies == {"database": (3, 10), "schema": (3, 5), "services": (2, 3), "api_keys": (2, 2)}
    assert [found["database"].delay(n) for n in range(1, 8)] == [10, 20, 40, 80, 160, 300, 300], "exponential, capped"
    assert (base.OPERATION_RETRY_SECONDS, base.OPERATION_ATTEMPTS) == (300, 3)


class TestTheEngine:
    @pytest.mark.parametrize(
        ("call", "step", "code"),
        [
            ("create_tenant", "database", "database_creation_failed"),
            ("bootstrap", "schema", "schema_creation_failed"),
        ],
    )
    def test_refuses(
        self, shop: Project, runtime: MemoryRuntime, paper: PaperPostgreSQL, call: str, step: str, code: str
    ) -> None:
        """DatabaseCreationError, SchemaCreationError."""
        paper.fails[call] = [domain.EngineError("source database is being accessed (55006)") for _ in range(99)]
        seen = watch(operation_of(shop))
        policy = next(s.retry for s in provision.PROVISION.steps if s.name == step)
        assert seen.waits == schedule(policy)
        assert (seen.operation.attempt, seen.step(step).attempt, seen.step(step).retries) == (3, 3, 8)
        assert len(paper.fails[call]) == 99 - 9, "nine tries in all"
        undone(seen, runtime, code, at=step, retryable=True)

    def test_is_cut_off(self, shop: Project, runtime: MemoryRuntime, paper: PaperPostgreSQL) -> None:
        """ProvisioningNetworkError: for the first two of its tries the server is started again as well."""
        paper.fails["create_tenant"] = [domain.ServerNotReady("connection refused") for _ in range(4)]
        seen = watch(operation_of(shop))
        assert seen.waits == [10, 20, AGAIN, 10]
        assert seen.operation.state == "succeeded" and seen.step("database").retries == 4

    def test_makes_a_step_too_slow(
        self, shop: Project, runtime: MemoryRuntime, paper: PaperPostgreSQL, monkeypatch: pytest.MonkeyPatch,
        kind: Callable[..., Any],
    ) -> None:  # fmt: skip
        """ProvisioningTimeoutError: by the step's own deadline."""
        steps = tuple(
            replace(step, deadline_seconds=0.2) if step.name == "secure" else step for step in provision.PROVISION.steps
        )
        base.register(replace(provision.PROVISION, steps=steps))
        harden = PaperPostgreSQL.probe

        def slow(self: PaperPostgreSQL, endpoint: Any, credentials: Any, **options: Any) -> None:
            harden(self, endpoint, credentials, **options)
            if Operation.objects.get().steps.get(name="secure").state == StepState.RUNNING:
                time.sleep(0.25)

        monkeypatch.setattr(PaperPostgreSQL, "probe", slow)
        seen = watch(operation_of(shop))
        assert seen.waits == schedule(base.DATABASE_RETRY)
        undone(seen, runtime, "deadline_exceeded", at="secure", retryable=True)


class TestTheRuntime:
    def test_is_out_of_reach(self, shop: Project, runtime: MemoryRuntime) -> None:
        """ProvisioningNetworkError: no attempt is used up, however long it takes."""
        runtime.unreachable = True
        operation = operation_of(shop)
        for _ in range(12):
            operation = once(operation)
            assert operation.live and round(seconds_until_next(operation)) == 5
            let_time_pass(operation)
        waiting = operation.steps.get(state=StepState.WAITING)
        assert (waiting.attempt, waiting.retries, operation.attempt) == (1, 0, 1)
        shop.refresh_from_db()
        assert shop.status == "not_available"
        runtime.unreachable = False
        Region.objects.update(reachable=True)
        assert drive(operation).state == "succeeded"

    def test_refuses(self, shop: Project, runtime: MemoryRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: Any, **__: Any) -> None:
            raise domain.NovaStackRuntimeError("the daemon said no")

        monkeypatch.setattr(runtime, "ensure", refuse)
        seen = watch(operation_of(shop))
        assert seen.waits == schedule(SERVER_RETRY)
        undone(seen, runtime, "runtime_error", at="server", retryable=True)


class TestTheServices:
    """ServiceRegistrationError: a real HTTP service that fails, hangs, lies or refuses."""

    @pytest.fixture(autouse=True)
    def _connected(self, service: Service, runtime: MemoryRuntime) -> None:  # noqa: F811
        connect(service, types=("auth", "realtime", "storage"))

    @pytest.mark.parametrize(
        ("code", "answer"),
        [
            ("service_failed", lambda handler, told: say(handler, 500, {"error": "db down"})),
            ("service_answer_invalid", lambda handler, told: say(handler, 200, {"ok": "trust me"})),
        ],
        ids=["500", "lies"],
    )
    def test_fails(self, service: Service, asked: Project, runtime: MemoryRuntime, code: str, answer: Any) -> None:  # noqa: F811
        """Only the one that failed is told again; those that confirmed are not, and are taken back in the end."""

        def one_of_them(handler: Any, told: Any) -> bool:
            return told["service"] == "realtime" and told["event"] == "project.register" and answer(handler, told)

        service.answer = one_of_them
        seen = watch(operation_of(asked))
        assert seen.waits == [3, AGAIN, 3, AGAIN, 3]
        undone(seen, runtime, code, at="services", retryable=True)
        told = [event for event in service.calls if event[0] == "project.register"]
        assert sum("realtime" in name for _, name in told) == 6
        assert sum("auth" in name for _, name in told) == sum("storage" in name for _, name in told) == 1
        assert seen.step("services").data["tries"] == {"auth": 1, "realtime": 6, "storage": 1}
        assert not service.known, "those that knew it were told to forget it"
        assert set(ProjectService.objects.values_list("status", flat=True)) == {"disabled"}

    def test_hangs(self, service: Service, asked: Project, runtime: MemoryRuntime) -> None:  # noqa: F811
        goes_on = threading.Event()
        service.answer = lambda *_: goes_on.wait(60)
        operation = once(operation_of(asked))
        assert operation.steps.get(name="services").error_code == "service_unreachable"
        assert round(seconds_until_next(operation)) == 3
        service.answer = lambda *_: False
        goes_on.set()
        assert drive(operation).state == "succeeded"

    def test_are_told_at_once(self, service: Service, asked: Project, runtime: MemoryRuntime) -> None:  # noqa: F811
        """Each answers only when all three were asked: told one after the other they would never."""
        ServiceConnector.objects.update(timeout_seconds=15)
        together = threading.Barrier(3)

        def wait_for_the_others(*_: Any) -> bool:
            together.wait(60)
            return False

        service.answer = wait_for_the_others
        operation = once(operation_of(asked))
        assert operation.state == "succeeded", operation.error
        assert operation.steps.get(name="services").data["tries"] == {"auth": 1, "realtime": 1, "storage": 1}

    def test_refuses(self, service: Service, asked: Project, runtime: MemoryRuntime) -> None:  # noqa: F811
        service.answer = lambda handler, told: told["event"] == "project.register" and say(handler, 403, {})
        seen = watch(operation_of(asked))
        assert seen.waits == [], "no use in asking again"
        undone(seen, runtime, "service_refused", at="services", retryable=False)


def test_keys_that_can_not_be_stored(team: Team, runtime: MemoryRuntime) -> None:
    """ApiKeyGenerationError: the control database refuses, by a constraint."""
    RegionFactory()
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE projects_apikey ADD CONSTRAINT never CHECK (activated_at IS NULL)")
    project = project_create(
        principal=Principal.of(team.alice), organization=team.organization,
        request=ProjectRequest(name="Shop", api_keys=2),
    )  # fmt: skip
    seen = watch(operation_of(project))
    assert seen.waits == [2, AGAIN, 2, AGAIN, 2]
    undone(seen, runtime, "api_key_generation_failed", at="api_keys", retryable=True)
    assert {key.state for key in ApiKey.objects.all()} == {"pending"}, "shown, and never valid"


class TestNoUseInTryingAgain:
    def test_the_region_lost_its_runtime(self, shop: Project, runtime: MemoryRuntime) -> None:
        """RegionUnavailableError."""
        Region.objects.update(enabled=False)
        seen = watch(operation_of(shop))
        assert seen.waits == []
        undone(seen, runtime, "region_unavailable", at="image", retryable=False)

    def test_the_project_is_going(self, shop: Project, runtime: MemoryRuntime) -> None:
        """ProjectNotFoundError, of an operation; over the API it is a 404."""
        Project.objects.update(purging_at=now())
        seen = watch(operation_of(shop))
        assert seen.waits == [] and seen.operation.error is not None
        assert (seen.operation.error["code"], seen.operation.error["retryable"]) == ("project_gone", False)

    def test_over_the_api(self, team: Team, shop: Project) -> None:
        """QuotaExceededError, RegionUnavailableError, ProjectNotFoundError: refused before anything is made."""
        bob = api_client(team.bob)
        team.organization.max_projects = 1
        team.organization.save()
        refused = bob.post("/api/v1/projects/", {"name": "More"})
        assert (refused.status_code, refused.json()["code"]) == (409, "quota_exceeded")
        Region.objects.create(slug="us-east-1", name="US East", runtime="")
        refused = bob.post("/api/v1/projects/", {"name": "More", "region": "us-east-1"})
        assert (refused.status_code, refused.json()["errors"][0]["field"]) == (400, "region")
        missing = bob.get("/api/v1/projects/550e8400-e29b-41d4-a716-446655440000/")
        assert (missing.status_code, missing.json()["code"]) == (404, "not_found")
        assert Operation.objects.count() == 1


class TestARollbackThatFails:
    @pytest.fixture
    def stuck(self, shop: Project, runtime: MemoryRuntime, paper: PaperPostgreSQL, monkeypatch: Any) -> Iterator[Seen]:
        paper.fails["create_tenant"] = [domain.DataExists("no")]

        def refuse(*_: Any, **__: Any) -> None:
            raise domain.NovaStackRuntimeError("device or resource busy")

        with monkeypatch.context() as patch:
            patch.setattr(runtime, "destroy", refuse)
            yield watch(operation_of(shop))

    def test_is_tried_again_then_left_as_an_orphan(self, stuck: Seen, shop: Project) -> None:
        assert stuck.waits == [2, 4, 8, 16, 32]
        assert stuck.operation.error is not None and stuck.operation.error["code"] == "data_exists"
        assert stuck.step("server").data["undo_failed"] == "runtime_error"
        orphan = Orphan.objects.get(kind="undo")
        assert orphan.name == f"provision:server:{stuck.operation.pk}" and orphan.region == shop.region
        assert "Shop" in orphan.note and "device or resource busy" in orphan.note

    def test_the_doctor_shows_it_until_it_is_settled(self, stuck: Seen, client: Any) -> None:
        def found() -> list[str]:
            return [finding.key for finding in doctor.examine().findings if finding.code == "left.undo"]

        assert found() == [str(stuck.operation.pk)]
        client.force_login(UserFactory(is_staff=True, is_superuser=True))
        sent = {"action": "settled", "_selected_action": [str(Orphan.objects.get(kind="undo").pk)]}
        assert client.post("/admin/projects/orphan/", sent).status_code == 302
        assert found() == []
