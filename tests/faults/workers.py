"""Worker processes for the tests to kill, pause and wait for. What makes them is `worker.py`, kept running."""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


class Nursery:
    """The process whose children workers are. One at a time: its environment is theirs."""

    _one: Nursery | None = None

    def __init__(self, env: Mapping[str, str]) -> None:
        self.env = dict(env)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.worker"], env=self.env, cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    @classmethod
    def of(cls, env: Mapping[str, str]) -> Nursery:
        found = cls._one
        if found is None or found.env != dict(env) or found._process.poll() is not None:
            if found is not None:
                found.close()
            found = cls._one = cls(env)
            atexit.register(found.close)
        return found

    def ask(self, **order: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        """Its workers end with it."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


class Worker:
    """One worker process, in the words of `subprocess.Popen`."""

    def __init__(self, nursery: Nursery, *, fault: str, reconciles: bool) -> None:
        self._nursery = nursery
        self.returncode: int | None = None
        self.pid = int(nursery.ask(fault=fault, reconciles=reconciles)["pid"])
        assert self.pid, "the worker ended at once; see its error above"

    def wait(self, seconds: float) -> int:
        """Its exit code, a signal's number negated; `subprocess.TimeoutExpired` if it lives on."""
        if self.returncode is None:
            self.returncode = self._nursery.ask(wait=self.pid, seconds=seconds)["code"]
        if self.returncode is None:
            raise subprocess.TimeoutExpired("worker", seconds)
        return self.returncode

    def poll(self) -> int | None:
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def send_signal(self, number: int) -> None:
        if self.returncode is None:  # not waited for, so the number is still its own
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)
