"""What a MariaDB or MySQL database holds, read so that two copies can be compared exactly, also under other names.

Rows go through a hash in the server, value by value as they are kept (FLOAT with all its bits, text in its own charset);
the sum over a table does not depend on the order of rows. No view, routine or trigger of the tenant's is run (rule 18).
Definitions are told as the server spells them, without the database's own name and without who made them: of that it is
told which things have the same maker. Generated columns are compared by their definitions.

Not compared: statistics, histograms, and when things were made or changed.
"""

from __future__ import annotations

# ruff: noqa: S608 - our own words, and quoted names
import contextlib
import re
from collections.abc import Callable, Collection, Iterator, Sequence

from projects.domain import Credentials, Endpoint, EngineError, Fingerprint, TableContent
from projects.engines.mysql_session import Row, Session, connect

_WHOLE = frozenset(
    {
        "tinyint", "smallint", "mediumint", "int", "bigint", "decimal", "year", "date", "time", "datetime", "timestamp",
        "uuid", "inet4", "inet6",
    }
)  # fmt: skip
_NUMBERED = frozenset({"enum", "set", "bit"})
_ID = r'(?:`(?:[^`]|``)*`|"(?:[^"]|"")*")'
_DEFINER = re.compile(rf"\bDEFINER=({_ID}(?:@{_ID})?) ?")
_CHARSET = re.compile(r" CHARACTER SET \w+(?= COLLATE \w+)")
_PERIOD = re.compile(r"PERIOD FOR SYSTEM_TIME \((`(?:[^`]|``)*`), (`(?:[^`]|``)*`)\)")
_KINDS = {"PROCEDURE": "procedure", "FUNCTION": "function", "PACKAGE": "package", "PACKAGE BODY": "package body"}


def read(endpoint: Endpoint, credentials: Credentials, pulse: Callable[[], None]) -> Fingerprint:
    """One read-only transaction, its rows all of one moment. Errors as `connect` raises them."""
    with _reading(endpoint, credentials, pulse) as reader:
        reader.tables()
        reader.things()
        return Fingerprint(reader.contents, reader.facts)


def read_tables(
    endpoint: Endpoint, credentials: Credentials, tables: Collection[str], pulse: Callable[[], None]
) -> dict[str, TableContent]:
    """The rows of these tables alone; one that is not there is left out."""
    with _reading(endpoint, credentials, pulse) as reader:
        reader.tables(only=tables)
        return reader.contents


@contextlib.contextmanager
def _reading(endpoint: Endpoint, credentials: Credentials, pulse: Callable[[], None]) -> Iterator[_Reader]:
    with connect(endpoint, credentials, timeout_seconds=10) as session, _ended(session, endpoint, credentials):
        session.bound(60)
        limit = "max_statement_time" if session.is_mariadb else "max_execution_time"
        session.do(
            f"SET SESSION {limit} = 0, wait_timeout = 86400, net_write_timeout = 600, lock_wait_timeout = 60,"
            " time_zone = '+00:00'"
        )
        session.do("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        session.do("START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY")
        yield _Reader(session, credentials.database, pulse)


@contextlib.contextmanager
def _ended(session: Session, endpoint: Endpoint, credentials: Credentials) -> Iterator[None]:
    """Who gives up in the middle leaves no statement running behind."""
    number = int(session.value("SELECT CONNECTION_ID()"))
    try:
        yield
    except BaseException:
        with (
            contextlib.suppress(EngineError),
            connect(endpoint, credentials, timeout_seconds=5) as another,
        ):
            another.do(f"KILL {number}")
        raise


class _Reader:
    def __init__(self, session: Session, database: str, pulse: Callable[[], None]) -> None:
        self._session = session
        self._database = database
        self._pulse = pulse
        self._own = f"`{database}`."
        self._makers: dict[str, int] = {}
        self.contents: dict[str, TableContent] = {}
        self.facts: dict[tuple[str, str], str] = {}

    def tables(self, only: Collection[str] | None = None) -> None:
        rows = self._ask(
            "SELECT table_name, table_type FROM information_schema.tables WHERE table_schema = DATABASE()"
            " AND table_type NOT LIKE '%VIEW' ORDER BY table_name"
        )
        for table, kind in ((str(row[0]), str(row[1])) for row in rows):
            if only is not None and table not in only:
                continue
            if kind == "SEQUENCE":
                self._sequence(table)
                continue
            text = self._text(f"SHOW CREATE TABLE {_quoted(table)}", 1)
            # MariaDB spells the sequence of a default with its database; MySQL keeps whether a charset was said or followed.
            text = text.replace(f"nextval({self._own}", "nextval(")
            self.facts["definition of table", table] = _CHARSET.sub("", text)
            self.contents[table] = self._content(table, text, versioned=kind == "SYSTEM VERSIONED")

    def _sequence(self, sequence: str) -> None:
        self.facts["sequence", sequence] = self._text(f"SHOW CREATE SEQUENCE {_quoted(sequence)}", 1)
        value = self._ask(f"SELECT next_not_cached_value, cycle_count FROM {_quoted(sequence)}")
        self.facts["value of sequence", sequence] = str(value[0][0])

    def _content(self, table: str, text: str, *, versioned: bool) -> TableContent:
        columns = self._ask(
            "SELECT column_name, data_type, generation_expression FROM information_schema.columns"
            f" WHERE table_schema = DATABASE() AND table_name = {self._session.quoted(table)} ORDER BY column_name"
        )
        values = [_value(str(column), str(kind)) for column, kind, generated in columns if not generated]
        source = _quoted(table)
        if versioned:
            period = _PERIOD.search(text)
            first, last = period.groups() if period else ("ROW_START", "ROW_END")
            values += [f"CONCAT({first})", f"CONCAT({last})"]
            source += " FOR SYSTEM_TIME ALL"
        row = ", ".join(f"IFNULL({value}, '~')" for value in values) or "''"
        # A sum of 64 bits of each row's hash, exact as a decimal number.
        query = (
            "SELECT COUNT(*), SUM(CAST(CONV(LEFT(SHA2(CONCAT_WS(',', "
            f"{row}), 256), 16), 16, 10) AS UNSIGNED)) FROM {source}"
        )
        count, total = self._ask(query)[0]
        return TableContent(int(count), str(total or 0))

    def things(self) -> None:
        """Views, routines, triggers and events."""
        database = self._ask(
            "SELECT default_character_set_name, default_collation_name"
            + (", schema_comment" if self._session.is_mariadb else "")
            + " FROM information_schema.schemata WHERE schema_name = DATABASE()"
        )
        self.facts["database", "itself"] = "|".join(str(part) for part in database[0])
        for (view,) in self._ask(
            "SELECT table_name FROM information_schema.views WHERE table_schema = DATABASE() ORDER BY 1"
        ):
            self._made("view", str(view), f"SHOW CREATE VIEW {_quoted(str(view))}", 1, (2, 3))
        for kind, routine in self._ask(
            "SELECT routine_type, routine_name FROM information_schema.routines WHERE routine_schema = DATABASE()"
            " ORDER BY 1, 2"
        ):
            query = f"SHOW CREATE {kind} {_quoted(str(routine))}"
            self._made(_KINDS.get(str(kind), "routine"), str(routine), query, 2, (1, 3, 4, 5))
        for trigger, table, order in self._ask(
            "SELECT trigger_name, event_object_table, action_order FROM information_schema.triggers"
            " WHERE trigger_schema = DATABASE() ORDER BY 1"
        ):
            more = f"{table}|{order}"
            self._made("trigger", str(trigger), f"SHOW CREATE TRIGGER {_quoted(str(trigger))}", 2, (1, 3, 4, 5), more)
        for (event,) in self._ask(
            "SELECT event_name FROM information_schema.events WHERE event_schema = DATABASE() ORDER BY 1"
        ):
            self._made("event", str(event), f"SHOW CREATE EVENT {_quoted(str(event))}", 3, (1, 2, 4, 5, 6))

    def _made(self, kind: str, thing: str, query: str, text: int, more: Sequence[int], besides: str = "") -> None:
        row = self._ask(query)[0]
        if row[text] is None:
            raise EngineError(f"the definition of {kind} {thing} can't be read")
        whole = str(row[text])
        found = _DEFINER.search(whole)
        maker = found.group(1) if found else ""
        number = self._makers.setdefault(maker, len(self._makers))
        words = _DEFINER.sub("", whole, count=1).rstrip()
        state = [words, *(str(row[part]) for part in more), besides, f"made by {number}"]
        self.facts[kind, thing] = "|".join(state)

    def _text(self, query: str, column: int) -> str:
        return str(self._ask(query)[0][column])

    def _ask(self, query: str) -> Sequence[Row]:
        return self._session.ask(query, self._pulse)


def _value(column: str, kind: str) -> str:
    """What of a value goes into its row's hash: NULL, or a text without commas that says all of it."""
    quoted = _quoted(column)
    if kind in {"float", "double"}:
        # Of a FLOAT as such only six digits are told. -0 becomes 0: dumps don't keep that sign, and SQL sees none.
        return f"CONCAT(CAST({quoted} AS DOUBLE) + 0e0)"
    if kind in _NUMBERED:
        return f"CONCAT(CAST({quoted} AS UNSIGNED))"
    return f"CONCAT({quoted})" if kind in _WHOLE else f"SHA2({quoted}, 256)"


def _quoted(value: str) -> str:
    return "`" + value.replace("`", "``") + "`"
