"""What both clients share: requests as data, retries, deadlines, waiting. No input or output happens here.

A call is a *flow*: a generator that yields what is to be done (`Send`, `Sleep`), gets the reply sent in, and returns
its result.
`NovaStack` runs flows with blocking calls, `AsyncNovaStack` with awaited ones.
"""

from __future__ import annotations

import json
import logging
import random
import time
import uuid
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, BinaryIO, Protocol, TypeVar
from urllib.parse import quote

from novastack_client._parse import InvalidAnswer, build
from novastack_client._whole import Watched
from novastack_client.errors import RETRIED, DeadlineExceeded, NovaStackError, Unavailable, error_of
from novastack_client.models import Operation

T = TypeVar("T")
log = logging.getLogger("novastack_client")
WAIT_SECONDS = 30  # the longest that the server holds an answer
PIECE_BYTES = 1 << 20
STORING_SECONDS = 600  # once all of a file came, the server may take so long to have it stored


class Sink(Protocol):
    """Where a good answer's bytes go: a file that can be rewound, or what watches one."""

    def seek(self, offset: int, /) -> int: ...
    def truncate(self) -> int: ...
    def write(self, data: bytes, /) -> int: ...


@dataclass(frozen=True, slots=True)
class File:
    """So many bytes of an open file, from a place on; read a piece at a time, and anew by each attempt."""

    source: BinaryIO
    begin: int
    size: int
    deadline: Deadline | None = None

    @classmethod
    def rest_of(cls, source: BinaryIO, deadline: Deadline | None) -> File:
        """From where it stands to its end."""
        begin = source.tell()
        size = source.seek(0, 2) - begin
        source.seek(begin)
        return cls(source, begin, size, deadline)

    def piece(self, at: int) -> bytes:
        """What follows so many bytes; empty at the end. Raises `DeadlineExceeded`, and when the file got shorter meanwhile."""
        if at >= self.size:
            return b""
        if self.deadline is not None and self.deadline.left <= 0:
            raise DeadlineExceeded("The deadline is over, and the file not sent.")
        if not at:
            self.source.seek(self.begin)
        found = self.source.read(min(PIECE_BYTES, self.size - at))
        if not found:
            raise NovaStackError("The file got shorter while it was sent.", code="file_changed")
        return found


@dataclass(frozen=True, slots=True)
class Request:
    """`key`: what makes a POST safe to send twice."""

    method: str
    path: str  # below `/api/v1/`
    params: Mapping[str, str | list[str]] = field(default_factory=dict)
    body: Mapping[str, Any] | None = field(default=None, repr=False)
    key: str = ""
    held_seconds: float = 0  # the server may hold the answer for so long
    into: Sink | None = field(default=None, repr=False, compare=False)  # where a good answer's bytes go
    begin: int = 0  # where in it
    file: File | None = field(default=None, repr=False, compare=False)  # what is sent as it is, instead of `body`

    @property
    def headers(self) -> dict[str, str]:
        found = {"Idempotency-Key": self.key} if self.key else {}
        if self.file is not None:
            found |= {"Content-Type": "application/octet-stream", "Content-Length": str(self.file.size)}
        return found


@dataclass(frozen=True, slots=True)
class Send:
    request: Request
    timeout_seconds: float


@dataclass(frozen=True, slots=True)
class Sleep:
    seconds: float


@dataclass(frozen=True, slots=True)
class Item:
    """One of many, for who iterates."""

    value: Any


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: Mapping[str, str]  # whatever their case
    content: bytes = field(repr=False)

    def json(self) -> Any:
        try:
            return json.loads(self.content) if self.content else None
        except ValueError:
            return None


@dataclass(frozen=True, slots=True)
class Lost:
    """No answer. `carried_out`: the request may have arrived."""

    reason: str
    carried_out: bool


Reply = Answer | Lost | None
Flow = Generator[Send | Sleep | Item, Reply, T]


def get(path: str, *, held_seconds: float = 0, **params: Any) -> Request:
    return Request("GET", path, _texts(params), held_seconds=held_seconds)


def post(path: str, body: Mapping[str, Any] | None = None) -> Request:
    """Every POST has a key of its own, which its retries keep: what was done and not told is not done twice."""
    return Request("POST", path, body=_given(body or {}), key=str(uuid.uuid4()))


def post_file(path: str, file: File, **params: Any) -> Request:
    """A file as the body."""
    return Request("POST", path, _texts(params), key=str(uuid.uuid4()), held_seconds=STORING_SECONDS, file=file)


def patch(path: str, body: Mapping[str, Any]) -> Request:
    return Request("PATCH", path, body=_given(body))


def delete(path: str, **params: Any) -> Request:
    return Request("DELETE", path, _texts(params))


def part(value: str) -> str:
    """An id or name as one part of a path."""
    if not value or value in {".", ".."}:
        raise ValueError("an id is missing")
    return quote(str(value), safe="")


def _given(body: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if value is not None}


def _texts(params: Mapping[str, Any]) -> dict[str, str]:
    return {
        name: str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in params.items()
        if value is not None
    }


@dataclass(frozen=True, slots=True)
class Deadline:
    until: float
    clock: Callable[[], float]

    @property
    def left(self) -> float:
        """Seconds; never below 0."""
        return max(0.0, self.until - self.clock())


@dataclass(frozen=True, slots=True)
class Core:
    """How patient a client is. Seconds throughout."""

    timeout_seconds: float = 30
    retries: int = 4
    backoff_seconds: float = 0.5
    backoff_max_seconds: float = 15
    longest_pause_seconds: float = 60  # a server that says “later than that” is believed, and told to the caller
    clock: Callable[[], float] = time.monotonic

    def deadline(self, seconds: float | None) -> Deadline | None:
        return None if seconds is None else Deadline(self.clock() + seconds, self.clock)

    def pause(self, attempt: int) -> float:
        """Doubled with each attempt, up to a limit; between a half and the whole of it, so that many do not come together."""
        most: float = min(self.backoff_max_seconds, self.backoff_seconds * 2.0 ** min(attempt, 16))
        return most * random.uniform(0.5, 1)  # noqa: S311 - jitter

    def exchange(self, request: Request, deadline: Deadline | None = None) -> Flow[Answer]:
        """The answer, once it is a good one. Connection errors, 429, 502, 503 and 504 are tried again, nothing else is (but a
        POST whose first attempt still runs on the server: that is waited for). Raises the error, or `DeadlineExceeded`."""
        attempt, doubtful = 0, False
        while True:
            timeout = self.timeout_seconds + request.held_seconds
            if deadline is not None:
                if deadline.left <= 0:
                    raise DeadlineExceeded("The deadline is over.", after_lost_answer=doubtful)
                timeout = min(timeout, deadline.left)
            reply = yield Send(request, timeout)
            if isinstance(reply, Answer) and 200 <= reply.status < 300:
                return reply
            error = _error_of(reply, doubtful)
            doubtful = doubtful or (
                reply.carried_out
                if isinstance(reply, Lost)
                else isinstance(reply, Answer) and reply.status in {502, 504}
            )
            error.after_lost_answer = doubtful
            if not _tried_again(error, request) or attempt >= self.retries:
                raise error
            wanted = error.retry_after_seconds or 0
            if wanted > self.longest_pause_seconds:
                raise error
            pause = max(self.pause(attempt), wanted)
            if deadline is not None and deadline.left <= pause:
                raise DeadlineExceeded(
                    f"The deadline is over; last: {error}", status=error.status, after_lost_answer=doubtful
                ) from error
            attempt += 1
            log.info("%s %s: %s; again in %.1f s", request.method, request.path, error.code, pause)
            yield Sleep(pause)

    def one(self, kind: type[T], request: Request, deadline: Deadline | None = None) -> Flow[T]:
        """The answer as an instance of `kind`."""
        answer = yield from self.exchange(request, deadline)
        return parsed(kind, answer)

    def fetch(self, request: Request, into: BinaryIO) -> Flow[int]:
        """A good answer's bytes, written into a file from where it stands; how many. Each attempt begins anew."""
        begin = into.tell()
        yield from self.exchange(replace(request, into=into, begin=begin))
        return into.tell() - begin

    def fetch_watched(self, request: Request, into: Watched) -> Flow[int]:
        """As `fetch`, where no length says how much is to come: what was cut off and closed as if whole is begun anew, and in
        the end `Unavailable` with the code `download_truncated`."""
        begin = into.file.tell()
        for left in reversed(range(self.retries + 1)):
            yield from self.exchange(replace(request, into=into, begin=begin))
            if into.whole:
                break
            if not left:
                raise Unavailable(
                    "What came is not whole: its end is missing.", code="download_truncated", retryable=True
                )  # fmt: skip
            yield Sleep(self.pause(self.retries - left))
        return into.file.tell() - begin

    def pages(self, kind: type[T], path: str, params: Mapping[str, Any]) -> Flow[None]:
        """Yields an `Item` for each row of a list, a page at a time."""
        page: int | None = 1
        while page is not None:
            answer = yield from self.exchange(Request("GET", path, _texts({**params, "page": page, "page_size": 100})))
            body = answer.json()
            rows = body.get("results") if isinstance(body, dict) else None
            if not isinstance(rows, list):
                raise invalid_answer(answer, "no list")
            for row in rows:
                yield Item(parsed(kind, answer, row))
            page = page + 1 if body.get("next") else None

    def operation_end(self, operation_id: str, deadline: Deadline | None) -> Flow[Operation]:
        """The operation once it has ended, however it did. The server holds each answer for up to 30 s; where it does not
        (too many wait), the calls get rarer."""
        last: Operation | None = None
        early = 0
        while True:
            held = WAIT_SECONDS if deadline is None else int(min(WAIT_SECONDS, deadline.left))
            began = self.clock()
            request = get(f"operations/{part(operation_id)}/", held_seconds=held, wait=held)
            try:
                last = yield from self.one(Operation, request, deadline)
            except DeadlineExceeded as error:
                error.operation = last
                raise
            if last.ended:
                return last
            pause = self.pause(early)
            if self.clock() - began >= held / 2 and held:
                early, pause = 0, 0
            else:
                early += 1
            if deadline is not None and deadline.left <= pause:
                raise DeadlineExceeded(f"The operation “{last.kind}” is still {last.state}.", operation=last)
            if pause:
                yield Sleep(pause)


def parsed(kind: type[T], answer: Answer, data: Any = None) -> T:
    try:
        return build(kind, answer.json() if data is None else data)
    except InvalidAnswer as error:
        raise invalid_answer(answer, str(error)) from None


def invalid_answer(answer: Answer, why: str) -> NovaStackError:
    return NovaStackError(
        f"The server's answer is not what its API promises ({why}).", code="invalid_answer", status=answer.status,
        request_id=answer.headers.get("x-request-id", ""),
    )  # fmt: skip


def _tried_again(error: NovaStackError, request: Request) -> bool:
    if isinstance(error, Unavailable) or error.status in RETRIED:
        return True
    # Sent again after a lost answer, while the first one is still at work: its answer comes when it is done.
    in_flight = error.status == 409 and error.code == "conflict" and error.retry_after_seconds is not None
    return bool(request.key) and error.after_lost_answer and in_flight


def _error_of(reply: Reply, doubtful: bool) -> NovaStackError:
    if not isinstance(reply, Answer):
        reason = reply.reason if reply is not None else "nothing was sent"
        return Unavailable(
            f"No answer: {reason}.", code="no_answer", retryable=True, after_lost_answer=doubtful
        )  # fmt: skip
    return error_of(
        reply.status, reply.json(), request_id=reply.headers.get("x-request-id", ""),
        retry_after_seconds=_retry_after(reply.headers.get("retry-after")), after_lost_answer=doubtful,
    )  # fmt: skip


def _retry_after(text: str | None) -> float | None:
    """Seconds, from a number or a date."""
    if text is None:
        return None
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return None
