"""Pools on real servers: workers are killed while they prepare, start again, drain and remove one. The next worker ends
what was begun, exactly one server stands there, on its own data, or none."""

from __future__ import annotations

import time

import pytest
from django.db import transaction

from projects import registry
from projects.models import DatabaseServer, Operation, OperationLock, Orphan
from projects.operations import orphans, pool_removal, pool_upkeep, pools, reconciler, wiring
from tests.faults.conftest import VERSION, Site, everything

POINTS = [
    "prepare_pool:server:later:0.15", "prepare_pool:server:after", "prepare_pool:secure:inside:6", "prepare_pool:limits:after",
    "prepare_pool:open:before", "recover_pool:server:later:0.05", "recover_pool:server:after", "recover_pool:projects:inside:3",
    "drain_pool:move:before", "remove_pool:empty:after", "remove_pool:server:inside:8", "remove_pool:server:after",
    "remove_pool:rows:inside:4", "remove_pool:rows:after",
]  # fmt: skip
ALWAYS = ["prepare_pool:server:later:0.15", "recover_pool:server:after", "remove_pool:server:after"]


def begin(site: Site) -> DatabaseServer:
    with transaction.atomic():
        server = pools.pool_begin(
            region=site.region, engine=site.engine, version=VERSION, max_databases=4, memory_bytes=1 << 30,
            created_by_label="test",
        )  # fmt: skip
    assert server is not None
    return server


def ready(site: Site) -> DatabaseServer:
    server = begin(site)
    assert site.finish(Operation.objects.get(kind="prepare_pool")).state == "succeeded"
    server.refresh_from_db()
    return server


def gone(server: DatabaseServer) -> bool:
    return not DatabaseServer.objects.filter(pk=server.pk).exists()


def check(site: Site, *servers: DatabaseServer) -> None:
    """Those servers with their data run, and nothing else is there."""
    reconciler._looked.clear()
    orphans.find(site.region, site.runtime, reconciler.Install.load())
    assert not Orphan.objects.filter(resolved_at=None).exists()
    names = sorted(server.handle.name for server in servers)
    assert sorted(h.name for h in site.runtime.managed()) == names
    assert sorted(h.name for h in site.runtime.managed_data()) == names
    assert not OperationLock.objects.exists()
    for server in servers:
        with wiring.admin_session(registry.engine(server.engine), server) as admin:
            assert admin.system_identifier() == server.system_identifier
            assert admin.contents() == []


def play(site: Site, point: str) -> None:
    kind = point.split(":")[0]
    server = begin(site) if kind == "prepare_pool" else ready(site)
    if kind == "recover_pool":
        site.runtime.stop(server.handle, grace_seconds=0)
        with transaction.atomic():
            assert pools.recover_begin(server, why="stopped by the test") is not None
    elif kind in {"drain_pool", "remove_pool"}:
        with transaction.atomic():
            operation = pool_removal.drain_begin(server, created_by_label="test")
        if kind == "remove_pool":
            site.finish(operation)
            assert pool_upkeep.keep().removing == 1
    with site.fault("pools", point=point):
        site.die_at(point)
        operation = Operation.objects.get(kind=kind)
        site.expire_lease(operation)
        site.worker()
        site.wait_ended(operation)
        assert operation.state == "succeeded", operation.error
        deadline = time.monotonic() + 60
        while kind in {"drain_pool", "remove_pool"} and not gone(server):
            assert time.monotonic() < deadline, list(Operation.objects.live().values("kind", "error"))
            pool_upkeep.keep()
            time.sleep(0.2)
        site.stop_workers()
    if gone(server):
        check(site)
        return
    server.refresh_from_db()
    assert server.pool_ready_at and server.incarnation == 1
    check(site, server)


@pytest.mark.process
@pytest.mark.parametrize("point", ALWAYS)
def test_a_killed_worker_leaves_one_pool_or_none(process_site: Site, point: str) -> None:
    play(process_site, point)


@everything
@pytest.mark.process
@pytest.mark.parametrize("point", [p for p in POINTS if p not in ALWAYS])
def test_all_kill_points(process_site: Site, point: str) -> None:
    play(process_site, point)
