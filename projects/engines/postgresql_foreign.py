"""Dumps of PostgreSQL that others took: told apart, and turned into a script. No pg_restore ever sees one.

A custom archive's table of contents is SQL, and its data is that of COPY: both are read here (`pg_backup_archiver.c`,
`pg_backup_custom.c`, archive versions 1.12 to 1.16) and handed on as the plain dump that they would be.
"""

from __future__ import annotations

import re
import secrets
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

import zstandard

from projects.domain import Command, Credentials, Endpoint, EngineError
from projects.engines import framing, postgresql_copy
from projects.engines.foreign import ForeignRefused, Left, Pull, plain_text
from projects.engines.postgresql_archive import Entry, Head
from projects.engines.postgresql_script import script

FORMATS = ("custom", "plain")
_TOLD = re.compile(rb"^-- Dumped from database version (\d+)(\.\d+)?", re.MULTILINE)
_OTHER = re.compile(
    rb"^(?:-- (?:MySQL|MariaDB) dump|/\*M?!\d{5,6}|-- phpMyAdmin|SET @OLD_|.*\bENGINE=(?:InnoDB|MyISAM))", re.MULTILINE
)
_SAID = re.compile(r"psql:<stdin>:(\d+): (?:ERROR|FATAL|error): *(.*)", re.DOTALL)
_CUSTOM, _TAR, _DIRECTORY = 1, 3, 5
_DATA, _BLOBS = 1, 3
_NONE, _GZIP, _LZ4, _ZSTD = range(4)
_PREFACE_BYTES = 64 << 10
_TOC_BYTES = 64 << 20
_TOC_ENTRIES = 200_000
_OUT_BYTES = 1 << 20
_BLOB_BYTES = 16 << 10
# What others own or may, and what needs a superuser: named when it is left out.
_LEFT_OUT = {
    "ACL": "rights of other roles (GRANT, REVOKE)", "ACL LANGUAGE": "rights of other roles (GRANT, REVOKE)",
    "DEFAULT ACL": "rights of other roles (GRANT, REVOKE)", "EVENT TRIGGER": "event trigger (needs a superuser)",
    "SUBSCRIPTION": "subscription (needs a superuser)", "SUBSCRIPTION TABLE": "subscription (needs a superuser)",
    "SECURITY LABEL": "security label",
}  # fmt: skip
_FIRST = {"ENCODING", "STDSTRINGS", "SEARCHPATH"}
_SILENT = {"DATABASE", "DATABASE PROPERTIES", *_FIRST}
_PREAMBLE = b"""SET statement_timeout = 0;
SET lock_timeout = 0;
SET idle_in_transaction_session_timeout = 0;
SET check_function_bodies = false;
SET xmloption = content;
SET row_security = off;
"""


def recognise(head: bytes, version: str) -> str:
    """`custom` or `plain`, for a server of that version. Raises `ForeignRefused`."""
    if head.startswith(b"PGDMP"):
        kind = head[10] if len(head) > 10 else 0
        if kind in {_DIRECTORY, _TAR}:
            raise ForeignRefused(
                "upload_directory_format",
                "It is the table of contents of a dump in directory format: take it with --format=custom, as one file.",
            )
        if kind != _CUSTOM:
            raise ForeignRefused("upload_damaged", "It begins as an archive of pg_dump, and is none.")
        if (made := _server_of(head)) is not None:
            _check_version(made, version)
        return "custom"
    if head[257:262] == b"ustar":
        raise ForeignRefused("upload_tar_format", "It is a tar archive: take the dump with --format=custom or as SQL.")
    text = plain_text(head)
    if b"-- PostgreSQL database cluster dump" in text:
        raise ForeignRefused(
            "upload_cluster_dump",
            "It is the dump of a whole server (pg_dumpall): take one of one database, with pg_dump.",
        )
    if _OTHER.search(text):
        raise ForeignRefused("upload_wrong_engine", "It is a dump of MySQL or MariaDB; this database is PostgreSQL.")
    if (told := _TOLD.search(text)) is not None:
        _check_version(told[1].decode(), version)
    return "plain"


def _check_version(made: str, version: str) -> None:
    theirs, mine = made.split(".")[0], version.split(".")[0]
    if theirs.isdigit() and mine.isdigit() and int(theirs) > int(mine):
        raise ForeignRefused(
            "upload_newer_version",
            f"It was taken from PostgreSQL {theirs}, this database is {mine}: an older server can't be sure to understand it.",
        )


def _server_of(head: bytes) -> str | None:
    """The source's version out of an archive's first bytes; None: not all of it is there."""
    try:
        found = _Reader(Pull([head]))
        found.begin()
    except EngineError as error:
        if isinstance(error, ForeignRefused):
            if error.code != "upload_truncated":
                raise
            return None
        raise ForeignRefused("upload_newer_version", f"{error}: a newer pg_dump took it, or a very old one.") from None
    return found.server


def script_of(pieces: Iterable[bytes], kind: str, left: Left) -> Iterator[bytes]:
    """What psql is to run. Raises `ForeignRefused`, also in the middle."""
    return script(_Reader(Pull(pieces), left).script() if kind == "custom" else pieces, left)


def run_script(place: Endpoint, credentials: Credentials) -> tuple[Command, bytes]:
    """psql as the tool's login. Its first line takes all commands of its own away from it, until a word comes back that
    nobody knows; a psql that is too old to know that one ends there."""
    argv = framing.unframed(
        "psql", "--no-psqlrc", "--no-password", "--quiet", "--set=ON_ERROR_STOP=1", "--output=/dev/null", "--file=-",
    )  # fmt: skip
    # What people write by hand names no schema.
    first = b'\\restrict %b\nSET search_path = "$user", public;\n' % secrets.token_hex(24).encode()
    return postgresql_copy.command(place, credentials, *argv), first


def place_in_script(said: str, kind: str, before: int) -> str:
    if "invalid command \\restrict" in said:
        return "The psql of this database's image is too old to be trusted with uploads: update the image."
    found = _SAID.match(said)
    if found is None:
        return said
    return f"Line {int(found[1]) - before}: {found[2]}" if kind == "plain" else found[2]


class _Reader:
    """An archive as the script that it stands for."""

    def __init__(self, pull: Pull, left: Left | None = None) -> None:
        self._pull, self._left = pull, left or Left()
        self._head = Head()
        self._compression = _GZIP
        self.server: str | None = None

    def begin(self) -> None:
        """As far as the source's version."""
        self._compression, self.server = self._read(self._head.preface(), _PREFACE_BYTES)

    def _read(self, steps: Generator[int, bytes, Any], most: int) -> Any:
        """What comes of a part of the head. How long its texts are the file says: no more than `most` is read in all."""
        wanted, taken = next(steps), 0
        try:
            while True:
                taken += wanted
                if wanted < 0 or taken > most:
                    raise ForeignRefused("upload_damaged", "The archive's table of contents is damaged, or too large.")
                wanted = steps.send(self._pull.take(wanted))
        except StopIteration as done:
            return done.value

    def script(self) -> Iterator[bytes]:
        self._left.where = "The archive's table of contents"
        entries = self._contents()
        yield _PREAMBLE
        for entry in entries:
            if entry.kind in _FIRST:
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
            found: list[Entry] = self._read(self._head.table(most=_TOC_ENTRIES), _TOC_BYTES)
        except EngineError as error:
            if isinstance(error, ForeignRefused):
                raise
            raise ForeignRefused("upload_damaged", f"{error}.") from None
        return found

    def _defined(self, entry: Entry) -> Iterator[bytes]:
        if entry.kind in _SILENT or entry.has_data:
            return
        if entry.kind in _LEFT_OUT:
            self._left.counted[_LEFT_OUT[entry.kind]] += 1
            return
        if entry.kind == "COMMENT" and entry.name.startswith(("EXTENSION ", "DATABASE ")):
            return
        if entry.kind == "BLOB METADATA":
            for oid in entry.definition.split():
                yield b"SELECT pg_catalog.lo_create('%d');\n" % int(oid)
            return
        if entry.kind == "SCHEMA" and entry.name == "public":
            return
        self._left.where = f"{entry.kind} {entry.schema + '.' if entry.schema else ''}{entry.name}"
        yield entry.definition.encode(errors="surrogateescape") + b"\n"

    # --- data ---------------------------------------------------------------------------------------------------------------
    def _all_data(self, wanted: dict[int, Entry]) -> Iterator[bytes]:
        """Blocks come in their own order. Each that was announced has to come, and nothing else."""
        while True:
            self._left.where = "The archive's data"
            kind = self._pull.one()
            if not kind:
                break
            entry = wanted.pop(self._number(), None)
            if entry is None or kind[0] not in {_DATA, _BLOBS}:
                raise ForeignRefused("upload_damaged", "A part of the archive is not what its table of contents says.")
            self._left.where = f"{entry.kind} {entry.schema + '.' if entry.schema else ''}{entry.name}"
            if kind[0] == _BLOBS:
                yield from self._blobs()
            elif entry.copy:
                yield entry.copy.encode(errors="surrogateescape")
                yield from self._unpacked()  # with its last line, `\\.`
            else:
                yield from self._unpacked()
                yield b"\n"
        missing = [entry for entry in wanted.values() if entry.kind in {"TABLE DATA", "BLOBS"}]
        if missing:
            raise ForeignRefused(
                "upload_truncated", f"The archive ends before the data of {missing[0].schema}.{missing[0].name}."
            )

    def _blobs(self) -> Iterator[bytes]:
        yield b"BEGIN;\n"
        while oid := self._number():
            yield b"SELECT pg_catalog.lo_open('%d', 131072);\n" % oid
            for piece in self._unpacked():
                for at in range(0, len(piece), _BLOB_BYTES):
                    yield b"SELECT pg_catalog.lowrite(0, '\\x%b');\n" % piece[at : at + _BLOB_BYTES].hex().encode()
            yield b"SELECT pg_catalog.lo_close(0);\n"
        yield b"COMMIT;\n"

    def _unpacked(self) -> Iterator[bytes]:
        """One stream of chunks, unpacked in bounded pieces."""
        unpack, end = _UNPACKERS[self._compression]()
        try:
            while size := self._number():
                if size < 0:
                    raise ForeignRefused("upload_damaged", "A part of the archive has no valid length.")
                for piece in self._pull.pieces(size):
                    yield from unpack(piece)
            yield from end()
        except (zlib.error, zstandard.ZstdError):
            raise ForeignRefused("upload_damaged", "A part of the archive can't be unpacked.") from None

    def _number(self) -> int:
        data = self._pull.take(1 + self._head.int_bytes)
        value = int.from_bytes(data[1:], "little")
        return -value if data[0] else value


Unpack = Callable[[bytes], Iterator[bytes]]
End = Callable[[], Iterator[bytes]]


def _as_is() -> tuple[Unpack, End]:
    return (lambda piece: iter([piece])), (lambda: iter(()))


def _gzip() -> tuple[Unpack, End]:
    packed = zlib.decompressobj()
    any_came = False

    def unpack(piece: bytes) -> Iterator[bytes]:
        nonlocal any_came
        any_came = True
        while piece:
            if found := packed.decompress(piece, _OUT_BYTES):
                yield found
            piece = packed.unconsumed_tail

    def end() -> Iterator[bytes]:
        if found := packed.flush():
            yield found
        if any_came and not packed.eof:
            raise ForeignRefused("upload_damaged", "A part of the archive is not whole.")

    return unpack, end


def _zstd() -> tuple[Unpack, End]:
    packed = zstandard.ZstdDecompressor(max_window_size=1 << 27).decompressobj()

    def unpack(piece: bytes) -> Iterator[bytes]:
        for at in range(0, len(piece), 512):  # a few bytes may stand for megabytes
            if found := packed.decompress(piece[at : at + 512]):
                yield found

    return unpack, lambda: iter(())


def _lz4() -> tuple[Unpack, End]:
    raise ForeignRefused(
        "upload_compression", "The archive is compressed with lz4: take it with --compress=gzip or zstd."
    )


_UNPACKERS: dict[int, Callable[[], tuple[Unpack, End]]] = {_NONE: _as_is, _GZIP: _gzip, _LZ4: _lz4, _ZSTD: _zstd}
