"""Sizes as people write them in settings."""

from __future__ import annotations

import re

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:I?B)?", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Bytes: `4G`, `512M`, `1.5 GiB`, `1073741824`; units are powers of 1024. Raises `ValueError` that says what to do."""
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{text[:40]!r} is no size: give a number with K, M, G or T, such as 4G")
    return int(float(found[1]) * _UNITS[found[2].upper()])
