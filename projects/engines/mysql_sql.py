"""Some tables out of a dump of ours, as SQL for the product's client: with their rows and triggers. Nothing runs: the dump is
read statement by statement as it passes (`mysql_script`)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from projects.engines.foreign import Left
from projects.engines.mysql_script import HEAD_BYTES, ID, OPEN, Script, space_end
from projects.engines.scripts import past
from projects.engines.sql_parts import Gone, remarks, waiting

_OF_TABLE = re.compile(
    rb"(CREATE\s+TABLE|INSERT\s+(?:IGNORE\s+)?INTO|REPLACE\s+INTO|UPDATE|ALTER\s+TABLE)\s+(?:IF\s+NOT\s+EXISTS\s+)?`((?:[^`]|``)*)`",
    re.I,
)
_SETTING = re.compile(rb"SET\b", re.I)
# A default may be the next of a sequence: they stand before the tables, so all of them come.
_SEQUENCE = re.compile(rb"(CREATE\s+SEQUENCE\s+)|(?:DO|SELECT)\s+SETVAL\b", re.I)
_NAME = rb"(?:`(?:[^`]|``)*`|\"(?:[^\"]|\"\")*\"|[\w$\x80-\xff]+)"
_TRIGGER = re.compile(
    rb"CREATE\b(?:\s|\*/|/\*M?!\d*|\bOR\s+REPLACE\b|\bDEFINER\s*=\s*" + ID + rb"(?:\s*@\s*" + ID + rb")?)*"
    rb"\bTRIGGER\s+(?:IF\s+NOT\s+EXISTS\s+)?(?:" + _NAME + rb"\s*\.\s*)?" + _NAME + rb"\s+(?:BEFORE|AFTER)\s+"
    rb"(?:INSERT|UPDATE|DELETE)\s+ON\s+(" + _NAME + rb")(?:\s*\.\s*(" + _NAME + rb"))?",
    re.I,
)
_LEFT = ("Foreign keys may be to tables that were not chosen. Views, routines and events are left out.",)


def script(pieces: Iterable[bytes], tables: Iterable[str], about: str, client: str) -> Iterator[bytes]:
    """`about`: what it is of, for a comment. Raises `Gone`, at the end, for what the dump did not hold, and `EngineError`
    when it is none; all of it is read, to its end."""
    yield remarks(about, _LEFT, f"{client} --binary-mode DATABASE < FILE")
    reader = _Some(pieces, tables)
    yield from reader.run()
    if missing := reader.missing:
        raise Gone(f"The backup does not have {', '.join(missing[:5])}.")
    yield b"\n-- End.\n"


class _Some(Script):
    def __init__(self, pieces: Iterable[bytes], tables: Iterable[str]) -> None:
        super().__init__(pieces, Left())
        self._names = {name.encode(): name for name in tables}
        self._there: set[bytes] = set()
        self._skipped = 0

    @property
    def missing(self) -> list[str]:
        return sorted(shown for name, shown in self._names.items() if name not in self._there)

    def _taken(self, statement: bytes) -> Iterator[bytes]:
        at = past(OPEN, statement, space_end(statement))
        head = statement[at : at + HEAD_BYTES]
        if (sequence := _SEQUENCE.match(head)) is not None and sequence[1]:
            at += sequence.end(1)
            yield statement[:at] + b"IF NOT EXISTS " + statement[at:]
        elif sequence is not None or self._wanted(head):
            yield statement
        else:
            self._skipped, line = waiting(self._skipped, len(statement))
            yield line

    def _wanted(self, head: bytes) -> bool:
        if _SETTING.match(head):
            return True
        if (found := _OF_TABLE.match(head)) is not None:
            name = found[2].replace(b"``", b"`")
            if found[1][:1] in b"Cc":
                self._there.add(name)
            return name in self._names
        if (trigger := _TRIGGER.match(head)) is not None:
            return _plain(trigger[2] or trigger[1]) in self._names
        return False


def _plain(name: bytes) -> bytes:
    """As it is spelled in a statement that somebody wrote."""
    quote = name[:1]
    return name[1:-1].replace(quote * 2, quote) if quote in {b"`", b'"'} else name
