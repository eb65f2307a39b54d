"""PostgreSQL: the engine contract and the tenants' borders, on real servers of each version."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shlex
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from projects.domain import ConnectionInfo, Credentials, LoginRefused, TenantNames
from projects.engines.admin import BLANK_PREFIX
from projects.engines.postgresql import PostgreSQL
from projects.engines.postgresql_tenants import PostgreSQLTenants
from tests.contracts.engine_contract import HOSTILE, EngineContract, LiveServer, Tenant, new_names
from tests.contracts.engine_servers import docker_server

Connection = psycopg.Connection[tuple[object, ...]]


def connect(server: LiveServer, credentials: Credentials, **options: object) -> Connection:
    return psycopg.connect(
        host=server.endpoint.host, port=server.endpoint.port, dbname=credentials.database or "postgres",
        user=credentials.username, password=credentials.password, autocommit=True, connect_timeout=5, **options,
    )  # type: ignore[call-overload, no-any-return]  # fmt: skip


class PostgreSQLSession:
    """A tenant's session, for the contract."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def make_table(self) -> None:
        self.connection.execute("CREATE TABLE things AS SELECT 1 AS id")

    def write(self) -> bool:
        try:
            self.connection.execute("INSERT INTO things VALUES (2)")
        except psycopg.errors.ReadOnlySqlTransaction as error:
            assert error.sqlstate == "25006"
            return False
        return True

    def rows(self) -> int:
        row = self.connection.execute("SELECT count(*) FROM things").fetchone()
        assert row is not None
        return int(str(row[0]))

    def ended(self) -> bool:
        try:
            self.connection.execute("SELECT 1")
        except psycopg.OperationalError:
            return True
        return False

    def override(self, *, for_good: bool) -> None:
        if not for_good:
            self.connection.execute("SET default_transaction_read_only = off")
            return
        self.connection.execute("SET ROLE NONE")
        self.connection.execute("SET default_transaction_read_only = off")
        login = self.connection.info.user
        self.connection.execute(f"ALTER ROLE {login} SET default_transaction_read_only = off")
        self.connection.execute(
            f"ALTER ROLE {login} IN DATABASE {self.connection.info.dbname} SET default_transaction_read_only = off"
        )

    def begin_writing(self) -> None:
        self.connection.execute("BEGIN")
        self.connection.execute("INSERT INTO things VALUES (3)")

    def empty_table(self) -> None:
        self.connection.execute("TRUNCATE things")


@pytest.mark.docker
class PostgreSQLContract(EngineContract):
    engine = PostgreSQL()
    version = "17"
    pool = False

    @pytest.fixture(scope="class")
    @classmethod
    def server(cls) -> Iterator[LiveServer]:
        yield from docker_server(cls.engine, cls.version, pool=cls.pool)

    @contextlib.contextmanager
    def inside(self, server: LiveServer, tenant: Tenant) -> Iterator[Connection]:
        with connect(server, tenant.login) as connection:
            yield connection

    @contextlib.contextmanager
    def open_session(self, server: LiveServer, tenant: Tenant) -> Iterator[PostgreSQLSession]:
        with contextlib.closing(connect(server, tenant.login)) as connection:
            yield PostgreSQLSession(connection)

    def fingerprint(self, server: LiveServer, tenant: Tenant) -> object:
        names = tenant.names
        with connect(server, server.admin) as connection:
            return connection.execute(
                "SELECT d.datname, d.datdba, d.datacl::text, d.datconnlimit, d.datallowconn, d.datistemplate,"
                " (SELECT array_agg(s::text ORDER BY 1) FROM pg_db_role_setting s WHERE setdatabase = d.oid OR setrole IN"
                "   (SELECT oid FROM pg_roles WHERE rolname = ANY(%(roles)s))),"
                " (SELECT array_agg(a::text ORDER BY rolname) FROM pg_authid a WHERE rolname = ANY(%(roles)s)),"
                " (SELECT array_agg(m.roleid::text || m.member ORDER BY 1) FROM pg_auth_members m WHERE member IN"
                "   (SELECT oid FROM pg_roles WHERE rolname = ANY(%(roles)s))),"
                " (SELECT array_agg(pid ORDER BY pid) FROM pg_stat_activity WHERE usename = %(login)s)"
                "  FROM pg_database d WHERE d.datname = %(database)s",
                {"database": names.database, "login": names.login,
                 "roles": [names.owner, names.group, names.login, names.control]},
            ).fetchall()  # fmt: skip

    # --- what a tenant may do -----------------------------------------------------------------------------------------
    @pytest.mark.parametrize("extension", ["pgcrypto", "citext", "hstore", "pg_trgm", "uuid-ossp", "btree_gist"])
    def test_trusted_extensions_work(self, server: LiveServer, tenant: Tenant, extension: str) -> None:
        with self.inside(server, tenant) as connection:
            connection.execute(f'CREATE EXTENSION "{extension}"')
            connection.execute(f'DROP EXTENSION "{extension}"')

    def test_objects_belong_to_the_group(self, server: LiveServer, tenant: Tenant) -> None:
        """So a second login can take over from the first."""
        with self.inside(server, tenant) as connection:
            connection.execute("CREATE TABLE things AS SELECT 1 AS id")
            connection.execute("CREATE SCHEMA more")
            row = connection.execute("SELECT tableowner FROM pg_tables WHERE tablename = 'things'").fetchone()
            assert row == (tenant.names.group,)
        second = f"{tenant.names.login}_2"
        with connect(server, server.admin) as connection:
            connection.execute(f"CREATE ROLE {second} LOGIN PASSWORD 'second' IN ROLE {tenant.names.group}")
            connection.execute(
                f"ALTER ROLE {second} IN DATABASE {tenant.names.database} SET role = '{tenant.names.group}'"
            )
        with connect(server, Credentials(second, "second", tenant.names.database)) as connection:
            connection.execute("ALTER TABLE things ADD note text")
            connection.execute("DROP TABLE things")

    # --- what it may not ----------------------------------------------------------------------------------------------
    @pytest.mark.parametrize("as_login", [False, True], ids=["as the group", "as the login"])
    @pytest.mark.parametrize(
        "statement",
        [
            "DROP DATABASE {database}",
            "ALTER DATABASE {database} CONNECTION LIMIT 0",
            "ALTER DATABASE {database} IS_TEMPLATE true",
            "ALTER DATABASE {database} ALLOW_CONNECTIONS false",
            "ALTER DATABASE {database} RENAME TO mine",
            "ALTER DATABASE {database} SET statement_timeout = 1",
            "ALTER DATABASE {database} OWNER TO {login}",
            "CREATE DATABASE another",
            "CREATE ROLE another",
            "ALTER ROLE {login} CONNECTION LIMIT -1",
            "ALTER ROLE {login} RENAME TO mine",
            "ALTER ROLE {login} SET temp_file_limit = -1",
            "SET temp_file_limit = -1",
            "ALTER ROLE {control} PASSWORD 'mine'",
            "GRANT {group} TO {control}",
            "SET ROLE {owner}",
            "SET ROLE {control}",
            "SET session_replication_role = replica",
            "COPY (SELECT 1) TO PROGRAM 'id'",
            "SELECT pg_read_file('/etc/passwd')",
            "ALTER SYSTEM SET log_statement = 'all'",
            "CREATE EXTENSION dblink",
            "CREATE LANGUAGE plperlu",
            "CREATE EVENT TRIGGER mine ON ddl_command_start EXECUTE FUNCTION nothing()",
            "SELECT * FROM pg_authid",
            "SELECT pg_terminate_backend({our_pid})",
        ],
    )
    def test_refused(self, server: LiveServer, tenant: Tenant, statement: str, *, as_login: bool) -> None:
        names = {field.name: getattr(tenant.names, field.name) for field in dataclasses.fields(TenantNames)}
        watcher = connect(server, server.admin)
        with self.inside(server, tenant) as connection, watcher:
            if as_login:
                connection.execute("RESET ROLE")
                connection.execute("SET ROLE NONE")
            connection.execute(
                "CREATE FUNCTION nothing() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END'"
                if not as_login
                else "SELECT 1"
            )
            # not supported: an extension that is not installed; renaming oneself
            with pytest.raises((psycopg.errors.InsufficientPrivilege, psycopg.errors.FeatureNotSupported)):
                connection.execute(statement.format(**names, our_pid=watcher.info.backend_pid))

    def test_a_failed_statement_leaves_no_password_in_the_log(self, server: LiveServer, tenant: Tenant) -> None:
        """The log is read by the whole organization: it names the error, never the statement's text."""
        secret = f"typed-{uuid.uuid4().hex}"
        with self.inside(server, tenant) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute(f"ALTER ROLE {tenant.names.control} PASSWORD '{secret}'")
        text = server.log_text()
        assert "permission denied" in text
        assert secret not in text

    def test_granting_to_everybody_grants_nothing(self, server: LiveServer, tenant: Tenant) -> None:
        """PostgreSQL warns and does nothing: the group has its rights without grant option."""
        stranger = self.make(server, new_names())
        try:
            with self.inside(server, tenant) as connection:
                connection.execute(f"GRANT ALL ON DATABASE {tenant.names.database} TO PUBLIC")
                connection.execute(f"GRANT CONNECT ON DATABASE {tenant.names.database} TO {stranger.names.login}")
            for place in (tenant.names.database, "postgres", "template1"):
                there = dataclasses.replace(stranger.login, database=place)
                with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
                    connect(server, there)
        finally:
            self.drop(server, stranger.names)

    def test_the_control_role_sees_no_rows(self, server: LiveServer, tenant: Tenant) -> None:
        with self.inside(server, tenant) as connection:
            connection.execute("CREATE TABLE things AS SELECT 1 AS id")
        with connect(server, tenant.control) as connection:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute("SELECT * FROM public.things")
            row = connection.execute("SELECT current_setting('search_path')").fetchone()
            assert row == ("pg_catalog",)

    # --- writers that are fenced --------------------------------------------------------------------------------------
    def test_a_tenant_cannot_lift_the_fence_and_can_see_it(self, server: LiveServer, tenant: Tenant) -> None:
        database = tenant.names.database
        with self.engine.admin(server.endpoint, server.admin) as admin:
            admin.fence_writers(tenant.names, fenced=True)
        with self.inside(server, tenant) as connection:
            assert connection.execute("SHOW novastack.write_fence").fetchone() == ("on",)
            connection.execute("SET default_transaction_read_only = off")
            for statement in (
                f"ALTER DATABASE {database} RESET default_transaction_read_only", f"ALTER DATABASE {database} RESET ALL",
                f"ALTER ROLE ALL IN DATABASE {database} RESET ALL",
            ):  # fmt: skip
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    connection.execute(statement)
        with self.engine.admin(server.endpoint, server.admin) as admin:
            assert admin.stats(database).fenced

    def test_settings_of_others_stay(self, server: LiveServer, tenant: Tenant) -> None:
        """A tenant that is read-only by choice stays so; so does a database that an operator made read-only."""
        database, login = tenant.names.database, tenant.names.login
        with connect(server, server.admin) as connection, self.engine.admin(server.endpoint, server.admin) as admin:
            connection.execute(f"ALTER ROLE {login} SET default_transaction_read_only = on")
            connection.execute(f"ALTER DATABASE {database} SET statement_timeout = '1min'")
            admin.fence_writers(tenant.names, fenced=True)
            admin.hold_fence(tenant.names, hard=True)
            admin.fence_writers(tenant.names, fenced=False)
            connection.execute(f"ALTER DATABASE {database} SET default_transaction_read_only = on")
            assert not admin.stats(database).fenced
        with self.inside(server, tenant) as connection:
            assert connection.execute("SHOW default_transaction_read_only").fetchone() == ("on",)
            assert connection.execute("SHOW statement_timeout").fetchone() == ("1min",)

    def test_an_application_that_connects_again_at_once_is_no_reason_to_fail(
        self, server: LiveServer, tenant: Tenant
    ) -> None:
        """Its new sessions are fenced ones; they are not waited for."""
        stop = threading.Event()

        def insist() -> None:
            while not stop.is_set():
                with (
                    contextlib.suppress(psycopg.OperationalError),
                    contextlib.closing(connect(server, tenant.login)) as c,
                ):
                    while not stop.is_set():
                        c.execute("SELECT 1")

        threads = [threading.Thread(target=insist) for _ in range(4)]
        try:
            for thread in threads:
                thread.start()
            with self.engine.admin(server.endpoint, server.admin) as admin:
                time.sleep(0.3)
                assert admin.fence_writers(tenant.names, fenced=True) >= 1
        finally:
            stop.set()
            for thread in threads:
                thread.join()

    # --- a tenant in trouble ------------------------------------------------------------------------------------------
    def test_a_tenant_that_wrecked_its_settings(self, server: LiveServer, tenant: Tenant) -> None:
        login = tenant.names.login
        with self.inside(server, tenant) as connection:
            connection.execute("RESET ROLE")
            connection.execute("SET ROLE NONE")
            for setting in (
                "statement_timeout = 1", "lock_timeout = 1", "default_transaction_read_only = on",
                "search_path = nowhere", "idle_session_timeout = 1", "datestyle = 'German'", "bytea_output = escape",
            ):  # fmt: skip
                connection.execute(f"ALTER ROLE {login} SET {setting}")
                connection.execute(f"ALTER ROLE {login} IN DATABASE {tenant.names.database} SET {setting}")
        self.engine.probe(server.endpoint, tenant.control)
        self.engine.probe(server.endpoint, tenant.login)
        self.engine.verify_tenant(server.endpoint, tenant.names, tenant.password)
        with self.engine.admin(server.endpoint, server.admin) as admin:
            admin.set_password(login, "rotated")
            self.engine.probe(server.endpoint, dataclasses.replace(tenant.login, password="rotated"))
            assert admin.stats(tenant.names.database).size_bytes > 0
            admin.lock_tenant(tenant.names, locked=True)
            admin.drop_tenant(tenant.names)

    @pytest.mark.parametrize("setting", ["transaction_timeout = 1", "local_preload_libraries = 'nosuch'"])
    def test_a_login_that_harms_itself_can_still_be_proven(
        self, server: LiveServer, tenant: Tenant, setting: str
    ) -> None:
        with self.inside(server, tenant) as connection:
            connection.execute("SET ROLE NONE")
            try:
                connection.execute(f"ALTER ROLE {tenant.names.login} SET {setting}")
            except psycopg.errors.UndefinedObject:
                # before 17 there is no transaction_timeout: the nearest that a tenant can do to itself
                connection.execute(f"ALTER ROLE {tenant.names.login} SET statement_timeout = 1")
        self.engine.probe(server.endpoint, tenant.login)
        with pytest.raises(LoginRefused):
            self.engine.probe(server.endpoint, dataclasses.replace(tenant.login, password="wrong"))

    def test_a_busy_tenant_is_healthy(self, server: LiveServer) -> None:
        tenant = self.make(server, new_names(connection_limit=3))
        with contextlib.ExitStack() as stack:
            for _ in range(3):
                stack.enter_context(connect(server, tenant.login))
            with pytest.raises(psycopg.OperationalError, match="too many connections"):
                connect(server, tenant.login)
            self.engine.probe(server.endpoint, tenant.control)
            self.engine.probe(server.endpoint, tenant.login)
            with self.engine.admin(server.endpoint, server.admin) as admin:
                assert admin.stats(tenant.names.database).connections == 3
                with self.engine.admin(server.endpoint, tenant.control) as session:
                    assert session.stats(tenant.names.database).connections == 3
                admin.drop_tenant(tenant.names)

    def test_sessions_are_ended(self, server: LiveServer, tenant: Tenant) -> None:
        session = connect(server, tenant.login)
        with self.engine.admin(server.endpoint, server.admin) as admin:
            assert admin.end_sessions(tenant.names.login) == 1
            with pytest.raises(psycopg.OperationalError):
                session.execute("SELECT 1")
            held = connect(server, tenant.login)
            admin.lock_tenant(tenant.names, locked=True)
            with pytest.raises(psycopg.OperationalError):
                held.execute("SELECT 1")
            assert admin.end_sessions(tenant.names.login) == 0

    def test_a_full_server_still_lets_us_in(self, server: LiveServer) -> None:
        """Reserved connections (16+): the tenants took every other one."""
        tenant = self.make(server, new_names(connection_limit=-1))
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(psycopg.OperationalError):
                while True:
                    stack.enter_context(connect(server, tenant.login))
            with self.engine.admin(server.endpoint, server.admin) as admin:
                admin.ping()
            if int(self.version) >= 16:
                self.engine.probe(server.endpoint, tenant.control)
        self.drop(server, tenant.names)

    # --- half-made by a crash -----------------------------------------------------------------------------------------
    @pytest.mark.parametrize("done", ["a role", "roles and a closed database", "an invalid database"])
    def test_what_a_crash_left_half_made_is_completed(self, server: LiveServer, done: str) -> None:
        names = new_names()
        with connect(server, server.admin) as connection:
            connection.execute(f"CREATE ROLE {names.owner}")
            if done != "a role":
                connection.execute(f"CREATE ROLE {names.group}")
                connection.execute(
                    f"CREATE DATABASE {names.database} OWNER {names.owner} TEMPLATE template0 CONNECTION LIMIT 0"
                )
            if done == "an invalid database":
                connection.execute("UPDATE pg_database SET datconnlimit = -2 WHERE datname = %s", [names.database])
        tenant = self.make(server, names)
        self.engine.verify_tenant(server.endpoint, names, tenant.password)
        self.drop(server, names)

    @pytest.mark.parametrize("done", ["a database", "an invalid database", "all of it"])
    def test_a_blank_that_a_crash_left_half_made_is_completed(self, server: LiveServer, done: str) -> None:
        blank, names = f"{BLANK_PREFIX}{uuid.uuid4().hex[:8]}", new_names()
        with connect(server, server.admin) as connection:
            connection.execute(f"CREATE DATABASE {blank} TEMPLATE template0 ENCODING 'UTF8' CONNECTION LIMIT 0")
            if done == "an invalid database":
                connection.execute("UPDATE pg_database SET datconnlimit = -2 WHERE datname = %s", [blank])
        with self.engine.admin(server.endpoint, server.admin) as admin:
            assert admin.blanks() == [blank]
            assert blank not in admin.contents()
            if done != "a database":
                admin.make_blank(blank)
            admin.create_tenant(names, login_password="pw", control_password="cpw", blank=blank)
            assert admin.blanks() == []
        self.engine.verify_tenant(server.endpoint, names, "pw")
        with connect(server, Credentials(names.login, "pw", names.database)) as connection:
            seen = connection.execute(
                "SELECT count(DISTINCT datname) FROM pg_stat_database WHERE datname <> ''"
            ).fetchone()
            assert seen is not None
            assert (seen[0] == 1) is self.pool
            encoding = connection.execute(
                "SELECT pg_encoding_to_char(encoding), datcollate FROM pg_database WHERE datname = %s", [names.database]
            ).fetchone()
            assert encoding == ("UTF8", "C.UTF-8")
        self.drop(server, names)

    @pytest.mark.parametrize("done", ["renamed", "renamed and closed"])
    def test_a_claim_that_was_cut_short_is_completed(self, server: LiveServer, done: str) -> None:
        """The blank has the tenant's name already; nobody got in yet."""
        blank, names = f"{BLANK_PREFIX}{uuid.uuid4().hex[:8]}", new_names()
        with self.engine.admin(server.endpoint, server.admin) as admin:
            admin.make_blank(blank)
        with connect(server, server.admin) as connection:
            connection.execute(f"CREATE ROLE {names.owner}")
            connection.execute(f"ALTER DATABASE {blank} RENAME TO {names.database}")
            if done == "renamed and closed":
                connection.execute(f"ALTER DATABASE {names.database} OWNER TO {names.owner}")
        with self.engine.admin(server.endpoint, server.admin) as admin:
            admin.create_tenant(names, login_password="pw", control_password="cpw", blank=blank)
            assert admin.blanks() == []
        self.engine.verify_tenant(server.endpoint, names, "pw")
        self.drop(server, names)

    def test_a_blank_is_nobodys_and_closed(self, server: LiveServer, tenant: Tenant) -> None:
        blank = f"{BLANK_PREFIX}{uuid.uuid4().hex[:8]}"
        with self.engine.admin(server.endpoint, server.admin) as admin:
            admin.make_blank(blank)
            with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
                connect(server, dataclasses.replace(tenant.login, database=blank))
            admin.drop_blank(blank)

    def test_several_workers_claim_one_blank(self, server: LiveServer) -> None:
        """One of them gets it, the other makes its own: neither fails, and none shares."""
        blank = f"{BLANK_PREFIX}{uuid.uuid4().hex[:8]}"
        with self.engine.admin(server.endpoint, server.admin) as admin:
            admin.harden()
            admin.make_blank(blank)
        several = [new_names() for _ in range(4)]

        def claim(names: TenantNames) -> None:
            with self.engine.admin(server.endpoint, server.admin) as admin:
                admin.create_tenant(names, login_password="pw", control_password="cpw", blank=blank)

        try:
            with ThreadPoolExecutor(4) as workers:
                for done in [workers.submit(claim, names) for names in several]:
                    done.result(60)
            for names in several:
                self.engine.verify_tenant(server.endpoint, names, "pw")
        finally:
            for names in several:
                self.drop(server, names)

    # --- what is made ahead on a pool -----------------------------------------------------------------------------------
    def ahead(self, server: LiveServer, *, tables: bool = True) -> str:
        """A blank with its roles."""
        blank = f"{BLANK_PREFIX}{uuid.uuid4().hex[:8]}"
        with self.engine.admin(server.endpoint, server.admin) as admin:
            for _ in range(2):  # again is nothing
                admin.make_blank(blank, login_password="pw", control_password="cpw", tables=tables)
        return blank

    def check_place(self, server: LiveServer, names: TenantNames, *, tables: bool, password: str = "pw") -> None:  # noqa: S107
        """As if it had been made by hand, for this tenant: roles, rights, limits, owners; nothing left of the blank."""
        self.engine.verify_tenant(server.endpoint, names, password)
        with connect(server, Credentials(names.control, "cpw", names.database)) as connection:
            connection.execute("SELECT 1")
        with connect(server, Credentials(names.login, password, names.database)) as connection:
            owners = connection.execute(
                "SELECT DISTINCT tableowner::text FROM pg_tables WHERE schemaname = 'public'"
            ).fetchall()
            assert owners == ([(names.group,)] if tables else [])
        with self.engine.admin(server.endpoint, server.admin) as admin:
            assert admin.blanks() == []
            assert set(admin.contents()) == {names.database, names.owner, names.group, names.login, names.control}
        with connect(server, server.admin) as connection:
            row = connection.execute(
                "SELECT l.rolconnlimit, c.rolconnlimit, l.rolcanlogin, g.rolcanlogin, o.rolcanlogin, d.datconnlimit,"
                " d.datdba::regrole::text, shobj_description(d.oid, 'pg_database'), has_database_privilege('public', d.oid,"
                " 'CONNECT') FROM pg_roles l, pg_roles c, pg_roles g, pg_roles o, pg_database d WHERE l.rolname = %s"
                " AND c.rolname = %s AND g.rolname = %s AND o.rolname = %s AND d.datname = %s",
                [names.login, names.control, names.group, names.owner, names.database],
            ).fetchone()
        assert row == (names.connection_limit, 5, True, False, False, -1, names.owner, None, False)
        again = self.engine.bootstrap(server.endpoint, names, password)
        assert again.created == (() if tables else ("schema_migrations", "settings", "audit_logs"))

    @pytest.mark.parametrize("tables", [True, False])
    @pytest.mark.parametrize("password", ["pw", "another"])
    def test_a_blank_with_roles_is_given_away(self, server: LiveServer, tables: bool, password: str) -> None:
        blank, names = self.ahead(server), new_names()
        with self.engine.admin(server.endpoint, server.admin) as admin:
            assert admin.contents() == []
            made = admin.place_tenant(
                names, login_password=password, control_password="cpw", blank=blank, tables=tables
            )
            assert (made is not None) is (tables and self.pool)
            if made is None and tables:
                self.engine.bootstrap(server.endpoint, names, password)
            again = admin.place_tenant(
                names, login_password=password, control_password="cpw", blank=blank, tables=tables
            )
            assert again is None, "it was seen to already"
        self.check_place(server, names, tables=tables, password=password)
        if password != "pw":
            with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
                connect(server, Credentials(names.login, "pw", names.database))
        self.drop(server, names)

    @pytest.mark.parametrize("tables", [True, False])
    def test_a_blank_without_tables_is_given_away_as_it_is(
        self, server: LiveServer, tables: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Nobody enters it on the way, whatever is wanted; the tables are made afterwards, as in any database."""
        blank, names = self.ahead(server, tables=False), new_names()
        if self.pool:
            monkeypatch.setattr(PostgreSQLTenants, "_inside", None)
        with self.engine.admin(server.endpoint, server.admin) as admin:
            made = admin.place_tenant(names, login_password="pw", control_password="cpw", blank=blank, tables=tables)
            assert made is None
        if tables:
            self.engine.bootstrap(server.endpoint, names, "pw")
        self.check_place(server, names, tables=tables)
        self.drop(server, names)

    @pytest.mark.parametrize("tables", [True, False])
    def test_giving_a_blank_away_that_was_cut_short_is_completed(self, server: LiveServer, tables: bool) -> None:
        """It has the tenant's names already, and is still closed."""
        if not self.pool:
            return
        blank, names = self.ahead(server), new_names()
        with self.engine.admin(server.endpoint, server.admin) as admin:
            found = admin._found(names, blank)  # type: ignore[attr-defined]
            passwords = {names.login: "pw", names.control: "cpw"}
            admin._give(found, names, blank, passwords, whole=False)  # type: ignore[attr-defined]
        with pytest.raises(psycopg.OperationalError, match="too many connections for database"):
            connect(server, Credentials(names.login, "pw", names.database))
        with self.engine.admin(server.endpoint, server.admin) as admin:
            made = admin.place_tenant(names, login_password="pw", control_password="cpw", blank=blank, tables=tables)
            assert (made is not None) is tables
        self.check_place(server, names, tables=tables)
        self.drop(server, names)

    def test_nobody_logs_in_with_what_was_made_ahead(self, server: LiveServer) -> None:
        blank = self.ahead(server)
        for role in (f"{blank}_login", f"{blank}_control", f"{blank}_owner"):
            for database in (blank, "postgres"):
                with pytest.raises(psycopg.OperationalError, match=r"not permitted to log in|authentication failed"):
                    connect(server, Credentials(role, "pw", database))
        with self.engine.admin(server.endpoint, server.admin) as admin:
            admin.drop_blank(blank)
            assert admin.blanks() == []
            assert admin.contents() == []
            admin.drop_blank(blank)

    @pytest.mark.parametrize("left", ["roles", "half", "older"])
    def test_a_blank_with_roles_that_is_not_whole_serves_all_the_same(self, server: LiveServer, left: str) -> None:
        """Its database went, a worker was killed before it was finished, or an older version made it."""
        if not self.pool:
            return
        blank, names = self.ahead(server), new_names()
        with connect(server, server.admin) as connection:
            if left == "roles":
                connection.execute(f"DROP DATABASE {blank}")
            else:
                text = "NULL" if left == "half" else "'of an older version'"
                connection.execute(f"COMMENT ON DATABASE {blank} IS {text}")
        with self.engine.admin(server.endpoint, server.admin) as admin:
            assert admin.blanks() == [blank]
            made = admin.place_tenant(names, login_password="pw", control_password="cpw", blank=blank, tables=True)
            assert made is not None
            assert admin.blanks() == [blank], "nobody's; it is swept up"
            admin.drop_blank(blank)
        self.check_place(server, names, tables=True)
        self.drop(server, names)

    @pytest.mark.parametrize("left", ["half", "older", "invalid"])
    def test_a_template_that_is_not_whole_is_made_again(self, server: LiveServer, left: str) -> None:
        if not self.pool:
            return
        names = new_names()
        with self.engine.admin(server.endpoint, server.admin) as admin:
            admin.make_place()
        with connect(server, server.admin) as connection:
            text = {"half": "NULL"}.get(left, "'of an older version'")
            connection.execute(f"COMMENT ON DATABASE {BLANK_PREFIX}template IS {text}")
            if left == "invalid":
                connection.execute(
                    "UPDATE pg_database SET datconnlimit = -2, datistemplate = false"
                    f" WHERE datname = '{BLANK_PREFIX}template'"
                )
        with self.engine.admin(server.endpoint, server.admin) as admin:
            assert admin.place_tenant(names, login_password="pw", control_password="cpw", tables=True) is not None
            assert admin.databases() == [names.database]
        self.check_place(server, names, tables=True)
        self.drop(server, names)

    def test_a_password_of_other_letters_is_taken(self, server: LiveServer) -> None:
        names, password = new_names(), "pässwörd\u00a0ﬁ"
        with self.engine.admin(server.endpoint, server.admin) as admin:
            admin.create_tenant(names, login_password=password, control_password="cpw")
        self.engine.verify_tenant(server.endpoint, names, password)
        self.drop(server, names)

    def test_before_it_is_opened_nobody_gets_in(self, server: LiveServer) -> None:
        tenant = self.make(server, new_names())
        with connect(server, server.admin) as connection:
            connection.execute(f"ALTER DATABASE {tenant.names.database} CONNECTION LIMIT 0")
        with pytest.raises(psycopg.OperationalError, match="too many connections for database"):
            connect(server, tenant.login)
        self.drop(server, tenant.names)

    def test_a_database_that_was_made_a_template_is_dropped_all_the_same(self, server: LiveServer) -> None:
        tenant = self.make(server, new_names())
        with connect(server, server.admin) as connection:
            connection.execute(f"ALTER DATABASE {tenant.names.database} IS_TEMPLATE true ALLOW_CONNECTIONS true")
            connection.execute(f"ALTER DATABASE {tenant.names.database} SET statement_timeout = 1")
        session = connect(server, tenant.login)
        self.drop(server, tenant.names)
        session.close()
        with connect(server, server.admin) as connection:
            left = connection.execute(
                "SELECT rolname FROM pg_roles WHERE rolname = ANY(%s)",
                [[tenant.names.login, tenant.names.group, tenant.names.owner, tenant.names.control]],
            ).fetchall()
            assert left == []

    def test_passwords_are_stored_as_scram_only(self, server: LiveServer, tenant: Tenant) -> None:
        with connect(server, server.admin) as connection:
            rows = connection.execute("SELECT rolpassword FROM pg_authid WHERE rolpassword IS NOT NULL").fetchall()
        assert rows
        assert all(str(row[0]).startswith("SCRAM-SHA-256$") for row in rows)

    # --- figures ------------------------------------------------------------------------------------------------------
    def fill(self, server: LiveServer, tenant: Tenant, table: str, rows: int) -> None:
        with connect(server, tenant.login) as connection:
            connection.execute(f"CREATE TABLE {table} (id integer, word text)")
            single = min(rows, 60)
            for _ in range(single):
                connection.execute(f"INSERT INTO {table} VALUES (1, 'word')")
            connection.execute(f"INSERT INTO {table} SELECT n, 'word' FROM generate_series(1, {rows - single}) n")
            connection.execute(f"SELECT * FROM {table}").fetchall()

    def test_a_table_that_somebody_holds_for_himself_is_not_waited_for(
        self, server: LiveServer, tenant: Tenant
    ) -> None:
        self.fill(server, tenant, "things", 3000)
        with connect(server, tenant.login) as connection:
            connection.execute("ANALYZE things")
            connection.execute("BEGIN")
            connection.execute("LOCK TABLE things IN ACCESS EXCLUSIVE MODE")
            found = self.table_counts(server, tenant)
        assert [table.name for table in found.tables] == ["things"]
        assert (found.tables[0].size_bytes or 0) > 50_000

    def test_counting_runs_no_code_of_the_tenant(self, server: LiveServer, tenant: Tenant) -> None:
        """Rule 18: whatever stands in `public` under the names of what our queries use."""
        with connect(server, tenant.login) as connection:
            connection.execute("CREATE TABLE seen (who text)")
            note = "BEGIN INSERT INTO public.seen VALUES (session_user); RETURN {}; END"
            for head, value in (
                ("pg_total_relation_size(oid) RETURNS bigint", "1"), ("count(anyelement) RETURNS bigint", "1"),
                ("pg_stat_get_live_tuples(oid) RETURNS bigint", "1"), ("differs(name, text) RETURNS boolean", "true"),
                ("concatenated(name, text) RETURNS text", "'x'"),
            ):  # fmt: skip
                body = note.format(value)
                connection.execute(f"CREATE FUNCTION public.{head} LANGUAGE plpgsql AS $$ {body} $$")  # type: ignore[arg-type]
            connection.execute("CREATE OPERATOR public.!~ (LEFTARG = name, RIGHTARG = text, FUNCTION = public.differs)")
            connection.execute(
                "CREATE OPERATOR public.|| (LEFTARG = name, RIGHTARG = text, FUNCTION = public.concatenated)"
            )
            connection.execute("CREATE VIEW public.pg_class AS SELECT 'mine'::text AS relname")
            login = tenant.names.login
            connection.execute(f"SET ROLE NONE; ALTER ROLE {login} SET search_path = public, pg_catalog")
            connection.execute('CREATE SCHEMA "odd; schema"')
            connection.execute('CREATE TABLE "odd; schema"."it\'s ""quoted""\n" (id integer)')
        found = self.table_counts(server, tenant)
        with connect(server, tenant.login) as connection:
            assert connection.execute("SELECT who FROM public.seen").fetchall() == []
        assert {table.name for table in found.tables} == {"seen", 'odd; schema.it\'s "quoted"\n'}


class TestPostgreSQL17(PostgreSQLContract):
    version = "17"


class TestPostgreSQL15(PostgreSQLContract):
    version = "15"


class TestPoolOfPostgreSQL17(PostgreSQLContract):
    """All of it on a server that tells no tenant of another."""

    pool = True


class TestPostgreSQL18(PostgreSQLContract):
    version = "18"


# --- snippets, by the languages that are here ---------------------------------------------------------------------------
INFO = ConnectionInfo("postgresql", "127.0.0.1", 20001, "shop", "app", HOSTILE)


def test_the_shell_gets_the_password_whole() -> None:
    words = shlex.split(PostgreSQL().snippets(INFO)["cli"])
    assert words[0] == f"PGPASSWORD={HOSTILE}"
    assert HOSTILE not in words[2]


def test_env_lines_can_be_sourced() -> None:
    script = f'set -a\n{PostgreSQL().snippets(INFO)["env"]}\nprintf %s "$PGPASSWORD"'
    assert subprocess.run(["sh", "-c", script], capture_output=True, check=True).stdout.decode() == HOSTILE


def test_python_snippets_are_python() -> None:
    names: dict[str, dict[str, dict[str, object]]] = {}
    exec(PostgreSQL().snippets(INFO)["django"], names)  # noqa: S102
    assert names["DATABASES"]["default"]["PASSWORD"] == HOSTILE
    compile(PostgreSQL().snippets(INFO)["sqlalchemy"], "snippet", "exec")


def test_compose_does_not_fill_in_variables() -> None:
    info = dataclasses.replace(INFO, database="a$b")
    line = PostgreSQL().snippets(info)["compose"].splitlines()[-1].partition(": ")[2]
    assert "$" not in json.loads(line).replace("$$", "")


def test_modules_know_no_django() -> None:
    code = (
        "import sys, projects.engines.postgresql, projects.runtimes.docker;"
        "sys.exit(any(name.partition('.')[0] in {'django', 'celery'} for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
