"""A database's content from one server to another: a dump tool beside the one, a restore tool beside the other, and this
process in between with one piece in hand (constant memory, nothing on a disk).

Nothing is taken for done by one exit code: both tools must end well, the dump must have come whole (framing), and what
came about is compared with the source (`Engine.fingerprint`) by who calls this.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO

import structlog

from projects import domain
from projects.engines import framing
from projects.engines.base import Engine
from projects.operations.base import StepFailed
from projects.runtimes.base import Runtime

log = structlog.get_logger(__name__)
TOOL_MEMORY_BYTES = 384 << 20
_LOOK_SECONDS = 0.5
_END_SECONDS = 20.0
_WORDS_BYTES = 8 << 10
_FULL = re.compile(
    r"no space left on device|disk (?:is )?full|errno:? 28\b|could not extend file|table .* is full", re.I
)
_LOST = re.compile(
    r"server closed the connection|closed unexpectedly|connection reset|connection to server|could not connect"
    r"|terminating connection|lost connection|can't connect|server has gone away|shutdown in progress"
    r"|connection refused|shutting down",
    re.IGNORECASE,
)
_CULPRIT = re.compile(r"error|fatal|failed|denied|unknown", re.IGNORECASE)
_SECOND = re.compile(r"^(?:DETAIL|CONTEXT|HINT|QUERY|Command was)\b|^--", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Side:
    """One end of a copy. `place`: where the tool finds the server; `credentials` are the tool's, with the database."""

    runtime: Runtime
    handle: domain.Handle
    image: str
    place: domain.Endpoint
    credentials: domain.Credentials


@dataclass(slots=True)
class Stage:
    """One running tool, and what it said of itself. `what`: dump, restore."""

    what: str
    tool: domain.ToolHandle
    said: bytearray = field(default_factory=bytearray)
    result: domain.ExitResult | None = None
    listener: threading.Thread | None = None

    def listen(self) -> None:
        stream = self.tool.stderr
        if stream is not None:
            self.listener = threading.Thread(target=self._hear, args=(stream,), daemon=True, name=self.tool.name)
            self.listener.start()

    def _hear(self, stream: IO[bytes]) -> None:
        # The beginning: the first error is the cause, what comes after it are consequences.
        with contextlib.suppress(OSError, ValueError):
            while piece := stream.read(4096):
                if len(self.said) < _WORDS_BYTES:
                    self.said += piece

    def end(self) -> None:
        """Kill and remove it. What it still says is read away meanwhile: an engine does not let go of a container whose
        output nobody takes."""
        threading.Thread(target=self._drain, daemon=True, name=f"drain-{self.tool.name}").start()
        with contextlib.suppress(domain.NovaStackRuntimeError):
            self.tool.kill()
        with contextlib.suppress(OSError, ValueError):
            if self.tool.stdin is not None:
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
        if self.listener is not None:
            self.listener.join(2)
        lines = [" ".join(line.split()) for line in self.said.decode(errors="replace").splitlines()]
        lines = [line for line in lines if line and not _SECOND.match(line)]
        chosen = next((line for line in lines if _CULPRIT.search(line)), lines[-1] if lines else "")
        return chosen[:300]


def tool_names(stem: str) -> tuple[str, str]:
    """Of the dump's and the restore's tool: deterministic, so that what a killed worker left can be found."""
    return f"nvs-tool-{stem}-dump", f"nvs-tool-{stem}-restore"


def remove_tools(source: Runtime | None, target: Runtime | None, stem: str) -> None:
    """End what is left of tools; absent is success. Raises `RuntimeUnreachable`."""
    dump, restore = tool_names(stem)
    if source is not None:
        source.remove_tool(dump)
    if target is not None:
        target.remove_tool(restore)


def copy(engine: Engine, source: Side, target: Side, *, stem: str, pulse: Callable[[int], None]) -> int:
    """Fill the target's empty database with the source's content; returns the bytes of the dump.

    `pulse` gets the bytes so far twice a second and ends the copy by raising. Raises `StepFailed` with `dump_failed`,
    `restore_failed`, `source_lost`, `target_lost`, `target_full`, `tool_out_of_memory`, and what runtimes raise. In no
    case a tool is left running, unless its runtime can't be reached.
    """
    dump_name, restore_name = tool_names(stem)
    stages: list[Stage] = []
    try:
        sink = target.runtime.run_tool(
            restore_name, target.image, engine.restore(target.place, target.credentials), beside=target.handle,
            memory_bytes=TOOL_MEMORY_BYTES,
        )  # fmt: skip
        stages.append(Stage("restore", sink))
        well = source.runtime.run_tool(
            dump_name, source.image, engine.dump(source.place, source.credentials), beside=source.handle,
            memory_bytes=TOOL_MEMORY_BYTES,
        )  # fmt: skip
        stages.append(Stage("dump", well))
        for stage in stages:
            stage.listen()
        if well.stdin is not None:
            with contextlib.suppress(OSError):
                well.stdin.close()
        return _run(stages[1], stages[0], target.runtime.stdin_of(sink), pulse)
    finally:
        for stage in stages:
            stage.end()


def _run(dump: Stage, restore: Stage, sink: IO[bytes], pulse: Callable[[int], None]) -> int:
    pump = _Pump(dump, sink)
    pump.start()
    while pump.is_alive():
        pump.join(_LOOK_SECONDS)
        pulse(pump.moved)
        ended = restore.poll()
        if ended is not None and pump.is_alive():
            raise failure(restore, ended)
    if pump.dumped is not None and pump.dumped != domain.ExitResult(0):
        raise failure(dump, pump.dumped)
    if pump.error is not None:
        ended = await_end(restore, pulse, pump.moved)
        raise failure(restore, ended) if ended.exit_code else pump.error
    ended = await_end(restore, pulse, pump.moved, seconds=None)
    if ended != domain.ExitResult(0):
        raise failure(restore, ended)
    return pump.moved


def await_end(
    stage: Stage, pulse: Callable[[int], None], moved: int, *, seconds: float | None = _END_SECONDS
) -> domain.ExitResult:
    """The tool's end; without `seconds` as long as `pulse` lets it: indexes are made after the last piece came."""
    until = None if seconds is None else time.monotonic() + seconds
    while (ended := stage.poll()) is None:
        pulse(moved)
        if until is not None and time.monotonic() > until:
            raise StepFailed("restore_failed", "The restore tool neither goes on nor ends.")
        with contextlib.suppress(TimeoutError):
            stage.result = stage.tool.wait(_LOOK_SECONDS)
    return ended


class _Pump(threading.Thread):
    """Moves pieces. The last word, that the dump is whole, is said only when the dump tool has ended well."""

    def __init__(self, dump: Stage, sink: IO[bytes]) -> None:
        super().__init__(daemon=True, name=f"pump-{dump.tool.name}")
        self._dump, self._sink = dump, sink
        self.moved = 0
        self.dumped: domain.ExitResult | None = None
        self.error: Exception | None = None

    def run(self) -> None:
        source = self._dump.tool.stdout
        assert source is not None  # noqa: S101 - every tool has one
        try:
            while piece := source.read(framing.PIECE_BYTES):
                self._sink.write(framing.frame(piece))
                self._sink.flush()
                self.moved += len(piece)
            self.dumped = self._dump.tool.wait(_END_SECONDS)
            if self.dumped == domain.ExitResult(0):
                self._sink.write(framing.END)
                self._sink.flush()
                with contextlib.suppress(OSError):
                    self._sink.close()
        except (OSError, ValueError) as error:
            # Either the tool that takes has ended, which its exit code says, or a connection broke.
            self.error = StepFailed("copy_interrupted", f"The stream between the tools broke ({type(error).__name__}).")
        except (TimeoutError, domain.NovaStackRuntimeError) as error:
            self.error = (
                error if isinstance(error, domain.NovaStackRuntimeError) else StepFailed("dump_failed", str(error))
            )


def failure(stage: Stage, ended: domain.ExitResult) -> StepFailed:
    """What the end of a tool means, by its exit code and its words."""
    words = stage.words()
    log.warning("copy tool failed", stage=stage.what, exit_code=ended.exit_code, oom=ended.oom_killed, said=words)
    if ended.oom_killed:
        return StepFailed("tool_out_of_memory", f"The {stage.what} tool was killed: out of memory.")
    if stage.what == "restore" and _FULL.search(words):
        return StepFailed("target_full", f"There is not enough room at the target: {words}", retryable=False)
    if ended.exit_code == framing.CUT_OFF:
        return StepFailed("restore_failed", "The dump did not come whole; what was restored is thrown away.")
    if ended.exit_code in {137, 143, -9, -15}:
        return StepFailed("tool_killed", f"The {stage.what} tool was killed.")
    dumps = stage.what == "dump"
    if _LOST.search(words) and dumps:
        return StepFailed("source_lost", f"The source's server went away meanwhile: {words}")
    if _LOST.search(words):
        return StepFailed("target_lost", f"The target's server went away meanwhile: {words}")
    said = words or f"The tool ended with code {ended.exit_code}."
    if dumps:
        return StepFailed("dump_failed", said, retryable=False)
    return StepFailed("restore_failed", said, retryable=False)
