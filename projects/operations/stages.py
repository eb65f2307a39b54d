"""Running tools, as operations that stream between them see them: what they said, how they ended, and which failure that
is. Copies (`copying`) and backups share this."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import IO

import structlog

from novastack.common.clock import now
from projects import domain
from projects.engines import framing
from projects.engines.moments import Moment
from projects.operations.base import StepFailed

log = structlog.get_logger(__name__)
TOOL_MEMORY_BYTES = 384 << 20
LOOK_SECONDS = 0.5
END_SECONDS = 20.0
_WORDS_BYTES = 8 << 10
_FULL = re.compile(
    r"no space left on device|disk (?:is )?full|errno:? 28\b|could not extend file|table .* is full", re.I
)
_LOST = re.compile(
    r"server closed the connection|closed unexpectedly|connection reset|connection to server|could not connect"
    r"|terminating connection|lost connection|can't connect|server has gone away|shutdown in progress"
    r"|connection refused|shutting down|unexpected eof|ssl error: |ssl connection has been closed|broken pipe"
    r"|no connection to the server|connection timed out|socket was unexpectedly|incomplete read of|server selection error"
    # of libpq: what the server itself has against a COPY comes by PQgetResult
    r"|PQgetCopyData\(\) failed",
    re.IGNORECASE,
)
_CHANGED = re.compile(
    r"(?:lock|statement) timeout|could not obtain lock|deadlock detected|cache lookup failed|could not open relation"
    r"|relation .* does not exist|concurrently (?:updated|deleted)|definition has changed|invalid snapshot identifier",
    re.IGNORECASE,
)
_CULPRIT = re.compile(r"error|fatal|failed|denied|unknown", re.IGNORECASE)
_SECOND = re.compile(r"^(?:DETAIL|CONTEXT|HINT|QUERY|Command was)\b|^--", re.IGNORECASE)


@dataclass(slots=True)
class Stage:
    """One running tool, and the beginning and the end of what it said. `what`: `dump` or `restore`."""

    what: str
    tool: domain.ToolHandle
    said: bytearray = field(default_factory=bytearray)
    last: bytearray = field(default_factory=bytearray)
    result: domain.ExitResult | None = None
    listener: threading.Thread | None = None

    def listen(self) -> None:
        stream = self.tool.stderr
        if stream is not None:
            self.listener = threading.Thread(target=self._hear, args=(stream,), daemon=True, name=self.tool.name)
            self.listener.start()

    def begin(self, moment: Moment) -> datetime:
        """Of a dump: from the moment on. What the tool waits for is told, and nothing else. Returns a time not after it."""
        at = now()
        said = moment.begin()
        # A tool that has ended already gives its reasons to who waits for its end.
        with contextlib.suppress(OSError):
            self.tool.stdin.write(said)
            self.tool.stdin.close()
        return at

    def _hear(self, stream: IO[bytes]) -> None:
        # The beginning: the first error is the cause, what comes after it are consequences.
        with contextlib.suppress(OSError, ValueError):
            while piece := stream.read(4096):
                if len(self.said) < _WORDS_BYTES:
                    self.said += piece
                self.last += piece
                del self.last[:-_WORDS_BYTES]

    def end(self) -> None:
        """Kill and remove it. What it still says is read away meanwhile: an engine does not let go of a container whose
        output nobody takes."""
        threading.Thread(target=self._drain, daemon=True, name=f"drain-{self.tool.name}").start()
        with contextlib.suppress(domain.NovaStackRuntimeError):
            self.tool.kill()
        with contextlib.suppress(OSError, ValueError):
            self.tool.stdin.close()

    def _drain(self) -> None:
        stream = self.tool.stdout
        with contextlib.suppress(OSError, ValueError):
            while stream is not None and stream.read(1 << 16):
                pass
            if stream is not None:
                stream.close()

    def poll(self) -> domain.ExitResult | None:
        if self.result is None:
            self.result = self.tool.poll()
        return self.result

    def words(self) -> str:
        """What it said of its failure, in one line, without the lines that quote rows."""
        lines = [line for line in self._lines(self.said) if line and not _SECOND.match(line)]
        chosen = next((line for line in lines if _CULPRIT.search(line)), lines[-1] if lines else "")
        return chosen[:300]

    def last_lines(self) -> list[str]:
        """The end of what it said, once it has ended."""
        return self._lines(self.last)

    def _lines(self, said: bytearray) -> list[str]:
        if self.listener is not None:
            self.listener.join(2)
        return [" ".join(line.split()) for line in bytes(said).decode(errors="replace").splitlines()]

    def failure(self, ended: domain.ExitResult) -> StepFailed:
        """Which failure this end is. `dump_failed`, `restore_failed`, `source_lost`, `source_changed`, `target_lost`,
        `target_full`, `tool_out_of_memory`, `tool_killed`, `tools_missing`."""
        words = self.words()
        log.warning("copy tool failed", stage=self.what, exit_code=ended.exit_code, oom=ended.oom_killed, said=words)
        if ended.oom_killed:
            return StepFailed("tool_out_of_memory", f"The {self.what} tool was killed: out of memory.")
        if self.what == "restore" and _FULL.search(words):
            return StepFailed("target_full", f"There is not enough room at the target: {words}", retryable=False)
        if ended.exit_code == framing.CUT_OFF:
            return StepFailed("restore_failed", "The dump did not come whole; what was restored is thrown away.")
        if ended.exit_code == domain.TOOLS_MISSING:
            return StepFailed("tools_missing", f"The {self.what} tool is not there: {words}", retryable=False)
        if ended.exit_code in {137, 143, -9, -15}:
            return StepFailed("tool_killed", f"The {self.what} tool was killed.")
        dumps = self.what == "dump"
        if _LOST.search(words) and dumps:
            return StepFailed("source_lost", f"The source's server went away meanwhile: {words}")
        if _LOST.search(words):
            return StepFailed("target_lost", f"The target's server went away meanwhile: {words}")
        if dumps and _CHANGED.search(words):
            return StepFailed("source_changed", f"Tables were held or changed by others as the dump began: {words}")
        said = words or f"The tool ended with code {ended.exit_code}."
        if dumps:
            return StepFailed("dump_failed", said, retryable=False)
        return StepFailed("restore_failed", said, retryable=False)

    def awaited(
        self, pulse: Callable[[int], None], moved: int, *, seconds: float | None = END_SECONDS
    ) -> domain.ExitResult:
        """The tool's end; without `seconds` as long as `pulse` lets it: indexes are made after the last piece came."""
        until = None if seconds is None else time.monotonic() + seconds
        while (ended := self.poll()) is None:
            pulse(moved)
            if until is not None and time.monotonic() > until:
                code = "dump_failed" if self.what == "dump" else "restore_failed"
                raise StepFailed(code, f"The {self.what} tool neither goes on nor ends.")
            with contextlib.suppress(TimeoutError):
                self.result = self.tool.wait(LOOK_SECONDS)
        return ended
