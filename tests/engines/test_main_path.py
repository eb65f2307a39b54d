"""The main job on engines other than PostgreSQL: the same operations, real servers, the engine's own driver."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pymysql
import pytest
from pymysql.connections import Connection

from novastack.common.secrets import Sealed
from projects import domain, registry
from projects.models import DatabaseRole, DatabaseServer, Operation, Project, RoleKind
from projects.operations import abilities, janitor, rotate, wiring
from projects.runtimes.docker import DockerRuntime
from projects.runtimes.process_binaries import find
from projects.services import ProjectRequest, project_action, project_create, project_delete, project_purge
from projects.services.connections import render_connection
from tests.faults.conftest import Site, _fresh, make_site  # noqa: F401 - a fixture


@contextlib.contextmanager
def docker_site(engine: str, version: str) -> Iterator[Site]:
    try:
        DockerRuntime("probe").resolve_image(engine, version, registry.engine(engine).official_image)
    except domain.NovaStackRuntimeError as error:
        if os.environ.get("NOVASTACK_REQUIRE_DOCKER") == "1":
            raise
        pytest.skip(f"no Docker engine with {engine} {version}: {error}")
    with contextlib.contextmanager(make_site)("docker") as site:
        yield site
        runtime = site.runtime
        site.clean_up()
        assert isinstance(runtime, DockerRuntime)
        runtime.remove_network()
        for volume in runtime._volumes("epoch"):
            runtime._clients.get().remove_volume(volume["Name"])


@contextlib.contextmanager
def login(project: Project, password: str = "") -> Iterator[Connection[Any]]:
    role = DatabaseRole.objects.get(database__project=project, kind=RoleKind.LOGIN)
    assert role.secret is not None
    project.endpoint.refresh_from_db()
    with pymysql.connect(
        host=project.endpoint.host, port=project.endpoint.port, database=role.database.name, user=role.name,
        password=password or role.secret.open(), connect_timeout=5, autocommit=True,
    ) as connection:  # fmt: skip
        yield connection


def ask(project: Project, statement: str, password: str = "") -> tuple[Any, ...]:
    with login(project, password) as connection, connection.cursor() as cursor:
        cursor.execute(statement)
        return tuple(cursor.fetchall())


def act(site: Site, project: Project, action: str, **options: Any) -> Operation:
    operation: Operation = project_action(principal=site.alice, project=project, action=action, **options)
    return finished(site, project, operation)


def finished(site: Site, project: Project, operation: Operation) -> Operation:
    operation = site.finish(operation, 120)
    told = list(operation.steps.values_list("name", "state", "detail"))
    assert operation.state == "succeeded", (operation.kind, operation.error, told)
    project.refresh_from_db()
    return operation


def applied_twice(project: Project, server: DatabaseServer) -> None:
    """A worker that died right after the new password was applied: its successor's doing it again takes nothing away."""
    role = DatabaseRole.objects.get(database__project=project, kind=RoleKind.LOGIN)
    role.pending_secret = Sealed.of("new-and-not-yet-proven-1")
    context: Any = SimpleNamespace(
        role=lambda kind: role, engine=registry.engine(server.engine), server=server, database=role.database,
        guard=lambda: None,
    )  # fmt: skip
    for _ in range(2):
        rotate.apply(context)
    assert ask(project, "SELECT 1", role.pending_secret.open()) == ((1,),)
    assert ask(project, "SELECT 1") == ((1,),), "the stored password logs in until the new one is promoted"


def main_path(site: Site, engine: str, version: str) -> None:
    project = project_create(
        principal=site.alice, organization=site.team.organization,
        request=ProjectRequest(name="Shop", engine=engine, version=version, region="site"),
    )  # fmt: skip
    finished(site, project, site.operation(project))
    assert project.status == "running"
    server = DatabaseServer.objects.get(project_uuid=project.pk)
    assert server.system_identifier
    info = wiring.connection_info(project, project.databases.get())
    assert render_connection(info)["uri"].startswith("mysql://")

    ask(project, "CREATE TABLE orders (id BIGINT PRIMARY KEY AUTO_INCREMENT, word VARCHAR(40))")
    ask(project, "INSERT INTO orders (word) VALUES ('kept 🐬'), ('too')")
    act(site, project, "restart")
    assert ask(project, "SELECT COUNT(*) FROM orders") == ((2,),)

    old = info.password
    if domain.Capability.DUAL_PASSWORD in registry.engine(engine).capabilities:
        applied_twice(project, server)
    act(site, project, "rotate_password", end_sessions=True)
    assert ask(project, "SELECT COUNT(*) FROM orders") == ((2,),)
    with pytest.raises(pymysql.OperationalError, match="Access denied"):
        ask(project, "SELECT 1", password=old)

    act(site, project, "stop")
    with pytest.raises(pymysql.OperationalError):
        ask(project, "SELECT 1")
    act(site, project, "start")
    site.check_exactly(project)

    finished(site, project, project_delete(principal=site.alice, project=project))
    with pytest.raises(pymysql.OperationalError):
        ask(project, "SELECT 1")
    act(site, project, "undelete")
    assert ask(project, "SELECT word FROM orders ORDER BY id") == (("kept 🐬",), ("too",))
    server.refresh_from_db()
    assert any("ready for connections" in line.decode() for line in site.runtime.logs(server.handle, tail=500))
    log = b"\n".join(site.runtime.logs(server.handle, tail=5000)).decode()
    for secret in (old, wiring.connection_info(project, project.databases.get()).password):
        assert secret not in log

    finished(site, project, project_delete(principal=site.alice, project=project))
    operation = project_purge(principal=site.alice, project=project, confirm=project.slug)
    for _ in range(100):
        site.finish(operation, 0.01)
        janitor.delete_due_data()
        if not operation.live:
            break
    assert operation.state == "succeeded", operation.error
    assert not Project.objects.filter(pk=project.pk).exists()
    assert list(site.runtime.managed()) == []


@pytest.mark.docker
@pytest.mark.parametrize(("engine", "version"), [("mariadb", "11.8"), ("mysql", "9.7")])
@pytest.mark.usefixtures("_fresh")
def test_the_main_job_in_containers(engine: str, version: str) -> None:
    with docker_site(engine, version) as site:
        main_path(site, engine, version)


@pytest.mark.process
@pytest.mark.usefixtures("_fresh")
def test_the_main_job_as_processes() -> None:
    if find("mariadbd", "10.11") is None:
        pytest.skip("no mariadbd 10.11 on this machine: apt-get install mariadb-server-core")
    with contextlib.contextmanager(make_site)("process") as site:
        abilities.look(site.region, site.runtime)
        assert site.region.reason_against("mariadb", "10.11") == ""
        assert "this machine has no mysqld 9.7" in site.region.reason_against("mysql", "9.7")
        main_path(site, "mariadb", "10.11")
