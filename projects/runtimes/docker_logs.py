"""A container's log, read from its end by time stamps: what was given once is known by the last line's stamp and text."""

from __future__ import annotations

import re
import struct
import zlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import docker.errors
from docker import APIClient

from projects.domain import LogPart
from projects.runtimes.base import MAX_LOG_BYTES, MAX_LOG_LINES
from projects.runtimes.docker_client import mapped
from projects.runtimes.docker_observe import time_of

MAX_LINE_BYTES = 32 << 10
# Asked from the end, so that a look costs the same for a log of any length; more only when more was logged meanwhile.
_WINDOWS = (200, 1000, MAX_LOG_LINES)
_OUT_OF_ORDER_SECONDS = 2  # stdout and stderr are stamped by two threads of the engine
_CURSOR = re.compile(r"d([0-9a-z]{12}):([0-9TZ:.+-]{20,40}):([0-9a-f]{8})")
_HEADER = struct.Struct(">BxxxL")


@dataclass(frozen=True, slots=True)
class Line:
    stamp: str
    text: bytes

    @property
    def mark(self) -> str:
        return f"{self.stamp}:{zlib.crc32(self.text):08x}"


def read_part(
    client: APIClient, path: str, ref: str, *, cursor: str, tail: int, running: bool, many: bool = False
) -> LogPart:
    """As `Runtime.read_log`. `path` names the log (`/containers/<id>/logs`), `ref` what it is the log of: it begins anew
    with a new one. `many`: it is put together from the logs of many containers, in no order."""
    tail = max(0, min(tail, MAX_LOG_LINES))
    match = _CURSOR.fullmatch(cursor)
    if match is None or match[1] != ref[:12]:
        kept = read_lines(client, path, tail=max(tail, 1), many=many)
        given = kept[-tail:] if tail else []
        place = f"d{ref[:12]}:{kept[-1].mark}" if kept else ""
        return LogPart(tuple(line.text for line in given), place, bool(cursor), running)
    mark = cursor.partition(":")[2]
    new: list[Line] = []
    found = False
    for window in _WINDOWS:
        kept = read_lines(client, path, tail=window, since=match[2], many=many)
        at = next((i for i in range(len(kept) - 1, -1, -1) if kept[i].mark == mark), None)
        found = at is not None
        new = kept[at + 1 :] if at is not None else [line for line in kept if line.stamp > match[2]]
        if found or len(kept) < window:
            break
    given = new[-tail:] if tail else []
    place = f"d{ref[:12]}:{new[-1].mark}" if new else cursor
    return LogPart(tuple(line.text for line in given), place, not found or len(given) < len(new), running)


def read_lines(client: APIClient, path: str, *, tail: int, since: str = "", many: bool = False) -> list[Line]:
    """The last `tail` messages, whole lines of them, at most 1 MiB; of those the ones since that stamp."""
    params: dict[str, Any] = {"stdout": 1, "stderr": 1, "timestamps": 1, "tail": tail}
    if since and (moment := time_of(since)) is not None:
        params["since"] = f"{int(moment.timestamp()) - _OUT_OF_ORDER_SECONDS}"
    # Not docker-py's `logs`: that one takes the time limit away from what it streams, or keeps all of it.
    url = f"{client.base_url}/v{client.api_version}{path}"
    with mapped(), client.get(url, params=params, stream=True, timeout=client.timeout) as response:
        if response.status_code >= 400:
            docker.errors.create_api_error_from_http_exception(_http_error(response))
        kept: deque[Line] = deque()
        size = 0
        for line in _lines(response.raw):
            kept.append(line)
            size += len(line.text)
            while size > MAX_LOG_BYTES:
                size -= len(kept.popleft().text)
    return sorted(kept, key=lambda line: line.stamp) if many else list(kept)


def _http_error(response: Any) -> Any:
    from requests.exceptions import HTTPError

    return HTTPError(f"{response.status_code} {response.reason}", response=response)


def _lines(raw: Any) -> Iterator[Line]:
    """Messages put together: a long line comes in several, each with the stamp of the first. One whose end has not been
    logged yet is left for the next look."""
    begun: dict[int, tuple[str, bytes]] = {}
    for kind, message in _messages(raw):
        stamp, _, text = message.partition(b" ")
        first, before = begun.pop(kind, (stamp.decode("ascii", "replace"), b""))
        text = before + text[: MAX_LINE_BYTES - len(before)] if len(before) < MAX_LINE_BYTES else before
        if message.endswith(b"\n"):
            yield Line(first, text.rstrip(b"\r\n"))
        else:
            begun[kind] = (first, text)


def _messages(raw: Any) -> Iterator[tuple[int, bytes]]:
    while len(header := raw.read(_HEADER.size)) == _HEADER.size:
        kind, size = _HEADER.unpack(header)
        message = raw.read(size)
        if len(message) < size:
            return
        yield kind, message
