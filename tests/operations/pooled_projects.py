"""Projects on pools of the memory runtime: asked for, placed, and what was made for them."""

from __future__ import annotations

import pytest

from accounts.permissions import Principal
from projects.models import (
    Database,
    DatabaseServer,
    Operation,
)
from projects.operations import runner
from projects.services import (
    ProjectRequest,
    project_action,
    project_create,
)
from tests.operations.conftest import (
    drive,
    let_lease_expire,
    let_time_pass,
    states,
)


@pytest.fixture(autouse=True)
def _small(settings):
    settings.NOVASTACK_POOL_MAX_DATABASES = 3
    settings.NOVASTACK_POOL_FILL_PERCENT = 0
    settings.NOVASTACK_DATA_GRACE_SECONDS = 900


@pytest.fixture(autouse=True)
def _roomy(team):
    team.organization.max_projects = 500
    team.organization.max_storage_bytes = 1 << 50
    team.organization.save()


def ask(team, name="Shop", **fields):
    fields.setdefault("placement", "pool")
    return project_create(
        principal=Principal.of(team.alice), organization=team.organization, request=ProjectRequest(name=name, **fields)
    )


def settle(*, turns=60):
    """Workers until nothing is live."""
    for _ in range(turns):
        live = list(Operation.objects.live().order_by("created_at"))
        if not live:
            return
        for operation in live:
            let_time_pass(operation)
            let_lease_expire(operation)
            runner.run(operation.pk)
    raise AssertionError([(o.kind, states(o), o.error) for o in Operation.objects.live()])


def placed(team, name="Shop", **fields):
    project = ask(team, name, **fields)
    settle()
    project.refresh_from_db()
    assert project.status == "running", (project.status, project.status_detail)
    return project


def act(team, project, action):
    operation = project_action(principal=Principal.of(team.alice), project=project, action=action)
    drive(operation)
    project.refresh_from_db()
    return operation


def pool_of(project):
    return Database.objects.get(project=project, slot="current").server


def all_pools():
    return list(DatabaseServer.objects.filter(kind="pool").order_by("created_at"))


def row_of(project):
    return Database.objects.get(project=project, slot="current")


def paper_of(paper, project):
    return paper.of(pool_of(project).control_endpoint)
