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
    """One tenant on a source; `run` copies it to the target, as often as wanted, there by the names `copied`."""

    source: CopyServer
    target: CopyServer
    names: TenantNames
    password: str
    tool: Credentials
    copied: TenantNames

    @classmethod
    @contextlib.contextmanager
    def between(
        cls, source: CopyServer, target: CopyServer, names: TenantNames, copied: TenantNames | None = None
    ) -> Iterator[Copier]:
        password, tool = "t" + uuid.uuid4().hex, Credentials(names.tool, f"x:{uuid.uuid4().hex}\\", names.database)
        copier = cls(source, target, names, password, tool, copied or names)
        source.make(names, password)
        try:
            yield copier
        finally:
            source.drop(names)
            target.drop(copier.copied)

    @property
    def login(self) -> Credentials:
        return Credentials(self.names.login, self.password, self.names.database)

    @property
    def copied_login(self) -> Credentials:
        return Credentials(self.copied.login, self.password, self.copied.database)

    @property
    def copied_tool(self) -> Credentials:
        return Credentials(self.copied.tool, self.tool.password, self.copied.database)

    def run(self, *, pulse: Callable[[int], None] = lambda _: None) -> int:
        """Into a new, empty database at the target, however often; returns the dump's bytes."""
        engine, names, tool = self.source.engine, self.copied, self.copied_tool
        self.target.drop(names)
        self.target.make(names, self.password)
        with engine.admin(self.source.endpoint, self.source.admin) as admin:
            admin.admit_tool(self.names, self.tool.username, self.tool.password)
        with engine.admin(self.target.endpoint, self.target.admin) as admin:
            admin.lock_tenant(names, locked=True)
            restorer = replace(tool, username=admin.admit_restorer(names, tool.username, tool.password))
        restoring = engine.restoring()
        moved = copying.copy(
            engine, self.source.side(self.tool), self.target.side(restorer), stem=f"test-{uuid.uuid4()}", pulse=pulse,
            restoring=restoring,
        )  # fmt: skip
        restoring.finish(self.target.endpoint, restorer, names, pulse=lambda: pulse(moved))
        with engine.admin(self.source.endpoint, self.source.admin) as admin:
            around = admin.around(self.names)
        with engine.admin(self.target.endpoint, self.target.admin) as admin:
            admin.dismiss_restorer(names, tool.username)
            admin.set_password(names.login, self.password)
            admin.put_around(names, around)
            assert admin.around(names) == around
            admin.admit_tool(names, tool.username, tool.password)
            admin.lock_tenant(names, locked=False)
        return moved

    def fingerprints(self) -> tuple[Fingerprint, Fingerprint]:
        engine = self.source.engine
        return (
            engine.fingerprint(self.source.endpoint, self.tool),
            engine.fingerprint(self.target.endpoint, self.copied_tool),
        )

    def dismiss(self) -> None:
        for server, names in ((self.source, self.names), (self.target, self.copied)):
            with server.engine.admin(server.endpoint, server.admin) as admin:
                admin.dismiss_tool(names, names.tool)


def with_other_password(credentials: Credentials) -> Credentials:
    return replace(credentials, password="wrong")
