"""The main job on a Docker Swarm, and what its reconciler does about what people and machines do to it by hand."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import psycopg
import pytest

from projects.models import DatabaseServer, Operation, Project
from projects.operations import janitor, reconciler
from projects.runtimes.swarm import SwarmRuntime
from projects.services import project_purge
from tests.dockerd import Daemon, own_swarm
from tests.engines.journey import Journey
from tests.engines.test_main_path import EXTRAS
from tests.faults.conftest import Site, _fresh, make_site  # noqa: F401 - a fixture

pytestmark = pytest.mark.docker


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with own_swarm("novastack-postgresql:18", "novastack-mysql:9.7", bridge="nvsswarm1") as daemon:
        yield daemon


@contextlib.contextmanager
def swarm_site(daemon: Daemon) -> Iterator[Site]:
    with contextlib.contextmanager(make_site)("swarm") as site:
        site.region.endpoint_url, site.region.bind_address = daemon.url, "0.0.0.0"  # noqa: S104 - a Swarm's only way
        site.region.full_clean()
        site.region.save()
        yield site
        runtime = site.runtime
        site.clean_up()
        assert isinstance(runtime, SwarmRuntime)
        runtime.remove_install()


@pytest.mark.parametrize(("engine", "version"), [("postgresql", "18"), ("mysql", "9.7")])
@pytest.mark.usefixtures("_fresh")
def test_the_main_job(daemon: Daemon, engine: str, version: str, tmp_path: Path) -> None:
    with swarm_site(daemon) as site:
        Journey(site, engine, version, tmp_path).go(tls=True, extras=EXTRAS.get(engine, lambda _: None))
        assert leftovers(daemon) == []


def leftovers(daemon: Daemon) -> list[str]:
    """Services, secrets and records of data, and volumes, that a purged project left."""
    client: Any = docker.APIClient(base_url=daemon.url, version="auto")
    with contextlib.closing(client):
        found = [*client.services(), *client.secrets(), *client.configs()]
        names = [str(each["Spec"]["Name"]) for each in found]
        volumes = [str(each["Name"]) for each in client.volumes()["Volumes"] or []]
    return [name for name in [*names, *volumes] if not name.startswith("nvs-epoch-")]


@pytest.mark.usefixtures("_fresh")
def test_what_is_done_to_it_by_hand(daemon: Daemon) -> None:
    """Its task killed, its service removed, its node drained: seen, said, and brought back with all rows."""
    with swarm_site(daemon) as site:
        project = site.ready()
        server = DatabaseServer.objects.get(project_uuid=project.pk)
        client: Any = docker.APIClient(base_url=daemon.url, version="auto")
        label = {"label": f"com.docker.swarm.service.id={server.runtime_ref}", "status": "running"}
        (container,) = client.containers(filters=label)
        client.kill(container["Id"])
        converge(site, "running", project)

        server.refresh_from_db()
        client.remove_service(server.runtime_ref)
        reconciler.reconcile()
        server.refresh_from_db()
        assert server.observed_state == "absent"
        converge(site, "running", project)
        assert Operation.objects.filter(project_uuid=project.pk, kind="recover", state="succeeded").exists()
        site.check_exactly(project)

        node = client.info()["Swarm"]["NodeID"]
        daemon.cli("node", "update", "--availability", "drain", node)
        try:
            converge(site, "unreachable")
            project.refresh_from_db()
            assert project.status == "not_available"
            server.refresh_from_db()
            assert "drained" in server.observed_detail
        finally:
            daemon.cli("node", "update", "--availability", "active", node)
        converge(site, "running", project)

        operation = project_purge(principal=site.alice, project=project, confirm=project.slug)
        for _ in range(100):
            site.finish(operation, 0.01)
            janitor.delete_due_data()
            if not operation.live:
                break
        assert operation.state == "succeeded", operation.error
        assert leftovers(daemon) == []
        client.close()


def converge(site: Site, state: str, project: Project | None = None, seconds: float = 60) -> None:
    """Ticks of the reconciler, and what they record run here, until the only server is seen like that and nobody works, and
    the project's rows are all there."""
    deadline = time.monotonic() + seconds
    while True:
        reconciler.reconcile()
        for operation in Operation.objects.live():
            site.finish(operation, 20)
        server = DatabaseServer.objects.get()
        if server.observed_state == state and not Operation.objects.live().exists():
            with contextlib.suppress(psycopg.OperationalError):  # seen before it was noticed to be down
                if project is not None:
                    assert site.rows_of(project) == 1000
                return
        assert time.monotonic() < deadline, (server.observed_state, server.observed_detail)
        time.sleep(0.3)
