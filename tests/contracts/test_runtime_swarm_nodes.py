"""A Swarm of two nodes, each an engine of its own: where servers go, and what is had of them from afar."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Iterator
from typing import Any

import docker
import docker.errors
import pytest

from projects.domain import Command, Limits, NotReachableHere, NovaStackRuntimeError, RuntimeEndpoint, ServerState
from projects.runtimes import docker_spec
from projects.runtimes.swarm import SwarmRuntime
from tests.contracts.runtime_contract import ENGINE, MIB, RuntimeContract, spec_maker
from tests.dockerd import Daemon, free_tcp_port, own_daemon, own_loopback, own_swarm

pytestmark = pytest.mark.docker
IMAGE = "novastack-postgresql:17"


@pytest.fixture(scope="module")
def manager() -> Iterator[Daemon]:
    with own_swarm(bridge="nvsswarm3") as daemon:
        yield daemon


@pytest.fixture(scope="module")
def worker(manager: Daemon) -> Iterator[tuple[Daemon, str]]:
    """A second node, and its id: a worker with the label `disk=fast`."""
    with own_daemon(IMAGE, bridge="nvsswarm4") as daemon:
        token = manager.cli("swarm", "join-token", "-q", "worker").stdout.decode().strip()
        address = manager.cli("info", "-f", "{{(index .Swarm.RemoteManagers 0).Addr}}").stdout.decode().strip()
        own = own_loopback()
        daemon.cli(
            "swarm", "join", "--token", token, "--advertise-addr", own, "--listen-addr", f"{own}:{free_tcp_port()}", address,
        )  # fmt: skip
        node = daemon.cli("info", "-f", "{{.Swarm.NodeID}}").stdout.decode().strip()
        manager.cli("node", "update", "--label-add", "disk=fast", node)
        yield daemon, node
        daemon.cli("swarm", "leave", "--force", check=False)


def test_a_server_on_a_node_that_is_not_the_managers(manager: Daemon, worker: tuple[Daemon, str]) -> None:
    second, node = worker
    install_id = f"test{uuid.uuid4().hex[:10]}"
    place = {"placement": "node.labels.disk == fast"}
    endpoint = RuntimeEndpoint(manager.url)
    far = SwarmRuntime(install_id, place, endpoint=endpoint)
    near = SwarmRuntime(install_id, {**place, "nodes": {node: second.url}}, endpoint=endpoint)
    client: Any = docker.APIClient(base_url=second.url, version="auto")
    image = SwarmRuntime("probe", endpoint=RuntimeEndpoint(second.url)).resolve_image(ENGINE.name, "17", "postgres")
    suite, password = RuntimeContract(), uuid.uuid4().hex
    try:
        # A worker's engine is no manager; an engine that is not reached has no network of ours, and that is said.
        assert "not named under `nodes`" in " ".join(far.facts().problems)
        assert "not named" not in " ".join(near.facts().problems)
        make = spec_maker("17", image, password, "0.0.0.0")  # noqa: S104 - a Swarm's way
        spec = make()
        with pytest.raises(NovaStackRuntimeError, match="network"):
            suite.create(far, spec, password)
        far.destroy(spec.handle, delete_data=True)
        name = f"nvs-{install_id}-node"
        second.cli("network", "create", "--config-only", "-o", "com.docker.network.bridge.enable_icc=false", name)
        server = suite.create(far, make(), password)
        assert client.inspect_volume(docker_spec.volume_name(server.handle))
        with pytest.raises(NotReachableHere):
            far.run_tool(f"nvs-tool-{uuid.uuid4()}", image.digest, Command(("true",)), beside=server.handle)
        assert far.usage([server.handle])[server.handle].memory_bytes is None

        tool = near.run_tool(f"nvs-tool-{uuid.uuid4()}", image.digest, Command(("echo", "hi")), beside=server.handle)
        assert tool.stdout is not None
        assert tool.stdout.read() == b"hi\n"
        tool.kill()
        assert near.usage([server.handle])[server.handle].memory_bytes
        before = near.observe([server.handle])[server.handle]
        near.update(server.handle, Limits(300 * MIB, 0.5))
        assert near.describe([server.handle])[server.handle].memory_bytes == 300 * MIB
        assert near.observe([server.handle])[server.handle].started_at == before.started_at

        second.stop()
        assert "is down" in wait_for(near, server.handle, ServerState.UNREACHABLE).detail
        second.start()
        wait_for(near, server.handle, ServerState.RUNNING)
        suite.wait_ready(near, server)
        near.destroy(server.handle, delete_data=True)
        with pytest.raises(docker.errors.NotFound):
            client.inspect_volume(docker_spec.volume_name(server.handle))
    finally:
        if second.process is None:
            second.start()
        with contextlib.suppress(NovaStackRuntimeError):
            near.remove_install()
        client.close()


def wait_for(runtime: SwarmRuntime, handle: Any, wanted: ServerState) -> Any:
    deadline = time.monotonic() + 60
    while (seen := runtime.observe([handle])[handle]).state != wanted:
        assert time.monotonic() < deadline, seen
        time.sleep(0.2)
    return seen
