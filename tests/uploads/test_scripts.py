"""Plain dumps statement by statement: the same in whatever pieces they come, and no command of psql gets through."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest

from projects.engines import mysql_script
from projects.engines.foreign import ForeignRefused, Left
from projects.engines.postgresql_foreign import recognise, script_of
from projects.engines.postgresql_script import script, space_end
from projects.engines.scripts import Buffered

GOOD = r"""SET a = 'x;y'; -- c ; \! no
/* \! in /* nested; */ */ SELECT $$ ; \! $$, $a$ $$ ; $a$, E'\';\\ \! ', "a;\!b", a$b, $1, U&'\0061';
CREATE FUNCTION f() RETURNS int LANGUAGE sql BEGIN ATOMIC SELECT 1; SELECT CASE WHEN true THEN 2 ELSE 3 END; END;
ALTER TABLE public.t OWNER TO "b;ob";
GRANT ALL ON TABLE t TO x;
COPY public.t (a, b) FROM stdin;
1	\N
\\!	x
\.x
;
\.

\unrestrict abc
CREATE RULE r AS ON DELETE TO t DO (SELECT 1; SELECT 2);
SELECT 2;
"""
BAD = {
    "shell": ("SELECT 1;\n\\! touch x\n", 2),
    "gexec": ("SELECT 'touch x' \\gexec\n", 1),
    "pipe": ("\\o |touch x\n", 1),
    "include": ("\n\n\\i /etc/passwd\n", 3),
    "relative include": ("SELECT 1;\\ir x\n", 1),
    "copy from program": ("\\copy t from program 'touch x'\n", 1),
    "backticks": ("\\set x `touch x`\n", 1),
    "behind restrict": ("\\restrict abc\n\\unrestrict abc\n\\! touch x\n", 3),
    "beside restrict": ("\\restrict abc\\! touch x\n", 1),
    "within restrict": ("\\restrict a b\n", 1),
    "after data": ("COPY t FROM stdin;\n1\n\\.\n\\! touch x\n", 4),
    "escaped quote that is none": ("SELECT '\\'; \\! touch x\n", 1),
    "escape string that ends": ("SELECT E'\\\\'; \\! touch x\n", 1),
    "end of a dollar quote": ("DO $a$ $b$ $a$; \\! touch x\n", 1),
    "end of a comment": ("/* /* */ */ \\! touch x\n", 1),
    "in the middle": ("SELECT 1\n\\! touch x\n;\n", 2),
    "after a carriage return": ("SELECT 1;\r\\! touch x\n", 1),
    "alone": ("\\", 1),
    "shell variable": ("SELECT 1; \\setenv PAGER touch\n", 1),
}
SIZES = (1, 2, 3, 7, 64, 9999)


def pieces(text: str, size: int) -> Iterator[bytes]:
    data = text.encode()
    return (data[at : at + size] for at in range(0, len(data), size))


def code_of(text: str, size: int = 9999) -> tuple[str, str]:
    with pytest.raises(ForeignRefused) as refused:
        list(script(pieces(text, size), Left()))
    return refused.value.code, refused.value.detail


@pytest.mark.parametrize("size", SIZES)
def test_it_is_split_as_psql_splits_it(size: int) -> None:
    left = Left()
    found = b"".join(script(pieces(GOOD, size), left)).decode()
    wanted = GOOD.replace('ALTER TABLE public.t OWNER TO "b;ob";', "").replace("GRANT ALL ON TABLE t TO x;", "")
    assert found.rstrip() == wanted.replace("\\unrestrict abc", "").rstrip()
    assert left.counted == {"owner of an object (OWNER TO)": 1, "rights of other roles (GRANT, REVOKE)": 1}


@pytest.mark.parametrize("case", BAD)
def test_no_command_of_psql_gets_through(case: str) -> None:
    text, line = BAD[case]
    for size in SIZES:
        code, detail = code_of(text, size)
        assert code == "upload_meta_command" and detail.startswith(f"Line {line}: `\\"), (size, detail)


@pytest.mark.parametrize(
    "text",
    [
        "SELECT 1", "SELECT 'a", "SELECT $a$ b", "/* a", 'SELECT "a', "COPY t FROM stdin;\n1\n", "COPY t FROM stdin;\n",
        "COPY t FROM stdin;\n\\.x\n", "--\n-- PostgreSQL database dump\n--\nSELECT 1;\n",
    ],
)  # fmt: skip
def test_a_cut_off_one_is_told_from_a_whole_one(text: str) -> None:
    for size in SIZES:
        if size > 64 or "dump" not in text:
            assert code_of(text, size)[0] == "upload_truncated"


def test_whole_ones_are_whole() -> None:
    head = "--\n-- PostgreSQL database dump\n--\n"
    for text in (
        head + "SELECT 1;\n--\n-- PostgreSQL database dump complete\n--\n\n",
        head.replace("\n", "\r\n") + "SELECT 1;\r\n-- PostgreSQL database dump complete\r\n", "COPY t FROM stdin;\n\\.",
        "", "-- nothing\n", "COPY t FROM stdin;\n" + "x" * 20_000_000 + "\n\\.\n",
    ):  # fmt: skip
        list(script(pieces(text, 1 << 20), Left()))


@pytest.mark.parametrize(
    "text",
    [
        "CREATE DATABASE x;", "DROP DATABASE x;", "ALTER ROLE x SUPERUSER;", "create user x;", "\\connect x\n", "\\c x\n",
        "ALTER SYSTEM SET x = 1;", "/* c */\n-- d\nCREATE ROLE x;",
    ],
)  # fmt: skip
def test_what_is_about_the_server_is_refused(text: str) -> None:
    assert code_of(text)[0] == "upload_cluster_dump"


def test_a_statement_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("projects.engines.scripts.STATEMENT_BYTES", 1000)
    code, told = code_of("SELECT 1;\nSELECT '" + "x" * 5000, 100)
    assert code == "upload_statement_too_large" and told.startswith("Line 2: A statement is longer than "), told
    assert told.endswith("Have the dump tool write shorter ones: COPY, or fewer rows in one INSERT.")


@pytest.mark.parametrize(
    ("reader", "begin"), [(script, "\nINSERT INTO t VALUES ('"), (mysql_script.script, "\nINSERT INTO `t` VALUES ('")]
)
def test_a_long_statement_is_in_memory_once(reader: Any, begin: str) -> None:
    size = 16 << 20

    def dump() -> Iterator[bytes]:
        for _ in range(3):
            yield begin.encode()
            yield from (b"x" * (1 << 18) for _ in range(0, size, 1 << 18))
            yield b"');\n"

    came = longest = 0
    tracemalloc.start()
    try:
        for piece in reader(dump(), Left()):
            came, longest = came + len(piece), max(longest, len(piece))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert came >= 3 * size and longest <= 1 << 20
    assert peak < 1.4 * size


@pytest.mark.parametrize("text", [" \n", "/**/", "--\n", "/* /* ; */ */\n-- ;\n"])
def test_blanks_and_comments_take_no_more_than_they_are(text: str) -> None:
    data = text.encode() * ((4 << 20) // len(text)) + b"SELECT 1;\n"
    tracemalloc.start()
    try:
        end = space_end(data)
        if text.isspace():  # quick enough, while memory is traced, to go all the way
            list(script((data[at : at + (1 << 20)] for at in range(0, len(data), 1 << 20)), Left()))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert data[end:] == b"SELECT 1;\n"
    assert peak < 12 * len(data)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (" \t\r\n--a\n/* b /* c */ * / */x", "x"), ("-", "-"), ("--", "--"), ("/* a", "/* a"), ("/* /* a */", "/* /* a */"),
        ("/**/", ""), ("/*/", "/*/"), ("--a\n", ""), ("", ""),
    ],
)  # fmt: skip
def test_where_blanks_and_comments_end(text: str, left: str) -> None:
    assert text[space_end(text.encode()) :] == left


def test_lines_that_are_passed_over_have_an_end() -> None:
    assert code_of("\\restrict a\n" * 1000)[0] == "upload_meta_command"


@pytest.mark.parametrize("quote", ["$$", "'"])
def test_small_pieces_of_a_long_statement_are_not_joined_one_by_one(
    quote: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time all that is kept is copied: as often as it grows by an eighth, not as often as a byte comes."""
    count, more = 0, Buffered._more

    def counted(self: Buffered) -> bool:
        nonlocal count
        count += 1
        return more(self)

    monkeypatch.setattr(Buffered, "_more", counted)
    text = f"SELECT {quote}" + "x" * 100_000 + f"{quote};\n"
    assert b"".join(script(pieces(text, 1), Left())).decode().rstrip() == text.rstrip()
    assert count < 500


# --- an archive's head --------------------------------------------------------------------------------------------------
def number(value: int) -> bytes:
    return b"\0" + value.to_bytes(4, "little")


def archive(database: bytes, entries: int = 0) -> bytes:
    begin = b"PGDMP\x01\x0f\x00\x04\x08\x01\x01" + number(0) * 7
    return begin + database + (number(4) + b"15.1") * 2 + number(entries)


def endless(begin: bytes, asked: list[int]) -> Iterator[bytes]:
    yield begin
    for at in range(1 << 10):
        asked.append(at)
        yield b"a" * (1 << 20)


@pytest.mark.parametrize("length", [(64 << 10) + 1, 300 << 20, (1 << 32) - 1])
def test_a_text_of_an_archive_s_head_is_as_long_as_it_may_be(length: int) -> None:
    asked: list[int] = []
    data = archive(number(length))
    with pytest.raises(ForeignRefused) as refused:
        list(script_of(endless(data, asked), "custom", Left()))
    assert refused.value.code == "upload_damaged" and not asked
    with pytest.raises(ForeignRefused) as refused:
        recognise(data, "15")
    assert refused.value.code == "upload_damaged"


@pytest.mark.parametrize("entries", [200_001, (1 << 31) - 1])
def test_an_archive_s_table_of_contents_is_as_long_as_it_may_be(entries: int) -> None:
    asked: list[int] = []
    data = archive(number(1) + b"a", entries)
    with pytest.raises(ForeignRefused) as refused:
        list(script_of(endless(data, asked), "custom", Left()))
    assert refused.value.code == "upload_damaged" and str(entries) in refused.value.detail and not asked
    assert recognise(data, "15") == "custom"
