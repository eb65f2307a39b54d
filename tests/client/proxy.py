"""A proxy that does to answers what networks and load balancers do."""

from __future__ import annotations

import json
import socket
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import requests


@dataclass(frozen=True)
class Fault:
    """What happens to one request. `passes`: it reaches the server. `status`: what the client gets, 0: nothing."""

    passes: bool
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b"<html>Bad Gateway</html>"


LOST_ANSWER = Fault(passes=True)  # done, and nobody was told
LOST_REQUEST = Fault(passes=False)
GATEWAY = Fault(passes=True, status=502)  # done, and told wrongly


def refused(status: int, **headers: str) -> Fault:
    return Fault(False, status, {name.replace("_", "-"): value for name, value in headers.items()})


@dataclass(frozen=True)
class Seen:
    method: str
    path: str
    key: str
    authorization: str = field(repr=False)


class Proxy:
    """`faults` are used up, one per request; without any, requests pass. `seen`: what came. `rewrite` changes bodies."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.faults: deque[Fault | None] = deque()
        self.seen: list[Seen] = []
        self.rewrite: Callable[[Any], Any] | None = None
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                outer.handle(self)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.socket.listen(128)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.server.shutdown()
        self.server.server_close()

    def handle(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        headers = handler.headers
        self.seen.append(
            Seen(handler.command, handler.path, headers.get("Idempotency-Key", ""), headers.get("Authorization", ""))
        )
        fault = self.faults.popleft() if self.faults else None
        if fault is not None and not fault.passes:
            self.fail(handler, fault)
            return
        kept = {name: value for name, value in headers.items() if name.lower() not in {"host", "connection"}}
        answer = requests.request(
            handler.command, self.target + handler.path, data=body, headers=kept, timeout=90, allow_redirects=False
        )
        if fault is not None:
            self.fail(handler, fault)
            return
        content = answer.content
        if self.rewrite is not None:
            content = json.dumps(self.rewrite(answer.json())).encode()
        self.send(handler, answer.status_code, dict(answer.headers), content)

    def fail(self, handler: BaseHTTPRequestHandler, fault: Fault) -> None:
        if fault.status:
            self.send(handler, fault.status, fault.headers, fault.body)
            return
        handler.close_connection = True
        handler.connection.shutdown(socket.SHUT_RDWR)

    def send(self, handler: BaseHTTPRequestHandler, status: int, headers: dict[str, str], content: bytes) -> None:
        try:
            handler.send_response(status)
            for name, value in headers.items():
                if name.lower() not in {"content-length", "transfer-encoding", "connection", "content-encoding"}:
                    handler.send_header(name, value)
            handler.send_header("Content-Length", str(len(content)))
            handler.end_headers()
            handler.wfile.write(content)
        except OSError:
            handler.close_connection = True  # the client has given up
