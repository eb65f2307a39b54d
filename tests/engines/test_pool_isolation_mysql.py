"""Pools of MySQL and MariaDB: each attack of the list, tried by one tenant on a real server while another one works there."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pymysql
import pytest
from pymysql.connections import Connection

from projects.domain import Credentials, TenantNames
from projects.engines.base import Engine
from projects.engines.mariadb import MariaDB
from projects.engines.mysql import MySQL
from projects.runtimes.process import ProcessRuntime
from projects.runtimes.process_binaries import find
from tests.contracts.engine_contract import LiveServer
from tests.contracts.engine_servers import docker_server, live_server
from tests.engines.attacks import Attack, Outcome
from tests.engines.attacks_mysql import MARIADB, MYSQL

MARK = "neighboursecret"  # in all that the neighbour says, names and sets
PASSWORD, CONTROL = "tenants-password", "controls-password"
# 1064, 1286, 1193: the product has no such thing at all. Everything else is a refusal, not an accident.
REFUSALS = {
    1018, 1030, 1044, 1045, 1049, 1064, 1095, 1131, 1133, 1141, 1142,
    1143, 1146, 1148, 1193, 1227, 1238, 1286, 1290, 1356, 1370, 1371,
    1372, 1401, 1410, 1478, 1621, 1698, 1959, 3119, 3121, 3161, 3162, 3530, 3661, 3948, 4166,
}  # fmt: skip


def ask(connection: Connection[Any], statement: str, *parameters: object) -> tuple[Any, ...]:
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters or None)
        return tuple(cursor.fetchall())


@dataclass
class Pool:
    server: LiveServer
    mine: TenantNames
    theirs: TenantNames
    similar: TenantNames
    neighbour: Connection[Any]
    beside: Connection[Any]  # of ours, root's

    def login(self, names: TenantNames, database: str = "", **options: Any) -> Connection[Any]:
        place = self.server.endpoint
        return pymysql.connect(
            host=place.host, port=place.port, user=names.login, password=PASSWORD, autocommit=True, connect_timeout=5,
            database=database or names.database, read_timeout=60, **options,
        )  # fmt: skip

    def filled_in(self, statement: str) -> str:
        mine = {field.name: getattr(self.mine, field.name) for field in dataclasses.fields(TenantNames)}
        theirs = {f"their_{field.name}": getattr(self.theirs, field.name) for field in dataclasses.fields(TenantNames)}
        more = {"mine": self.mine.database, "similar": self.similar.database, "their_pid": self.neighbour.thread_id()}
        return re.sub(r"\{(\w+)\}", lambda match: str({**mine, **theirs, **more}[match[1]]), statement)

    def traces(self) -> set[str]:
        return {MARK, self.theirs.database, self.theirs.login, self.theirs.control}


class Isolation:
    engine: ClassVar[Engine]
    version: ClassVar[str]
    attacks: ClassVar[Sequence[Attack]]
    leaks: ClassVar[frozenset[str]] = frozenset()  # views that name others' tables, as the documentation says

    @classmethod
    def servers(cls) -> Iterator[LiveServer]:
        yield from docker_server(cls.engine, cls.version, pool=True)

    @classmethod
    def tenants(cls) -> tuple[TenantNames, TenantNames, TenantNames]:
        """One, its neighbour, and one whose database would be meant by the first one's name as a pattern."""

        def named(database: str) -> TenantNames:
            part = uuid.uuid4().hex[:12]
            return TenantNames(database, f"nvs_{part}_o", f"nvs_{part}_g", f"tenant_{part}", f"nvs_{part}_c", 5)

        first, second = uuid.uuid4().hex[:16], uuid.uuid4().hex[:15]
        return (
            named(f"tenant_{first}_{second}"), named(f"tenant_{uuid.uuid4().hex}"), named(f"tenantx{first}x{second}"),
        )  # fmt: skip

    @pytest.fixture(scope="class")
    @classmethod
    def pool(cls) -> Iterator[Pool]:
        for server in cls.servers():
            everybody = cls.tenants()
            with cls.engine.admin(server.endpoint, server.admin) as admin:
                admin.harden()
                for names in everybody:
                    admin.create_tenant(names, login_password=PASSWORD, control_password=CONTROL)
            place = server.endpoint
            beside = pymysql.connect(
                host=place.host, port=place.port, user=server.admin.username, password=server.admin.password,
                autocommit=True,
            )  # fmt: skip
            found = Pool(server, *everybody, beside, beside)
            found.neighbour = cls.busy(found)
            working = threading.Thread(target=cls.work, args=(found.login(found.theirs),), daemon=True)
            working.start()
            with contextlib.closing(found.login(found.mine)) as mine:
                ask(mine, "CREATE TABLE own_table (line TEXT)")
            yield found
            found.neighbour.close()
            with cls.engine.admin(server.endpoint, server.admin) as admin:
                for names in everybody:
                    admin.drop_tenant(names)
                assert admin.contents() == [], "something of a tenant is left"
            beside.close()

    @staticmethod
    def busy(pool: Pool) -> Connection[Any]:
        one = pool.login(pool.theirs, program_name=f"{MARK}_program")
        for statement in (
            f"CREATE TABLE {MARK}_table (id INT PRIMARY KEY, {MARK}_column TEXT) COMMENT '{MARK}'",
            f"INSERT INTO {MARK}_table VALUES (1, '{MARK}')",
            f"CREATE PROCEDURE {MARK}_procedure() SELECT '{MARK}'",
            f"CREATE VIEW {MARK}_view AS SELECT '{MARK}' AS one",
            f"CREATE EVENT {MARK}_event ON SCHEDULE EVERY 1 DAY DO SELECT 1",
            f"SET @{MARK}_variable = '{MARK}'",
            f"SELECT GET_LOCK('{MARK}_lock', 1)",
            f"PREPARE {MARK}_statement FROM 'SELECT 1'",
            f"XA START '{MARK}_xa'", f"INSERT INTO {MARK}_table VALUES (2, '{MARK}')", f"XA END '{MARK}_xa'",
            f"XA PREPARE '{MARK}_xa'",
        ):  # fmt: skip
            ask(one, statement)
        return one

    @staticmethod
    def work(connection: Connection[Any]) -> None:
        """A statement that is under way all the time."""
        with contextlib.suppress(pymysql.MySQLError), contextlib.closing(connection):
            while True:
                ask(connection, f"SELECT SLEEP(30) /* {MARK}_statement */")

    def run(self, pool: Pool, attack: Attack) -> tuple[Any, ...]:
        with contextlib.closing(pool.login(pool.mine, local_infile=True)) as connection:
            return ask(connection, pool.filled_in(attack.statement))

    def unharmed(self, pool: Pool) -> object:
        """All that the server knows of the neighbour that others could change."""
        rows = [
            ask(pool.beside, "SELECT * FROM mysql.db WHERE User IN (%s, %s)", pool.theirs.login, pool.theirs.control),
            ask(pool.beside, f"SHOW CREATE USER '{pool.theirs.login}'@'%'"),
            ask(pool.beside, f"SHOW GRANTS FOR '{pool.theirs.login}'@'%'"),
            ask(pool.beside, "SELECT id FROM information_schema.processlist WHERE user = %s ORDER BY 1", pool.theirs.login),
            ask(pool.beside, "SELECT table_name FROM information_schema.tables WHERE table_schema = %s ORDER BY 1",
                pool.theirs.database),
            ask(pool.beside, "SHOW GLOBAL VARIABLES WHERE Variable_name NOT LIKE 'gtid%%' AND Variable_name NOT IN"
                " ('timestamp', 'server_uid', 'rand_seed1', 'rand_seed2', 'last_gtid', 'ssl_session_cache_overflows')"),
        ]  # fmt: skip
        return rows

    # --- the list -----------------------------------------------------------------------------------------------------
    def test_refused(self, pool: Pool, attack: Attack) -> None:
        before = self.unharmed(pool)
        with pytest.raises(pymysql.MySQLError) as error:
            self.run(pool, attack)
        assert error.value.args[0] in REFUSALS, error.value
        assert self.unharmed(pool) == before

    def test_hidden(self, pool: Pool, attack: Attack) -> None:
        shown = repr(self.run(pool, attack)).replace(f"@{MARK}_variable", "")
        assert not [trace for trace in pool.traces() if trace in shown]

    def test_harmless(self, pool: Pool, attack: Attack) -> None:
        before = self.unharmed(pool)
        with contextlib.closing(pool.login(pool.mine)) as connection:
            ask(connection, pool.filled_in(attack.statement))
            if setting := re.match(r"SET SESSION (\w+)", attack.statement):
                assert ask(connection, f"SELECT @@{setting[1]}")[0][0] <= 64 << 20
            if attack.statement.startswith("CREATE EVENT"):
                time.sleep(2.5)
                mine = "SELECT COUNT(*) FROM information_schema.processlist WHERE user = %s"
                assert ask(pool.beside, mine, pool.mine.login) == ((1,),)
        assert self.unharmed(pool) == before

    def test_known_limits_are_as_said(self, pool: Pool, attack: Attack) -> None:
        """Should the product learn to close one, the documentation is to be changed."""
        found = repr(self.run(pool, attack))
        if attack.name.startswith(("Names of tables", "Prepared")):
            assert MARK in found or attack.statement.startswith("XA COMMIT")
        if "GET_LOCK" in attack.statement:
            assert found == "((0,),)"

    # --- all that can be read -----------------------------------------------------------------------------------------
    def test_nothing_readable_tells_of_the_neighbour(self, pool: Pool) -> None:
        told, read = {}, 0
        with contextlib.closing(pool.login(pool.mine)) as connection:
            for schema in ("information_schema", "performance_schema", "sys", "mysql"):
                for (relation,) in ask(pool.beside, f"SHOW TABLES FROM {schema}"):
                    try:
                        shown = repr(ask(connection, f"SELECT * FROM {schema}.`{relation}`"))
                    except pymysql.MySQLError as error:
                        assert error.args[0] in REFUSALS, error
                        continue
                    read += 1
                    if traces := [trace for trace in pool.traces() if trace in shown]:
                        told[f"{schema}.{relation}".lower()] = traces
        assert read > 40
        assert told.keys() == self.leaks, told

    # --- what several tenants of a server do to each other ------------------------------------------------------------
    def test_connections_of_one_are_nobody_elses(self, pool: Pool) -> None:
        with contextlib.ExitStack() as stack:
            for _ in range(pool.mine.connection_limit):
                stack.enter_context(contextlib.closing(pool.login(pool.mine)))
            with pytest.raises(pymysql.MySQLError) as error:
                pool.login(pool.mine)
            assert error.value.args[0] in {1203, 1226}
            pool.login(pool.theirs).close()
            control = Credentials(pool.mine.control, CONTROL, pool.mine.database)
            self.engine.probe(pool.server.endpoint, control)
            with self.engine.admin(pool.server.endpoint, control) as session:
                assert session.stats(pool.mine.database).connections == pool.mine.connection_limit

    def test_a_dropped_tenant_leaves_the_others_alone(self, pool: Pool) -> None:
        wrecked = dataclasses.replace(self.tenants()[1])
        with self.engine.admin(pool.server.endpoint, pool.server.admin) as admin:
            admin.create_tenant(wrecked, login_password=PASSWORD, control_password=CONTROL)
        held = [pool.login(wrecked) for _ in range(3)]
        ask(held[0], "CREATE TABLE t (i INT PRIMARY KEY)")
        ask(held[0], "CREATE PROCEDURE p() SELECT 1")
        ask(held[0], "CREATE EVENT e ON SCHEDULE EVERY 1 DAY DO SELECT 1")
        ask(held[2], "BEGIN")
        for number in range(2):
            ask(held[1], f"XA START 'theirs-{number}'")
            ask(held[1], f"INSERT INTO t VALUES ({number})")
            ask(held[1], f"XA END 'theirs-{number}'")
            ask(held[1], f"XA PREPARE 'theirs-{number}'")
            held[1].close()
            held[1] = pool.login(wrecked)
        prepared = pool.login(pool.theirs)
        ask(prepared, f"CREATE TABLE {MARK}_more (i INT)")
        ask(prepared, "XA START 'kept'")
        ask(prepared, f"INSERT INTO {MARK}_more VALUES (1)")
        ask(prepared, "XA END 'kept'")
        ask(prepared, "XA PREPARE 'kept'")
        prepared.close()
        before = self.unharmed(pool)
        with self.engine.admin(pool.server.endpoint, pool.server.admin) as admin:
            admin.drop_tenant(wrecked)
            admin.drop_tenant(wrecked)
        logins = (wrecked.login, wrecked.control)
        for table, column in (("user", "User"), ("db", "User"), ("procs_priv", "User"), ("tables_priv", "User")):
            assert ask(pool.beside, f"SELECT * FROM mysql.{table} WHERE {column} IN %s", logins) == ()
        for table, column in (("routines", "routine_schema"), ("events", "event_schema"), ("schemata", "schema_name")):
            assert (
                ask(pool.beside, f"SELECT * FROM information_schema.{table} WHERE {column} = %s", wrecked.database)
                == ()
            )
        assert self.unharmed(pool) == before
        with contextlib.closing(pool.login(pool.theirs)) as later:
            ask(later, "XA COMMIT 'kept'")
            assert ask(later, f"SELECT * FROM {MARK}_more") == ((1,),)
        for connection in held:
            connection.close()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Which attacks there are is the class's."""
    outcome = _OUTCOMES.get(metafunc.function.__name__)
    if outcome is not None and metafunc.cls is not None:
        found = [attack for attack in metafunc.cls.attacks if attack.outcome is outcome]
        metafunc.parametrize("attack", found, ids=lambda attack: f"{attack.name}: {attack.statement[:60]}")


_OUTCOMES = {
    "test_refused": Outcome.REFUSED, "test_hidden": Outcome.HIDDEN, "test_harmless": Outcome.HARMLESS,
    "test_known_limits_are_as_said": Outcome.KNOWN,
}  # fmt: skip


@pytest.mark.docker
class TestMySQL97(Isolation):
    engine = MySQL()
    version = "9.7"
    attacks = MYSQL
    leaks = frozenset({"information_schema.tablespaces_extensions"})


@pytest.mark.docker
class TestMariaDB118(Isolation):
    engine = MariaDB()
    version = "11.8"
    attacks = MARIADB


@pytest.mark.docker
class TestMariaDB1011(Isolation):
    engine = MariaDB()
    version = "10.11"
    attacks = MARIADB


@pytest.mark.process
class TestAsAProcess(Isolation):
    engine = MariaDB()
    version = "10.11"
    attacks = MARIADB

    @classmethod
    def servers(cls) -> Iterator[LiveServer]:
        if find("mariadbd", cls.version) is None:
            pytest.skip("no mariadbd 10.11 on this machine: apt-get install mariadb-server-core")
        root = Path(tempfile.mkdtemp(prefix="nvs-test-", dir="/tmp"))
        root.chmod(0o711)
        runtime = ProcessRuntime(f"test-{uuid.uuid4().hex[:8]}", root / "state")
        try:
            yield from live_server(cls.engine, cls.version, "", runtime, pool=True)
        finally:
            shutil.rmtree(root, ignore_errors=True)
