"""Starts a server as a session of its own that nobody has to wait for.

Run as a script (`python -I -S process_launch.py`, a JSON order on standard input) it takes the lock, forks, and in the
child enters its control groups, sets limits, gives up privileges and becomes the server. The child is adopted by init,
so neither the worker nor the supervisor ever owns a zombie, and a killed worker takes no server with it. The lock is a
`flock` on a file that the server (and every process it forks) keeps open: rule 10 without the engine's help.
`run.json` is written by the child itself before it becomes the server: no crash between start and record.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

LOCKED = 75
REFUSED = 76


class LaunchFailed(Exception):
    """The program could not be started; the text says why."""


class LaunchLocked(LaunchFailed):
    """Somebody else holds the lock."""


def launch(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    folder: Path,
    log: Path,
    lock: Path,
    record: Path,
    uid: int,
    gid: int,
    extra: Mapping[str, Any] | None = None,
    rlimits: Mapping[str, int] | None = None,
    cgroups: Sequence[Path] = (),
    oom_score: int = 0,
) -> str:
    """Start `argv`; returns its `pid:start:boot`. `record` then holds `{"ref": …, **extra}`.

    `LaunchLocked` when another process holds `lock`; `LaunchFailed` when it could not be executed.
    """
    order = {
        "argv": list(argv), "env": dict(env), "folder": str(folder), "log": str(log), "lock": str(lock),
        "record": str(record), "uid": uid, "gid": gid, "extra": dict(extra or {}), "rlimits": dict(rlimits or {}),
        "cgroups": [str(path) for path in cgroups], "oom_score": oom_score,
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(Path(__file__).resolve())],
        input=json.dumps(order).encode(), capture_output=True, timeout=15, check=False, start_new_session=True,
    )  # fmt: skip
    if done.returncode == LOCKED:
        raise LaunchLocked("another process holds the lock of this data")
    if done.returncode:
        raise LaunchFailed(
            done.stderr.decode(errors="replace").strip()[-500:] or f"launcher ended with {done.returncode}"
        )
    return done.stdout.decode().strip()


def _ref_of_self() -> str:
    fields = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8]
    return f"{os.getpid()}:{int(fields[19])}:{boot}"


def _write_record(path: Path, record: Mapping[str, Any]) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(record))
    temporary.replace(path)


def _become(order: dict[str, Any]) -> None:
    """In the child: everything that root must do, then the server itself. Returns only by exception."""
    os.setsid()
    for group in order["cgroups"]:
        with contextlib.suppress(OSError):
            Path(group, "cgroup.procs").write_text(str(os.getpid()))
    log = os.open(order["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if order["oom_score"]:
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text(str(order["oom_score"]))
    for name, value in order["rlimits"].items():
        with contextlib.suppress(ValueError, OSError):
            number = getattr(resource, name)
            hard = resource.getrlimit(number)[1]
            limit = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(number, (limit, limit))
    _write_record(Path(order["record"]), {"ref": _ref_of_self(), "at": time.time(), **order["extra"]})
    os.umask(0o077)
    if os.geteuid() == 0 and order["uid"] != 0:
        os.setgroups([])
        os.setgid(order["gid"])
        os.setuid(order["uid"])
    os.chdir(order["folder"])
    os.execve(order["argv"][0], order["argv"], order["env"])  # noqa: S606 - the point of this file: no shell


def main() -> int:
    order = json.load(sys.stdin)
    lock = os.open(order["lock"], os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return LOCKED
    os.set_inheritable(lock, True)
    reader, writer = os.pipe()  # closes by itself at exec; carries the reason when there is none
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            _become(order)
        except BaseException as error:
            os.write(writer, str(error).encode()[:500])
        os._exit(REFUSED)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        problem = pipe.read()
    if problem:
        os.waitpid(child, 0)
        with contextlib.suppress(OSError):
            Path(order["record"]).unlink()
        sys.stderr.write(problem.decode(errors="replace"))
        return REFUSED
    sys.stdout.write(json.loads(Path(order["record"]).read_text())["ref"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
