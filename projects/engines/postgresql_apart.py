"""Tables and schemas set apart in a throw-away copy of a PostgreSQL database (`Engine.set_apart`).

They move into schemas of their own, so that PostgreSQL itself respells what refers to them; what ties them to the rest goes.
"""

# ruff: noqa: S608 - our own words, and names quoted by the server
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from psycopg import sql

from projects.domain import Credentials, Endpoint, EngineError, PartNeedsMore, Selection, SetApart
from projects.engines.postgresql_copy import inside
from projects.engines.postgresql_session import BoundedConnection, translated

MOST_BYTES = 63  # of a name
_SHOWN = "format('%%I.%%I', n.nspname, c.relname)"
_ALTER = {"r": "TABLE", "p": "TABLE", "v": "VIEW", "m": "MATERIALIZED VIEW", "f": "FOREIGN TABLE", "S": "SEQUENCE"}
_OWN = "n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'"
_NOT_EXTENSIONS = (
    "NOT EXISTS (SELECT FROM pg_depend e WHERE e.classid = '{0}'::regclass AND e.objid = {1} AND e.deptype = 'e')"
)
_OUTSIDE_RELATION = "d.refclassid = 'pg_class'::regclass AND d.refobjid >= 16384 AND d.refobjid <> ALL(%(rels)s)"
_OUTSIDE_ROUTINE = "d.refclassid = 'pg_proc'::regclass AND d.refobjid >= 16384 AND d.refobjid <> ALL(%(procs)s)"

# Everything that was set apart, by catalog; and what of it uses what is elsewhere.
_NEEDS = f"""
WITH rels AS (SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = ANY(%(places)s)),
mine AS (
  SELECT 'pg_class'::regclass::oid AS c, oid AS o FROM rels
  UNION ALL SELECT 'pg_attrdef'::regclass, oid FROM pg_attrdef WHERE adrelid IN (SELECT oid FROM rels)
  UNION ALL SELECT 'pg_constraint'::regclass, oid FROM pg_constraint WHERE conrelid IN (SELECT oid FROM rels)
  UNION ALL SELECT 'pg_trigger'::regclass, oid FROM pg_trigger WHERE tgrelid IN (SELECT oid FROM rels) AND NOT tgisinternal
  UNION ALL SELECT 'pg_policy'::regclass, oid FROM pg_policy WHERE polrelid IN (SELECT oid FROM rels)
  UNION ALL SELECT 'pg_rewrite'::regclass, oid FROM pg_rewrite WHERE ev_class IN (SELECT oid FROM rels)
  UNION ALL SELECT 'pg_proc'::regclass, p.oid FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
             WHERE n.nspname = ANY(%(places)s)
  UNION ALL SELECT 'pg_type'::regclass, t.oid FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
             WHERE n.nspname = ANY(%(places)s)
),
used AS (SELECT DISTINCT d.refclassid, d.refobjid FROM mine JOIN pg_depend d ON d.classid = mine.c AND d.objid = mine.o
          WHERE d.refobjid >= 16384)
SELECT 'type', format_type(t.oid, NULL) FROM used JOIN pg_type t ON t.oid = refobjid
  JOIN pg_namespace n ON n.oid = t.typnamespace
 WHERE refclassid = 'pg_type'::regclass AND n.nspname <> ALL(%(places)s) AND n.nspname !~ '^pg_toast'
UNION ALL SELECT 'function', p.oid::regprocedure::text FROM used JOIN pg_proc p ON p.oid = refobjid
  JOIN pg_namespace n ON n.oid = p.pronamespace WHERE refclassid = 'pg_proc'::regclass AND n.nspname <> ALL(%(places)s)
UNION ALL SELECT 'relation', {_SHOWN} FROM used JOIN pg_class c ON c.oid = refobjid
  JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE refclassid = 'pg_class'::regclass AND n.nspname <> ALL(%(places)s) AND n.nspname !~ '^pg_toast'
UNION ALL SELECT 'collation', o.oid::regcollation::text FROM used JOIN pg_collation o ON o.oid = refobjid
  JOIN pg_namespace n ON n.oid = o.collnamespace
 WHERE refclassid = 'pg_collation'::regclass AND n.nspname <> ALL(%(places)s)
UNION ALL SELECT 'operator class', format('%%I.%%I', n.nspname, o.opcname) FROM used JOIN pg_opclass o ON o.oid = refobjid
  JOIN pg_namespace n ON n.oid = o.opcnamespace
 WHERE refclassid = 'pg_opclass'::regclass AND n.nspname <> ALL(%(places)s)
 ORDER BY 1, 2
"""


def set_apart(endpoint: Endpoint, credentials: Credentials, chosen: Selection, mark: str, owner: str) -> SetApart:
    """As `Engine.set_apart`; in one transaction."""
    with inside(endpoint, credentials) as connection, translated(), connection.transaction():
        return _Apart(connection, chosen, mark, owner).run()


class _Apart:
    def __init__(self, connection: BoundedConnection, chosen: Selection, mark: str, owner: str) -> None:
        self._connection, self._chosen, self._mark, self._owner = connection, chosen, mark, owner
        self._rels: list[int] = []
        self._procs: list[int] = []
        self._notes: list[str] = []

    def run(self) -> SetApart:
        self._rels = self._find()
        names = self._names()
        # Without a mark all functions stay, and whatever calls them.
        mine = f"quote_ident(n.nspname) = ANY(%(schemas)s) AND {_NOT_EXTENSIONS.format('pg_proc', 'p.oid')}"
        self._procs = self._oids(
            "SELECT p.oid FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace"
            f" WHERE {mine if self._mark else 'p.oid >= 16384'}"
        )
        self._detach()
        self._cut(
            "foreign key",
            "TABLE",
            "CONSTRAINT",
            f"""
            SELECT {_SHOWN}, quote_ident(k.conname), 'to ' || k.confrelid::regclass
              FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE k.contype = 'f' AND k.conparentid = 0 AND k.conrelid = ANY(%(rels)s) AND k.confrelid <> ALL(%(rels)s)""",
        )
        self._triggers()
        self._policies_and_rules()
        if self._mark:
            self._defaults()
        self._views()
        places = self._move() if self._mark else self._drop_others()
        needs = tuple((str(kind), str(name)) for kind, name in self._rows(_NEEDS, places=list(places)))
        now = self._names()
        size = self._rows(
            "SELECT coalesce(sum(pg_table_size(o) + pg_indexes_size(o)), 0)::int8 FROM unnest(%(rels)s::oid[]) o"
        )
        tables = {names[oid][0]: now[oid][0] for oid in now if now[oid][1] == "r"}
        return SetApart(tables, places, needs, tuple(self._notes), int(size[0][0]))

    # --- what ----------------------------------------------------------------------------------------------------------
    def _find(self) -> list[int]:
        found = self._oids(f"""
            WITH RECURSIVE chosen AS (
              SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
               WHERE {_OWN} AND c.relpersistence <> 't' AND {_NOT_EXTENSIONS.format("pg_class", "c.oid")}
                 AND (c.relkind IN ('r', 'p') AND {_SHOWN} = ANY(%(tables)s)
                      OR c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S') AND quote_ident(n.nspname) = ANY(%(schemas)s))
              UNION SELECT i.inhrelid FROM chosen JOIN pg_inherits i ON i.inhparent = chosen.oid)
            SELECT oid FROM chosen ORDER BY oid""")  # fmt: skip
        if not found:
            raise EngineError("there is nothing of what was chosen")
        return found

    def _names(self) -> dict[int, tuple[str, str]]:
        rows = self._rows(
            f"SELECT c.oid, {_SHOWN}, c.relkind FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
            " WHERE c.oid = ANY(%(rels)s)"
        )
        return {int(oid): (str(shown), str(kind)) for oid, shown, kind in rows}

    # --- what ties it to the rest ----------------------------------------------------------------------------------------
    def _detach(self) -> None:
        for child, parent, partition in self._rows("""
            SELECT i.inhrelid::regclass::text, i.inhparent::regclass::text, c.relispartition
              FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
             WHERE i.inhrelid = ANY(%(rels)s) AND i.inhparent <> ALL(%(rels)s) AND c.relkind IN ('r', 'p', 'f')"""):
            self._do(
                f"ALTER TABLE {parent} DETACH PARTITION {child}"
                if partition
                else f"ALTER TABLE {child} NO INHERIT {parent}"
            )
            self._notes.append(f"{child} was a part of {parent}; it is a table of its own.")

    def _cut(self, what: str, alter: str, drop: str, query: str) -> None:
        """Rows of (quoted table, quoted name, more for people)."""
        for table, name, more in self._rows(query):
            self._do(f"ALTER {alter} {table} DROP {drop} {name}")
            self._notes.append(f"Left out: {what} {name} of {table}, {more}.")

    def _triggers(self) -> None:
        rows = self._rows(f"""
            SELECT {_SHOWN}, quote_ident(t.tgname), t.tgfoid::regprocedure::text
              FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE NOT t.tgisinternal AND t.tgparentid = 0 AND c.oid = ANY(%(rels)s) AND t.tgfoid <> ALL(%(procs)s)""")
        for table, name, function in rows:
            self._do(f"DROP TRIGGER {name} ON {table}")
            self._notes.append(f"Left out: trigger {name} of {table}, which calls {function}.")

    def _policies_and_rules(self) -> None:
        outside = f"({_OUTSIDE_RELATION} OR {_OUTSIDE_ROUTINE})"
        for table, name in self._rows(f"""
            SELECT DISTINCT {_SHOWN}, quote_ident(p.polname) FROM pg_policy p JOIN pg_class c ON c.oid = p.polrelid
              JOIN pg_namespace n ON n.oid = c.relnamespace
              JOIN pg_depend d ON d.classid = 'pg_policy'::regclass AND d.objid = p.oid
             WHERE c.oid = ANY(%(rels)s) AND {outside}"""):
            self._do(f"DROP POLICY {name} ON {table}")
            self._notes.append(
                f"Left out: policy {name} of {table}, which uses other things. Its row security stays on."
            )
        for table, name in self._rows(f"""
            SELECT DISTINCT {_SHOWN}, quote_ident(r.rulename) FROM pg_rewrite r JOIN pg_class c ON c.oid = r.ev_class
              JOIN pg_namespace n ON n.oid = c.relnamespace
              JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid
             WHERE c.oid = ANY(%(rels)s) AND c.relkind IN ('r', 'p') AND {outside}"""):
            self._do(f"DROP RULE {name} ON {table}")
            self._notes.append(f"Left out: rule {name} of {table}, which uses other things.")

    def _defaults(self) -> None:
        """A copy that draws from the live table's sequence would use up its numbers."""
        for table, column, sequence in self._rows(f"""
            SELECT DISTINCT {_SHOWN}, quote_ident(a.attname), d.refobjid::regclass::text
              FROM pg_attrdef f JOIN pg_class c ON c.oid = f.adrelid JOIN pg_namespace n ON n.oid = c.relnamespace
              JOIN pg_attribute a ON a.attrelid = f.adrelid AND a.attnum = f.adnum
              JOIN pg_depend d ON d.classid = 'pg_attrdef'::regclass AND d.objid = f.oid
              JOIN pg_class s ON d.refclassid = 'pg_class'::regclass AND s.oid = d.refobjid AND s.relkind = 'S'
             WHERE c.oid = ANY(%(rels)s) AND s.oid <> ALL(%(rels)s)
               AND NOT EXISTS (SELECT FROM pg_depend o WHERE o.classid = 'pg_class'::regclass AND o.objid = s.oid
                                AND o.refclassid = 'pg_class'::regclass AND o.deptype IN ('a', 'i')
                                AND o.refobjid = ANY(%(rels)s))
            """):
            self._do(f"ALTER TABLE {table} ALTER COLUMN {column} DROP DEFAULT")
            self._notes.append(f"Left out: the default of {table}.{column}, which draws from {sequence}.")
        for sequence in self._rows("""
            SELECT DISTINCT s.oid::regclass::text FROM pg_class s JOIN pg_depend o ON o.classid = 'pg_class'::regclass
               AND o.objid = s.oid AND o.refclassid = 'pg_class'::regclass AND o.deptype = 'a'
             WHERE s.relkind = 'S' AND s.oid = ANY(%(rels)s) AND o.refobjid <> ALL(%(rels)s)"""):
            self._do(f"ALTER SEQUENCE {sequence[0]} OWNED BY NONE")

    def _views(self) -> None:
        gone: list[str] = []
        while rows := self._rows(f"""
            SELECT c.oid, {_SHOWN}, c.relkind FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE c.oid = ANY(%(rels)s) AND c.relkind IN ('v', 'm') AND EXISTS (
               SELECT FROM pg_rewrite r JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid
                WHERE r.ev_class = c.oid AND d.refobjid <> c.oid AND {_OUTSIDE_RELATION})
             LIMIT 1"""):
            before = {oid: name for oid, (name, _kind) in self._names().items()}
            self._do(f"DROP {_ALTER[str(rows[0][2])]} {rows[0][1]} CASCADE")
            after = self._names()
            gone += [name for oid, name in before.items() if oid not in after]
            self._rels = [oid for oid in self._rels if oid in after]
        if gone:
            self._notes.append(f"Left out, since they use what was not chosen: {_some(gone)}.")
        users = [
            str(row[0])
            for row in self._rows(f"""
            SELECT DISTINCT {_SHOWN} FROM pg_depend d
              JOIN pg_rewrite r ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid
              JOIN pg_class c ON c.oid = r.ev_class JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = ANY(%(rels)s) AND c.oid <> ALL(%(rels)s)
               AND c.relkind IN ('v', 'm') ORDER BY 1""")
        ]
        if users:
            self._notes.append(f"Left out: views on it, here {_some(users)}.")

    def _drop_others(self) -> tuple[str, ...]:
        """All other tables, views and sequences; sequences that defaults of what stays draw from stay as well. What goes
        takes along what uses it: columns of its row type are refused, all else is said."""
        for (sequence,) in self._rows("""
            SELECT DISTINCT s.oid::regclass::text FROM pg_class s
              JOIN pg_depend o ON o.classid = 'pg_class'::regclass AND o.objid = s.oid
               AND o.refclassid = 'pg_class'::regclass AND o.deptype = 'a' AND o.refobjid <> ALL(%(rels)s)
              JOIN pg_depend d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = s.oid
               AND d.classid = 'pg_attrdef'::regclass
              JOIN pg_attrdef f ON f.oid = d.objid AND f.adrelid = ANY(%(rels)s)
             WHERE s.relkind = 'S'"""):
            self._do(f"ALTER SEQUENCE {sequence} OWNED BY NONE")
        before = self._details()
        while rows := self._rows(f"""
            SELECT {_SHOWN}, c.relkind FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S') AND c.relpersistence <> 't' AND {_OWN}
               AND c.oid <> ALL(%(rels)s) AND {_NOT_EXTENSIONS.format("pg_class", "c.oid")}
               AND NOT (c.relkind = 'S' AND EXISTS (
                 SELECT FROM pg_depend d WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = c.oid
                   AND d.classid = 'pg_attrdef'::regclass
                   AND d.objid IN (SELECT oid FROM pg_attrdef WHERE adrelid = ANY(%(rels)s))
                 UNION ALL SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid
                   AND d.refclassid = 'pg_class'::regclass AND d.deptype IN ('a', 'i') AND d.refobjid = ANY(%(rels)s)))
             ORDER BY c.relkind = 'S', c.oid LIMIT 1"""):
            self._do(f"DROP {_ALTER[str(rows[0][1])]} {rows[0][0]} CASCADE")
        after = self._details()
        gone = [shown for thing, shown in before.items() if thing not in after]
        if lost := [shown for shown in gone if shown.startswith("column ")]:
            raise PartNeedsMore(
                f"Of the type of a table that was not chosen is {_some(lost)}: choose that table as well."
            )
        if gone:
            self._notes.append(f"Left out, since it uses what was not chosen: {_some(gone, 20)}.")
        self._rels = [oid for oid in self._rels if oid in self._names()]
        self._notes.append("Functions, types and extensions of the whole database came along: tables may use them.")
        return ()

    def _details(self) -> dict[tuple[int, int, int], str]:
        """What may go with something else: by catalog, object and part, for people."""
        rows = self._rows(f"""
            WITH rels AS (SELECT c.oid, {_SHOWN} AS shown, c.relkind IN ('v', 'm') AS view
                            FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = ANY(%(rels)s))
            SELECT 'pg_attribute'::regclass::int8, r.oid::int8, a.attnum::int8, format('column %%I of %%s', a.attname, r.shown)
              FROM rels r JOIN pg_attribute a ON a.attrelid = r.oid
             WHERE NOT r.view AND a.attnum > 0 AND NOT a.attisdropped
            UNION ALL SELECT 'pg_class'::regclass::int8, oid::int8, 0, shown FROM rels
            UNION ALL SELECT 'pg_attrdef'::regclass::int8, f.oid::int8, 0, format('default of %%I of %%s', a.attname, r.shown)
              FROM rels r JOIN pg_attrdef f ON f.adrelid = r.oid
              JOIN pg_attribute a ON a.attrelid = f.adrelid AND a.attnum = f.adnum
            UNION ALL SELECT 'pg_constraint'::regclass::int8, k.oid::int8, 0, format('constraint %%I of %%s', conname, shown)
              FROM rels r JOIN pg_constraint k ON k.conrelid = r.oid
            UNION ALL SELECT 'pg_class'::regclass::int8, i.indexrelid::int8, 0,
                   format('index %%s of %%s', i.indexrelid::regclass, shown)
              FROM rels r JOIN pg_index i ON i.indrelid = r.oid
            UNION ALL SELECT 'pg_trigger'::regclass::int8, t.oid::int8, 0, format('trigger %%I of %%s', tgname, shown)
              FROM rels r JOIN pg_trigger t ON t.tgrelid = r.oid AND NOT t.tgisinternal
            UNION ALL SELECT 'pg_policy'::regclass::int8, p.oid::int8, 0, format('policy %%I of %%s', polname, shown)
              FROM rels r JOIN pg_policy p ON p.polrelid = r.oid
            UNION ALL SELECT 'pg_rewrite'::regclass::int8, w.oid::int8, 0, format('rule %%I of %%s', rulename, shown)
              FROM rels r JOIN pg_rewrite w ON w.ev_class = r.oid AND NOT r.view
            UNION ALL SELECT 'pg_proc'::regclass::int8, p.oid::int8, 0, format('function %%s', p.oid::regprocedure)
              FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE {_OWN}
            UNION ALL SELECT 'pg_type'::regclass::int8, t.oid::int8, 0, format('type %%s', format_type(t.oid, NULL))
              FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
              LEFT JOIN pg_class c ON c.oid = t.typrelid
             WHERE {_OWN} AND (t.typtype IN ('d', 'e', 'r') OR c.relkind = 'c')
            ORDER BY 1, 2, 3""")  # fmt: skip
        return {(int(catalog), int(oid), int(part)): str(shown) for catalog, oid, part, shown in rows}

    # --- into schemas of its own -----------------------------------------------------------------------------------------
    def _move(self) -> tuple[str, ...]:
        sources = [str(row[0]) for row in self._rows(
            "SELECT DISTINCT n.nspname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
            " WHERE c.oid = ANY(%(rels)s) OR quote_ident(n.nspname) = ANY(%(schemas)s) ORDER BY 1"
        )]  # fmt: skip
        places: dict[str, str] = {}
        for source in sources:
            name = self._mark if len(sources) == 1 else _cut_to(f"{self._mark}_{source}", MOST_BYTES)
            while name in places.values():
                name = _cut_to(name, MOST_BYTES - 3) + f"_{len(places)}"
            places[source] = name
            self._connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(name)))
            self._connection.execute(
                sql.SQL("COMMENT ON SCHEMA {} IS {}").format(sql.Identifier(name), sql.Literal(self._owner))
            )
        moves = self._rows(f"""
            SELECT n.nspname, c.relkind, {_SHOWN} FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE c.oid = ANY(%(rels)s) AND NOT (c.relkind = 'S' AND EXISTS (SELECT FROM pg_depend o
                WHERE o.classid = 'pg_class'::regclass AND o.objid = c.oid AND o.refclassid = 'pg_class'::regclass
                  AND o.deptype IN ('a', 'i')))""")
        for source, kind, shown in moves:
            self._into(f"{_ALTER[str(kind)]} {shown}", places[str(source)])
        for source, shown in self._rows(f"""
            SELECT n.nspname, format('%%I.%%I', n.nspname, t.typname)
              FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
              LEFT JOIN pg_class c ON c.oid = t.typrelid
             WHERE quote_ident(n.nspname) = ANY(%(schemas)s) AND {_NOT_EXTENSIONS.format("pg_type", "t.oid")}
               AND (t.typtype IN ('d', 'e', 'r') OR t.typtype = 'c' AND c.relkind = 'c') AND t.typelem = 0"""):
            self._into(f"TYPE {shown}", places[str(source)])
        routines = self._rows("""
            SELECT n.nspname, CASE p.prokind WHEN 'a' THEN 'AGGREGATE' WHEN 'p' THEN 'PROCEDURE' ELSE 'FUNCTION' END,
                   p.oid::regprocedure::text
              FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
             WHERE p.oid = ANY(%(procs)s) AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_proc'::regclass
               AND d.objid = p.oid AND d.deptype = 'i')""")
        for source, kind, shown in routines:
            self._into(f"{kind} {shown}", places[str(source)])
        if routines:
            self._notes.append("Names within the text of its routines are as they were: they mean what is live.")
        for source, shown in self._rows("""
            SELECT n.nspname, format('%%I.%%I', n.nspname, s.stxname) FROM pg_statistic_ext s
              JOIN pg_namespace n ON n.oid = s.stxnamespace WHERE s.stxrelid = ANY(%(rels)s)"""):
            if str(source) in places:
                self._into(f"STATISTICS {shown}", places[str(source)])
        return tuple(places.values())

    def _into(self, what: str, place: str) -> None:
        statement = sql.SQL("ALTER ") + sql.SQL(what) + sql.SQL(" SET SCHEMA {}").format(sql.Identifier(place))  # type: ignore[arg-type]
        self._connection.execute(statement)

    # --- asking ----------------------------------------------------------------------------------------------------------
    def _rows(self, query: str, **more: Any) -> list[Any]:
        values = {
            "rels": self._rels, "procs": self._procs, "tables": list(self._chosen.tables),
            "schemas": list(self._chosen.schemas), **more,
        }  # fmt: skip
        typed = query.replace("ANY(%(rels)s)", "ANY(%(rels)s::oid[])").replace("ALL(%(rels)s)", "ALL(%(rels)s::oid[])")
        typed = typed.replace("ANY(%(procs)s)", "ANY(%(procs)s::oid[])").replace(
            "ALL(%(procs)s)", "ALL(%(procs)s::oid[])"
        )
        for name in ("tables", "schemas", "places"):
            typed = typed.replace(f"(%({name})s)", f"(%({name})s::text[])")
        return self._connection.execute(typed, values).fetchall()  # type: ignore[arg-type]

    def _oids(self, query: str) -> list[int]:
        return [int(row[0]) for row in self._rows(query)]

    def _do(self, statement: str) -> None:
        self._connection.execute(statement)  # type: ignore[arg-type]


def _cut_to(name: str, most: int) -> str:
    return name.encode()[:most].decode(errors="ignore")


def _some(names: Sequence[str], most: int = 5) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
