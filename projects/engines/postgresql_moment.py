"""A moment of a PostgreSQL database: one transaction whose snapshot pg_dump takes over, and what that transaction sees.

TRUNCATE and rewrites by ALTER TABLE are not held back by snapshots. So reading begins when pg_dump has locked all tables
against them (it has, once its table of contents comes), and with the same locks; a table that was emptied or rewritten
between the snapshot and pg_dump's locks is found out, and the dump begun again. So is a definition that was changed then:
the server spells it from its newest catalog, for pg_dump as for us, so it is read before and after pg_dump has read it.
Starting a tool takes a container a second: it is started before, and waits for the snapshot's name.
Sequences are in no snapshot: their values are those that pg_dump wrote.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

import psycopg
from psycopg import sql

from projects.domain import Command, Credentials, Endpoint, EngineError, Fingerprint, SourceChanged
from projects.engines import postgresql_copy, postgresql_fingerprint, postgresql_texts, zipping
from projects.engines.moments import Moment
from projects.engines.postgresql_archive import Head, sequence_values
from projects.engines.postgresql_session import BoundedConnection, translated

# `sh -c NAMED sh pg_dump argument …`: with the snapshot that a line on standard input names.
NAMED = 'IFS= read -r snapshot || exit 75; exec "$@" --snapshot="$snapshot"'
_LOCKED_AT_ONCE = 200
_LOCK_SECONDS = 60
_WAIT_SECONDS = 0.2
_TAKEN = "55P03"
# What asking for a definition gives when something of it was dropped since the snapshot, or is being changed.
_GONE = frozenset({_TAKEN, "XX000", "42P01", "42704", "42703", "42883"})
_LOCKABLE = """
SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'
   AND has_table_privilege(c.oid, 'SELECT') AND has_schema_privilege(n.oid, 'USAGE')
 ORDER BY 1, 2
"""
# The snapshot's catalog against the file that the table has now.
_REWRITTEN = """
SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind = 'r' AND c.relpersistence <> 't' AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'
   AND pg_relation_filenode(c.oid) IS DISTINCT FROM c.relfilenode
 ORDER BY 1 LIMIT 1
"""
_NOTES = (
    (
        "SELECT count(*) FROM pg_class WHERE relkind = 'm' AND relispopulated",
        "The contents of {} materialized views are not in the dump: a restore computes them anew.",
    ),
    (
        """SELECT string_agg(format('%s %s', x.extname, x.extversion), ', ' ORDER BY x.extname)
             FROM pg_extension x JOIN pg_available_extensions a ON a.name = x.extname
            WHERE x.oid >= 16384 AND x.extversion <> a.default_version""",
        "A restore installs extensions in the server's default version, which is another one of: {}.",
    ),
    (
        "SELECT count(*) FROM pg_class WHERE relkind = 'f'",
        "The rows of {} foreign tables are elsewhere: not in the dump.",
    ),
    (
        "SELECT count(*) FROM pg_index i JOIN pg_class t ON t.oid = i.indrelid"  # noqa: S608 - our own words
        " WHERE t.relpersistence <> 't'"
        f" AND NOT ({postgresql_texts.DUMPED_INDEX})",
        "{} invalid indexes (a CREATE INDEX CONCURRENTLY that failed or still runs) are not in the dump.",
    ),
)
_OUTSIDE = (
    "Not compared: planner statistics; the contents of materialized views; what belongs to extensions besides their tables;"
    " options of user mappings; and of definitions casts, parentheses and aliases, which a restore may spell otherwise."
)


class PostgreSQLMoment(Moment):
    """`connection`: a prepared session of the dump's own login."""

    def __init__(self, command: Command, connection: BoundedConnection) -> None:
        self.command, self._connection = command, connection
        self._sequences = dict[tuple[str, str], str]()
        self._texts = dict[tuple[str, str], str]()
        self._head = Head(lambda kind: kind == "SEQUENCE SET")
        self._known = threading.Event()

    def begin(self) -> bytes:
        with translated():
            self._texts = _texts(self._connection)  # by itself: no lock of it is held when pg_dump wants its own
            self._connection.execute("BEGIN")
            row = self._connection.execute("SELECT pg_export_snapshot()").fetchone()
        assert row is not None  # noqa: S101 - a function's row
        return f"{row[0]}\n".encode()

    def hear(self, piece: bytes) -> None:
        self._head.feed(piece)
        if self._head.entries is not None and not self._known.is_set():
            self.tool = f"pg_dump {self._head.made_by}"
            self._known.set()

    def heard_all(self) -> None:
        self._known.set()

    def contents(self, pulse: Callable[[], None]) -> Fingerprint:
        with translated():
            self.notes = _notes(self._connection)
            self._sequences = postgresql_fingerprint.sequences(self._connection)
        while not self._known.wait(_WAIT_SECONDS):
            pulse()
        if self._head.entries is None:
            raise EngineError("the dump ended before its table of contents")
        self._connection.pulse = pulse
        with translated():
            _lock(self._connection)
            texts = _texts(self._connection)
            for (kind, name), text in texts.items():
                if self._texts.get((kind, name), text) != text:
                    raise SourceChanged(f"the {kind} {name} was changed while the dump began")
            found = postgresql_fingerprint.contents(self._connection, pulse, sequences=False, texts=texts)
        return Fingerprint(found.tables, {**found.facts, **self._values()})

    def _values(self) -> dict[tuple[str, str], str]:
        told = sequence_values(self._head.entries or [])
        missing = self._sequences.keys() - told.keys()
        if missing:
            raise EngineError(
                f"the dump does not say the value of {len(missing)} sequences, {min(missing)[1]} among them"
            )
        return dict(
            postgresql_fingerprint.sequence_fact(self._sequences[name], *value)
            for name, value in told.items() if name in self._sequences
        )  # fmt: skip


@contextlib.contextmanager
def held(
    endpoint: Endpoint, place: Endpoint, credentials: Credentials, *, compress: bool
) -> Iterator[PostgreSQLMoment]:
    """The moment is over when this is left."""
    connection = postgresql_copy.inside(endpoint, credentials)
    try:
        with translated():
            if connection.info.server_version >= 170000:
                connection.execute("SET transaction_timeout = 0")
            postgresql_fingerprint.prepare(connection)
        command = postgresql_copy.dump(place, credentials)
        argv = ("sh", "-c", NAMED, "novastack-dump", *command.argv, f"--lock-wait-timeout={_LOCK_SECONDS}s")
        if compress:
            argv = zipping.zipped(*argv)
        yield PostgreSQLMoment(replace(command, argv=argv), connection)
    finally:
        connection.pulse = None
        connection.pgconn.finish()


def _lock(connection: BoundedConnection) -> None:
    """Against changes of their shape, for the rest of the transaction. Nobody is waited for: who waits for pg_dump's locks
    would be behind us, or change the table as soon as pg_dump has ended."""
    tables = _tables(connection)
    for first in range(0, len(tables), _LOCKED_AT_ONCE):
        names = [sql.Identifier(*table) for table in tables[first : first + _LOCKED_AT_ONCE]]
        statement = sql.SQL("LOCK TABLE ONLY {} IN ACCESS SHARE MODE NOWAIT").format(sql.SQL(", ONLY ").join(names))
        try:
            connection.execute(statement)
        except psycopg.Error as error:
            if error.sqlstate != _TAKEN:
                raise
            raise SourceChanged("somebody changes tables while the dump begins") from None
    # From here on nothing is truncated or rewritten. What was so since the snapshot would look empty to it.
    if (row := connection.execute(_REWRITTEN).fetchone()) is not None:
        raise SourceChanged(f"the table {row[0]} was truncated or rewritten while the dump began")


def _texts(connection: BoundedConnection) -> dict[tuple[str, str], str]:
    try:
        return postgresql_texts.told(connection)
    except psycopg.Error as error:
        if error.sqlstate not in _GONE:
            raise
        raise SourceChanged("somebody changes the database's objects while the dump begins") from None


def _tables(connection: BoundedConnection) -> list[tuple[str, str]]:
    return [(str(schema), str(name)) for schema, name in connection.execute(_LOCKABLE).fetchall()]


def _notes(connection: BoundedConnection) -> tuple[str, ...]:
    found = [_OUTSIDE]
    for query, text in _NOTES:
        row = connection.execute(query).fetchone()  # type: ignore[call-overload]
        if row and row[0]:
            found.append(text.format(str(row[0])[:300]))
    return tuple(found)
