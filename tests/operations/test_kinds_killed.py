"""Every kind of operation, when a worker is killed at any statement; and purges of what was half made."""

from __future__ import annotations

import contextlib
import os
import random
from dataclasses import replace

import pytest
from django.db import transaction

from projects.models import (
    Database,
    DatabaseRole,
    DatabaseServer,
    DataTombstone,
    Operation,
    OperationLock,
    Project,
)
from projects.operations import removal, runner
from projects.services import (
    project_action,
    project_delete,
    project_purge,
    project_update,
)
from tests.operations.conftest import (
    Killed,
    drive,
    killed_at,
    once,
    operation_of,
    states,
)
from tests.operations.left_behind import clear_out, exactly_one, logs_in, nothing_left

ALL = os.environ.get("NOVASTACK_FAULTS") == "all"


# --- a worker killed at every statement -------------------------------------------------------------------------------


def _stop(project, alice):
    return project_action(principal=alice, project=project, action="stop")


def _start(project, alice):
    drive(_stop(project, alice))
    return project_action(principal=alice, project=project, action="start")


def _undelete(project, alice):
    drive(project_delete(principal=alice, project=project))
    return project_action(principal=alice, project=project, action="undelete")


def _resize(project, alice):
    return project_update(principal=alice, project=project, changes={"limits": {"memory_bytes": 200 * 2**20}})[1]


KINDS = {
    "provision": (lambda p, a: operation_of(p), "running"),
    "stop": (_stop, "stopped"),
    "start": (_start, "running"),
    "restart": (lambda p, a: project_action(principal=a, project=p, action="restart"), "running"),
    "rotate_password": (lambda p, a: project_action(principal=a, project=p, action="rotate_password"), "running"),
    "resize": (_resize, "running"),
    "delete": (lambda p, a: project_delete(principal=a, project=p), "recycled"),
    "undelete": (_undelete, "running"),
    "purge": (lambda p, a: project_purge(principal=a, project=p, confirm=p.slug), None),
}


@pytest.mark.parametrize("kind_name", KINDS)
def test_killed_at_any_statement_it_ends_truthfully(request, kind_name, team, runtime, paper, alice):
    project = request.getfixturevalue("shop" if kind_name == "provision" else "ready")
    make, expected = KINDS[kind_name]
    world, data = (runtime.world.servers, runtime.world.volumes), dict(paper.data)
    kept = [dict(part) for part in world], {k: replace(v, passwords=dict(v.passwords)) for k, v in data.items()}
    specs = {name: replace(server) for name, server in runtime.world.servers.items()}

    def rehearse(number: int) -> int:
        """Everything is as before afterwards: rows by the transaction, the imaginary machine by hand."""
        count = 0
        try:
            with transaction.atomic():
                count = _play(project, make, expected, number, runtime, paper, alice)
                raise _Curtain
        except _Curtain:
            pass
        for part, was in zip(world, kept[0], strict=True):
            part.clear()
            part.update(was)
        for name, server in specs.items():
            runtime.world.servers[name] = replace(server)
        paper.data = {k: replace(v, passwords=dict(v.passwords), shut=set()) for k, v in kept[1].items()}
        project.refresh_from_db()
        return count

    total = rehearse(0)
    assert total > 10
    points = list(range(1, total + 1))
    if not ALL:
        points = sorted(random.Random(7).sample(points, min(12, total)))
    for number in points:
        rehearse(number)


class _Curtain(Exception):
    pass


def _play(project, make, expected, number, runtime, paper, alice) -> int:
    operation = make(project, alice)
    with killed_at(number) as seen:
        once(operation)
    if project.ready_at and expected is not None:
        project.refresh_from_db()
    assert bool(seen.statement) == bool(number)
    operation = Operation.objects.get(pk=operation.pk)
    if operation.kind == "purge":
        clear_out(operation)
        nothing_left(runtime, project.pk)
        assert operation.state == "succeeded", (number, seen.statement)
        return seen.count
    drive(operation)
    project.refresh_from_db()
    where = (number, seen.statement, states(operation))
    assert (operation.state, project.status) == ("succeeded", expected), where
    assert not OperationLock.objects.exists(), where
    exactly_one(runtime, project, "running" if expected == "running" else "stopped")
    if expected == "running":
        logs_in(paper, project)
        assert Database.objects.filter(project=project).count() == 1
        assert DatabaseRole.objects.filter(database__project=project).count() == 4
    return seen.count


def test_purge_begins_once(ready):
    with transaction.atomic():
        assert removal.purge_begin(ready, created_by_label="x") is not None
        assert removal.purge_begin(ready, created_by_label="x") is None


def test_a_purge_of_what_was_never_made_has_nothing_to_wait_for(shop, runtime, alice):
    runtime.unreachable = True
    operation = project_purge(principal=alice, project=shop, confirm=shop.slug)
    runner.run(Operation.objects.get(kind="provision").pk)  # makes way
    runner.run(operation.pk)  # nobody lets time pass, and no janitor comes
    operation.refresh_from_db()
    assert operation.state == "succeeded" and not Project.objects.exists() and not DataTombstone.objects.exists()


def test_a_purge_looks_for_what_a_killed_worker_may_have_made(shop, runtime, alice):
    """Made, and the worker died before it wrote that down: the rows say “never made”, the runtime knows better."""
    provision = operation_of(shop)
    with killed_at_ensure(runtime):
        runner.run(provision.pk)
    server = DatabaseServer.objects.get(project_uuid=shop.pk)
    assert not server.runtime_ref and server.initialised_at is None and server.handle.name in runtime.world.volumes
    Operation.objects.filter(pk=provision.pk).update(state="failed", lease_until=None)
    OperationLock.objects.all().delete()
    operation = project_purge(principal=alice, project=shop, confirm=shop.slug)
    runner.run(operation.pk)
    assert DataTombstone.objects.filter(server_uuid=server.pk, deleted_at=None).exists()
    operation.refresh_from_db()
    assert operation.live and states(operation)["data"] == "waiting"


@contextlib.contextmanager
def killed_at_ensure(runtime):
    real = runtime.ensure

    def ensure(spec, *, data):
        real(spec, data=data)
        raise Killed

    runtime.ensure = ensure
    try:
        with pytest.raises(Killed):
            yield
    finally:
        runtime.ensure = real
