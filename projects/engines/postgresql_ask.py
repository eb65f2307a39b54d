"""A tenant's own question to a PostgreSQL database: one query, read-only, of which one cell comes back."""

from __future__ import annotations

from projects.domain import Credentials, Endpoint
from projects.engines.postgresql_session import connect, translated

MOST_CHARACTERS = 1000
CONNECT_SECONDS = 10.0


def first_cell(endpoint: Endpoint, credentials: Credentials, query: str, *, timeout_seconds: float) -> str | None:
    """As `Engine.first_cell`. The cell is cut in the server, so that a large one does not come here."""
    query = query.strip().rstrip(";").rstrip()
    limits = {"statement_timeout": str(int(timeout_seconds * 1000)), "default_transaction_read_only": "on"}
    # The tenant's own search path, not ours: this is its query.
    with connect(
        endpoint, credentials, timeout_seconds=CONNECT_SECONDS, settings={**limits, "search_path": None}
    ) as connection:
        connection.bound_seconds = timeout_seconds + 5
        with translated(), connection.transaction():
            # Prepared, so one statement; and a query by itself, so that within brackets it is the same one.
            declared = f"DECLARE nvs_question NO SCROLL CURSOR FOR {query}\n"
            connection.execute(declared, prepare=True)  # type: ignore[arg-type]
            connection.execute("CLOSE nvs_question")
            wrapped = f"SELECT left(q.c::text, {MOST_CHARACTERS}) FROM (\n{query}\n) AS q (c) LIMIT 1"  # noqa: S608
            row = connection.execute(wrapped, prepare=True).fetchone()  # type: ignore[call-overload]
    return None if row is None or row[0] is None else str(row[0])
