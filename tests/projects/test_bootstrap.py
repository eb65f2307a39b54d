"""The tables that a new database begins with: on a real server of every engine, made by the tenant itself."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import psycopg
import pymysql
import pytest
from pymongo import MongoClient
from pymongo.errors import DuplicateKeyError

from projects.domain import Capability, Credentials, EngineError, LoginRefused
from projects.engines import bootstrap, mongodb_bootstrap, mysql_bootstrap, postgresql_bootstrap
from projects.engines.base import EXPECTED, Engine
from projects.engines.bootstrap import AUDIT_LOGS, FIRST, MIGRATIONS, SETTINGS, TABLES, Change, Version
from projects.engines.ferretdb import FerretDB
from projects.engines.mariadb import MariaDB
from projects.engines.mongodb import MongoDB
from projects.engines.mysql import MySQL
from projects.engines.postgresql import PostgreSQL
from tests.contracts.engine_contract import LiveServer, Tenant, new_names
from tests.contracts.engine_servers import docker_server

LIMIT = 20


@dataclass(frozen=True)
class Paper:
    """A database on paper, for what `apply` decides."""

    tables: dict[str, bool]
    versions: set[str]
    ran: list[str]

    def present(self) -> Mapping[str, bool]:
        return dict(self.tables)

    def recorded(self) -> set[str]:
        return self.versions

    def run(self, statement: str) -> None:
        self.ran.append(statement)

    def record(self, version: str, description: str) -> None:
        self.versions.add(version)


V1 = Version("1", "", tuple(Change(name, (f"make {name}",), creates=True) for name in TABLES))
V2 = Version("2", "", (Change(SETTINGS, ("widen settings",)), Change("jobs", ("make jobs",), creates=True)))
MADE = dict.fromkeys(TABLES, True)


@pytest.mark.parametrize(
    ("tables", "recorded", "ran"),
    [
        ({}, set(), ["make schema_migrations", "make settings", "make audit_logs", "widen settings", "make jobs"]),
        (MADE, {"1"}, ["widen settings", "make jobs"]),
        (MADE, set(), ["widen settings", "make jobs"]),
        (MADE | {"jobs": True}, {"1", "2"}, []),
        ({MIGRATIONS: True, AUDIT_LOGS: True}, {"1"}, ["make jobs"]),
        ({SETTINGS: False}, set(), ["make schema_migrations", "make audit_logs", "make jobs"]),
        ({SETTINGS: True}, set(), ["make schema_migrations", "make audit_logs", "widen settings", "make jobs"]),
    ],
    ids=["new", "one newer", "never recorded", "all there", "one dropped", "one somebody else's", "cut short"],
)
def test_versions_only_add(tables: dict[str, bool], recorded: set[str], ran: list[str]) -> None:
    target = Paper(dict(tables), set(recorded), [])
    done = bootstrap.apply(target, (V1, V2))
    assert target.ran == ran
    assert target.versions == {"1", "2"} and done.version == "2"
    assert set(done.kept) == {name for name, ours in tables.items() if not ours}


def test_without_a_place_to_record_it_is_all_done_again() -> None:
    target = Paper({MIGRATIONS: False, SETTINGS: True, AUDIT_LOGS: True, "jobs": True}, set(), [])
    assert bootstrap.apply(target, (V1, V2)).kept == (MIGRATIONS,)
    assert target.ran == ["widen settings"] and target.versions == set()


class BootstrapContract:
    engine: ClassVar[Engine]
    version: ClassVar[str]
    run: ClassVar[Callable[..., Any]]
    second: ClassVar[Version[Any]]  # what a later release might bring: something new about `settings`

    @pytest.fixture(scope="class")
    @classmethod
    def server(cls) -> Iterator[LiveServer]:
        for server in docker_server(cls.engine, cls.version):
            with cls.engine.admin(server.endpoint, server.admin) as admin:
                admin.harden()
            yield server

    @pytest.fixture
    def tenant(self, server: LiveServer) -> Iterator[Tenant]:
        tenant = Tenant(new_names(LIMIT), uuid.uuid4().hex, uuid.uuid4().hex)
        with self.engine.admin(server.endpoint, server.admin) as admin:
            admin.create_tenant(tenant.names, login_password=tenant.password, control_password=tenant.control_password)
        yield tenant
        with self.engine.admin(server.endpoint, server.admin) as admin:
            admin.drop_tenant(tenant.names)

    @contextlib.contextmanager
    def session(self, server: LiveServer, credentials: Credentials) -> Iterator[Any]:
        raise NotImplementedError

    def shape(self, session: Any) -> Any:
        """All there is of the database's structure, with whom it belongs to where that is known."""
        raise NotImplementedError

    def use(self, session: Any) -> None:
        """Do with the tables what an application does."""
        raise NotImplementedError

    def versions(self, session: Any) -> list[str]:
        raise NotImplementedError

    def own(self, session: Any, table: str) -> None:
        """The tenant makes something of its own of that name, and puts a row there."""
        raise NotImplementedError

    def drop(self, session: Any, table: str) -> None:
        raise NotImplementedError

    # --- the promises -------------------------------------------------------------------------------------------------
    def bootstrap(self, server: LiveServer, tenant: Tenant) -> Any:
        return self.engine.bootstrap(server.endpoint, tenant.names, tenant.password)

    def test_it_makes_three_tables_that_are_the_tenants(self, server: LiveServer, tenant: Tenant) -> None:
        done = self.bootstrap(server, tenant)
        assert set(done.created) == set(TABLES) and (done.version, done.kept) == (FIRST, ())
        with self.session(server, tenant.login) as session:
            assert self.versions(session) == [FIRST]
            self.use(session)
            for table in TABLES:
                self.drop(session, table)  # they are the tenant's to drop
        self.engine.verify_tenant(server.endpoint, tenant.names, tenant.password)

    def test_twice_changes_nothing(self, server: LiveServer, tenant: Tenant) -> None:
        self.bootstrap(server, tenant)
        with self.session(server, tenant.login) as session:
            self.use(session)
            before = self.shape(session)
            assert before, "the look sees something"
            assert self.bootstrap(server, tenant).created == ()
            assert self.shape(session) == before
            assert self.versions(session) == [FIRST]

    def test_what_was_dropped_comes_back_only_with_the_record(self, server: LiveServer, tenant: Tenant) -> None:
        """A tenant that dropped a table does not want it; one that dropped the record gets what is missing."""
        self.bootstrap(server, tenant)
        with self.session(server, tenant.login) as session:
            self.drop(session, SETTINGS)
            assert self.bootstrap(server, tenant).created == ()
            self.drop(session, MIGRATIONS)
            assert set(self.bootstrap(server, tenant).created) == {SETTINGS, MIGRATIONS}

    @pytest.mark.parametrize("table", TABLES)
    def test_the_tenants_own_is_never_touched(self, server: LiveServer, tenant: Tenant, table: str) -> None:
        with self.session(server, tenant.login) as session:
            self.own(session, table)
            before = self.shape(session)
            done = self.bootstrap(server, tenant)
            assert done.kept == (table,) and set(done.created) == set(TABLES) - {table}
            after = self.shape(session)
            assert {key: after[key] for key in before} == before
            assert self.bootstrap(server, tenant).created == ()

    def test_a_later_version_adds(self, server: LiveServer, tenant: Tenant) -> None:
        self.bootstrap(server, tenant)
        versions = (*self.shipped(), self.second)
        with self.session(server, tenant.login) as session:
            before = self.shape(session)
            done = type(self).run(server.endpoint, tenant.names, tenant.password, versions)
            assert done.version == self.second.name
            assert self.versions(session) == [FIRST, self.second.name]
            after = self.shape(session)
            assert after != before and set(after) == set(before)
            assert after[AUDIT_LOGS] == before[AUDIT_LOGS]

    def shipped(self) -> tuple[Version[Any], ...]:
        raise NotImplementedError

    def test_a_wrong_password_is_said(self, server: LiveServer, tenant: Tenant) -> None:
        with pytest.raises(LoginRefused):
            self.engine.bootstrap(server.endpoint, tenant.names, "wrong")

    def test_a_neighbour_is_left_alone(self, server: LiveServer, tenant: Tenant) -> None:
        other = Tenant(new_names(LIMIT), uuid.uuid4().hex, uuid.uuid4().hex)
        with self.engine.admin(server.endpoint, server.admin) as admin:
            admin.create_tenant(other.names, login_password=other.password, control_password=other.control_password)
        try:
            self.bootstrap(server, tenant)
            with self.session(server, other.login) as session:
                assert not self.shape(session)
        finally:
            with self.engine.admin(server.endpoint, server.admin) as admin:
                admin.drop_tenant(other.names)

    # --- the connection limit that a tenant gets ----------------------------------------------------------------------
    def test_the_twenty_first_login_is_refused(self, server: LiveServer, tenant: Tenant) -> None:
        if Capability.CONNECTION_LIMIT not in self.engine.capabilities:
            assert EXPECTED[Capability.CONNECTION_LIMIT] in self.engine.limitations
            return
        with contextlib.ExitStack() as open_sessions:
            for _ in range(LIMIT):
                open_sessions.enter_context(self.session(server, tenant.login))
            with pytest.raises(self.refusals) as refused:
                open_sessions.enter_context(self.session(server, tenant.login))
            assert self.says_too_many(str(refused.value)), refused.value
            with self.engine.admin(server.endpoint, server.admin) as admin:
                assert admin.stats(tenant.names.database).connections_limit == LIMIT

    refusals: ClassVar[tuple[type[Exception], ...]] = ()

    def says_too_many(self, text: str) -> bool:
        return "too many connections" in text or "max_user_connections" in text


class PostgreSQLBootstrap(BootstrapContract):
    engine = PostgreSQL()
    run = staticmethod(postgresql_bootstrap.run)
    second = Version("novastack-0002", "", (
        Change(SETTINGS, ("ALTER TABLE public.settings ADD COLUMN IF NOT EXISTS owner text",)),
    ))  # fmt: skip
    refusals = (psycopg.OperationalError,)

    def shipped(self) -> tuple[Version[Any], ...]:
        return postgresql_bootstrap.VERSIONS

    @contextlib.contextmanager
    def session(self, server: LiveServer, credentials: Credentials) -> Iterator[Any]:
        with psycopg.connect(
            host=server.endpoint.host, port=server.endpoint.port, dbname=credentials.database, autocommit=True,
            user=credentials.username, password=credentials.password, connect_timeout=5,
        ) as connection:  # fmt: skip
            yield connection

    def shape(self, session: Any) -> Any:
        found: dict[str, list[Any]] = {}
        for table, *rest in session.execute(
            "SELECT c.relname, c.relkind::text, c.relowner::regrole::text, a.attname, format_type(a.atttypid, a.atttypmod),"
            " a.attnotnull, obj_description(c.oid), (SELECT array_agg(indexdef ORDER BY indexdef) FROM pg_indexes i"
            "   WHERE i.schemaname = 'public' AND i.tablename = c.relname)"
            " FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid"
            " WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'v') AND a.attnum > 0"
            " ORDER BY c.relname, a.attnum"
        ):
            found.setdefault(table, []).append(rest)
        return found

    def use(self, session: Any) -> None:
        session.execute("INSERT INTO settings (name, value) VALUES (%s, '{\"on\": true}')", [uuid.uuid4().hex])
        session.execute("INSERT INTO audit_logs (actor, action, details) VALUES ('a', 'made ✓', '{}')")
        session.execute("INSERT INTO schema_migrations (version) VALUES ('2026') ")
        session.execute("DELETE FROM schema_migrations WHERE version = '2026'")
        name = session.execute("SELECT value->>'on' FROM settings").fetchone()[0]
        assert name == "true"

    def versions(self, session: Any) -> list[str]:
        return [row[0] for row in session.execute("SELECT version FROM schema_migrations ORDER BY version")]

    def own(self, session: Any, table: str) -> None:
        session.execute(f"CREATE TABLE {table} (mine int)")
        session.execute(f"INSERT INTO {table} VALUES (7)")

    def drop(self, session: Any, table: str) -> None:
        session.execute(f"DROP TABLE {table}")

    def test_owner_encoding_and_indexes(self, server: LiveServer, tenant: Tenant) -> None:
        self.bootstrap(server, tenant)
        with self.session(server, tenant.login) as session:
            assert session.execute("SHOW server_encoding").fetchone()[0] == "UTF8"
            owners = session.execute("SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'public'").fetchall()
            assert owners == [(tenant.names.group,)], "the group's, whichever login comes later"
            plan = session.execute("EXPLAIN SELECT * FROM audit_logs WHERE actor = 'x' ORDER BY created_at").fetchall()
            session.execute("SET enable_seqscan = off")
            plan = session.execute("EXPLAIN SELECT * FROM audit_logs WHERE actor = 'x' ORDER BY created_at").fetchall()
            assert "audit_logs_actor" in str(plan)

    @pytest.mark.parametrize("what", ["VIEW settings AS SELECT 1 AS one", "TYPE settings AS ENUM ('a')"])
    def test_whatever_has_the_name(self, server: LiveServer, tenant: Tenant, what: str) -> None:
        with self.session(server, tenant.login) as session:
            session.execute(f"CREATE {what}")
            assert self.bootstrap(server, tenant).kept == (SETTINGS,)

    def test_all_or_nothing(self, server: LiveServer, tenant: Tenant) -> None:
        broken = Version("novastack-0002", "", (Change(SETTINGS, ("ALTER TABLE public.nowhere ADD COLUMN a int",)),))
        with pytest.raises(EngineError, match="nowhere"):
            type(self).run(server.endpoint, tenant.names, tenant.password, (*postgresql_bootstrap.VERSIONS, broken))
        with self.session(server, tenant.login) as session:
            assert self.shape(session) == {}

    def test_settings_by_which_a_tenant_gets_in_its_own_way(self, server: LiveServer, tenant: Tenant) -> None:
        """And nothing of its code runs with more rights than its own."""
        with self.session(server, tenant.login) as session:
            session.execute("SET ROLE NONE")
            for setting in ("search_path = elsewhere", "statement_timeout = 1", "default_transaction_read_only = on"):
                session.execute(f"ALTER ROLE {tenant.names.login} SET {setting}")
        assert set(self.bootstrap(server, tenant).created) == set(TABLES)


class TestPostgreSQL18(PostgreSQLBootstrap):
    version = "18"


class TestPostgreSQL15(PostgreSQLBootstrap):
    version = "15"


class FamilyBootstrap(BootstrapContract):
    run = staticmethod(mysql_bootstrap.run)
    second = Version("novastack-0002", "", (Change(SETTINGS, ("ALTER TABLE settings ADD COLUMN owner TEXT",)),))
    refusals = (pymysql.MySQLError,)

    def shipped(self) -> tuple[Version[Any], ...]:
        return mysql_bootstrap.VERSIONS

    @contextlib.contextmanager
    def session(self, server: LiveServer, credentials: Credentials) -> Iterator[Any]:
        connection = pymysql.connect(
            host=server.endpoint.host, port=server.endpoint.port, user=credentials.username, charset="utf8mb4",
            password=credentials.password, database=credentials.database, autocommit=True, connect_timeout=5,
        )  # fmt: skip
        try:
            with connection.cursor() as cursor:
                yield cursor
        finally:
            connection.close()

    def shape(self, session: Any) -> Any:
        session.execute("SELECT table_name, table_type FROM information_schema.tables WHERE table_schema = DATABASE()")
        found = {}
        for table, kind in list(session.fetchall()):
            session.execute(f"SHOW CREATE {'TABLE' if kind == 'BASE TABLE' else 'VIEW'} {table}")
            text = str(session.fetchone()[1])
            found[table] = " ".join(word for word in text.split() if not word.startswith("AUTO_INCREMENT="))
        return found

    def use(self, session: Any) -> None:
        session.execute("INSERT INTO settings (name, value) VALUES (%s, '{\"on\": true}')", [uuid.uuid4().hex])
        session.execute("INSERT INTO audit_logs (actor, action, details) VALUES ('a', 'made 🐬', '{}')")
        session.execute("SELECT action, TIMESTAMPDIFF(SECOND, created_at, UTC_TIMESTAMP()) FROM audit_logs")
        action, age = session.fetchone()
        assert action == "made 🐬" and 0 <= age < 60
        with pytest.raises(pymysql.MySQLError):
            session.execute("INSERT INTO settings (name, value) VALUES ('x', 'no json')")

    def versions(self, session: Any) -> list[str]:
        session.execute("SELECT version FROM schema_migrations ORDER BY version")
        return [row[0] for row in session.fetchall()]

    def own(self, session: Any, table: str) -> None:
        session.execute(f"CREATE TABLE {table} (mine INT)")
        session.execute(f"INSERT INTO {table} VALUES (7)")

    def drop(self, session: Any, table: str) -> None:
        session.execute(f"DROP TABLE {table}")

    def test_character_set_and_indexes(self, server: LiveServer, tenant: Tenant) -> None:
        self.bootstrap(server, tenant)
        with self.session(server, tenant.login) as session:
            session.execute(
                "SELECT DISTINCT LEFT(table_collation, 7) FROM information_schema.tables WHERE table_schema = DATABASE()"
            )
            assert session.fetchall() == (("utf8mb4",),)
            session.execute(
                "SELECT DISTINCT index_name FROM information_schema.statistics"
                " WHERE table_schema = DATABASE() AND index_name <> 'PRIMARY'"
            )
            assert {row[0] for row in session.fetchall()} == {
                "schema_migrations_applied_at", "settings_updated_at", "audit_logs_created_at", "audit_logs_actor",
                "audit_logs_action", "audit_logs_resource",
            }  # fmt: skip

    def test_a_view_of_that_name(self, server: LiveServer, tenant: Tenant) -> None:
        with self.session(server, tenant.login) as session:
            session.execute("CREATE VIEW settings AS SELECT 1 AS one")
            assert self.bootstrap(server, tenant).kept == (SETTINGS,)

    def test_what_was_cut_short_is_finished(self, server: LiveServer, tenant: Tenant) -> None:
        """There is no transaction around it here."""
        half = Version(FIRST, "", mysql_bootstrap.VERSIONS[0].changes[1:2])
        done = type(self).run(server.endpoint, tenant.names, tenant.password, (half,))
        assert done.created == (SETTINGS,)
        done = self.bootstrap(server, tenant)
        assert set(done.created) == {MIGRATIONS, AUDIT_LOGS} and done.kept == ()


class TestMariaDB118(FamilyBootstrap):
    engine, version = MariaDB(), "11.8"


class TestMariaDB1011(FamilyBootstrap):
    engine, version = MariaDB(), "10.11"


class TestMySQL97(FamilyBootstrap):
    engine, version = MySQL(), "9.7"


class MongoBootstrap(BootstrapContract):
    run = staticmethod(mongodb_bootstrap.run)
    second: ClassVar[Version[Any]] = Version("novastack-0002", "", (
        Change(SETTINGS, ({"createIndexes": SETTINGS, "indexes": [{"key": {"owner": 1}, "name": "novastack_owner"}]},)),
    ))  # fmt: skip

    def shipped(self) -> tuple[Version[Any], ...]:
        return mongodb_bootstrap.VERSIONS

    @contextlib.contextmanager
    def session(self, server: LiveServer, credentials: Credentials) -> Iterator[Any]:
        with MongoClient[dict[str, Any]](
            server.endpoint.host, server.endpoint.port, username=credentials.username, password=credentials.password,
            authSource=credentials.database or "admin", directConnection=True, serverSelectionTimeoutMS=5000,
        ) as client:  # fmt: skip
            yield client[credentials.database]

    def shape(self, session: Any) -> Any:
        return {name: session[name].index_information() for name in session.list_collection_names()}

    def use(self, session: Any) -> None:
        name = uuid.uuid4().hex
        session[SETTINGS].insert_one({"name": name, "value": {"on": True}})
        with pytest.raises(DuplicateKeyError):
            session[SETTINGS].insert_one({"name": name})
        session[AUDIT_LOGS].insert_one({"actor": "a", "action": "made ✓"})

    def versions(self, session: Any) -> list[str]:
        return sorted(row["version"] for row in session[MIGRATIONS].find())

    def own(self, session: Any, table: str) -> None:
        session[table].insert_one({"mine": 7})

    def drop(self, session: Any, table: str) -> None:
        session.drop_collection(table)

    def test_indexes(self, server: LiveServer, tenant: Tenant) -> None:
        self.bootstrap(server, tenant)
        with self.session(server, tenant.login) as session:
            found = session[SETTINGS].index_information()
            assert found["novastack_name"]["unique"] is True
            keys = [info["key"] for info in session[AUDIT_LOGS].index_information().values()]
            assert [("resource_type", 1), ("resource_id", 1), ("created_at", 1)] in keys


class TestFerretDB(MongoBootstrap):
    engine, version = FerretDB(), "1.24"


class TestMongoDB(MongoBootstrap):
    engine, version = MongoDB(), "8"
