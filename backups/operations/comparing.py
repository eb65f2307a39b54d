"""A restored copy against its backup's signed manifest: every table's rows, every object, and what is set around the
database."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from backups.manifest import Manifest
from projects import domain
from projects.engines.moments import Moment
from projects.operations import copying, wiring
from projects.operations.ahead import Ahead
from projects.operations.base import StepFailed
from projects.operations.context import Context
from projects.operations.move_sides import admitted, side_of
from projects.operations.stages import TOOL_MEMORY_BYTES, Stage


def compared(
    side: Context, manifest: Manifest, *, stem: str, pulse: Callable[[int], None]
) -> tuple[list[str], list[str]]:
    """In what the database on the side's server is not what was dumped, for people, and remarks on the comparison. No
    differences: they are equal. It names things, and shows no value of a row."""
    if manifest.contents is None:
        raise StepFailed("nothing_to_compare", "Its manifest does not say what the dump held.", retryable=False)
    copy = contents(side, stem=stem, pulse=pulse)
    found = manifest.contents.differences(copy)
    return [*found, *around_differences(side, manifest)], manifest.contents.remarks(copy)


def around_differences(side: Context, manifest: Manifest) -> list[str]:
    """Of what is set around the database: settings, comments."""
    with wiring.admin_session(side.engine, side.server) as admin:
        around = admin.around(side.names)
    return ["settings around the database differ"] if _plain(around) != _plain(manifest.around) else []


def contents(side: Context, *, stem: str, pulse: Callable[[int], None]) -> domain.Fingerprint:
    """What the side's database holds, read in the way in which its source was."""
    copying.remove_tools(side.runtime, None, stem)
    tool = admitted(side, side.names)
    target = side_of(side, tool)
    endpoint = side.server.control_endpoint
    with side.engine.moment(endpoint, target.place, tool) as moment:
        if moment.from_stream:
            _dump(side, target, moment, copying.tool_names(stem)[0], pulse)
            return moment.contents(lambda: pulse(0))
    return side.engine.fingerprint(endpoint, tool, pulse=lambda: pulse(0))


def _dump(side: Context, target: copying.Side, moment: Moment, name: str, pulse: Callable[[int], None]) -> None:
    """Dump the copy for what its stream tells; nothing is kept of it."""
    stage: Stage | None = None
    try:
        side.guard()
        tool = target.runtime.run_tool(
            name, target.image, moment.command, beside=target.handle, memory_bytes=TOOL_MEMORY_BYTES
        )
        stage = Stage("dump", tool)
        stage.listen()
        stage.begin(moment)
        source, moved = tool.stdout, 0
        assert source is not None  # noqa: S101 - every tool has one
        with Ahead(getattr(source, "read1", source.read), name=name) as pieces:
            for piece in pieces:
                moment.hear(piece)
                moved += len(piece)
                pulse(moved)
        ended = stage.awaited(pulse, moved)
        if ended != domain.ExitResult(0):
            raise stage.failure(ended)
    finally:
        if stage is not None:
            stage.end()


def _plain(around: Any) -> Any:
    """As it is after JSON: tuples are lists."""
    if isinstance(around, dict):
        return {str(key): _plain(value) for key, value in around.items()}
    return [_plain(value) for value in around] if isinstance(around, list | tuple) else around
