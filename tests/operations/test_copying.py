"""The stream between two tools: whatever breaks in the middle ends it, and says so."""

from __future__ import annotations

import subprocess

import pytest

from projects.domain import ExitResult, ToolHandle
from projects.operations.base import StepFailed
from projects.operations.copying import _Pump, _run
from projects.operations.stages import Stage


def tool(*argv: str) -> tuple[ToolHandle, subprocess.Popen[bytes]]:
    """A program of this machine, without a runtime around it."""
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def poll() -> ExitResult | None:
        return None if (code := process.poll()) is None else ExitResult(code)

    def wait(seconds: float) -> ExitResult:
        try:
            return ExitResult(process.wait(seconds))
        except subprocess.TimeoutExpired:
            raise TimeoutError from None

    return ToolHandle(argv[0], process.stdin, process.stdout, process.stderr, poll, wait, process.kill), process


def test_whoever_hears_it_and_breaks_ends_it() -> None:
    """Nobody foresaw the error: the tool that takes would wait for its next piece as long as the step may last."""
    (source, dumps), (sink, takes) = tool("echo", "a dump"), tool("cat")
    pulses = []

    def hear(_piece: bytes) -> None:
        raise KeyError("unforeseen")

    def pulse(_moved: int) -> None:
        pulses.append(1)
        assert len(pulses) < 200, "it waits for ever"

    assert sink.stdin is not None
    try:
        with pytest.raises(StepFailed) as failed:
            _run(_Pump(Stage("dump", source), sink.stdin, hear), Stage("dump", source), Stage("restore", sink), pulse)
        assert (failed.value.code, failed.value.retryable) == ("copy_interrupted", True)
        assert "KeyError" in failed.value.detail
        assert takes.poll() is None  # it did wait
    finally:
        for process in (dumps, takes):
            process.kill()
            process.communicate()


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (
            'pg_dump: error: Dumping the contents of table "big" failed: PQgetCopyData() failed.\n'
            "pg_dump: detail: Error message from server: server closed the connection unexpectedly\n",
            "source_lost",
        ),
        (
            'pg_dump: error: Dumping the contents of table "t" failed: PQgetResult() failed.\n'
            'pg_dump: detail: Error message from server: ERROR:  invalid page in block 0 of relation "base/5/1"\n',
            "dump_failed",
        ),
        ('pg_dump: error: query failed: ERROR:  relation "public.gone" does not exist\n', "source_changed"),
    ],
)
def test_what_a_dump_tool_said_is_understood(said: str, code: str) -> None:
    program, process = tool("true")
    process.wait(10)
    assert Stage("dump", program, said=bytearray(said.encode())).failure(ExitResult(1)).code == code
