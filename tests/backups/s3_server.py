"""A real S3 server (versitygw, built by .ci/versitygw), and a proxy before it that breaks what a test tells it to break."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ACCESS, SECRET = "TESTACCESSKEY", "test-secret-key-of-the-server"
SCRIPT = Path(__file__).resolve().parents[2] / ".ci" / "versitygw"


def binary() -> str:
    """Where it is; skips, and says what is missing, where it was not built and can't be."""
    done = subprocess.run([str(SCRIPT), "--is-there"], capture_output=True, text=True, check=False)
    if done.returncode:
        if os.environ.get("NOVASTACK_REQUIRE_DOCKER") == "1":
            pytest.fail(done.stderr.strip())
        pytest.skip(done.stderr.strip())
    return done.stdout.strip()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def versitygw(folder: Path) -> Iterator[int]:
    """The port of a server whose buckets are folders in `folder / "buckets"`."""
    program, port = binary(), free_port()
    for name in ("buckets", "versions"):
        (folder / name).mkdir()
    server = subprocess.Popen(
        [program, "--port", f"127.0.0.1:{port}", "posix", "--versioning-dir", str(folder / "versions"),
         str(folder / "buckets")],
        env={**os.environ, "ROOT_ACCESS_KEY": ACCESS, "ROOT_SECRET_KEY": SECRET},
        stdout=(folder / "log").open("wb"), stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        for _ in range(200):
            if server.poll() is not None:
                pytest.fail(f"versitygw ended: {(folder / 'log').read_text()[-2000:]}")
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.05)
        yield port
    finally:
        server.terminate()
        server.wait(20)


@dataclass
class Request:
    method: str
    path: str  # with the query
    count: int  # how many of this rule's came before


Fault = Callable[["Exchange"], None]


@dataclass
class Rule:
    method: str
    has: str  # in the path or query
    fault: Fault
    times: int = 1_000_000
    after: int = 0  # that many are let through first
    seen: int = 0


@dataclass
class Exchange:
    """One request, as the proxy has read it."""

    client: socket.socket
    method: str
    path: str
    headers: list[tuple[str, str]]
    body: bytes
    upstream: int

    def forward(self) -> tuple[int, str, list[tuple[str, str]], bytes]:
        server = http.client.HTTPConnection("127.0.0.1", self.upstream, timeout=60)
        server.putrequest(self.method, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers:
            if name.lower() not in {"expect", "connection"}:
                server.putheader(name, value)
        server.endheaders(self.body)
        answer = server.getresponse()
        body = answer.read()
        server.close()
        return answer.status, answer.reason, answer.getheaders(), body

    def answer(
        self, status: int, reason: str, headers: list[tuple[str, str]], body: bytes, *, cut: int | None = None
    ) -> None:
        kept = [(n, v) for n, v in headers if n.lower() not in {"transfer-encoding", "connection", "content-length"}]
        told = {n.lower(): v for n, v in headers}
        length = told.get("content-length", "0") if self.method == "HEAD" else str(len(body))
        head = [f"HTTP/1.1 {status} {reason}", *(f"{n}: {v}" for n, v in kept)]
        if status not in {204, 304}:
            head.append(f"Content-Length: {length}")
        self.client.sendall("\r\n".join([*head, "", ""]).encode() + (b"" if self.method == "HEAD" else body[:cut]))

    def reset(self) -> None:
        """As a machine that is gone does."""
        self.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.client.close()
        raise ConnectionResetError


def error(status: int, code: str) -> Fault:
    body = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>made by a test</Message></Error>'.encode()
    return lambda exchange: exchange.answer(status, "Error", [("Content-Type", "application/xml")], body)


def reset(exchange: Exchange) -> None:
    """It never arrives."""
    exchange.reset()


def lost_answer(exchange: Exchange) -> None:
    """It arrives and is done; the answer doesn't come back."""
    exchange.forward()
    exchange.reset()


def half_answer(exchange: Exchange) -> None:
    status, reason, headers, body = exchange.forward()
    exchange.answer(status, reason, headers, body, cut=len(body) // 2)
    exchange.reset()


def flipped(exchange: Exchange) -> None:
    """A byte of the body is another one on the way."""
    body = bytearray(exchange.body)
    body[len(body) // 2] ^= 1
    exchange.body = bytes(body)
    exchange.answer(*exchange.forward())


def slow(seconds: float) -> Fault:
    def late(exchange: Exchange) -> None:
        time.sleep(seconds)
        exchange.answer(*exchange.forward())

    return late


@dataclass
class Proxy:
    """Between client and server. `rules` are asked in their order; the first that fits breaks the request."""

    upstream: int
    rules: list[Rule] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def fail(self, method: str, has: str, fault: Fault, *, times: int = 1_000_000, after: int = 0) -> None:
        self.rules.append(Rule(method, has, fault, times, after))

    def start(self) -> int:
        self._listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()
        return int(self._listener.getsockname()[1])

    def stop(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        source = client.makefile("rb")
        with contextlib.suppress(OSError, http.client.HTTPException):
            while line := source.readline():
                method, path, _ = line.decode().split(" ", 2)
                headers = []
                while (header := source.readline().decode().strip()) != "":
                    name, _, value = header.partition(":")
                    headers.append((name, value.strip()))
                told = {name.lower(): value for name, value in headers}
                if told.get("expect"):
                    client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
                body = source.read(int(told.get("content-length", "0")))
                exchange = Exchange(client, method, path, headers, body, self.upstream)
                self.requests.append(f"{method} {path}")
                self._fault(method, path)(exchange)
        source.close()
        client.close()

    def _fault(self, method: str, path: str) -> Fault:
        for rule in self.rules:
            if rule.method in {method, "*"} and rule.has in path:
                rule.seen += 1
                if rule.after < rule.seen <= rule.after + rule.times:
                    return rule.fault
        return lambda exchange: exchange.answer(*exchange.forward())
