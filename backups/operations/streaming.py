"""From a dump tool into a storage: one piece in hand at a time, sealed and hashed on the way. No rows here.

Done is what every part says is done: the tool ended well, its stream was what the tool writes, the sealer took all of it
to the end, and what the database held at that moment is known. The object still has to be committed after that.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime

import structlog

from backups.archive import CorruptArchive, Sealed, Sealer
from backups.storage.base import StorageError, Writer
from projects import domain
from projects.domain import Fingerprint
from projects.engines import zipping
from projects.engines.moments import Moment
from projects.operations.ahead import Ahead
from projects.operations.base import StepFailed
from projects.operations.copying import Side
from projects.operations.stages import END_SECONDS, TOOL_MEMORY_BYTES, Stage

log = structlog.get_logger(__name__)
_LOOK_SECONDS = 0.2
_STOP_SECONDS = 30.0
_WARNINGS = 5


@dataclass(frozen=True, slots=True)
class Limits:
    """`rate_bytes`: of the tool's output in a second, 0 for no limit. `nice`: of the tool, 0 to 19. `most_bytes`: of what is
    stored; more ends it."""

    rate_bytes: int = 0
    nice: int = 0
    most_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Taken:
    """`dump_bytes` of the engine's archive before it was compressed; None where the tool that compressed does not say."""

    sealed: Sealed
    contents: Fingerprint
    dump_bytes: int | None
    at: datetime  # not after the moment
    seconds: float  # until the last byte was sealed
    waited_seconds: float  # for the contents, after that
    warnings: tuple[str, ...]  # of the tool
    row_bytes: int = 0  # `Moment.row_bytes`


def take(
    side: Side, moment: Moment, writer: Writer, recipients: Sequence[str] | None, *, name: str, limits: Limits,
    pulse: Callable[[int], None],
) -> Taken:  # fmt: skip
    """Run the moment's tool as `name` and stream it into `writer`, which is neither committed nor aborted here.

    `pulse` gets the bytes from the tool so far several times a second, and ends it by raising. Raises `StepFailed` with
    `dump_failed`, `source_lost`, `source_changed`, `tool_killed`, `tool_out_of_memory`, `backup_too_large`, `StorageError`,
    and what runtimes and engines raise. In no case the tool is left running, unless its runtime can't be reached.
    """
    began = time.monotonic()
    command = moment.command
    if limits.nice:
        command = replace(command, argv=("nice", "-n", str(limits.nice), *command.argv))
    counted = _Counted(writer, limits.most_bytes)
    sealer = Sealer(counted, recipients)
    stop = threading.Event()
    stage: Stage | None = None
    pump: _Pump | None = None
    try:
        tool = side.runtime.run_tool(name, side.image, command, beside=side.handle, memory_bytes=TOOL_MEMORY_BYTES)
        stage = Stage("dump", tool)
        stage.listen()
        begun = stage.begin(moment)
        pump = _Pump(stage, moment, sealer, stop, limits.rate_bytes)
        with ThreadPoolExecutor(1, thread_name_prefix="contents") as pool:
            reading = None if moment.from_stream else pool.submit(moment.contents, _stopping(stop))
            try:
                pump.start()
                _watch(pump, reading, pulse)
                _ended_well(stage, pump, reading)
                moment.heard_all()
                sealed = _finished(sealer)
                seconds = time.monotonic() - began
                contents = _contents(moment, reading, pump.moved, pulse)
            except BaseException:
                stop.set()
                raise
        raw = sealed.dump_bytes if not pump.zipped else zipping.told_bytes(stage.last_lines())
        return Taken(
            sealed, contents, raw, begun, seconds, time.monotonic() - began - seconds, _warnings(stage), moment.row_bytes,
        )  # fmt: skip
    finally:
        stop.set()
        if stage is not None:
            stage.end()
        sealer.abort()
        if pump is not None and pump.ident is not None:
            pump.join(_STOP_SECONDS)


def _stopping(stop: threading.Event) -> Callable[[], None]:
    def pulse() -> None:
        if stop.is_set():
            raise StepFailed("copy_interrupted", "It was interrupted.")

    return pulse


def _watch(pump: _Pump, reading: Future[Fingerprint] | None, pulse: Callable[[int], None]) -> None:
    """Until the stream has ended, or something has failed."""
    while pump.is_alive():
        pump.join(_LOOK_SECONDS)
        pulse(pump.moved)
        if reading is not None and reading.done() and reading.exception() is not None:
            pump.join(1)  # the tool may have failed for the same reason, and says it better
            return


def _ended_well(stage: Stage, pump: _Pump, reading: Future[Fingerprint] | None) -> None:
    """Raise what went wrong: the storage, the tool, the stream, or what was read beside it, in the order of causes."""
    if isinstance(pump.error, StorageError | StepFailed):
        raise pump.error
    ended = _end_of(stage) if not pump.is_alive() else stage.poll()
    if ended is not None and ended != domain.ExitResult(0):
        raise stage.failure(ended)
    if isinstance(pump.error, domain.EngineError | CorruptArchive):
        raise StepFailed("dump_failed", f"The dump tool wrote something else than a dump: {pump.error}") from pump.error
    if pump.error is not None:
        raise StepFailed(
            "copy_interrupted", f"The stream from the dump tool broke ({type(pump.error).__name__})."
        ) from pump.error
    error = reading.exception() if reading is not None and reading.done() else None
    if error is not None:
        raise _lost(error) from error
    if ended is None:
        raise StepFailed("dump_failed", "The dump tool neither goes on nor ends.")


def _finished(sealer: Sealer) -> Sealed:
    try:
        return sealer.finish()
    except CorruptArchive as error:
        raise StepFailed("dump_failed", f"The dump did not come whole: {error}") from error


def _end_of(stage: Stage) -> domain.ExitResult | None:
    try:
        return stage.poll() or stage.tool.wait(END_SECONDS)
    except TimeoutError:
        return None


def _contents(
    moment: Moment, reading: Future[Fingerprint] | None, moved: int, pulse: Callable[[int], None]
) -> Fingerprint:
    if reading is None:
        return moment.contents(lambda: pulse(moved))
    while not reading.done():
        pulse(moved)
        with contextlib.suppress(TimeoutError):
            reading.exception(_LOOK_SECONDS)
    error = reading.exception()
    if error is not None:
        raise _lost(error) from error
    return reading.result()


def _lost(error: BaseException) -> BaseException:
    if isinstance(error, domain.ServerNotReady):
        return StepFailed("source_lost", f"The source's server went away meanwhile: {error}"[:300])
    return error


def _warnings(stage: Stage) -> tuple[str, ...]:
    found = [line.partition("warning:")[2].strip() for line in stage.last_lines() if "warning:" in line]
    return tuple(f"The dump tool warns: {line}"[:300] for line in found[:_WARNINGS])


class _Counted:
    """A writer that takes no more than it may."""

    def __init__(self, writer: Writer, most: int | None) -> None:
        self._writer, self._most, self._taken = writer, most, 0

    def write(self, piece: bytes) -> int:
        self._taken += len(piece)
        if self._most is not None and self._taken > self._most:
            raise StepFailed(
                "backup_too_large",
                "The organization's quota for the storage of backups does not hold it.",
                retryable=False,
            )
        return self._writer.write(piece)


class _Pump(threading.Thread):
    """Moves pieces from the tool into the sealer."""

    def __init__(self, stage: Stage, moment: Moment, sealer: Sealer, stop: threading.Event, rate: int) -> None:
        super().__init__(daemon=True, name=f"pump-{stage.tool.name}")
        self._stage, self._moment, self._sealer, self._stop_asked, self._rate = stage, moment, sealer, stop, rate
        self.moved = 0
        self.zipped = False
        self.error: Exception | None = None

    def run(self) -> None:
        source = self._stage.tool.stdout
        assert source is not None  # noqa: S101 - every tool has one
        # What is there at once: a slow beginning must not hold back the table of contents.
        read = getattr(source, "read1", source.read)
        began, head = time.monotonic(), b""
        try:
            with Ahead(read, name=self._stage.tool.name) as pieces:
                for piece in pieces:
                    if self._stop_asked.is_set():
                        return
                    if len(head) < len(zipping.MAGIC):
                        head += piece[: len(zipping.MAGIC)]
                        self.zipped = head.startswith(zipping.MAGIC)
                    self._moment.hear(piece)
                    self._sealer.feed(piece)
                    self.moved += len(piece)
                    if self._rate:
                        self._slow_down(began)
        except Exception as error:  # said by who watches
            self.error = error

    def _slow_down(self, began: float) -> None:
        while (ahead := self.moved / self._rate - (time.monotonic() - began)) > 0:
            if self._stop_asked.wait(min(ahead, 0.5)):
                return
