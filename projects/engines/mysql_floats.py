"""FLOAT values in dumps. The dump programs tell six digits of them (8388609 becomes 8388610); what a value had besides is put
right by statements that follow the tables in the dump, before there are triggers: one for each row that needs it, found by
its primary key, and only while it still tells the same six digits. Tables without such a key, and tables that keep their
history, can't be put right so: with such values they can't be copied.

The client asks the server for these statements by `LIST`: its answer is a query for each table that has FLOAT columns, and
the answers to those are the statements.
"""

# ruff: noqa: S608 - our own words, and quoted names
from __future__ import annotations

from projects.engines.mysql_session import Session

BEFORE = "SET SESSION time_zone = '+00:00', sql_mode = '', foreign_key_checks = 0;"
AFTER = "SET SESSION time_zone = DEFAULT, sql_mode = DEFAULT, foreign_key_checks = DEFAULT;"
_NUMBERS = "('tinyint', 'smallint', 'mediumint', 'int', 'bigint', 'decimal', 'double', 'year')"
_BYTES = "('binary', 'varbinary', 'tinyblob', 'blob', 'mediumblob', 'longblob', 'bit')"
_IS_FLOAT = "(c.data_type = 'float' AND COALESCE(c.generation_expression, '') = '')"
_TABLES = (
    "FROM information_schema.tables t JOIN information_schema.columns c ON c.table_schema = t.table_schema"
    " AND c.table_name = t.table_name WHERE t.table_type IN ('BASE TABLE', 'SYSTEM VERSIONED') AND t.table_schema ="
)
_HAS_FLOATS = f"GROUP BY t.table_schema, t.table_name, t.table_type HAVING SUM({_IS_FLOAT}) > 0"
# Whether a table's rows can be found: by a key of its own that is exact, and without leaving a trace in its history.
_FINDABLE = (
    "t.table_type = 'BASE TABLE' AND SUM(c.column_key = 'PRI') > 0"
    " AND SUM(c.column_key = 'PRI' AND c.data_type = 'float') = 0"
)


def _filled(template: str, what: str = "c.column_name") -> str:
    """SQL for a piece of a query: `#N#` is the quoted name, `#H#` the same as a literal."""
    name = f"CONCAT('`', REPLACE({what}, '`', '``'), '`')"
    literal = "'" + template.replace("'", "''") + "'"
    return f"REPLACE(REPLACE({literal}, '#H#', CONCAT('_utf8mb4 X''', HEX({name}), '''')), '#N#', {name})"


def _joined(parts: str, between: str) -> str:
    return f"GROUP_CONCAT({parts} ORDER BY c.ordinal_position SEPARATOR {between})"


_SETS = (
    f"CASE WHEN {_IS_FLOAT} THEN " + _filled("#H#, ' = ', IFNULL(CONCAT(CAST(#N# AS DOUBLE)), 'NULL')")
    # Else such a column would take the time of the restore.
    + " WHEN c.extra LIKE '%on update%' THEN " + _filled("#H#, ' = ', #H#") + " END"
)  # fmt: skip
_WHERE = (
    f"CASE WHEN c.column_key = 'PRI' AND c.data_type IN {_NUMBERS} THEN " + _filled("#H#, ' = ', CONCAT(#N#)")
    + f" WHEN c.column_key = 'PRI' AND c.data_type IN {_BYTES} THEN " + _filled("#H#, ' = X''', HEX(#N#), ''''")
    + " WHEN c.column_key = 'PRI' THEN " + _filled("#H#, ' = ', QUOTE(#N#)")
    + f" WHEN {_IS_FLOAT} THEN " + _filled("'CONCAT(', #H#, ') <=> ', QUOTE(CONCAT(#N#))") + " END"
)  # fmt: skip
_LOST = f"CASE WHEN {_IS_FLOAT} THEN " + _filled("#N# <> CAST(CONCAT(#N#) AS FLOAT)") + " END"
LIST = (
    "SET SESSION group_concat_max_len = 1000000; SELECT CONCAT("
    + ", ".join(
        (
            _filled("SELECT CONCAT('UPDATE ', #H#, ' SET ', ", "t.table_name"),
            _joined(_SETS, "', '', '', '"),
            "', '' WHERE '', '",
            _joined(_WHERE, "', '' AND '', '"),
            _filled(", ';') FROM #N# WHERE ", "t.table_name"),
            _joined(_LOST, "' OR '"),
            "';'",
        )
    )
    + f") {_TABLES} DATABASE() {_HAS_FLOATS} AND {_FINDABLE}"
)
_OTHERS = (
    "SELECT "
    + ", ".join(
        (
            "t.table_name",
            "CONCAT(" + _filled("SELECT 1 FROM #N#.", "t.table_schema") + ", " + _filled("#N# WHERE ", "t.table_name")
            + ", " + _joined(_LOST, "' OR '") + ", ' LIMIT 1')",
        )
    )
    + f" {_TABLES} %s {_HAS_FLOATS} AND NOT ({_FINDABLE})"
)  # fmt: skip


def beyond_help(session: Session, database: str) -> list[str]:
    """Tables with FLOAT values of more than six digits that can't be put right."""
    session.do("SET SESSION group_concat_max_len = 1000000")
    tables = session.rows(_OTHERS.replace("%on update%", "%%on update%%"), database)
    return sorted(str(table) for table, query in tables if session.rows(str(query)))
