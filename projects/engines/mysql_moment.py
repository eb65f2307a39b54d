"""A moment of a MariaDB or MySQL database: no other session can see the one that the dump program sees, so what the
database held is told from the dump's own text, and of a restored copy from a dump of the copy.

Rows are taken out of INSERT statements and hashed one by one: the sum over a table does not depend on their order, and
their number is exact. All other text is hashed by the section of the dump that it stands in: a table's definition, a view,
the routines, a table's triggers, the events.

Not compared: what FLOAT values have beyond six digits, which stands in statements of a moment later.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from projects.domain import Command, Credentials, Endpoint, EngineError, Fingerprint, TableContent
from projects.domain.contents import NEXT_VALUE
from projects.engines import mysql_floats, mysql_rows, zipping
from projects.engines.moments import Moment
from projects.engines.mysql_copy import PACKET_BYTES
from projects.engines.mysql_session import connect

_MOST_BYTES = 8 << 20  # of a statement with several rows: the dump programs begin a new one after one megabyte
_RUNS = 3  # of the dump program in one dump
_ENDED = b"-- Dump completed"
_MADE_BY = re.compile(rb"-- (M\w+ dump .*)")
_SECTION = re.compile(rb"-- ([A-Z][\w ]*?)(?: for (?:table|view|database)?)? ?((?:`(?:[^`]|``)*`|'.*')?)\s*\Z")
_NAMED = rb"`((?:[^`]|``)*)`"
_INSERT = re.compile(
    rb"INSERT (?:IGNORE )?INTO " + _NAMED + rb" (?:\((?:`(?:[^`]|``)*`|[\w$ ,])*\) )?VALUES(?: |\n)", re.DOTALL
)
_TABLE = re.compile(rb"CREATE TABLE " + _NAMED, re.DOTALL)
_ACTING = re.compile(
    rb"\b(PROCEDURE|FUNCTION|TRIGGER|EVENT|PACKAGE BODY|PACKAGE) (?:IF NOT EXISTS )?(?:" + _NAMED + rb"|\"?([\w$]+))"
)
_SEQUENCE = "sequence structure"
_SETVAL = re.compile(rb"(?:DO|SELECT) SETVAL\(.*, *(-?\d+), *(\d)\);\s*\Z", re.DOTALL)
_HEAD_BYTES = 64 << 10
_MINUS_ZERO_BEGUN = re.compile(rb"[(,](?:-(?:0(?:\.0{0,64})?)?)?\Z")
_MINUS_ZERO_BYTES = 68  # the longest text that it begins with
_ROWS_END = b");\n"
_CHARSET = re.compile(rb" CHARACTER SET \w+(?= COLLATE \w+)")
_NOTES = (
    (
        "SELECT COUNT(*) FROM information_schema.tables WHERE table_schema = DATABASE() AND table_type = 'BASE TABLE'"
        " AND engine <> 'InnoDB'",
        "{} tables have no transactions (their storage engine is not InnoDB): they are not of the same moment as the others.",
    ),
    (
        "SELECT COUNT(*) FROM information_schema.columns WHERE table_schema = DATABASE() AND data_type = 'float'",
        "What {} FLOAT columns have beyond six digits is of a moment later, and not compared.",
    ),
    (
        "SELECT (SELECT COUNT(*) FROM information_schema.routines WHERE routine_schema = DATABASE())"
        " + (SELECT COUNT(*) FROM information_schema.triggers WHERE trigger_schema = DATABASE())"
        " + (SELECT COUNT(*) FROM information_schema.events WHERE event_schema = DATABASE())",
        "{} routines, triggers and events are as they were just before or after that moment.",
    ),
)  # fmt: skip
LARGE = (
    f"Rows that are larger in a dump than what a shared server takes at once ({PACKET_BYTES >> 20} MiB), in {{}}: they can be"
    " restored on a server of its own that has memory for several times as much, up to 1 GiB each."
)
_OUTSIDE = "Not compared: statistics and histograms."


class _Rows:
    """The rows of one table."""

    def __init__(self) -> None:
        self.count = 0
        self._sum = 0

    def add(self, count: int, total: int) -> None:
        self.count += count
        self._sum = (self._sum + total) % mysql_rows.SUM

    def content(self) -> TableContent:
        return TableContent(self.count, f"{self._sum:032x}")


class DumpReader:
    """Fed with a dump in pieces. Holds at most one statement of it, and of one large row a piece."""

    def __init__(self) -> None:
        self.made_by = ""
        self.runs = 0
        self._held = bytearray()
        self._looked = 0  # so far there is no end of the statement
        self._rows: dict[str, _Rows] = {}
        self._facts: dict[tuple[str, str], Any] = {}
        self._values: dict[tuple[str, str], str] = {}  # facts that are no hash
        self._section = ("head", "")
        self._table: _Rows | None = None  # whose rows come
        self._large: Any = None  # a row that is larger than what is held
        self._large_table, self._large_bytes = "", 0
        self.largest: dict[str, int] = {}  # table → bytes of its largest such row, as the dump has it
        self._within = False  # the text of a routine: no line of it is ours
        self._acting = False  # it is known what
        self._floats = False
        self._read: Callable[[], bool] = self._line

    def feed(self, piece: bytes) -> None:
        self._held += piece
        while self._read():
            pass

    def contents(self) -> Fingerprint:
        """Of all that was fed. `EngineError` when it did not end where a dump ends."""
        if self._held or self._large is not None or self._within or self.runs != _RUNS:
            raise EngineError("the dump did not come to its end")
        facts = {name: digest.hexdigest() for name, digest in self._facts.items()}
        return Fingerprint({name: rows.content() for name, rows in self._rows.items()}, {**facts, **self._values})

    # --- lines ------------------------------------------------------------------------------------------------------------
    def _line(self) -> bool:
        end = self._held.find(b"\n")
        if not self._within and self._held.startswith((b"INSERT ", b"CREATE TABLE ")):
            begin = bytes(self._held[:_HEAD_BYTES])
            match = (_INSERT if begin.startswith(b"I") else _TABLE).match(begin)
            if match is None:
                if len(begin) < _HEAD_BYTES:
                    return False
                raise EngineError("the dump has a statement in a form that is not known")
            self._table = self._rows.setdefault(_name(match[1]), _Rows())
            if match.re is _INSERT:
                return self._insert(match)
            self._section = ("definition of table", _name(match[1]))
        if end < 0:
            if len(self._held) <= _MOST_BYTES:
                return False
            self._text(bytes(self._held))  # a definition of megabytes
            self._held.clear()
            return False
        line = bytes(self._held[: end + 1])
        del self._held[: end + 1]
        self._whole(line)
        return bool(self._held)

    def _whole(self, line: bytes) -> None:
        if self._within:
            self._within = line != b"DELIMITER ;\n"
            if not self._acting and (match := _ACTING.search(line)):
                self._acting, self._section = True, (match[1].decode().lower(), _name(match[2] or match[3]))
        elif line == b"DELIMITER ;;\n":
            self._within, self._acting = True, False
        elif line.startswith(b"--"):
            self._comment(line)
            return
        elif line.startswith(mysql_floats.BEFORE.encode()):
            self._floats = True
        elif line.startswith(mysql_floats.AFTER.encode()):
            self._floats = False
            return
        elif self._section[0] == _SEQUENCE and (match := _SETVAL.match(line)):
            # By itself as well: a newer server spells the definition in other words, but not this.
            self._values[NEXT_VALUE, self._section[1]] = f"{match[1].decode()} {match[2].decode()}"
        self._text(line)

    def _comment(self, line: bytes) -> None:
        if line.startswith(_ENDED):
            self.runs += 1
            self._section = ("between", str(self.runs))
        elif match := _MADE_BY.match(line):
            self.made_by = self.made_by or match[1].decode(errors="replace").strip()[:120]
        elif match := _SECTION.match(line):
            name = b"" if match[2].startswith(b"'") else match[2][1:-1]
            self._section = (match[1].decode(errors="replace").lower(), _name(name))

    def _text(self, line: bytes) -> None:
        if self._floats or not line.strip():
            return
        digest = self._facts.get(self._section)
        if digest is None:
            digest = self._facts[self._section] = hashlib.sha256()
        # MySQL keeps whether a charset was said or followed; the collation says it anyhow.
        digest.update(_CHARSET.sub(b"", line) if self._section[0] == "definition of table" else line)

    # --- rows -------------------------------------------------------------------------------------------------------------
    def _insert(self, match: re.Match[bytes]) -> bool:
        """A statement: all of it at once, unless it is one large row."""
        assert self._table is not None  # noqa: S101 - looked at by who calls
        end = self._held.find(_ROWS_END, max(match.end() - 1, self._looked))
        if end < 0:
            if len(self._held) <= _MOST_BYTES:
                self._looked = max(len(self._held) - len(_ROWS_END) + 1, 0)
                return False
            self._looked = 0
            del self._held[: match.end()]
            self._large_table, self._large_bytes = _name(match[1]), match.end()
            self._large = hashlib.blake2b(digest_size=mysql_rows.DIGEST_BYTES)
            self._read = self._large_row
            return True
        self._looked = 0
        with memoryview(self._held) as held:
            body = bytes(held[match.end() : end + 1])
        del self._held[: end + len(_ROWS_END)]
        try:
            self._table.add(*mysql_rows.total(body))
        except mysql_rows.Unreadable:
            raise EngineError(f"the dump has rows of {_name(match[1])[:64]} that can't be told apart") from None
        return bool(self._held)

    def _large_row(self) -> bool:
        """Larger than any statement of several rows: it is one."""
        assert self._large is not None and self._table is not None  # noqa: S101 - set by who set this
        end = self._held.find(_ROWS_END)
        if end < 0:
            ready = max(len(self._held) - len(_ROWS_END) + 1, 0)
            text = mysql_rows.told(bytes(self._held[:ready]))
            # What may become a -0 waits for its end, so that a row's hash does not depend on the pieces it came in.
            if begun := _MINUS_ZERO_BEGUN.search(text, max(len(text) - _MINUS_ZERO_BYTES, 0)):
                ready -= len(text) - begun.start()
                text = text[: begun.start()]
            self._large.update(text)
            self._large_bytes += ready
            del self._held[:ready]
            return False
        self._large.update(mysql_rows.told(bytes(self._held[: end + 1])))
        self._large_bytes += end + len(_ROWS_END)
        self.largest[self._large_table] = max(self._large_bytes, self.largest.get(self._large_table, 0))
        del self._held[: end + len(_ROWS_END)]
        self._table.add(1, int.from_bytes(self._large.digest(), "big"))
        self._large, self._read = None, self._line
        return bool(self._held)


def _name(quoted: bytes) -> str:
    return quoted.decode(errors="replace").replace("``", "`")


class MySQLMoment(Moment):
    from_stream = True

    def __init__(self, command: Command, notes: tuple[str, ...]) -> None:
        self.command, self.notes = command, notes
        self._reader = DumpReader()
        self._unzipped = zipping.Unzipped(self._reader.feed)

    def hear(self, piece: bytes) -> None:
        self._unzipped.feed(piece)
        self.tool = self._reader.made_by

    def contents(self, pulse: Callable[[], None]) -> Fingerprint:
        found = self._reader.contents()
        self.row_bytes = max(self._reader.largest.values(), default=0)
        large = {table: size for table, size in self._reader.largest.items() if size > PACKET_BYTES}
        if large:
            shown = ", ".join(f"{table[:64]} ({size >> 20} MiB)" for table, size in sorted(large.items())[:3])
            more = f" and {len(large) - 3} more tables" if len(large) > 3 else ""
            self.notes = (*self.notes, LARGE.format(f"{shown}{more}"))
        return found


@contextlib.contextmanager
def held(
    endpoint: Endpoint, credentials: Credentials, command: Command, *, compress: bool = False
) -> Iterator[MySQLMoment]:
    """The moment is the dump program's own."""
    if compress:
        command = replace(command, argv=zipping.zipped(*command.argv))
    found = [_OUTSIDE]
    with connect(endpoint, credentials, timeout_seconds=10) as session:
        session.bound(60)
        for query, text in _NOTES:
            if count := session.value(query):
                found.append(text.format(int(count)))
    yield MySQLMoment(command, tuple(found))
