"""Copies of MariaDB and MySQL databases between real servers: nothing is lost, and what can't be copied is told."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pymysql
import pytest

from projects.domain import Command, Credentials, EngineError, Fingerprint, LoginRefused
from projects.engines.mariadb import MariaDB
from projects.engines.mysql import MySQL
from projects.engines.mysql_family import MySQLFamily
from projects.operations import copying
from projects.operations.base import StepFailed
from tests.contracts.engine_contract import new_names
from tests.engines.copies import Copier, CopyServer, docker_copy_server

pytestmark = pytest.mark.docker

# One statement each, run as the tenant.
HOSTILE = (
    "ALTER DATABASE CHARACTER SET latin1 COLLATE latin1_german1_ci",
    "CREATE FUNCTION born_in_latin1(x VARCHAR(10)) RETURNS VARCHAR(10) DETERMINISTIC RETURN CONCAT(x, 'é')",
    "ALTER DATABASE CHARACTER SET utf8mb4 COLLATE utf8mb4_unicode_ci",
    "CREATE TABLE `ta'b\"l``e\n\\! -- ;;` (`co``l\"'` INT PRIMARY KEY, `nextval(` TEXT,"
    " `DEFINER=x` VARCHAR(9) DEFAULT 'a''`\\\\') COMMENT 'it''s; \\\\! `x`.'",
    "INSERT INTO `ta'b\"l``e\n\\! -- ;;` VALUES (1, 'CREATE DEFINER=`a`@`b` VIEW\\n\\\\! \\0 ;;\\nDELIMITER', ''),"
    " (-1, NULL, NULL), (0, 'end\\n', '\\Z')",
    "CREATE TABLE every (id BIGINT UNSIGNED AUTO_INCREMENT PRIMARY KEY, t1 TINYINT, t2 SMALLINT UNSIGNED, t3 MEDIUMINT,"
    " d DECIMAL(40,20), f FLOAT, g DOUBLE, b BIT(13), da DATE, ti TIME(3), dt DATETIME(6), ts TIMESTAMP(6) NULL"
    " DEFAULT CURRENT_TIMESTAMP(6) ON UPDATE CURRENT_TIMESTAMP(6), y YEAR, c CHAR(5), v VARCHAR(200), bi BINARY(4),"
    " vb VARBINARY(300), bl LONGBLOB, tx LONGTEXT, la TEXT CHARACTER SET latin1, u2 TEXT CHARACTER SET utf16,"
    " e ENUM('a','b','it''s'), s SET('x','y','z'), j JSON, ge GEOMETRY) AUTO_INCREMENT = 1000",
    "INSERT INTO every VALUES (1, -128, 65535, -8388608, -12345678901234567890.12345678901234567890, 0.5,"
    " 1.7976931348623157e308, b'1010101010101', '1000-01-01', '-838:59:59', '9999-12-31 23:59:59.999999',"
    " '2038-01-19 03:14:07.999999', 2155, 'a ',"
    " 'naïve 🐬 \\\\ \\' \\0', 0x00ff, 0x0022275c0d0a1a, REPEAT(0xff00, 500000), REPEAT('🐬', 100000), 'é', '🐬', 'it''s',"
    " 'x,z', '{\"a\": [1.0, null, \"🐬\"]}', ST_GeomFromText('POINT(1.5 -2)'))",
    "INSERT INTO every (f, g, dt) VALUES (-0e0, -0e0, '2020-02-02'), (1e-38, 0.1e0 + 0.2e0, NULL),"
    " (NULL, 2.2250738585072014e-308, NULL)",
    "SET SESSION sql_mode = ''",
    "INSERT INTO every (e, da, dt) VALUES ('nonsense', '0000-00-00', '2020-00-00')",
    "INSERT INTO every (id, v) VALUES (18446744073709551600, REPEAT(' ', 9))",
    "SET SESSION sql_mode = 'NO_AUTO_VALUE_ON_ZERO'",
    "INSERT INTO every (id, v) VALUES (0, 'zero')",
    "SET SESSION sql_mode = 'ANSI_QUOTES,STRICT_ALL_TABLES,NO_BACKSLASH_ESCAPES'",
    "CREATE TABLE hidden (a INT, no INT INVISIBLE DEFAULT 7, twice INT GENERATED ALWAYS AS (a * 2) VIRTUAL,"
    " thrice INT GENERATED ALWAYS AS (a * 3) STORED, CONSTRAINT positive CHECK (a > 0), KEY by_twice (twice DESC))",
    "INSERT INTO hidden (a, no) VALUES (1, 8), (2, NULL)",
    "CREATE TABLE twins (a INT, b VARCHAR(5))",
    "INSERT INTO twins VALUES (1, 'x'), (1, 'x'), (NULL, 'x'), (NULL, NULL), (1, NULL), (1, 'x')",
    "CREATE TABLE fk_b (id INT PRIMARY KEY, a INT)",
    "CREATE TABLE fk_a (id INT PRIMARY KEY, b INT, FULLTEXT KEY words (w), w VARCHAR(20) CHARACTER SET ascii,"
    " CONSTRAINT `odd \"name\"` FOREIGN KEY (b) REFERENCES fk_b (id) ON DELETE SET NULL ON UPDATE CASCADE)",
    "ALTER TABLE fk_b ADD CONSTRAINT around FOREIGN KEY (a) REFERENCES fk_a (id)",
    "INSERT INTO fk_b VALUES (1, NULL)", "INSERT INTO fk_a VALUES (1, 1, 'é' IS NULL)", "UPDATE fk_b SET a = 1",
    "CREATE TABLE parted (id INT, at DATE, PRIMARY KEY (id, at)) PARTITION BY RANGE (YEAR(at))"
    " (PARTITION p0 VALUES LESS THAN (2000), PARTITION pm VALUES LESS THAN MAXVALUE)",
    "INSERT INTO parted VALUES (1, '1999-01-01'), (2, '2020-01-01')",
    "CREATE TABLE `fl``o'at\"` (`i``d'` VARCHAR(20), b VARBINARY(9), d DECIMAL(9,3), f FLOAT, `g``'\"` FLOAT(12,3), w DOUBLE,"
    " at TIMESTAMP NULL ON UPDATE CURRENT_TIMESTAMP, h FLOAT AS (f) VIRTUAL, PRIMARY KEY (`i``d'`, b, d))",
    "INSERT INTO `fl``o'at\"` (`i``d'`, b, d, f, `g``'\"`, w, at) VALUES ('na''ïve \\\\ 🐬', 0x2700ff, 1.5, 8388609, 0.1, 0.1,"
    " NULL), ('', '', -1, 3.4028233e38, 8388609.5, NULL, '2001-01-01'), ('x', 'x', 0, 0.1, NULL, 1, '2001-01-01'),"
    " ('y', 'y', 0, NULL, 123456.789, 1, '2001-01-01'), ('z', 'z', 0, 1.17549435e-38, -16777215, 1, NULL)",
    "CREATE TABLE exact (id BIGINT PRIMARY KEY, f FLOAT NOT NULL)", "INSERT INTO exact VALUES (-9223372036854775808, 16777215)",
    "CREATE TABLE fed (f FLOAT)", "CREATE TRIGGER feeds AFTER UPDATE ON exact FOR EACH ROW INSERT INTO fed VALUES (1)",
    "CREATE TABLE log (what VARCHAR(100))",
    "CREATE TRIGGER second BEFORE INSERT ON twins FOR EACH ROW INSERT INTO log VALUES ('a\\\\'';;')",
    "SET SESSION sql_mode = 'STRICT_ALL_TABLES,PIPES_AS_CONCAT'",
    "CREATE TRIGGER `fir``st` BEFORE INSERT ON twins FOR EACH ROW PRECEDES second BEGIN\n-- it's ;; a comment\n"
    "INSERT INTO log VALUES ('DELIMITER ;;' || \"\\\"\"); /* ;; */ END",
    "CREATE FUNCTION plus(x INT) RETURNS INT DETERMINISTIC SQL SECURITY INVOKER COMMENT 'it''s \\\\ plus' RETURN x + 1",
    "CREATE PROCEDURE `pro``c '`(IN a INT, OUT b VARCHAR(20)) MODIFIES SQL DATA\nBEGIN\n  # '\n"
    "CREATE DEFINER=`nobody`@`nowhere` VIEW was AS SELECT 1;\n  SET b = 'é🐬';\nEND",
    "CREATE EVENT every_day ON SCHEDULE EVERY 1 DAY STARTS '2020-01-01 01:01:01' ON COMPLETION PRESERVE DISABLE COMMENT 'x''y'"
    " DO INSERT INTO log VALUES ('day')",
    "CREATE EVENT soon ON SCHEDULE EVERY 1 SECOND DO INSERT INTO ticks VALUES (1)",
    "CREATE TABLE ticks (x INT)",
    "CREATE VIEW z_view AS SELECT 1 AS a", "CREATE VIEW a_view AS SELECT a, plus(a) AS more, 'it''s \\\\' AS text FROM z_view",
    "CREATE OR REPLACE VIEW z_view AS SELECT a FROM twins WHERE a IN (1, 2) WITH LOCAL CHECK OPTION",
)  # fmt: skip
MARIADB = (
    "CREATE SEQUENCE counted START WITH 5 INCREMENT BY 3 MINVALUE -5 MAXVALUE 1000 CACHE 10 CYCLE",
    "SELECT NEXTVAL(counted)",
    "CREATE SEQUENCE `odd``seq`",
    "CREATE TABLE numbered (id BIGINT NOT NULL DEFAULT NEXTVAL(counted), o INT DEFAULT NEXTVAL(`odd``seq`), x TEXT)",
    "INSERT INTO numbered (x) VALUES ('nextval(`shop`.`s`)'), ('b')",
    "CREATE TABLE kept (x INT PRIMARY KEY, t TEXT) WITH SYSTEM VERSIONING",
    "INSERT INTO kept VALUES (1, 'one'), (2, 'two')", "UPDATE kept SET t = 'uno' WHERE x = 1", "DELETE FROM kept WHERE x = 2",
    "CREATE TABLE spans (x INT, `fr``om` TIMESTAMP(6) GENERATED ALWAYS AS ROW START INVISIBLE,"
    " til TIMESTAMP(6) GENERATED ALWAYS AS ROW END, PERIOD FOR SYSTEM_TIME (`fr``om`, til)) WITH SYSTEM VERSIONING",
    "INSERT INTO spans (x) VALUES (1)", "DELETE FROM spans",
    "CREATE TABLE own_types (u UUID, i INET6)", "INSERT INTO own_types VALUES (UUID(), '::1'), (NULL, NULL)",
    "SET SESSION sql_mode = 'ORACLE'",
    "CREATE PACKAGE pack AS FUNCTION f RETURN INT; END",
    "CREATE PACKAGE BODY pack AS FUNCTION f RETURN INT AS BEGIN RETURN 1; END; END",
)  # fmt: skip
ENGINES: dict[str, MySQLFamily] = {"mysql": MySQL(), "mariadb": MariaDB()}


@pytest.fixture(scope="module", params=["mysql-9.7", "mariadb-10.11", "mariadb-11.8"])
def servers(request: pytest.FixtureRequest) -> Iterator[tuple[CopyServer, CopyServer]]:
    engine, _, version = request.param.partition("-")
    with (
        docker_copy_server(ENGINES[engine], version) as source,
        docker_copy_server(ENGINES[engine], version) as target,
    ):
        yield source, target


@pytest.fixture
def copier(servers: tuple[CopyServer, CopyServer]) -> Iterator[Copier]:
    """To a database and logins of other names, as from and to pools."""
    with Copier.between(*servers, new_names(), new_names()) as copier:
        yield copier


@contextlib.contextmanager
def connect(server: CopyServer, login: Credentials) -> Iterator[Any]:
    with (
        pymysql.connect(
            host=server.endpoint.host, port=server.endpoint.port, database=login.database or None, user=login.username,
            password=login.password, autocommit=True, charset="utf8mb4", read_timeout=60,
        ) as connection,
        connection.cursor() as cursor,
    ):  # fmt: skip
        yield cursor


def run(server: CopyServer, login: Credentials, *statements: str) -> tuple[Any, ...]:
    """All of them in one session; the rows of the last one."""
    with connect(server, login) as cursor:
        for statement in statements:
            cursor.execute(statement)
        return tuple(cursor.fetchall())


def is_mariadb(copier: Copier) -> bool:
    return copier.source.engine.name == "mariadb"


def quiet(copier: Copier, on: bool) -> None:
    for server, names in ((copier.source, copier.names), (copier.target, copier.copied)):
        with server.engine.admin(server.endpoint, server.admin) as admin:
            admin.quiet(names, quiet=on)


def test_a_hostile_database_arrives_whole(copier: Copier) -> None:
    quiet(copier, True)
    run(copier.source, copier.login, *HOSTILE, *(MARIADB if is_mariadb(copier) else ()))
    moved = copier.run()
    source, copy = copier.fingerprints()
    assert source.differences(copy) == []
    assert moved > 1_000_000
    assert source.tables["twins"].rows == 6
    assert source.rows == copy.rows > 15
    kinds = {kind for kind, _ in source.facts}
    assert kinds >= {"definition of table", "database", "view", "function", "procedure", "trigger", "event"}
    if is_mariadb(copier):
        assert kinds >= {"sequence", "value of sequence", "package", "package body"}
        assert source.tables["kept"].rows == 3  # with its history
        default = (
            "SELECT column_default FROM information_schema.columns WHERE table_name = 'numbered' AND column_name = 'id'"
        )
        assert copier.names.database not in str(run(copier.target, copier.copied_login, default))
    copier.dismiss()
    for query in ("SELECT User FROM mysql.user WHERE User = %s", "SELECT User FROM mysql.db WHERE User = %s"):
        with connect(copier.target, copier.target.admin) as cursor:
            cursor.execute(query, [copier.copied.tool])
            assert cursor.fetchall() == ()
    # The tenant finds what it had, made by itself: views, triggers and functions work.
    with connect(copier.target, copier.copied_login) as tenant:
        tenant.execute("INSERT INTO twins VALUES (2, 'y')")
        tenant.execute("SELECT what FROM log")
        first, second = (row[0] for row in tenant.fetchall())
        assert (first, second) == ('DELIMITER ;;"', "a\\\\';;")
        tenant.execute("SELECT MAX(more) FROM a_view")
        assert tenant.fetchall() == ((3,),)
        tenant.execute("SELECT definer FROM information_schema.routines WHERE routine_schema = DATABASE()")
        assert {row[0] for row in tenant.fetchall()} == {f"{copier.copied.login}@%"}
        tenant.execute("SELECT COUNT(*) FROM ticks")
        assert tenant.fetchall() == ((0,),)
    quiet(copier, False)
    with connect(copier.target, copier.copied_login) as tenant:
        tenant.execute("SELECT SLEEP(2.5)")
        tenant.execute("SELECT COUNT(*) > 0 FROM ticks")
        assert tenant.fetchall() == ((1,),)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("UPDATE typed SET p = 2 WHERE p = 1", "table typed has other values"),
        ("UPDATE typed SET f = 8388609 WHERE p = 1", "table typed has other values"),
        ("DELETE FROM typed", "table typed has 0 rows instead of 2"),
        ("DROP INDEX by_p ON typed", "definition of table typed differs"),
        ("ALTER TABLE typed AUTO_INCREMENT = 50", "definition of table typed differs"),
        ("CREATE TABLE more (x INT)", "table more is there only in the copy"),
        ("CREATE OR REPLACE VIEW v AS SELECT 2", "view v differs"),
        ("ALTER PROCEDURE pr COMMENT 'x'", "procedure pr differs"),
        ("DROP TRIGGER tr", "trigger tr is missing"),
        ("ALTER EVENT ev DISABLE", "event ev differs"),
        ("ALTER DATABASE COLLATE utf8mb4_bin", "database itself differs"),
    ],
)
def test_every_difference_is_told(made: Copier, change: str, told: str) -> None:
    made.run()
    run(made.target, made.copied_login, change)
    source, copy = made.fingerprints()
    assert told in source.differences(copy)


@pytest.fixture
def made(copier: Copier) -> Copier:
    quiet(copier, True)
    run(
        copier.source, copier.login,
        "CREATE TABLE typed (id INT AUTO_INCREMENT PRIMARY KEY, p DECIMAL(9,2), f FLOAT, KEY by_p (p))",
        "INSERT INTO typed (p, f) VALUES (1, 8388610), (1.5, NULL)", "CREATE VIEW v AS SELECT p FROM typed",
        "CREATE PROCEDURE pr() SELECT 1", "CREATE TRIGGER tr BEFORE INSERT ON typed FOR EACH ROW SET NEW.p = 1",
        "CREATE EVENT ev ON SCHEDULE EVERY 1 DAY DO SELECT 1",
    )  # fmt: skip
    return copier


def test_the_tools_logins_have_no_rights_elsewhere(servers: tuple[CopyServer, CopyServer], made: Copier) -> None:
    with Copier.between(*servers, new_names()) as neighbour:
        made.run()
        for server, tool in ((made.source, made.tool), (made.target, made.copied_tool)):
            for refused in (
                f"SELECT * FROM {neighbour.names.database}.x", "SELECT * FROM mysql.user", "CREATE USER x",
                "SET GLOBAL event_scheduler = OFF", "UPDATE typed SET p = 3", "DELETE FROM typed", "DROP TABLE typed",
                "CREATE DATABASE more", "SELECT 1 INTO OUTFILE '/var/lib/mysql/files/x'",
            ):  # fmt: skip
                with pytest.raises(pymysql.MySQLError):
                    run(server, tool, refused)
        # The tenant is shut out by its own lock; the tool is not.
        engine = made.source.engine
        with engine.admin(made.source.endpoint, made.source.admin) as admin:
            admin.lock_tenant(made.names, locked=True)
        with pytest.raises(LoginRefused):
            engine.probe(made.source.endpoint, made.login)
        engine.probe(made.source.endpoint, made.tool)
        # Who restores is the tenant's login, which lets nobody else in, and afterwards nobody at all.
        with engine.admin(made.target.endpoint, made.target.admin) as admin:
            lent = admin.admit_restorer(made.copied, made.copied.tool, "lent")
            with pytest.raises(LoginRefused):
                engine.probe(made.target.endpoint, made.copied_login)
            engine.probe(made.target.endpoint, Credentials(lent, "lent", made.copied.database))
            admin.dismiss_restorer(made.copied, made.copied.tool)
            with pytest.raises(LoginRefused):
                engine.probe(made.target.endpoint, Credentials(lent, "lent", made.copied.database))


def test_a_password_of_the_tenants_own_comes_along(made: Copier) -> None:
    engine = made.source.engine
    word = "'of-my-own \\\\ ''1'"
    run(made.source, made.login, f"SET PASSWORD = {f'PASSWORD({word})' if is_mariadb(made) else word}")
    made.run()
    with engine.admin(made.source.endpoint, made.source.admin) as admin:
        hashes = admin.password_hashes(made.names)
    with engine.admin(made.target.endpoint, made.target.admin) as admin:
        admin.put_password_hashes(made.copied, {made.copied.login: hashes[made.names.login]})
    mine = replace(made.copied_login, password="of-my-own \\ '1")
    assert run(made.target, mine, "SELECT 1") == ((1,),)
    with pytest.raises(LoginRefused):
        engine.probe(made.target.endpoint, made.copied_login)


def test_obstacles_are_told_before(made: Copier) -> None:
    engine, database = made.source.engine, made.names.database

    def told(*, renamed: bool = False) -> str:
        with engine.admin(made.source.endpoint, made.source.admin) as admin:
            found = admin.obstacles(made.names, renamed=renamed)
            if renamed:
                assert found == [*admin.obstacles(made.names), *admin.renaming_obstacles(made.names)]
            return "; ".join(found)

    assert told() == told(renamed=True) == ""
    run(made.source, made.login, f"CREATE PROCEDURE far() SELECT * FROM `{database}` . typed",
        "CREATE PROCEDURE near() SELECT 'x' FROM typed")  # fmt: skip
    assert told() == ""
    assert "procedure far:" in told(renamed=True)
    run(made.source, made.login, "DROP PROCEDURE far", "CREATE FUNCTION g() RETURNS INT RETURN 1",
        f"CREATE VIEW calls AS SELECT {database}.g()")  # fmt: skip
    assert "view calls:" in told(renamed=True)
    run(made.source, made.source.admin, f"CREATE VIEW {database}.others AS SELECT 1")
    assert "view others (root@" in told()
    run(made.source, made.source.admin, f"DROP VIEW {database}.others")
    run(made.source, made.login, "DROP VIEW calls", "XA START 'open'",
        "INSERT INTO typed (p) VALUES (1)", "XA END 'open'", "XA PREPARE 'open'")  # fmt: skip
    assert told() == "1 prepared transactions: commit them or roll them back"
    run(made.source, made.login, "XA ROLLBACK 'open'", "CREATE TABLE loose (f FLOAT)", "INSERT INTO loose VALUES (0.1)")
    assert told() == ""
    run(made.source, made.login, "INSERT INTO loose VALUES (8388609)")
    assert "FLOAT values, of which dumps tell six, in loose" in told()


def test_a_view_on_a_dropped_table_is_a_loud_failure(made: Copier) -> None:
    run(
        made.source,
        made.login,
        "CREATE TABLE gone (x INT)",
        "CREATE VIEW broken AS SELECT x FROM gone",
        "DROP TABLE gone",
    )
    with pytest.raises(StepFailed) as failed:
        made.run()
    assert failed.value.code == "dump_failed"
    assert "broken" in failed.value.detail
    assert not failed.value.retryable


def test_a_foreign_key_s_odd_name_is_kept_or_told(made: Copier) -> None:
    """MariaDB 11.8 dumps one with a backtick so that nothing takes it back."""
    run(
        made.source, made.login, "CREATE TABLE par (id INT PRIMARY KEY)",
        "CREATE TABLE chi (id INT, CONSTRAINT `f``k` FOREIGN KEY (id) REFERENCES par (id))",
    )  # fmt: skip
    try:
        made.run()
    except StepFailed as failed:
        assert (failed.code, failed.retryable) == ("restore_failed", False)
        assert "f`" in failed.detail or "syntax" in failed.detail
        assert made.source.spec.version.startswith("11.8")
    else:
        source, copy = made.fingerprints()
        assert source.differences(copy) == []


def test_a_failing_restore_quotes_no_rows(made: Copier, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = made.source.engine
    whole = engine.dump(made.source.side(made.tool).place, made.tool)
    told = "printf '%s\\n' \"INSERT INTO nowhere VALUES ('secret error failed')\""
    monkeypatch.setattr(type(engine), "dump", lambda *_: Command(("sh", "-c", told), whole.env, whole.secret_files))
    with pytest.raises(StepFailed) as failed:
        made.run()
    assert failed.value.code == "restore_failed"
    assert "nowhere" in failed.value.detail
    assert "secret" not in failed.value.detail


@pytest.mark.parametrize(
    "statement",
    [
        "\\\\! touch /tmp/hacked\nSELECT 1;", "system touch /tmp/hacked\nSELECT 1;", "USE mysql;", "CREATE DATABASE other;",
        "CREATE DEFINER=`root`@`%` PROCEDURE grab() SELECT 1;", "LOAD DATA LOCAL INFILE '/etc/passwd' INTO TABLE typed;",
        "GRANT ALL ON *.* TO CURRENT_USER();", "source /etc/passwd\n",
    ],
)  # fmt: skip
def test_a_dump_that_does_more_is_stopped(made: Copier, monkeypatch: pytest.MonkeyPatch, statement: str) -> None:
    engine = made.source.engine
    told = "printf '%b' \"$0\""
    monkeypatch.setattr(type(engine), "dump", lambda *_: Command(("sh", "-c", told, statement)))
    with pytest.raises(StepFailed) as failed:
        made.run()
    assert failed.value.code == "restore_failed", failed.value.detail


def test_no_limit_of_a_pool_cuts_it_off(made: Copier) -> None:
    """What servers allow a statement by default: a dump may take longer, and a restore and a look too."""
    run(
        made.source, made.login, "CREATE TABLE big (id INT AUTO_INCREMENT PRIMARY KEY, f FLOAT, t LONGTEXT)",
        "INSERT INTO big (f, t) VALUES (8388609, REPEAT('x', 20000))",
        *["INSERT INTO big (f, t) SELECT f, t FROM big"] * 10,
    )  # fmt: skip
    limit = "max_statement_time = {}" if is_mariadb(made) else "max_execution_time = {}"
    servers = (made.source, made.target)
    for server in servers:
        run(server, server.admin, "SET GLOBAL " + limit.format("0.01" if is_mariadb(made) else "10"))
    try:
        with pytest.raises(pymysql.MySQLError):
            run(made.source, made.login, "SELECT COUNT(SHA2(t, 512)) FROM big")
        made.run()
        source, copy = made.fingerprints()
        assert source.differences(copy) == []
        assert source.tables["big"].rows == 1024
    finally:
        for server in servers:
            run(server, server.admin, "SET GLOBAL " + limit.format(0))


def test_who_pulses_ends_it(made: Copier) -> None:
    run(
        made.source, made.login, "CREATE TABLE big (t LONGTEXT)", "INSERT INTO big VALUES (REPEAT('x', 20000))",
        *["INSERT INTO big SELECT t FROM big"] * 10,
    )  # fmt: skip

    class Enough(Exception):
        pass

    def pulse(_: int = 0) -> None:
        raise Enough

    with pytest.raises(Enough):
        made.run(pulse=pulse)
    with pytest.raises(Enough):
        made.source.engine.fingerprint(made.source.endpoint, made.tool, pulse=pulse)
    assert made.run() > 20_000_000  # and no tool was left in the way
    source, copy = made.fingerprints()
    assert source.differences(copy) == []


def test_broken_tools_are_told(made: Copier, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = made.source.engine
    run(made.source, made.login, "INSERT INTO typed (p, f) VALUES " + ", ".join(["(1, 2)"] * 20000))
    whole = engine.dump(made.source.side(made.tool).place, made.tool)

    def cut(*_: object) -> Command:
        return Command(("sh", "-c", '"$@" | head -c 100000', "x", *whole.argv), whole.env, whole.secret_files)

    monkeypatch.setattr(type(engine), "dump", cut)  # it ends well, and yet it is not whole
    with contextlib.suppress(StepFailed):
        made.run()
        source, copy = made.fingerprints()
        assert source.differences(copy)  # a statement cut off is an error, or what is missing is seen
    monkeypatch.undo()
    with pytest.raises(StepFailed) as failed:
        copying.copy(
            engine, made.source.side(Credentials(made.names.tool, "wrong", made.names.database)),
            made.target.side(made.copied_login), stem="test-wrong", pulse=lambda _: None,
        )  # fmt: skip
    assert failed.value.code == "dump_failed"


def test_routines_that_can_not_be_seen_are_no_empty_list(made: Copier) -> None:
    """Who may not read a routine's text is told so, by dump programs and servers, with silence."""
    engine = made.source.engine
    with engine.admin(made.source.endpoint, made.source.admin) as admin:
        admin.admit_tool(made.names, made.tool.username, made.tool.password)
    assert any(kind == "procedure" for kind, _ in engine.fingerprint(made.source.endpoint, made.tool).facts)
    right = "SHOW_ROUTINE ON *.*" if engine.name == "mysql" else "SELECT ON mysql.proc"
    run(made.source, made.source.admin, f"REVOKE {right} FROM '{made.tool.username}'@'%'")
    found: Fingerprint | None = None
    with contextlib.suppress(EngineError):
        found = engine.fingerprint(made.source.endpoint, made.tool)
    assert found is None
