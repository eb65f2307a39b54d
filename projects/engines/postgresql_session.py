"""Connections to PostgreSQL that end in time and whose errors are ours.

The server speaks English here (`lc_messages` is C and tenants can't change it), which matters because libpq gives no
SQLSTATE for a failed connection: the reason is in the text only.
"""

from __future__ import annotations

import contextlib
import re
import socket
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any, TypeVar, cast

import psycopg
from psycopg.conninfo import make_conninfo

from projects.domain import (
    Credentials,
    Endpoint,
    EngineError,
    LoginRefused,
    ServerBusy,
    ServerNotReady,
    TlsNotTrusted,
)
from projects.engines.trust import ca_file

Row = tuple[Any, ...]
RV = TypeVar("RV")

_REFUSED = re.compile(
    r"password authentication failed|is not permitted to log in|no pg_hba\.conf entry|role .* does not exist"
    r"|permission denied for database|database .* does not exist|authentication failed|is not currently accepting"
    r"|no password supplied|pg_hba\.conf rejects connection",
)
_NOT_TRUSTED = re.compile(
    r"certificate verify failed|does not match host name|server does not support SSL"
    r"|could not get server's host name from server certificate",
)
# The role's own limit is checked after the password, so this one proves the login; the server's is checked before.
_ROLE_FULL = re.compile(r"too many connections for (role|database)")
_SERVER_FULL = re.compile(r"too many clients already|remaining connection slots are reserved")
_STATES = {
    "28P01": LoginRefused,
    "28000": LoginRefused,
    "3D000": LoginRefused,
    "53300": ServerBusy,
    "57P01": ServerNotReady,
    "57P02": ServerNotReady,
    "57P03": ServerNotReady,
}


# What a tenant's own settings on its login do to a statement; the login itself was good.
OWN_LIMITS = frozenset({"57014", "57P05", "25P03", "25P04"})


class RoleFull(ServerBusy):
    """The login was accepted, then refused for its own connection limit."""


class BoundedConnection(psycopg.Connection[Row]):
    """A connection on which nothing waits for ever: a server that is frozen, not dead, accepts and never answers."""

    bound_seconds: float = 15
    pulse: Callable[[], None] | None = None  # called while an answer is awaited; ends the session by raising

    def wait(self, gen: Generator[Any, Any, RV], interval: float = 0.1, timeout: float | None = None) -> RV:
        raised: list[BaseException] = []
        try:
            deadline = time.monotonic() + self.bound_seconds
            return super().wait(_bounded(gen, deadline, self.pulse, raised), interval, timeout)
        except BaseException as error:
            if isinstance(error, ServerNotReady) or error in raised:
                self.pgconn.finish()  # in an unknown state; closing must not wait either
            raise


def _bounded(
    gen: Generator[Any, Any, RV], deadline: float, pulse: Callable[[], None] | None, raised: list[BaseException]
) -> Generator[Any, Any, RV]:
    """The driver's generator, ended when it is still waiting at `deadline` (monotonic seconds), or when `pulse` raises."""
    try:
        wanted = next(gen)
        while True:
            ready = yield wanted
            if not ready and time.monotonic() > deadline:
                gen.close()
                raise ServerNotReady("the server did not answer in time")
            if not ready and pulse is not None:
                try:
                    pulse()
                except BaseException as error:
                    raised.append(error)
                    gen.close()
                    raise
            wanted = gen.send(ready)
    except StopIteration as done:
        return cast(RV, done.value)


def translate(error: psycopg.Error) -> EngineError:
    """Our error for a driver's; its text holds the server's primary message, never a statement or a secret."""
    text = (error.diag.message_primary or "") if error.diag else ""
    if not text:
        text = str(error).strip()
    known = _STATES.get(error.sqlstate or "")
    if known is not None:
        return known(_shortened(text))
    if error.sqlstate is None:
        if _NOT_TRUSTED.search(text):
            return TlsNotTrusted("the server does not show a valid certificate that this install made for it")
        if _ROLE_FULL.search(text):
            return RoleFull("all connections of this login are in use")
        if _SERVER_FULL.search(text):
            return ServerBusy("all connections of the server are in use")
        if _REFUSED.search(text):
            return LoginRefused("the server refused this login")
        return ServerNotReady(_shortened(text))
    return EngineError(_shortened(f"{text} ({error.sqlstate})"))


def _shortened(text: str) -> str:
    return " ".join(text.split())[:300]


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Driver errors leave as ours."""
    try:
        yield
    except psycopg.Error as error:
        raise translate(error) from None


def connect(
    endpoint: Endpoint,
    credentials: Credentials,
    *,
    timeout_seconds: float,
    settings: Mapping[str, str | None] | None = None,
) -> BoundedConnection:
    """A session in autocommit with `search_path = pg_catalog` and time limits of its own: what a tenant set on its role
    or database loses against what the session asks for at login, but for `settings` that are None: there it counts.
    Raises our errors only."""
    milliseconds = int(timeout_seconds * 1000)
    wanted: dict[str, str | None] = {
        "search_path": "pg_catalog",
        "statement_timeout": str(milliseconds),
        "lock_timeout": str(min(milliseconds, 5000)),
        "idle_in_transaction_session_timeout": "60000",
        "idle_session_timeout": "0",
        "local_preload_libraries": "",  # a library that is not there would refuse the login
        "default_transaction_read_only": "off",
        "client_min_messages": "warning",
        **(settings or {}),
    }
    conninfo = make_conninfo(
        "",
        **address(endpoint),
        dbname=credentials.database or "postgres",
        user=credentials.username,
        password=credentials.password,
        connect_timeout=max(2, round(timeout_seconds)),
        gssencmode="disable",
        client_encoding="UTF8",
        application_name="novastack",
        options=" ".join(f"-c {name}={value}" for name, value in wanted.items() if value is not None),
        keepalives_idle=10,
        keepalives_interval=5,
        keepalives_count=3,
    )
    with translated():
        connection = BoundedConnection.connect(conninfo, autocommit=True, prepare_threshold=None)
    connection.bound_seconds = timeout_seconds + 1
    return connection


def address(endpoint: Endpoint) -> dict[str, Any]:
    """Where to connect, and what has to prove itself there. A server has a name of its own in its certificate: that it is
    one of this install's at this address is not enough, it must be this one."""
    if not endpoint.ca_pem:
        return {"host": endpoint.host, "port": endpoint.port, "sslmode": "prefer"}
    trusted = {"port": endpoint.port, "sslmode": "verify-full", "sslrootcert": ca_file(endpoint.ca_pem)}
    if not endpoint.tls_name or endpoint.tls_name == endpoint.host:
        return {"host": endpoint.host, **trusted}
    found = addresses(endpoint)
    return {"host": ",".join([endpoint.tls_name] * len(found)), "hostaddr": ",".join(found), **trusted}


def addresses(endpoint: Endpoint) -> list[str]:
    """The endpoint's IP addresses; `ServerNotReady` when its name leads nowhere."""
    try:
        found = socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ServerNotReady(f"the name {endpoint.host} can't be resolved: {error.strerror}") from None
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))
