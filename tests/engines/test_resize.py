"""New limits on real servers in containers: what the server itself makes of them, and what it survives."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from projects.domain import Credentials, DataPolicy, Handle, Limits, LimitTooSmall, ServerState
from projects.engines.base import Engine
from projects.engines.ferretdb import FerretDB
from projects.engines.mariadb import MariaDB
from projects.engines.mysql import MySQL
from projects.engines.mysql_session import connect
from projects.engines.postgresql import PostgreSQL
from projects.runtimes.docker import DockerRuntime
from tests.contracts.engine_servers import image_of, small_spec, wait_ready

MIB = 1 << 20


@dataclass
class Live:
    engine: Engine
    runtime: DockerRuntime
    handle: Handle
    spec: Any
    admin: Credentials

    def limit(self) -> int:
        found = self.runtime.describe([self.handle])[self.handle]
        assert found is not None and found.memory_bytes is not None
        return found.memory_bytes // MIB

    def resize(self, mib: int) -> bool:
        with self.engine.admin(self.spec.publish, self.admin) as admin:
            return admin.resize(Limits(mib * MIB, 1.0))

    def is_same_and_well(self) -> bool:
        self.engine.probe(self.spec.publish, self.admin)
        seen = self.runtime.observe([self.handle])[self.handle]
        return seen.state is ServerState.RUNNING and seen.ref == self.handle.ref and not seen.oom_killed


@pytest.fixture
def start() -> Iterator[Callable[[Engine, str], Live]]:
    made: list[Live] = []

    def make(engine: Engine, version: str) -> Live:
        runtime, password = DockerRuntime(f"test{uuid.uuid4().hex[:10]}"), uuid.uuid4().hex
        spec = small_spec(engine, version, image_of(engine, version, runtime), password)
        handle = runtime.ensure(spec, data=DataPolicy.CREATE)
        live = Live(engine, runtime, handle, spec, Credentials(engine.bootstrap_username, password))
        made.append(live)
        wait_ready(engine, spec.publish, live.admin)
        return live

    yield make
    for live in made:
        live.runtime.destroy(live.handle, delete_data=True)
        live.runtime.remove_network()


@pytest.mark.docker
@pytest.mark.parametrize(
    ("engine", "version"), [(MariaDB(), "10.11"), (MariaDB(), "11.8"), (MySQL(), "9.7")], ids=["10.11", "11.8", "9.7"]
)
def test_the_buffer_pool_follows_while_it_runs(
    start: Callable[[Engine, str], Live], engine: Engine, version: str
) -> None:
    live = start(engine, version)

    def pool() -> int:
        with connect(live.spec.publish, live.admin, timeout_seconds=5) as session:
            return int(session.value("SELECT @@GLOBAL.innodb_buffer_pool_size")) // MIB

    assert pool() == 128
    live.runtime.update(live.handle, Limits(1024 * MIB, 1.0))
    assert live.resize(1024)
    assert (pool(), live.limit()) == (512, 1024)
    assert live.resize(448)
    live.runtime.update(live.handle, Limits(448 * MIB, 1.0))
    assert (pool(), live.limit()) == (112, 448)
    assert live.is_same_and_well()
    with pytest.raises(LimitTooSmall):
        live.runtime.update(live.handle, Limits(6 * MIB, 1.0))
    assert live.limit() == 448
    assert live.is_same_and_well()


@pytest.mark.docker
@pytest.mark.parametrize(("engine", "version"), [(PostgreSQL(), "17"), (FerretDB(), "1.24")], ids=["pg", "ferretdb"])
def test_others_keep_their_sizes_and_survive_a_limit_below_what_they_use(
    start: Callable[[Engine, str], Live], engine: Engine, version: str
) -> None:
    live = start(engine, version)
    assert not live.resize(400)
    live.runtime.update(live.handle, Limits(400 * MIB, 0.5))
    used = live.runtime.usage([live.handle])[live.handle].memory_bytes
    assert used is not None
    with pytest.raises(LimitTooSmall):
        live.runtime.update(live.handle, Limits(6 * MIB, 1.0))
    time.sleep(0.5)
    assert live.limit() == 400
    assert live.is_same_and_well()
