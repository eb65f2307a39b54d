"""Where the frames of a zstd stream end (RFC 8878, section 3.1), told without decompressing.

Needed because `zstandard`'s readers end quietly at the end of their input, in the middle of a frame as well.
"""

from __future__ import annotations

_MAGIC = 0xFD2FB528
_SKIPPABLE = 0x184D2A50
_FCS_BYTES = (0, 2, 4, 8)
_DICTIONARY_BYTES = (0, 1, 2, 4)


class NotZstd(ValueError):
    """The bytes are no zstd stream."""


class FrameWalker:
    """Fed with a stream in pieces, knows whether it ended where a frame ends."""

    def __init__(self) -> None:
        self._skip = 0  # content to pass over
        self._head = b""  # of the part that is being read, while it is incomplete
        self._part = self._magic
        self._wanted = 4
        self._checksum = False
        self._frames = 0

    @property
    def complete(self) -> bool:
        """At least one frame came, and nothing of another one."""
        return self._frames > 0 and self._part == self._magic and not self._head and not self._skip

    def feed(self, piece: bytes) -> None:
        """`NotZstd` at the first byte that can't be."""
        at, size = 0, len(piece)
        while at < size:
            if self._skip:
                passed = min(self._skip, size - at)
                self._skip -= passed
                at += passed
                continue
            taken = piece[at : at + self._wanted - len(self._head)]
            self._head += taken
            at += len(taken)
            if len(self._head) == self._wanted:
                head, self._head = self._head, b""
                self._part(head)

    def _next(self, part: str, wanted: int, *, skip: int = 0) -> None:
        self._part, self._wanted, self._skip = getattr(self, part), wanted, skip

    def _frame_ends(self, *, skip: int = 0) -> None:
        self._frames += 1
        self._next("_magic", 4, skip=skip)

    def _magic(self, head: bytes) -> None:
        magic = int.from_bytes(head, "little")
        if magic == _MAGIC:
            self._next("_descriptor", 1)
        elif magic & 0xFFFFFFF0 == _SKIPPABLE:
            self._next("_skippable", 4)
        else:
            raise NotZstd("a frame begins with other bytes than it must")

    def _skippable(self, head: bytes) -> None:
        self._frame_ends(skip=int.from_bytes(head, "little"))

    def _descriptor(self, head: bytes) -> None:
        flags = head[0]
        single, self._checksum = bool(flags & 0x20), bool(flags & 0x04)
        if flags & 0x08:
            raise NotZstd("a reserved bit is set")
        size = _FCS_BYTES[flags >> 6] or (1 if single else 0)
        self._next("_block", 3, skip=(0 if single else 1) + _DICTIONARY_BYTES[flags & 0x03] + size)

    def _block(self, head: bytes) -> None:
        value = int.from_bytes(head, "little")
        last, kind, size = value & 1, value >> 1 & 3, value >> 3
        if kind == 3:
            raise NotZstd("a block of an unknown kind")
        content = 1 if kind == 1 else size
        if not last:
            self._next("_block", 3, skip=content)
        else:
            self._frame_ends(skip=content + (4 if self._checksum else 0))
