"""SQL of mysqldump statement by statement: the same in whatever pieces it comes, and without the client's commands."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

import pytest

from projects.engines.foreign import ForeignRefused, Left
from projects.engines.mysql_script import place_in_script, recognise, script, space_end

GOOD = """/*M!999999\\- enable the sandbox mode */
-- MariaDB dump 10.19  Distrib 10.11.6-MariaDB
--
-- Host: localhost    Database: shop; -- it's
/*!40101 SET NAMES utf8mb4 */;
SET @@SESSION.SQL_LOG_BIN= 0;
CREATE DATABASE /*!32312 IF NOT EXISTS*/ `shop` /*!40100 DEFAULT CHARACTER SET utf8mb4 */;

USE `shop`;
LOCK TABLES `t` WRITE;
INSERT INTO `t;` VALUES (1,'a;\\'b\\\\'),(2,"x\\";''y"),(3,'\\n\\\\! x
\\! not a command');
/* ; */ # ; it's
UNLOCK TABLES;
GRANT ALL ON *.* TO x;
DELIMITER ;;
/*!50003 CREATE*/ /*!50017 DEFINER=`ro``ot`@`%`*/ /*!50003 TRIGGER g BEFORE INSERT ON t FOR EACH ROW BEGIN
  SET NEW.a = 1; -- DEFINER=`x`@`y` stays
END */;;
DELIMITER ;
/*!50001 CREATE ALGORITHM=UNDEFINED */
/*!50013 DEFINER='root'@'localhost' SQL SECURITY DEFINER */
/*!50001 VIEW `v` AS select 1 AS `1` */;
CREATE DEFINER=CURRENT_USER() FUNCTION f() RETURNS int RETURN 1;
-- Dump completed on 2026-01-01
"""
WANTED = """
-- MariaDB dump 10.19  Distrib 10.11.6-MariaDB
--
-- Host: localhost    Database: shop; -- it's
/*!40101 SET NAMES utf8mb4 */;





INSERT INTO `t;` VALUES (1,'a;\\'b\\\\'),(2,"x\\";''y"),(3,'\\n\\\\! x
\\! not a command');



DELIMITER ;;
/*!50003 CREATE*/  /*!50003 TRIGGER g BEFORE INSERT ON t FOR EACH ROW BEGIN
  SET NEW.a = 1; -- DEFINER=`x`@`y` stays
END */;;
DELIMITER ;
/*!50001 CREATE ALGORITHM=UNDEFINED */
/*!50013  SQL SECURITY DEFINER */
/*!50001 VIEW `v` AS select 1 AS `1` */;
CREATE  FUNCTION f() RETURNS int RETURN 1;"""
SIZES = (1, 2, 3, 7, 64, 9999)


def pieces(text: str, size: int) -> Iterator[bytes]:
    data = text.encode()
    return (data[at : at + size] for at in range(0, len(data), size))


@pytest.mark.parametrize("size", SIZES)
def test_it_is_split_as_the_client_splits_it(size: int) -> None:
    left = Left()
    found = b"".join(script(pieces(GOOD, size), left)).decode()
    assert found.rstrip().splitlines() == WANTED.splitlines()
    assert left.counted == {"logins and rights": 1, "definer (it belongs to who restores it)": 3}


BAD = {
    "shell": ("SELECT 1;\n\\! touch x\n", 2), "system": ("system touch x\n", 1),
    "source": ("SELECT 1;\n\nsource /etc/passwd\n", 3),
    "dot": ("\\. /etc/passwd\n", 1), "tee": ("tee /tmp/x\n", 1), "pager": ("-- c\npager touch x\n", 2),
    "after a delimiter": ("DELIMITER ;;\nSELECT 1;;\nsystem touch x;;\n", 3), "connect": ("connect mysql\n", 1),
    "capitals": ("  SYSTEM touch x\n", 1), "without a line's end": ("\\! touch x", 1),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_no_command_of_the_client_gets_through(case: str) -> None:
    text, line = BAD[case]
    for size in SIZES:
        with pytest.raises(ForeignRefused) as refused:
            list(script(pieces(text, size), Left()))
        assert refused.value.code == "upload_meta_command", size
        assert refused.value.detail.startswith(f"Line {line}: `"), (size, refused.value.detail)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("SELECT 'a", "upload_truncated"), ("INSERT INTO t VALUES (1)", "upload_truncated"),
        ("-- MySQL dump 10.13\n--\nSELECT 1;\n", "upload_truncated"), ("DELIMITER ;;\nSELECT 1;\n", "upload_truncated"),
        ("USE a;\nUSE b;\n", "upload_cluster_dump"), ("USE `a`;\nUSE a;\nUSE 'c';\n", "upload_cluster_dump"),
    ],
)  # fmt: skip
def test_what_is_cut_off_or_about_more_than_one(text: str, code: str) -> None:
    with pytest.raises(ForeignRefused) as refused:
        list(script(pieces(text, 9999), Left()))
    assert refused.value.code == code


def test_by_its_head_it_is_told_apart() -> None:
    mysql, mariadb = (
        b"-- MySQL dump 10.13\n-- Server version\t%b\n",
        b"-- MariaDB dump\n-- Server version\t%b-MariaDB-log\n",
    )
    assert recognise(mysql % b"8.0.36", "9.7", mariadb=False) == "plain"
    assert recognise(mariadb % b"10.11.6", "10.11", mariadb=True) == "plain"
    assert recognise(mysql % b"8.0.36", "10.11", mariadb=True) == "plain"  # of the other product: its statements decide
    for head, version, is_mariadb, code in (
        (mysql % b"9.8.0", "9.7", False, "upload_newer_version"),
        (mariadb % b"11.8.2", "10.11", True, "upload_newer_version"),
        (b"PGDMP\x01\x0f", "9.7", False, "upload_wrong_engine"),
        (b"--\n-- PostgreSQL database dump\n", "9.7", False, "upload_wrong_engine"),
    ):
        with pytest.raises(ForeignRefused) as refused:
            recognise(head, version, mariadb=is_mariadb)
        assert refused.value.code == code


def test_an_error_has_the_line_of_the_file() -> None:
    assert place_in_script("ERROR 1064 (42000) at line 12: You have", 0) == "Line 12: You have (1064 (42000))"
    assert place_in_script("ERROR at line 3: Unknown command '\\!'.", 0) == "Line 3: Unknown command '\\!'."


@pytest.mark.parametrize("text", [" \n", "/**/", "-- \n", "#\n", "/* ; */\n-- ;\n# '\n"])
def test_blanks_and_comments_take_no_more_than_they_are(text: str) -> None:
    data = text.encode() * ((4 << 20) // len(text)) + b"SELECT 1;\n"
    tracemalloc.start()
    try:
        found = b"".join(script((data[at : at + (1 << 20)] for at in range(0, len(data), 1 << 20)), Left()))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found.endswith(b"SELECT 1;")
    assert peak < 12 * len(data)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (" \t\r\n-- a\n#b\n/* c * / */x", "x"), ("--x", "--x"), ("-", "-"), ("--", "--"), ("/*!1 a */", "/*!1 a */"),
        ("/*M!1 a */", "/*M!1 a */"), ("/* a", "/* a"), ("-- a", ""), ("# a", ""), ("/**/", ""), ("/*/", "/*/"), ("", ""),
    ],
)  # fmt: skip
def test_where_blanks_and_comments_end(text: str, left: str) -> None:
    assert text[space_end(text.encode()) :] == left


@pytest.mark.parametrize(
    "text",
    [
        "CREATE FUNCTION f() RETURNS text RETURN 'DEFINER=`a`@`b`';", "CREATE TABLE t (a int COMMENT 'DEFINER = x');",
        "CREATE PROCEDURE p() BEGIN /*!50017 */ SELECT DEFINER=a FROM t; END;", "CREATE TABLE t (definer int, b int);",
        "CREATE /* DEFINER=a */ VIEW v AS SELECT 1 /* */ DEFINER=b;",
    ],
)  # fmt: skip
def test_a_definer_is_cut_from_where_it_is_one_only(text: str) -> None:
    left = Left()
    assert b"".join(script(pieces(text, 9999), left)).decode() == text
    assert not left.counted


@pytest.mark.parametrize(
    "head",
    [
        "CREATE DEFINER=`a`@`b` {}", "create or replace definer = 'a'@'b' {}", "CREATE ALGORITHM=MERGE DEFINER=a@b {}",
        "CREATE /* c */ OR REPLACE ALGORITHM = UNDEFINED DEFINER=CURRENT_USER {}",
        "/*!50106 CREATE*/ /*!50117 DEFINER=a@b*/ {}",
    ],
)  # fmt: skip
def test_a_definer_is_cut_and_nothing_else(head: str) -> None:
    left, body = Left(), "EVENT e DO SELECT 'DEFINER=`c`@`d` /*!50017 */';"
    found = b"".join(script(pieces(head.format(body), 9999), left)).decode()
    assert found.endswith(body) and found.count("DEFINER") == 1
    assert sum(left.counted.values()) == 1
