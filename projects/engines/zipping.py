"""How a dump tool compresses what it writes, where its image has zstd: the work is done beside the server, and not by the
worker that moves it (rule 28)."""

from __future__ import annotations

import re

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
sed -n 's/.*(\([0-9][0-9]*\) B *=>.*/novastack dump bytes \1/p' told >&2
exit 0
"""
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
