"""Many at once, on real transactions: quotas, ports, names, locks, and no deadlock between those who meet."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.db import connections

from accounts.models import QuotaDefaults
from accounts.permissions import Principal
from novastack.common.errors import NameTaken, OperationInProgress, Problem, QuotaExceeded
from projects import registry
from projects.models import Database, Endpoint, Operation, OperationLock, Plan, Project, ProjectService, Region
from projects.operations import runner, wiring
from projects.runtimes.memory import MemoryRuntime
from projects.services import (
    ProjectRequest,
    key_create,
    project_action,
    project_create,
    project_delete,
    project_move,
    project_update,
    usage_of,
)
from projects.services.moving import plan_change
from projects.services.project_services import service_action
from tests.factories import PlanFactory, Team, api_client, make_catalogue, make_project, make_team
from tests.faults import ledger
from tests.operations.conftest import drive, operation_of
from tests.operations.paper import PaperPostgreSQL

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def team(transactional_db: None) -> Team:
    return make_team()


@pytest.fixture
def runtime(transactional_db: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[MemoryRuntime]:
    monkeypatch.setattr(registry, "_built", {})
    region, _ = make_catalogue()
    memory = wiring.runtime_of(region)
    assert isinstance(memory, MemoryRuntime)
    monkeypatch.setitem(registry.ENGINES, "postgresql", PaperPostgreSQL(memory))
    yield memory


def at_once(*calls: Callable[[], Any]) -> list[Any]:
    """Start all at the same moment; returns results and errors, in order. Any that hangs fails the test."""
    gate = threading.Barrier(len(calls))

    def go(call: Callable[[], Any]) -> Any:
        try:
            gate.wait(60)
            return call()
        except Exception as error:
            return error
        finally:
            connections.close_all()

    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result(60) for future in [pool.submit(go, call) for call in calls]]


def maker(team: Team, name: str) -> Callable[[], Project]:
    return lambda: project_create(
        principal=Principal.of(team.alice), organization=team.organization, request=ProjectRequest(name=name)
    )


def test_a_quota_holds_under_parallel_creates(team, runtime):
    team.organization.max_projects = 3
    team.organization.save()
    results = at_once(*[maker(team, f"P{n}") for n in range(8)])
    assert Counter(type(r) for r in results) == {Project: 3, QuotaExceeded: 5}


@pytest.mark.parametrize("field", ["max_memory_bytes", "max_storage_bytes"])
def test_bytes_hold_under_parallel_creates(team, runtime, field):
    """The install's defaults count as an organization's own number does."""
    plan = Plan.objects.get()
    size = plan.memory_bytes if field == "max_memory_bytes" else plan.storage_bytes
    QuotaDefaults.objects.update_or_create(id=1, defaults={field: 3 * size + 1})
    results = at_once(*[maker(team, f"P{n}") for n in range(6)])
    assert Counter(type(r) for r in results) == {Project: 3, QuotaExceeded: 3}
    name = field.removeprefix("max_")
    assert usage_of(team.organization)[name] == {"limit": 3 * size + 1, "used": 3 * size}


def test_keys_hold_under_parallel_creates(team, runtime):
    project = make_project(team.alice, team.organization)
    Plan.objects.update(max_api_keys=4)

    def make() -> Any:
        return key_create(principal=Principal.of(team.alice), project=project, name="k")

    results = at_once(*[make for _ in range(8)])
    assert Counter(type(r) for r in results) == {tuple: 4, QuotaExceeded: 4}


def test_services_hold_under_parallel_enables(team, runtime):
    """Each is an operation of its own: one at a time, and never more than the plan has."""
    project = make_project(team.alice, team.organization)
    Plan.objects.update(max_services=1)
    ProjectService.objects.create(project=project, service_type="auth", status="active")

    def enable(name: str) -> Callable[[], Any]:
        return lambda: service_action(
            principal=Principal.of(team.alice), project=project, service=name, action="enable"
        )

    results = at_once(enable("realtime"), enable("storage"))
    assert [type(r) for r in results] == [QuotaExceeded, QuotaExceeded]


def test_ports_are_given_once(team, runtime):
    results = at_once(*[maker(team, f"P{n}") for n in range(8)])
    assert all(isinstance(r, Project) for r in results), results
    assert sorted(Endpoint.objects.values_list("port", flat=True)) == list(range(20000, 20008))


def test_the_last_port_goes_to_one(team, runtime):
    Region.objects.update(port_end=20001)
    results = at_once(*[maker(team, f"P{n}") for n in range(4)])
    refused = [r for r in results if not isinstance(r, Project)]
    assert [r.code for r in refused] == ["no_free_port"] * 2
    assert Project.objects.count() == 2


def test_a_hundred_posts_with_one_key_make_one_project(team, runtime):
    headers = {"Idempotency-Key": "one"}

    def post() -> Any:
        return api_client(team.alice).post("/api/v1/projects/", {"name": "Once"}, format="json", headers=headers)

    with ledger.fault("100 parallel POSTs with one Idempotency-Key", engine="postgresql", runtime="memory") as run:
        run.recovering()
        results = at_once(*[post for _ in range(100)])
        answers = Counter(r.status_code for r in results)
        assert set(answers) <= {201, 409, 429}, results
        assert {r.json()["code"] for r in results if r.status_code == 409} <= {"conflict"}
        run.orphans = Project.objects.count() - 1
        assert Project.objects.count() == Operation.objects.count() == Endpoint.objects.count() == 1
        run.ended()
    replay = post()
    assert replay.status_code == 201 and replay["Idempotency-Replayed"] == "true"
    assert {r.json()["id"] for r in results if r.status_code == 201} == {replay.json()["id"]}


@pytest.mark.parametrize("name", ["Shop", "École", "İstanbul", "ẞtraße"])
def test_a_name_goes_to_one(team, runtime, name):
    results = at_once(*[maker(team, name) for _ in range(4)])
    assert Counter(type(r) for r in results) == {Project: 1, NameTaken: 3}, results


def test_slugs_differ_when_names_only_look_alike(team, runtime):
    results = at_once(maker(team, "My shop"), maker(team, "My-shop"), maker(team, "My  shop!"))
    assert sorted(r.slug for r in results) == ["my-shop", "my-shop-2", "my-shop-3"]


def test_of_many_actions_at_once_one_is_recorded(team, runtime):
    project = make_project(team.alice, team.organization)
    alice = Principal.of(team.alice)
    actions = ["stop", "restart", "rotate_password", "stop"]
    results = at_once(*[
        lambda a=a: project_action(principal=alice, project=project, action=a) for a in actions
    ])  # fmt: skip
    assert sum(isinstance(r, Operation) for r in results) == 1, results
    assert all(isinstance(r, Operation | Problem) for r in results), results
    assert OperationLock.objects.filter(granted=True).count() == 1


def test_of_two_moves_at_once_one_is_made(team, runtime):
    """And of a move beside a change of plan, a stop and a deletion: one begins, the others are told, but for the deletion,
    which is always accepted. Whatever wins, the rows say what holds."""
    alice = Principal.of(team.alice)
    big = PlanFactory(slug="big", name="Big", is_default=False, memory_bytes=1 << 30)
    for turn in range(4):
        project = make_project(team.alice, team.organization, f"Twice {turn}")
        address = Endpoint.objects.values_list("host", "port").get(project=project)
        results = at_once(*[lambda p=project: project_move(principal=alice, project=p, target={})] * 4)
        assert Counter(type(r) for r in results) == {Operation: 1, OperationInProgress: 3}, results
        assert Operation.objects.filter(project_uuid=project.pk, kind="move").count() == 1
        assert Database.objects.filter(project=project).count() == 1, "nothing is made before a worker is at it"
        assert Endpoint.objects.values_list("host", "port").get(project=project) == address

        project = make_project(team.alice, team.organization, f"Mixed {turn}")
        old = project.plan_id
        results = at_once(
            lambda p=project: project_move(principal=alice, project=p, target={}),
            lambda p=project: plan_change(principal=alice, project=p, plan="big"),
            lambda p=project: project_action(principal=alice, project=p, action="stop"),
            lambda p=project: project_delete(principal=alice, project=p),
        )
        assert all(isinstance(r, Operation | Problem) for r in results), results
        assert isinstance(results[3], Operation), "a deletion is always accepted"
        assert sum(isinstance(r, Operation) for r in results[:3]) <= 1, results
        project.refresh_from_db()
        assert project.plan_id == (big.pk if isinstance(results[1], Operation) else old)
        exclusive = OperationLock.objects.filter(subject=f"project:{project.pk}", granted=True, mode="exclusive")
        assert exclusive.count() == 1


def test_who_meets_a_change_of_plan_gets_an_answer(team, runtime):
    """Each of these waits for the project's row while its plan becomes another one."""
    alice = Principal.of(team.alice)
    plans = [
        PlanFactory(slug=f"plan-{n}", name=f"Plan {n}", is_default=False, memory_bytes=(2 + n) << 28) for n in range(2)
    ]
    for turn in range(5):
        project = make_project(team.alice, team.organization, f"Shop {turn}")
        results = at_once(
            lambda p=project, t=turn: plan_change(principal=alice, project=p, plan=plans[t % 2].slug),
            lambda p=project: project_update(principal=alice, project=p, changes={"description": "x"}),
            lambda p=project: project_update(principal=alice, project=p, changes={"limits": {"memory_bytes": 3 << 28}}),
            lambda p=project: key_create(principal=alice, project=p, name="k"),
            lambda p=project: service_action(principal=alice, project=p, service="auth", action="enable"),
        )
        assert all(not isinstance(r, Exception) or isinstance(r, Problem) for r in results), results
        assert not isinstance(results[1], Exception), "a description never stands in the way"
        assert not isinstance(results[3], Exception), "nor does a key"
        assert Operation.objects.live().filter(project_uuid=project.pk).count() <= 1


def test_many_workers_get_one_lease(team, runtime):
    project = maker(team, "Shop")()
    operation = operation_of(project)
    results = at_once(*[lambda: runner.run(operation.pk) for _ in range(6)])
    assert results.count(True) == 1
    operation.refresh_from_db()
    assert operation.state == "succeeded"
    assert operation.fence == 1


def test_people_and_workers_who_meet_do_not_deadlock(team, runtime):
    """A worker ends an operation while its project is deleted, changed, and asked for: the database would end one of two
    that wait for each other, and somebody would get a 500."""
    alice = Principal.of(team.alice)
    for turn in range(6):
        project = maker(team, f"Meet {turn}")()
        provision = operation_of(project)
        results = at_once(
            lambda p=provision: runner.run(p.pk),
            lambda p=project: project_update(principal=alice, project=p, changes={"description": "x"}),
            lambda p=project: project_delete(principal=alice, project=p),
            lambda p=project: project_delete(principal=alice, project=p),
        )
        assert all(not isinstance(r, Exception) or isinstance(r, Problem) for r in results), results
        for operation in Operation.objects.filter(project_uuid=project.pk).order_by("created_at"):
            drive(operation)
        project.refresh_from_db()
        assert project.status == "recycled"
        assert not OperationLock.objects.exists()


def test_undelete_and_change_at_once_do_not_deadlock(team, runtime):
    alice = Principal.of(team.alice)
    for turn in range(4):
        project = maker(team, f"Back {turn}")()
        drive(operation_of(project))
        drive(project_delete(principal=alice, project=project))
        results = at_once(
            lambda p=project: project_action(principal=alice, project=p, action="undelete"),
            lambda p=project, t=turn: project_update(principal=alice, project=p, changes={"name": f"New {t}"}),
            lambda p=project: project_update(principal=alice, project=p, changes={"description": "y"}),
        )
        assert all(not isinstance(r, Exception) or isinstance(r, Problem) for r in results), results
        drive(operation_of(project))
