"""Taking gzip and zstd off a file as it comes, in bounded memory, however little stands for how much. Knows no Django."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import zstandard

from backups.zstd_frames import FrameWalker, NotZstd
from projects.engines.foreign import ForeignRefused

_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_OUT_BYTES = 1 << 20
_ZSTD_IN_BYTES = 512  # a block of four bytes may stand for 128 KiB
_GZIP_IN_BYTES = 16 << 10  # what follows a member of 20 bytes is copied with each
_WINDOW_LOG = 27


class Unpacker:
    """Fed with a file in pieces, gives what is in it; what is not packed comes out as it is. `packing`: `gzip`, `zstd` or
    empty, once four bytes came. Raises `ForeignRefused` with `upload_damaged`, `upload_truncated`."""

    def __init__(self) -> None:
        self.packing = ""
        self._head = b""
        self._begun = False
        self._gzip: zlib._Decompress | None = None
        self._zstd: zstandard.ZstdDecompressionObj | None = None
        self._walker = FrameWalker()
        self._members = 0

    def feed(self, piece: bytes) -> Iterator[bytes]:
        if not self._begun:
            self._head += piece
            if len(self._head) < 4:
                return
            piece, self._head = self._head, b""
            self._begin(piece)
        yield from self._unpacked(piece)

    def finish(self) -> Iterator[bytes]:
        """All came."""
        if not self._begun:
            piece, self._head = self._head, b""
            self._begin(piece)
            yield from self._unpacked(piece)
        if self._gzip is not None or (self.packing == "zstd" and not self._walker.complete):
            raise ForeignRefused("upload_truncated", "The file is cut off: its compressed stream ends in the middle.")

    def _begin(self, head: bytes) -> None:
        self._begun = True
        if head.startswith(_GZIP):
            self.packing, self._gzip = "gzip", zlib.decompressobj(31)
        elif head.startswith(_ZSTD):
            self.packing = "zstd"
            self._zstd = zstandard.ZstdDecompressor(max_window_size=1 << _WINDOW_LOG).decompressobj(
                read_across_frames=True
            )

    def _unpacked(self, piece: bytes) -> Iterator[bytes]:
        try:
            if self.packing == "gzip":
                for at in range(0, len(piece), _GZIP_IN_BYTES):
                    yield from self._gunzipped(piece[at : at + _GZIP_IN_BYTES])
            elif self._zstd is not None:
                self._walker.feed(piece)
                for at in range(0, len(piece), _ZSTD_IN_BYTES):
                    if found := self._zstd.decompress(piece[at : at + _ZSTD_IN_BYTES]):
                        yield found
            elif piece:
                yield piece
        except (zlib.error, zstandard.ZstdError, NotZstd, EOFError):
            raise ForeignRefused(
                "upload_damaged", f"The file is damaged: it is no whole {self.packing} file."
            ) from None

    def _gunzipped(self, piece: bytes) -> Iterator[bytes]:
        """Members one after the other; zeros may follow the last one (RFC 1952, and what tapes leave)."""
        while piece:
            if self._gzip is None:
                piece = piece.lstrip(b"\0")
                if not piece:
                    return
                self._gzip = zlib.decompressobj(31)
            found = self._gzip.decompress(piece, _OUT_BYTES)
            if found:
                yield found
            if self._gzip.eof:
                piece, self._gzip = self._gzip.unused_data, None
            else:
                piece = self._gzip.unconsumed_tail
