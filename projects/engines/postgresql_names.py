"""Which names a user may choose for a PostgreSQL database or login."""

from __future__ import annotations

import re

_FORM = re.compile(r"[a-z_][a-z0-9_]{0,62}")
_PREFIXES = ("pg_", "nvs_", "novastack")

# `SELECT word FROM pg_get_keywords() WHERE catcode IN ('R', 'T')`, PostgreSQL 18. Quoted they would work, but then
# every client has to quote them.
_WORDS = """
all analyse analyze and any array as asc asymmetric authorization binary both case cast check collate collation column
concurrently constraint create cross current_catalog current_date current_role current_schema current_time
current_timestamp current_user default deferrable desc distinct do else end except false fetch for foreign freeze from
full grant group having ilike in initially inner intersect into is isnull join lateral leading left like limit localtime
localtimestamp natural not notnull null offset on only or order outer overlaps placing primary references returning
right select session_user similar some symmetric system_user table tablesample then to trailing true union unique user
using variadic verbose when where window with
"""
_ROLES_AND_DATABASES = "postgres template0 template1 public none root admin replication"

RESERVED = frozenset([*_WORDS.split(), *_ROLES_AND_DATABASES.split(), "novastack"])


def validate(value: str) -> str:
    """The name unchanged, or `ValueError` that says what to do."""
    if not _FORM.fullmatch(value):
        raise ValueError(
            "Use 1 to 63 lower-case letters, digits and underscores, beginning with a letter or an underscore."
        )
    if value.startswith(_PREFIXES):
        raise ValueError(f"Names that begin with {', '.join(_PREFIXES)} are reserved. Choose another one.")
    if value in RESERVED:
        raise ValueError(f"“{value}” is a reserved word of PostgreSQL. Choose another name.")
    return value
