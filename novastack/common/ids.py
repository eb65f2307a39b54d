"""Identifiers: UUID version 7 (RFC 9562), ordered by creation time (rule 49)."""

import os
import re
import threading
import time
import uuid

_lock = threading.Lock()
_last = 0


def uuid7() -> uuid.UUID:
    """A new UUIDv7. 48 bits of milliseconds, then 12 bits that count up within one, so that a process's ids ascend."""
    global _last
    with _lock:
        stamp = time.time_ns() * 4096 // 1_000_000  # milliseconds << 12, the fraction in the low 12 bits
        if stamp <= _last:
            stamp = _last + 1
        _last = stamp
    millis, fraction = stamp >> 12, stamp & 0xFFF
    rand = int.from_bytes(os.urandom(8), "big") & ((1 << 62) - 1)
    return uuid.UUID(int=(millis << 80) | (0x7 << 76) | (fraction << 64) | (0b10 << 62) | rand)


_SLUG = re.compile(r"[^a-z0-9]+")


def slug_from(text: str, *, fallback: str, max_length: int = 48) -> str:
    """A lower-case ASCII slug of the text; `fallback` if nothing of it can be kept."""
    from django.utils.text import slugify

    return _SLUG.sub("-", slugify(text)).strip("-")[:max_length].strip("-") or fallback
