"""Input of people, made clean or refused with the field's name."""

from __future__ import annotations

import re
from typing import Any

from novastack.common.errors import Invalid
from projects.engines.base import Engine

NAME_MAX = 63
_LABEL_KEY = re.compile(r"^[a-z0-9]([a-z0-9._/-]{0,61}[a-z0-9])?$")


def clean_name(value: Any, *, field: str = "name") -> str:
    """A project's name for people: 1 to 63 printable characters."""
    if not isinstance(value, str):
        raise Invalid.field(field, "invalid", "Give a text.")
    text = " ".join(value.split(" ")).strip()
    if not text:
        raise Invalid.field(field, "blank", "Give the project a name.")
    if len(text) > NAME_MAX:
        raise Invalid.field(field, "max_length", f"Use at most {NAME_MAX} characters.")
    if not text.isprintable():
        raise Invalid.field(field, "invalid", "Use printable characters only: no line breaks, no control characters.")
    return text


def clean_description(value: Any) -> str:
    if not isinstance(value, str) or len(value) > 500:
        raise Invalid.field("description", "max_length", "Use a text of at most 500 characters.")
    if any(not c.isprintable() and c not in "\n\r\t" for c in value):
        raise Invalid.field("description", "invalid", "Use printable characters only.")
    return value.strip()


def clean_labels(value: Any) -> dict[str, str]:
    """At most 32 pairs of short texts."""
    if not isinstance(value, dict) or len(value) > 32:
        raise Invalid.field("labels", "invalid", "Give an object of at most 32 keys with text values.")
    for key, text in value.items():
        if not isinstance(key, str) or not _LABEL_KEY.fullmatch(key):
            raise Invalid.field("labels", "invalid", "Keys are 1 to 63 of a-z, 0-9, dot, dash, slash, underscore.")
        if not isinstance(text, str) or len(text) > 128 or not text.isprintable():
            raise Invalid.field("labels", "invalid", "Values are printable texts of at most 128 characters.")
    return dict(value)


def clean_identifier(engine: Engine, value: Any, *, field: str) -> str:
    """A database or user name that the engine takes as it is; refused, never repaired."""
    if not isinstance(value, str):
        raise Invalid.field(field, "invalid", "Give a text.")
    try:
        return engine.validate_username(value) if field == "username" else engine.validate_identifier(value)
    except ValueError as error:
        raise Invalid.field(field, "invalid", str(error)) from None


def suggest_identifier(engine: Engine, slug: str, *, suffix: str = "") -> str:
    """A valid identifier made from a slug; with a suffix, one that also fits for a login."""
    length = engine.max_username_length if suffix else 63
    base = re.sub(r"[^a-z0-9_]", "_", slug.lower()).strip("_")[: length - len(suffix) - 4].rstrip("_") or "app"
    if base[0].isdigit():
        base = f"db_{base}"
    candidate = base + suffix
    try:
        return engine.validate_identifier(candidate)
    except ValueError:
        return engine.validate_identifier(f"db_{candidate}"[:length])
