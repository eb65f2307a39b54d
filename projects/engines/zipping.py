"""How a dump tool compresses what it writes, where its image has zstd: the work is done beside the server, and not by the
worker that moves it (rule 28)."""

from __future__ import annotations

import re
from collections.abc import Callable

import zstandard

from projects.domain import EngineError

MAGIC = b"\x28\xb5\x2f\xfd"  # zstd's: what a compressed stream begins with
# `sh -c ZIPPED sh program argument …`: the program's output by zstd, where the image has one. sh has no `pipefail`:
# the program's own exit code goes through a file, and counts before zstd's. On success the last line says the bytes that
# zstd took.
ZIPPED = r"""set -u
command -v zstd >/dev/null 2>&1 || exec "$@"
rm -f dumped told
{ "$@"; echo "$?" >dumped; } | zstd -3 -T2 -vv --no-progress -c 2>told
zipped=$?
dumped=70
[ ! -s dumped ] || read -r dumped <dumped
[ "$zipped" -eq 0 ] || { cat told >&2; [ "$dumped" -ne 0 ] && [ "$dumped" -ne 141 ] || dumped=$zipped; }
[ "$dumped" -eq 0 ] || exit "$dumped"
sed -n 's/.*( *\([0-9][0-9]*\) B *=>.*/novastack dump bytes \1/p' told >&2
exit 0
"""
_WINDOW_BYTES = 32 << 20  # -3 has 2 MiB
_OUT_BYTES = 256 << 10  # in hand at a time, however well it was compressed
_DUMP_BYTES = re.compile(r"^novastack dump bytes (\d+)$")


def zipped(*argv: str) -> tuple[str, ...]:
    """The argument list of a tool that runs `argv` and compresses what it writes."""
    return ("sh", "-c", ZIPPED, "novastack-dump", *argv)


def told_bytes(lines: list[str]) -> int | None:
    """Of the last lines of a tool that compresses: how many bytes the dump had before."""
    for line in reversed(lines):
        if match := _DUMP_BYTES.match(line):
            return int(match[1])
    return None


class Unzipped:
    """What a tool wrote, as it was before: fed with pieces as they come, compressed by `zipped` or not, it calls `hear` with
    pieces of the other, in constant memory. Whether all of it came is for its hearer to see."""

    def __init__(self, hear: Callable[[bytes], object]) -> None:
        self._hear = hear
        self._head = b""
        self._begun = False
        self._unpacker: zstandard.ZstdDecompressionWriter | None = None

    def feed(self, piece: bytes) -> None:
        """`EngineError` for a compressed stream that is damaged."""
        if not self._begun:
            self._head += piece
            if len(self._head) < len(MAGIC) and MAGIC.startswith(self._head):
                return
            piece, self._head, self._begun = self._head, b"", True
            if piece.startswith(MAGIC):
                unpacker = zstandard.ZstdDecompressor(max_window_size=_WINDOW_BYTES)
                self._unpacker = unpacker.stream_writer(self, write_size=_OUT_BYTES)  # type: ignore[arg-type]
        if self._unpacker is None:
            self._hear(piece)
            return
        try:
            self._unpacker.write(piece)
        except zstandard.ZstdError as error:
            raise EngineError(f"what the tool compressed can't be read: {error}") from error

    def write(self, piece: bytes) -> int:
        """What the decompressor calls."""
        self._hear(piece)
        return len(piece)
