"""pg_dump's tar format (`pg_backup_tar.c`) as the script that it stands for: a member with the table of contents, one for each
table's data and each large object, never compressed. A folder of the directory format that somebody packed is none."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from typing import ClassVar

from projects.engines.foreign import ForeignRefused, Left, Pull
from projects.engines.postgresql_archive import TAR, Entry
from projects.engines.postgresql_reader import Reader, named
from projects.engines.postgresql_unpackers import NONE

BLOCK = 512
_CONTENTS = b"toc.dat"
_DATA = re.compile(rb"(\d{1,9})\.dat")
_BLOB = re.compile(rb"blob_(\d{1,10})\.dat")
_BLOBS = re.compile(rb"blobs(?:_\d{1,9})?\.toc")  # a line for each large object whose member was written
_BLOB_LINE = re.compile(rb"(\d{1,10}) blob_\1\.dat")
_PASSED_OVER = b"restore.sql"
_PACKED = re.compile(
    rb"(?:.*/)?(?:\d+\.dat|blob_\d+\.dat|toc\.dat|blobs(?:_\d+)?\.toc)(?:\.gz|\.lz4|\.zst)?", re.DOTALL
)
_FOLDER = (
    "It is a packed folder of the directory format: take the dump with --format=custom, or make SQL of the folder with "
    "“pg_restore --file=dump.sql FOLDER”, and send that."
)


def is_tar(head: bytes) -> bool:
    return head[257:262] == b"ustar"


def contents_of(head: bytes) -> bytes:
    """Of a tar archive's head what its table of contents begins with. Raises `ForeignRefused` when pg_dump wrote no such."""
    name, kind = _name(head), head[156:157]
    if name == _CONTENTS and kind in _PLAIN:
        return head[BLOCK:]
    if kind == b"5" or _PACKED.fullmatch(name):
        raise ForeignRefused("upload_directory_format", _FOLDER)
    raise ForeignRefused(
        "upload_tar_format", "It is a tar archive, and none that pg_dump --format=tar wrote: send the dump itself."
    )


_PLAIN = {b"0", b"\0"}


def _name(header: bytes) -> bytes:
    return header[:100].split(b"\0", 1)[0]


class TarReader(Reader):
    FORMAT: ClassVar[int] = TAR

    def __init__(self, pieces: Iterable[bytes], left: Left | None = None) -> None:
        self._file = Pull(pieces)
        super().__init__(Pull(self._contents_member()), left)

    def begin(self) -> None:
        super().begin()
        if self._compression != NONE:
            raise ForeignRefused("upload_directory_format", _FOLDER)  # pg_dump compresses nothing in a tar archive

    def _contents_member(self) -> Iterator[bytes]:
        name, size = self._next() or (b"", 0)
        if name != _CONTENTS:
            raise ForeignRefused("upload_damaged", "The archive does not begin with its table of contents.")
        yield from self._member(size)

    def _all_data(self, wanted: dict[int, Entry]) -> Iterator[bytes]:
        for _ in iter(self._pull.one, b""):
            raise ForeignRefused("upload_damaged", "The archive's table of contents is longer than it says.")
        blobs = _Blobs(sum(entry.kind == "BLOBS" for entry in wanted.values()))
        while True:
            self._left.where = "The archive's data"
            found = self._next()
            if found is None:
                break
            name, size = found
            if (data := _DATA.fullmatch(name)) and (entry := wanted.pop(int(data[1]), None)) and entry.kind != "BLOBS":
                self._left.where = named(entry)
                yield from self._rows(entry, self._member(size))
            elif blobs.announced and (blob := _BLOB.fullmatch(name)):
                blobs.came(int(blob[1]))
                yield b"BEGIN;\n"
                yield from self._blob(int(blob[1]), self._member(size))
                yield b"COMMIT;\n"
            elif blobs.announced and _BLOBS.fullmatch(name):
                blobs.told(self._member(size))
            elif name == _PASSED_OVER:
                for _ in self._member(size):
                    pass
            elif _PACKED.fullmatch(name) and not data and not _BLOB.fullmatch(name):
                raise ForeignRefused("upload_directory_format", _FOLDER)
            else:
                raise ForeignRefused("upload_damaged", "A part of the archive is not what its table of contents says.")
        self._ended({number: entry for number, entry in wanted.items() if entry.kind != "BLOBS"})
        blobs.ended()

    # --- tar ----------------------------------------------------------------------------------------------------------------
    def _next(self) -> tuple[bytes, int] | None:
        """The next member's name and size; None: all came, and nothing but zeros is left."""
        header = self._file.take(BLOCK)
        if not any(header):
            if any(piece.strip(b"\0") for piece in self._file.rest()):
                raise ForeignRefused("upload_damaged", "Something follows the end of the archive.")
            return None
        told = _number(header[148:156])
        if told != sum(header) - sum(header[148:156]) + 8 * 0x20:
            raise ForeignRefused("upload_damaged", "A header of the archive is damaged.")
        if header[156:157] not in _PLAIN or header[345:346] != b"\0":
            raise ForeignRefused("upload_damaged", "A part of the archive is none that pg_dump writes.")
        return _name(header), _number(header[124:136])

    def _member(self, size: int) -> Iterator[bytes]:
        yield from self._file.pieces(size)
        self._file.take(-size % BLOCK)


class _Blobs:
    """Whether the large objects that came are those whose numbers the archive tells, in memory that does not grow with them:
    of both there are counts, and sums of hashes. `announced`: so many lists of them come."""

    def __init__(self, announced: int) -> None:
        self.announced = announced
        self._lists = self._missing = self._balance = 0

    def came(self, oid: int) -> None:
        self._missing -= 1
        self._balance -= _mixed(oid)

    def told(self, pieces: Iterable[bytes]) -> None:
        self._lists += 1
        rest = b""
        for piece in pieces:
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                if (found := _BLOB_LINE.fullmatch(line)) is None:
                    raise ForeignRefused("upload_damaged", "The archive's list of large objects is damaged.")
                self._missing += 1
                self._balance += _mixed(int(found[1]))
            if len(rest) > BLOCK:
                break
        if rest:
            raise ForeignRefused("upload_damaged", "The archive's list of large objects is damaged.")

    def ended(self) -> None:
        if self._missing > 0 or self._lists < self.announced:
            raise ForeignRefused("upload_truncated", "Large objects are missing from the archive.")
        if self._balance:
            raise ForeignRefused("upload_damaged", "The archive's large objects are not those of its list.")


def _mixed(oid: int) -> int:
    return int.from_bytes(hashlib.sha256(b"%d" % oid).digest()[:16])


def _number(field: bytes) -> int:
    """Octal, or to the base of 256 where that does not hold it."""
    if field[0] & 0x80:
        return int.from_bytes(field[1:], "big")
    try:
        return int(field.strip(b" \0") or b"0", 8)
    except ValueError:
        raise ForeignRefused("upload_damaged", "A header of the archive is damaged.") from None
