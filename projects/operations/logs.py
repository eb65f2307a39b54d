"""Reading a server's log, live."""

from __future__ import annotations

from projects import domain
from projects.models import DatabaseServer
from projects.operations import wiring

MAX_BYTES = 1 << 20


def log_lines(server: DatabaseServer, tail: int) -> tuple[list[str], str]:
    """The last `tail` lines, oldest first, at most 1 MiB; and why there are none, if the runtime did not give any."""
    kept: list[str] = []
    size = 0
    try:
        for line in wiring.runtime_of(server.region).logs(server.handle, tail=tail):
            # PostgreSQL and Docker both carry bytes that are no text; NUL and other controls are not for JSON or pages.
            text = "".join(c if c.isprintable() or c == "\t" else "�" for c in line.decode("utf-8", "replace"))
            size += len(text)
            if size > MAX_BYTES:
                break
            kept.append(text)
    except domain.NovaStackRuntimeError as error:
        return [], str(error) or "The runtime can't be reached now."
    return kept, ""
