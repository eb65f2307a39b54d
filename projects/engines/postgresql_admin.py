"""The administrative session of a PostgreSQL server: roles, databases, and what a tenant may do on them (rules 17, 18).

A tenant's database belongs to a platform role. The tenant's group role owns the schema `public` and has CONNECT,
CREATE and TEMP without grant option; logins are members and act as the group. So trusted extensions work, and whatever
only an owner may do (DROP DATABASE, IS_TEMPLATE, CONNECTION LIMIT, GRANT CONNECT TO PUBLIC) is refused.
"""

from __future__ import annotations

import contextlib
import functools
import time
import zlib
from collections.abc import Iterator
from dataclasses import replace

from psycopg import sql

from projects.domain import Credentials, Endpoint, EngineError, TenantNames
from projects.engines import postgresql_pools
from projects.engines.base import BLANK_PREFIX
from projects.engines.postgresql_copy import PostgreSQLCopies
from projects.engines.postgresql_figures import FENCE_MARK, READ_ONLY
from projects.engines.postgresql_session import BoundedConnection, connect, translated

SUPERUSER_CONNECTIONS = 3
RESERVED_CONNECTIONS = 5  # for control roles, so that a full database can still be seen to work
CONTROL_CONNECTIONS = 5
TEMP_FILE_LIMIT = "1GB"
SPARE = "nvs_spare"  # a database that was made before anybody wanted one; no user can choose such a name
_NOT_YET = 0  # the database's connection limit while it is being made: only superusers get in
_INVALID = -2  # an interrupted DROP DATABASE leaves this
_END_SECONDS = 5.0
_WORKING = 0x6E6F7661  # advisory locks: whoever of us changes a tenant's roles or database
_LATE_LOGIN_SECONDS = 0.1  # a login that read the old settings may be seen this much later


class PostgreSQLAdmin(PostgreSQLCopies):
    def __init__(self, connection: BoundedConnection, endpoint: Endpoint, credentials: Credentials) -> None:
        super().__init__(connection, endpoint, credentials)
        self._held: set[int] = set()

    # --- the server ---------------------------------------------------------------------------------------------------
    def ping(self) -> None:
        self._value("SELECT 1")

    def system_identifier(self) -> str:
        return str(self._value("SELECT system_identifier FROM pg_control_system()"))

    def contents(self) -> list[str]:
        rows = self._rows(
            "SELECT datname FROM pg_database WHERE datname NOT IN ('postgres', 'template0', 'template1', %s)"
            " AND NOT (starts_with(datname, %s) AND datconnlimit IN (%s, %s))"
            " UNION ALL SELECT rolname FROM pg_roles WHERE oid >= 16384",
            SPARE, BLANK_PREFIX, _NOT_YET, _INVALID,
        )  # fmt: skip
        return sorted(str(row[0]) for row in rows)

    def harden(self) -> None:
        for database in ("postgres", "template1"):
            self._do("REVOKE ALL ON DATABASE {} FROM PUBLIC", database)

    def set_password(self, username: str, password: str, *, keep_old: bool = False) -> None:
        self._alone(username)
        self._do("ALTER ROLE {} PASSWORD {}", username, self._verifier(username, password))
        if username == self._credentials.username:
            self._credentials = replace(self._credentials, password=password)  # for sessions opened later by this one

    # --- tenants ------------------------------------------------------------------------------------------------------
    def create_tenant(self, names: TenantNames, *, login_password: str, control_password: str, blank: str = "") -> None:
        self._alone(names.owner, names.login, names.control, blank)
        ahead = blank or SPARE
        with translated(), self._connection.transaction():  # each commit waits for the disk: one instead of twenty
            self._make_roles(names, login_password=login_password, control_password=control_password)
            limit = self._limit_of(names.database)
            if limit is None and self._limit_of(ahead) == _NOT_YET:
                self._do("ALTER DATABASE {} RENAME TO {}", ahead, names.database)
                self._do("ALTER DATABASE {} OWNER TO {}", names.database, names.owner)
                limit = _NOT_YET
            if limit is not None and limit != _INVALID:
                self._close_to_public(names)
        if limit is None or limit == _INVALID:
            self._make_database(names.database)
            with translated(), self._connection.transaction():
                self._do("ALTER DATABASE {} OWNER TO {}", names.database, names.owner)
                self._close_to_public(names)
            limit = _NOT_YET
        if limit == _NOT_YET:
            # Nobody but us has been inside: this is the only time that a superuser's session enters it.
            self._own_schema(names)

    def make_blank(self, name: str) -> None:
        _check_blank(name)
        self._alone(name)
        limit = self._limit_of(name)
        if limit in {None, _INVALID}:
            self._make_database(name)
        elif limit != _NOT_YET:
            raise EngineError("a database of that name is in use")
        self._do("REVOKE ALL ON DATABASE {} FROM PUBLIC", name)
        if self._is_pool:
            with self._inside(name) as connection:
                postgresql_pools.close_views(connection)

    def drop_blank(self, name: str) -> None:
        _check_blank(name)
        self._alone(name)
        limit = self._limit_of(name)
        if limit not in {None, _NOT_YET, _INVALID}:
            raise EngineError("a database of that name is in use")
        self._do("DROP DATABASE IF EXISTS {} WITH (FORCE)", name)

    def blanks(self) -> list[str]:
        rows = self._rows(
            "SELECT datname FROM pg_database WHERE starts_with(datname, %s) AND datconnlimit IN (%s, %s)",
            BLANK_PREFIX, _NOT_YET, _INVALID,
        )  # fmt: skip
        return sorted(str(row[0]) for row in rows)

    def make_place(self) -> None:
        self._alone(SPARE)
        if self._limit_of(SPARE) != _NOT_YET:
            self._make_database(SPARE)
        self._do("REVOKE ALL ON DATABASE {} FROM PUBLIC", SPARE)

    def _limit_of(self, database: str) -> int | None:
        """Its connection limit: `_NOT_YET`, `_INVALID`, or that it was opened; None: there is no such database."""
        found = self._value("SELECT datconnlimit FROM pg_database WHERE datname = %s", database)
        return None if found is None else int(str(found))

    def _make_database(self, database: str) -> None:
        if self._limit_of(database) == _INVALID:
            self._do("DROP DATABASE {}", database)
        self._do("CREATE DATABASE {} TEMPLATE template0 ENCODING 'UTF8' CONNECTION LIMIT 0", database)

    def drop_tenant(self, names: TenantNames) -> None:
        self._alone(names.owner, names.login, names.control)
        self.lock_tenant(names, locked=True)
        if self._value("SELECT true FROM pg_database WHERE datname = %s", names.database):
            self._do("ALTER DATABASE {} IS_TEMPLATE false", names.database)
            for (slot,) in self._rows(
                "SELECT slot_name FROM pg_replication_slots WHERE database = %s AND NOT active", names.database
            ):
                self._rows("SELECT pg_drop_replication_slot(%s)", slot)
            self._do("DROP DATABASE IF EXISTS {} WITH (FORCE)", names.database)
        for role in [names.tool, *self._logins(names), names.control, names.group, names.owner]:
            if self._role_exists(role):
                self._do("DROP OWNED BY {}", role)  # what is granted to it on shared things
                self._do("DROP ROLE IF EXISTS {}", role)

    def lock_tenant(self, names: TenantNames, *, locked: bool) -> None:
        self._alone(names.owner)
        logins = self._logins(names)
        for role in logins:
            self._do("ALTER ROLE {} NOLOGIN" if locked else "ALTER ROLE {} LOGIN", role)
        if locked:
            for role in logins:
                self._end_all(role)

    def end_sessions(self, username: str) -> int:
        return len(
            self._rows(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE usename = %s AND pid <> pg_backend_pid() AND backend_type = 'client backend'",
                username,
            )
        )

    # The database's own setting, not its logins': it holds for every login, tenants can't change it, and what a tenant set
    # on its login stays the tenant's. It is in the catalog, so that restarts, rotations and renames keep it.
    def fence_writers(self, names: TenantNames, *, fenced: bool) -> int:
        self._alone(names.owner)
        with translated(), self._connection.transaction():
            for setting in (READ_ONLY, FENCE_MARK):
                change = f"SET {setting} = 'on'" if fenced else f"RESET {setting}"
                self._do(f"ALTER DATABASE {{}} {change}", names.database)
        if fenced:
            return self._drop_overrides(names) + self._end_older(names, "true")
        # What has written by now has overridden the fence itself: it may be freeing space.
        return self._end_older(names, "backend_xid IS NULL")

    def hold_fence(self, names: TenantNames, *, hard: bool) -> int:
        self._alone(names.owner)
        ended = self._drop_overrides(names)
        if hard:
            ended += self._end_where(names, "backend_xid IS NOT NULL")
        return ended

    def _drop_overrides(self, names: TenantNames) -> int:
        """What a login says by `ALTER ROLE … SET` wins over the database's setting: taken back, with its sessions."""
        rows = self._rows(
            """
            SELECT r.rolname, d.datname FROM pg_db_role_setting s
              JOIN pg_roles r ON r.oid = s.setrole LEFT JOIN pg_database d ON d.oid = s.setdatabase
             WHERE r.rolname = ANY(%(logins)s) AND (s.setdatabase = 0 OR d.datname = %(database)s)
               AND EXISTS (SELECT FROM unnest(s.setconfig) c
                            WHERE c LIKE %(prefix)s AND c <> %(read_only)s)
            """,
            logins=self._logins(names),
            database=names.database,
            prefix=f"{READ_ONLY}=%",
            read_only=f"{READ_ONLY}=on",
        )
        for login, database in rows:
            if database is None:
                self._do(f"ALTER ROLE {{}} RESET {READ_ONLY}", login)
            else:
                self._do(f"ALTER ROLE {{}} IN DATABASE {{}} RESET {READ_ONLY}", login, database)
        return sum(self.end_sessions(login) for login in {login for login, _ in rows})

    def _end_older(self, names: TenantNames, condition: str) -> int:
        """End the tenant's sessions that began before now, also those whose login is still under way."""
        before = self._value("SELECT clock_timestamp()::text")
        deadline = time.monotonic() + _END_SECONDS
        ended = quiet = 0
        while quiet < 2:
            found = self._end_where(names, f"({condition}) AND backend_start <= %(before)s::timestamptz", before=before)
            ended += found
            quiet = 0 if found else quiet + 1
            if time.monotonic() > deadline:
                raise EngineError("sessions of the tenant did not end in time")
            time.sleep(_LATE_LOGIN_SECONDS)
        return ended

    def _end_where(self, names: TenantNames, condition: str, **parameters: object) -> int:
        query = (
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = ANY(%(logins)s)"  # noqa: S608 - ours
            f" AND datname = %(database)s AND backend_type = 'client backend' AND {condition}"
        )
        return len(self._rows(query, logins=self._logins(names), database=names.database, **parameters))

    # --- parts --------------------------------------------------------------------------------------------------------
    def _alone(self, *subjects: str) -> None:
        """Wait until no other session of ours changes any of these, until this session ends. The server goes on with the
        last statement of a worker that was killed (CREATE DATABASE takes its time) and only then sees that nobody is there:
        what is not yet there for us would be there a moment later. Other tenants of the server don't wait."""
        keys = {zlib.crc32(subject.encode()) - (1 << 31) for subject in subjects if subject} - self._held
        for key in sorted(keys):
            self._rows(f"SELECT pg_advisory_lock({_WORKING}, {key})")
            self._held.add(key)

    @functools.cached_property
    def _is_pool(self) -> bool:
        with translated():
            return postgresql_pools.is_pool(self._connection)

    @contextlib.contextmanager
    def _inside(self, database: str) -> Iterator[BoundedConnection]:
        """A superuser's transaction in a database into which nobody ever got but us."""
        inside = Credentials(self._credentials.username, self._credentials.password, database)
        settings = {"event_triggers": "off"} if self._connection.info.server_version >= 170000 else None
        with (
            connect(self._endpoint, inside, timeout_seconds=10, settings=settings) as connection,
            translated(),
            connection.transaction(),
        ):
            yield connection

    def _make_roles(self, names: TenantNames, *, login_password: str, control_password: str) -> None:
        version = self._connection.info.server_version
        for role in (names.owner, names.group, names.login, names.control):
            if not self._role_exists(role):
                self._do("CREATE ROLE {} NOLOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS", role)
        grant = "GRANT {} TO {} WITH ADMIN FALSE, INHERIT TRUE, SET TRUE" if version >= 160000 else "GRANT {} TO {}"
        self._do(grant, names.group, names.login)
        for role, password, limit in (
            (names.login, login_password, names.connection_limit),
            (names.control, control_password, CONTROL_CONNECTIONS),
        ):
            verifier = self._verifier(role, password)
            self._do("ALTER ROLE {} INHERIT LOGIN CONNECTION LIMIT {} PASSWORD {}", role, limit, verifier)
        self._do("ALTER ROLE {} SET temp_file_limit = {}", names.login, TEMP_FILE_LIMIT)
        for setting, value in (
            ("search_path", "pg_catalog"),
            ("statement_timeout", "15s"),
            ("lock_timeout", "5s"),
            ("default_transaction_read_only", "on"),
        ):
            self._do(f"ALTER ROLE {{}} SET {setting} = {{}}", names.control, value)
        if version >= 160000:
            self._do("GRANT pg_use_reserved_connections TO {}", names.control)
        if version >= 170000:
            self._do("GRANT SET ON PARAMETER event_triggers TO {}", names.control)
            self._do("ALTER ROLE {} SET event_triggers = off", names.control)

    def _close_to_public(self, names: TenantNames) -> None:
        self._do("REVOKE ALL ON DATABASE {} FROM PUBLIC", names.database)
        self._do("GRANT CONNECT, CREATE, TEMPORARY ON DATABASE {} TO {}", names.database, names.group)
        self._do("GRANT CONNECT ON DATABASE {} TO {}", names.database, names.control)
        # Objects belong to the group whoever of its logins made them: a second login can replace the first.
        self._do("ALTER ROLE {} IN DATABASE {} SET role = {}", names.login, names.database, names.group)

    def reload_tls(self, *, required: bool) -> None:
        """`required` is said by pg_hba.conf, which is one of the files."""
        self._value("SELECT pg_reload_conf()")

    def _own_schema(self, names: TenantNames) -> None:
        schema = sql.SQL("ALTER SCHEMA public OWNER TO {}").format(sql.Identifier(names.group))
        opening = sql.SQL("ALTER DATABASE {} CONNECTION LIMIT -1").format(sql.Identifier(names.database))
        with self._inside(names.database) as connection:
            if self._is_pool:
                postgresql_pools.close_views(connection)
                postgresql_pools.let_control_see(connection, names.control)
            connection.execute(schema)
            connection.execute(opening)

    def _logins(self, names: TenantNames) -> list[str]:
        """Every login of the tenant: the first one, and those that were made members of its group later."""
        rows = self._rows(
            "SELECT r.rolname FROM pg_roles r WHERE r.rolname = %s UNION"
            " SELECT l.rolname FROM pg_auth_members m JOIN pg_roles g ON g.oid = m.roleid"
            " JOIN pg_roles l ON l.oid = m.member"
            " WHERE g.rolname = %s AND NOT l.rolsuper AND l.rolname <> %s",
            names.login,
            names.group,
            names.tool,
        )
        return sorted(str(row[0]) for row in rows)

    def _end_all(self, username: str, seconds: float = 5) -> None:
        """A login that began before NOLOGIN can still appear: repeat until there is none."""
        deadline = time.monotonic() + seconds
        while self.end_sessions(username):
            if time.monotonic() > deadline:
                raise EngineError("sessions of the tenant did not end in time")
            time.sleep(0.05)

    def _role_exists(self, role: str) -> bool:
        return bool(self._value("SELECT true FROM pg_roles WHERE rolname = %s", role))

    def _verifier(self, username: str, password: str) -> sql.Literal:
        """SCRAM-SHA-256 made here: a server that logs the statement logs no password (rule 20)."""
        with translated():
            made = self._connection.pgconn.encrypt_password(password.encode(), username.encode(), b"scram-sha-256")
        return sql.Literal(made.decode())


def _check_blank(name: str) -> None:
    if not name.startswith(BLANK_PREFIX) or len(name.encode()) > 63:
        raise EngineError(f"a blank's name begins with {BLANK_PREFIX}")
