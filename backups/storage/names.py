"""What an object may be called: safe as a path and as an S3 key alike."""

from __future__ import annotations

import re

MOST_CHARACTERS = 255
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*", re.ASCII)


def parts_of(key: str) -> tuple[str, ...]:
    """The parts between the slashes; `ValueError` for what is no key: `a/b/c` of [A-Za-z0-9._-], no part begins with a dot
    or a dash (unfinished objects and `..` do), at most 255 characters."""
    parts = tuple(key.split("/"))
    if len(key) > MOST_CHARACTERS or not all(_PART.fullmatch(part) for part in parts):
        raise ValueError(f"no key of an object: {key[:80]!r}")
    return parts
