"""TLS of a PostgreSQL server: its settings, its own pg_hba.conf, and how it shows itself from outside.

Certificate and key are one file, so that no crash leaves a pair that doesn't fit. The file says who may come in, and is
the control plane's: what is written there holds from the next reload on, and nothing in the data folder counts.
"""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Mapping

import psycopg
from psycopg.conninfo import make_conninfo

from projects.domain import Endpoint, ServerNotReady, Tls, TlsNotTrusted
from projects.engines import trust
from projects.engines.postgresql_session import BoundedConnection, translate

HBA = "pg_hba.conf"
# `SSLRequest` of the protocol: its length and its number. https://www.postgresql.org/docs/current/protocol-message-formats.html
_SSL_REQUEST = (8).to_bytes(4, "big") + (80877103).to_bytes(4, "big")
_REJECTED = re.compile(r"pg_hba\.conf rejects connection|no pg_hba\.conf entry")
_ASKED_FOR_PASSWORD = re.compile(r"no password supplied|password authentication failed")


def files(tls: Tls) -> Mapping[str, bytes]:
    plain = "reject" if tls.required else "scram-sha-256"
    rules = (
        "# Written by NovaStack at every start and change; nothing else is read.\n"
        "local     all all     scram-sha-256\n"
        "hostssl   all all all scram-sha-256\n"
        f"hostnossl all all all {plain}\n"
    )
    return {trust.PAIR: tls.pem, HBA: rules.encode()}


def settings(place: str) -> dict[str, str]:
    """`place` is a path with `{}` for the file's name."""
    pair = place.replace("{}", trust.PAIR)
    return {
        "ssl": "on",
        "ssl_cert_file": pair,
        "ssl_key_file": pair,
        "ssl_min_protocol_version": "TLSv1.2",
        "hba_file": place.replace("{}", HBA),
    }


def peer_certificate(endpoint: Endpoint, *, timeout_seconds: float) -> bytes:
    return trust.shown(endpoint, _ask, timeout_seconds=timeout_seconds)


def _ask(plain: socket.socket) -> None:
    plain.sendall(_SSL_REQUEST)
    answer = plain.recv(1)
    if answer == b"N":
        raise TlsNotTrusted("the server speaks no TLS")
    if answer != b"S":
        raise ServerNotReady("the server does not answer yet")


def accepts_plain(endpoint: Endpoint, *, timeout_seconds: float) -> bool:
    """Who may come in is decided before the password is asked for, and whether or not there is such a role."""
    conninfo = make_conninfo(
        "", host=endpoint.host, port=endpoint.port, dbname="postgres", user="novastack_nobody", password="",
        passfile="/nonexistent/pgpass", sslmode="disable", gssencmode="disable", connect_timeout=max(2, round(timeout_seconds)),
    )  # fmt: skip
    try:
        with contextlib.closing(BoundedConnection.connect(conninfo)):
            return True
    except psycopg.Error as error:
        if _REJECTED.search(str(error)):
            return False
        if _ASKED_FOR_PASSWORD.search(str(error)):
            return True
        raise translate(error) from None
