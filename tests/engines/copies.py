"""Two real servers of one engine, and a copy of a tenant's database from the one to the other, as moves make it."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from projects.domain import Credentials, DataPolicy, Endpoint, Fingerprint, Handle, ServerSpec, TenantNames
from projects.engines.base import Engine
from projects.operations import copying
from projects.runtimes.base import Runtime
from projects.runtimes.docker import DockerRuntime
from tests.contracts.engine_servers import image_of, small_spec, wait_ready


@dataclass(frozen=True)
class CopyServer:
    engine: Engine
    runtime: Runtime
    spec: ServerSpec
    handle: Handle
    admin: Credentials

    @property
    def endpoint(self) -> Endpoint:
        return self.spec.publish

    def side(self, login: Credentials) -> copying.Side:
        place = Endpoint(*self.runtime.place_of(self.spec))
        return copying.Side(self.runtime, self.handle, self.spec.image, place, login)

    def make(self, names: TenantNames, password: str) -> None:
        with self.engine.admin(self.endpoint, self.admin) as admin:
            admin.harden()
            admin.create_tenant(names, login_password=password, control_password="c" + uuid.uuid4().hex)

    def drop(self, names: TenantNames) -> None:
        with self.engine.admin(self.endpoint, self.admin) as admin:
            admin.drop_tenant(names)


@contextlib.contextmanager
def docker_copy_server(engine: Engine, version: str) -> Iterator[CopyServer]:
    runtime, password = DockerRuntime(f"test{uuid.uuid4().hex[:10]}"), uuid.uuid4().hex
    spec = small_spec(engine, version, image_of(engine, version, runtime), password)
    handle = runtime.ensure(spec, data=DataPolicy.CREATE)
    try:
        admin = Credentials(engine.bootstrap_username, password)
        wait_ready(engine, spec.publish, admin)
        yield CopyServer(engine, runtime, spec, handle, admin)
    finally:
        runtime.destroy(handle, delete_data=True)
        runtime.remove_network()


@dataclass
class Copier:
    """One tenant on a source; `run` copies it to the target, as often as wanted."""

    source: CopyServer
    target: CopyServer
    names: TenantNames
    password: str
    tool: Credentials

    @classmethod
    @contextlib.contextmanager
    def between(cls, source: CopyServer, target: CopyServer, names: TenantNames) -> Iterator[Copier]:
        password, tool = "t" + uuid.uuid4().hex, Credentials(names.tool, f"x:{uuid.uuid4().hex}\\", names.database)
        copier = cls(source, target, names, password, tool)
        source.make(names, password)
        try:
            yield copier
        finally:
            for server in (source, target):
                server.drop(names)

    @property
    def login(self) -> Credentials:
        return Credentials(self.names.login, self.password, self.names.database)

    def run(self, *, pulse: Callable[[int], None] = lambda _: None) -> int:
        """Into a new, empty database at the target, however often; returns the dump's bytes."""
        engine = self.source.engine
        self.target.drop(self.names)
        self.target.make(self.names, self.password)
        for server in (self.source, self.target):
            with engine.admin(server.endpoint, server.admin) as admin:
                admin.admit_tool(self.names, self.tool.username, self.tool.password)
        moved = copying.copy(
            engine, self.source.side(self.tool), self.target.side(self.tool), stem=f"test-{uuid.uuid4()}", pulse=pulse
        )
        engine.finish_copy(self.target.endpoint, self.tool, self.names)
        with engine.admin(self.source.endpoint, self.source.admin) as admin:
            around = admin.around(self.names)
        with engine.admin(self.target.endpoint, self.target.admin) as admin:
            admin.put_around(self.names, around)
            assert admin.around(self.names) == around
        return moved

    def fingerprints(self) -> tuple[Fingerprint, Fingerprint]:
        engine = self.source.engine
        return (
            engine.fingerprint(self.source.endpoint, self.tool),
            engine.fingerprint(self.target.endpoint, self.tool),
        )

    def dismiss(self) -> None:
        for server in (self.source, self.target):
            with server.engine.admin(server.endpoint, server.admin) as admin:
                admin.dismiss_tool(self.names, self.tool.username)


def with_other_password(credentials: Credentials) -> Credentials:
    return replace(credentials, password="wrong")
