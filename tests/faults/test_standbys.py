"""Warm standbys on real servers: workers are killed while they prepare, claim and remove them; several want the last one."""

from __future__ import annotations

import threading
import time

import pytest
from django.db import connection

from projects import domain
from projects.models import DatabaseServer, Operation, OperationLock, Orphan, Plan, Project, StandbyTarget
from projects.operations import orphans, reconciler, runner, standby_upkeep
from tests.faults.conftest import VERSION, Site, everything

POINTS = [
    "prepare_standby:server:later:0.15", "prepare_standby:secure:inside:6", "prepare_standby:empty:later:0.05",
    "prepare_standby:limits:after",
    "provision:server:before", "provision:server:inside:6", "provision:server:inside:10", "provision:server:inside:14",
    "provision:server:after", "provision:database:later:0.02", "provision:login:before",
    "remove_standby:empty:after", "remove_standby:server:inside:8", "remove_standby:server:after",
    "remove_standby:rows:after",
]  # fmt: skip
ALWAYS = ["prepare_standby:server:later:0.15", "provision:server:inside:14", "remove_standby:server:after"]


@pytest.fixture(autouse=True)
def _looks_again(monkeypatch):
    monkeypatch.setattr(standby_upkeep, "_looked", {})
    monkeypatch.setattr(standby_upkeep, "_images", {})


def want(site: Site, count: int) -> StandbyTarget:
    return StandbyTarget.objects.update_or_create(
        region=site.region, engine=site.engine, version=VERSION, plan=Plan.objects.get(), defaults={"count": count}
    )[0]


def await_standbys(site: Site, count: int, seconds: float = 60) -> list[DatabaseServer]:
    """So many are ready and nobody works on any."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        rows = list(DatabaseServer.objects.filter(kind="standby"))
        ready = [row for row in rows if row.standby_ready_at and row.desired_state == "running"]
        if len(ready) == len(rows) == count and not Operation.objects.live().exists():
            return ready
        time.sleep(0.1)
    told = [(o.kind, list(o.steps.values_list("name", "state", "detail"))) for o in Operation.objects.live()]
    raise AssertionError(f"{len(ready)} of {count} standbys, {len(rows)} rows: {told}")


def check(site: Site) -> None:
    """What exists is what the rows say, and each of it runs."""
    rows = list(DatabaseServer.objects.all())
    reconciler._looked.clear()
    orphans.find(site.region, site.runtime, reconciler.Install.load())
    assert not Orphan.objects.filter(resolved_at=None).exists()
    names = sorted(row.handle.name for row in rows)
    assert sorted(h.name for h in site.runtime.managed()) == names
    assert sorted(h.name for h in site.runtime.managed_data()) == names
    assert not OperationLock.objects.exists()
    assert len({row.port for row in rows}) == len(rows)
    for project in Project.objects.all():
        server = DatabaseServer.objects.get(project_uuid=project.pk)
        project.endpoint.refresh_from_db()
        assert project.endpoint.port == server.port
        site.check_things(project)


def play(site: Site, point: str) -> None:
    kind = point.split(":")[0]
    want(site, 1)
    first = None
    if kind != "prepare_standby":
        site.worker()
        first = await_standbys(site, 1)[0]
        site.stop_workers()
    project = None
    if kind == "provision":
        project = site.create()
    elif kind == "remove_standby":
        want(site, 0)
    with site.fault("warm standbys", point=point):
        site.die_at(point)
        operation = Operation.objects.get(kind=kind) if kind != "prepare_standby" else Operation.objects.all()[0]
        claimed = project is not None and DatabaseServer.objects.get(project_uuid=project.pk).pk == first.pk
        if first is not None and kind == "provision":
            assert DatabaseServer.objects.filter(pk=first.pk, kind="standby").exists() is not claimed
        site.expire_lease(operation)
        site.worker()
        site.wait_ended(operation)
        assert operation.state == "succeeded", operation.error
        await_standbys(site, 0 if kind == "remove_standby" else 1)
        if project is not None:
            site.wait_status(project, "running")
            if claimed:
                assert DatabaseServer.objects.get(project_uuid=project.pk).pk == first.pk
        site.stop_workers()
        check(site)


@pytest.mark.process
@pytest.mark.parametrize("point", ALWAYS)
def test_a_killed_worker_leaves_a_standby_or_a_project_never_both(process_site, point):
    play(process_site, point)


@everything
@pytest.mark.process
@pytest.mark.parametrize("point", [p for p in POINTS if p not in ALWAYS])
def test_all_kill_points(process_site, point):
    play(process_site, point)


@pytest.mark.docker
@pytest.mark.parametrize("point", ["provision:server:inside:14"])
def test_a_killed_worker_on_docker(docker_site, point):
    play(docker_site, point)


@pytest.mark.docker
def test_three_want_the_last_one_and_a_container_is_removed_by_hand(docker_site):
    """One gets it, the others get new ones; and nobody fails for a standby that is gone."""
    site = docker_site
    want(site, 1)
    site.worker()
    standby = await_standbys(site, 1)[0]
    site.stop_workers()
    StandbyTarget.objects.update(count=0)
    projects = [site.create(name) for name in ("One", "Two", "Three")]

    def run(operation: Operation) -> None:
        try:
            runner.run(operation.pk)
        finally:
            connection.close()

    threads = [threading.Thread(target=run, args=(site.operation(p),)) for p in projects]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90)
    for project in projects:
        site.finish(site.operation(project))
        site.wait_status(project, "running", 5)
    owners = DatabaseServer.objects.filter(pk=standby.pk).values_list("project_uuid", flat=True)
    assert [p.pk for p in projects if p.pk in set(owners)], "one has it"
    check(site)

    want(site, 1)
    site.worker()
    lost = await_standbys(site, 1)[0]
    site.stop_workers()
    site.runtime.destroy(lost.handle, delete_data=True)
    last = site.create("Four")
    site.finish(site.operation(last))
    site.wait_status(last, "running", 5)
    assert DatabaseServer.objects.get(project_uuid=last.pk).pk != lost.pk
    site.worker()
    await_standbys(site, 1)
    site.stop_workers()
    check(site)


@pytest.mark.process
def test_one_that_died_is_replaced_and_its_data_goes_by_the_janitor(process_site):
    site = process_site
    want(site, 1)
    site.worker()
    first = await_standbys(site, 1)[0]
    site.runtime.stop(first.handle, grace_seconds=0)
    deadline = time.monotonic() + 60
    while DatabaseServer.objects.filter(pk=first.pk).exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    second = await_standbys(site, 1)[0]
    site.stop_workers()
    assert second.pk != first.pk
    check(site)
    seen = site.runtime.observe([second.handle])[second.handle]
    assert seen.state is domain.ServerState.RUNNING
