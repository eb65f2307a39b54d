"""A server's log: kept below its size, read as lines, followed by a cursor.

The server appends to `server.log`. When that is too big its end goes to `server.log.1`, and it is cut to nothing;
`log.json` says how many bytes were logged before its first one. So a place in the log is one number for all its life.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from projects.domain import LogPart
from projects.runtimes.base import MAX_LOG_BYTES, MAX_LOG_LINES
from projects.runtimes.process_volume import LOG_KEEP_BYTES, LOG_LIMIT_BYTES, Volume, tail_bytes, write_file

_STAMP = re.compile(rb"^(\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d)")
_CURSOR = re.compile(r"p(\d{1,9}):(\d{1,18})")
_STATE = "log.json"


def tail_lines(files: Sequence[Path], *, tail: int, since: datetime | None) -> Iterator[bytes]:
    """The last `tail` lines (at most 5,000 and 1 MiB) of the files taken together, oldest first.

    `since` reads the UTC time at a line's beginning; a line without one has the time of the line before it.
    """
    lines = _end_of(files, MAX_LOG_BYTES).splitlines()
    if since is not None:
        lines = _newer(lines, since.astimezone(UTC))
    yield from lines[-max(0, min(tail, MAX_LOG_LINES)) :] if tail > 0 else ()


def files_of(volume: Volume) -> list[Path]:
    """Oldest first."""
    return [_old(volume), volume.log]


def cut_log(volume: Volume) -> None:
    """Keep the log below its size. Whoever reads or cuts at the same time: one of them."""
    with contextlib.suppress(FileNotFoundError, BlockingIOError):
        if volume.log.stat().st_size <= LOG_LIMIT_BYTES:
            return
        with _held(volume, fcntl.LOCK_EX | fcntl.LOCK_NB), volume.log.open("rb") as file:
            base = _base(volume, volume.log.stat().st_size)
            volume.write(_STATE, {"base": base})  # what a killed cut leaves behind is never taken for the lines before
            file.seek(max(0, file.seek(0, os.SEEK_END) - LOG_KEEP_BYTES))
            kept = file.read()
            while kept:
                write_file(_old(volume), kept, mode=0o600)
                if not (more := file.read()):  # logged meanwhile
                    break
                kept += more
            end = file.tell()
            volume.write(_STATE, {"base": base + end, "cutting": end})
            os.truncate(volume.log, 0)
            volume.write(_STATE, {"base": base + end, "old": True})


def read_part(volume: Volume, *, cursor: str, tail: int) -> LogPart:
    """As `Runtime.read_log`, but for `running`; the lines as they stand in the file."""
    tail = max(0, min(tail, MAX_LOG_LINES))
    with contextlib.suppress(FileNotFoundError), _held(volume, fcntl.LOCK_SH):
        size = volume.log.stat().st_size
        base = _base(volume, size)
        old = b""
        if volume.read(_STATE).get("old"):
            with contextlib.suppress(FileNotFoundError):
                old = tail_bytes(_old(volume), LOG_KEEP_BYTES)
        first, end = base - len(old), base + size
        match = _CURSOR.fullmatch(cursor)
        known = bool(match) and int(match[1]) == volume.handle.incarnation and first <= int(match[2]) <= end  # type: ignore[index]
        wanted = int(match[2]) if match and known else first
        start = max(wanted, end - MAX_LOG_BYTES)
        text = old[start - first :] if start < base else b""
        with volume.log.open("rb") as file:
            file.seek(max(0, start - base))
            text += file.read(max(0, end - max(start, base)))
        whole = text.rfind(b"\n") + 1
        if whole == 0 and len(text) >= MAX_LOG_BYTES:
            whole = len(text)  # a line without end
        if start > wanted or (not known and first > 0):
            text, whole, start = _from_next_line(text, whole, start)  # its beginning is not here
        lines = [line.rstrip(b"\r") for line in text[:whole].split(b"\n")]
        if lines and not lines[-1]:
            lines.pop()
        given = lines[-tail:] if tail else []
        gap = bool(cursor) and (not known or start > wanted or len(given) < len(lines))
        return LogPart(tuple(given), f"p{volume.handle.incarnation}:{start + whole}", gap)
    return LogPart(cursor=cursor)


def _from_next_line(text: bytes, whole: int, start: int) -> tuple[bytes, int, int]:
    after = text.find(b"\n") + 1
    if after == 0 or after > whole:
        return text, whole, start
    return text[after:], whole - after, start + after


def _old(volume: Volume) -> Path:
    return volume.own / "server.log.1"


def _base(volume: Volume, size: int) -> int:
    """How much was logged before the file's first byte."""
    state = volume.read(_STATE)
    base, cutting = int(state.get("base", 0)), int(state.get("cutting", 0))
    return base - cutting if cutting and size >= cutting else base  # killed right before it was cut


@contextlib.contextmanager
def _held(volume: Volume, how: int) -> Iterator[None]:
    descriptor = os.open(volume.own / "log.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, how)
        yield
    finally:
        os.close(descriptor)


def _end_of(files: Sequence[Path], count: int) -> bytes:
    text = b""
    for path in reversed(files):
        if len(text) < count:
            with contextlib.suppress(FileNotFoundError):
                text = tail_bytes(path, count - len(text)) + text
    return text


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
