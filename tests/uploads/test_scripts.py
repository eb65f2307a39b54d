"""Plain dumps statement by statement: the same in whatever pieces they come, and no command of psql gets through."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from projects.engines.foreign import ForeignRefused, Left
from projects.engines.postgresql_script import script

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
    assert code_of("SELECT '" + "x" * 5000, 100)[0] == "upload_statement_too_large"
