"""pg_dump's archive as the script that it stands for, read as it passes: its table of contents is SQL, and its data is that of
COPY (`pg_backup_archiver.c`, `pg_backup_custom.c`, archive versions 1.12 to 1.16)."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator
from typing import Any, ClassVar

from projects.domain import EngineError
from projects.engines.foreign import ForeignRefused, Left, Pull, split
from projects.engines.postgresql_archive import CUSTOM, NUMBER, Entry, Head
from projects.engines.postgresql_unpackers import GZIP, check, unpacked
from projects.engines.sql_parts import TooLarge

_DATA, _BLOBS = 1, 3
_PREFACE_BYTES = 64 << 10
_TOC_BYTES = 64 << 20
_TOC_ENTRIES = 200_000
_BLOB_BYTES = 16 << 10
# What others own or may, and what needs a superuser: named when it is left out.
LEFT_OUT = {
    "ACL": "rights of other roles (GRANT, REVOKE)", "ACL LANGUAGE": "rights of other roles (GRANT, REVOKE)",
    "DEFAULT ACL": "rights of other roles (GRANT, REVOKE)", "EVENT TRIGGER": "event trigger (needs a superuser)",
    "SUBSCRIPTION": "subscription (needs a superuser)", "SUBSCRIPTION TABLE": "subscription (needs a superuser)",
    "SECURITY LABEL": "security label",
}  # fmt: skip
FIRST = {"ENCODING", "STDSTRINGS", "SEARCHPATH"}
SILENT = {"DATABASE", "DATABASE PROPERTIES", *FIRST}
PREAMBLE = b"""SET statement_timeout = 0;
SET lock_timeout = 0;
SET idle_in_transaction_session_timeout = 0;
SET check_function_bodies = false;
SET xmloption = content;
SET row_security = off;
"""


class Reader:
    """An archive in custom format. Raises `ForeignRefused`, and `EngineError` for a head that is not known."""

    FORMAT: ClassVar[int] = CUSTOM
    # Of the table of contents; None: as many as fit in.
    MOST_BYTES: ClassVar[int] = _TOC_BYTES
    MOST_ENTRIES: ClassVar[int | None] = _TOC_ENTRIES

    def __init__(self, pull: Pull, left: Left | None = None) -> None:
        self._pull, self._left = pull, left or Left()
        self._head = Head(format=self.FORMAT)
        self._compression = GZIP
        self.server: str | None = None

    def begin(self) -> None:
        """As far as the source's version."""
        self._compression, self.server = self._read(self._head.preface(), _PREFACE_BYTES)
        check(self._compression)

    def _read(self, steps: Generator[int, bytes, Any], most: int) -> Any:
        """What comes of a part of the head. How long its texts are the file says: no more than `most` is read in all."""
        wanted, taken = next(steps), 0
        try:
            while True:
                taken += wanted
                if wanted < 0 or taken > most:
                    raise self._not_taken(too_large=wanted >= 0)
                wanted = steps.send(self._pull.take(wanted))
        except StopIteration as done:
            return done.value

    def _not_taken(self, *, too_large: bool) -> EngineError:
        return ForeignRefused("upload_damaged", "The archive's table of contents is damaged, or too large.")

    def script(self) -> Iterator[bytes]:
        self._left.where = "The archive's table of contents"
        entries = self._contents()
        yield PREAMBLE
        for entry in entries:
            if entry.kind in FIRST:
                yield entry.definition.encode(errors="surrogateescape") + b"\n"
        sections: dict[int, list[Entry]] = {2: [], 3: [], 4: []}
        section = 2
        for entry in entries:  # comments and the like stand where what they are about stands
            section = entry.section if entry.section in sections else section
            # Large objects have to be there before their data, though they count as data since 17.
            sections[2 if entry.kind in {"BLOB", "BLOB METADATA"} else section].append(entry)
        for entry in sections[2]:
            yield from self._defined(entry)
        yield from self._all_data({entry.id: entry for entry in entries if entry.has_data})
        for entry in (*sections[3], *sections[4]):
            yield from self._defined(entry)

    def _contents(self) -> list[Entry]:
        try:
            self.begin()
        except TooLarge:
            raise
        except EngineError as error:
            raise _damaged(error) from None
        self._entries = self._table()
        return self._entries

    def _table(self) -> list[Entry]:
        try:
            found: list[Entry] = self._read(self._head.table(most=self.MOST_ENTRIES), self.MOST_BYTES)
        except TooLarge:
            raise
        except EngineError as error:
            raise _damaged(error) from None
        return found

    def _defined(self, entry: Entry) -> Iterator[bytes]:
        if entry.kind in SILENT or entry.has_data:
            return
        if entry.kind in LEFT_OUT:
            self._left.counted[LEFT_OUT[entry.kind]] += 1
            return
        if entry.kind == "COMMENT" and entry.name.startswith(("EXTENSION ", "DATABASE ")):
            return
        if entry.kind == "BLOB METADATA":
            for oid in entry.definition.split():
                if not NUMBER.fullmatch(oid):
                    raise ForeignRefused("upload_damaged", "A large object of the archive has no valid number.")
                yield b"SELECT pg_catalog.lo_create('%d');\n" % int(oid)
            return
        if entry.kind == "SCHEMA" and entry.name == "public":
            return
        self._left.where = named(entry)
        yield entry.definition.encode(errors="surrogateescape") + b"\n"

    # --- data ---------------------------------------------------------------------------------------------------------------
    def _all_data(self, wanted: dict[int, Entry]) -> Iterator[bytes]:
        """Blocks come in their own order. Each that was announced has to come, and nothing else."""
        while True:
            self._left.where = "The archive's data"
            kind = self._pull.one()
            if not kind:
                break
            if kind == b"\0" and not wanted:
                self._again(kind)
                break
            entry = self._block(kind, wanted)
            self._left.where = named(entry)
            yield from self._blobs() if kind[0] == _BLOBS else self._rows(entry, self._unpacked())
        self._ended(wanted)

    def _again(self, begun: bytes) -> None:
        """The table of contents once more, which pg_dump since 16 appends with `> FILE`: it goes back to write it over the
        first one, into a file that it made append only."""
        self._pull = Pull(itertools.chain([begun], filter(None, self._pull.rest())))
        if self._table() != self._entries or self._pull.one():
            raise ForeignRefused("upload_damaged", "Something follows the end of the archive.")

    def _block(self, kind: bytes, wanted: dict[int, Entry]) -> Entry:
        """What a block that begins is of."""
        entry = wanted.pop(self._number(), None)
        if entry is None or kind[0] not in {_DATA, _BLOBS}:
            raise ForeignRefused("upload_damaged", "A part of the archive is not what its table of contents says.")
        return entry

    def _rows(self, entry: Entry, pieces: Iterator[bytes]) -> Iterator[bytes]:
        if entry.copy:
            yield entry.copy.encode(errors="surrogateescape")
            yield from pieces  # with its last line, `\\.`
        else:
            yield from pieces
            yield b"\n"

    def _ended(self, wanted: dict[int, Entry]) -> None:
        """No more data comes."""
        missing = [entry for entry in wanted.values() if entry.kind in {"TABLE DATA", "BLOBS"}]
        if missing:
            raise ForeignRefused(
                "upload_truncated", f"The archive ends before the data of {missing[0].schema}.{missing[0].name}."
            )

    def _blobs(self) -> Iterator[bytes]:
        yield b"BEGIN;\n"
        while oid := self._number():
            yield from self._blob(oid, self._unpacked())
        yield b"COMMIT;\n"

    def _blob(self, oid: int, pieces: Iterator[bytes]) -> Iterator[bytes]:
        yield b"SELECT pg_catalog.lo_open('%d', 131072);\n" % oid
        for piece in split(pieces, _BLOB_BYTES):
            yield b"SELECT pg_catalog.lowrite(0, '\\x%b');\n" % piece.hex().encode()
        yield b"SELECT pg_catalog.lo_close(0);\n"

    def _unpacked(self) -> Iterator[bytes]:
        """One stream of chunks, unpacked in bounded pieces."""
        return unpacked(self._compression, self._chunks())

    def _chunks(self) -> Iterator[bytes]:
        while size := self._number():
            if size < 0:
                raise ForeignRefused("upload_damaged", "A part of the archive has no valid length.")
            yield from self._pull.pieces(size)

    def _number(self) -> int:
        data = self._pull.take(1 + self._head.int_bytes)
        value = int.from_bytes(data[1:], "little")
        return -value if data[0] else value


def _damaged(error: EngineError) -> ForeignRefused:
    return error if isinstance(error, ForeignRefused) else ForeignRefused("upload_damaged", f"{error}.")


def named(entry: Entry) -> str:
    return f"{entry.kind} {entry.schema + '.' if entry.schema else ''}{entry.name}"
