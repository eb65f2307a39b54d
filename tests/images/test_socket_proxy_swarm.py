"""The same allow-list in front of a Swarm's manager: the runtime works through it, a worker that was taken over does not."""

from __future__ import annotations

import copy
import json
import os
import secrets
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import docker as docker_py
import pytest

from projects.domain import DataPolicy, Limits, RuntimeEndpoint, ServerState
from projects.runtimes import swarm_spec
from projects.runtimes.swarm import SwarmRuntime
from tests.contracts.runtime_contract import ENGINE, MIB, RuntimeContract, spec_maker
from tests.dockerd import Daemon, own_swarm
from tests.images.conftest import docker, eventually, need_image
from tests.images.test_socket_proxy import full, post

pytestmark = pytest.mark.docker
IMAGE = "novastack-postgresql:17"
PROXY = os.environ.get("NOVASTACK_TEST_SOCKET_PROXY", "novastack-socket-proxy:1")


@pytest.fixture(scope="module")
def manager() -> Iterator[Daemon]:
    with own_swarm(IMAGE, bridge="nvsswarm2") as daemon:
        yield daemon


@pytest.fixture(scope="module")
def proxy(shared_folder: Path, manager: Daemon) -> Iterator[Path]:
    """The folder that holds `full/docker.sock` and `read/docker.sock`, in front of the manager."""
    need_image(PROXY)
    container = f"novastack-test-{secrets.token_hex(6)}"
    for kind in ("full", "read"):
        shared_folder.joinpath(kind).mkdir()
    docker(
        "run", "--detach", "--name", container, "--network", "none", "--read-only", "--cap-drop", "ALL",
        "--security-opt", "no-new-privileges", "-v", f"{manager.folder}/docker.sock:/var/run/docker.sock",
        "-v", f"{shared_folder}/full:/run/docker-full", "-v", f"{shared_folder}/read:/run/docker-read", PROXY,
    )  # fmt: skip
    assert eventually(lambda: all(shared_folder.joinpath(kind, "docker.sock").exists() for kind in ("full", "read")))
    yield shared_folder
    docker("rm", "--force", container)


def test_a_server_lives_behind_it(proxy: Path) -> None:
    suite = RuntimeContract()
    install_id = f"test{uuid.uuid4().hex[:10]}"
    runtime = SwarmRuntime(install_id, endpoint=RuntimeEndpoint(full(proxy)))
    monitor = SwarmRuntime(install_id, endpoint=RuntimeEndpoint(f"unix://{proxy}/read/docker.sock"))
    password = uuid.uuid4().hex
    try:
        image = runtime.resolve_image(ENGINE.name, "17", ENGINE.official_image)
        spec = replace(spec_maker("17", image, password, "0.0.0.0")(), files={"one": b"first"})  # noqa: S104 - a Swarm's way
        server = suite.create(runtime, spec, password)
        runtime.put_files(server.handle, {"one": b"second"})
        runtime.update(server.handle, Limits(300 * MIB, 0.5))
        runtime.stop(server.handle)
        runtime.start(server.handle)
        suite.wait_ready(runtime, server)
        runtime.write_epoch("one")
        monitor.ping()
        assert monitor.observe([server.handle])[server.handle].state == ServerState.RUNNING
        assert monitor.describe([server.handle])[server.handle].memory_bytes == 300 * MIB
        assert monitor.usage([server.handle])[server.handle].memory_bytes
        assert monitor.read_epoch() == "one"
        assert {h.name for h in monitor.managed_data()} == {server.handle.name}
        assert monitor.read_log(server.handle).lines
        with pytest.raises(Exception, match="refused by the read-only socket proxy"):
            monitor.stop(server.handle)
        assert runtime.ensure(spec, data=DataPolicy.MUST_EXIST) == server.handle
    finally:
        runtime.remove_install()


def service() -> dict[str, Any]:
    """What the runtime asks for, and a Swarm would run."""
    image = type("Image", (), {"digest": IMAGE, "name": IMAGE})()
    spec = spec_maker("17", image, "x", "0.0.0.0")()  # type: ignore[arg-type] # noqa: S104
    record = swarm_spec.DataRecord("c1", {swarm_spec.NODE: "n1"}, "local", {}, shared=False)
    return swarm_spec.service(spec, swarm_spec.SwarmConfig(), record, "here", "a" * 25, burst=False)


def changed(*path: Any, value: Any) -> dict[str, Any]:
    body = service()
    place: Any = body
    for key in path[:-1]:
        place = place.setdefault(key, {}) if isinstance(place, dict) else place[key]
    place[path[-1]] = value
    return body


CONTAINER = ("TaskTemplate", "ContainerSpec")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (changed(*CONTAINER, "Mounts", value=[{"Type": "bind", "Source": "/", "Target": "/h"}]), "host-mount"),
        (changed(*CONTAINER, "Mounts", value=[{"Source": "/", "Target": "/h"}]), "host-mount"),
        (changed(*CONTAINER, "CapabilityAdd", value=["CAP_SYS_ADMIN"]), "capability"),
        (changed(*CONTAINER, "Privileges", value={"Seccomp": {"Mode": "unconfined"}}), "unconfined"),
        (changed(*CONTAINER, "Privileges", value={"AppArmor": {"Mode": "disabled"}}), "unconfined"),
        (changed(*CONTAINER, "Privileges", value={"SELinuxContext": {"Disable": True}}), "unconfined"),
        (changed("TaskTemplate", "Networks", value=[{"Target": "host"}]), "host-namespace"),
        (changed("TaskTemplate", "Networks", value=[{"Target": "a" * 64}]), "host-namespace"),
        (changed("TaskTemplate", "Runtime", value="plugin"), "plugin"),
        (changed("TaskTemplate", "PluginSpec", value={"Name": "x"}), "plugin"),
        (
            changed(*CONTAINER, "Mounts", value=[
                {"Type": "volume", "Source": "v", "Target": "/h", "VolumeOptions": {
                    "DriverConfig": {"Name": "local", "Options": {"type": "none", "o": "bind", "device": "/"}}}}
            ]),
            "driver-options",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_service_that_could_take_a_node_is_refused(proxy: Path, body: dict[str, Any], reason: str) -> None:
    for path in ("/v1.41/services/create", "/services/abc/update?version=1"):
        status, answer = post(proxy, path, json.dumps(copy.deepcopy(body)))
        assert status == 403
        assert f"refused by the socket proxy: {reason}" in answer


def test_the_swarm_itself_is_closed(proxy: Path) -> None:
    for path in ("/swarm/init", "/swarm/join", "/swarm/leave?force=1", "/swarm/update?version=1", "/nodes/abc/update"):
        assert post(proxy, path, "{}")[0] == 403
    client: Any = docker_py.APIClient(base_url=full(proxy), version="auto")
    with pytest.raises(docker_py.errors.APIError, match="refused by the socket proxy"):
        client.inspect_swarm()  # the tokens to join with
    client.close()
    for kind in ("secrets/create", "services/create", "configs/create"):
        read = SwarmRuntime("x", endpoint=RuntimeEndpoint(f"unix://{proxy}/read/docker.sock"))
        with pytest.raises(Exception, match="read-only"):
            read._swarm._post(f"/{kind}", {"Name": "x"})
