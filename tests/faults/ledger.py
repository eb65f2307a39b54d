"""What each fault led to, one line of JSON per run: `docs/reliability.md` and `make faults` are made of these.

    with site.fault("dockerd killed while running") as run:
        ...                 # the fault
        run.recovering()    # its cause is gone, or a worker is back: the clock starts
        ...
        run.ended()         # the operation ended, or the wanted state is back: the clock stops
        run.orphans = ...   # what exists and belongs to nobody (`Site.check_exactly` sets it by itself)
        run.lost_rows = ... # acknowledged and gone

A line is written when the block is left, whichever way: `NOVASTACK_FAULTS_LEDGER` names the file (default:
.novastack-test/faults.jsonl). Lines are appended under a lock, so that parallel workers may share it.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def ledger_file() -> Path:
    """Where lines go; made by the first one."""
    return Path(os.environ.get("NOVASTACK_FAULTS_LEDGER") or ROOT / ".novastack-test" / "faults.jsonl")


@functools.cache
def commit() -> str:
    """Short name of what is checked out, with a `+` when files differ from it."""

    def git(*argv: str) -> str:
        done = subprocess.run(["git", *argv], cwd=ROOT, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    name = git("rev-parse", "--short=10", "HEAD")
    return name + ("+" if git("status", "--porcelain", "--untracked-files=no") else "") if name else "unknown"


@dataclass
class Run:
    """One run of one fault. None means: not looked at; so the table does not say 0 where nobody looked."""

    fault: str
    engine: str = ""
    runtime: str = ""
    point: str = ""
    orphans: int | None = None
    lost_rows: int | None = None
    stuck: int | None = None
    seconds: float | None = None
    note: str = ""  # what else was seen; no column of the table
    _since: float | None = field(default=None, repr=False)

    def recovering(self) -> None:
        """The cause is gone, or a worker is back. Said again, the clock starts again."""
        self._since, self.seconds = time.monotonic(), None

    def ended(self, *, spared: float = 0) -> None:
        """What was promised is so. The first time counts. `spared`: seconds that the test did not wait and users would."""
        if self._since is None:
            raise AssertionError("recovering() was never called")
        if self.seconds is None:
            self.seconds = time.monotonic() - self._since + spared
        self.stuck = self.stuck or 0

    def line(self, outcome: str, error: str) -> dict[str, Any]:
        stuck = self.stuck
        if self._since is not None and self.seconds is None and stuck is None:
            stuck = 1  # it never said that it ended
        return {
            "fault": self.fault, "engine": self.engine, "runtime": self.runtime, "point": self.point,
            "seconds": None if self.seconds is None else round(self.seconds, 2),
            "orphans": self.orphans, "lost_rows": self.lost_rows, "stuck": stuck, "outcome": outcome, "error": error,
            "note": self.note,
            "test": os.environ.get("PYTEST_CURRENT_TEST", "").rsplit(" (", 1)[0],
            "date": datetime.now(UTC).isoformat(timespec="seconds"), "commit": commit(),
        }  # fmt: skip


def append(line: dict[str, Any]) -> None:
    file = ledger_file()
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as out:
        fcntl.flock(out, fcntl.LOCK_EX)
        out.write(json.dumps(line, ensure_ascii=False) + "\n")


@contextlib.contextmanager
def fault(name: str, *, engine: str = "", runtime: str = "", point: str = "") -> Iterator[Run]:
    """Record one run. What was skipped is no run."""
    run = Run(name, engine, runtime, point)
    try:
        yield run
    except pytest.skip.Exception:
        raise
    except BaseException as error:
        append(run.line("failed", " ".join(f"{type(error).__name__}: {error}".split())[:300]))
        raise
    append(run.line("ok", ""))


class Ledger:
    """The fixture `ledger`, for tests without a `Site`."""

    fault = staticmethod(fault)
