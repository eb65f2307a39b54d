"""What readers of scripts share: a buffer that is as long as one statement at most, whatever pieces the file comes in. A long
statement is in memory once: it grows where it is, and leaves in parts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NoReturn

from projects.engines.foreign import STATEMENT_BYTES, ForeignRefused, Left

_AT_ONCE = 1 << 20
_BLANK = re.compile(rb"\s*")
SHORTER = "Have the dump tool write shorter ones: COPY, or fewer rows in one INSERT."


def past(pattern: re.Pattern[bytes], data: bytes | bytearray, at: int) -> int:
    """Where the pattern ends that begins there; there, if it does not."""
    found = pattern.match(data, at)
    return at if found is None else found.end()


def parts(statement: bytes | bytearray) -> Iterator[bytes]:
    """Of a long one: whoever gets it copies no more than a part at a time."""
    for at in range(0, len(statement), _AT_ONCE):
        yield bytes(memoryview(statement)[at : at + _AT_ONCE])


class Buffered:
    """`_start`: what before it was handed out; `_at`: how far it was read."""

    def __init__(self, pieces: Iterable[bytes], left: Left) -> None:
        self._pieces, self._left = iter(pieces), left
        self._buffer = bytearray()
        self._start = self._at = 0
        self._line = 1
        self._ended = False

    def _more(self) -> bool:
        """Have more in the buffer; what was handed out leaves it."""
        piece = b"" if self._ended else next(self._pieces, b"")
        if not piece:
            self._ended = True
            return False
        del self._buffer[: self._start]
        self._at, self._start = self._at - self._start, 0
        if len(self._buffer) > STATEMENT_BYTES:
            self._line += self._buffer.count(b"\n", 0, past(_BLANK, self._buffer, 0))
            self._refuse(
                "upload_statement_too_large", f"A statement is longer than {STATEMENT_BYTES >> 20} MiB. {SHORTER}"
            )
        # Small pieces are put together while much is kept: else it is looked through, and moved, for each of them.
        wanted = min(len(self._buffer) // 8, _AT_ONCE)
        while piece:
            self._buffer += piece
            wanted -= len(piece)
            piece = next(self._pieces, b"") if wanted > 0 else b""
        return True

    def _cut(self) -> bytearray:
        """What was read and not handed out, which is handed out so. A long one is no copy: the buffer is what is behind it."""
        if self._at - self._start <= _AT_ONCE:
            whole = self._buffer[self._start : self._at]
            self._start = self._at
            return whole
        whole, self._buffer = self._buffer, self._buffer[self._at :]
        del whole[self._at :], whole[: self._start]
        self._start = self._at = 0
        return whole

    def _search(self, pattern: re.Pattern[bytes], margin: int) -> re.Match[bytes] | None:
        """The next match at or after `_at` that more bytes would not change; None at the end of the file."""
        while True:
            found = pattern.search(self._buffer, self._at)
            if found is not None and (found.end() + margin <= len(self._buffer) or self._ended):
                return found
            if found is not None:
                self._at = found.start()
            elif len(self._buffer) - margin > self._at:
                self._at = len(self._buffer) - margin
            if not self._more():
                return pattern.search(self._buffer, self._at)

    def _refuse(self, code: str, detail: str) -> NoReturn:
        raise ForeignRefused(code, f"{self._left.where or f'Line {self._line}'}: {detail}")

    def _until(self, mark: bytes, *, end: bool = False) -> None:
        """Past the next `mark`. `end`: the end of the file will do."""
        while (found := self._buffer.find(mark, self._at)) < 0:
            self._at = max(self._at, len(self._buffer) - len(mark) + 1)
            if not self._more():
                if not end:
                    self._refuse("upload_truncated", "The file ends within a statement.")
                self._at = len(self._buffer)
                return
        self._at = found + len(mark)
