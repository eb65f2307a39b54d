"""A database's content from one server to another: a dump tool beside the one, a restore tool beside the other, and this
process in between with one piece in hand (constant memory, nothing on a disk).

Nothing is taken for done by one exit code: both tools must end well, the dump must have come whole (framing), and what
came about is compared with the source (`Engine.fingerprint`) by who calls this.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO

import structlog

from projects import domain
from projects.engines import framing
from projects.engines.base import Engine
from projects.engines.moments import Restoring
from projects.operations.base import StepFailed
from projects.operations.stages import END_SECONDS, LOOK_SECONDS, TOOL_MEMORY_BYTES, Stage
from projects.runtimes.base import Runtime

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Side:
    """One end of a copy. `place`: where the tool finds the server; `credentials` are the tool's, with the database."""

    runtime: Runtime
    handle: domain.Handle
    image: str
    place: domain.Endpoint
    credentials: domain.Credentials


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


def copy(
    engine: Engine,
    source: Side,
    target: Side,
    *,
    stem: str,
    pulse: Callable[[int], None],
    restoring: Restoring | None = None,
    commands: tuple[domain.Command, domain.Command] | None = None,
) -> int:
    """Fill the target's empty database with the source's content; returns the bytes of the dump. `restoring` hears them, and
    is finished by who calls. `commands`: others than the engine's for dumping and restoring the whole.

    `pulse` gets the bytes so far twice a second and ends the copy by raising. Raises `StepFailed` with `dump_failed`,
    `restore_failed`, `source_lost`, `target_lost`, `target_full`, `tool_out_of_memory`, and what runtimes raise. In no
    case a tool is left running, unless its runtime can't be reached.
    """
    dump_name, restore_name = tool_names(stem)
    dumped, restored = commands or (
        engine.dump(source.place, source.credentials),
        engine.restore(target.place, target.credentials),
    )
    stages: list[Stage] = []
    try:
        sink = target.runtime.run_tool(
            restore_name, target.image, restored, beside=target.handle,
            memory_bytes=TOOL_MEMORY_BYTES,
        )  # fmt: skip
        stages.append(Stage("restore", sink))
        well = source.runtime.run_tool(
            dump_name, source.image, dumped, beside=source.handle,
            memory_bytes=TOOL_MEMORY_BYTES,
        )  # fmt: skip
        stages.append(Stage("dump", well))
        for stage in stages:
            stage.listen()
        with contextlib.suppress(OSError):
            well.stdin.close()
        hear = restoring.hear if restoring is not None else None
        return _run(_Pump(stages[1], sink.stdin, hear), stages[1], stages[0], pulse)
    finally:
        for stage in stages:
            stage.end()


def _run(pump: _Pump, dump: Stage, restore: Stage, pulse: Callable[[int], None]) -> int:
    pump.start()
    while pump.is_alive():
        pump.join(LOOK_SECONDS)
        pulse(pump.moved)
        ended = restore.poll()
        if ended is not None and pump.is_alive():
            raise restore.failure(ended)
    if pump.dumped is not None and pump.dumped != domain.ExitResult(0):
        raise dump.failure(pump.dumped)
    if pump.error is not None and not pump.broken:
        raise pump.error  # the other tool only waits for more, and says nothing about it
    if pump.error is not None:
        ended = restore.awaited(pulse, pump.moved)
        raise restore.failure(ended) if ended.exit_code else pump.error
    ended = restore.awaited(pulse, pump.moved, seconds=None)
    if ended != domain.ExitResult(0):
        raise restore.failure(ended)
    return pump.moved


class _Pump(threading.Thread):
    """Moves pieces. The last word, that the dump is whole, is said only when the dump tool has ended well."""

    def __init__(self, dump: Stage, sink: IO[bytes], hear: Callable[[bytes], None] | None) -> None:
        super().__init__(daemon=True, name=f"pump-{dump.tool.name}")
        self._dump, self._sink, self._hear = dump, sink, hear
        self.moved = 0
        self.dumped: domain.ExitResult | None = None
        self.error: Exception | None = None
        self.broken = False  # the stream was: whoever takes may say why

    def run(self) -> None:
        source = self._dump.tool.stdout
        assert source is not None  # noqa: S101 - every tool has one
        try:
            while piece := source.read(framing.PIECE_BYTES):
                if self._hear is not None:
                    self._hear(piece)
                self._sink.write(framing.frame(piece))
                self._sink.flush()
                self.moved += len(piece)
            self.dumped = self._dump.tool.wait(END_SECONDS)
            if self.dumped == domain.ExitResult(0):
                self._sink.write(framing.END)
                self._sink.flush()
                with contextlib.suppress(OSError):
                    self._sink.close()
        except domain.EngineError as error:
            self.error = StepFailed("dump_failed", f"The dump tool wrote something else than a dump: {error}")
        except (OSError, ValueError) as error:
            # Either the tool that takes has ended, which its exit code says, or a connection broke.
            self.broken = True
            self.error = StepFailed("copy_interrupted", f"The stream between the tools broke ({type(error).__name__}).")
        except (TimeoutError, domain.NovaStackRuntimeError) as error:
            self.error = (
                error if isinstance(error, domain.NovaStackRuntimeError) else StepFailed("dump_failed", str(error))
            )
        except Exception as error:
            # Silence would leave both tools waiting for it, and clients shut out.
            log.error("moving a dump broke", error=type(error).__name__, exc_info=error)
            self.error = StepFailed("copy_interrupted", f"The stream between the tools broke ({type(error).__name__}).")
