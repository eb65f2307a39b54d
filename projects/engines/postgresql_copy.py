"""Copies of a PostgreSQL database: the tools' commands, and what their login is.

The archive is pg_dump's custom one. A login of our own takes and restores it: a member of the tenant's roles that
sees past row level security, and no superuser: whatever the tenant's functions do while indexes and constraints are
made, they do with the tenant's rights (rule 18).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import psycopg
from psycopg import sql

from projects.domain import Command, Credentials, Endpoint, EngineError, TenantNames
from projects.engines import framing
from projects.engines.postgresql_figures import PostgreSQLFigures
from projects.engines.postgresql_session import BoundedConnection, connect, translated

TOOL_CONNECTIONS = 8
_LISTS = frozenset(
    {
        "local_preload_libraries", "search_path", "session_preload_libraries", "shared_preload_libraries",
        "temp_tablespaces", "unix_socket_directories",
    }
)  # fmt: skip
_FENCE = frozenset({"default_transaction_read_only", "novastack.write_fence"})  # set again by who decides about it
_ANALYZE_SECONDS = 60
_SETTINGS = {
    "search_path": "pg_catalog",
    "statement_timeout": "0",
    "lock_timeout": "60000",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
    "default_transaction_read_only": "off",
    "local_preload_libraries": "",
    "synchronous_commit": "off",  # made good by the first statement after it
}


def dump(place: Endpoint, credentials: Credentials) -> Command:
    return command(place, credentials, "pg_dump", "--format=custom", "--compress=0", "--no-password")


def restore(place: Endpoint, credentials: Credentials) -> Command:
    argv = framing.unframed("pg_restore", "--exit-on-error", "--no-password", f"--dbname={credentials.database}")
    return command(place, credentials, *argv)


def command(place: Endpoint, credentials: Credentials, *argv: str) -> Command:
    """A tool of PostgreSQL's own with what every one of them gets: where, as whom, and no limits of the tenant's."""
    env = {
        "PGHOST": place.host, "PGPORT": str(place.port), "PGUSER": credentials.username,
        "PGDATABASE": credentials.database, "PGPASSFILE": "{secret:pgpass}", "PGCONNECT_TIMEOUT": "10",
        "PGGSSENCMODE": "disable", "PGAPPNAME": "novastack-copy", "PGCLIENTENCODING": "UTF8", "PGSSLMODE": "prefer",
        "PGOPTIONS": " ".join(f"-c {name}={value}" for name, value in _SETTINGS.items()),
    }  # fmt: skip
    password = credentials.password.replace("\\", "\\\\").replace(":", "\\:")
    secrets = {"pgpass": f"*:*:*:*:{password}\n".encode()}
    if place.ca_pem:
        env |= {"PGSSLMODE": "verify-full", "PGSSLROOTCERT": "{secret:ca}"}
        if place.tls_name:
            env |= {"PGHOST": place.tls_name, "PGHOSTADDR": place.host}
        secrets["ca"] = place.ca_pem.encode()
    return Command(argv, env, secrets)


def inside(endpoint: Endpoint, credentials: Credentials, pulse: Callable[[], None] = lambda: None) -> BoundedConnection:
    """A session as the tool's login that may take as long as the database is large; `pulse` ends it by raising."""
    more = {name: value for name, value in _SETTINGS.items() if name != "synchronous_commit"}
    connection = connect(
        endpoint, credentials, timeout_seconds=10,
        settings={**more, "client_connection_check_interval": "5s", "synchronize_seqscans": "on"},
    )  # fmt: skip
    connection.bound_seconds, connection.pulse = float("inf"), pulse
    return connection


def finish(endpoint: Endpoint, credentials: Credentials, names: TenantNames) -> None:
    """Extensions belong to who made them: the group owns them from now on, as it did. And the planner gets figures."""
    with inside(endpoint, credentials) as connection, translated():
        connection.execute(sql.SQL("REASSIGN OWNED BY CURRENT_USER TO {}").format(sql.Identifier(names.group)))
        connection.bound_seconds = _ANALYZE_SECONDS + 5
        connection.execute(f"SET statement_timeout = '{_ANALYZE_SECONDS}s'")  # type: ignore[arg-type]
        # A tenant's own function in an index may fail: the server's daemon does what is left.
        with contextlib.suppress(psycopg.Error):
            connection.execute("ANALYZE")


class PostgreSQLCopies(PostgreSQLFigures):
    """Part of `PostgreSQLAdmin`."""

    def _alone(self, *subjects: str) -> None:
        raise NotImplementedError

    def _logins(self, names: TenantNames) -> list[str]:
        raise NotImplementedError

    def _role_exists(self, role: str) -> bool:
        raise NotImplementedError

    def _verifier(self, username: str, password: str) -> sql.Literal:
        raise NotImplementedError

    def _end_all(self, username: str, seconds: float = 5) -> None:
        raise NotImplementedError

    def obstacles(self, names: TenantNames, *, renamed: bool = False) -> list[str]:
        pending = self._rows("SELECT count(*) FROM pg_prepared_xacts WHERE database = %s", names.database)[0][0]
        slots = self._rows("SELECT count(*) FROM pg_replication_slots WHERE database = %s", names.database)[0][0]
        subscriptions = self._rows(
            "SELECT count(*) FROM pg_subscription s JOIN pg_database d ON d.oid = s.subdbid WHERE d.datname = %s",
            names.database,
        )[0][0]
        found = (
            (pending, "prepared transactions: commit them or roll them back"),
            (slots, "replication slots: drop them, and make them again on the copy"),
            (subscriptions, "subscriptions: drop them, and make them again on the copy"),
        )
        return [f"{count} {what}" for count, what in found if count]

    def admit_tool(self, names: TenantNames, username: str, password: str) -> None:
        # The control role's: on pools nobody else but it reads what databases and logins have set, which pg_dump asks.
        self._admit(names, username, password, {names.group, names.control, *self._logins(names)})

    def admit_restorer(self, names: TenantNames, username: str, password: str) -> str:
        """While it is at work the tenant's code runs in its sessions, which can take on every role that it is a member of:
        the tenant's own, and never the control role's."""
        self._admit(names, username, password, {names.group, *self._logins(names)})
        return username

    def admit_part(self, names: TenantNames, username: str, password: str, places: Sequence[str]) -> None:
        """As a restorer; what it makes is the group's."""
        self._admit(names, username, password, {names.group})

    def _admit(self, names: TenantNames, username: str, password: str, roles: set[str]) -> None:
        self._alone(names.owner)
        with translated(), self._connection.transaction():
            if not self._role_exists(username):
                self._do("CREATE ROLE {} NOLOGIN", username)
            self._do(
                "ALTER ROLE {} NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION BYPASSRLS INHERIT LOGIN"
                " CONNECTION LIMIT {} PASSWORD {}",
                username, TOOL_CONNECTIONS, self._verifier(username, password),
            )  # fmt: skip
            for (role,) in self._rows(
                "SELECT g.rolname FROM pg_auth_members m JOIN pg_roles g ON g.oid = m.roleid"
                " JOIN pg_roles l ON l.oid = m.member WHERE l.rolname = %s", username,
            ):  # fmt: skip
                if role not in roles:
                    self._do("REVOKE {} FROM {}", str(role), username)
            for role in roles - {username}:
                self._do("GRANT {} TO {}", role, username)
            # Without a limit of its own it would have the server's on files that sorting for an index needs.
            self._do("ALTER ROLE {} SET temp_file_limit = -1", username)
            if self._connection.info.server_version >= 170000:
                self._do("GRANT SET ON PARAMETER event_triggers TO {}", username)
                self._do("ALTER ROLE {} SET event_triggers = off", username)

    def dismiss_tool(self, names: TenantNames, username: str) -> None:
        self._alone(names.owner)
        if self._role_exists(username):
            self._do("ALTER ROLE {} NOLOGIN", username)
            self._end_all(username)
            self._do("DROP OWNED BY {}", username)
            self._do("DROP ROLE {}", username)

    def around(self, names: TenantNames) -> dict[str, Any]:
        """Settings as (login or empty, whether in this database only, name, value), and the database's comment."""
        rows = self._rows(
            """
            SELECT coalesce(r.rolname, ''), s.setdatabase <> 0, c
              FROM pg_db_role_setting s CROSS JOIN unnest(s.setconfig) c
              LEFT JOIN pg_roles r ON r.oid = s.setrole LEFT JOIN pg_database d ON d.oid = s.setdatabase
             WHERE (d.datname = %(database)s AND s.setrole = 0)
                OR (r.rolname = ANY(%(roles)s) AND (s.setdatabase = 0 OR d.datname = %(database)s))
            """,
            database=names.database,
            roles=[names.group, *self._logins(names)],
        )
        settings = []
        for role, inside_only, text in rows:
            name, _, value = str(text).partition("=")
            ours = (not role and name in _FENCE) or (role == names.login and name in {"role", "temp_file_limit"})
            if not ours:
                settings.append([str(role), bool(inside_only), name, value])
        comment = self._rows(
            "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = %s", names.database
        )
        return {"settings": sorted(settings), "comment": str(comment[0][0] or "") if comment else ""}

    def rename_tenant(self, old: TenantNames, new: TenantNames) -> None:
        self._alone(old.owner, new.owner)
        with translated(), self._connection.transaction():
            for before, after in (
                (old.owner, new.owner), (old.group, new.group), (old.login, new.login), (old.control, new.control),
            ):  # fmt: skip
                if before != after and self._role_exists(before):
                    self._do("ALTER ROLE {} RENAME TO {}", before, after)
            if self._role_exists(new.login):
                # Kept by name in the catalog.
                self._do("ALTER ROLE {} IN DATABASE {} SET role = {}", new.login, new.database, new.group)

    def limit_connections(self, username: str, most: int) -> None:
        self._do("ALTER ROLE {} CONNECTION LIMIT {}", username, most)

    def password_hashes(self, names: TenantNames) -> dict[str, str]:
        rows = self._rows(
            "SELECT rolname, rolpassword FROM pg_authid WHERE rolname = ANY(%(r)s)", r=self._logins(names)
        )
        return {str(login): str(verifier) for login, verifier in rows if verifier}

    def put_password_hashes(self, names: TenantNames, hashes: Mapping[str, str]) -> None:
        for login, verifier in hashes.items():
            self._do("ALTER ROLE {} PASSWORD {}", login, sql.Literal(verifier))

    def put_around(self, names: TenantNames, around: dict[str, Any]) -> None:
        self._alone(names.owner)
        with translated(), self._connection.transaction():
            for role, inside_only, name, value in around["settings"]:
                self._set(names, str(role), bool(inside_only), str(name), str(value))
            if around["comment"]:
                self._do("COMMENT ON DATABASE {} IS {}", names.database, sql.Literal(around["comment"]))

    def _set(self, names: TenantNames, role: str, inside_only: bool, name: str, value: str) -> None:
        parts = [sql.Literal(word) for word in (_words(value) if name in _LISTS else [value])]
        setting = sql.SQL(".").join(sql.Identifier(word) for word in name.split("."))
        if not role:
            where = sql.SQL("DATABASE {}").format(sql.Identifier(names.database))
        else:
            where = sql.SQL("ROLE {}").format(sql.Identifier(role))
            if inside_only:
                where += sql.SQL(" IN DATABASE {}").format(sql.Identifier(names.database))
        statement = sql.SQL("ALTER {} SET {} TO {}").format(where, setting, sql.SQL(", ").join(parts))
        self._connection.execute(statement)


def _words(value: str) -> list[str]:
    """The names in a setting that is a list, as they stand in the catalog: `"$user", public`."""
    found, rest = [], value.strip()
    while rest:
        if rest.startswith('"'):
            end = 1
            while end < len(rest) and (rest[end] != '"' or rest[end : end + 2] == '""'):
                end += 2 if rest[end] == '"' else 1
            if end >= len(rest):
                raise EngineError("a setting of the database can't be understood")
            found.append(rest[1:end].replace('""', '"'))
            rest = rest[end + 1 :].lstrip()
        else:
            word, _, after = rest.partition(",")
            found.append(word.strip())
            rest = f",{after}" if after or rest.endswith(",") else ""
        rest = rest.removeprefix(",").lstrip()
    return found or [""]
