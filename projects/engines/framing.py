"""How a dump travels into a restore tool: in frames, so that the tool knows a whole dump from one that was cut off.

A closed standard input does not say which of the two it is (psql takes the end of a cut-off dump for the end of its
data, and ends well), and over TLS half of a connection can't be closed at all. So each piece is preceded by its length
in a line of its own, and the last one is followed by a line `end`.
"""

from __future__ import annotations

PIECE_BYTES = 4 << 20
END = b"end\n"
CUT_OFF = 74  # exit code of `UNFRAME`: the program was content, and yet the dump was not whole

# `sh -c UNFRAME sh program argument …`: runs the program on what the frames hold.
UNFRAME = f"""set -u
unframe() {{
  while read -r size; do
    if [ "$size" = end ]; then : >whole; return 0; fi
    dd bs="$size" count=1 iflag=fullblock 2>/dev/null || return 1
  done
  echo "the dump was cut off" >&2
  return 1
}}
rm -f whole
unframe | "$@"
code=$?
[ "$code" -ne 0 ] || [ -e whole ] || code={CUT_OFF}
exit "$code"
"""


def frame(piece: bytes) -> bytes:
    """One piece with what goes before it; at most `PIECE_BYTES`, and not empty."""
    return b"%d\n%b" % (len(piece), piece)


def unframed(*argv: str) -> tuple[str, ...]:
    """The argument list of a tool that runs `argv` on the content of frames."""
    return ("sh", "-c", UNFRAME, "novastack-restore", *argv)
