"""Dumps that somebody else took: what a file is, told by its first bytes, and why one is not taken.

Nothing of such a file is ever run by a client that knows commands of its own. It becomes plain statements (`script_of`),
which the product's own client gets in a throw-away place, with such commands off.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from projects.domain import EngineError

HEAD_BYTES = 4096  # what `recognise` wants to see, or all of a shorter file
STATEMENT_BYTES = 64 << 20


CODES = frozenset(
    {
        "upload_not_recognised", "upload_empty", "upload_encoding", "upload_directory_format", "upload_tar_format",
        "upload_compression", "upload_wrong_engine", "upload_newer_version", "upload_cluster_dump", "upload_damaged",
        "upload_truncated", "upload_meta_command", "upload_statement_too_large", "upload_too_large",
    }
)  # fmt: skip


class ForeignRefused(EngineError):
    """Why a file is not taken. `code` is one of `CODES`."""

    retryable = False

    def __init__(self, code: str, detail: str) -> None:
        # It may quote the file: what can't be stored as text is replaced.
        detail = detail.encode(errors="replace").decode().replace("\0", "?")
        super().__init__(detail)
        self.code, self.detail = code, detail


@dataclass(slots=True)
class Left:
    """What of a file is left out on purpose, counted, and what went wrong where; for people."""

    counted: Counter[str] = field(default_factory=Counter)
    where: str = ""  # what is being worked on

    def notes(self) -> list[str]:
        return [f"Left out of the uploaded file: {count} × {what}." for what, count in sorted(self.counted.items())]


class Pull:
    """Bytes out of pieces, as many as are asked for."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._held = b""
        self._at = 0

    def one(self) -> bytes:
        """The next byte; empty at the end."""
        while self._at >= len(self._held):
            self._held, self._at = next(self._pieces, b""), 0
            if not self._held:
                return b""
        return self.take(1)

    def take(self, count: int) -> bytes:
        """Exactly so many. `upload_truncated` when there are fewer."""
        end = self._at + count
        if end <= len(self._held):
            found = self._held[self._at : end]
            self._at = end
            return found
        parts, missing = [self._held[self._at :]], end - len(self._held)
        self._held, self._at = b"", 0
        while missing > 0:
            piece = next(self._pieces, b"")
            if not piece:
                raise ForeignRefused("upload_truncated", "The file ends in the middle.")
            parts.append(piece[:missing])
            if len(piece) > missing:
                self._held, self._at = piece, missing
            missing -= len(piece)
        return b"".join(parts)

    def pieces(self, count: int, most: int = 1 << 20) -> Iterator[bytes]:
        """So many bytes, in parts that fit into memory, as they come. `upload_truncated` when there are fewer."""
        while count > 0:
            if self._at >= len(self._held):
                self._held, self._at = next(self._pieces, b""), 0
                if not self._held:
                    raise ForeignRefused("upload_truncated", "The file ends in the middle.")
            part = self._held[self._at : self._at + min(count, most)]
            self._at += len(part)
            count -= len(part)
            yield part

    def rest(self) -> Iterator[bytes]:
        """All that is left."""
        held, self._held = self._held[self._at :], b""
        yield held
        yield from self._pieces


def plain_text(head: bytes) -> bytes:
    """The head of a script without its byte order mark; refuses what is no text, and says what it seems to be."""
    if not head:
        raise ForeignRefused("upload_empty", "The file is empty: nothing was dumped into it.")
    if head[:2] in {b"\xff\xfe", b"\xfe\xff"}:
        raise ForeignRefused(
            "upload_encoding", "It is text in UTF-16, as `>` in PowerShell makes it: have the dump tool write the file."
        )
    for magic, what in _OTHERS:
        if head.startswith(magic):
            raise ForeignRefused("upload_compression", f"It is {what}: send it as it is, or packed with gzip or zstd.")
    head = head.removeprefix(b"\xef\xbb\xbf")
    if b"\0" in head:
        raise ForeignRefused("upload_not_recognised", "It is neither a dump of this product nor SQL.")
    return head


_OTHERS = (
    (b"PK\x03\x04", "a zip file"), (b"BZh", "packed with bzip2"), (b"\xfd7zXZ\x00", "packed with xz"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip file"), (b"\x04\x22\x4d\x18", "packed with lz4"), (b"Rar!", "a RAR file"),
    (b"\x1f\x8b", "packed with gzip twice"), (b"\x28\xb5\x2f\xfd", "packed twice"),
)  # fmt: skip


def split(pieces: Iterable[bytes], size: int) -> Iterator[bytes]:
    """The same bytes in pieces of at most `size`, small ones put together."""
    held: list[bytes] = []
    count = 0
    for piece in itertools.chain(pieces, [b""]):
        if held and (not piece or count + len(piece) > size):
            whole, held, count = b"".join(held), [], 0
            for at in range(0, len(whole), size):
                yield whole[at : at + size]
        if piece:
            held.append(piece)
            count += len(piece)
