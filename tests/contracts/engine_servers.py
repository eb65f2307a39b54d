"""Real servers of any engine for the tests, in containers."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator

import pytest

from projects.domain import (
    Credentials,
    DataPolicy,
    Endpoint,
    EngineError,
    Handle,
    Limits,
    NovaStackRuntimeError,
    ServerRequest,
    ServerSpec,
)
from projects.engines.base import Engine
from projects.runtimes.base import Runtime
from projects.runtimes.docker import DockerRuntime
from tests.contracts.engine_contract import LiveServer
from tests.contracts.runtime_contract import free_port


def small_spec(
    engine: Engine, version: str, image: str, password: str, *, memory_bytes: int = 512 << 20, pool: bool = False
) -> ServerSpec:
    """A server of its own name and port, with the smallest plan's memory."""
    return engine.server_spec(
        ServerRequest(
            handle=Handle(str(uuid.uuid4()), 1), version=version, image=image,
            publish=Endpoint("127.0.0.1", free_port()), limits=Limits(memory_bytes, 1.0), max_connections=40,
            admin=Credentials(engine.bootstrap_username, password), burst=True, pool=pool,
        )
    )  # fmt: skip


def wait_ready(engine: Engine, endpoint: Endpoint, admin: Credentials, *, seconds: float = 90) -> None:
    """Returns when the login works; fails with the last reason."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            engine.probe(endpoint, admin, timeout_seconds=2)
            return
        except EngineError as error:
            if time.monotonic() > deadline:
                pytest.fail(f"{engine.title} did not become ready: {error}")
        time.sleep(0.1)


def image_of(engine: Engine, version: str, runtime: DockerRuntime) -> str:
    """The image to run; skips, or fails where Docker is required, when there is none."""
    try:
        image = runtime.resolve_image(engine.name, version, engine.official_image)
    except NovaStackRuntimeError as error:
        if os.environ.get("NOVASTACK_REQUIRE_DOCKER") == "1":
            raise
        pytest.skip(f"no Docker engine with {engine.title} {version}: {error}")
    return image.digest or image.name


def docker_server(engine: Engine, version: str, *, pool: bool = False) -> Iterator[LiveServer]:
    """One ready server in a container; removed afterwards."""
    runtime = DockerRuntime(f"test{uuid.uuid4().hex[:10]}")
    image = image_of(engine, version, runtime)
    yield from live_server(engine, version, image, runtime, pool=pool)
    runtime.remove_network()


def live_server(
    engine: Engine, version: str, image: str, runtime: Runtime, *, pool: bool = False
) -> Iterator[LiveServer]:
    """One ready server of that runtime; removed afterwards."""
    password = uuid.uuid4().hex
    spec = small_spec(engine, version, image, password, memory_bytes=(1024 if pool else 512) << 20, pool=pool)
    handle = runtime.ensure(spec, data=DataPolicy.CREATE)
    try:
        admin = Credentials(engine.bootstrap_username, password)
        wait_ready(engine, spec.publish, admin)
        yield LiveServer(spec.publish, admin, lambda: b"\n".join(runtime.logs(handle, tail=5000)).decode())
    finally:
        runtime.destroy(handle, delete_data=True)
