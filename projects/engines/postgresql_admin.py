"""The administrative session of a PostgreSQL server. How a tenant's place is made: `postgresql_tenants`."""

from __future__ import annotations

import time
from dataclasses import replace

from projects.domain import EngineError, TenantNames
from projects.engines.admin import BLANK_PREFIX
from projects.engines.postgresql_figures import FENCE_MARK, READ_ONLY
from projects.engines.postgresql_session import translated
from projects.engines.postgresql_tenants import INVALID, NOT_YET, SPARE, PostgreSQLTenants

SUPERUSER_CONNECTIONS = 3
RESERVED_CONNECTIONS = 5  # for control roles, so that a full database can still be seen to work
_END_SECONDS = 5.0
_LATE_LOGIN_SECONDS = 0.1  # a login that read the old settings may be seen this much later


class PostgreSQLAdmin(PostgreSQLTenants):
    # --- the server ---------------------------------------------------------------------------------------------------
    def ping(self) -> None:
        self._value("SELECT 1")

    def system_identifier(self) -> str:
        return str(self._value("SELECT system_identifier FROM pg_control_system()"))

    def contents(self) -> list[str]:
        rows = self._rows(
            "SELECT datname FROM pg_database WHERE datname NOT IN ('postgres', 'template0', 'template1', %s)"
            " AND NOT (starts_with(datname, %s) AND datconnlimit IN (%s, %s))"
            " UNION ALL SELECT rolname FROM pg_roles WHERE oid >= 16384"
            " AND NOT (starts_with(rolname, %s) AND NOT rolcanlogin)",
            SPARE, BLANK_PREFIX, NOT_YET, INVALID, BLANK_PREFIX,
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
        for role in [names.tool, names.part, *self._logins(names), names.control, names.group, names.owner]:
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
    def reload_tls(self, *, required: bool) -> None:
        """`required` is said by pg_hba.conf, which is one of the files."""
        self._value("SELECT pg_reload_conf()")

    def _logins(self, names: TenantNames) -> list[str]:
        """Every login of the tenant: the first one, and those that were made members of its group later."""
        rows = self._rows(
            "SELECT r.rolname FROM pg_roles r WHERE r.rolname = %s UNION"
            " SELECT l.rolname FROM pg_auth_members m JOIN pg_roles g ON g.oid = m.roleid"
            " JOIN pg_roles l ON l.oid = m.member"
            " WHERE g.rolname = %s AND NOT l.rolsuper AND l.rolname <> ALL(%s)",
            names.login,
            names.group,
            [names.tool, names.part],
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
