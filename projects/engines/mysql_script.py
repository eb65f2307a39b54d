"""SQL of mysqldump and mariadb-dump, statement by statement, without the client's own commands.

The client that runs it (`mysql_copy.restore`) is in binary mode, where it knows none but `delimiter`; here they are refused
as well, so that the line is told. Left out, and counted: definers (who restores them owns them), other logins and rights,
the one name of the source's database. A second one is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from projects.engines.foreign import ForeignRefused, Left, plain_text
from projects.engines.scripts import Buffered, parts, past

FORMATS = ("plain",)
ID = rb"(?:`(?:[^`]|``)*`|\"(?:[^\"]|\"\")*\"|'(?:[^'\\]|''|\\.)*'|[\w$.%-]+)"
_WHO = rb"DEFINER\s*=\s*(?:CURRENT_USER(?:\s*\(\s*\))?|" + ID + rb"(?:\s*@\s*" + ID + rb")?)"
# Only where it is a clause: nothing of names, bodies and comments may change. Group 1 goes.
_DEFINER = re.compile(
    rb"CREATE\b(?:\s|\*/|/\*M?!\d*|/\*(?!M?!)(?:[^*]|\*(?!/))*\*/|\bOR\s+REPLACE\b|\bALGORITHM\s*=\s*\w+)*?"
    rb"(/\*M?!\d*\s*" + _WHO + rb"\s*\*/|\b" + _WHO + rb")",
    re.I,
)
HEAD_BYTES = 2000  # of a statement: its definer stands before its body
# So many at a time: what a group matched stays in memory until all of it is matched, at 150 bytes for each.
_SPACES = re.compile(rb"(?:\s+|--(?=\s)[^\n]*|#[^\n]*|/\*(?!M?!)[^*]*\*/){0,500}")
_COMMENT = re.compile(rb"/\*(?!M?!)")
OPEN = re.compile(rb"/\*M?!\d{0,6}\s*")
_COMMAND = re.compile(
    rb"(?:\\[A-Za-z.!#?]|(?:system|source|tee|notee|pager|nopager|edit|connect|prompt|resetconnection|rehash|charset|print)\b"
    rb"(?!\s*[=(])|\?)",
    re.I,
)
_DELIMITER = re.compile(rb"delimiter[ \t]+(\S+)[^\n]*(?:\n|\Z)", re.I)
_SANDBOX = re.compile(rb"/\*M!999999\\- [^\n]*\*/[^\n]*(?:\n|\Z)")
_USE = re.compile(rb"USE\s+(" + ID + rb")", re.I)
_DATABASE = re.compile(rb"(?:CREATE|DROP|ALTER)\s+(?:/\*!\d+ IF (?:NOT )?EXISTS\*/\s*)?(?:DATABASE|SCHEMA)\b", re.I)
_OWN_DATABASE = re.compile(rb"ALTER\s+DATABASE\s+CHARACTER", re.I)
_LEFT_OUT = tuple(
    (re.compile(pattern, re.IGNORECASE), what)
    for pattern, what in (
        (rb"(?:GRANT|REVOKE|FLUSH|SET\s+PASSWORD|SET\s+DEFAULT\s+ROLE)\b", "logins and rights"),
        (rb"(?:CREATE|ALTER|DROP|RENAME)\s+(?:OR\s+REPLACE\s+)?(?:USER|ROLE)\b", "logins and rights"),
        (rb"(?:LOCK|UNLOCK)\s+TABLES?\b", ""),
        (rb"SET\s+@@(?:GLOBAL\.GTID_PURGED|SESSION\.SQL_LOG_BIN)\b|SET\s+@MYSQLDUMP_TEMP_LOG_BIN\b", ""),
        (rb"CHANGE\s+(?:MASTER|REPLICATION)\b", "settings of a replica"),
    )
)
_OTHER = re.compile(rb"^-- PostgreSQL database", re.MULTILINE)
_TOLD = re.compile(rb"^-- Server version\s+(\d+)\.(\d+)[^\n]*?(MariaDB)?", re.MULTILINE)
_HEADER = re.compile(rb"^-- (?:MySQL|MariaDB) dump", re.MULTILINE)
_SAID = re.compile(r"ERROR (?:(\d+ \(\w+\)) )?at line (\d+): *(.*)", re.DOTALL)
_KEEP_BYTES = 4096


def recognise(head: bytes, version: str, *, mariadb: bool) -> str:
    if head.startswith(b"PGDMP"):
        raise ForeignRefused("upload_wrong_engine", "It is an archive of pg_dump; this database is MySQL or MariaDB.")
    text = plain_text(head)
    if _OTHER.search(text):
        raise ForeignRefused("upload_wrong_engine", "It is a dump of PostgreSQL; this database is MySQL or MariaDB.")
    line = next((line for line in text.splitlines() if line.startswith(b"-- Server version")), b"")
    told = re.search(rb"(\d+)\.(\d+)", line)
    if told is not None and (b"MariaDB" in line) == mariadb:
        theirs, mine = (
            (int(told[1]), int(told[2])),
            tuple(int(part) for part in version.split(".")[:2] if part.isdigit()),
        )
        if mine and theirs[: len(mine)] > mine:
            raise ForeignRefused(
                "upload_newer_version",
                f"It was taken from version {theirs[0]}.{theirs[1]}, this database is {version}: an older server can't be sure"
                " to understand it.",
            )
    return "plain"


def place_in_script(said: str, before: int) -> str:
    found = _SAID.search(said)
    if found is None:
        return said
    return f"Line {int(found[2]) - before}: {found[3]}" + (f" ({found[1]})" if found[1] else "")


def space_end(data: bytes | bytearray, at: int = 0) -> int:
    """Where blanks and comments end that begin there, in memory that does not grow with them. What is not ended is none."""
    while True:
        begin, at = at, past(_SPACES, data, at)
        if _COMMENT.match(data, at) and (end := data.find(b"*/", at + 2)) >= 0:
            at = end + 2
        if at == begin:
            return at


def script(pieces: Iterable[bytes], left: Left) -> Iterator[bytes]:
    """Statements for the client, in order, with the lines of the file. Raises `ForeignRefused`."""
    return Script(pieces, left).run()


class Script(Buffered):
    def __init__(self, pieces: Iterable[bytes], left: Left) -> None:
        super().__init__(pieces, left)
        self._used = b""  # the source's database, as far as it is named
        self._whole = True
        self._set_delimiter(b";")

    def _set_delimiter(self, delimiter: bytes) -> None:
        self._delimiter = delimiter
        # A quote, a comment, or the end: whatever comes first.
        self._next = re.compile(rb"['\"`#]|--(?=\s)|/\*(?!M?!)|" + re.escape(delimiter))

    def run(self) -> Iterator[bytes]:
        if not self._more():
            return
        if self._buffer.startswith(b"\xef\xbb\xbf"):
            self._start = self._at = 3
        self._whole = _HEADER.search(self._buffer[:_KEEP_BYTES]) is None
        while True:
            yield from self._line_for_the_client()
            statement = self._statement()
            if statement is None:
                break
            yield from self._in_parts(statement)
            del statement  # a long one isn't held while the next one comes
        rest = self._buffer[self._start :]
        if b"-- Dump completed" in rest[-_KEEP_BYTES:]:
            self._whole = True
        if space_end(rest) < len(rest):
            self._refuse("upload_truncated", "The file ends within a statement.")
        if not self._whole:
            raise ForeignRefused(
                "upload_truncated", "The file is cut off: the last line that the dump tool writes is missing."
            )

    def _line_for_the_client(self) -> Iterator[bytes]:
        """Lines before a statement that the client itself takes: `delimiter`, and what opens MariaDB's sandbox. Others of its
        commands are refused."""
        while True:
            begin = space_end(self._buffer, self._start)
            if begin >= len(self._buffer):
                if self._ended or not self._more():
                    return
                continue
            if (
                len(self._buffer) - begin < 4096
                and self._buffer.find(b"\n", begin) < 0
                and not self._ended
                and self._more()
            ):
                continue
            known = _DELIMITER.match(self._buffer, begin) or _SANDBOX.match(self._buffer, begin)
            if known is None:
                if _COMMAND.match(self._buffer, begin):
                    self._line += self._buffer.count(b"\n", self._start, begin)
                    told = self._buffer[begin : begin + 40].split(b"\n")[0].decode(errors="replace").strip()
                    self._refuse(
                        "upload_meta_command",
                        f"`{told}` is a command of the client. Uploads may hold SQL only; nothing ran.",
                    )
                self._at = begin
                return
            if known.re is _DELIMITER:
                self._set_delimiter(known[1])
            taken = self._buffer[self._start : known.end()]
            self._line += taken.count(b"\n")
            self._start = self._at = known.end()
            yield bytes(taken) if known.re is _DELIMITER else b"\n" * taken.count(b"\n")

    def _statement(self) -> bytearray | None:
        while True:
            found = self._search(self._next, max(2, len(self._delimiter)))
            if found is None:
                return None
            token = found[0]
            self._at = found.end()
            if token == self._delimiter:
                return self._cut()
            if token in {b"'", b'"'}:
                self._string(_STRINGS[token], token)
            elif token == b"`":
                self._until(b"`")
            elif token == b"/*":
                self._until(b"*/")
            else:
                self._until(b"\n", end=True)

    def _string(self, pattern: re.Pattern[bytes], quote: bytes) -> None:
        """A doubled quote is the end of one and the begin of another: that comes to the same."""
        while True:
            found = self._search(pattern, 1)
            if found is None:
                self._refuse("upload_truncated", "The file ends within a statement.")
            self._at = found.end()
            if found[0] == quote:
                return
            self._at += 1  # whatever it is that the backslash stands before

    def _in_parts(self, statement: bytearray) -> Iterator[bytes]:
        for piece in self._taken(statement):
            yield from parts(piece)

    def _taken(self, statement: bytearray) -> Iterator[bytes | bytearray]:
        at = past(OPEN, statement, space_end(statement))
        lines, head = statement.count(b"\n"), statement[at : at + HEAD_BYTES]
        used = _USE.match(head)
        if used is not None:
            self._name(used[1])
        what = "" if used is not None else self._left_out(head)
        self._line += lines
        if what is not None:
            if what:
                self._left.counted[what] += 1
            yield b"\n" * lines
            return
        if (definer := _DEFINER.match(head)) is not None:
            self._left.counted["definer (it belongs to who restores it)"] += 1
            del statement[at + definer.start(1) : at + definer.end(1)]
        yield statement

    def _name(self, name: bytes) -> None:
        name = name.strip(b"`\"'")
        if self._used and name != self._used:
            self._refuse(
                "upload_cluster_dump", "It is about several databases: take the dump of one, without --databases."
            )
        self._used = name

    def _left_out(self, head: bytes | bytearray) -> str | None:
        """What a statement is that is left out, empty for what nobody misses; None: it is run."""
        if _DATABASE.match(head) and not _OWN_DATABASE.match(head):
            return "" if head[:6].upper() == b"CREATE" else "statement about the database itself"
        return next((what for pattern, what in _LEFT_OUT if pattern.match(head)), None)


_STRINGS = {b"'": re.compile(rb"[\\']"), b'"': re.compile(rb"[\\\"]")}
