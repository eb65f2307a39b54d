"""The supervisor's children: started, watched, started again with back-off, stopped; taken over after a crash."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from novastack.embedded.paths import write_private
from projects.runtimes.process_table import ProcessRef, kill_family, stop_family

LOG_LIMIT_BYTES = 10 << 20
BACKOFF_SECONDS = (0.2, 1.0, 3.0, 10.0, 30.0)
STEADY_SECONDS = 60  # a child that ran this long starts again at once


@dataclass(slots=True)
class Child:
    """One role. `gate` is our end of the pipe that it waits at before it begins to work."""

    role: str
    log: Path
    pass_fds: tuple[int, ...] = ()
    process: subprocess.Popen[bytes] | None = None
    ref: ProcessRef | None = None
    gate: int | None = None
    started_at: float = 0.0
    failures: int = 0
    next_start: float = 0.0
    stdout: int | None = None
    env: Mapping[str, str] = field(default_factory=dict, repr=False)

    def start(self, *, gated: bool) -> None:
        """Start the process, as a session of its own (Ctrl-C is ours to handle)."""
        self._cap_log()
        reader = None
        env = dict(self.env)
        pass_fds = self.pass_fds
        if gated:
            reader, self.gate = os.pipe()
            env["NOVASTACK_GATE_FD"] = str(reader)
            pass_fds = (*pass_fds, reader)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "novastack.embedded.child", self.role], env=env, stdin=subprocess.DEVNULL,
                stdout=self.stdout or log, stderr=log, start_new_session=True, pass_fds=pass_fds,
            )  # fmt: skip
        if reader is not None:
            os.close(reader)
        self.ref = ProcessRef.of(self.process.pid)
        self.started_at = time.monotonic()

    def open_gate(self) -> None:
        if self.gate is not None:
            os.close(self.gate)
            self.gate = None

    def ended(self) -> int | None:
        """The exit code, once it has ended."""
        return None if self.process is None else self.process.poll()

    def plan_restart(self) -> float:
        """After an unexpected end: when to start again, in seconds from now."""
        steady = time.monotonic() - self.started_at > STEADY_SECONDS
        self.failures = 0 if steady else self.failures + 1
        pause = BACKOFF_SECONDS[min(self.failures, len(BACKOFF_SECONDS) - 1)]
        self.next_start = time.monotonic() + pause
        self.process = None
        return pause

    def last_lines(self, count: int = 8) -> Sequence[str]:
        with contextlib.suppress(OSError), self.log.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 8192))
            return file.read().decode(errors="replace").splitlines()[-count:]
        return []

    def _cap_log(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            if self.log.stat().st_size > LOG_LIMIT_BYTES:
                self.log.replace(self.log.with_suffix(".log.1"))

    def cut_big_log(self) -> None:
        """While it runs: cut to nothing what became too big (the child appends)."""
        with contextlib.suppress(FileNotFoundError):
            if self.log.stat().st_size > 2 * LOG_LIMIT_BYTES:
                os.truncate(self.log, 0)


def remember(path: Path, children: Sequence[Child]) -> None:
    """Write down who runs, for the supervisor after us."""
    write_private(path, json.dumps({child.role: str(child.ref) for child in children if child.ref}))


def end_leftovers(path: Path) -> list[str]:
    """End the children that a killed supervisor left behind (exactly those); returns their roles."""
    try:
        kept = json.loads(path.read_text())
    except (OSError, ValueError):
        return []
    refs = {role: ref for role, text in kept.items() if (ref := ProcessRef.parse(text)) and ref.alive()}
    for ref in refs.values():
        ref.send(signal.SIGTERM)
    deadline = time.monotonic() + 3
    for ref in refs.values():
        ref.wait_gone(max(0.0, deadline - time.monotonic()))
        kill_family(ref)
    path.unlink(missing_ok=True)
    return sorted(refs)


def stop_all(children: Sequence[Child], *, grace_seconds: float) -> None:
    """SIGTERM to all at once, then SIGKILL for whoever is left after the grace. What they did is resumed later."""
    refs = [child.ref for child in children if child.ref and child.ended() is None and child.process]
    for child in children:
        child.open_gate()
    for ref in refs:
        ref.send(signal.SIGTERM)
    deadline = time.monotonic() + grace_seconds
    for ref in refs:
        stop_family(ref, polite=signal.SIGTERM, grace_seconds=max(0.0, deadline - time.monotonic()))
