"""A worker is killed before, inside and after each step. Within a minute of another one's being back the operation has
ended truthfully, and exactly the right things exist.

`NOVASTACK_FAULTS=all` tries every point; by default a sample that changes with the day, the same for all who run it then.
"""

from __future__ import annotations

import datetime
import os
import random
import signal
import time

import pytest

from projects.models import Database, DatabaseRole, DatabaseServer, Endpoint, Operation, OperationLock, Project
from projects.operations import base, register_all
from projects.services import project_action, project_delete, project_purge
from tests.faults.conftest import Site

register_all()
KINDS = ("provision", "stop", "start", "rotate_password", "delete", "purge")
POINTS = [
    f"{kind}:{step.name}:{when}"
    for kind in KINDS
    for step in base.latest_definition(kind).steps
    for when in ("before", "inside:4", "later:0.15", "after")
]
SEED = os.environ.get("NOVASTACK_FAULTS_SEED", datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"))
ALL = os.environ.get("NOVASTACK_FAULTS") == "all"


def sample(number: int) -> list[str]:
    """The points where a bad resume would hurt most, and some others."""
    if ALL:
        return POINTS
    always = ["provision:server:later:0.15", "start:server:after", "rotate_password:apply:after"][:number]
    return always + random.Random(SEED).sample([p for p in POINTS if p not in always], number - len(always))


def begin(site: Site, kind: str) -> tuple[Project, Operation]:
    if kind == "provision":
        project = site.create()
        return project, site.operation(project)
    project = site.ready()
    if kind == "start":
        site.finish(project_action(principal=site.alice, project=project, action="stop"))
    if kind == "delete":
        return project, project_delete(principal=site.alice, project=project)
    if kind == "purge":
        return project, project_purge(principal=site.alice, project=project, confirm=project.slug)
    return project, project_action(principal=site.alice, project=project, action=kind)


def check(site: Site, kind: str, project: Project, operation: Operation, port: int) -> None:
    assert operation.state == "succeeded", operation.error
    assert not OperationLock.objects.exists()
    if kind == "purge":
        for rows in (Project, Database, DatabaseRole, DatabaseServer):
            assert not rows.objects.exists()
        assert Endpoint.objects.get().reserved_until
        site.check_exactly()
        return
    site.check_exactly(project)
    project.refresh_from_db()
    expected = {"stop": "stopped", "delete": "recycled"}.get(kind, "running")
    site.wait_status(project, expected, 20)
    if expected != "running":
        site.stop_workers()
        undo = "start" if expected == "stopped" else "undelete"
        site.finish(project_action(principal=site.alice, project=project, action=undo))
    role = DatabaseRole.objects.get(database__project=project, kind="login")
    stem = f"nvs_{project.pk.hex[-12:]}"
    roles = ["novastack", role.name, *(f"{stem}_{end}" for end in ("owner", "group", "control"))]
    assert site.things_in(project) == {("role", r) for r in roles} | {
        ("database", "postgres"),
        ("database", role.database.name),
    }
    if kind == "provision":
        with site.login(project) as session:
            session.execute("CREATE TABLE orders (n int)")
    else:
        assert site.rows_of(project) == 1000, "its data is all there"
        assert Endpoint.objects.get(project=project).port == port, "and its address"


def play(site: Site, point: str) -> None:
    kind = point.split(":")[0]
    project, operation = begin(site, kind)
    port = project.endpoint.port
    site.die_at(point)
    site.expire_lease(operation)
    site.worker()
    check(site, kind, project, site.wait_ended(operation), port)


@pytest.mark.process
@pytest.mark.parametrize("point", sample(4))
def test_a_killed_worker_leaves_nothing_half_made(process_site, point):
    play(process_site, point)


@pytest.mark.docker
@pytest.mark.parametrize("point", sample(1))
def test_a_killed_worker_leaves_nothing_half_made_on_docker(docker_site, point):
    play(docker_site, point)


@pytest.mark.process
def test_the_promise_of_sixty_seconds_without_any_help(process_site):
    """Lease, tick and hint as they are: nobody expires anything by hand here."""
    project, operation = begin(process_site, "provision")
    process_site.die_at("provision:server:later:0.3")
    began = time.monotonic()
    process_site.worker()
    check(process_site, "provision", project, process_site.wait_ended(operation, 60), project.endpoint.port)
    assert time.monotonic() - began > 5, "the lease of the dead one was respected"


@pytest.mark.process
def test_a_worker_that_is_paused_and_wakes_up_late_does_nothing(process_site):
    """SIGSTOP in the middle of provisioning; another one ends it and the project is purged; then SIGCONT."""
    site = process_site
    project = site.create()
    operation = site.operation(project)
    sleeper = site.worker(reconciles=False)
    while not operation.steps.filter(name="server", state="running").exists():
        time.sleep(0.01)
    sleeper.send_signal(signal.SIGSTOP)
    site.expire_lease(operation)
    second = site.worker()
    site.wait_ended(operation, 60)
    assert operation.state == "succeeded"
    site.wait_ended(project_purge(principal=site.alice, project=project, confirm=project.slug), 60)
    before = list(operation.steps.values_list("name", "state", "updated_at"))
    sleeper.send_signal(signal.SIGCONT)
    time.sleep(4)
    assert sleeper.poll() is None
    assert list(operation.steps.values_list("name", "state", "updated_at")) == before
    while list(site.runtime.managed_data()):  # what it made when it woke up, it gave to the janitor
        time.sleep(0.2)
    second.kill()
    site.check_exactly()
