"""Making a server's data, starting it and ending it: what the process runtime does to one `Volume`."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import resource
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from projects.domain import (
    CapacityExhausted,
    DataInUse,
    DataMissing,
    Handle,
    Limits,
    NovaStackRuntimeError,
    PortTaken,
    ServerSpec,
)
from projects.runtimes.process_accounts import Account, as_account, give_tree
from projects.runtimes.process_binaries import Found
from projects.runtimes.process_launch import LaunchFailed, LaunchLocked, launch
from projects.runtimes.process_limits import ControlGroups
from projects.runtimes.process_logs import cut_log
from projects.runtimes.process_table import ProcessRef, family, listens, stop_family
from projects.runtimes.process_volume import Volume

INIT_SECONDS = 60
LISTEN_SECONDS = 5.0


def plan_of(spec: ServerSpec, found: Found, folder: Path, files: Path) -> dict[str, Any]:
    """All that a later `start` needs; no secret is in it."""
    assert spec.process is not None  # noqa: S101 - `ensure` refused that
    argv = _fill(spec.process.run, spec, found, folder, None, files)
    plan: dict[str, Any] = {
        "argv": argv, "bin": str(found.place.bin), "version": found.version, "host": spec.publish.host,
        "port": spec.publish.port, "data": str(folder), "initialised": str(folder / spec.initialised_file),
        "stop_signal": spec.stop_signal, "engine": spec.engine,
        # only where there is one: servers that were started before this was known are not started anew for it
        **({"reserved": spec.process.reserved_bytes} if spec.process.reserved_bytes else {}),
        **({"session": spec.process.session_bytes} if spec.process.session_bytes else {}),
    }  # fmt: skip
    # Without the exact version: the system's update of a minor version is no reason to restart a server.
    described = {key: value for key, value in plan.items() if key != "version"}
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
    return plan | {"spec_hash": digest[:32], "limits": asdict(spec.limits)}


def initialise(volume: Volume, spec: ServerSpec, found: Found, folder: Path, account: Account) -> None:
    """Fresh data in a fresh folder: what a crash left half-made is removed first (it was never ready). The lock is
    handed on: an initialisation whose starter was killed goes on for a while, and must not meet a second one."""
    assert spec.process is not None  # noqa: S101 - `ensure` refused that
    with volume.locked() as lock, volume.secrets(spec.secret_files, account) as secrets_folder:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, mode=0o700)
        give_tree(volume.path / Path(spec.data_subdir).parts[0] if spec.data_subdir else folder, account)
        argv = _fill(spec.process.init, spec, found, folder, secrets_folder, volume.files)
        try:
            done = subprocess.run(
                argv, cwd=folder, env=_environment(found.place.bin, folder), capture_output=True, check=False,
                timeout=INIT_SECONDS, stdin=subprocess.DEVNULL, pass_fds=(lock,), **as_account(account),
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise NovaStackRuntimeError(f"making the data took longer than {INIT_SECONDS} s") from error
    if done.returncode or not (folder / spec.initialised_file).is_file():
        text = (done.stderr or done.stdout).decode(errors="replace").strip()
        shutil.rmtree(folder, ignore_errors=True)
        if "No space left on device" in text:
            raise CapacityExhausted("the disk is full")
        raise NovaStackRuntimeError(f"making the data failed: {text.splitlines()[-1][:300] if text else 'no reason'}")
    (volume.own / "initialised").touch()


def run(volume: Volume, account: Account, groups: ControlGroups) -> Handle:
    """Start what `spec.json` says, and wait until it listens or has ended."""
    plan = volume.read("spec.json")
    if not plan:
        raise DataMissing("what this server was started with is gone")
    limits = volume.limits()
    cut_log(volume)
    data = Path(plan["data"])
    if last := volume.last_ref():
        last.wait_reaped(3)
    try:
        text = launch(
            plan["argv"], env=_environment(Path(plan["bin"]), data), folder=data, log=volume.log, lock=volume.lock,
            record=volume.record, uid=account.uid, gid=account.gid, extra={"spec_hash": plan["spec_hash"]},
            # Private memory of one process: a runaway query gets an error instead of the kernel's killer.
            rlimits={"RLIMIT_CORE": 0, "RLIMIT_DATA": data_bytes(plan, limits)}
            | ({"RLIMIT_NPROC": limits.pids} if account.own else {}),
            cgroups=groups.make(volume.name, limits),
        )  # fmt: skip
    except LaunchLocked as error:
        raise DataInUse("another server process still uses this data") from error
    except LaunchFailed as error:
        raise NovaStackRuntimeError(f"the server could not be started: {error}") from error
    ref = ProcessRef.parse(text)
    if ref is None:
        raise NovaStackRuntimeError("the server could not be started")
    _wait_listening(volume, plan, ref)
    return with_ref(volume.handle, ref)


def data_bytes(plan: Mapping[str, Any], limits: Limits) -> int:
    """The private memory that each process of the server may have."""
    return int(plan.get("session", 0)) or limits.memory_bytes + int(plan.get("reserved", 0))


def allow(ref: ProcessRef, data_bytes: int) -> None:
    """How much private memory each process of a running server may have; what it starts later inherits it."""
    for stat in family([ref.pid])[ref.pid]:
        with contextlib.suppress(OSError):  # it ended meanwhile; or we are not root, and it grows at its next start
            resource.prlimit(stat.pid, resource.RLIMIT_DATA, (data_bytes, data_bytes))


def _wait_listening(volume: Volume, plan: Mapping[str, Any], ref: ProcessRef) -> None:
    deadline = time.monotonic() + LISTEN_SECONDS
    while time.monotonic() < deadline:
        if listens(ref.pid, plan["port"]):
            return
        if not ref.alive():
            if not port_is_free(plan["host"], plan["port"]):
                raise PortTaken(f"port {plan['port']} was taken by somebody else")
            raise NovaStackRuntimeError(f"the server ended at once: {volume.last_line() or 'no reason in its log'}")
        time.sleep(0.01)


def check_port(host: str, port: int) -> None:
    if not port_is_free(host, port):
        raise PortTaken(f"port {port} belongs to somebody else")


def end(volume: Volume, ref: ProcessRef, *, grace_seconds: float) -> None:
    """Stop exactly this process, and remember that it was wanted."""
    run = volume.read("run.json")
    volume.write("run.json", run | {"stopped": True})
    number = getattr(signal, str(volume.read("spec.json").get("stop_signal", "SIGTERM")), signal.SIGTERM)
    stop_family(ref, polite=number, grace_seconds=grace_seconds)


def _fill(
    template: Sequence[str], spec: ServerSpec, found: Found, folder: Path, secrets_folder: Path | None, files: Path
) -> list[str]:
    """The program's path and its arguments, with `{data}`, `{port}`, `{host}`, `{secret:<name>}`, `{file:<name>}` put in."""

    def fill(text: str) -> str:
        if secrets_folder is not None:
            text = re.sub(r"\{secret:([^}/]+)\}", lambda match: str(secrets_folder / match[1]), text)
        text = re.sub(r"\{file:([^}/]+)\}", lambda match: str(files / match[1]), text)
        for key, value in (("data", str(folder)), ("port", str(spec.publish.port)), ("host", spec.publish.host)):
            text = text.replace(f"{{{key}}}", value)
        return text

    return [str(found.program(template[0])), *(fill(argument) for argument in template[1:])]


def _environment(programs: Path, home: Path) -> dict[str, str]:
    """A clean one: nothing of the worker's own (it holds secrets) reaches a server."""
    return {"PATH": f"{programs}:/usr/bin:/bin", "HOME": str(home), "LC_ALL": "C.UTF-8", "TZ": "UTC"}


def with_ref(handle: Handle, ref: ProcessRef) -> Handle:
    return Handle(handle.server_id, handle.incarnation, str(ref))


def port_is_free(host: str, port: int) -> bool:
    """Whether a server could listen there now."""
    kind = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(kind, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True
