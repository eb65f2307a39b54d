"""A stream that is read ahead: a tool goes on writing while what it wrote before is looked at."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator

_AHEAD_BYTES = 4 << 20
_PIECE_BYTES = 1 << 20


class Ahead:
    """Pieces of what `read` gives until its end, of at most a mebibyte or what one call gave; a few mebibytes are held at most.

    Iterate it once, in one thread; what `read` raises comes out after what was read before. `close` does not wait for a call
    of `read` that hangs: whoever ends the tool ends that.
    """

    def __init__(self, read: Callable[[int], bytes], *, name: str) -> None:
        self._read = read
        self._pieces: deque[bytes] = deque()
        self._held = 0
        self._ended = self._closed = False
        self._error: Exception | None = None
        self._changed = threading.Condition()
        threading.Thread(target=self._run, daemon=True, name=f"ahead-{name}").start()

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._pieces.clear()
            self._changed.notify_all()

    def __iter__(self) -> Iterator[bytes]:
        while piece := self._next():
            yield piece
        if self._error is not None:
            raise self._error

    def _next(self) -> bytes:
        """As many pieces as make up one; empty at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._pieces or self._ended or self._closed)
            taken: list[bytes] = []
            size = 0
            while self._pieces and (not taken or size + len(self._pieces[0]) <= _PIECE_BYTES):
                taken.append(self._pieces.popleft())
                size += len(taken[-1])
            self._held -= size
            self._changed.notify_all()
        return taken[0] if len(taken) == 1 else b"".join(taken)

    def _run(self) -> None:
        try:
            while piece := self._read(_PIECE_BYTES):
                with self._changed:
                    self._changed.wait_for(lambda: self._held < _AHEAD_BYTES or self._closed)
                    if self._closed:
                        return
                    self._pieces.append(piece)
                    self._held += len(piece)
                    self._changed.notify_all()
        except Exception as error:  # raised again by who iterates
            self._error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()
