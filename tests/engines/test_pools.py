"""A pool of each engine on a real server: made through the API, killed, started again, looked at, drained and gone."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from django.db import transaction
from django.test.utils import override_settings

from projects import domain, registry
from projects.models import BlankDatabase, Database, DatabaseServer, Endpoint, Operation
from projects.operations import janitor, moving, pool_blanks, pool_upkeep, reconciler, retiring, watch
from projects.runtimes.docker import DockerRuntime
from tests.engines.journey import FIRST, LATER, Journey
from tests.engines.test_main_path import docker_site
from tests.factories import UserFactory, api_client
from tests.faults.conftest import VERSION, Site, _fresh, process_site  # noqa: F401 - fixtures

POOLS = "/api/v1/database/admin/pools/"


class PooledJourney(Journey):
    """The same user, on a server that is shared."""

    @property
    def server(self) -> DatabaseServer:
        return Database.objects.get(project=self.project, slot="current").server

    def purge_one(self) -> None:
        """Its database goes, the server stays."""
        answer = self.ask("delete", f"{self.url}?purge=true&confirm={self.project.slug}", status=202)
        operation = Operation.objects.get(pk=answer["operation"]["id"])
        for _ in range(5):
            self.place.finish(operation, 1)
            retiring.drop_due()
        assert operation.state == "succeeded", list(operation.steps.values("name", "state", "detail"))
        assert self.api.get(self.url).status_code == 404


class Operator:
    """Pools by the API, as an operator."""

    def __init__(self, site: Site) -> None:
        self.site, self.api = site, api_client(UserFactory(email="root@example.test", is_staff=True))

    def ask(self, method: str, url: str, body: dict[str, Any] | None = None, *, status: int = 200) -> dict[str, Any]:
        answer = getattr(self.api, method)(url, body or {}, format="json")
        assert answer.status_code == status, (method, url, answer.status_code, answer.content)
        return dict(answer.json())

    def create(self, **body: Any) -> str:
        answer = self.ask(
            "post", POOLS, {"region": "site", "max_databases": 4, "memory_bytes": 1 << 30, **body}, status=202
        )
        operation = self.site.finish(Operation.objects.get(pk=answer["operation"]["id"]), 120)
        assert operation.state == "succeeded", (operation.error, list(operation.steps.values("name", "detail")))
        url = f"{POOLS}{answer['id']}/"
        assert self.ask("get", url)["status"] == "ready"
        return url

    def settle(self, turns: int = 20) -> None:
        """Ticks and workers, until nothing is left to do."""
        for _ in range(turns):
            reconciler.reconcile()
            pool_upkeep.keep()
            live = list(Operation.objects.live().order_by("created_at"))
            for operation in live:
                self.site.finish(operation, 1)
            janitor.delete_due_data()
            retiring.drop_due()
            if not live and not DatabaseServer.objects.filter(draining_at__isnull=False).exists():
                return
        told = [(o.kind, o.error, list(o.steps.values_list("name", "state", "detail"))) for o in live]
        raise AssertionError(told)


def kill(site: Site, server: DatabaseServer) -> None:
    """The server is gone at once, and was not asked: SIGKILL, and a container is removed as well."""
    if isinstance(site.runtime, DockerRuntime):
        site.runtime._clients.get().remove_container(server.runtime_ref, force=True)
        return
    pid = int(server.runtime_ref.partition(":")[0])
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 90
    while site.runtime.observe([server.handle])[server.handle].state is domain.ServerState.RUNNING:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def whole_way(site: Site, engine: str, version: str, folder: Path, *, tls: bool) -> None:
    operator, journey = Operator(site), PooledJourney(site, engine, version, folder)
    url = operator.create(engine=engine, version=version)
    told = operator.ask("get", url)
    assert told["limits"]["connections_per_database"] == 20
    pool = DatabaseServer.objects.get()

    journey.create(placement="pool")
    assert journey.server.pk == pool.pk, "no other server was made"
    client = journey.client
    access = journey.connect(tls=tls)
    client.make(access)
    client.add(access, *FIRST)

    # --- looked at
    assert pool_upkeep.check_pools() == 1
    told = operator.ask("get", url)
    assert (told["health"], told["health_detail"], told["databases"]) == ("healthy", "", 1)
    assert told["size_bytes"] > 0
    assert told["members"][0]["project"] == str(journey.project.pk)
    assert watch.collect_usage() == 1
    assert operator.ask("get", url)["usage"]["memory_bytes"] or site.region.runtime == "process"

    # --- kept ready
    blanks = domain.Capability.BLANKS in registry.engine(engine).capabilities
    with override_settings(NOVASTACK_POOL_BLANKS=1):
        assert pool_blanks.keep().made == int(blanks)
    assert pool_upkeep.check_pools() == 1
    assert operator.ask("get", url)["health_detail"] == ""

    # --- killed
    pool.refresh_from_db()
    kill(site, pool)
    reconciler.reconcile()
    assert journey.status() == "unhealthy"
    assert operator.ask("get", url)["status"] == "unhealthy"
    operation = site.finish(Operation.objects.get(kind="recover_pool"), 120)
    assert operation.state == "succeeded", operation.error
    watch.check_health()
    assert (journey.status(), operator.ask("get", url)["health"]) == ("running", "healthy")
    assert client.words(journey.access()) == FIRST, "on its own data"
    client.add(journey.access(), LATER)

    # --- used up, drained, gone
    if blanks:
        used = BlankDatabase.objects.get().name
        other = PooledJourney(site, engine, version, folder)
        other.create(name="Blog", placement="pool")
        assert not BlankDatabase.objects.filter(name=used).exists()
        client.make(other.connect(tls=tls))
        other.purge_one()
    journey.purge_one()
    operator.ask("post", f"{url}drain/", status=202)
    operator.settle()
    assert not DatabaseServer.objects.exists()
    assert (list(site.runtime.managed()), list(site.runtime.managed_data())) == ([], [])
    assert Endpoint.objects.filter(port=pool.port, shared=False, reserved_until__isnull=False).count() == 1


def test_as_a_process(process_site: Site, tmp_path: Path) -> None:  # noqa: F811
    whole_way(process_site, "postgresql", VERSION, tmp_path, tls=False)


@pytest.mark.docker
@pytest.mark.parametrize(("engine", "version"), [("postgresql", "18"), ("mariadb", "11.8"), ("mysql", "9.7")])
@pytest.mark.usefixtures("_fresh")
def test_in_a_container(engine: str, version: str, tmp_path: Path) -> None:
    with docker_site(engine, version) as site:
        whole_way(site, engine, version, tmp_path, tls=True)


@pytest.mark.docker
@pytest.mark.usefixtures("_fresh")
def test_the_last_pool_is_drained_its_project_moves_and_it_goes(tmp_path: Path) -> None:
    """A new pool is made for those who have to move; the old one waits for the old copy, and goes with it."""
    with docker_site("postgresql", "18") as site:
        operator, journey = Operator(site), PooledJourney(site, "postgresql", "18", tmp_path)
        url = operator.create(engine="postgresql", version="18")
        old = DatabaseServer.objects.get()
        journey.create(placement="pool")
        access = journey.connect(tls=True)
        journey.client.make(access)
        journey.client.add(access, *FIRST)

        with override_settings(NOVASTACK_POOL_MEMORY=1 << 30, NOVASTACK_POOL_MAX_DATABASES=4):
            operator.ask("post", f"{url}drain/", status=202)
        for _ in range(30):
            reconciler.reconcile()
            for operation in Operation.objects.live().order_by("created_at"):
                site.finish(operation, 1)
            if journey.server.pk != old.pk and not Operation.objects.live().exclude(kind="drain_pool").exists():
                break
        assert Operation.objects.get(kind="move").state == "succeeded", Operation.objects.get(kind="move").error
        assert journey.server.pk != old.pk
        watch.check_health()
        assert journey.status() == "running"
        assert journey.client.words(journey.connect(tls=True)) == FIRST
        site.finish(Operation.objects.get(kind="drain_pool"), 1)
        told = operator.ask("get", url)
        assert (told["status"], told["databases"]) == ("draining", 1)
        assert "1 old or given-up database kept" in told["status_detail"], told

        copy = Database.objects.get(server=old)
        with transaction.atomic():
            assert moving.discard_begin(copy, created_by_label="test") is not None
        operator.settle(40)
        assert not DatabaseServer.objects.filter(pk=old.pk).exists()
        assert [h.server_id for h in site.runtime.managed()] == [str(journey.server.pk)]
        assert journey.client.words(journey.access()) == FIRST
