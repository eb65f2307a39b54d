"""Throw-away tools as processes: an account (or a bare user id) of their own, limits, no log."""

from __future__ import annotations

import contextlib
import os
import resource
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from projects.domain import Command, ExitResult, Limits, NovaStackRuntimeError, ToolHandle
from projects.runtimes.process_accounts import Account, as_account
from projects.runtimes.process_limits import ControlGroups
from projects.runtimes.process_table import ProcessRef, kill_family
from projects.runtimes.process_volume import write_file

_FIRST_BARE_UID = 1_879_048_192  # far above what distributions hand out; each tool run takes a random one


@dataclass(frozen=True, slots=True)
class ToolPlace:
    """Where tools of one runtime keep their scratch folders, and what limits them."""

    root: Path
    groups: ControlGroups
    fallback: Callable[[], Account]


def start_tool(
    place: ToolPlace, name: str, program: Path, command: Command, *, memory_bytes: int, folder: str = ""
) -> ToolHandle:
    """Start it; an earlier one of the same name is killed and removed first. `folder` is searched first for programs
    that it runs itself.

    `{secret:<name>}` in arguments and environment is the path of that secret file, `{scratch}` a private folder.
    """
    remove_tool(place, name)
    account = _tool_account(place)
    run = f"{name}.{secrets.token_hex(4)}"
    scratch = place.root / run
    scratch.mkdir(parents=True, mode=0o700)
    files = {secret: scratch / secret for secret in command.secret_files}

    def fill(text: str) -> str:
        for secret, path in files.items():
            text = text.replace(f"{{secret:{secret}}}", str(path))
        return text.replace("{scratch}", str(scratch))

    for secret, content in command.secret_files.items():
        if Path(secret).name != secret:
            raise ValueError(f"not a file name: {secret!r}")
        write_file(files[secret], content, mode=0o600)
        if os.geteuid() == 0:
            os.chown(files[secret], account.uid, account.gid)
    if os.geteuid() == 0:
        os.chown(scratch, account.uid, account.gid)
    env = {"PATH": f"{folder or program.parent}:/usr/bin:/bin", "HOME": str(scratch), "LC_ALL": "C.UTF-8", "TZ": "UTC"}
    env |= {key: fill(value) for key, value in command.env.items()}
    group = place.groups.make(run, Limits(memory_bytes, 1.0, 64))
    try:
        process = subprocess.Popen(
            [str(program), *(fill(argument) for argument in command.argv[1:])],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=scratch, env=env,
            start_new_session=True, **as_account(account),
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        _clean(place, run)
        raise NovaStackRuntimeError(f"the tool {program.name} could not be started") from error
    _confine(process, group, memory_bytes)
    ref = ProcessRef.of(process.pid)
    (place.root / f"{name}.ref").write_text(f"{ref} {run}")
    return _handle(place, name, run, process, ref)


def _confine(process: subprocess.Popen[bytes], groups: Sequence[Path], memory_bytes: int) -> None:
    """Limits from outside: code between fork and exec is not safe in a process with threads."""
    for group in groups:
        with contextlib.suppress(OSError):
            (group / "cgroup.procs").write_text(str(process.pid))
    with contextlib.suppress(OSError, ProcessLookupError):
        resource.prlimit(process.pid, resource.RLIMIT_CORE, (0, 0))
        resource.prlimit(process.pid, resource.RLIMIT_DATA, (memory_bytes, memory_bytes))


def _tool_account(place: ToolPlace) -> Account:
    """As root a user id that nothing else has; where no such ids are mapped (user namespaces), a shared account."""
    if os.geteuid() != 0:
        return place.fallback()
    uid = _FIRST_BARE_UID + secrets.randbelow(1 << 24)
    mapped = any(
        int(start) <= uid < int(start) + int(count)
        for start, _, count in (line.split() for line in Path("/proc/self/uid_map").read_text().splitlines())
    )
    return Account(str(uid), uid, uid, own=True) if mapped else place.fallback()


def _handle(
    place: ToolPlace, name: str, run: str, process: subprocess.Popen[bytes], ref: ProcessRef | None
) -> ToolHandle:
    result: list[ExitResult] = []

    def poll() -> ExitResult | None:
        if not result and process.poll() is not None:
            result.append(ExitResult(process.returncode, oom_killed=place.groups.oom_kills(run) > 0))
            _clean(place, run)
        return result[0] if result else None

    def wait(timeout_seconds: float) -> ExitResult:
        deadline = time.monotonic() + timeout_seconds
        while (found := poll()) is None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"the tool {name} still runs after {timeout_seconds:.0f} s")
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(min(left, 1))
        return found

    def kill() -> None:
        if process.poll() is None and ref:
            kill_family(ref)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(3)
        poll()

    assert process.stdin is not None  # noqa: S101 - a pipe
    return ToolHandle(name, process.stdin, process.stdout, process.stderr, poll, wait, kill)


def _clean(place: ToolPlace, run: str) -> None:
    """Remove what one run used; a later run of the same name has its own."""
    shutil.rmtree(place.root / run, ignore_errors=True)
    place.groups.remove(run)


def remove_tool(place: ToolPlace, name: str) -> None:
    """Kill and remove a tool that a crashed caller left; absent is success."""
    if Path(name).name != name or name.startswith("."):
        raise ValueError(f"not a tool's name: {name!r}")
    record = place.root / f"{name}.ref"
    with contextlib.suppress(OSError):
        text, _, run = record.read_text().partition(" ")
        if ref := ProcessRef.parse(text):
            kill_family(ref)
        if run:
            _clean(place, Path(run).name)
        record.unlink()
