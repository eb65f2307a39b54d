"""TLS of a MariaDB or MySQL server: its settings and files, and how it shows itself from outside.

Certificate, key and the CA's certificate are one file, which serves as all three: MySQL wants to see who signed before
it takes a new certificate. Whether plain connections are refused is a line in an option file, so that it holds after
restarts that nobody told us of, and a global variable on a server that runs. Sockets of the server's own machine are
never refused.
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import Mapping

from projects.domain import Credentials, Endpoint, LoginRefused, ServerNotReady, Tls, TlsNotTrusted
from projects.engines import trust
from projects.engines.mysql_session import connect

OPTIONS = "server.cnf"
TRIAL = "novastack_trial"  # the account of a moment by which a plain login is tried

# https://dev.mysql.com/doc/dev/mysql-server/latest/page_protocol_connection_phase_packets.html
_GREETING, _REFUSAL = 10, 255
_PROTOCOL_41, _SSL, _SECURE_CONNECTION, _UTF8MB4 = 1 << 9, 1 << 11, 1 << 15, 45
_SSL_REQUEST = (
    (32).to_bytes(3, "little") + b"\x01"
    + (_PROTOCOL_41 | _SSL | _SECURE_CONNECTION).to_bytes(4, "little")
    + (1 << 24).to_bytes(4, "little") + bytes([_UTF8MB4]) + bytes(23)
)  # fmt: skip


def files(tls: Tls) -> Mapping[str, bytes]:
    options = (
        f"# Written by NovaStack at every start and change.\n[mysqld]\nrequire_secure_transport={_on(tls.required)}\n"
    )
    return {trust.PAIR: tls.pem + tls.ca_pem, OPTIONS: options.encode()}


def settings(place: str) -> dict[str, str]:
    """`place` is a path with `{}` for the file's name."""
    pair = place.replace("{}", trust.PAIR)
    return {"ssl_cert": pair, "ssl_key": pair, "ssl_ca": pair, "tls_version": "TLSv1.2,TLSv1.3"}


def required_sql(required: bool) -> str:
    return f"SET GLOBAL require_secure_transport = {_on(required)}"


def _on(value: bool) -> str:
    return "ON" if value else "OFF"


def peer_certificate(endpoint: Endpoint, *, timeout_seconds: float) -> bytes:
    return trust.shown(endpoint, _ask, timeout_seconds=timeout_seconds)


def _ask(plain: socket.socket) -> None:
    greeting = _packet(plain)
    if not greeting or greeting[0] == _REFUSAL:
        raise ServerNotReady("the server does not answer yet")
    if greeting[0] != _GREETING:
        raise TlsNotTrusted("what answers does not speak the protocol")
    # The version's name, then the thread's number (4), eight random bytes and a zero, then what the server can do.
    able = greeting.partition(b"\0")[2][13:15]
    if not int.from_bytes(able, "little") & _SSL:
        raise TlsNotTrusted("the server speaks no TLS")
    plain.sendall(_SSL_REQUEST)


def _packet(plain: socket.socket) -> bytes:
    head = _exactly(plain, 4)
    return _exactly(plain, int.from_bytes(head[:3], "little"))


def _exactly(plain: socket.socket, count: int) -> bytes:
    found = b""
    while len(found) < count:
        more = plain.recv(min(count - len(found), 4096))
        if not more:
            raise ServerNotReady("the server does not answer yet")
        found += more
    return found


def new_password() -> str:
    return secrets.token_urlsafe(24)


def accepts_plain(endpoint: Endpoint, password: str, *, timeout_seconds: float) -> bool:
    """The servers check a login before its transport, so one that is right is needed: that of `TRIAL`, just made."""
    bare = Endpoint(endpoint.host, endpoint.port)
    try:
        with connect(bare, Credentials(TRIAL, password), timeout_seconds=timeout_seconds, encrypted=False):
            return True
    except LoginRefused:
        return False
