"""A tenant's own question to a MariaDB or MySQL database: one query, read-only, of which one cell comes back."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import pymysql
from pymysql.cursors import SSCursor

from projects.domain import Credentials, Endpoint, EngineError, ServerNotReady
from projects.engines.mysql_session import Session, connect, translated

MOST_CHARACTERS = 1000
CONNECT_SECONDS = 10.0


def first_cell(endpoint: Endpoint, credentials: Credentials, query: str, *, timeout_seconds: float) -> str | None:
    """As `Engine.first_cell`. One row is read, and the connection closed on whatever else would come."""
    query = query.strip().rstrip(";").rstrip()
    began = time.monotonic()
    with connect(endpoint, credentials, timeout_seconds=CONNECT_SECONDS) as session:
        limit = f"max_statement_time = {timeout_seconds}" if session.is_mariadb else (
            f"max_execution_time = {int(timeout_seconds * 1000)}"
        )  # fmt: skip
        # The tenant's own mode, not ours: this is its query.
        session.do(f"SET SESSION {limit}, lock_wait_timeout = {max(1, int(timeout_seconds))}, sql_mode = DEFAULT")
        session.do("SET SESSION TRANSACTION READ ONLY")
        number = session.value("SELECT CONNECTION_ID()")
        session.bound(timeout_seconds + 5)
        try:
            row = _first_row(session, query)
        except ServerNotReady:
            if time.monotonic() - began < timeout_seconds:
                raise
            with contextlib.suppress(EngineError), connect(endpoint, credentials, timeout_seconds=5) as another:
                another.do(f"KILL {int(number)}")
            raise EngineError(f"it took longer than {timeout_seconds:g} s") from None
    return None if row is None or row[0] is None else _text(row[0])


def _first_row(session: Session, query: str) -> tuple[Any, ...] | None:
    driver: Any = session._connection
    driver.decoders = {}  # values as the server spells them
    with translated():
        cursor = SSCursor(driver)
        try:
            cursor.execute(query)
            if cursor.description is None:
                raise EngineError("it is no query")
            found: tuple[Any, ...] | None = cursor.fetchone()
            return found
        except UnicodeError:
            raise EngineError("its answer is no text") from None
        finally:
            result, driver._result = driver._result, None
            if result is not None:
                result.unbuffered_active = False
            cursor.connection = None  # type: ignore[assignment]
            with contextlib.suppress(pymysql.MySQLError, OSError):
                driver._force_close()


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        try:
            plain = value[: 4 * MOST_CHARACTERS].decode()
        except UnicodeDecodeError:
            plain = ""
        value = plain if plain.isprintable() and (plain or not value) else f"0x{value[:MOST_CHARACTERS].hex()}"
    return str(value)[:MOST_CHARACTERS]
