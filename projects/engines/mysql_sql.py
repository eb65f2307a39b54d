"""Some tables out of a dump of ours, as SQL for the product's client: with their rows and triggers. Nothing runs: the dump is
read statement by statement as it passes (`mysql_script`)."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator
from typing import NoReturn

from projects.engines.foreign import Left
from projects.engines.mysql_script import HEAD_BYTES, OPEN, Script, space_end
from projects.engines.scripts import past
from projects.engines.sql_parts import Gone, Title, TooLarge, Unclear, remarks, waiting

_OF_TABLE = re.compile(
    rb"(CREATE\s+TABLE|INSERT\s+(?:IGNORE\s+)?INTO|REPLACE\s+INTO|UPDATE|ALTER\s+TABLE)\s+(?:IF\s+NOT\s+EXISTS\s+)?`((?:[^`]|``)*)`",
    re.I,
)
_SETTING = re.compile(rb"SET\b", re.I)
# A default may be the next of a sequence: they stand before the tables, so all of them come.
_SEQUENCE = re.compile(rb"(CREATE\s+SEQUENCE\s+)|(?:DO|SELECT)\s+SETVAL\b", re.I)
# Names, and each other character by itself; what opens and closes a comment that is run says nothing here.
_TOKEN = re.compile(
    rb"/\*M?!\d{0,6}|\*/|`(?:[^`]|``)*`|\"(?:[^\"]|\"\")*\"|'(?:[^'\\]|''|\\.)*'|[\w$\x80-\xff]+|[^\s]", re.S
)
_KINDS = {b"TRIGGER", b"PROCEDURE", b"FUNCTION", b"EVENT", b"VIEW", b"TABLE", b"SEQUENCE", b"PACKAGE", b"INDEX"}
_HELD_BYTES = 4 << 20
_LEFT = ("Foreign keys may be to tables that were not chosen. Views, routines and events are left out.",)


def script(pieces: Iterable[bytes], tables: Iterable[str], title: Title, client: str) -> Iterator[bytes]:
    """Raises `Gone`, at the end, for what the dump did not hold, `Unclear`, and `EngineError` when it is none; all of
    it is read, to its end."""
    yield remarks(title, _LEFT, f"{client} --binary-mode DATABASE < FILE")
    reader = _Some(pieces, tables)
    yield from reader.run()
    if missing := reader.missing:
        raise Gone(f"The backup does not have {', '.join(missing[:5])}.")
    yield f"\n{title.end}\n".encode()


class _Some(Script):
    def __init__(self, pieces: Iterable[bytes], tables: Iterable[str]) -> None:
        super().__init__(pieces, Left())
        self._names = {name.encode(): name for name in tables}
        self._there: set[bytes] = set()
        self._skipped = self._dropped = 0

    @property
    def missing(self) -> list[str]:
        return sorted(shown for name, shown in self._names.items() if name not in self._there)

    def _more(self) -> bool:
        """Of a long statement that is not taken no more than its head is held."""
        begin, passed = self._start + 2 * HEAD_BYTES, self._at
        if passed - begin > _HELD_BYTES and self._is_other(self._buffer[self._start : begin]):
            self._buffer = self._buffer[self._start : begin] + self._buffer[passed:]
            self._start, self._at = 0, 2 * HEAD_BYTES
            self._dropped += passed - begin
        return super()._more()

    def _is_other(self, head: bytearray) -> bool:
        found = _OF_TABLE.match(head, past(OPEN, head, space_end(head)))
        return found is not None and found[2].replace(b"``", b"`") not in self._names

    def _refuse(self, code: str, detail: str) -> NoReturn:
        if code == "upload_statement_too_large":
            raise TooLarge(f"Line {self._line}: {detail}")
        super()._refuse(code, detail)

    def _taken(self, statement: bytearray) -> Iterator[bytes | bytearray]:
        at = past(OPEN, statement, space_end(statement))
        head = statement[at : at + HEAD_BYTES]
        if (sequence := _SEQUENCE.match(head)) is not None and sequence[1]:
            at += sequence.end(1)
            yield statement[:at] + b"IF NOT EXISTS " + statement[at:]
        elif sequence is not None or self._wanted(head, statement, at):
            yield statement
        else:
            self._skipped, line = waiting(self._skipped, len(statement) + self._dropped)
            yield line
        self._dropped = 0

    def _wanted(self, head: bytearray, statement: bytearray, at: int) -> bool:
        if _SETTING.match(head):
            return True
        if (found := _OF_TABLE.match(head)) is not None:
            name = found[2].replace(b"``", b"`")
            if found[1][:1] in b"Cc":
                self._there.add(name)
            return name in self._names
        return (mine := _name_of_trigger(statement, at)) is not None and self._triggers(mine, statement, at)

    def _triggers(self, mine: bytes, statement: bytearray, at: int) -> bool:
        """Whether that trigger is of a table that is wanted."""
        if (table := _table_of_trigger(statement, at)) is not None:
            return table in self._names
        if any(spelled in statement for name in self._names for spelled in _spelled(name)):
            raise Unclear(f"To which table the trigger {mine.decode(errors='replace')[:64]} belongs can't be told")
        return False


def _tokens(statement: bytearray, at: int) -> Iterator[bytes]:
    while (found := _TOKEN.match(statement, space_end(statement, at))) is not None:
        at = found.end()
        if found[0][:2] not in {b"/*", b"*/"}:
            yield found[0]


def _name_of_trigger(statement: bytearray, at: int) -> bytes | None:
    """None: it makes none. They come as somebody wrote them: with comments, and quoted names need no spaces."""
    if statement[at : at + 6].upper() != b"CREATE":
        return None
    tokens = _tokens(statement, at)
    if next((word for token in tokens if (word := token.upper()) in _KINDS), b"") != b"TRIGGER":
        return None
    name = next(tokens, b"")
    if name.upper() == b"IF" and next(tokens, b"").upper() == b"NOT":  # EXISTS
        next(tokens, b"")
        name = next(tokens, b"")
    return _plain(name)


def _table_of_trigger(statement: bytearray, at: int) -> bytes | None:
    """What stands between ON and FOR EACH ROW, which its body never holds. None: there is not just one such name. Comments
    that only other versions run are read here as well."""
    last: deque[bytes] = deque(maxlen=7)
    found = set()
    for token in _tokens(statement, at):
        last.append(token)
        if token.upper() != b"ROW":
            continue
        *before, name, first, second, _ = [b""] * (7 - len(last)) + list(last)
        if (first.upper(), second.upper()) != (b"FOR", b"EACH"):
            continue
        begin = before[0] if before[2] == b"." else before[2]
        if begin.upper() == b"ON":
            found.add(_plain(name))
    return found.pop() if len(found) == 1 else None


def _spelled(name: bytes) -> set[bytes]:
    return {name, name.replace(b"`", b"``"), name.replace(b'"', b'""')}


def _plain(name: bytes) -> bytes:
    """As it is spelled in a statement that somebody wrote."""
    quote = name[:1]
    return name[1:-1].replace(quote * 2, quote) if quote in {b"`", b'"'} else name
