"""Rows in the INSERT statements of mysqldump and mariadb-dump: told apart, counted and hashed.

Each row's text is hashed by itself and the hashes are added up, so that the order of rows does not count. A dump is gigabytes
of rows, so what is done for each of them is little: a statement is cut at what stands between rows (`),(`, or with a line's
end), and a cut within a text is noticed by its quotes. Where that does not settle it, the statement is read character by
character (`apart`), which alone decides what is refused; both come to the same rows (tests/engines/test_mysql_rows.py).
"""

from __future__ import annotations

import re
from hashlib import blake2b

ROW = re.compile(rb"\((?:[^'()]++|'(?:[^'\\]++|\\.)*+')*+\)", re.DOTALL)
DIGEST_BYTES = 16
SUM = 1 << (8 * DIGEST_BYTES)
# A restore takes it for 0, and SQL sees no difference.
_MINUS_ZERO = re.compile(rb"-(?<=[(,]-)(0(?:\.0{1,64})?)(?=[,)])")


class Unreadable(ValueError):
    """Rows that can't be told apart."""


def told(text: bytes) -> bytes:
    """What of a row's text goes into its hash: -0 is 0. The same of many rows at once as of each of them."""
    return _MINUS_ZERO.sub(rb"\1", text) if b"-0" in text else text


def total(body: bytes) -> tuple[int, int]:
    """The number of rows in the body of a statement, from the first parenthesis to the last, and the sum of their hashes,
    below `SUM`. Raises `Unreadable`."""
    body = told(body)
    rows = cut(body)
    if rows is None:
        rows = apart(body)
    digests = [blake2b(row, digest_size=DIGEST_BYTES).digest() for row in rows]
    return len(rows), sum(map(int.from_bytes, digests)) % SUM


def apart(body: bytes) -> list[bytes]:
    """The rows, read character by character. Raises `Unreadable`."""
    rows: list[bytes] = ROW.findall(body)
    # Between two rows there is a comma, and with MariaDB a line's end: nothing else may be left.
    if b",".join(rows) != body and b",\n".join(rows) != body:
        raise Unreadable
    return rows


def cut(body: bytes) -> list[bytes] | None:
    """The same rows, in a fraction of the time; None: it takes `apart` to tell them, or that they can't be told."""
    if not (body.startswith(b"(") and body.endswith(b")")):
        return None
    if b"\n" not in body:
        rows = body.replace(b"),(", b")\n(").split(b"\n")
    elif body.count(b"\n") == body.count(b"),\n("):  # within a text dumps write a line's end as two characters
        rows = body.split(b",\n")
    else:
        return None
    # No other escapes matter to where a text ends.
    escaped = b"\\" in body and (b"\\'" in body or b"\\\\" in body)
    if not escaped and body.count(b"(") == len(rows) == body.count(b")"):
        # Where a row was cut within a text, the first such row has one quote too many.
        return None if [row for row in rows if row.count(b"'") & 1] else rows
    for row in rows:
        if row.count(b"(") > 1 or row.count(b")") > 1 or b"\\'" in row or b"\\\\" in row:
            if ROW.fullmatch(row) is None:
                return None
        elif row.count(b"'") & 1:
            return None
    return rows
