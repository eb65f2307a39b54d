"""Tables of a MariaDB or MySQL database by themselves: set apart in a throw-away copy under other names, dumped, and put
beside a live database's own (`Engine.set_apart`).

The names of keys and checks are a database's, not a table's: in the copy they get others too, and what refers to tables that
were not chosen goes. Views, triggers and events stay behind: they would act on what lives. DDL is no transaction here: what
came half is dropped by its names, which nothing else had.
"""

# ruff: noqa: S608 - our own words, and quoted names
from __future__ import annotations

import re
from collections.abc import Sequence

from projects.domain import Command, Credentials, Endpoint, EngineError, Selection, SetApart
from projects.engines import mysql_copy, mysql_floats
from projects.engines.mysql_session import Session, connect

MOST_CHARACTERS = 64  # of a name
_SECONDS = 12 * 3600.0
_NAME = r"`((?:[^`]|``)*)`"
# SHOW CREATE TABLE has each on a line of its own; in values and comments a newline is written as two characters.
_CONSTRAINT = re.compile(rf"^  CONSTRAINT {_NAME} ((?:FOREIGN KEY|CHECK) .*?),?(?=\n  |\n\))", re.DOTALL | re.MULTILINE)
_REFERENCES = re.compile(rf"^FOREIGN KEY \((?:{_NAME}(?:, )?)+\) REFERENCES {_NAME}")
_TABLES = (
    "SELECT table_name, table_type FROM information_schema.tables WHERE table_schema = DATABASE() ORDER BY table_name"
)
_CONSTRAINTS = "SELECT constraint_name FROM information_schema.table_constraints WHERE constraint_schema = DATABASE()"

# `sh -c DUMP sh <client> <dump program> <query for FLOAT values> argument …`; as in `mysql_copy`, without what is not a table.
_DUMP = f"""set -u
client=$1 program=$2 floats=$3
shift 3
rm -f failed queries
run() {{
  tool=$1
  shift
  [ -e failed ] || "$tool" "--defaults-file=$OPTIONS" $TLS "$@" || echo $? >failed
}}
ask() {{
  run "$client" --batch --raw --skip-column-names --default-character-set=utf8mb4 "--init-command=$BEGIN" "$@" "$DATABASE"
}}
run "$program" "$@"
ask --execute="$floats" >queries
if [ -s queries ]; then
  echo "{mysql_floats.BEFORE}"
  ask --binary-mode <queries
  echo "{mysql_floats.AFTER}"
fi
[ ! -e failed ] || exit "$(head -n 1 failed)"
"""


def set_apart(endpoint: Endpoint, credentials: Credentials, chosen: Selection, mark: str) -> SetApart:
    """As `Engine.set_apart`. Everything else goes from the copy."""
    if chosen.schemas:
        raise EngineError("this product has no schemas within a database")
    with connect(endpoint, credentials, timeout_seconds=10) as session:
        session.bound(_SECONDS)
        limit = "max_statement_time" if session.is_mariadb else "max_execution_time"
        session.do(
            f"SET SESSION {limit} = 0, lock_wait_timeout = 60, foreign_key_checks = 0, wait_timeout = 86400, sql_mode = ''"
        )
        if session.is_mariadb:
            session.do("SET SESSION system_versioning_alter_history = 'KEEP'")
        return _Apart(session, chosen.tables, mark).run()


class _Apart:
    def __init__(self, session: Session, chosen: Sequence[str], mark: str) -> None:
        self._session, self._chosen, self._mark = session, tuple(dict.fromkeys(chosen)), mark
        self._notes: list[str] = []

    def run(self) -> SetApart:
        kinds = {str(table): str(kind) for table, kind in self._session.rows(_TABLES)}
        if missing := [table for table in self._chosen if not self._is_table(kinds.get(table, ""))]:
            raise EngineError(f"there is no such table in the copy: {', '.join(missing[:3])}")
        for table in self._chosen:
            self._cut_off(table)
        self._alone(kinds)
        names = self._renamed() if self._mark else {table: table for table in self._chosen}
        size = self._session.value(
            "SELECT COALESCE(SUM(data_length + index_length), 0) FROM information_schema.tables WHERE table_schema = DATABASE()"
        )
        return SetApart(names, tuple(names.values()), (), tuple(self._notes), int(size or 0))

    @staticmethod
    def _is_table(kind: str) -> bool:
        return kind in {"BASE TABLE", "SYSTEM VERSIONED"}

    def _text(self, table: str) -> str:
        return str(self._session.rows(f"SHOW CREATE TABLE {_quoted(table)}")[0][1])

    def _cut_off(self, table: str) -> None:
        for constraint, words in _CONSTRAINT.findall(self._text(table)):
            other = _REFERENCES.match(words)
            if other is not None and _plain(other.group(2)) not in self._chosen:
                self._session.do(f"ALTER TABLE {_quoted(table)} DROP FOREIGN KEY `{constraint}`")
                self._notes.append(
                    f"Left out: foreign key {_plain(constraint)} of {table}, to {_plain(other.group(2))}."
                )
        for column, default in self._session.rows(
            "SELECT column_name, column_default FROM information_schema.columns WHERE table_schema = DATABASE()"
            f" AND table_name = {self._session.quoted(table)} AND LOWER(column_default) LIKE 'nextval(%'"
        ):
            self._session.do(f"ALTER TABLE {_quoted(table)} ALTER COLUMN {_quoted(str(column))} DROP DEFAULT")
            self._notes.append(f"Left out: the default of {table}.{column}, {default}.")
        triggers = self._session.rows(
            "SELECT trigger_name FROM information_schema.triggers WHERE trigger_schema = DATABASE()"
            f" AND event_object_table = {self._session.quoted(table)} ORDER BY 1"
        )
        for (trigger,) in triggers:
            self._session.do(f"DROP TRIGGER {_quoted(str(trigger))}")
            self._notes.append(f"Left out: trigger {trigger} of {table}.")

    def _alone(self, kinds: dict[str, str]) -> None:
        views = self._session.rows(
            "SELECT table_name, view_definition FROM information_schema.views WHERE table_schema = DATABASE() ORDER BY 1"
        )
        users = [str(view) for view, text in views if any(f"`.{_quoted(table)}" in str(text) for table in self._chosen)]
        if users:
            shown = ", ".join(users[:5]) + (f" and {len(users) - 5} more" if len(users) > 5 else "")
            self._notes.append(f"Left out: views on it, here {shown}.")
        for view, _text in views:
            self._session.do(f"DROP VIEW IF EXISTS {_quoted(str(view))}")
        for table, kind in kinds.items():
            if table in self._chosen or "VIEW" in kind:
                continue
            self._session.do(f"DROP {'SEQUENCE' if kind == 'SEQUENCE' else 'TABLE'} IF EXISTS {_quoted(table)}")

    def _renamed(self) -> dict[str, str]:
        names: dict[str, str] = {}
        for table in self._chosen:
            names[table] = self._unused(table, set(names.values()))
        moves = ", ".join(f"{_quoted(old)} TO {_quoted(new)}" for old, new in names.items())
        self._session.do(f"RENAME TABLE {moves}")
        used: set[str] = set()
        for table in names.values():
            changes = []
            for constraint, words in _CONSTRAINT.findall(self._text(table)):
                # Those that the server named itself it has named anew; MariaDB's checks are their table's own.
                if self._mark in constraint or (words.startswith("CHECK") and self._session.is_mariadb):
                    used.add(_plain(constraint))
                    continue
                drop = "FOREIGN KEY" if words.startswith("FOREIGN") else "CHECK"
                new = self._unused(_plain(constraint), used)
                used.add(new)
                changes += [f"DROP {drop} `{constraint}`", f"ADD CONSTRAINT {_quoted(new)} {words}"]
            if changes:
                self._session.do(f"ALTER TABLE {_quoted(table)} {', '.join(changes)}")
        return names

    def _unused(self, name: str, used: set[str]) -> str:
        number = 0
        while True:
            ending = f"__{self._mark}" + (f"_{number}" if number else "")
            found = name[: MOST_CHARACTERS - len(ending)].rstrip() + ending
            if found not in used:
                return found
            number += 1


def places(endpoint: Endpoint, credentials: Credentials) -> dict[str, str]:
    """Tables and views, and keys and checks, which keep their names when a table gets another one; whose they are is written
    nowhere."""
    with connect(endpoint, credentials, timeout_seconds=10) as session:
        names = [str(table) for table, _kind in session.rows(_TABLES)]
        names += [str(row[0]) for row in session.rows(_CONSTRAINTS)]
        return dict.fromkeys(names, "")


def dump(
    place: Endpoint, credentials: Credentials, *, mariadb: bool, programs: tuple[str, str], arguments: Sequence[str],
    tables: Sequence[str],
) -> Command:  # fmt: skip
    argv = (
        "sh", "-c", _DUMP, "novastack-dump", *programs, mysql_floats.LIST, "--single-transaction", "--quick",
        "--skip-add-locks", "--skip-add-drop-table", "--skip-comments", "--skip-triggers", "--skip-routines", "--skip-events",
        "--default-character-set=utf8mb4", "--hex-blob", "--tz-utc", mysql_copy.PACKET, *arguments, "--",
        credentials.database, *tables,
    )  # fmt: skip
    return mysql_copy.command(place, credentials, argv, mariadb=mariadb)


def drop(endpoint: Endpoint, credentials: Credentials, tables: Sequence[str]) -> list[str]:
    with connect(endpoint, credentials, timeout_seconds=10) as session:
        session.bound(600)
        if users := _users(session, tables):
            return users
        session.do("SET SESSION foreign_key_checks = 0, lock_wait_timeout = 60")
        for table in tables:
            session.do(f"DROP TABLE IF EXISTS {_quoted(table)}")
    return []


def _users(session: Session, tables: Sequence[str]) -> list[str]:
    """Keys of other tables to these, and views on them."""
    keys = session.rows(
        "SELECT DISTINCT table_name, constraint_name, referenced_table_name FROM information_schema.key_column_usage"
        " WHERE table_schema = DATABASE() AND referenced_table_schema = DATABASE() ORDER BY 1, 2"
    )
    found = [f"foreign key {key} of {table}" for table, key, other in keys if other in tables and table not in tables]
    views = session.rows(
        "SELECT table_name, view_definition FROM information_schema.views WHERE table_schema = DATABASE() ORDER BY 1"
    )
    return found + [f"view {view}" for view, text in views if any(f"`.{_quoted(t)}" in str(text) for t in tables)]


def _quoted(value: str) -> str:
    return "`" + value.replace("`", "``") + "`"


def _plain(quoted: str) -> str:
    return quoted.replace("``", "`")
