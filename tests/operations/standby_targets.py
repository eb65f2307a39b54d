"""How many standbys are wanted, and those that are there."""

from __future__ import annotations

import pytest

from projects.models import (
    DatabaseServer,
    Operation,
    Plan,
    Region,
    StandbyTarget,
)
from projects.operations import janitor, reconciler, runner, standby_upkeep
from tests.operations.conftest import let_lease_expire, let_time_pass, states


@pytest.fixture(autouse=True)
def _looks_again(monkeypatch, settings):
    monkeypatch.setattr(standby_upkeep, "_looked", {})
    monkeypatch.setattr(standby_upkeep, "_images", {})
    settings.NOVASTACK_DATA_GRACE_SECONDS = 0


@pytest.fixture(name="target")
def _target(runtime):
    return make_target()


def make_target(count=1, **fields):
    fields.setdefault("region", Region.objects.get(slug="local"))
    return StandbyTarget.objects.create(
        engine="postgresql", version="18", plan=Plan.objects.get(slug="small"), count=count, **fields
    )


def live():
    return list(Operation.objects.live().filter(project_uuid=None).order_by("created_at"))


def settle(turns=12):
    """Ticks and workers, until nothing is left to do."""
    for _ in range(turns):
        standby_upkeep._looked.clear()
        standby_upkeep.keep()
        for operation in live():
            let_time_pass(operation)
            let_lease_expire(operation)
            runner.run(operation.pk)
        janitor.delete_due_data()
        reconciler.reconcile()
        if not live():
            return
    raise AssertionError([(o.kind, states(o)) for o in live()])


def spare():
    return DatabaseServer.objects.get(kind="standby")


@pytest.fixture(name="standby")
def _standby(target):
    settle()
    found = spare()
    assert found.standby_ready_at is not None
    return found


def server_of(project):
    return DatabaseServer.objects.get(project_uuid=project.pk)


def held(runtime):
    return {h.server_id for h in runtime.managed()}, {h.server_id for h in runtime.managed_data()}
