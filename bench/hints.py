"""From the commit of an operation to the begin of its first step in a worker: p95 ≤ 60 ms with the file broker, ≤ 15 ms
with Redis. One hint at a time, at random moments, so that polling intervals are met anywhere."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench import stats

ROUNDS = 60
_CHILD = "bench.hint_client"


def run() -> list[str]:
    """Lines for the report; Redis only where a server program is found."""
    lines = [_measure("file broker", "filesystem://", 60)]
    program = shutil.which("redis-server")
    if program is None:
        lines.append("hints with Redis: not measured, no redis-server on this machine")
        return lines
    with _redis(program) as url:
        lines.append(_measure("Redis", url, 15))
    return lines


def _measure(title: str, broker: str, bound_ms: float) -> str:
    with tempfile.TemporaryDirectory() as folder:
        env = {**os.environ, "BROKER_URL": broker, "NOVASTACK_HOME": folder, "NOVASTACK_LOG_LEVEL": "ERROR"}
        worker = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "bench.worker", "worker", "-Q", "provisioning", "--pool", "threads",
             "--concurrency", "4", "--without-gossip", "--without-mingle", "--without-heartbeat", "-l", "ERROR"],
            env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            answer = subprocess.run(
                [sys.executable, "-m", _CHILD, str(ROUNDS)], env=env, capture_output=True, text=True, timeout=300
            )
        finally:
            worker.send_signal(signal.SIGTERM)
            worker.wait(timeout=30)
    if answer.returncode:
        return f"hints with {title}: FAILED: {answer.stderr[-400:]}"
    found = [float(line) for line in answer.stdout.split()]
    p95 = stats.percentile(found, 0.95) * 1000
    return (
        f"commit to first step, {title}: {stats.summary(found)} (bound: {bound_ms:g} ms {stats.verdict(p95, bound_ms)})"
    )


@contextmanager
def _redis(program: str) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        server = subprocess.Popen(
            [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(Path(folder))],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            time.sleep(0.5)
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            server.terminate()
            server.wait(timeout=10)


def pause() -> None:
    """Somewhere within a polling interval."""
    time.sleep(0.05 + random.random() * 0.1)
