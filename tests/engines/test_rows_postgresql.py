"""The hash of a row: equal rows have equal ones, and whatever is not the same value has another one."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import psycopg
import pytest

from projects.domain import Credentials
from projects.engines.postgresql import PostgreSQL
from tests.engines.copies import CopyServer, docker_copy_server

pytestmark = pytest.mark.docker
ENGINE = PostgreSQL()
# column type → values that must all be told apart, though the type's own equality may not
DISTINCT = {
    "bigint": ["NULL", "0", "1", "-1", "9223372036854775807"],
    "int": ["NULL", "0", "1"],
    "smallint": ["NULL", "0", "1"],
    "text": ["NULL", "''", "' '", "'a'", "'A'", "'NULL'", "'é'", "'e' || chr(769)"],
    "varchar(9)": ["NULL", "''", "'a'", "'a '"],
    "char(3)": ["NULL", "''", "'a'"],
    "text COLLATE sloppy": ["NULL", "'a'", "'A'", "'á'"],
    "timestamp": ["NULL", "'epoch'", "'infinity'", "'-infinity'", "'2026-01-01 00:00:00.000001'"],
    "timestamptz": ["NULL", "'epoch'", "'infinity'", "'2026-01-01 00:00:00.000001+02'", "'2026-01-01 00:00:00.000001+03'"],
    "uuid": ["NULL", "'00000000-0000-0000-0000-000000000000'", "'00000000-0000-0000-0000-000000000001'"],
    "numeric": ["NULL", "1", "1.0", "1.00", "'NaN'", "0"],
    "float8": ["NULL", "0", "'-0'", "'NaN'", "1e-300"],
    "jsonb": ["NULL", "'null'", "'{\"a\": 1.0}'", "'{\"a\": 1.00}'"],
    "bytea": ["NULL", "''", "'\\x00'", "'\\x0000'"],
    "text[]": ["NULL", "'{}'", "'{NULL}'", "'{\"NULL\"}'", "'{\"\"}'"],
    "pair": ["NULL", "ROW(NULL, NULL)", "ROW(1, NULL)", "ROW(NULL, '')"],
    "bool": ["NULL", "true", "false"],
}  # fmt: skip


@pytest.fixture(scope="module", params=["15", "18"])
def server(request: pytest.FixtureRequest) -> Iterator[CopyServer]:
    with docker_copy_server(ENGINE, request.param) as found:
        yield found


@pytest.fixture
def session(server: CopyServer) -> Iterator[psycopg.Connection]:
    name = f"rows_{uuid.uuid4().hex[:8]}"
    where = {"host": server.endpoint.host, "port": server.endpoint.port, "user": server.admin.username,
             "password": server.admin.password, "autocommit": True}  # fmt: skip
    with psycopg.connect(dbname="postgres", **where) as admin:  # type: ignore[arg-type]
        admin.execute(f"CREATE DATABASE {name}")
    with psycopg.connect(dbname=name, **where) as found:  # type: ignore[arg-type]
        found.execute("CREATE TYPE pair AS (a int, b text)")
        found.execute("CREATE COLLATION sloppy (provider = icu, locale = 'und-u-ks-level1', deterministic = false)")
        yield found
    with psycopg.connect(dbname="postgres", **where) as admin:  # type: ignore[arg-type]
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


def digests(server: CopyServer, session: psycopg.Connection) -> dict[str, str]:
    login = Credentials(server.admin.username, server.admin.password, session.info.dbname)
    return {name: table.digest for name, table in ENGINE.fingerprint(server.endpoint, login).tables.items()}


def test_values_are_told_apart(server: CopyServer, session: psycopg.Connection) -> None:
    wanted: dict[str, list[str]] = {}
    for number, (kind, values) in enumerate(DISTINCT.items()):
        for place, value in enumerate(values):
            for required in (False, True) if value != "NULL" else (False,):
                table = f"t{number}_{place}_{int(required)}"
                session.execute(f"CREATE TABLE {table} (id int, v {kind} {'NOT NULL' if required else ''}, z text)")
                session.execute(f"INSERT INTO {table} VALUES (1, {value}, 'end')")
                wanted.setdefault(f"{kind} {required}", []).append(f"public.{table}")
    found = digests(server, session)
    for kind, tables in wanted.items():
        assert len({found[table] for table in tables}) == len(tables), kind


def test_values_in_other_columns_or_rows(server: CopyServer, session: psycopg.Connection) -> None:
    rows = {
        "a": "(1, 2, 'x', NULL), (3, 4, NULL, 'y')",
        "columns": "(2, 1, 'x', NULL), (3, 4, NULL, 'y')",
        "rows": "(1, 2, NULL, 'y'), (3, 4, 'x', NULL)",
        "nulls": "(1, 2, NULL, 'x'), (3, 4, NULL, 'y')",
        "twice": "(1, 2, 'x', NULL), (1, 2, 'x', NULL)",
        "more": "(1, 2, 'x', NULL), (3, 4, NULL, 'y'), (NULL, NULL, NULL, NULL)",
        "none": "(NULL, NULL, NULL, NULL)",
    }
    for name, values in rows.items():
        session.execute(f'CREATE TABLE "{name}" (a int, b int, c text, d text)')
        session.execute(f'INSERT INTO "{name}" VALUES {values}')
    session.execute("CREATE TABLE again (a int, b int, c text, d text)")
    session.execute("INSERT INTO again VALUES (3, 4, NULL, 'y'), (1, 2, 'x', NULL)")  # another order only
    session.execute("CREATE TABLE dull (); INSERT INTO dull DEFAULT VALUES")
    found = digests(server, session)
    assert found["public.again"] == found["public.a"]
    others = [digest for table, digest in found.items() if table != "public.again"]
    assert len(set(others)) == len(others)


def test_many_columns(server: CopyServer, session: psycopg.Connection) -> None:
    columns = ", ".join(f"c{n} {'int' if n % 2 else 'text'}" for n in range(1500))
    for table, odd in (("wide", "NULL"), ("other", "7")):
        session.execute(f"CREATE TABLE {table} ({columns})")
        session.execute(f"INSERT INTO {table} (c0, c1399) VALUES ('a', {odd})")
    session.execute("CREATE TABLE same AS TABLE wide")
    found = digests(server, session)
    assert found["public.same"] == found["public.wide"] != found["public.other"]


def test_a_null_where_none_should_be(server: CopyServer, session: psycopg.Connection) -> None:
    for table, word in (("odd", "x"), ("even", "y")):
        session.execute(f"CREATE TABLE {table} (a int, b text)")
        session.execute(f"INSERT INTO {table} VALUES (NULL, '{word}')")
        if session.info.server_version >= 180000:
            session.execute(f"ALTER TABLE {table} ADD CONSTRAINT there NOT NULL a NOT VALID")
        else:  # as an old upgrade, or a bug, may leave it
            session.execute(
                f"UPDATE pg_attribute SET attnotnull = true WHERE attrelid = '{table}'::regclass AND attname = 'a'"
            )
    found = digests(server, session)
    assert found["public.odd"] != found["public.even"]
    assert "0" not in found.values()


def test_nothing_of_the_tenants_runs(server: CopyServer, session: psycopg.Connection) -> None:
    """Operators, casts and functions of the same names, in a schema that a tenant would like to be looked in first."""
    session.execute(
        "CREATE TABLE t (a int, b bigint, c text, d timestamptz);"
        " INSERT INTO t VALUES (1, 2, 'x', now()), (NULL, NULL, NULL, NULL)"
    )
    before = digests(server, session)["public.t"]
    session.execute("CREATE TABLE ran (x int)")
    session.execute(
        "CREATE FUNCTION hashint8extended(bigint, bigint) RETURNS bigint LANGUAGE sql AS 'INSERT INTO public.ran VALUES (1);"
        " SELECT 0::bigint'"
    )
    session.execute(
        "CREATE FUNCTION ors(bigint, bigint) RETURNS bigint LANGUAGE sql AS"
        " 'INSERT INTO public.ran VALUES (1); SELECT 0::bigint'"
    )
    session.execute("CREATE OPERATOR public.| (leftarg = bigint, rightarg = bigint, procedure = public.ors)")
    session.execute(f"ALTER DATABASE {session.info.dbname} SET search_path = public, pg_catalog")
    assert digests(server, session)["public.t"] == before
    assert session.execute("SELECT count(*) FROM ran").fetchone() == (0,)
