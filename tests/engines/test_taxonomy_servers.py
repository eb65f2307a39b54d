"""Failures of the taxonomy that a real PostgreSQL server makes: it refuses CREATE DATABASE, refuses a table, and is gone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from projects.engines.postgresql import PostgreSQL
from projects.engines.postgresql_admin import PostgreSQLAdmin
from projects.models import DatabaseServer, Operation, Project
from projects.operations import abilities
from projects.runtimes.process_binaries import find
from tests.faults.conftest import Site, _fresh, make_site  # noqa: F401 - a fixture
from tests.operations.conftest import drive, let_time_pass, once, seconds_until_next, states

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("_fresh")]


@pytest.fixture
def site() -> Iterator[Site]:
    if find("postgres", "18") is None:
        pytest.skip("no PostgreSQL 18 on this machine")
    with contextlib.contextmanager(make_site)("process") as found:
        abilities.look(found.region, found.runtime)
        yield found


def superuser(project: Project, database: str = "postgres") -> psycopg.Connection[Any]:
    server = DatabaseServer.objects.get(project_uuid=project.pk)
    assert server.port is not None
    return psycopg.connect(
        host="127.0.0.1", port=server.port, user=server.admin_username, password=server.admin_secret.open(),
        dbname=database, autocommit=True,
    )  # fmt: skip


def until_tried(operation: Operation, step: str) -> Operation:
    """Turns of a worker until that step has failed once: on a busy machine the server takes more than one to be there."""
    for _ in range(40):
        operation = once(operation)
        if not operation.live or operation.steps.get(name=step).retries:
            return operation
        let_time_pass(operation)
    raise AssertionError(f"{step} was not tried: {states(operation)}")


def failed_at(operation: Operation, step: str, code: str, wait: int) -> Operation:
    operation = until_tried(operation, step)
    row = operation.steps.get(name=step)
    assert (row.state, row.error_code, row.attempt) == ("retrying", code, 1), (row.state, row.detail)
    assert round(seconds_until_next(operation)) == wait
    let_time_pass(operation)
    return operation


def test_it_refuses_a_database(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody is in the template that databases are made of."""
    project = site.create()
    held: list[psycopg.Connection[Any]] = []
    harden = PostgreSQLAdmin.harden

    def then_hold_the_template(self: PostgreSQLAdmin) -> None:
        harden(self)
        self._do("ALTER DATABASE template0 ALLOW_CONNECTIONS true")
        inside = self._credentials
        held.append(
            psycopg.connect(
                host=self._endpoint.host, port=self._endpoint.port, user=inside.username, password=inside.password,
                dbname="template0",
            )
        )  # fmt: skip

    with monkeypatch.context() as patch:
        patch.setattr(PostgreSQLAdmin, "harden", then_hold_the_template)
        operation = failed_at(site.operation(project), "database", "database_creation_failed", 10)
    assert "being accessed by other users" in operation.steps.get(name="database").detail
    held[0].close()
    assert drive(operation).state == "succeeded"
    with superuser(project) as session:
        rows = session.execute("SELECT count(*) FROM pg_database WHERE datname = %s", [project.slug]).fetchone()
    assert rows == (1,)


def test_it_refuses_a_table(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tenant may not create in its schema: all or nothing, and the next try makes it whole."""
    project = site.create()
    bootstrap = PostgreSQL.bootstrap

    def first_take_the_schema(self: PostgreSQL, *arguments: Any) -> Any:
        with superuser(project, project.slug) as session:
            session.execute(f"ALTER SCHEMA public OWNER TO {session.info.user}")
        return bootstrap(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(PostgreSQL, "bootstrap", first_take_the_schema)
        operation = failed_at(site.operation(project), "schema", "schema_creation_failed", 5)
    assert "permission denied" in operation.steps.get(name="schema").detail
    group = f"nvs_{project.pk.hex[-12:]}_group"
    with superuser(project, project.slug) as session:
        assert session.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone() == (0,)
        session.execute(f"ALTER SCHEMA public OWNER TO {group}")
    assert drive(operation).state == "succeeded"
    with superuser(project, project.slug) as session:
        owners = session.execute("SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'public'").fetchall()
    assert owners == [(group,)]


def test_it_is_gone(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is started again by itself; the database is made on its own data."""
    project = site.create()
    place, stopped = PostgreSQLAdmin.place_tenant, []

    def once_without_a_server(self: PostgreSQLAdmin, *arguments: Any, **named: Any) -> Any:
        if not stopped:
            server = DatabaseServer.objects.get(project_uuid=project.pk)
            site.runtime.stop(server.handle, grace_seconds=5)
            stopped.append(server.handle)
        return place(self, *arguments, **named)

    monkeypatch.setattr(PostgreSQLAdmin, "place_tenant", once_without_a_server)
    operation = until_tried(site.operation(project), "database")
    step = operation.steps.get(name="database")
    assert (step.error_code, step.retries, step.data.get("restarts")) == ("server_not_ready", 1, 1), step.detail
    assert round(seconds_until_next(operation)) == 10
    assert drive(operation).state == "succeeded"
    assert operation.steps.get(name="server").attempt == 1
