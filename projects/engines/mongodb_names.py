"""Which names a user may choose for a database or login on MongoDB and FerretDB."""

from __future__ import annotations

import re

_FORM = re.compile(r"[a-z_][a-z0-9_]{0,62}")
_PREFIXES = ("nvs_", "novastack")

RESERVED = frozenset({"admin", "config", "local", "system", "root", "mongodb", "ferretdb", "novastack"})


def validate(value: str, title: str) -> str:
    """The name unchanged, or `ValueError` that says what to do."""
    if not _FORM.fullmatch(value):
        raise ValueError(
            "Use 1 to 63 lower-case letters, digits and underscores, beginning with a letter or an underscore."
        )
    if value in RESERVED:
        raise ValueError(f"“{value}” is a name of {title} itself. Choose another one.")
    if value.startswith(_PREFIXES):
        raise ValueError(f"Names that begin with {', '.join(_PREFIXES)} are reserved. Choose another one.")
    return value
