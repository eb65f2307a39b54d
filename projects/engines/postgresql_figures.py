"""What a PostgreSQL server says of its databases: sizes, sessions, counters, tables. Also as the control role, which sees no
row (rule 18)."""

from __future__ import annotations

from collections.abc import Sequence

from psycopg import sql

from projects.domain import (
    Counters,
    Credentials,
    Endpoint,
    EngineError,
    ServerNotReady,
    ServerStats,
    TableCount,
    TableCounts,
)
from projects.engines.admin import BLANK_PREFIX, TABLES_MOST, TABLES_SECONDS, EngineAdmin
from projects.engines.postgresql_session import BoundedConnection, Row, translated

# The fence on a database: the mode of its new sessions, and a mark that says it is ours (`SHOW novastack.write_fence`).
READ_ONLY, FENCE_MARK = "default_transaction_read_only", "novastack.write_fence"
TEMPLATE = f"{BLANK_PREFIX}template"  # of a pool's databases; ours, as `template0` is the product's
_NOT_OURS = f"datname NOT IN ('postgres', 'template0', 'template1', '{TEMPLATE}')"
# Ordinary tables and materialized views; of partitions each one. Nothing here but catalogs and their own functions.
_TABLES = """FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'm') AND c.relpersistence <> 't' AND n.nspname <> 'information_schema'
   AND n.nspname !~ '^pg_'"""
_COUNTS = f"""
WITH largest AS (
    SELECT c.oid, n.nspname, c.relname, c.reltuples, c.relpages, c.reltoastrelid {_TABLES}
     ORDER BY c.relpages DESC, pg_stat_get_live_tuples(c.oid) DESC, c.oid LIMIT %(limit)s
)
SELECT CASE WHEN nspname = 'public' THEN relname::text ELSE nspname || '.' || relname END,
       CASE WHEN pg_stat_get_live_tuples(oid) > 0 OR pg_stat_get_tuples_inserted(oid) > 0
                 THEN pg_stat_get_live_tuples(oid)
            WHEN reltuples >= 0 THEN reltuples::bigint END,
       {{size}}
  FROM largest
"""  # noqa: S608 - our own words only
_MEASURED = "coalesce(pg_total_relation_size(oid), 0)"  # waits for whoever holds the table for himself
_GUESSED = """(relpages + coalesce((SELECT sum(i.relpages) FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid
    WHERE x.indrelid = largest.oid), 0) + coalesce((SELECT t.relpages FROM pg_class t WHERE t.oid = reltoastrelid), 0))
    * current_setting('block_size')::bigint"""


class PostgreSQLFigures(EngineAdmin):
    def __init__(self, connection: BoundedConnection, endpoint: Endpoint, credentials: Credentials) -> None:
        self._connection = connection
        self._endpoint = endpoint
        self._credentials = credentials

    def databases(self) -> list[str]:
        rows = self._rows(f"SELECT datname FROM pg_database WHERE {_NOT_OURS}")  # noqa: S608 - our own words
        return sorted(str(row[0]) for row in rows)

    def database_sizes(self) -> dict[str, int]:
        rows = self._rows(f"SELECT datname, pg_database_size(oid) FROM pg_database WHERE {_NOT_OURS}")  # noqa: S608
        return {str(name): int(size or 0) for name, size in rows}

    def locked_logins(self) -> set[str]:
        return {str(row[0]) for row in self._rows("SELECT rolname FROM pg_roles WHERE NOT rolcanlogin")}

    def stats(self, database: str) -> ServerStats:
        # Logins of a tenant: members of a role that can't log in itself and was granted CONNECT. Whose session it is can be
        # seen by everybody, what kind of session only by a superuser: so this works for the control role too.
        row = self._rows(
            """
            WITH logins AS (
                SELECT l.oid, l.rolconnlimit
                  FROM pg_database d, aclexplode(d.datacl) x
                  JOIN pg_roles g ON g.oid = x.grantee AND NOT g.rolcanlogin
                  JOIN pg_auth_members m ON m.roleid = g.oid
                  JOIN pg_roles l ON l.oid = m.member AND NOT l.rolsuper
                 WHERE d.datname = %(database)s AND x.privilege_type = 'CONNECT' AND g.oid <> d.datdba
            )
            SELECT pg_database_size(d.oid),
                   (SELECT count(*) FROM pg_stat_activity a
                     WHERE a.datid = d.oid AND a.usesysid IN (SELECT oid FROM logins)),
                   (SELECT CASE WHEN bool_or(rolconnlimit < 0) THEN NULL ELSE sum(rolconnlimit) END FROM logins),
                   current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int,
                   split_part(current_setting('server_version'), ' ', 1),
                   EXISTS (SELECT FROM pg_db_role_setting s WHERE s.setdatabase = d.oid AND s.setrole = 0
                              AND s.setconfig @> %(fence)s::text[]),
                   s.xact_commit + s.xact_rollback, s.blks_hit, s.blks_read,
                   extract(epoch FROM clock_timestamp() - s.stats_reset)::float
              FROM pg_database d LEFT JOIN pg_stat_database s ON s.datid = d.oid WHERE d.datname = %(database)s
            """,
            database=database,
            fence=[f"{READ_ONLY}=on", f"{FENCE_MARK}=on"],
        )
        if not row:
            raise EngineError("the database does not exist")
        size, connections, limit, server_limit, version, fenced, transactions, hits, misses, counted = row[0]
        counters = Counters(int(transactions), cache_hits=int(hits), cache_misses=int(misses), uptime_seconds=counted)
        return ServerStats(
            int(size), int(connections), int(limit or server_limit), str(version), bool(fenced), counters
        )

    def table_counts(self, database: str, *, limit: int = TABLES_MOST) -> TableCounts:
        """Of the database of this session. Rows: what the statistics count, else what the last ANALYZE found. Sizes: those
        of the files, or while somebody holds a table for himself (ALTER, VACUUM FULL) of the last ANALYZE, for all."""
        if self._connection.info.dbname != database:
            raise EngineError("the session is in another database")
        with translated(), self._connection.transaction():
            self._do(f"SET LOCAL statement_timeout = {int(TABLES_SECONDS * 900)}")
            total = self._value(f"SELECT count(*) {_TABLES}")
        found: Sequence[Row] = ()
        for measured, seconds in ((_MEASURED, TABLES_SECONDS / 4), (_GUESSED, TABLES_SECONDS / 4)):
            try:
                with translated(), self._connection.transaction():
                    self._do(f"SET LOCAL lock_timeout = 50; SET LOCAL statement_timeout = {int(seconds * 1000)}")
                    found = self._rows(_COUNTS.format(size=measured), limit=limit)
                break
            except ServerNotReady:
                raise
            except EngineError:
                if measured is _GUESSED:
                    raise
        tables = [TableCount(str(name), None if rows is None else int(rows), int(size)) for name, rows, size in found]
        return TableCounts(tuple(sorted(tables, key=lambda t: t.size_bytes or 0, reverse=True)), int(str(total)))

    # --- parts --------------------------------------------------------------------------------------------------------
    def _do(self, statement: str, *parts: str | int | sql.Literal) -> None:
        """Run a statement. Strings become identifiers; numbers, and what comes right after `=`, literals."""
        filled: list[sql.Composable] = []
        for position, part in enumerate(parts):
            before = statement.split("{}")[position].rstrip()
            if isinstance(part, sql.Literal):
                filled.append(part)
            elif isinstance(part, int):
                filled.append(sql.SQL(str(part)))  # type: ignore[arg-type]
            elif before.endswith("="):
                filled.append(sql.Literal(part))
            else:
                filled.append(sql.Identifier(part))
        with translated():
            self._connection.execute(sql.SQL(statement).format(*filled))  # type: ignore[arg-type]

    def _rows(self, query: str, *parameters: object, **named: object) -> Sequence[Row]:
        with translated():
            return self._connection.execute(query, named or parameters).fetchall()  # type: ignore[arg-type]

    def _value(self, query: str, *parameters: object) -> object | None:
        rows = self._rows(query, *parameters)
        return rows[0][0] if rows else None
