"""MariaDB and MySQL: the engine contract and the tenants' borders, on real servers of each version."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import subprocess
import sys
import uuid
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pymysql
import pytest
from pymysql.connections import Connection

from projects.domain import ConnectionInfo, Credentials, EngineError, LoginRefused, TenantNames
from projects.engines.mariadb import MariaDB
from projects.engines.mysql import MySQL
from projects.engines.mysql_session import pattern
from projects.runtimes.docker import DockerRuntime
from tests.contracts.engine_contract import HOSTILE, EngineContract, LiveServer, Tenant, new_names
from tests.contracts.engine_servers import docker_server, image_of


def connect(server: LiveServer, credentials: Credentials) -> Connection[Any]:
    return pymysql.connect(
        host=server.endpoint.host, port=server.endpoint.port, user=credentials.username,
        password=credentials.password, database=credentials.database or None, autocommit=True, connect_timeout=5,
        read_timeout=20, charset="utf8mb4",
    )  # fmt: skip


def ask(connection: Connection[Any], statement: str, *parameters: object) -> tuple[Any, ...]:
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters or None)
        return tuple(cursor.fetchall())


class FamilySession:
    """A tenant's session, for the contract. It can say nothing that lifts a fence: `override` tries."""

    def __init__(self, connection: Connection[Any]) -> None:
        self.connection = connection

    def make_table(self) -> None:
        ask(self.connection, "CREATE TABLE things AS SELECT 1 AS id")

    def write(self) -> bool:
        try:
            ask(self.connection, "INSERT INTO things VALUES (2)")
        except pymysql.MySQLError as error:
            assert error.args[0] == 1142
            return False
        return True

    def rows(self) -> int:
        return int(ask(self.connection, "SELECT COUNT(*) FROM things")[0][0])

    def ended(self) -> bool:
        try:
            ask(self.connection, "SELECT 1")
        except pymysql.MySQLError:
            return True
        return False

    def override(self, *, for_good: bool) -> None:
        ask(self.connection, "SET SESSION TRANSACTION READ WRITE")
        with pytest.raises(pymysql.MySQLError):
            ask(self.connection, "GRANT INSERT ON *.* TO CURRENT_USER()")

    def begin_writing(self) -> None:
        ask(self.connection, "BEGIN")
        ask(self.connection, "DELETE FROM things")

    def empty_table(self) -> None:
        ask(self.connection, "TRUNCATE things")


@pytest.mark.docker
class FamilyContract(EngineContract):
    version: str
    empty_size_bytes = 0
    fence_gives_way = False
    own_password = "ALTER USER CURRENT_USER() IDENTIFIED BY '{}'"

    @pytest.fixture(scope="class")
    @classmethod
    def server(cls) -> Iterator[LiveServer]:
        yield from docker_server(cls.engine, cls.version)

    @contextlib.contextmanager
    def inside(self, server: LiveServer, tenant: Tenant) -> Iterator[Connection[Any]]:
        with connect(server, tenant.login) as connection:
            yield connection

    @contextlib.contextmanager
    def open_session(self, server: LiveServer, tenant: Tenant) -> Iterator[FamilySession]:
        with contextlib.closing(connect(server, tenant.login)) as connection:
            yield FamilySession(connection)

    def fingerprint(self, server: LiveServer, tenant: Tenant) -> object:
        names = tenant.names
        logins = (names.login, names.control)
        with connect(server, server.admin) as connection:
            return [
                ask(connection, "SELECT * FROM mysql.db WHERE User IN %s ORDER BY User", logins),
                ask(connection, "SELECT * FROM mysql.procs_priv WHERE User IN %s ORDER BY User", logins)[0][:5],
                *(ask(connection, f"SHOW CREATE USER '{user}'@'%'") for user in logins),
                *(ask(connection, f"SHOW GRANTS FOR '{user}'@'%'") for user in logins),
                ask(
                    connection, "SELECT id FROM information_schema.processlist WHERE user = %s ORDER BY 1", names.login
                ),
                ask(connection, "SHOW GLOBAL VARIABLES LIKE '%%read_only'"),
                ask(connection, f"SHOW CREATE DATABASE {names.database}"),
            ]

    def fill(self, server: LiveServer, tenant: Tenant, table: str, rows: int) -> None:
        with self.inside(server, tenant) as connection:
            ask(connection, f"CREATE TABLE {table} (id INT AUTO_INCREMENT PRIMARY KEY, word VARCHAR(200))")
            done = min(rows, 60)
            for _ in range(done):
                ask(connection, f"INSERT INTO {table} (word) VALUES ('word')")
            while done < rows:
                step = min(done, rows - done)
                ask(connection, f"INSERT INTO {table} (word) SELECT word FROM {table} LIMIT {step}")
                done += step
            ask(connection, f"SELECT * FROM {table}")
            ask(connection, f"ANALYZE TABLE {table}")

    def test_a_table_that_somebody_holds_for_himself_is_not_waited_for(
        self, server: LiveServer, tenant: Tenant
    ) -> None:
        self.fill(server, tenant, "things", 100)
        with self.inside(server, tenant) as connection:
            ask(connection, "LOCK TABLES things WRITE")
            found = self.table_counts(server, tenant)
        assert [table.name for table in found.tables] == ["things"]

    def test_views_are_no_tables_and_names_come_back_as_they_are(self, server: LiveServer, tenant: Tenant) -> None:
        odd = 'it\'s "%s" ; ünïcode'
        with self.inside(server, tenant) as connection:
            ask(connection, "CREATE TABLE `" + odd + "` (id INT)")
            ask(connection, "CREATE TABLE gone (id INT)")
            ask(connection, "CREATE VIEW broken AS SELECT * FROM gone")
            ask(connection, "DROP TABLE gone")
        assert [table.name for table in self.table_counts(server, tenant).tables] == [odd]

    # --- what the server promises (rule 15) ---------------------------------------------------------------------------
    def test_settings_that_keep_data(self, server: LiveServer) -> None:
        with connect(server, server.admin) as connection:
            found = dict(ask(connection, "SHOW GLOBAL VARIABLES"))
        wanted = {
            "log_bin": "ON", "binlog_format": "ROW", "sync_binlog": "1", "innodb_flush_log_at_trx_commit": "1",
            "character_set_server": "utf8mb4", "local_infile": "OFF", "skip_name_resolve": "ON",
            "log_bin_trust_function_creators": "ON", "general_log": "OFF", "innodb_doublewrite": "ON",
            "datadir": "/var/lib/mysql/data/", "tmpdir": "/var/lib/mysql/tmp",
        }  # fmt: skip
        assert {name: found[name] for name in wanted} == wanted
        assert found["secure_file_priv"].rstrip("/") in {"NULL", "/var/lib/mysql/files"}
        assert int(found["max_connections"]) > 40

    def test_nobody_but_root_is_left_on_a_hardened_server(self, server: LiveServer) -> None:
        with self.engine.admin(server.endpoint, server.admin) as admin:
            admin.harden()
        with connect(server, server.admin) as connection:
            accounts = {f"{user}@{host}" for user, host in ask(connection, "SELECT User, Host FROM mysql.user")}
            assert accounts <= {
                "root@%", "mariadb.sys@localhost", "mysql.sys@localhost", "mysql.session@localhost",
                "mysql.infoschema@localhost",
            }  # fmt: skip
            assert ask(connection, "SHOW DATABASES LIKE 'test'") == ()
            open_to_all = ask(connection, "SELECT Db, User FROM mysql.db WHERE User IN ('', 'PUBLIC')")
            assert open_to_all == ()

    # --- what a tenant may do -----------------------------------------------------------------------------------------
    def test_everyday_things_work(self, server: LiveServer, tenant: Tenant) -> None:
        with self.inside(server, tenant) as connection:
            for statement in (
                "CREATE TABLE things (id BIGINT PRIMARY KEY AUTO_INCREMENT, word TEXT, INDEX (word(20)))",
                "INSERT INTO things (word) VALUES ('naïve 🐬')",
                "CREATE VIEW words AS SELECT word FROM things",
                "CREATE FUNCTION twice(n INT) RETURNS INT DETERMINISTIC RETURN n * 2",
                "CREATE TRIGGER loud BEFORE INSERT ON things FOR EACH ROW SET NEW.word = UPPER(NEW.word)",
                "CREATE PROCEDURE add_one() INSERT INTO things (word) VALUES ('one')",
                "CREATE EVENT later ON SCHEDULE EVERY 1 DAY DO DELETE FROM things WHERE id < 0",
                "CREATE TEMPORARY TABLE scratch AS SELECT * FROM things",
                "ALTER TABLE things ADD note VARCHAR(10), ADD FULLTEXT (word)",
                "CREATE TABLE parts (id INT PRIMARY KEY, thing BIGINT, FOREIGN KEY (thing) REFERENCES things (id))",
                "LOCK TABLES things WRITE",
                "UNLOCK TABLES",
                "CALL add_one()",
            ):
                ask(connection, statement)
            assert ask(connection, "SELECT word FROM words ORDER BY word") == (("naïve 🐬",), ("ONE",))
            assert ask(connection, "SELECT twice(21)") == ((42,),)
            (collation,) = ask(connection, "SELECT @@collation_database")[0]
            assert collation.startswith("utf8mb4_")
            assert ask(connection, "SELECT CONVERT_TZ('2026-01-01 00:00:00', 'UTC', 'Europe/Berlin')")[0][0] is not None
        with self.engine.admin(server.endpoint, server.admin) as admin:
            assert admin.stats(tenant.names.database).size_bytes > 0
        with self.engine.admin(server.endpoint, tenant.control) as session:
            assert session.stats(tenant.names.database).size_bytes > 0

    def test_an_index_larger_than_the_containers_own_tmp(self, server: LiveServer, tenant: Tenant) -> None:
        """Sorting goes to the volume: /tmp is 64 MB of memory."""
        with self.inside(server, tenant) as connection:
            ask(connection, "CREATE TABLE wide (id INT PRIMARY KEY AUTO_INCREMENT, word VARCHAR(700))")
            ask(connection, "INSERT INTO wide (word) VALUES (REPEAT('x', 700))")
            for _ in range(17):
                ask(connection, "INSERT INTO wide (word) SELECT CONCAT(UUID(), REPEAT('y', 660)) FROM wide")
            ask(connection, "ALTER TABLE wide ADD INDEX (word)")
            assert ask(connection, "SELECT COUNT(*) FROM wide") == ((131072,),)

    # --- what it may not ----------------------------------------------------------------------------------------------
    @pytest.mark.parametrize(
        "statement",
        [
            "CREATE DATABASE another",
            "CREATE USER another",
            "CREATE ROLE another",
            "DROP USER '{control}'@'%'",
            "ALTER USER '{login}'@'%' WITH MAX_USER_CONNECTIONS 0",
            "ALTER USER '{control}'@'%' IDENTIFIED BY 'mine'",
            "SET PASSWORD FOR '{control}'@'%' = '{hash}'",
            "GRANT ALL ON *.* TO '{login}'@'%'",
            "GRANT SELECT ON `{database}`.* TO '{control}'@'%'",
            "RENAME USER '{login}'@'%' TO mine@'%'",
            "SELECT * FROM mysql.user",
            "SELECT * FROM mysql.db",
            "SELECT * FROM novastack.identity",
            "CALL novastack.tenant_stats('{database}')",
            "USE novastack",
            "USE test",
            "SET GLOBAL max_connections = 1",
            "SET GLOBAL local_infile = ON",
            "SET SESSION sql_log_bin = 0",
            "SET GLOBAL event_scheduler = OFF",
            "SELECT 1 INTO OUTFILE '/var/lib/mysql/tmp/out'",
            "LOAD DATA INFILE '/etc/passwd' INTO TABLE things",
            "LOAD DATA LOCAL INFILE '/etc/passwd' INTO TABLE things",
            "CREATE TABLESPACE away ADD DATAFILE '/tmp/away.ibd'",
            "INSTALL PLUGIN away SONAME 'ha_blackhole.so'",
            "CREATE FUNCTION away RETURNS INTEGER SONAME 'udf_example.so'",
            "CREATE SERVER away FOREIGN DATA WRAPPER mysql OPTIONS (HOST '127.0.0.1')",
            "CREATE DEFINER = 'root'@'%' PROCEDURE mine() SELECT 1",
            "CREATE DEFINER = 'root'@'%' SQL SECURITY DEFINER VIEW mine AS SELECT * FROM mysql.user",
            "FLUSH PRIVILEGES",
            "FLUSH TABLES WITH READ LOCK",
            "RESET MASTER",
            "PURGE BINARY LOGS BEFORE NOW()",
            "SHOW BINARY LOGS",
            "SHUTDOWN",
            "CHANGE MASTER TO MASTER_HOST = '127.0.0.1'",
        ],
    )
    def test_refused(self, server: LiveServer, tenant: Tenant, statement: str) -> None:
        names = {field.name: getattr(tenant.names, field.name) for field in dataclasses.fields(TenantNames)}
        statement = statement.format(**names, hash="*74445CD742AF268FD22866DA0D12758951D638F7")
        with self.inside(server, tenant) as connection:
            ask(connection, "CREATE TABLE things (word TEXT)")
            with pytest.raises(pymysql.MySQLError) as error:
                ask(connection, statement)
        # 1064: the product has no such statement at all. Everything else is a refusal, not an accident.
        refusals = {
            1030, 1044, 1045, 1064, 1131, 1132, 1133, 1142, 1143, 1148, 1227, 1290, 1370, 1371, 1372, 1410, 1478, 1699, 3119,
            3121, 3948, 4166,
        }  # fmt: skip
        assert error.value.args[0] in refusals, error.value

    def test_no_table_is_placed_elsewhere(self, server: LiveServer, tenant: Tenant) -> None:
        """MariaDB takes the words and leaves them out; MySQL refuses them."""
        with self.inside(server, tenant) as connection:
            with contextlib.suppress(pymysql.MySQLError):
                ask(connection, "CREATE TABLE away (i INT) DATA DIRECTORY '/var/lib/mysql/files'")
            made = [ask(connection, f"SHOW CREATE TABLE {name}")[0][1] for (name,) in ask(connection, "SHOW TABLES")]
        assert "DATA DIRECTORY" not in "".join(made)

    def test_another_database_of_a_similar_name_is_out_of_reach(self, server: LiveServer) -> None:
        """`_` is a wildcard in a GRANT: unescaped, `shop_a_b` reaches `shopXaXb`, with DROP."""
        part = uuid.uuid4().hex[:6]
        mine = self.make(server, dataclasses.replace(new_names(), database=f"shop_{part}_b"))
        other = self.make(server, dataclasses.replace(new_names(), database=f"shopx{part}xb"))
        try:
            with self.inside(server, other) as connection:
                ask(connection, "CREATE TABLE secrets AS SELECT 1 AS one")
            with self.inside(server, mine) as connection:
                for statement in (
                    f"SELECT * FROM {other.names.database}.secrets", f"DROP DATABASE {other.names.database}",
                    f"USE {other.names.database}", f"CREATE DATABASE shopx{part}yb",
                ):  # fmt: skip
                    with pytest.raises(pymysql.MySQLError, match="denied"):
                        ask(connection, statement)
                assert ask(connection, "SHOW DATABASES LIKE 'shop%'") == ((mine.names.database,),)
        finally:
            self.drop(server, mine.names)
            self.drop(server, other.names)

    def test_making_the_server_ready_again_takes_no_right_away(self, server: LiveServer, tenant: Tenant) -> None:
        """Also when the procedure behind the figures is another one than before."""
        for older in (False, True):
            if older:
                with connect(server, server.admin) as connection:
                    ask(connection, "ALTER PROCEDURE novastack.tenant_stats COMMENT 'an older one'")
            with self.engine.admin(server.endpoint, server.admin) as admin:
                admin.harden()
            with self.engine.admin(server.endpoint, tenant.control) as session:
                assert session.stats(tenant.names.database).connections == 0

    def test_the_control_login_sees_no_rows(self, server: LiveServer, tenant: Tenant) -> None:
        with self.inside(server, tenant) as connection:
            ask(connection, "CREATE TABLE things AS SELECT 1 AS id")
        with connect(server, tenant.control) as connection:
            for statement in ("SELECT * FROM things", "DROP TABLE things", "CREATE TABLE mine (i INT)",
                              "SELECT * FROM mysql.user", "SELECT * FROM novastack.identity"):  # fmt: skip
                with pytest.raises(pymysql.MySQLError, match="denied"):
                    ask(connection, statement)
            seen = ask(connection, "SELECT COUNT(*) FROM information_schema.processlist WHERE user <> %s",
                       tenant.names.control)  # fmt: skip
            assert seen == ((0,),)

    # --- a tenant in trouble ------------------------------------------------------------------------------------------
    def test_a_busy_tenant_is_healthy(self, server: LiveServer) -> None:
        tenant = self.make(server, new_names(connection_limit=3))
        with contextlib.ExitStack() as stack:
            for _ in range(3):
                stack.enter_context(connect(server, tenant.login))
            with pytest.raises(pymysql.MySQLError, match="max_user_connections"):
                connect(server, tenant.login)
            self.engine.probe(server.endpoint, tenant.control)
            self.engine.probe(server.endpoint, tenant.login)
            with pytest.raises(LoginRefused):
                self.engine.probe(server.endpoint, dataclasses.replace(tenant.login, password="wrong"))
            with self.engine.admin(server.endpoint, server.admin) as admin:
                assert admin.stats(tenant.names.database).connections == 3
                with self.engine.admin(server.endpoint, tenant.control) as session:
                    assert session.stats(tenant.names.database).connections == 3
        self.drop(server, tenant.names)

    def test_sessions_are_ended(self, server: LiveServer, tenant: Tenant) -> None:
        session = connect(server, tenant.login)
        with self.engine.admin(server.endpoint, server.admin) as admin:
            assert admin.end_sessions(tenant.names.login) == 1
            with pytest.raises(pymysql.MySQLError):
                ask(session, "SELECT 1")
            held = connect(server, tenant.login)
            admin.lock_tenant(tenant.names, locked=True)
            with pytest.raises(pymysql.MySQLError):
                ask(held, "SELECT 1")
            assert admin.end_sessions(tenant.names.login) == 0
            admin.lock_tenant(tenant.names, locked=False)

    def test_a_tenant_that_dropped_its_database(self, server: LiveServer, tenant: Tenant) -> None:
        """It can't be kept from it: DROP DATABASE is the same right as DROP TABLE. We say so, and it can begin anew."""
        with self.inside(server, tenant) as connection:
            ask(connection, f"DROP DATABASE {tenant.names.database}")
        with self.engine.admin(server.endpoint, server.admin) as admin:
            with pytest.raises(EngineError, match="does not exist"):
                admin.stats(tenant.names.database)
            admin.set_password(tenant.names.login, tenant.password)
        with connect(server, dataclasses.replace(tenant.login, database="")) as connection:
            ask(connection, f"CREATE DATABASE {tenant.names.database}")
        self.engine.verify_tenant(server.endpoint, tenant.names, tenant.password)

    def test_a_tenant_that_changed_its_own_password(self, server: LiveServer, tenant: Tenant) -> None:
        with self.inside(server, tenant) as connection:
            ask(connection, self.own_password.format("my-own-choice"))
        with pytest.raises(LoginRefused):
            self.engine.probe(server.endpoint, tenant.login)
        assert "my-own-choice" not in server.log_text()
        with self.engine.admin(server.endpoint, server.admin) as admin:
            admin.set_password(tenant.names.login, tenant.password)
        self.engine.probe(server.endpoint, tenant.login)

    def test_a_failed_statement_leaves_no_password_in_the_log(self, server: LiveServer, tenant: Tenant) -> None:
        secret = f"typed-{uuid.uuid4().hex}"
        with self.inside(server, tenant) as connection, pytest.raises(pymysql.MySQLError):
            ask(connection, f"ALTER USER '{tenant.names.control}'@'%' IDENTIFIED BY '{secret}'")
        assert secret not in server.log_text()

    def test_no_statement_of_ours_carries_a_password(self, server: LiveServer) -> None:
        """Seen by the server's own general log, which is off for tenants."""
        with connect(server, server.admin) as connection:
            ask(connection, "SET GLOBAL log_output = 'TABLE'")
            ask(connection, "SET GLOBAL general_log = ON")
            try:
                tenant = self.make(server, new_names())
                with self.engine.admin(server.endpoint, server.admin) as admin:
                    admin.set_password(tenant.names.login, "rotated-in-the-open", keep_old=True)
                self.drop(server, tenant.names)
            finally:
                ask(connection, "SET GLOBAL general_log = OFF")
            logged = "\n".join(str(row[0]) for row in ask(connection, "SELECT argument FROM mysql.general_log"))
            ask(connection, "TRUNCATE mysql.general_log")
        assert tenant.names.login in logged
        for secret in (tenant.password[:20], tenant.control_password, "rotated-in-the-open"):
            assert secret not in logged

    # --- snippets, by the clients that are here -----------------------------------------------------------------------
    def info(self, server: LiveServer, tenant: Tenant) -> ConnectionInfo:
        place = server.endpoint
        return ConnectionInfo(
            self.engine.name, place.host, place.port, tenant.names.database, tenant.names.login, tenant.password
        )

    def test_the_command_line(self, server: LiveServer, tenant: Tenant) -> None:
        snippet = self.engine.snippets(self.info(server, tenant))["cli"]
        image = image_of(self.engine, self.version, DockerRuntime("probe"))
        done = subprocess.run(
            ["docker", "run", "--rm", "-i", "--network", "host", "--entrypoint", "sh", image, "-c", snippet],
            input=b"SELECT CONCAT('it', ' works in ', DATABASE())", capture_output=True, timeout=60, check=False,
        )  # fmt: skip
        assert f"it works in {tenant.names.database}" in done.stdout.decode(), done.stderr.decode()

    def test_django(self, server: LiveServer, tenant: Tenant) -> None:
        """Django's own backend. PyMySQL stands in for mysqlclient, which has to be compiled. In a process of its own: the
        control plane must not take it for its driver."""
        snippet = self.engine.snippets(self.info(server, tenant))["django"]
        program = (
            f"import pymysql\npymysql.install_as_MySQLdb()\n{snippet}\n"
            "from django.conf import settings\nsettings.configure(DATABASES=DATABASES)\n"
            "from django.db import connection\n"
            "with connection.cursor() as cursor:\n"
            "    cursor.execute('SELECT DATABASE(), @@character_set_connection')\n"
            "    print(*cursor.fetchone())\n"
        )
        done = subprocess.run(
            [sys.executable, "-"], input=program.encode(), capture_output=True, timeout=60, check=False
        )
        assert done.stdout.decode().split() == [tenant.names.database, "utf8mb4"], done.stderr.decode()

    def test_sqlalchemys_url(self, server: LiveServer, tenant: Tenant) -> None:
        """What SQLAlchemy's dialect hands to PyMySQL, by the rules of URLs."""
        snippet = self.engine.snippets(self.info(server, tenant))["sqlalchemy"]
        compile(snippet, "snippet", "exec")
        found = re.search(r'"(mysql\+pymysql://.*)"', snippet)
        assert found is not None
        url = urlsplit(json.loads(f'"{found[1]}"'))
        with pymysql.connect(
            host=url.hostname or "", port=url.port or 0, user=unquote(url.username or ""),
            password=unquote(url.password or ""), database=unquote(url.path[1:]), charset=parse_qs(url.query)["charset"][0],
        ) as connection:  # fmt: skip
            assert ask(connection, "SELECT DATABASE()") == ((tenant.names.database,),)

    def test_env_lines_can_be_sourced(self) -> None:
        info = ConnectionInfo(self.engine.name, "127.0.0.1", 20001, "shop", "app", HOSTILE)
        script = f'set -a\n{self.engine.snippets(info)["env"]}\nprintf %s "$MYSQL_PWD"'
        assert subprocess.run(["sh", "-c", script], capture_output=True, check=True).stdout.decode() == HOSTILE

    # --- half-made by a crash -----------------------------------------------------------------------------------------
    @pytest.mark.parametrize("done", ["an account", "accounts and a database", "all but the unlocking"])
    def test_what_a_crash_left_half_made_is_completed(self, server: LiveServer, done: str) -> None:
        names = new_names()
        with connect(server, server.admin) as connection:
            ask(connection, f"CREATE USER '{names.login}'@'%' ACCOUNT LOCK")
            if done != "an account":
                ask(connection, f"CREATE USER '{names.control}'@'%' ACCOUNT LOCK")
                ask(connection, f"CREATE DATABASE {names.database}")
            if done == "all but the unlocking":
                ask(connection, f"GRANT ALL PRIVILEGES ON `{pattern(names.database)}`.* TO '{names.login}'@'%'")
        with pytest.raises(LoginRefused):
            self.engine.probe(server.endpoint, Credentials(names.login, ""))
        tenant = self.make(server, names)
        self.engine.verify_tenant(server.endpoint, names, tenant.password)
        self.drop(server, names)

    def test_nothing_of_a_dropped_tenant_is_left(self, server: LiveServer) -> None:
        tenant = self.make(server, new_names())
        session = connect(server, tenant.login)
        self.drop(server, tenant.names)
        session.close()
        with connect(server, server.admin) as connection:
            for table in ("mysql.user", "mysql.db", "mysql.procs_priv"):
                left = ask(connection, f"SELECT User FROM {table} WHERE User IN (%s, %s)",
                           tenant.names.login, tenant.names.control)  # fmt: skip
                assert left == ()


class MariaDBContract(FamilyContract):
    engine = MariaDB()
    own_password = "SET PASSWORD = PASSWORD('{}')"


class TestMariaDB118(MariaDBContract):
    version = "11.8"


class TestMariaDB1011(MariaDBContract):
    version = "10.11"


class TestMySQL97(FamilyContract):
    engine = MySQL()
    version = "9.7"
