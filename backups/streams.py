"""Bytes on their way between threads, in bounded memory."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

BLOCK_BYTES = 1 << 20  # what is hashed and handed to the storage at a time
CHANNEL_BYTES = 4 << 20  # what may wait between two threads


class Closed(Exception):
    """The other side has gone."""


class Channel:
    """Bytes from one thread to another, at most `CHANNEL_BYTES` at a time. A file to read from and to write to."""

    def __init__(self) -> None:
        self._pieces: deque[bytes] = deque()
        self._held = 0
        self._ended = False
        self._closed = False
        self._changed = threading.Condition()
        self._current = memoryview(b"")

    def write(self, piece: bytes) -> int:
        with self._changed:
            while self._held >= CHANNEL_BYTES and not self._closed:
                self._changed.wait()
            if self._closed:
                raise Closed
            self._pieces.append(bytes(piece))
            self._held += len(piece)
            self._changed.notify_all()
        return len(piece)

    def end(self) -> None:
        """All was written: the reader gets what is left, and then the end."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def close(self) -> None:
        """Nobody needs it any more: both sides that wait get `Closed`."""
        with self._changed:
            self._closed = True
            self._pieces.clear()
            self._changed.notify_all()

    def read(self, size: int = -1) -> bytes:
        if not self._current and not self._next():
            return b""
        taken = self._current if size < 0 else self._current[:size]
        self._current = self._current[len(taken) :]
        return bytes(taken)

    def _next(self) -> bool:
        with self._changed:
            while not self._pieces and not self._ended and not self._closed:
                self._changed.wait()
            if self._closed:
                raise Closed
            if not self._pieces:
                return False
            piece = self._pieces.popleft()
            self._held -= len(piece)
            self._changed.notify_all()
        self._current = memoryview(piece)
        return True


class Gathered:
    """A file to write to that passes on blocks of a fixed size, so that small writes cost little."""

    def __init__(self, put: Callable[[bytes], object]) -> None:
        self._put = put
        self._buffer = bytearray()

    def write(self, piece: bytes) -> int:
        self._buffer += piece
        if len(self._buffer) >= BLOCK_BYTES:
            self.flush_rest()
        return len(piece)

    def flush(self) -> None:
        """Called by whoever thinks that it is a file: what is held may stay held."""

    def flush_rest(self) -> None:
        if self._buffer:
            block = bytes(self._buffer)
            self._buffer.clear()
            self._put(block)
