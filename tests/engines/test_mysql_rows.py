"""Rows of dumps: the quick way to tell them apart and the one character by character come to the same, whatever is in them."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from hashlib import blake2b

import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from projects.domain import EngineError
from projects.engines import mysql_rows, zipping
from projects.engines.mariadb import MariaDB
from projects.engines.mysql import MySQL
from projects.engines.mysql_family import MySQLFamily
from projects.engines.mysql_moment import DumpReader
from tests.contracts.engine_contract import request

# As the dump programs do.
_ESCAPES = {
    "\0": "\\0",
    "\n": "\\n",
    "\r": "\\r",
    "\\": "\\\\",
    "'": "\\'",
    '"': '\\"',
    "\x1a": "\\Z",
}
_NASTY = (
    "),(", "),\n(", "'", "\\", "\\'", "'),('", "(", ")", "((", ",", ");\n", "\n", "-0", ",-0,", "(-0)", '"', "\0", "\x1a", "é€",
    "--", "NULL", "a", "/*", "\\),(\\", "');\nINSERT INTO `x` VALUES ('",
)  # fmt: skip


def quoted(text: str) -> str:
    return "'" + "".join(_ESCAPES.get(character, character) for character in text) + "'"


texts = st.lists(st.sampled_from(_NASTY), max_size=6).map("".join) | st.text(max_size=20)
numbers = st.sampled_from(["0", "-0", "-0.0", "-0.00", "-0.5", "1", "-1", "1e30", "-0.000000", "12345678901234567890"])
values = (
    texts.map(quoted) | numbers | st.just("NULL") | st.binary(max_size=9).map(lambda v: "0x" + v.hex().upper() if v else "''")
    | texts.map(lambda v: "_binary " + quoted(v))
)  # fmt: skip
rows = st.lists(values, max_size=5).map(lambda row: f"({','.join(row)})".encode())
bodies = st.tuples(st.lists(rows, min_size=1, max_size=12), st.sampled_from([b",", b",\n"]))


def slowly(body: bytes) -> tuple[int, int]:
    """Row by row, each by itself."""
    found = mysql_rows.apart(body)
    digests = [blake2b(mysql_rows.told(row), digest_size=16).digest() for row in found]
    return len(found), sum(int.from_bytes(digest, "big") for digest in digests) % mysql_rows.SUM


@settings(max_examples=400, deadline=None)
@given(bodies)
@example(([b"(1,'a\\\\\\'),(b')"], b","))
@example(([b"('),(')", b"('),(')"], b","))
@example(([b"('(')", b"(')')"], b",\n"))
@example(([b"('\\\\')", b"('\\'')"], b","))
def test_the_quick_way_tells_the_same_rows(body: tuple[list[bytes], bytes]) -> None:
    made, between = body
    text = between.join(made)
    assert mysql_rows.apart(text) == made
    assert mysql_rows.cut(text) in (made, None)
    assert mysql_rows.total(text) == slowly(text)


@settings(max_examples=600, deadline=None)
@given(bodies, st.data())
def test_what_is_no_row_is_refused_by_both(body: tuple[list[bytes], bytes], data: st.DataObject) -> None:
    """Whatever is put into rows, taken out of them, or changed."""
    text = body[1].join(body[0])
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text)))
        more = data.draw(st.sampled_from([b"", b"'", b"(", b")", b",", b"\n", b"\\", b"),(", b"x", b" ", b"),\n("]))
        text = text[:at] + more + text[at + data.draw(st.integers(0, 2)) :]
    try:
        expected = slowly(text)
    except mysql_rows.Unreadable:
        with pytest.raises(mysql_rows.Unreadable):
            mysql_rows.total(text)
    else:
        assert mysql_rows.total(text) == expected


@settings(max_examples=200, deadline=None)
@given(st.lists(bodies, max_size=5), st.integers(0, 2**32))
def test_a_dump_in_pieces_of_any_size_is_the_same(statements: list[tuple[list[bytes], bytes]], seed: int) -> None:
    chance, count, whole = random.Random(seed), 0, 0
    dump = b""
    for made, between in statements:
        body = between.join(made)
        dump += b"INSERT INTO `t` VALUES" + (b"\n" if between == b",\n" else b" ") + body + b";\n"
        more, total = slowly(body)
        count, whole = count + more, (whole + total) % mysql_rows.SUM
    dump += b"-- Dump completed\n" * 3
    for packed in (dump, zstandard.ZstdCompressor().compress(dump)):
        reader, at = DumpReader(), 0
        unzipped = zipping.Unzipped(reader.feed)
        while at < len(packed):
            size = chance.choice([1, 2, 3, 17, 400])
            unzipped.feed(packed[at : at + size])
            at += size
        tables = reader.contents().tables
        assert {name: (table.rows, table.digest) for name, table in tables.items()} == (
            {"t": (count, f"{whole:032x}")} if statements else {}
        )


@pytest.mark.parametrize("between", [b",", b",\n"])
@pytest.mark.parametrize(
    "row",
    [
        lambda i: f"({i},'plain, text',NULL,-1.5,'2026-01-01')",
        lambda i: f"({i},'with (parentheses)','it\\'s','C:\\\\x\\\\')",
        lambda i: f"({i},0x{i:020X})",
    ],
)
def test_usual_rows_take_the_quick_way(row: Callable[[int], str], between: bytes) -> None:
    made = [row(i).encode() for i in range(50)]
    assert mysql_rows.cut(between.join(made)) == made


def test_much_out_of_little_comes_in_small_pieces() -> None:
    packed = zstandard.ZstdCompressor().compress(bytes(64 << 20))
    assert len(packed) < 16 << 10
    sizes: list[int] = []
    zipping.Unzipped(lambda piece: sizes.append(len(piece))).feed(packed)
    assert sum(sizes) == 64 << 20 and max(sizes) <= 1 << 20


def test_a_damaged_stream_is_told() -> None:
    packed = bytearray(zstandard.ZstdCompressor(write_checksum=True).compress(random.Random(1).randbytes(5000)))
    packed[3000] ^= 1
    with pytest.raises(EngineError):
        zipping.Unzipped(lambda _: None).feed(bytes(packed))


@pytest.mark.parametrize(("engine", "version"), [(MariaDB(), "11.8"), (MariaDB(), "10.11"), (MySQL(), "9.7")])
def test_a_throw_away_server_does_not_write_every_row_once_more(engine: MySQLFamily, version: str) -> None:
    asked = request(engine, version, "secret")
    kept, thrown_away = engine.server_spec(asked), engine.server_spec(replace(asked, isolated=True))
    for which in (lambda spec: spec.argv, lambda spec: spec.process.run):
        assert "--log_bin=binlog" in which(kept) and "--skip-log-bin" not in which(kept)
        assert not any("log_bin=" in argument for argument in which(thrown_away))
        unsafe = "--loose-innodb_flush_method=nosync", "--innodb_flush_log_at_trx_commit=0", "--innodb_doublewrite=OFF"
        assert set(unsafe) <= set(which(thrown_away)) and not set(unsafe) & set(which(kept))
        assert ("--skip-log-bin" in which(thrown_away)) == (
            engine.name == "mysql"
        )  # MariaDB has none unless it is told to
