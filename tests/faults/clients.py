"""What the tests do to a server as its owner, and see in it as its administrator: one small class per engine, on the
engine's own driver, so that NovaStack's own sessions are not what vouches for NovaStack."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import psycopg
import pymysql
from pymongo.errors import PyMongoError

from projects.models import DatabaseRole, DatabaseServer, DatabaseSlot, Project, RoleKind
from tests.clients import Access, MongoDBClient, MySQLClient, PostgreSQLClient

ROWS = 1000
Things = dict[tuple[str, str], str]


def role_of(project: Project) -> DatabaseRole:
    """The owner's login; what is stored is what is shown."""
    role = DatabaseRole.objects.select_related("database").get(
        database__project=project, database__slot=DatabaseSlot.CURRENT, kind=RoleKind.LOGIN
    )
    assert role.pending_secret is None
    return role


def server_of(project: Project) -> DatabaseServer:
    return DatabaseServer.objects.get(databases__project=project, databases__slot="current")


def password_of(role: DatabaseRole) -> str:
    assert role.secret is not None
    return role.secret.open()


class Client(ABC):
    engine: ClassVar[str]
    versions: ClassVar[Mapping[str, str]]  # runtime → what the tests' machines have
    refusals: ClassVar[tuple[type[Exception], ...]]  # of the driver
    home: ClassVar[str]  # the database in which an administrator's session begins
    listening: ClassVar[str]  # what a server writes into its log whenever it starts; empty: nothing
    platform: ClassVar[frozenset[tuple[str, str]]]  # what each server has besides one project's things

    @contextlib.contextmanager
    def login(self, project: Project) -> Iterator[Any]:
        """A session of the driver's, as the owner, with the stored password, at the published address."""
        role = role_of(project)
        project.endpoint.refresh_from_db()
        access = self._as_owner(project, role, tls=server_of(project).tls_enabled)
        with self.session(access) as session:
            yield session

    def gets_in_plainly(self, project: Project) -> bool:
        """Whether the owner's login works without TLS."""
        role = role_of(project)
        try:
            with self.session(self._as_owner(project, role, tls=False)):
                return True
        except self.refusals:
            return False

    @contextlib.contextmanager
    def administrator(self, project: Project, *, pending: bool = False) -> Iterator[Any]:
        """With the stored password. `pending`: there may be a newer one, and then it is that."""
        server = server_of(project)
        assert pending or server.admin_pending_secret is None
        secret = server.admin_pending_secret or server.admin_secret
        access = Access(
            "127.0.0.1", server.port or 0, self.home, server.admin_username, secret.open(), unchecked=server.tls_enabled
        )
        with self.session(access) as session:
            yield session

    def _as_owner(self, project: Project, role: DatabaseRole, *, tls: bool) -> Access:
        at = project.endpoint
        return Access(at.host, at.port, role.database.name, role.name, password_of(role), unchecked=tls)

    @abstractmethod
    def session(self, access: Access) -> contextlib.AbstractContextManager[Any]:
        """Of the driver's."""

    @abstractmethod
    def fill(self, project: Project) -> None:
        """`ROWS` rows in `orders`, made as the owner."""

    @abstractmethod
    def rows(self, project: Project) -> int: ...

    @abstractmethod
    def things(self, project: Project, *, pending: bool = False) -> Things:
        """Every login and database → what tells it from another one of that name; "" where the product has nothing."""

    def own(self, project: Project) -> set[tuple[str, str]]:
        """What must be there for the project, by its rows."""
        role = role_of(project)
        control = DatabaseRole.objects.get(
            database__project=project, database__slot=DatabaseSlot.CURRENT, kind=RoleKind.CONTROL
        )
        return {("database", role.database.name), ("role", role.name), ("role", control.name)}


class PostgreSQL(Client):
    engine = "postgresql"
    versions = {"docker": "18", "process": "18"}
    refusals = (psycopg.OperationalError,)
    home = "postgres"
    listening = "database system is ready to accept connections"
    platform = frozenset({("role", "novastack"), ("database", "postgres")})

    def session(self, access: Access) -> contextlib.AbstractContextManager[psycopg.Connection[Any]]:
        return PostgreSQLClient().session(access, autocommit=False)

    def fill(self, project: Project) -> None:
        with self.login(project) as session:
            session.execute(f"CREATE TABLE orders AS SELECT n FROM generate_series(1, {ROWS}) n")

    def rows(self, project: Project) -> int:
        with self.login(project) as session:
            found = session.execute("SELECT count(*) FROM orders").fetchone()
        return int(found[0])

    def things(self, project: Project, *, pending: bool = False) -> Things:
        with self.administrator(project, pending=pending) as session:
            roles = session.execute("SELECT rolname, oid FROM pg_roles WHERE rolname !~ '^pg_'").fetchall()
            bases = session.execute("SELECT datname, oid FROM pg_database WHERE NOT datistemplate").fetchall()
        return {("role", n): str(i) for n, i in roles} | {("database", n): str(i) for n, i in bases}

    def own(self, project: Project) -> set[tuple[str, str]]:
        roles = DatabaseRole.objects.filter(database__project=project).values_list("name", flat=True)
        return super().own(project) | {("role", name) for name in roles}


class MySQLFamily(Client):
    refusals = (pymysql.err.OperationalError,)
    home = ""
    listening = "ready for connections."

    def session(self, access: Access) -> contextlib.AbstractContextManager[Any]:
        return MySQLClient().connection(access, read_timeout=10)

    def _ask(self, session: Any, statement: str) -> tuple[Any, ...]:
        with session.cursor() as cursor:
            cursor.execute(statement)
            return tuple(cursor.fetchall())

    def fill(self, project: Project) -> None:
        with self.login(project) as session, session.cursor() as cursor:
            cursor.execute("CREATE TABLE orders (n INT PRIMARY KEY)")
            cursor.executemany("INSERT INTO orders VALUES (%s)", [(n,) for n in range(ROWS)])

    def rows(self, project: Project) -> int:
        with self.login(project) as session:
            return int(self._ask(session, "SELECT COUNT(*) FROM orders")[0][0])

    def things(self, project: Project, *, pending: bool = False) -> Things:
        with self.administrator(project, pending=pending) as session:
            users = self._ask(session, "SELECT User FROM mysql.user")
            bases = self._ask(session, "SELECT schema_name FROM information_schema.schemata")
            identity = self._ask(session, "SELECT id FROM novastack.identity")[0][0]
        internal = {"information_schema", "mysql", "performance_schema", "sys"}
        found = {("role", user): "" for (user,) in users}
        found |= {("database", name): "" for (name,) in bases if name not in internal}
        return found | {("database", "novastack"): str(identity)}


class MariaDB(MySQLFamily):
    engine = "mariadb"
    versions = {"docker": "11.8", "process": "10.11"}
    platform = frozenset({("role", "root"), ("role", "mariadb.sys"), ("database", "novastack")})


class MySQL(MySQLFamily):
    engine = "mysql"
    versions = {"docker": "9.7", "process": "9.7"}
    platform = frozenset({
        ("role", "root"), ("role", "mysql.infoschema"), ("role", "mysql.session"), ("role", "mysql.sys"),
        ("database", "novastack"),
    })  # fmt: skip


class FerretDB(Client):
    engine = "ferretdb"
    versions = {"docker": "1.24", "process": "1.24"}
    refusals = (PyMongoError,)
    home = "admin"
    listening = ""
    platform = frozenset({("role", "novastack"), ("database", "admin")})

    @contextlib.contextmanager
    def session(self, access: Access) -> Iterator[Any]:
        with MongoDBClient().session(access) as database:
            database.command("ping")  # the driver logs in when it first needs to
            yield database

    def fill(self, project: Project) -> None:
        with self.login(project) as database:
            database["orders"].insert_many([{"_id": n} for n in range(ROWS)])

    def rows(self, project: Project) -> int:
        with self.login(project) as database:
            return int(database["orders"].count_documents({}))

    def things(self, project: Project, *, pending: bool = False) -> Things:
        with self.administrator(project, pending=pending) as database:
            users = database["system.users"].find()
            found = {("role", str(user["user"])): str(user.get("userId")) for user in users}
            names = database.client.list_database_names()
        return found | {("database", name): "" for name in names}


CLIENTS: Mapping[str, Client] = {c.engine: c for c in (PostgreSQL(), MariaDB(), MySQL(), FerretDB())}
