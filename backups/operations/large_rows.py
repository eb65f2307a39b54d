"""Rows so large that a server needs memory for them: what is known of a backup's, and how a server that lacks it ended."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace

from backups.models import Backup
from projects import domain, registry
from projects.engines.base import Engine
from projects.operations.base import StepFailed
from projects.operations.context import Context

MIB = 1 << 20
_LOST = {"target_lost", "server_not_ready", "tool_killed", "restore_failed"}
_END_SECONDS, _LOOK_SECONDS = 3.0, 0.2


def row_bytes_of(backup: Backup) -> int:
    """Of the backup's largest row as its dump has it, where that is known and matters; else 0."""
    return int((backup.manifest.get("dump") or {}).get("row_bytes") or 0)


def note(engine: Engine, row_bytes: int, memory_bytes: int) -> str:
    """That a server of so much memory can't take such a row back, for people; empty: it can."""
    if (needed := engine.memory_for_row(row_bytes)) <= memory_bytes:
        return ""
    return (
        f"Its largest row has {row_bytes / MIB:.0f} MiB in the dump: a server that it is restored into needs about"
        f" {needed / MIB:.0f} MiB of memory, and this one has {memory_bytes / MIB:.0f} MiB."
    )


def seen_before(side: Context) -> domain.Observation | None:
    """How the side's server is before it is filled, as far as the runtime says so now."""
    handle = side.server.handle
    try:
        return side.runtime.observe([handle])[handle]
    except domain.RuntimeUnreachable:
        return None


def end_of(side: Context, *, lost: bool, before: domain.Observation | None) -> domain.Observation:
    """How the side's server is. `lost`: its sessions were, which is seen before the runtime knows why. What was killed
    `before` in a server that runs, and ran on, is said of it for an hour: it is no reason for what failed since."""
    handle, until = side.server.handle, time.monotonic() + (_END_SECONDS if lost else 0)
    while True:
        seen = side.runtime.observe([handle])[handle]
        if before is not None and before.oom_killed and _ran_on(before, seen):
            seen = replace(seen, oom_killed=False)
        if seen.oom_killed or seen.state != domain.ServerState.RUNNING or time.monotonic() > until:
            return seen
        time.sleep(_LOOK_SECONDS)


def _ran_on(before: domain.Observation, seen: domain.Observation) -> bool:
    up = domain.ServerState.RUNNING
    return before.state == seen.state == up and before.started_at == seen.started_at


@contextlib.contextmanager
def memory_told(side: Context, backup: Backup) -> Iterator[None]:
    """A restore that ends since the side's server ran out of memory fails with `plan_too_small`: again it would do the same."""
    before = seen_before(side)
    try:
        yield
    except (StepFailed, domain.ServerNotReady, domain.StaleHandle) as error:
        if isinstance(error, StepFailed) and error.code not in _LOST:
            raise
        code = error.code if isinstance(error, StepFailed) else ""
        if not end_of(side, lost=code in {"", "target_lost", "server_not_ready"}, before=before).oom_killed:
            raise
        memory = side.server.memory_bytes
        told = f"The server ran out of memory, of which it has {memory / MIB:.0f} MiB, while it was filled."
        more = note(registry.engine(backup.engine), row_bytes_of(backup), memory)
        said = f"It ended with: {error.detail}" if isinstance(error, StepFailed) else ""
        raise StepFailed("plan_too_small", " ".join(filter(None, (told, more, said))), retryable=False) from error
