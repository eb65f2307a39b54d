"""Connections to MariaDB and MySQL that end in time and whose errors are ours."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pymysql
from pymysql.connections import Connection
from pymysql.constants import COMMAND

from projects.domain import (
    Credentials,
    Endpoint,
    EngineError,
    LoginRefused,
    ServerBusy,
    ServerNotReady,
    TlsNotTrusted,
)
from projects.engines import trust

Row = tuple[Any, ...]
ANYWHERE = "%"  # the host of every account: names are not resolved, and who may reach the port is the network's matter

# https://dev.mysql.com/doc/mysql-errors/9.7/en/server-error-reference.html, https://mariadb.com/kb/en/mariadb-error-codes/
_REFUSED = {
    1044,  # no right to this database
    1045,  # wrong name or password
    1049,  # no such database
    1130,  # no account for this client's address
    1251,  # the account's way to log in is not ours
    1524,
    1698,
    1820,  # the password has expired
    1862,
    3118,  # locked (MySQL)
    3159,  # refused without TLS
    3955,
    4151,  # locked (MariaDB)
    4161,
    4165,
}
_SERVER_FULL = {1040}  # asked before the password is checked
_LOGIN_FULL = {1203, 1226}  # the account's own limits are checked after the password: the login was good
_AWAY = {1053, 1077, 1079, 1080, 1152, 1158, 1159, 1160, 1161, 1927, 2002, 2003, 2006, 2013, 2055, 3169, 4031}
_NO_TLS = {2026}
_PULSE_SECONDS = 0.2
_SYNTAX = {1064, 1149}  # their texts quote the statement


class LoginFull(ServerBusy):
    """The login was accepted, then refused for its own connection limit."""


def translate(error: pymysql.MySQLError) -> EngineError:
    """Our error for a driver's; its text holds the server's message, never a statement or a secret."""
    code = error.args[0] if error.args and isinstance(error.args[0], int) else 0
    text = " ".join(str(error.args[1] if len(error.args) > 1 else error).split())[:300]
    if code in _NO_TLS or isinstance(getattr(error, "original_exception", None), ssl.SSLCertVerificationError):
        return TlsNotTrusted("the server does not show a valid certificate that this install made for it")
    if code in _REFUSED:
        return LoginRefused("the server refused this login")
    if code in _LOGIN_FULL:
        return LoginFull("all connections of this login are in use")
    if code in _SERVER_FULL:
        return ServerBusy("all connections of the server are in use")
    if code in _AWAY or code == 0:
        return ServerNotReady(text or "the connection was lost")
    if code in _SYNTAX:
        return EngineError(f"the server did not understand a statement ({code})")
    return EngineError(f"{text} ({code})")


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Driver errors leave as ours."""
    try:
        yield
    except pymysql.MySQLError as error:
        raise translate(error) from None
    except (OSError, struct.error, IndexError) as error:
        # Whoever answered did not speak the protocol, or stopped in the middle of a word.
        raise ServerNotReady(f"the server did not answer in time: {type(error).__name__}") from None


class Session:
    """One connection in autocommit. Raises our errors only; values go in by `%s`, names by `name()`."""

    def __init__(self, connection: Connection[Any]) -> None:
        self._connection = connection

    @property
    def is_mariadb(self) -> bool:
        return "mariadb" in self.server_version.lower()

    @property
    def server_version(self) -> str:
        """As the server says, e.g. `10.11.19-MariaDB-0+deb12u1`."""
        return str(self._connection.get_server_info())  # type: ignore[no-untyped-call]

    def do(self, statement: str, *parameters: object) -> int:
        """Run a statement; how many rows it touched."""
        with translated(), self._connection.cursor() as cursor:
            return int(cursor.execute(statement, parameters or None))

    def rows(self, query: str, *parameters: object) -> Sequence[Row]:
        with translated(), self._connection.cursor() as cursor:
            cursor.execute(query, parameters or None)
            return tuple(cursor.fetchall())

    def value(self, query: str, *parameters: object) -> Any:
        """The first column of the first row; None if there is none."""
        found = self.rows(query, *parameters)
        return found[0][0] if found else None

    def ask(self, query: str, pulse: Callable[[], None]) -> Sequence[Row]:
        """Rows of a query that may take as long as it likes; `pulse` is called several times a second and ends the waiting
        by raising. Afterwards this session is of no use. The query goes as it is: without parameters, `%` is `%`."""
        driver: Any = self._connection
        pulse()
        with translated():
            driver._execute_command(COMMAND.COM_QUERY, query.encode())
            plain = driver._sock
            while not (getattr(plain, "pending", int)() or select.select([plain], [], [], _PULSE_SECONDS)[0]):
                pulse()
            driver._affected_rows = driver._read_query_result()
            return tuple(driver._result.rows or ())
        raise AssertionError  # `translated` raises

    def quoted(self, value: str) -> str:
        """A string literal, for `ask`."""
        return str(self._connection.escape(value))  # type: ignore[no-untyped-call]

    def bound(self, seconds: float) -> None:
        """How long a single answer may take from here on."""
        # Public only as an argument of the constructor; it is read anew at each answer.
        self._connection._read_timeout = seconds  # type: ignore[attr-defined]

    def short(self, seconds: float) -> None:
        """From here on nothing waits for a lock, and a statement ends after that time."""
        limit = f"max_statement_time = {seconds}" if self.is_mariadb else f"max_execution_time = {int(seconds * 1000)}"
        self.do(f"SET SESSION {limit}, lock_wait_timeout = 1")

    def close(self) -> None:
        with contextlib.suppress(pymysql.MySQLError, OSError):
            self._connection.close()


def name(value: str) -> str:
    """An identifier, quoted; `%` doubled for the driver."""
    return "`" + value.replace("`", "``").replace("%", "%%") + "`"


def pattern(database: str) -> str:
    """A database's name as GRANT wants it: there `_` and `%` are wildcards."""
    return database.replace("\\", "\\\\").replace("_", "\\_").replace("%", "\\%")


@contextlib.contextmanager
def connect(
    endpoint: Endpoint, credentials: Credentials, *, timeout_seconds: float, encrypted: bool = True
) -> Iterator[Session]:
    """A session with time limits of its own. Nothing waits for ever: a server that is frozen, not dead, accepts and
    never answers. Without `encrypted` it has no TLS even where the server offers it."""
    trusted = trust.context(endpoint.ca_pem) if endpoint.ca_pem else None
    with translated():
        connection = pymysql.connect(
            host=endpoint.tls_name or endpoint.host,  # whom the certificate has to be for
            port=endpoint.port,
            user=credentials.username,
            password=credentials.password,
            database=credentials.database or None,
            connect_timeout=max(1, round(timeout_seconds)),
            read_timeout=timeout_seconds,
            write_timeout=timeout_seconds,
            charset="utf8mb4",
            autocommit=True,
            local_infile=False,
            program_name="novastack",
            ssl=trusted,
            ssl_disabled=not encrypted,
            defer_connect=True,
        )
        plain = socket.create_connection((endpoint.host, endpoint.port), timeout_seconds)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        connection.connect(plain)  # type: ignore[no-untyped-call]
    session = Session(connection)
    try:
        limit = max(1, int(timeout_seconds))
        session.do("SET SESSION sql_mode = 'STRICT_ALL_TABLES', lock_wait_timeout = 5, wait_timeout = 60")
        if session.is_mariadb:
            session.do(f"SET SESSION max_statement_time = {limit}")
        else:
            # sizes as they are, not as they were a day ago
            session.do(f"SET SESSION max_execution_time = {limit * 1000}, information_schema_stats_expiry = 0")
        yield session
    finally:
        session.close()
