"""The supervisor's children: adopted from the nursery, watched, started again with back-off, stopped; and what a killed
supervisor left behind."""

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
from projects.runtimes.process_table import ProcessRef, boot_id, family, stop_family

LOG_LIMIT_BYTES = 10 << 20
BACKOFF_SECONDS = (0.2, 1.0, 3.0, 10.0, 30.0)
STEADY_SECONDS = 60  # a child that ran this long starts again at once
UNKNOWN_CODE = 255


@dataclass(slots=True)
class Child:
    """One role: a process of ours, started here or forked by the nursery (then we are its reaper)."""

    role: str
    log: Path
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    pass_fds: tuple[int, ...] = ()
    ref: ProcessRef | None = None
    code: int | None = None
    failures: int = 0
    next_start: float = 0.0
    started_at: float = field(default_factory=time.monotonic)

    def start(self, *, stdout: int | None = None, extra_env: Mapping[str, str] | None = None) -> None:
        """Start the process, as a session of its own (Ctrl-C is ours to handle)."""
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "novastack.embedded.child", self.role], env={**self.env, **(extra_env or {})},
                stdin=subprocess.DEVNULL, stdout=stdout or log, stderr=log, start_new_session=True,
                pass_fds=self.pass_fds,
            )  # fmt: skip
        process.returncode = 0  # reaped by us, with everything else that comes to us
        self.adopt(ProcessRef.of(process.pid))

    def adopt(self, ref: ProcessRef | None) -> None:
        self.ref = ref
        self.code = None
        self.started_at = time.monotonic()

    def ended(self) -> int | None:
        """The exit code (negative: signal; 255: unknown) once it has ended; None while it runs or was never started."""
        if self.ref is None:
            return None
        if self.code is None:
            with contextlib.suppress(ChildProcessError):
                pid, status = os.waitpid(self.ref.pid, os.WNOHANG)
                if pid:
                    self.code = os.waitstatus_to_exitcode(status)
            if self.code is None and not self.ref.alive():
                self.code = UNKNOWN_CODE
        return self.code

    def plan_restart(self) -> float:
        """After an unexpected end: when to start again, in seconds from now."""
        steady = time.monotonic() - self.started_at > STEADY_SECONDS
        pause = BACKOFF_SECONDS[0 if steady else min(self.failures, len(BACKOFF_SECONDS) - 1)]
        self.failures = 0 if steady else self.failures + 1
        self.next_start = time.monotonic() + pause
        self.ref = None
        return pause

    def last_lines(self, count: int = 8) -> Sequence[str]:
        with contextlib.suppress(OSError), self.log.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 8192))
            return file.read().decode(errors="replace").splitlines()[-count:]
        return []

    def cap_log(self) -> None:
        """Before a run: put a big log aside. While it runs (it appends): cut a very big one to nothing."""
        with contextlib.suppress(FileNotFoundError):
            size = self.log.stat().st_size
            if self.ref is None and size > LOG_LIMIT_BYTES:
                self.log.replace(self.log.with_suffix(".log.1"))
            elif size > 2 * LOG_LIMIT_BYTES:
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
    _end(list(refs.values()), grace_seconds=3)
    path.unlink(missing_ok=True)
    return sorted(refs)


def stop_all(children: Sequence[Child], *, grace_seconds: float) -> None:
    """SIGTERM to all at once, then SIGKILL for whoever is left after the grace. What they did is resumed later."""
    _end([child.ref for child in children if child.ref and child.ended() is None], grace_seconds=grace_seconds)


def _end(refs: Sequence[ProcessRef], *, grace_seconds: float) -> None:
    """Whole families: gunicorn's own worker holds the web's socket, a worker may be making data."""
    members = [
        ProcessRef(stat.pid, stat.start_ticks, boot_id())
        for stats in family([ref.pid for ref in refs if ref.alive()]).values()
        for stat in stats
    ]
    for ref in refs:
        ref.send(signal.SIGTERM)
    deadline = time.monotonic() + grace_seconds
    for ref in refs:
        stop_family(ref, polite=signal.SIGTERM, grace_seconds=max(0.0, deadline - time.monotonic()))
    for member in members:
        member.send(signal.SIGKILL)
    for member in members:
        member.wait_gone(3)
