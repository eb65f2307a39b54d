"""A hash of a row that is equal for equal rows only, as an SQL expression: cheap, since it is computed for every row.

Each value is hashed with the hash of those before it as its seed. Types whose own hash function sees every bit are hashed
as they are; of all others the output function's text is, which tells apart what their own equality does not (1.0 and
1.00, 0 and -0). Nothing of the tenant's takes part: no cast, operator or view (rule 18).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from psycopg import sql

_NESTED_MOST = 100  # columns; what is beyond is hashed as text, in one go
_BITS = 62
# type's oid → how its value is hashed with a seed, and what stands for a null (which a mask tells apart)
_EXACT: dict[int, tuple[str, str]] = {
    20: ("pg_catalog.hashint8extended({value}, {seed})", "0::pg_catalog.int8"),
    21: ("pg_catalog.hashint2extended({value}, {seed})", "0::pg_catalog.int2"),
    23: ("pg_catalog.hashint4extended({value}, {seed})", "0::pg_catalog.int4"),
    25: ('pg_catalog.hashtextextended({value} COLLATE pg_catalog."C", {seed})', "''::pg_catalog.text"),
    1043: ('pg_catalog.hashtextextended({value} COLLATE pg_catalog."C", {seed})', "''::pg_catalog.varchar"),
    1114: ("pg_catalog.timestamp_hash_extended({value}, {seed})", "'epoch'::pg_catalog.timestamp"),
    1184: (
        "pg_catalog.timestamp_hash_extended(pg_catalog.timezone('UTC', {value}), {seed})", "'epoch'::pg_catalog.timestamptz",
    ),
    2950: (
        "pg_catalog.uuid_hash_extended({value}, {seed})", "'00000000-0000-0000-0000-000000000000'::pg_catalog.uuid",
    ),
}  # fmt: skip


class Column(NamedTuple):
    name: str
    type: int  # oid in pg_type
    required: bool  # NOT NULL


def hashed(columns: Sequence[Column]) -> sql.Composable:
    """An expression over the columns of one table: 64 bits, never null."""
    exact = [column for column in columns if column.type in _EXACT][:_NESTED_MOST]
    others = [column for column in columns if column not in exact]
    seed: sql.Composable = sql.SQL("1::pg_catalog.int8")
    nullable = [column for column in exact if not column.required]
    for first in range(0, len(nullable), _BITS):
        seed = sql.SQL("pg_catalog.hashint8extended({}, {})").format(_mask(nullable[first : first + _BITS]), seed)
    for column in exact:
        function, empty = _EXACT[column.type]
        value: sql.Composable = sql.Identifier(column.name)
        if not column.required:
            value = sql.SQL("COALESCE({}, {})").format(value, sql.SQL(empty))
        seed = sql.SQL(function).format(value=value, seed=seed)
    if len(nullable) < len(exact):  # 18 knows NOT NULL that is not valid yet: a null may be there all the same
        names = sql.SQL(", ").join(sql.Identifier(column.name) for column in exact)
        seed = sql.SQL("COALESCE({}, pg_catalog.hashtextextended({}, 2))").format(seed, _text(names))
    if others or not columns:
        names = sql.SQL(", ").join(sql.Identifier(column.name) for column in others)
        seed = sql.SQL("pg_catalog.hashtextextended({}, {})").format(_text(names), seed)
    return seed


def _text(names: sql.Composable) -> sql.Composable:
    """An output function and a constructor of text: what a cast would do, without asking which casts there are."""
    return sql.SQL("pg_catalog.textin(pg_catalog.record_out(ROW({})))").format(names)


def _mask(columns: Sequence[Column]) -> sql.Composable:
    """One bit for each that is null."""
    bits = (
        sql.SQL("CASE WHEN {} IS NULL THEN {} ELSE 0 END").format(
            sql.Identifier(column.name), sql.SQL(f"{1 << place}::pg_catalog.int8")
        )
        for place, column in enumerate(columns)
    )
    return sql.SQL("({})").format(sql.SQL(" | ").join(bits))
