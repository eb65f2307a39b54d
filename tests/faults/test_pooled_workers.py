"""A worker is killed before, inside and after each step of what is done to one project of a pool: it ends truthfully, nothing
is left or lost, and the neighbour has all that it had.

`NOVASTACK_FAULTS=all` tries every point; by default a sample that changes with the day.
"""

from __future__ import annotations

import datetime
import os
import random
from typing import Any

import pytest
from django.db import transaction

from projects.models import BlankDatabase, Database, DatabaseRole, DatabaseServer, Operation, OperationLock, Project
from projects.operations import base, pool_blanks, register_all
from projects.operations.queue import operation_create
from projects.services import project_action, project_delete, project_purge
from tests.faults.clients import ROWS, server_of
from tests.faults.conftest import ALL, Site
from tests.faults.test_pooled import refused, site  # noqa: F401 - a fixture

register_all()
WHEN = ("before", "inside:2", "inside:4", "later:0.02", "after")
NOT_ASKED = {"services", "api_keys", "copies", "schema"}  # the first two weren't wanted; a blank brought the tables
KINDS = ("provision", "stop", "start", "recover", "delete", "undelete", "purge")
WORST = (
    "provision:database:later:0.02",
    "provision:place:after",
    "purge:server:after",
    "purge:data:inside:2",
    "start:unlock:after",
)
SEED = os.environ.get("NOVASTACK_FAULTS_SEED", datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"))
POINTS = [
    f"{kind}:{step.name}:{when}"
    for kind in KINDS
    for step in base.latest_definition(kind, "pool").steps
    if step.name not in NOT_ASKED
    for when in WHEN
]
pytestmark = pytest.mark.timeout(200)


def chosen() -> list[str]:
    if ALL:
        return POINTS
    chance = random.Random(f"{SEED} pooled")
    return [chance.choice(WORST), *chance.sample(POINTS, 1)]


def placed(site: Site, name: str) -> Project:  # noqa: F811
    """Ready, with rows in it. A worker makes the pool, if there is none."""
    site.worker()
    project = site.create(name, placement="pool")
    site.wait_status(project, "running", 60)
    site.stop_workers()
    site.client.fill(project)
    return project


def begin(site: Site, kind: str, project: Project) -> Operation:  # noqa: F811
    if kind in {"start", "undelete"}:
        before = "stop" if kind == "start" else "delete"
        done = site.finish(begin(site, before, project))
        assert done.state == "succeeded", done.error
        project.refresh_from_db()
    if kind == "delete":
        return project_delete(principal=site.alice, project=project)
    if kind == "purge":
        return project_purge(principal=site.alice, project=project, confirm=project.slug)
    if kind == "recover":
        with transaction.atomic():
            return operation_create(project=project, kind="recover", created_by_label="test")
    return project_action(principal=site.alice, project=project, action=kind)


def check_server(site: Site, *projects: Project) -> None:  # noqa: F811
    """On the pool is what the rows say, and blanks."""
    rows = Database.objects.all()
    assert set(rows.values_list("project_id", flat=True)) == {project.pk for project in projects}
    names = {("database", name) for name in rows.values_list("name", flat=True)}
    names |= {("role", name) for name in DatabaseRole.objects.values_list("name", flat=True)}
    blanks = tuple(BlankDatabase.objects.values_list("name", flat=True))
    found = {(kind, name) for kind, name in site.client.things(projects[0]) if not name.startswith(blanks or ("-",))}
    assert found == names | site.client.platform
    assert DatabaseServer.objects.count() == 1


@pytest.mark.process
@pytest.mark.parametrize("point", chosen())
def test_a_killed_worker_and_a_project_of_a_pool(site: Site, settings: Any, point: str) -> None:  # noqa: F811
    kind, rest = point.split(":", 1)
    neighbour = placed(site, "Neighbour")
    settings.NOVASTACK_POOL_BLANKS = 1
    for _ in range(20):
        if pool_blanks.keep().made:
            break
    assert BlankDatabase.objects.filter(ready_at__isnull=False).count() == 1
    with site.fault(f"worker killed: {kind} on a pool", point=point) as run:
        if kind == "provision":
            project = site.create("Shop", placement="pool")
            operation = site.operation(project)
        else:
            project = placed(site, "Shop")
            operation = begin(site, kind, project)
        site.die_at(f"{kind}/pool:{rest}")
        spared = site.expire_lease(operation)
        run.recovering()
        site.worker()
        site.wait_ended(operation, 60)
        run.ended(spared=spared)
        assert operation.state == "succeeded", operation.error
        assert not OperationLock.objects.exists()
        if kind == "purge":
            site.stop_workers()
            assert not Project.objects.filter(pk=project.pk).exists()
            check_server(site, neighbour)
            run.lost_rows = 0  # it was to lose them
        else:
            wanted = {"stop": "stopped", "delete": "recycled"}.get(kind, "running")
            site.wait_status(project, wanted, 20)
            site.stop_workers()
            assert server_of(project) == server_of(neighbour)
            check_server(site, neighbour, project)
            if wanted != "running":
                assert refused(site, project)
                back = "undelete" if kind == "delete" else "start"
                site.finish(project_action(principal=site.alice, project=project, action=back))
            if kind == "provision":
                site.client.fill(project)
            run.lost_rows = ROWS - site.rows_of(project)
            assert run.lost_rows == 0
        assert site.rows_of(neighbour) == ROWS
