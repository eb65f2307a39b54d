"""Some tables out of a dump of MySQL or MariaDB as SQL: what belongs to them, and nothing else, in whatever pieces it comes."""

from __future__ import annotations

import pytest

from projects.domain import Selection
from projects.engines import mysql_sql, scripts, sql_parts
from projects.engines.postgresql_archive import Entry
from projects.engines.postgresql_sql import _Choice, unquoted
from projects.engines.sql_parts import Gone, Title, Unclear

TITLE = Title("about\n-- x", "0123")

DUMP = b"""ALTER DATABASE CHARACTER SET utf8mb4;
-- MySQL dump 10.13
/*!40101 SET @OLD=@@X */;
DELIMITER ;;
CREATE PROCEDURE x() BEGIN SELECT 1; SELECT 'INSERT INTO `a``b`'; END ;;
DELIMITER ;
-- Dump completed
-- MySQL dump
CREATE SEQUENCE `numbers` start with 5;
DO SETVAL(`numbers`, 7, 0);
DROP TABLE IF EXISTS `a``b`;
CREATE TABLE `a``b` (id int, `DROP` text);
/*!40000 ALTER TABLE `a``b` DISABLE KEYS */;
INSERT INTO `a``b` VALUES (1,'x;y -- \\' z'),(2,'\n-- End.\n');
CREATE TABLE `other` (id int);
INSERT INTO `other` VALUES ('CREATE TABLE `a``b`;');
UPDATE `a``b` SET f=1 WHERE id=1;
UPDATE `other` SET f=2 WHERE id=1;
/*!50001 CREATE VIEW `seen` AS SELECT 1 */;
DELIMITER ;;
/*!50003 CREATE*/ /*!50003 TRIGGER `told` BEFORE INSERT ON `a``b` FOR EACH ROW SET NEW.t = 1; */;;
CREATE DEFINER=`root`@`localhost` TRIGGER mine AFTER UPDATE ON shop.`a``b` FOR EACH ROW SET @x = 2 ;;
/*!50003 CREATE*/ /*!50003 TRIGGER `theirs` BEFORE INSERT ON other FOR EACH ROW SET NEW.t = 3 */;;
DELIMITER ;
-- Dump completed
"""


@pytest.mark.parametrize("size", [1, 50, 10_000])
def test_what_is_of_a_table_comes(size: int) -> None:
    pieces = (DUMP[at : at + size] for at in range(0, len(DUMP), size))
    script = b"".join(mysql_sql.script(pieces, ["a`b"], TITLE, "mysql"))
    assert script.startswith(b"-- about?-- x\n") and script.endswith(b"\n-- End of 0123.\n")
    for there in (
        b"SET @OLD", b"CREATE SEQUENCE IF NOT EXISTS `numbers`", b"DO SETVAL", b"CREATE TABLE `a``b` (id int, `DROP` text);",
        b"VALUES (1,'x;y -- \\' z'),(2,'\n-- End.\n');", b"ALTER TABLE `a``b` DISABLE KEYS", b"SET f=1", b"TRIGGER `told`",
        b"TRIGGER mine", b"DELIMITER ;;",
    ):  # fmt: skip
        assert there in script, there
    for word in (b"ALTER DATABASE", b"PROCEDURE", b"DROP TABLE", b"other", b"seen", b"theirs"):
        assert word not in script, word


@pytest.mark.parametrize(
    "written",
    [
        b"TRIGGER`told`BEFORE INSERT ON`a``b`FOR EACH ROW SET @x = 1",
        b"TRIGGER shop . told/* why */AFTER\nUPDATE\nON`a``b`FOR EACH ROW SET @x = 1",
        b"/*!50017 DEFINER=`before`@`on`*/ /*!50003 TRIGGER `ON` -- BEFORE x ON other\n"
        b" BEFORE/**/DELETE # on z\nON shop.`a``b` FOR EACH ROW SET @x = 1 */",
        b"OR REPLACE DEFINER=u@127.0.1 TRIGGER IF NOT EXISTS \"after\" AFTER INSERT ON\"shop\".\"a`b\"FOR EACH ROW SET @x = 1",
        b"TRIGGER after BEFORE INSERT /*" + b" TRIGGER x BEFORE INSERT ON other" * 90 + b"*/ ON`a``b`FOR EACH ROW SET @x = 1",
        b"TRIGGER x /*!999999 not yet */ BEFORE INSERT /*M!999999 OR ON */ ON `a``b` FOR EACH ROW SET @x = 'ON a FOR EACH ROW'",
        b"TRIGGER x BEFORE UPDATE OF id, `row` ON `a``b` /* all */ FOR EACH ROW FOLLOWS y SET @x = 1",
    ],
)  # fmt: skip
def test_triggers_as_people_write_them(written: bytes) -> None:
    dump = DUMP.replace(
        b"DELIMITER ;\n-- Dump completed", b"CREATE " + written + b" ;;\nDELIMITER ;\n-- Dump completed"
    )
    assert written in b"".join(mysql_sql.script([dump], ["a`b"], TITLE, "mysql"))
    if b"other" not in written:
        assert written not in b"".join(mysql_sql.script([dump], ["other"], TITLE, "mysql"))


def test_a_trigger_whose_table_can_t_be_told_is_not_passed_over() -> None:
    whole = b"".join(mysql_sql.script([DUMP], ["other"], TITLE, "mysql"))
    for odd in (b"ON shop.`a``b` FOR ALL", b"/*!999999 ON gone FOR EACH ROW */ ON shop.`a``b` FOR EACH ROW"):
        dump = DUMP.replace(b"ON shop.`a``b` FOR EACH ROW", odd)
        with pytest.raises(Unclear, match="trigger mine"):
            list(mysql_sql.script([dump], ["a`b"], TITLE, "mysql"))
        # Of a table that its text does not even name it is not.
        assert b"".join(mysql_sql.script([dump], ["other"], TITLE, "mysql")) == whole


def test_long_statements_of_others_are_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scripts, "STATEMENT_BYTES", 50_000)
    monkeypatch.setattr(mysql_sql, "_HELD_BYTES", 9_000)
    row = (
        b"-- 'why\nINSERT INTO `other` VALUES ('" + b"x\\';\n'',\"`" * 30_000 + b"', 1 /* ' */, `q`), ('y') -- z;\n;\n"
    )
    dump = DUMP.replace(b"UPDATE `other`", row + b"UPDATE `other`")
    for size in (7, 3_000, 40_000):
        pieces = [dump[at : at + size] for at in range(0, len(dump), size)]
        assert b"".join(mysql_sql.script(pieces, ["a`b"], TITLE, "mysql")) == b"".join(
            mysql_sql.script([DUMP], ["a`b"], TITLE, "mysql")
        )
        with pytest.raises(sql_parts.TooLarge):
            list(mysql_sql.script(pieces, ["a`b", "other"], TITLE, "mysql"))


def test_what_is_not_there_is_told_at_the_end() -> None:
    with pytest.raises(Gone, match="gone"):
        list(mysql_sql.script([DUMP], ["a`b", "gone"], TITLE, "mysql"))


def test_what_of_postgresql_s_is_left_out_is_told() -> None:
    def entry(pk: int, kind: str, name: str, *needs: int) -> Entry:
        return Entry("s", name, kind, "SQL", pk, section=4, needs=needs)

    found = _Choice(
        [
            entry(1, "TABLE", "whole"), entry(2, "TABLE", "part"), entry(3, "TABLE", "other"),
            entry(4, "TABLE ATTACH", "part", 1, 2), entry(5, "INDEX", "part_i", 2), entry(6, "INDEX", "whole_i", 1),
            entry(7, "INDEX ATTACH", "part_i", 5, 6, 2, 1), entry(8, "INDEX", "odd", 2, 3), entry(9, "STATISTICS", "st", 2, 3),
            entry(10, "FK CONSTRAINT", "part fk", 2, 3), entry(11, "FK CONSTRAINT", "other fk", 3, 2),
            entry(12, "POLICY", "other p", 3, 2), entry(13, "TABLE ATTACH", "other", 1, 3),
        ],
        Selection(("s.part",)),
    )  # fmt: skip
    left = "Left out, as it needs what was not chosen: "
    assert set(found.remarks()) == {
        "Not attached to s.whole: TABLE s.part", f"{left}INDEX ATTACH s.part_i", f"{left}INDEX s.odd",
        f"{left}STATISTICS s.st", f"{left}FK CONSTRAINT s.part fk",
        "Rights (GRANT) and owners are left out, and views and publications of these tables.",
    }  # fmt: skip
    assert found.taken == {2, 5}
    # As pg_dump has it, a part needs the whole: that comes without rows, and the part is attached to it.
    found = _Choice(
        [
            entry(1, "TABLE", "whole"), entry(2, "TABLE", "part", 1), entry(3, "TABLE", "other", 1),
            entry(4, "TABLE ATTACH", "part", 1, 2), entry(5, "TABLE ATTACH", "other", 1, 3), entry(6, "INDEX", "whole_i", 1),
            entry(7, "INDEX", "part_i", 2, 6), entry(8, "INDEX ATTACH", "part_i", 7, 6, 2, 1),
            entry(9, "INDEX", "other_i", 3, 6), entry(10, "INDEX ATTACH", "other_i", 9, 6, 3, 1),
            entry(11, "TRIGGER", "whole t", 1),
        ],
        Selection(("s.part",)),
    )  # fmt: skip
    assert set(found.remarks()) == {
        "Without rows, as others need it: TABLE s.whole",
        "Triggers, foreign keys and policies of what it is a part of are left out: TABLE ATTACH s.part",
        "Rights (GRANT) and owners are left out, and views and publications of these tables.",
    }  # fmt: skip
    assert found.taken == {1, 2, 4, 6, 7, 8}


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("public.orders", ("public", "orders")), ('"My.App"."a""b.c"', ("My.App", 'a"b.c')), ('app."x\ny"', ("app", "x\ny")),
        ('"a""".b', ('a"', "b")),
    ],
)  # fmt: skip
def test_names_as_the_server_quotes_them(name: str, wanted: tuple[str, str]) -> None:
    assert unquoted(name) == wanted
