"""The head of pg_dump's custom archive: its table of contents, read from the stream as it passes.

Sequences are outside of every snapshot, so their values are known only from what the dump tool itself read and wrote.
The format is that of `pg_backup_archiver.c` (`ReadHead`, `ReadToc`) for archive versions 1.12 to 1.16: PostgreSQL 9.0 to
18; the table of contents comes first where the output can't be rewound. zstd in front of it is taken off.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from dataclasses import dataclass

import zstandard

from projects.domain import EngineError
from projects.engines import zipping

_MAGIC = b"PGDMP"
_OLDEST, _NEWEST = (1, 12), (1, 16)
CUSTOM, TAR, DIRECTORY = 1, 3, 5  # a folder's table of contents says that it is of a tar archive
MOST_BYTES = 256 << 20  # of a table of contents: some 500,000 objects
_ZSTD_IN_BYTES = 512  # a block of four bytes may stand for 128 KiB
NUMBER = re.compile(r"[0-9]{1,10}")  # of an entry, or an OID
_SETVAL = re.compile(r"setval\('.*', (-?\d{1,20}), (true|false)\);\s*\Z", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Entry:
    """One object of the archive. `definition` is SQL."""

    schema: str
    name: str
    kind: str  # TABLE, TABLE DATA, SEQUENCE SET …
    definition: str
    id: int = 0
    has_data: bool = False
    section: int = 1  # 2: before data, 3: data, 4: after it, 1: none of its own
    copy: str = ""  # the statement that its data is for
    needs: tuple[int, ...] = ()  # ids of what it depends on


class Head:
    """Fed with pieces of an archive in order; `entries` is there once the table of contents has passed.

    `wanted(kind)` says of which kinds entries are kept. Raises `EngineError` when it is no such archive."""

    def __init__(self, wanted: Callable[[str], bool] = lambda _: True, *, format: int = CUSTOM) -> None:
        self._format = format
        self.entries: list[Entry] | None = None
        self.made_by = ""  # the version of pg_dump
        self.int_bytes = self._offset = 4
        self._version = _NEWEST
        self._wanted = wanted
        self._held = bytearray()
        self._unzipped: zstandard.ZstdDecompressionObj | None = None
        self._looked = False
        self._begin = b""
        self._reader = self._read()
        self._missing = next(self._reader)

    def feed(self, piece: bytes) -> None:
        if self.entries is not None:
            return
        if not self._looked:
            self._begin += piece
            if len(self._begin) < len(zipping.MAGIC):
                return
            self._looked, piece, self._begin = True, self._begin, b""
            if piece.startswith(zipping.MAGIC):
                self._unzipped = zstandard.ZstdDecompressor().decompressobj()
        if self._unzipped is None:
            self._take(piece)
            return
        for at in range(0, len(piece), _ZSTD_IN_BYTES):
            try:
                found = self._unzipped.decompress(piece[at : at + _ZSTD_IN_BYTES])
            except zstandard.ZstdError as error:
                raise EngineError("the dump is not well compressed") from error
            self._take(found)
            if self.entries is not None:
                return

    def _take(self, piece: bytes) -> None:
        self._held += piece
        if len(self._held) > MOST_BYTES:
            raise EngineError("the dump's table of contents is too large")
        self._advance()

    def _advance(self) -> None:
        at = 0
        try:
            while len(self._held) - at >= self._missing:
                taken = bytes(self._held[at : at + self._missing])
                at += self._missing
                self._missing = self._reader.send(taken)
        except StopIteration:
            self._held = bytearray()
            return
        del self._held[:at]

    # --- the format: each `yield n` asks for n bytes ----------------------------------------------------------------------
    def _read(self) -> Generator[int, bytes, None]:
        yield from self.preface()
        self.entries = yield from self.table()

    def preface(self) -> Generator[int, bytes, tuple[int, str]]:
        """How its data is compressed (0 not, 1 gzip, 2 lz4, 3 zstd), and the version of the server that it was taken from."""
        if (yield 5) != _MAGIC:
            raise EngineError("the dump is not an archive of pg_dump")
        major, minor, _, int_bytes, offset_bytes, kind = yield 6
        version = (major, minor)
        if kind != self._format or not _OLDEST <= version <= _NEWEST or int_bytes not in {4, 8}:
            raise EngineError(f"the dump is an archive of a kind that is not known ({major}.{minor})")
        self.int_bytes, self._offset, self._version = int_bytes, offset_bytes, version
        compression = (yield 1)[0] if version >= (1, 15) else int(bool((yield from self._number())))
        for _ in range(7):  # when it was made
            yield from self._number()
        yield from self._text()  # database
        server = (yield from self._text()) or ""
        self.made_by = (yield from self._text()) or ""
        return compression, server

    def table(self, *, most: int | None = None) -> Generator[int, bytes, list[Entry]]:
        """The table of contents, after the preface. `most`: so many entries are taken."""
        entries: list[Entry] = []
        count = yield from self._number()
        if most is not None and count > most:
            raise EngineError(f"the archive's table of contents has {count} entries, {most} are taken")
        for _ in range(count):
            entry = yield from self._entry(self._version, self._offset)
            if self._wanted(entry.kind):
                entries.append(entry)
        return entries

    def _entry(self, version: tuple[int, int], offset_bytes: int) -> Generator[int, bytes, Entry]:
        number = yield from self._number()
        has_data = yield from self._number()
        yield from self._text()  # catalog
        yield from self._text()  # object
        name = yield from self._text()
        kind = yield from self._text()
        section = yield from self._number()
        definition = yield from self._text()
        yield from self._text()  # DROP
        copy = yield from self._text()
        schema = yield from self._text()
        yield from self._text()  # tablespace
        if version >= (1, 14):
            yield from self._text()  # access method
        if version >= (1, 16):
            yield from self._number()  # kind of relation
        yield from self._text()  # owner
        yield from self._text()  # with oids
        needs: list[int] = []
        while (needed := (yield from self._text())) is not None:
            if not NUMBER.fullmatch(needed):
                raise EngineError("the dump's table of contents is damaged")
            needs.append(int(needed))
        if self._format == CUSTOM:
            yield 1 + offset_bytes  # where its data is
        else:
            yield from self._text()  # in which file
        return Entry(
            schema or "", name or "", kind or "", definition or "", number, has_data > 0, section, copy or "", tuple(needs)
        )  # fmt: skip

    def _number(self) -> Generator[int, bytes, int]:
        data = yield 1 + self.int_bytes
        value = int.from_bytes(data[1:], "little")
        return -value if data[0] else value

    def _text(self) -> Generator[int, bytes, str | None]:
        size = yield from self._number()
        if size < 0:
            return None
        if not size:
            return ""
        return (yield size).decode(errors="surrogateescape")


def sequence_values(entries: list[Entry]) -> dict[tuple[str, str], tuple[int, bool]]:
    """(schema, name) → last value, and whether it was handed out."""
    found = {}
    for entry in entries:
        if entry.kind != "SEQUENCE SET":
            continue
        match = _SETVAL.search(entry.definition)
        if match is None:
            raise EngineError("the dump says the value of a sequence in a way that is not known")
        found[entry.schema, entry.name] = (int(match[1]), match[2] == "true")
    return found
