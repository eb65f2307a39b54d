"""Calls to places that somebody else named: only to addresses that may be reached, bounded in time and size.

A name is resolved once and the address that was checked is the one that is connected to (no rebinding). Redirects are not
followed. Private, loopback, link-local and other special addresses are refused unless `NOVASTACK_OUTBOUND_ALLOW` has them.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
MOST_BYTES = 64 * 1024
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


class OutboundError(Exception):
    """`code`: `bad_url`, `address_refused`, `unreachable`, `timeout`, `not_trusted`, `too_large`. The text is for people."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code, self.detail = code, detail


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: bytes

    def json(self) -> Any:
        """The body as JSON; `ValueError` if it is none."""
        return json.loads(self.body)


def is_allowed(address: Address, allowed: Iterable[str] | None = None) -> bool:
    """Whether NovaStack may connect there: public, or named by the operator (CIDRs)."""
    inner = _inside(address)
    for text in settings.NOVASTACK_OUTBOUND_ALLOW if allowed is None else allowed:
        network = ipaddress.ip_network(text, strict=False)
        if inner.version == network.version and inner in network:
            return True
    return inner.is_global and not inner.is_multicast


def _inside(address: Address) -> Address:
    """What an IPv6 address that only wraps an IPv4 one leads to."""
    if isinstance(address, ipaddress.IPv6Address):
        wrapped = address.ipv4_mapped or address.sixtofour or (address.teredo or (None, None))[1]
        if wrapped is None and address in _NAT64:
            wrapped = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        return wrapped or address
    return address


def resolve(host: str, port: int) -> tuple[str, int]:
    """An (address, port) of `host` that may be connected to. `OutboundError` if there is none."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise OutboundError("unreachable", f"The name {host} can't be resolved.") from None
    for *_, where in found:
        if is_allowed(ipaddress.ip_address(str(where[0]).partition("%")[0])):
            return str(where[0]), port
    raise OutboundError(
        "address_refused", f"{host} is a private address. An operator can allow it: NOVASTACK_OUTBOUND_ALLOW."
    )


def check_url(url: str) -> str:
    """The URL if it may be called as far as its text goes: http or https, a host, no user, no fragment. `OutboundError`."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise OutboundError("bad_url", "This is no URL.") from None
    if (
        parts.scheme not in {"http", "https"}
        or not parts.hostname
        or "@" in parts.netloc
        or parts.fragment
        or port == 0
    ):
        raise OutboundError("bad_url", "Use an address such as https://auth.example.com/novastack.")
    if any(c.isspace() or not c.isprintable() or ord(c) > 126 for c in url):
        raise OutboundError("bad_url", "Use plain characters only; others percent-encoded.")
    return url


class _Checked(http.client.HTTPConnection):
    """To the address that was checked; TLS by the name that was asked for."""

    def __init__(self, host: str, where: tuple[str, int], timeout: float, tls: ssl.SSLContext | None) -> None:
        super().__init__(host, where[1], timeout=timeout)
        self._where, self._tls = where, tls

    def connect(self) -> None:
        self.sock = socket.create_connection(self._where, self.timeout)
        if self._tls is not None:
            # In two steps, so that `cut` finds the socket while they shake hands.
            wrapped = self._tls.wrap_socket(self.sock, server_hostname=self.host, do_handshake_on_connect=False)
            self.sock = wrapped
            wrapped.do_handshake()

    def cut(self) -> None:
        """End whatever goes on: who sends a byte a second is as slow as who sends none."""
        if self.sock is not None:
            with contextlib.suppress(OSError):
                self.sock.shutdown(socket.SHUT_RDWR)


def post(
    url: str, body: bytes, *, headers: Mapping[str, str], timeout_seconds: float = 5, most_bytes: int = MOST_BYTES
) -> Answer:
    """POST `body`; the whole answer within `timeout_seconds` and `most_bytes`, or `OutboundError`. Any status is an answer."""
    parts = urlsplit(check_url(url))
    tls = ssl.create_default_context() if parts.scheme == "https" else None
    host, until = str(parts.hostname), time.monotonic() + timeout_seconds
    where = resolve(host, parts.port or (443 if tls else 80))
    connection = _Checked(host, where, timeout_seconds, tls)
    watch = threading.Timer(timeout_seconds, connection.cut)
    watch.daemon = True
    watch.start()
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    try:
        connection.request("POST", path, body, {"Connection": "close", **headers})
        response = connection.getresponse()
        received = b""
        while chunk := response.read1(8192):
            received += chunk
            if len(received) > most_bytes:
                raise OutboundError("too_large", f"{host} answered with more than {most_bytes} bytes.")
        if time.monotonic() >= until or (response.length or 0) > 0:
            raise TimeoutError if time.monotonic() >= until else http.client.IncompleteRead(received)
        return Answer(response.status, received)
    except TimeoutError:
        raise _late(host, timeout_seconds) from None
    except ssl.SSLError as error:
        if time.monotonic() >= until:
            raise _late(host, timeout_seconds) from None
        raise OutboundError("not_trusted", f"{host}: {error.reason or 'TLS failed'}.") from None
    except (OSError, http.client.HTTPException) as error:
        if time.monotonic() >= until:
            raise _late(host, timeout_seconds) from None
        raise OutboundError("unreachable", f"{host} can't be reached: {_why(error)}.") from None
    finally:
        watch.cancel()
        connection.close()


def _late(host: str, seconds: float) -> OutboundError:
    return OutboundError("timeout", f"{host} has not answered within {seconds:g} s.")


def _why(error: Exception) -> str:
    return (getattr(error, "strerror", None) or type(error).__name__).lower()
