"""A pool of the memory runtime, and projects on it."""

from __future__ import annotations

import pytest
from django.db import transaction

from novastack.common.clock import now
from projects.models import (
    Database,
    DatabaseRole,
    DatabaseServer,
    Endpoint,
    Operation,
    Placement,
    Project,
)
from projects.operations import janitor, pool_removal, pool_upkeep, reconciler, runner
from tests.factories import make_project
from tests.operations.conftest import let_lease_expire, let_time_pass
from tests.operations.test_pools import make


@pytest.fixture(autouse=True)
def _fast(monkeypatch, settings):
    settings.NOVASTACK_DATA_GRACE_SECONDS = 0
    monkeypatch.setattr(reconciler, "_looked", {})
    monkeypatch.setattr(pool_removal, "_movers", [])


@pytest.fixture(name="pool")
def _pool(runtime):
    return make(max_databases=5, memory_bytes=1 << 30)


def live():
    return list(Operation.objects.live().filter(project_uuid=None).order_by("created_at"))


def settle(turns=15):
    """Ticks and workers, until nothing is left to do."""
    for _ in range(turns):
        reconciler._looked.clear()
        reconciler.reconcile()
        pool_upkeep.keep()
        for operation in live():
            let_time_pass(operation)
            let_lease_expire(operation)
            runner.run(operation.pk)
        janitor.delete_due_data()
        if not live() and not pool_upkeep.keep().removing:
            return
    raise AssertionError([(o.kind, o.error) for o in live()])


def settle_in(pool, team, name, paper=None, **fields):
    """A project that lives on the pool, as placing leaves it."""
    project = make_project(team.alice, team.organization, name=name, **fields)
    Project.objects.filter(pk=project.pk).update(placement=Placement.POOL, region=pool.region)
    old = DatabaseServer.objects.filter(project_uuid=project.pk).first()
    database = f"tenant_{str(project.pk).replace('-', '_')}"
    DatabaseRole.objects.filter(database__project=project).update(server=pool)
    Database.objects.filter(project=project).update(server=pool, name=database, created_in_engine_at=now())
    Endpoint.objects.filter(project=project).update(shared=True, port=pool.port, control_port=pool.port)
    if old is not None:
        old.delete()
    if paper is not None:
        held_ = paper.of(pool.control_endpoint)
        held_.databases.add(database)
        for role in DatabaseRole.objects.filter(database__project=project):
            if role.secret is not None:
                held_.passwords[role.name] = role.secret.open()
    project.refresh_from_db()
    return project


# --- drained ----------------------------------------------------------------------------------------------------------------
def drain(pool):
    with transaction.atomic():
        return pool_removal.drain_begin(pool, created_by_label="test")
