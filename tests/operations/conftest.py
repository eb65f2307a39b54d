"""Operations on the memory runtime and a PostgreSQL on paper: the real runner, rows, leases and locks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import SimpleNamespace
from uuid import UUID

import pytest
from django.db import transaction
from django.db.models import Max

from accounts.permissions import Principal
from novastack.common.clock import DatabaseNow
from projects import registry
from projects.models import Operation, Project
from projects.operations import base, reconciler, runner, wiring
from projects.operations.base import Definition, Step
from projects.operations.queue import operation_create
from projects.runtimes.memory import MemoryRuntime
from projects.services import ProjectRequest, project_create
from tests.factories import RegionFactory, Team, make_catalogue, make_project, make_team
from tests.operations.paper import PaperPostgreSQL


@pytest.fixture
def team(db: None) -> Team:
    return make_team()


@pytest.fixture
def alice(team: Team) -> Principal:
    return Principal.of(team.alice)


@pytest.fixture
def runtime(db: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[MemoryRuntime]:
    """The one memory runtime of the region `local`, and a PostgreSQL on paper in place of the real one."""
    monkeypatch.setattr(registry, "_built", {})
    monkeypatch.setattr(reconciler, "_looked", {})
    region, _ = make_catalogue()
    memory = wiring.runtime_of(region)
    assert isinstance(memory, MemoryRuntime)
    monkeypatch.setitem(registry.ENGINES, "postgresql", PaperPostgreSQL(memory))
    yield memory


@pytest.fixture
def paper(runtime: MemoryRuntime) -> PaperPostgreSQL:
    engine = registry.engine("postgresql")
    assert isinstance(engine, PaperPostgreSQL)
    return engine


@pytest.fixture
def shop(team: Team, runtime: MemoryRuntime) -> Project:
    """A project whose provisioning was recorded and not begun."""
    return make_project(team.alice, team.organization, running=False)


@pytest.fixture
def ready(shop: Project) -> Project:
    """A project that was really provisioned, on paper."""
    drive(operation_of(shop))
    shop.refresh_from_db()
    assert shop.status == "running", (shop.status, shop.status_detail)
    return shop


@pytest.fixture
def idle(team: Team, runtime: MemoryRuntime) -> Project:
    """A project that nobody works on, for operations of the tests' own kinds."""
    return make_project(team.alice, team.organization)


def create(team: Team, name: str) -> Project:
    RegionFactory()
    return project_create(
        principal=Principal.of(team.alice), organization=team.organization, request=ProjectRequest(name=name)
    )


def operation_of(project: Project | UUID) -> Operation:
    """The newest operation of the project."""
    key = project.pk if isinstance(project, Project) else project
    return Operation.objects.filter(project_uuid=key).order_by("-created_at")[0]


def let_time_pass(operation: Operation) -> None:
    """Waits and back-offs are over."""
    Operation.objects.filter(pk=operation.pk).update(next_attempt_at=None)


def let_lease_expire(operation: Operation) -> None:
    Operation.objects.filter(pk=operation.pk, lease_until__isnull=False).update(
        lease_until=DatabaseNow() - timedelta(seconds=1)
    )


def drive(operation: Operation, *, turns: int = 40) -> Operation:
    """Run it to its end as workers and ticks would, without their waiting."""
    for _ in range(turns):
        let_time_pass(operation)
        let_lease_expire(operation)
        runner.run(operation.pk)
        operation.refresh_from_db()
        if not operation.live:
            return operation
    raise AssertionError(f"{operation.kind} is stuck: {states(operation)}")


def once(operation: Operation) -> Operation:
    """One turn of one worker."""
    runner.run(operation.pk)
    operation.refresh_from_db()
    return operation


def states(operation: Operation) -> dict[str, str]:
    return {step.name: step.state for step in operation.steps.all()}


def seconds_until_next(operation: Operation) -> float:
    """From when the step was put down until `next_attempt_at`; both are the database's clock of one transaction, so that
    how long the test took until here does not count."""
    row = Operation.objects.annotate(put_down=Max("steps__updated_at")).get(pk=operation.pk)
    assert row.next_attempt_at is not None
    return (row.next_attempt_at - row.put_down).total_seconds()


def begin(project: Project, kind: str, **options: object) -> Operation:
    with transaction.atomic():
        return operation_create(project=project, kind=kind, **options)  # type: ignore[arg-type]


@pytest.fixture
def kind(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Definition]:
    """Register a kind for this test: `kind("greet", Step(...), on_give_up=…)`."""
    monkeypatch.setattr(base, "_definitions", dict(base._definitions))
    monkeypatch.setattr(base, "_latest", dict(base._latest))

    def make(name: str, *steps: Step, **options: object) -> Definition:
        values = {"on_give_up": base.OnGiveUp.UNDO, "while_running": None, **options}
        definition = Definition(kind=name, title=name.title(), steps=steps, **values)  # type: ignore[arg-type]
        base.register(definition)
        return definition

    return make


class Killed(BaseException):
    """What a SIGKILL is to the code: nothing catches it."""


@contextmanager
def killed_at(number: int) -> Iterator[SimpleNamespace]:
    """Kill the worker before its n-th statement (1 …); 0 only counts them."""
    from django.db import connection

    seen = SimpleNamespace(count=0, statement="")

    def watch(execute, sql, params, many, context):  # type: ignore[no-untyped-def]
        if not sql.lstrip().upper().startswith(("SAVEPOINT", "RELEASE", "ROLLBACK")):
            seen.count += 1
            if seen.count == number:
                seen.statement = sql
                raise Killed
        return execute(sql, params, many, context)

    with connection.execute_wrapper(watch):
        try:
            yield seen
        except Killed:
            if not number:
                raise
