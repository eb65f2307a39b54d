"""The two clients. They differ in how they wait; what they can do is in `_calls`."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

import httpx

from novastack_client._calls import Calls
from novastack_client._core import Answer, Core, File, Flow, Item, Lost, Reply, Send, Sink, Sleep
from novastack_client._endpoints import AsyncRunner, SyncRunner
from novastack_client._version import __version__

T = TypeVar("T")
_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


class _Settings:
    """Where to, as whom, how patient. `repr` shows no token."""

    def __init__(
        self,
        base_url: str,
        token: str,
        *,
        timeout_seconds: float = 30,
        retries: int = 4,
        backoff_seconds: float = 0.5,
        verify: Any = True,
    ) -> None:
        """`base_url`: of the install, such as `https://databases.example.com`. `token`: an API token (`nvs_…`) or a JWT.

        `timeout_seconds` is for each attempt; of those there are `retries` more after the first, when there was no answer or
        a 429, 502, 503 or 504. `verify`: as in httpx, for a certificate authority of your own.
        """
        parts = urlsplit(base_url)
        if parts.scheme not in {"http", "https"} or not parts.netloc or parts.query or parts.fragment:
            raise ValueError("base_url is the http(s) address of the install, such as https://databases.example.com")
        if "@" in parts.netloc:
            raise ValueError("base_url holds no credentials; give the token as `token`")
        if not token or not token.isascii() or not token.isprintable() or " " in token:
            raise ValueError("the token is missing, or is none")
        self.base_url = base_url.rstrip("/").removesuffix("/api/v1")
        self._core = Core(timeout_seconds=timeout_seconds, retries=retries, backoff_seconds=backoff_seconds)
        options: dict[str, Any] = {
            "base_url": f"{self.base_url}/api/v1/",
            "headers": {
                "Authorization": f"Bearer {token}",
                "Accept": "application/json",
                "User-Agent": f"novastack-client/{__version__}",
            },
            "verify": verify,
            "follow_redirects": False,  # the token is for this server only
        }
        self._open(options)

    def _open(self, options: dict[str, Any]) -> None:
        raise NotImplementedError

    @classmethod
    def from_env(cls, **options: Any) -> Self:
        """By `NOVASTACK_URL` and `NOVASTACK_TOKEN`."""
        missing = [name for name in ("NOVASTACK_URL", "NOVASTACK_TOKEN") if not os.environ.get(name)]
        if missing:
            raise ValueError(f"{' and '.join(missing)} must be set")
        return cls(os.environ["NOVASTACK_URL"], os.environ["NOVASTACK_TOKEN"], **options)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.base_url!r})"


def _request(step: Send, content: Any = None) -> dict[str, Any]:
    request, seconds = step.request, max(step.timeout_seconds, 0.001)
    brief = max(min(seconds, 5), seconds - request.held_seconds)  # only its answer is waited for so long
    return {
        "method": request.method, "url": request.path, "params": dict(request.params), "json": request.body,
        "content": content, "headers": request.headers,
        "timeout": httpx.Timeout(brief, read=seconds),
    }  # fmt: skip


def _pieces(file: File) -> Iterator[bytes]:
    at = 0
    while piece := file.piece(at):
        at += len(piece)
        yield piece


async def _awaited_pieces(file: File) -> AsyncIterator[bytes]:
    at = 0
    while piece := await asyncio.to_thread(file.piece, at):
        at += len(piece)
        yield piece


def _answer(response: httpx.Response) -> Answer:
    return Answer(response.status_code, response.headers, response.content)


def _rewound(step: Send, response: httpx.Response) -> Sink | None:
    """Where the bytes of a good answer go; None: it is none, or nobody wants it in a file."""
    into = step.request.into
    if into is None or response.status_code != 200:
        return None
    into.seek(step.request.begin)
    into.truncate()
    return into


def _fetched(response: httpx.Response) -> Answer:
    return Answer(response.status_code, response.headers, b"")


def _lost(error: httpx.RequestError) -> Lost:
    """By the class: messages of lower layers may hold addresses, and nothing that helps."""
    return Lost(type(error).__name__, not isinstance(error, _NEVER_SENT))


class NovaStack(_Settings, Calls, SyncRunner):
    """A blocking client; may be shared by threads. Use it as a context manager, or `close()` it."""

    def _open(self, options: dict[str, Any]) -> None:
        self._http = httpx.Client(**options)

    def _run(self, flow: Flow[T]) -> T:
        reply: Reply = None
        while True:
            try:
                step = flow.send(reply)
            except StopIteration as end:
                result: T = end.value
                return result
            reply = self._do(step)

    def _items(self, flow: Flow[None]) -> Iterator[Any]:
        reply: Reply = None
        while True:
            try:
                step = flow.send(reply)
            except StopIteration:
                return
            reply = None
            if isinstance(step, Item):
                yield step.value
            else:
                reply = self._do(step)

    def _do(self, step: Send | Sleep | Item) -> Reply:
        if isinstance(step, Sleep):
            time.sleep(step.seconds)
        elif isinstance(step, Send):
            try:
                return self._send(step)
            except httpx.RequestError as error:
                return _lost(error)
        return None

    def _send(self, step: Send) -> Answer:
        if step.request.into is None:
            file = step.request.file
            return _answer(self._http.request(**_request(step, None if file is None else _pieces(file))))
        with self._http.stream(**_request(step)) as response:
            into = _rewound(step, response)
            if into is None:
                response.read()
                return _answer(response)
            for piece in response.iter_bytes():
                into.write(piece)
            return _fetched(response)

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncNovaStack(_Settings, Calls, AsyncRunner):
    """The same for asyncio: every call is awaited, lists are `async for`. Belongs to one event loop."""

    def _open(self, options: dict[str, Any]) -> None:
        self._http = httpx.AsyncClient(**options)

    async def _run(self, flow: Flow[T]) -> T:
        reply: Reply = None
        while True:
            try:
                step = flow.send(reply)
            except StopIteration as end:
                result: T = end.value
                return result
            reply = await self._do(step)

    async def _items(self, flow: Flow[None]) -> AsyncIterator[Any]:
        reply: Reply = None
        while True:
            try:
                step = flow.send(reply)
            except StopIteration:
                return
            reply = None
            if isinstance(step, Item):
                yield step.value
            else:
                reply = await self._do(step)

    async def _do(self, step: Send | Sleep | Item) -> Reply:
        if isinstance(step, Sleep):
            await asyncio.sleep(step.seconds)
        elif isinstance(step, Send):
            try:
                return await self._send(step)
            except httpx.RequestError as error:
                return _lost(error)
        return None

    async def _send(self, step: Send) -> Answer:
        if step.request.into is None:
            file = step.request.file
            return _answer(await self._http.request(**_request(step, None if file is None else _awaited_pieces(file))))
        async with self._http.stream(**_request(step)) as response:
            into = _rewound(step, response)
            if into is None:
                await response.aread()
                return _answer(response)
            async for piece in response.aiter_bytes():
                await asyncio.to_thread(into.write, piece)
            return _fetched(response)

    async def aclose(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
