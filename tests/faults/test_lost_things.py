"""Servers, data, ports and connections that go away: said truthfully, and made good where that loses nothing."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import threading
import time
from pathlib import Path

import psycopg
import pytest
from django.db import connection

from projects.models import BlockedPort, DatabaseServer, Endpoint, Operation, OperationLock, Project
from projects.operations import base
from projects.runtimes.process import ProcessRuntime
from projects.services import project_action
from tests.faults.conftest import Site

pytestmark = pytest.mark.process


def folder_of(site: Site, project: Project) -> Path:
    runtime = site.runtime
    assert isinstance(runtime, ProcessRuntime)
    return runtime.root / "servers" / DatabaseServer.objects.get(project_uuid=project.pk).handle.name


def kill_server(project: Project) -> None:
    os.kill(int(DatabaseServer.objects.get(project_uuid=project.pk).runtime_ref.split(":")[0]), signal.SIGKILL)


def test_a_killed_server_comes_back_by_itself_with_its_data(process_site):
    project = process_site.ready()
    process_site.worker()
    with process_site.fault("server killed") as run:
        kill_server(project)
        run.recovering()
        deadline = time.monotonic() + 60
        while not Operation.objects.filter(kind="recover").exists():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process_site.wait_ended(Operation.objects.get(kind="recover"))
        process_site.wait_status(project, "running")
        run.ended()
        assert process_site.rows_of(project) == 1000
        run.lost_rows = 0
        process_site.check_exactly(project)


def test_data_that_was_removed_is_missing_and_never_made_anew(process_site):
    site = process_site
    project = site.ready()
    with site.fault("server and its data removed by hand") as run:
        kill_server(project)
        time.sleep(1)
        shutil.rmtree(folder_of(site, project))
        site.worker()
        run.recovering()
        site.wait_status(project, "failed")
        run.ended()
        assert project.failure["code"] == "data_missing"
        time.sleep(3)
        assert not folder_of(site, project).exists(), "no new, empty server in its place"
        assert Operation.objects.filter(kind="recover").count() == 1
        site.finish(project_action(principal=site.alice, project=project, action="start"))
        project.refresh_from_db()
        assert project.failure["code"] == "data_missing"
        assert not folder_of(site, project).exists()


def test_a_port_of_somebody_else_is_marked_and_the_next_one_taken(process_site):
    site = process_site
    with site.fault("host port taken before provisioning") as run, listening(site.region.port_start):
        run.recovering()
        project = site.ready()
        run.ended()
        first = site.region.port_start
        assert Endpoint.objects.get(project=project).port != first
        assert BlockedPort.objects.filter(port=first).exists()
        assert site.rows_of(project) == 1000


def listening(port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen()
    return listener


@pytest.mark.parametrize("step", ["server", "secure", "database"])
def test_a_lost_connection_to_the_control_database_is_resumed(process_site, step, monkeypatch):
    """Its backend is ended in the middle of a step, right after the side effect."""
    site = process_site
    definition = base.latest_definition("provision")
    cut = []
    database = connection.settings_dict

    def cutting(run):
        def wrapped(ctx):
            if not cut:
                cut.append(connection.connection.info.backend_pid)
                threading.Timer(0.02, end_backend).start()
                time.sleep(0.2)
            run(ctx)

        return wrapped

    def end_backend() -> None:
        with psycopg.connect(
            host=database["HOST"], port=database["PORT"], user=database["USER"], password=database["PASSWORD"],
            dbname=database["NAME"], autocommit=True,
        ) as other:  # fmt: skip
            other.execute("SELECT pg_terminate_backend(%s)", [cut[0]])

    steps = tuple(base.replace(s, run=cutting(s.run)) if s.name == step else s for s in definition.steps)
    monkeypatch.setitem(base._definitions, ("provision", definition.version), base.replace(definition, steps=steps))
    project = site.create()
    operation = site.operation(project)
    from projects.operations import runner

    with site.fault("control database drops a worker's connection", point=step) as run:
        assert runner.run(operation.pk)
        operation.refresh_from_db()
        assert operation.live
        assert operation.lease_until is not None
        site.expire_lease(operation)
        run.recovering()
        assert site.finish(operation).state == "succeeded"
        run.ended()
        assert operation.steps.get(name=step).attempt == 1
        assert operation.attempt == 1
        with site.login(project):
            pass
        site.check_exactly(project)


def test_many_at_once_with_several_workers(process_site):
    """20 with NOVASTACK_FAULTS=all, or on request; 6 else."""
    site = process_site
    number = int(
        os.environ.get("NOVASTACK_FAULTS_CREATES", "20" if os.environ.get("NOVASTACK_FAULTS") == "all" else "6")
    )
    for n in range(3):
        site.worker(reconciles=n == 0)
    errors: list[Exception] = []

    def create(n: int) -> None:
        try:
            site.create(f"Shop {n}")
        except Exception as error:
            errors.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=create, args=(n,)) for n in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not errors
    for operation in Operation.objects.all():
        site.wait_ended(operation, 240)
        assert operation.state == "succeeded", operation.error
    projects = list(Project.objects.all())
    assert len(projects) == number
    for project in projects:
        site.wait_status(project, "running")
        with site.login(project):
            pass
    ports = list(Endpoint.objects.values_list("port", flat=True))
    assert len(set(ports)) == number
    site.check_exactly(*projects)
    assert not OperationLock.objects.exists()
