"""Throw-away tools: what is run, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import IO


@dataclass(frozen=True, slots=True)
class Command:
    """Data; argv never holds a secret. `{secret:<name>}` in argv and env is the path of that secret file. `programs`: what
    a shell in argv runs and that need not come with the server; where one is missing it ends with `TOOLS_MISSING`."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    secret_files: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    programs: tuple[str, ...] = ()


TOOLS_MISSING = 69  # exit code of a tool whose program is not there (`sysexits.h`: service unavailable)


@dataclass(frozen=True, slots=True)
class ExitResult:
    exit_code: int
    oom_killed: bool = False


@dataclass(slots=True)
class ToolHandle:
    """A running throw-away tool: streams as given, `poll`, `wait(timeout_seconds)`, `kill` (idempotent, removes it). That
    `stdin` was closed does not reach every tool (over TLS it can't)."""

    name: str
    stdin: IO[bytes]
    stdout: IO[bytes] | None
    stderr: IO[bytes] | None
    poll: Callable[[], ExitResult | None]
    wait: Callable[[float], ExitResult]
    kill: Callable[[], None]
