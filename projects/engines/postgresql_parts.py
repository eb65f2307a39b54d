"""Parts of a PostgreSQL database that were set apart (`postgresql_apart`): dumped by themselves, and put beside a live
database's own.

The dump of their schemas can't touch anything else, and comes in one transaction, as the tenant's group.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from psycopg import sql

from projects.domain import Command, Credentials, Endpoint, TableContent, TenantNames
from projects.engines import postgresql_copy
from projects.engines.postgresql_copy import inside
from projects.engines.postgresql_fingerprint import contents_of_tables, prepare
from projects.engines.postgresql_session import translated

# How to ask for one of each kind of `SetApart.needs`.
_THERE = {
    "type": "to_regtype(%s) IS NOT NULL",
    "function": "to_regprocedure(%s) IS NOT NULL",
    "relation": "to_regclass(%s) IS NOT NULL",
    "collation": "to_regcollation(%s) IS NOT NULL",
    "operator class": (
        "EXISTS (SELECT FROM pg_opclass o JOIN pg_namespace n ON n.oid = o.opcnamespace"
        " WHERE format('%%I.%%I', n.nspname, o.opcname) = %s)"
    ),
}

# What CASCADE would take along from outside of these schemas.
_USERS = """
WITH RECURSIVE gone(c, o) AS (
  SELECT 'pg_namespace'::regclass::oid, oid FROM pg_namespace WHERE nspname = ANY(%s::text[])
  UNION SELECT d.classid, d.objid FROM gone JOIN pg_depend d ON d.refclassid = gone.c AND d.refobjid = gone.o),
homes AS (
  SELECT c, o, o AS rel FROM gone WHERE c = 'pg_class'::regclass
  UNION ALL SELECT c, o, adrelid FROM gone JOIN pg_attrdef ON c = 'pg_attrdef'::regclass AND o = oid
  UNION ALL SELECT c, o, conrelid FROM gone JOIN pg_constraint ON c = 'pg_constraint'::regclass AND o = oid AND conrelid <> 0
  UNION ALL SELECT c, o, tgrelid FROM gone JOIN pg_trigger ON c = 'pg_trigger'::regclass AND o = oid AND NOT tgisinternal
  UNION ALL SELECT c, o, polrelid FROM gone JOIN pg_policy ON c = 'pg_policy'::regclass AND o = oid
  UNION ALL SELECT 'pg_class'::regclass::oid, ev_class, ev_class FROM gone
              JOIN pg_rewrite ON c = 'pg_rewrite'::regclass AND o = oid),
placed AS (
  SELECT c, o, relnamespace AS n FROM homes JOIN pg_class ON pg_class.oid = rel
  UNION ALL SELECT c, o, pronamespace FROM gone JOIN pg_proc ON c = 'pg_proc'::regclass AND o = oid
  UNION ALL SELECT c, o, typnamespace FROM gone JOIN pg_type ON c = 'pg_type'::regclass AND o = oid)
SELECT DISTINCT pg_describe_object(c, o, 0) FROM placed JOIN pg_namespace ON pg_namespace.oid = n
 WHERE nspname <> ALL(%s::text[]) AND nspname !~ '^pg_toast'
UNION SELECT pg_describe_object(c, o, 0) FROM gone WHERE c = 'pg_extension'::regclass ORDER BY 1
"""


def dump(place: Endpoint, credentials: Credentials, places: Sequence[str]) -> Command:
    whole = postgresql_copy.dump(place, credentials)
    only = [f"--schema={_pattern(name)}" for name in places]
    more = ("--no-owner", "--no-privileges", "--no-publications", "--no-subscriptions", "--no-tablespaces")
    return replace(whole, argv=(*whole.argv, *more, *only))


def restore(place: Endpoint, credentials: Credentials, names: TenantNames) -> Command:
    whole = postgresql_copy.restore(place, credentials)
    more = ("--single-transaction", "--no-owner", "--no-privileges", "--no-tablespaces", f"--role={names.group}")
    # Beside what lives nothing is said to be there before it is on the disk.
    options = whole.env["PGOPTIONS"].replace("synchronous_commit=off", "synchronous_commit=on")
    return replace(whole, argv=(*whole.argv, *more), env={**whole.env, "PGOPTIONS": options})


def places(endpoint: Endpoint, credentials: Credentials) -> dict[str, str]:
    with inside(endpoint, credentials) as connection, translated():
        rows = connection.execute(
            "SELECT nspname, coalesce(obj_description(oid, 'pg_namespace'), '') FROM pg_namespace"
        )
        return {str(name): str(comment) for name, comment in rows.fetchall()}


def lacking(endpoint: Endpoint, credentials: Credentials, needs: Sequence[tuple[str, str]]) -> list[str]:
    found = []
    with inside(endpoint, credentials) as connection, translated():
        for kind, name in needs:
            row = connection.execute(f"SELECT {_THERE[kind]}", [name]).fetchone()  # type: ignore[arg-type]
            if not (row and row[0]):
                found.append(f"{kind} {name}")
    return found


def drop(endpoint: Endpoint, credentials: Credentials, wanted: Sequence[str], owner: str) -> list[str]:
    mine = [name for name, comment in places(endpoint, credentials).items() if name in wanted and comment == owner]
    with inside(endpoint, credentials) as connection, translated(), connection.transaction():
        if users := [str(row[0]) for row in connection.execute(_USERS, [mine, mine]).fetchall()]:  # type: ignore[arg-type]
            return users
        for name in mine:
            connection.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(name)))
    return []


def contents_of(
    endpoint: Endpoint, credentials: Credentials, tables: Sequence[str], pulse: Callable[[], None]
) -> Mapping[str, TableContent]:
    with inside(endpoint, credentials, pulse) as connection, translated():
        prepare(connection)
        with connection.transaction():
            return contents_of_tables(connection, pulse, set(tables))


def _pattern(name: str) -> str:
    """A schema's name as pg_dump takes it literally."""
    return '"' + name.replace('"', '""') + '"'
