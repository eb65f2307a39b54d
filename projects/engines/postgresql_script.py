"""A plain dump of PostgreSQL, statement by statement, as psql would split it: without psql's own commands.

What a role other than the server's owner can't do, or what belongs to roles that are not here, is left out and counted:
owners, rights, event triggers. A backslash outside of quotes, bodies and COPY's data is refused, whatever follows it: only
the two lines that pg_dump itself writes since 2025 (`\\restrict`, `\\unrestrict`) are passed over. Lines stay where they
are, so that what the server says of line 12 is line 12 of the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from projects.engines.foreign import ForeignRefused, Left
from projects.engines.scripts import Buffered, parts, past

_WORD = rb"[A-Za-z_\x80-\xff][A-Za-z0-9_$\x80-\xff]*"
_NEXT = re.compile(rb"['\"$;\\()]|--|/\*|" + _WORD)
_NEXT_QUICK = re.compile(rb"['\"$;\\()]|--|/\*")
_TAG = re.compile(rb"\$(?:[A-Za-z_\x80-\xff][A-Za-z0-9_\x80-\xff]*)?\$")
# So many at a time: what a group matched stays in memory until all of it is matched, at 150 bytes for each.
_SPACES = re.compile(rb"(?:\s+|--[^\n]*\n|/\*[^*/]*\*/){0,500}")
_RESTRICTS = 100  # pg_dump writes two; each costs a copy of what stands before it
_RESTRICT = re.compile(rb"\\(?:un)?restrict [A-Za-z0-9]+[ \t\r]*(?:\n|\Z)")
_END_OF_COPY = re.compile(rb"^\\\.\r?(?:\n|\Z)", re.MULTILINE)
_COPY = re.compile(rb"COPY\b.*\bFROM\s+STDIN\b", re.IGNORECASE | re.DOTALL)
_OWNER = re.compile(rb"\bOWNER\s+TO\s+(?:\"(?:[^\"]|\"\")+\"|[\w$\x80-\xff]+)\s*;\s*\Z", re.IGNORECASE)
_FIRST = re.compile(rb"\s*(" + _WORD + rb")?" + (rb"(?:\s+(" + _WORD + rb"))?") * 4)
_KEEP_BYTES = 4096
_LONG_LINE = 8 << 20

_LEFT_OUT: tuple[tuple[re.Pattern[bytes], str], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), what)
    for pattern, what in (
        (rb"(?:GRANT|REVOKE)\b", "rights of other roles (GRANT, REVOKE)"),
        (rb"ALTER DEFAULT PRIVILEGES\b", "rights of other roles (GRANT, REVOKE)"),
        (rb"(?:SET|RESET) (?:LOCAL |SESSION )?(?:SESSION AUTHORIZATION|ROLE)\b", "change of role"),
        (rb"(?:CREATE|ALTER|DROP|COMMENT ON) EVENT TRIGGER\b", "event trigger (needs a superuser)"),
        (rb"(?:CREATE|ALTER|DROP|COMMENT ON) SUBSCRIPTION\b", "subscription (needs a superuser)"),
        (rb"COMMENT ON (?:EXTENSION|DATABASE)\b", ""),
        (rb"SECURITY LABEL\b", "security label"),
        (rb"CREATE SCHEMA public\s*;", ""),  # it is there
    )
)
_CLUSTER = re.compile(
    rb"(?:(?:CREATE|ALTER|DROP) (?:DATABASE|ROLE|USER(?! MAPPING)|GROUP|TABLESPACE)|ALTER SYSTEM)\b", re.IGNORECASE
)


def space_end(data: bytes | bytearray, at: int = 0) -> int:
    """Where blanks and comments end that begin there, in memory that does not grow with them. What is not ended is none."""
    while True:
        begin, at = at, past(_SPACES, data, at)
        if data.startswith(b"/*", at):
            at = _comment_end(data, at) or at
        if at == begin:
            return at


def _comment_end(data: bytes | bytearray, at: int) -> int:
    """Comments hold comments. 0: it has no end."""
    depth = 0
    for found in _COMMENT.finditer(data, at):
        depth += 1 if found[0] == b"/*" else -1
        if not depth:
            return found.end()
    return 0


def script(pieces: Iterable[bytes], left: Left) -> Iterator[bytes]:
    """Statements and data for psql, in order, with the lines of the file. Raises `ForeignRefused`."""
    return _Script(pieces, left).run()


class _Script(Buffered):
    def __init__(self, pieces: Iterable[bytes], left: Left) -> None:
        super().__init__(pieces, left)
        self._conforming = True  # a backslash in a string is a backslash
        self._whole = True  # False while the closing line of pg_dump is awaited
        self._restricts = 0

    # --- statements ---------------------------------------------------------------------------------------------------------
    def run(self) -> Iterator[bytes]:
        if not self._more():
            return
        if self._buffer.startswith(b"\xef\xbb\xbf"):
            self._start = self._at = 3
        self._whole = b"\n-- PostgreSQL database dump\n" not in self._buffer[:_KEEP_BYTES].replace(b"\r", b"")
        while True:
            statement = self._statement()
            if statement is None:
                break
            yield from self._taken(statement)
            del statement  # a long one isn't held while the next one comes
        rest = self._buffer[self._start :]
        if b"-- PostgreSQL database dump complete" in rest[-_KEEP_BYTES:]:
            self._whole = True
        if space_end(rest + b"\n") <= len(rest):
            self._refuse("upload_truncated", "The file ends within a statement.")
        if not self._whole:
            raise ForeignRefused(
                "upload_truncated", "The file is cut off: the last line that pg_dump writes is missing."
            )

    def _statement(self) -> bytearray | None:
        """Up to its semicolon, with what stands before it; None at the end. Passes over lines that pg_dump writes for psql."""
        depth = bodies = words = 0
        making: bool | None = None
        first: list[bytes] = []
        while True:
            looked = _NEXT if making is not False else _NEXT_QUICK
            found = self._search(looked, 1)
            if found is None:
                return None
            token, begin = found[0], found.start()
            self._at = found.end()
            if token == b";" and depth == 0 and bodies == 0:
                return self._cut()
            if token == b"'":
                self._string(begin)
            elif token == b'"':
                self._until(b'"')
            elif token == b"$":
                self._dollar(begin)
            elif token == b"--":
                self._until(b"\n", end=True)
                self._seen_comment(begin)
            elif token == b"/*":
                self._comment()
            elif token == b"(":
                depth += 1
            elif token == b")":
                depth = max(0, depth - 1)
            elif token == b"\\":
                self._backslash(begin)
            elif token != b";":
                word = token.lower()
                words += 1
                if words <= 4:
                    first.append(word)
                    if words == 1 and word != b"create":
                        making = False
                    elif words == 4 or word in {b"function", b"procedure"}:
                        making = bool({b"function", b"procedure"} & set(first))
                elif making is None:
                    making = False
                # As psql counts them (psqlscan.l): the body of a function in standard SQL holds semicolons.
                if making and depth == 0:
                    if word == b"begin" or (word == b"case" and bodies):
                        bodies += 1
                    elif word == b"end" and bodies:
                        bodies -= 1

    def _seen_comment(self, begin: int) -> None:
        if not self._whole and self._buffer.startswith(b"-- PostgreSQL database dump complete", begin):
            self._whole = True

    def _string(self, begin: int) -> None:
        """A doubled quote is the end of one string and the begin of another: that comes to the same."""
        before = bytes(self._buffer[max(self._start, begin - 2) : begin])
        named = before[:-1] in {b"_", b"$"} or before[:-1].isalnum() or before[:-1] >= b"\x80"
        if self._conforming and (before[-1:] not in {b"e", b"E"} or named):
            self._until(b"'")
            return
        while True:
            found = self._search(_ESCAPED, 1)
            if found is None:
                self._refuse("upload_truncated", "The file ends within a statement.")
            self._at = found.end()
            if found[0] == b"'":
                if self._buffer[self._at : self._at + 1] != b"'":
                    return
                self._at += 1
            else:
                self._at += 1  # whatever it is that the backslash stands before

    def _dollar(self, begin: int) -> None:
        before = bytes(self._buffer[begin - 1 : begin]) if begin > self._start else b""
        if before and (before.isalnum() or before in b"_$" or before >= b"\x80"):
            return  # within a name
        while True:
            tag = _TAG.match(self._buffer, begin)
            if tag is not None:
                break
            if len(self._buffer) - begin > 130 or b"\n" in self._buffer[begin:]:
                return  # a parameter, or nothing at all
            offset = begin - self._start
            if not self._more():
                return
            begin = self._start + offset
        self._at = tag.end()
        self._until(tag[0])

    def _comment(self) -> None:
        depth = 1
        while depth:
            found = self._search(_COMMENT, 1)
            if found is None:
                self._refuse("upload_truncated", "The file ends within a comment.")
            self._at = found.end()
            depth += 1 if found[0] == b"/*" else -1

    def _backslash(self, begin: int) -> None:
        """The one place where a file could make a client do something."""
        offset = begin - self._start
        while b"\n" not in self._buffer[self._start + offset :] and len(self._buffer) - self._start - offset < 300:
            if not self._more():
                break
        begin = self._start + offset
        line_begins = begin == self._start or self._buffer[begin - 1 : begin] == b"\n"
        known = _RESTRICT.match(self._buffer, begin)
        before = self._buffer[self._start : begin] + b"\n"
        if known is not None and line_begins and space_end(before) == len(before) and self._restricts < _RESTRICTS:
            self._restricts += 1
            # Blank, and the line stays a line.
            self._buffer[begin : known.end()] = b"\n"
            self._at = begin + 1
            return
        self._line += self._buffer.count(b"\n", self._start, begin)
        told = self._buffer[begin : begin + 40].split(b"\n")[0].decode(errors="replace").strip()
        if told.startswith(("\\connect", "\\c ")):
            self._refuse("upload_cluster_dump", f"`{told}`: take the dump of one database, without --create.")
        self._refuse(
            "upload_meta_command",
            f"`{told}` is a command of psql. Uploads may hold SQL and COPY data only; nothing ran.",
        )

    # --- what becomes of one ----------------------------------------------------------------------------------------------
    def _taken(self, statement: bytearray) -> Iterator[bytes]:
        at = space_end(statement)
        lines, head, tail = statement.count(b"\n"), statement[at : at + 80], statement[max(at, len(statement) - 300) :]
        if b"\0" in statement:
            self._refuse("upload_damaged", "A statement holds a zero byte.")
        first = _FIRST.match(statement, at)
        plain = b" ".join(word for word in first.groups() if word) if first else b""
        if _CLUSTER.match(plain):
            self._line += lines
            self._refuse(
                "upload_cluster_dump",
                f"`{plain[:60].decode(errors='replace')}`: take the dump of one database with pg_dump, without --create.",
            )
        what = next((what for pattern, what in _LEFT_OUT if pattern.match(plain) or pattern.match(head)), None)
        if what is None and plain[:5].upper() == b"ALTER" and _OWNER.search(tail):
            what = "owner of an object (OWNER TO)"
        if what is not None:
            if what:
                self._left.counted[what] += 1
            self._line += lines
            yield b"\n" * lines
            return
        if (setting := _CONFORMING.match(statement, at)) is not None:
            self._conforming = setting[1].lower() != b"off"
        yield from parts(statement)
        if plain[:4].upper() == b"COPY" and _COPY.match(statement, at):
            self._line += lines
            yield from self._data()
        else:
            self._line += lines

    def _data(self) -> Iterator[bytes]:
        """COPY's lines up to the one with `\\.` alone. Its end is never taken for the end of the file."""
        self._until(b"\n")  # of the statement's own line
        head = bytes(self._buffer[self._start : self._at])
        if head.strip():
            self._refuse("upload_damaged", "Something stands behind COPY's semicolon.")
        self._line += 1
        yield head
        self._start = self._at
        fresh = True  # at the begin of a line
        while True:
            found = _END_OF_COPY.search(self._buffer, self._at) if fresh else None
            if found is not None and (found[0].endswith(b"\n") or self._ended):
                yield self._handed(found.end())
                if not found[0].endswith(b"\n"):
                    yield b"\n"
                return
            looked, was = (self._buffer.rfind if fresh else self._buffer.find), fresh
            end = looked(b"\n", self._at, found.start() if found else len(self._buffer)) + 1
            if end > self._at:
                yield self._handed(end)
                fresh = True
            elif len(self._buffer) - self._at > _LONG_LINE:
                yield self._handed(len(self._buffer))
                fresh = False
            if (was or end <= 0) and not self._more() and not _END_OF_COPY.match(self._buffer, self._at):
                self._refuse("upload_truncated", "The file ends within the data of a table.")

    def _handed(self, end: int) -> bytes:
        """What is in the buffer up to there, which leaves it."""
        found = bytes(memoryview(self._buffer)[self._at : end])
        self._line += found.count(b"\n")
        self._start = self._at = end
        return found


_ESCAPED = re.compile(rb"[\\']", re.DOTALL)
_COMMENT = re.compile(rb"/\*|\*/")
_CONFORMING = re.compile(rb"SET\s+standard_conforming_strings\s*(?:=|TO)\s*'?(\w+)", re.IGNORECASE)
