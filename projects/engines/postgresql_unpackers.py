"""What pg_dump compresses within an archive, unpacked as it passes, in bounded pieces, however little stands for how much."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator

import lz4.frame
import zstandard

from projects.engines.foreign import ForeignRefused

NONE, GZIP, LZ4, ZSTD = range(4)
_OUT_BYTES = 1 << 20


def check(compression: int) -> None:
    if compression not in _UNPACKERS:
        raise ForeignRefused(
            "upload_compression",
            "The archive is compressed in a way that is not known: take it with --compress=gzip or zstd.",
        )


def unpacked(compression: int, pieces: Iterator[bytes]) -> Iterator[bytes]:
    """One stream. Raises `ForeignRefused` with `upload_damaged`."""
    unpack, end = _UNPACKERS[compression]()
    try:
        for piece in pieces:
            yield from unpack(piece)
        yield from end()
    except (zlib.error, zstandard.ZstdError, EOFError):
        raise ForeignRefused("upload_damaged", "A part of the archive can't be unpacked.") from None


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
            _not_after(packed.eof)  # zlib would put it by, all of it
            if found := packed.decompress(piece, _OUT_BYTES):
                yield found
            piece = packed.unconsumed_tail

    def end() -> Iterator[bytes]:
        if found := packed.flush():
            yield found
        _whole((packed.eof and not packed.unused_data) or not any_came)

    return unpack, end


def _zstd() -> tuple[Unpack, End]:
    packed = zstandard.ZstdDecompressor(max_window_size=1 << 27).decompressobj()
    any_came = False

    def unpack(piece: bytes) -> Iterator[bytes]:
        nonlocal any_came
        any_came = True
        for at in range(0, len(piece), 512):  # a few bytes may stand for megabytes
            _not_after(packed.eof)
            if found := packed.decompress(piece[at : at + 512]):
                yield found

    def end() -> Iterator[bytes]:
        _whole((packed.eof and not packed.unused_data) or not any_came)
        return iter(())

    return unpack, end


def _lz4() -> tuple[Unpack, End]:
    packed = lz4.frame.LZ4FrameDecompressor()
    any_came = False

    def unpack(piece: bytes) -> Iterator[bytes]:
        nonlocal any_came
        any_came = True
        _not_after(packed.eof)  # else another frame would be taken
        while True:
            try:
                found = packed.decompress(piece, max_length=_OUT_BYTES)
            except RuntimeError:
                raise EOFError from None
            if found:
                yield found
            if packed.eof or packed.needs_input:
                return
            piece = b""

    def end() -> Iterator[bytes]:
        _whole((packed.eof and not packed.unused_data) or not any_came)
        return iter(())

    return unpack, end


def _not_after(eof: bool) -> None:
    """More came: nothing may stand after the stream's end."""
    if eof:
        raise EOFError


def _whole(is_whole: bool) -> None:
    if not is_whole:
        raise ForeignRefused("upload_damaged", "A part of the archive is not whole.")


_UNPACKERS: dict[int, Callable[[], tuple[Unpack, End]]] = {NONE: _as_is, GZIP: _gzip, LZ4: _lz4, ZSTD: _zstd}
