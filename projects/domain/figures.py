"""What an engine counts and measures."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Counters:
    """What an engine counts since it began to, `uptime_seconds` ago: two readings make a rate. None where it can't tell.

    `cache_hits` were found in the engine's own cache, `cache_misses` not. `server_wide`: of all databases of the server.
    NovaStack's own looks are in them.
    """

    transactions: int | None = None
    queries: int | None = None
    cache_hits: int | None = None
    cache_misses: int | None = None
    uptime_seconds: float | None = None
    server_wide: bool = False


@dataclass(frozen=True, slots=True)
class TableCount:
    """One table (or collection). Rows and bytes (with its indexes) are the engine's own estimates; None: it can't tell."""

    name: str
    rows: int | None
    size_bytes: int | None


@dataclass(frozen=True, slots=True)
class TableCounts:
    """The largest tables first, as far as asked for; `total` is how many there are."""

    tables: tuple[TableCount, ...]
    total: int


@dataclass(frozen=True, slots=True)
class ServerStats:
    """What the engine itself says: sizes in bytes, connections as counts; None where it can't tell or has no limit."""

    size_bytes: int
    connections: int | None
    connections_limit: int | None
    version: str = ""
    fenced: bool = False  # `EngineAdmin.fence_writers` holds for new sessions
    counters: Counters | None = None
