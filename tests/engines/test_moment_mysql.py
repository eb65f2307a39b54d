"""A moment of a MariaDB or MySQL database: told from the dump's own text, and the same of a restored copy."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from projects.domain import Command, EngineError, Fingerprint
from projects.engines import framing, mysql_moment, zipping
from projects.engines.mysql_moment import DumpReader
from projects.operations.stages import Stage
from tests.contracts.engine_contract import new_names
from tests.engines.copies import Copier, CopyServer, docker_copy_server
from tests.engines.test_copies_mysql import ENGINES, HOSTILE, MARIADB, run

docker = pytest.mark.docker


@pytest.fixture(scope="module", params=["mysql-9.7", "mariadb-11.8", "mariadb-10.11"])
def servers(request: pytest.FixtureRequest) -> Iterator[tuple[CopyServer, CopyServer]]:
    engine, _, version = request.param.partition("-")
    with (
        docker_copy_server(ENGINES[engine], version) as source,
        docker_copy_server(ENGINES[engine], version) as target,
    ):
        yield source, target


@pytest.fixture
def copier(servers: tuple[CopyServer, CopyServer]) -> Iterator[Copier]:
    with Copier.between(*servers, new_names()) as copier:
        yield copier


def taken(copier: Copier, server: CopyServer) -> tuple[bytes, Fingerprint, tuple[str, ...]]:
    """The dump of one server's database, what its moment says of it, and the notes."""
    engine = server.engine
    with engine.admin(server.endpoint, server.admin) as admin:
        admin.admit_tool(copier.names, copier.tool.username, copier.tool.password)
    side = server.side(copier.tool)
    with engine.moment(server.endpoint, side.place, copier.tool, compress=True) as moment:
        assert moment.from_stream
        stage = Stage("dump", server.runtime.run_tool("nvs-tool-my", side.image, moment.command, beside=side.handle))
        stage.listen()
        assert stage.tool.stdout is not None
        pieces: list[bytes] = []
        unzipped = zipping.Unzipped(pieces.append)
        try:
            while piece := stage.tool.stdout.read(random.choice([1, 700, 1 << 20])):
                moment.hear(piece)
                unzipped.feed(piece)
            assert stage.tool.wait(120).exit_code == 0, stage.words()
            dump = b"".join(pieces)
            assert zipping.told_bytes(stage.last_lines()) == len(dump)  # it was compressed, beside the server
        finally:
            stage.end()
        return dump, moment.contents(lambda: None), (*moment.notes, moment.tool)


def restored(copier: Copier, dump: bytes) -> Fingerprint:
    """By hand into the other server, and a moment of that."""
    target, engine, names = copier.target, copier.target.engine, copier.names
    target.drop(names)
    target.make(names, copier.password)
    with engine.admin(target.endpoint, target.admin) as admin:
        admin.quiet(names, quiet=True)
        admin.lock_tenant(names, locked=True)
        login = replace(copier.tool, username=admin.admit_restorer(names, copier.tool.username, copier.tool.password))
    side = target.side(login)
    tool = target.runtime.run_tool("nvs-tool-my-r", side.image, engine.restore(side.place, login), beside=side.handle)
    stage = Stage("restore", tool)
    stage.listen()
    with contextlib.closing(tool.stdin) as sink:
        for first in range(0, len(dump), framing.PIECE_BYTES):
            sink.write(framing.frame(dump[first : first + framing.PIECE_BYTES]))
        sink.write(framing.END)
        sink.flush()
    ended = tool.wait(60)
    words = stage.words()
    stage.end()
    assert ended.exit_code == 0, words
    return taken(copier, target)[1]


@docker
def test_a_hostile_database_while_others_write(copier: Copier) -> None:
    more = MARIADB if copier.source.engine.name == "mariadb" else ()
    run(copier.source, copier.login, *HOSTILE)
    run(copier.source, copier.login, "SELECT 1", *more)
    run(
        copier.source, copier.login, "CREATE TABLE pairs (side CHAR(1) PRIMARY KEY, n BIGINT)",
        "INSERT INTO pairs VALUES ('a', 0), ('b', 0)", "CREATE TABLE bulk (i INT AUTO_INCREMENT PRIMARY KEY, t TEXT)",
        "INSERT INTO bulk (t) WITH RECURSIVE s (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM s WHERE i < 900) SELECT"
        " CONCAT('),(''\\\\', SHA2(CONCAT(a.i, b.i), 512)) FROM s a, s b WHERE b.i < 60",
        "CREATE TABLE empty_one (i INT)",
    )  # fmt: skip
    stop, written = threading.Event(), [0]

    def write() -> None:
        while not stop.is_set():
            run(
                copier.source, copier.login, "BEGIN", "UPDATE pairs SET n = n + 1",
                "DELETE FROM bulk ORDER BY i LIMIT 1", "INSERT INTO bulk (t) VALUES ('new')", "COMMIT",
            )  # fmt: skip
            written[0] += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        while not written[0]:
            time.sleep(0.05)
        dump, told, notes = taken(copier, copier.source)
    finally:
        stop.set()
        writer.join()
    copy = restored(copier, dump)
    assert told.differences(copy) == []
    assert told.tables["bulk"].rows == 53100
    assert told.tables["empty_one"].rows == 0
    assert told.tables["every"].rows == 7 and told.tables["twins"].rows == 6
    assert told.tables["ta'b\"l`e\n\\! -- ;;"].rows == 3
    assert any("FLOAT" in note for note in notes) and any("triggers" in note for note in notes), notes
    assert "dump" in notes[-1]
    assert len({value for (value,) in run(copier.target, copier.tool, "SELECT DISTINCT n FROM pairs")}) == 1
    exact = {t: c.rows for t, c in told.tables.items()}
    server = copier.source.engine.fingerprint(copier.target.endpoint, copier.tool)
    assert exact == {table: content.rows for table, content in server.tables.items()}  # counted by the server itself
    kinds = {kind for kind, _ in told.facts}
    assert ("next value of sequence" in kinds) is bool(more), "as the tool of this version spells it"
    assert kinds >= {"definition of table", "trigger", "procedure", "function", "event"}, kinds


@docker
@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("UPDATE t SET a = 4 WHERE a = 3", "table t has other values"),
        ("DELETE FROM t WHERE a = 1", "table t has 2 rows instead of 3"),
        ("ALTER TABLE t ADD INDEX more (b)", "definition of table t differs"),
        ("DROP TABLE u", "table u is missing"),
        ("DROP TRIGGER g", "trigger g is missing"),
        ("DROP PROCEDURE p", "procedure p is missing"),
    ],
)
def test_every_difference_is_told(copier: Copier, change: str, told: str) -> None:
    run(
        copier.source, copier.login, "CREATE TABLE t (a INT, b VARCHAR(20))",
        "INSERT INTO t VALUES (1, 'x'), (2, 'y'), (3, NULL)",
        "CREATE TABLE u (a INT)", "CREATE TRIGGER g BEFORE INSERT ON u FOR EACH ROW SET NEW.a = 1",
        "CREATE PROCEDURE p() SELECT 1",
    )  # fmt: skip
    before = taken(copier, copier.source)[1]
    run(copier.source, copier.login, change)
    assert told in before.differences(taken(copier, copier.source)[1])


ENDS = "-- Dump completed\n" * 3


def read(dump: bytes, size: int) -> Fingerprint:
    reader = DumpReader()
    for first in range(0, len(dump), size):
        reader.feed(dump[first : first + size])
    return reader.contents()


def test_rows_are_counted_whatever_stands_in_them() -> None:
    statement = b"""INSERT INTO `a``b` VALUES (1,'),(\\'\\\\'),(2,NULL),(-3.5,0x00ff),(4,_binary '\\\\\\'),(');\n"""
    spread = b"INSERT INTO `s` (`x`, `y)`) VALUES\n(1,'a'),\n(2,'b,(');\n"
    large = b"INSERT INTO `l` VALUES (1,'" + b"x" * (9 << 20) + b"');\nINSERT INTO `l` VALUES (2,'y');\n"
    dump = b"CREATE TABLE `none` (\n);\n" + statement + spread + large + ENDS.encode()
    found = [read(dump, size) for size in (len(dump), 1 << 20, 65_537)]
    assert {name: table.rows for name, table in found[0].tables.items()} == {"a`b": 4, "s": 2, "l": 2, "none": 0}
    assert found[0].differences(found[1]) == found[0].differences(found[2]) == []
    small = dump.replace(large, b"")
    assert read(small, 1).differences(read(small, 7)) == []
    other = statement.replace(b"(2,NULL),(-3.5,0x00ff)", b"(-3.5,0x00ff),(2,NULL)")
    assert found[0].differences(read(dump.replace(statement, other), 1 << 20)) == []  # whatever their order


def test_rows_that_a_shared_server_can_t_take_back_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A statement holds a whole row, twice as long as its BLOBs: above `max_allowed_packet` a restore stops at it."""
    rows = {size: b"INSERT INTO `l` VALUES (1,'" + b"x" * size + b"');\n" for size in (9 << 20, 10 << 20, 1 << 20)}
    dump = b"".join(rows.values()) + rows[9 << 20].replace(b"`l`", b"`m`") + ENDS.encode()
    for size in (1 << 20, 65_537):
        reader = DumpReader()
        for first in range(0, len(dump), size):
            reader.feed(dump[first : first + size])
        assert reader.largest == {"l": len(rows[10 << 20]), "m": len(rows[9 << 20])}

    def notes(limit: int) -> tuple[str, ...]:
        monkeypatch.setattr(mysql_moment, "PACKET_BYTES", limit)
        moment = mysql_moment.MySQLMoment(Command(("x",), {}, {}), ("before",))
        for first in range(0, len(dump), 1 << 20):
            moment.hear(dump[first : first + (1 << 20)])
        moment.contents(lambda: None)
        return moment.notes

    assert notes(64 << 20) == ("before",)
    assert "in l (10 MiB): they can" in notes(19 << 19)[1]
    assert "in l (10 MiB), m (9 MiB): they can" in notes(1 << 20)[1]


def test_minus_zero_of_a_large_row_is_zero_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in small rows: a restore takes it for 0. Whatever pieces the row comes in; and texts are as they were."""
    monkeypatch.setattr(mysql_moment, "_MOST_BYTES", 1 << 10)

    def dump(zero: str, text: str = "-0") -> bytes:
        row = f"({zero},'{'x' * 2000}',{zero},'{text}',{zero},{zero},7)"
        return f"INSERT INTO `l` VALUES {row};\n{ENDS}".encode()

    for zero in ("0", "0.00", "0." + "0" * 30):
        whole, minus = read(dump(zero), 1 << 20), dump("-" + zero)
        for at in range(2000, len(minus)):
            reader = DumpReader()
            for piece in (minus[:at], minus[at : at + 1], minus[at + 1 : at + 4], minus[at + 4 :]):
                reader.feed(piece)
            assert whole.differences(reader.contents()) == []
        for other in (dump(zero, "0"), dump("-1"), dump(zero + "1")):
            assert whole.differences(read(other, 2000)) == ["table l has other values"]


def test_a_newer_server_gives_the_same_next_values() -> None:
    """There definitions may be spelled otherwise, so the value is told by itself. A backup from before that tells none."""

    def told(value: bytes, statement: bytes = b"DO", words: bytes = b"") -> Fingerprint:
        dump = b"--\n-- Sequence structure for `s``1`\n--\n\nCREATE SEQUENCE `s``1`%s start with 1;\n" % words
        return read(dump + b"%s SETVAL(`s``1`, %s, 0);\n" % (statement, value) + ENDS.encode(), 7)

    before = told(b"7")
    newer = told(b"7", b"SELECT", b" as bigint")
    assert before.differences(newer) == ["sequence structure s`1 differs"]
    assert before.data.differences(newer.data) == []
    assert before.data.differences(told(b"-8", words=b" as bigint").data) == ["next value of sequence s`1 differs"]
    old = replace(before, facts={key: state for key, state in before.facts.items() if key[0] == "sequence structure"})
    assert old.differences(before) == before.differences(old) == []
    assert len(before.facts) == len(old.facts) + 1


@pytest.mark.parametrize("cut", [1, 10, 18, 40, 70])
def test_a_dump_that_was_cut_off_is_none(cut: int) -> None:
    dump = b"INSERT INTO `t` VALUES (1,'a');\n" + ENDS.encode()
    read(dump, 5)
    with pytest.raises(EngineError):
        read(dump[:-cut], 5)


def test_rows_that_can_t_be_told_apart_are_refused() -> None:
    for rows in (b"(1),(2)x", b"(1)(2", b"(1),(2)", b"(1,'a),(2", b"1", b"(1), (2"):
        with pytest.raises(EngineError):
            read(b"INSERT INTO `t` VALUES " + rows + b");\n" + ENDS.encode(), 1 << 20)
