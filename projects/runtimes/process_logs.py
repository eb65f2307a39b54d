"""The end of a server's log, as lines."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from projects.runtimes.process_volume import tail_bytes

MAX_LINES = 5000
MAX_BYTES = 1 << 20
_STAMP = re.compile(rb"^(\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d)")


def tail_lines(files: Sequence[Path], *, tail: int, since: datetime | None) -> Iterator[bytes]:
    """The last `tail` lines (at most 5,000 and 1 MiB) of the files taken together, oldest first.

    `since` reads the UTC time at a line's beginning; a line without one has the time of the line before it.
    """
    text = b""
    for path in reversed(files):
        if len(text) < MAX_BYTES:
            with contextlib.suppress(FileNotFoundError):
                text = tail_bytes(path, MAX_BYTES - len(text)) + text
    lines = text.splitlines()
    if since is not None:
        lines = _newer(lines, since.astimezone(UTC))
    yield from lines[-max(0, min(tail, MAX_LINES)) :] if tail > 0 else ()


def _newer(lines: Sequence[bytes], since: datetime) -> list[bytes]:
    wanted = since.strftime("%Y-%m-%d %H:%M:%S").encode()
    answer = []
    keep = False
    for line in lines:
        if match := _STAMP.match(line):
            keep = match.group(1).replace(b"T", b" ") >= wanted
        if keep:
            answer.append(line)
    return answer
