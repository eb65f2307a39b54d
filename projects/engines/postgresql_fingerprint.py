"""What a PostgreSQL database holds, read so that two copies can be compared exactly.

Rows are hashed in the server, by value or through their types' output functions (`postgresql_rows`); the sum over a table
does not depend on the order of rows. No cast, operator, view or function of the tenant's takes part (rule 18), and nothing
is an estimate. Definitions (views, defaults, checks, policies, indexes, triggers …) are told as `postgresql_texts` has them.

Not compared: statistics, the contents of materialized views (a restore makes them anew; whether they are filled is
compared), objects that belong to extensions, and the options of user mappings.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence
from typing import Any

from psycopg import sql

from projects.domain import Credentials, Endpoint, Fingerprint, TableContent
from projects.engines import postgresql_texts
from projects.engines.postgresql_copy import inside
from projects.engines.postgresql_rows import Column, hashed
from projects.engines.postgresql_session import BoundedConnection, translated
from projects.engines.postgresql_texts import (
    CONSTRAINT_NAME,
    DUMPED_INDEX,
    UNDUMPED_CONSTRAINTS,
    UNDUMPED_INDEXES,
    described,
    member,
)

_LO_PIECE = 1 << 20
_READ_AT_ONCE = 50  # tables, or sequences
_OURS = "n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'"
_FORMATS = (
    "SET datestyle = 'ISO, YMD'; SET intervalstyle = 'postgres'; SET timezone = 'UTC'; SET extra_float_digits = 3;"
    " SET bytea_output = 'hex'; SET jit = off; SET lc_monetary = 'C'; SET xmlbinary = 'base64'; SET row_security = off;"
    " SET quote_all_identifiers = off; SET standard_conforming_strings = on"
)
_TABLES = f"""
SELECT n.nspname, c.relname, format('%I.%I', n.nspname, c.relname),
       (SELECT array_agg(a.attname::text ORDER BY a.attname) FROM pg_attribute a
         WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped),
       (SELECT array_agg(a.atttypid::int8 ORDER BY a.attname) FROM pg_attribute a
         WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped),
       (SELECT array_agg(a.attnotnull ORDER BY a.attname) FROM pg_attribute a
         WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped)
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind = 'r' AND c.relpersistence <> 't' AND {_OURS}
 ORDER BY 1, 2
"""
_SEQUENCES = f"""
SELECT n.nspname, c.relname, format('%I.%I', n.nspname, c.relname)
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind = 'S' AND c.relpersistence <> 't' AND {_OURS}
 ORDER BY 1, 2
"""


def _rights(acl: str, kind: str, owner: str) -> str:
    return (
        f"(SELECT string_agg(x::text, ' ' ORDER BY x::text COLLATE \"C\") FROM"
        f" unnest(coalesce({acl}, acldefault('{kind}', {owner}))) x)"
    )


_PRESENT = [
    "pg_cast",
    "pg_operator",
    "pg_opclass",
    "pg_opfamily",
    "pg_collation",
    "pg_conversion",
    "pg_ts_config",
    "pg_ts_dict",
    "pg_ts_parser",
    "pg_ts_template",
    "pg_language",
    "pg_foreign_data_wrapper",
    "pg_foreign_server",
    "pg_statistic_ext",
    "pg_rewrite",
    "pg_event_trigger",
    "pg_transform",
    "pg_am",
    "pg_amop",
    "pg_amproc",
]

# ruff: noqa: S608 - our own words only; each gives (kind, name, state)
_FACTS = [
    f"""SELECT 'schema', quote_ident(n.nspname), concat_ws('|', pg_get_userbyid(n.nspowner),
               {_rights("n.nspacl", "n", "n.nspowner")})
          FROM pg_namespace n WHERE {_OURS} AND NOT {member("pg_namespace", "n.oid")}""",
    f"""SELECT CASE c.relkind WHEN 'r' THEN 'table' WHEN 'p' THEN 'table' WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialized view'
                    WHEN 'S' THEN 'sequence' WHEN 'f' THEN 'foreign table' ELSE 'type' END,
               format('%I.%I', n.nspname, c.relname),
               concat_ws('|', c.relkind, pg_get_userbyid(c.relowner),
                  {_rights("c.relacl", "r", "c.relowner")}, c.relpersistence, c.relrowsecurity, c.relforcerowsecurity,
                  c.relispopulated, c.relreplident, c.reloptions::text, pg_get_expr(c.relpartbound, c.oid),
                  (SELECT amname FROM pg_am WHERE oid = c.relam AND c.relkind <> 'S'),
                  (SELECT string_agg(format('%I.%I', pn.nspname, p.relname), ',' ORDER BY i.inhseqno) FROM pg_inherits i
                     JOIN pg_class p ON p.oid = i.inhparent JOIN pg_namespace pn ON pn.oid = p.relnamespace
                    WHERE i.inhrelid = c.oid))
          FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f', 'c') AND c.relpersistence <> 't' AND {_OURS}
           AND NOT {member("pg_class", "c.oid")}""",
    f"""SELECT 'column', format('%I.%I.%I', n.nspname, c.relname, a.attname),
               concat_ws('|', format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity, a.attgenerated,
                  a.atthasdef, a.attstorage, a.attcompression,
                  (SELECT collname FROM pg_collation WHERE oid = a.attcollation),
                  -- 15.20 keeps a mark of its own there, which pg_dump leaves out
                  (SELECT string_agg(o, ',' ORDER BY o) FROM unnest(a.attoptions) o WHERE NOT starts_with(o, 'pg_attver=')),
                  CASE WHEN a.attacl IS NULL OR a.attacl = '{{}}' THEN '' ELSE {_rights("a.attacl", "c", "c.relowner")} END)
          FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE a.attnum > 0 AND NOT a.attisdropped AND c.relkind IN ('r', 'p', 'v', 'm', 'f', 'c')
           AND c.relpersistence <> 't' AND {_OURS} AND NOT {member("pg_class", "c.oid")}""",
    f"""SELECT 'index', format('%I.%I', n.nspname, c.relname),
               concat_ws('|', t.relname, i.indisunique, i.indisprimary, i.indisexclusion,
                  i.indisclustered, i.indisreplident, i.indnatts, i.indnkeyatts, i.indpred IS NULL, m.amname,
                  (SELECT string_agg(k::text, ',' ORDER BY o) FROM unnest(i.indoption) WITH ORDINALITY AS x(k, o)),
                  (SELECT string_agg(coalesce(quote_ident(a.attname), '()'), ',' ORDER BY o)
                     FROM unnest(i.indkey) WITH ORDINALITY AS x(k, o)
                     LEFT JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k),
                  c.reloptions::text)
          FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_class t ON t.oid = i.indrelid
          JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_am m ON m.oid = c.relam
         WHERE t.relpersistence <> 't' AND {DUMPED_INDEX} AND {_OURS} AND NOT {member("pg_class", "c.oid")}
           AND NOT {member("pg_class", "t.oid")}""",
    f"""SELECT 'constraint', format('%I.%s.%I', n.nspname, coalesce(quote_ident(t.relname), y.typname),
                  {CONSTRAINT_NAME}),
               concat_ws('|', k.contype, k.condeferrable, k.condeferred, k.convalidated, k.confupdtype, k.confdeltype,
                  k.confmatchtype,
                  -- of a partition's key it says whether the partition was attached later, as pg_dump does
                  CASE WHEN k.contype IN ('c', 'n') THEN k.connoinherit END, r.relname)
          FROM pg_constraint k JOIN pg_namespace n ON n.oid = k.connamespace LEFT JOIN pg_class t ON t.oid = k.conrelid
          LEFT JOIN pg_type y ON y.oid = k.contypid LEFT JOIN pg_class r ON r.oid = k.confrelid
         WHERE {_OURS} AND k.oid NOT IN ({UNDUMPED_CONSTRAINTS})
           AND NOT {member("pg_class", "k.conrelid")} AND NOT {member("pg_type", "k.contypid")}""",
    f"""SELECT 'trigger', format('%I.%I.%I', n.nspname, c.relname, g.tgname),
               concat_ws('|', g.tgenabled, g.tgtype, g.tgdeferrable, g.tginitdeferred, p.proname, encode(g.tgargs, 'hex'))
          FROM pg_trigger g JOIN pg_class c ON c.oid = g.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace
          JOIN pg_proc p ON p.oid = g.tgfoid WHERE NOT g.tgisinternal AND {_OURS}""",
    f"""SELECT 'routine', format('%I.%I(%s)', n.nspname, p.proname, pg_get_function_identity_arguments(p.oid)),
               concat_ws('|', p.prokind, pg_get_userbyid(p.proowner), {_rights("p.proacl", "f", "p.proowner")}, l.lanname,
                  md5(p.prosrc), p.prosecdef, p.proleakproof, p.proisstrict, p.proretset, p.provolatile, p.proparallel,
                  p.procost, p.prorows, format_type(p.prorettype, NULL), p.proconfig::text)
          FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace JOIN pg_language l ON l.oid = p.prolang
         WHERE {_OURS} AND NOT {member("pg_proc", "p.oid")}""",
    f"""SELECT 'policy', format('%I.%I.%I', n.nspname, c.relname, p.polname),
               concat_ws('|', p.polcmd, p.polpermissive, p.polqual IS NULL, p.polwithcheck IS NULL,
                  (SELECT string_agg(role, ',' ORDER BY role COLLATE "C") FROM (SELECT CASE x WHEN 0 THEN 'PUBLIC'
                     ELSE quote_ident(pg_get_userbyid(x)) END AS role FROM unnest(p.polroles) x) roles))
          FROM pg_policy p JOIN pg_class c ON c.oid = p.polrelid JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE {_OURS}""",
    f"""SELECT 'type', format('%I.%I', n.nspname, t.typname),
               concat_ws('|', t.typtype, pg_get_userbyid(t.typowner), {_rights("t.typacl", "T", "t.typowner")}, t.typnotnull,
                  format_type(t.typbasetype, t.typtypmod), t.typdefault IS NULL,
                  (SELECT string_agg(quote_literal(e.enumlabel), ',' ORDER BY e.enumsortorder) FROM pg_enum e
                    WHERE e.enumtypid = t.oid))
          FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
         WHERE t.typtype IN ('d', 'e', 'r', 'm', 'b') AND t.typelem = 0 AND {_OURS} AND NOT {member("pg_type", "t.oid")}""",
    """SELECT 'extension', quote_ident(x.extname), concat_ws('|', n.nspname, pg_get_userbyid(x.extowner))
         FROM pg_extension x JOIN pg_namespace n ON n.oid = x.extnamespace WHERE x.oid >= 16384""",
    f"""SELECT 'sequence settings', format('%I.%I', n.nspname, c.relname),
               concat_ws('|', format_type(s.seqtypid, NULL), s.seqstart, s.seqincrement, s.seqmax, s.seqmin, s.seqcache,
                  s.seqcycle)
          FROM pg_sequence s JOIN pg_class c ON c.oid = s.seqrelid JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE c.relpersistence <> 't' AND {_OURS}""",
    """SELECT 'default privileges', concat_ws(' ', pg_get_userbyid(d.defaclrole), n.nspname, d.defaclobjtype),
              (SELECT string_agg(x::text, ' ' ORDER BY x::text COLLATE "C") FROM unnest(d.defaclacl) x)
         FROM pg_default_acl d LEFT JOIN pg_namespace n ON n.oid = d.defaclnamespace""",
    """SELECT 'publication', quote_ident(p.pubname),
              concat_ws('|', pg_get_userbyid(p.pubowner), p.puballtables, p.pubinsert, p.pubupdate, p.pubdelete,
                 p.pubtruncate, p.pubviaroot,
                 (SELECT string_agg(format('%I.%I', n.nspname, c.relname), ',' ORDER BY n.nspname, c.relname)
                    FROM pg_publication_rel r JOIN pg_class c ON c.oid = r.prrelid
                    JOIN pg_namespace n ON n.oid = c.relnamespace WHERE r.prpubid = p.oid))
         FROM pg_publication p""",
    """SELECT 'large object', l.oid::text, concat_ws('|', pg_get_userbyid(l.lomowner),
              (SELECT string_agg(x::text, ' ' ORDER BY x::text COLLATE "C")
                 FROM unnest(coalesce(l.lomacl, acldefault('L', l.lomowner))) x))
         FROM pg_largeobject_metadata l""",
    """SELECT 'user mapping', concat_ws(' ', m.usename, m.srvname), '' FROM pg_user_mappings m""",
    f"""SELECT 'comment', pg_describe_object(d.classoid, d.objoid, d.objsubid), md5(d.description)
          FROM pg_description d WHERE (d.objoid >= 16384 OR d.objoid = 'public'::regnamespace)
           AND NOT (d.classoid = 'pg_class'::regclass AND d.objoid IN ({UNDUMPED_INDEXES}))
           AND NOT (d.classoid = 'pg_constraint'::regclass AND d.objoid IN ({UNDUMPED_CONSTRAINTS}))""",
    *(
        f"SELECT '{catalog.removeprefix('pg_').replace('_', ' ')}', pg_describe_object('{catalog}'::regclass, o.oid, 0), ''"
        f" FROM {catalog} o WHERE {described(catalog)}"
        for catalog in _PRESENT
    ),
]  # fmt: skip


def read(endpoint: Endpoint, credentials: Credentials, pulse: Callable[[], None]) -> Fingerprint:
    """One read-only transaction, all of one moment. Errors as `connect` raises them."""
    with inside(endpoint, credentials, pulse) as connection, translated():
        prepare(connection)
        with connection.transaction():
            return contents(connection, pulse)


def prepare(connection: BoundedConnection) -> None:
    """From here on its transactions read, each of one moment, and show values always in the same way."""
    connection.execute(_FORMATS)  # type: ignore[arg-type]
    connection.execute("SET default_transaction_isolation = 'repeatable read'")
    connection.execute("SET default_transaction_read_only = on")


def contents(
    connection: BoundedConnection, pulse: Callable[[], None], *, sequences: bool = True,
    texts: dict[tuple[str, str], str] | None = None,
) -> Fingerprint:  # fmt: skip
    """What the transaction of a prepared session sees. Without `sequences` their values are left out: no transaction
    holds them still. `texts`: the definitions, read already."""
    facts = dict(postgresql_texts.told(connection) if texts is None else texts)
    return Fingerprint(_tables(connection, pulse), facts | _facts(connection, sequences=sequences))


def sequence_fact(shown: str, last_value: int, handed_out: bool) -> tuple[tuple[str, str], str]:
    """A sequence's value as one of a fingerprint's facts."""
    return ("value of sequence", shown), str((last_value, handed_out))


def sequences(connection: BoundedConnection) -> dict[tuple[str, str], str]:
    """(schema, name) → as facts name it."""
    rows = connection.execute(_SEQUENCES).fetchall()  # type: ignore[arg-type]
    return {(str(schema), str(name)): str(shown) for schema, name, shown in rows}


def contents_of_tables(
    connection: BoundedConnection, pulse: Callable[[], None], only: Collection[str]
) -> dict[str, TableContent]:
    """Of these tables alone, as `contents` names them."""
    return _tables(connection, pulse, only)


def _tables(
    connection: BoundedConnection, pulse: Callable[[], None], only: Collection[str] | None = None
) -> dict[str, TableContent]:
    rows = connection.execute(_TABLES).fetchall()  # type: ignore[arg-type]
    wanted = [row for row in rows if only is None or str(row[2]) in only]
    found: dict[str, TableContent] = {}
    for first in range(0, len(wanted), _READ_AT_ONCE):
        # Reading locks a table and all its indexes until the transaction ends, and the server's table of locks is small: a
        # database of some thousand tables would fill it. What is rolled back gives its own back.
        with connection.transaction(force_rollback=True):
            for row in wanted[first : first + _READ_AT_ONCE]:
                found[str(row[2])] = _table(connection, *row)
                pulse()
    return found


def _table(
    connection: BoundedConnection, schema: str, table: str, _shown: str, *columns: Sequence[Any] | None
) -> TableContent:
    names, types, required = (each or () for each in columns)
    row = hashed([Column(str(n), int(t), bool(r)) for n, t, r in zip(names, types, required, strict=True)])
    query = sql.SQL("SELECT count(*), sum({}) FROM ONLY {}").format(row, sql.Identifier(schema, table))
    count, total = connection.execute(query).fetchone() or (0, 0)
    return TableContent(int(count), str(total or 0))


def _facts(connection: BoundedConnection, *, sequences: bool) -> dict[tuple[str, str], str]:
    found: dict[tuple[str, str], str] = {}
    for query in _FACTS:
        for kind, name, state in connection.execute(query).fetchall():  # type: ignore[arg-type]
            found[str(kind), str(name)] = str(state or "")
    found |= _sequence_values(connection) if sequences else {}
    for (oid,) in connection.execute("SELECT oid FROM pg_largeobject_metadata ORDER BY oid").fetchall():
        found["content of large object", str(oid)] = _large_object(connection, oid)
    return found


def _sequence_values(connection: BoundedConnection) -> dict[tuple[str, str], str]:
    rows, found = connection.execute(_SEQUENCES).fetchall(), {}  # type: ignore[arg-type]
    for first in range(0, len(rows), _READ_AT_ONCE):
        with connection.transaction(force_rollback=True):  # as of tables
            for schema, sequence, shown in rows[first : first + _READ_AT_ONCE]:
                value = sql.SQL("SELECT last_value, is_called FROM {}").format(sql.Identifier(schema, sequence))
                last_value, handed_out = connection.execute(value).fetchone() or (0, False)
                fact, state = sequence_fact(str(shown), int(last_value), bool(handed_out))
                found[fact] = state
    return found


def _large_object(connection: BoundedConnection, oid: int) -> str:
    digest, offset = hashlib.sha256(), 0
    while True:
        row = connection.execute("SELECT lo_get(%s::oid, %s::bigint, %s)", (oid, offset, _LO_PIECE)).fetchone()
        piece = bytes(row[0]) if row and row[0] else b""
        digest.update(piece)
        offset += len(piece)
        if len(piece) < _LO_PIECE:
            return f"{offset}:{digest.hexdigest()}"
