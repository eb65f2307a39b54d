"""Whether a download came whole whose length nobody knew before: a proxy that speaks HTTP/1.0 ends one that broke off as if it
was whole."""

from __future__ import annotations

import re
from collections.abc import Generator
from typing import BinaryIO

# Among the first lines: which is to be the last one.
_TOLD = re.compile(rb"^-- The file is whole only if its last line is `(-- End[^`\n]*)`", re.MULTILINE)
_HEAD_BYTES, _TAIL_BYTES = 4096, 200
_ZSTD = b"\x28\xb5\x2f\xfd"


class Watched:
    """A file, and the last of what was written into it. `compressed`: the server ends its zstd frame only after the text's last
    line, so that a frame that is whole says that the text is."""

    def __init__(self, file: BinaryIO, *, compressed: bool) -> None:
        self.file, self._compressed = file, compressed
        self._begin()

    def _begin(self) -> None:
        self._head = self._tail = b""
        self._frame = _Frame()

    @property
    def whole(self) -> bool:
        if self._compressed:
            return self._frame.whole
        told = _TOLD.search(self._head)
        return told is not None and self._tail.endswith(b"\n" + told[1] + b"\n")

    def seek(self, offset: int, /) -> int:
        self._begin()
        return self.file.seek(offset)

    def truncate(self) -> int:
        return self.file.truncate()

    def write(self, data: bytes, /) -> int:
        if self._compressed:
            self._frame.feed(data)
        else:
            self._head += data[: _HEAD_BYTES - len(self._head)]
            self._tail = (self._tail + data[-_TAIL_BYTES:])[-_TAIL_BYTES:]
        return self.file.write(data)


class _Frame:
    """Follows one zstd frame from block to block (RFC 8878, 3.1.1) without unpacking it."""

    def __init__(self) -> None:
        self.whole = False
        self._held = bytearray()
        self._steps = self._parts()
        self._wanted = next(self._steps)

    def feed(self, data: bytes) -> None:
        self._held += data
        at = 0
        while self._wanted and len(self._held) - at >= self._wanted:
            part = bytes(self._held[at : at + self._wanted])
            at += self._wanted
            self._wanted = self._steps.send(part)
        del self._held[:at]
        if not self._wanted and self._held:  # behind its end, or none
            self.whole = False
            self._held.clear()

    def _parts(self) -> Generator[int, bytes, None]:
        """Each `yield n` asks for n bytes; 0: no more."""
        if (yield 4) == _ZSTD:
            (flags,) = yield 1
            alone = flags >> 5 & 1
            size = (alone, 2, 4, 8)[flags >> 6]
            yield (1 - alone) + (0, 1, 2, 4)[flags & 3] + size
            last = kind = 0
            while not last and kind != 3:
                block = int.from_bytes((yield 3), "little")
                last, kind, length = block & 1, block >> 1 & 3, block >> 3
                if kind == 1:
                    length = 1  # one byte, many times
                if length and kind != 3:
                    yield length
            if flags & 4 and kind != 3:
                yield 4
            self.whole = kind != 3
        while True:
            yield 0
