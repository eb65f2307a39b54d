"""What goes with moves, on real servers: services are told, plans change in place, stopped and deleted projects leave a
drained pool too, and a target without room leaves the source as it was."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.db import transaction

from projects.domain import Handle
from projects.models import (
    Database,
    DatabaseServer,
    DatabaseSlot,
    Endpoint,
    Operation,
    Project,
    ProjectService,
    Region,
    ServerKind,
)
from projects.operations import pool_removal, reconciler, runner, wiring
from projects.services import project_action, project_delete
from projects.services.moving import plan_change
from tests.factories import PlanFactory
from tests.faults.clients import role_of
from tests.faults.conftest import Site
from tests.moves.test_moves_docker import assert_as_before, begin, done, failed, process_region  # noqa: F401
from tests.moves.test_moves_pools import all_done
from tests.projects.test_services_around import Service, connect, service, statuses  # noqa: F401

pytestmark = pytest.mark.docker


def test_services_are_told_of_the_new_address(docker_site: Site, process_region: Region, service: Service) -> None:  # noqa: F811
    """Those of the old region forget the project, those of the new one learn its address; where the address stays nobody is
    told anything."""
    site, told = docker_site, []
    service.answer = lambda _, event: bool(told.append(event))  # kept, and then served as always
    connect(service, site.region, ("auth", "storage"))
    connect(service, process_region, ("auth",))
    project = site.ready(services=frozenset({"auth", "storage"}))
    assert statuses(project) == {"auth": "active", "storage": "active"}
    first = {event["service"]: event for event in told}
    told.clear()
    done(site, begin(project))
    assert told == []

    done(site, begin(project, region=process_region))
    assert [event["event"] for event in told] == ["project.deregister", "project.deregister"]
    site.finish(Operation.objects.get(kind="register_services"), 30)
    assert statuses(project) == {"auth": "active", "storage": "disabled"}
    (last,) = (event for event in told if event["event"] == "project.register")
    port = Endpoint.objects.get(project=project).port
    assert first["auth"]["project"]["database"]["port"] != last["project"]["database"]["port"] == port
    assert last["project"]["region"] == process_region.slug
    assert set(service.known) == {f"auth:{project.pk}"}
    row = ProjectService.objects.get(project=project, service_type="storage")
    assert row.reason


def connection_limit(site: Site, project: Project) -> int:
    with site.client.administrator(project) as session:
        found = session.execute("SELECT rolconnlimit FROM pg_roles WHERE rolname = %s", [role_of(project).name])
        return int(found.fetchone()[0])


def described(site: Site, project: Project) -> Any:
    return site.runtime.describe([DatabaseServer.objects.get(project_uuid=project.pk).handle])


def test_another_plan_in_place(docker_site: Site) -> None:
    """Memory, CPU and connections of the running server are the new plan's; what fails leaves the old plan in the rows."""
    site = docker_site
    project = site.ready()
    old, was = project.plan, connection_limit(site, project)
    large = PlanFactory(
        slug="large", name="Large", is_default=False, memory_bytes=1 << 30, cpus=1.5, connection_limit=was + 7,
        storage_bytes=old.storage_bytes * 2,
    )  # fmt: skip
    server = DatabaseServer.objects.get(project_uuid=project.pk)
    with site.login(project) as session:
        operation = plan_change(principal=site.alice, project=project, plan="large")
        assert operation is not None
        assert operation.kind == "change_plan"
        done(site, operation)
        assert session.execute("SELECT count(*) FROM orders").fetchone() == (1000,)  # the same session, the same server
    project.refresh_from_db()
    assert (project.plan, project.storage_bytes) == (large, large.storage_bytes)
    (seen,) = described(site, project).values()
    assert (seen.memory_bytes, seen.cpus) == (1 << 30, 1.5)
    assert connection_limit(site, project) == was + 7
    assert plan_change(principal=site.alice, project=project, plan="large") is None

    subprocess.run(["docker", "rm", "-f", server.handle.name], check=True, capture_output=True)
    operation = plan_change(principal=site.alice, project=project, plan=old.slug)
    assert operation is not None
    failed(site, operation)
    project.refresh_from_db()
    assert (project.plan, project.memory_bytes, project.storage_bytes) == (large, 1 << 30, large.storage_bytes)


def work_on(operation: Operation, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while operation.live:
        assert time.monotonic() < deadline, list(
            Operation.objects.live().values_list(
                "kind", "state", "error", "steps__name", "steps__state", "steps__detail"
            )
        )
        for pk in Operation.objects.live().order_by("created_at").values_list("pk", flat=True):
            Operation.objects.filter(pk=pk).update(next_attempt_at=None)
            runner.run(pk)
        reconciler.reconcile()
        operation.refresh_from_db()
        if (
            operation.kind == "drain_pool"
            and not Database.objects.filter(server_id=operation.server_uuid, slot=DatabaseSlot.CURRENT).exists()
        ):
            return


def test_stopped_and_deleted_projects_leave_a_drained_pool_too(docker_site: Site) -> None:
    site = docker_site
    projects = {}
    for name in ("runs", "stopped", "deleted"):
        project = site.create(name, placement="pool")
        all_done(site, Site.operation(project))
        site.client.fill(project)
        projects[name] = project
    site.finish(project_action(principal=site.alice, project=projects["stopped"], action="stop"))
    site.finish(project_delete(principal=site.alice, project=projects["deleted"]))
    pool = DatabaseServer.objects.get(kind=ServerKind.POOL)
    with transaction.atomic():
        drain = pool_removal.drain_begin(pool, created_by_label="test")
    assert drain is not None
    work_on(drain)
    for operation in Operation.objects.filter(kind="move"):
        all_done(site, operation)
    for name, wanted in (("runs", "running"), ("stopped", "stopped"), ("deleted", "recycled")):
        project = projects[name]
        project.refresh_from_db()
        assert project.status == wanted, name
        current = Database.objects.get(project=project, slot=DatabaseSlot.CURRENT)
        assert current.server_id != pool.pk
        if name != "runs":
            with pytest.raises(psycopg.OperationalError):
                site.rows_of(project)
    site.finish(project_action(principal=site.alice, project=projects["stopped"], action="start"))
    site.finish(project_action(principal=site.alice, project=projects["deleted"], action="undelete"))
    for project in projects.values():
        assert site.rows_of(project) == 1000


@pytest.fixture
def cramped_region(docker_site: Site) -> Iterator[Region]:
    """Servers as processes on a disk of 220 MiB."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    disk = Path(tempfile.mkdtemp(prefix="nvs-moves-disk-", dir="/tmp"))
    size = ["mount", "-t", "tmpfs", "-o", "size=220m,mode=0711", "novastack-test", str(disk)]
    subprocess.run(size, check=True, capture_output=True)
    region = Region.objects.create(
        slug="cramped",
        name="Cramped",
        runtime="process",
        port_start=9900,
        port_end=9909,
        config={"root": str(disk / "s")},
    )
    try:
        yield region
    finally:
        runtime = wiring.runtime_of(region)
        for handle in {*runtime.managed(), *runtime.managed_data()}:
            runtime.destroy(Handle(handle.server_id, handle.incarnation), delete_data=True)
        shutil.rmtree(disk / "s", ignore_errors=True)
        subprocess.run(["umount", str(disk)], check=True)
        disk.rmdir()


def test_a_target_that_is_full_leaves_the_source_as_it_was(docker_site: Site, cramped_region: Region) -> None:
    site = docker_site
    project = site.ready()
    with site.login(project) as session:
        session.execute("CREATE TABLE big AS SELECT i, repeat(md5(i::text), 30) AS t FROM generate_series(1, 250000) i")
        session.commit()
    server, address = DatabaseServer.objects.get(project_uuid=project.pk), Endpoint.objects.get(project=project)
    operation = failed(site, begin(project, region=cramped_region))
    assert operation.error is not None
    assert (operation.error["code"], operation.error["retryable"]) == ("target_full", False), operation.error
    assert_as_before(site, project, server, address)
    with site.login(project) as session:
        assert session.execute("SELECT count(*) FROM big").fetchone() == (250000,)
