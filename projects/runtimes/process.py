"""The process runtime: real servers as processes of this machine, for where there is no container engine.

As root every server has an account of its own, and so is a trust domain; otherwise everything runs as the current user
and servers are only as separate as their passwords. Servers are sessions of their own: they outlive whoever started
them and are known by (pid, start time, boot). Linux only (/proc).
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from projects.domain import (
    CapacityExhausted,
    Command,
    DataInUse,
    DataMissing,
    DataPolicy,
    Handle,
    ImageMissing,
    ImageRef,
    Limits,
    NovaStackRuntimeError,
    Observation,
    PortTaken,
    RuntimeFeature,
    RuntimeUnreachable,
    ServerSpec,
    ServerState,
    StaleHandle,
    ToolHandle,
    Usage,
)
from projects.runtimes.base import Runtime
from projects.runtimes.process_accounts import (
    Account,
    as_account,
    can_make_accounts,
    ensure_account,
    give_tree,
    remove_account,
)
from projects.runtimes.process_binaries import Found, SearchPath, find, installed, reachable, standard_search_path
from projects.runtimes.process_launch import LaunchFailed, LaunchLocked, launch
from projects.runtimes.process_limits import ControlGroups, find_control_groups
from projects.runtimes.process_logs import tail_lines
from projects.runtimes.process_table import ProcessRef, stop_family
from projects.runtimes.process_tools import ToolPlace, start_tool
from projects.runtimes.process_usage import UsageMeter
from projects.runtimes.process_volume import Volume, handle_of

INIT_SECONDS = 60
LISTEN_SECONDS = 5.0
TOOL_ACCOUNT = "novastack-tool"


_P = ParamSpec("_P")
_R = TypeVar("_R")


def _honest(method: Callable[_P, _R]) -> Callable[_P, _R]:
    """What the operating system refuses is a runtime's error with its reason, never a stack trace for people."""

    @functools.wraps(method)
    def wrapped(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return method(*args, **kwargs)
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EMFILE, errno.ENFILE}:
                raise CapacityExhausted(f"this machine has no more room: {error.strerror}") from error
            raise NovaStackRuntimeError(f"this machine refused: {error.strerror or type(error).__name__}") from error

    return wrapped


class ProcessRuntime(Runtime):
    """`root` must be a folder that unprivileged accounts can pass through (as root; see `novastack.embedded.paths`).

    `programs` names the program to look for per engine, where it differs from the official image's name.
    """

    name = "process"

    def __init__(
        self,
        install_id: str,
        root: Path,
        *,
        programs: Mapping[str, str] | None = None,
        search: SearchPath = standard_search_path,
    ) -> None:
        self.install_id = install_id
        self.root = Path(root)
        self._programs = dict(programs or {})
        self._search = search
        self._meter = UsageMeter()

    @functools.cached_property
    def features(self) -> frozenset[RuntimeFeature]:  # type: ignore[override]
        """What this machine really lets us promise, found by trying."""
        found = {RuntimeFeature.LOOPBACK_PORTS}
        if self._groups.limits_memory:
            found.add(RuntimeFeature.MEMORY_LIMIT)
        if self._groups.limits_cpu:
            found.add(RuntimeFeature.CPU_LIMIT)
        if can_make_accounts():
            found.add(RuntimeFeature.TRUST_DOMAINS)
        return frozenset(found)

    @functools.cached_property
    def _groups(self) -> ControlGroups:
        return find_control_groups(hashlib.sha256(f"{self.install_id}\0{self.root}".encode()).hexdigest())

    # --- asking ---------------------------------------------------------------------------------------------------

    def ping(self) -> None:
        if not Path("/proc/self/stat").is_file():
            raise RuntimeUnreachable("the process runtime needs Linux's /proc")
        try:
            self._make_root()
        except OSError as error:
            raise RuntimeUnreachable(f"the folder of the process runtime can't be used: {error.strerror}") from error

    def resolve_image(
        self, engine: str, version: str, official: str, override: str = "", *, pull: bool = False
    ) -> ImageRef:
        """Looks for the server program of that engine and major version; `override` and `pull` mean nothing here."""
        program = self._programs.get(engine, official)
        found = find(program, version, search=self._search)
        if found is None:
            have = ", ".join(installed(program, self._search)) or "none"
            raise ImageMissing(
                f"this machine has no {program} {version} (found: {have}): install it as a system package,"
                " choose a version that is here, or run Docker"
            )
        return ImageRef(f"{program}-{found.version}")

    def observe(self, handles: Sequence[Handle]) -> Mapping[Handle, Observation]:
        return {handle: self._observe_one(handle) for handle in handles}

    def _observe_one(self, handle: Handle) -> Observation:
        try:
            volume = Volume(self.root, handle)
        except ValueError:
            return Observation(ServerState.ABSENT)
        run = volume.read("run.json")
        ref = ProcessRef.parse(str(run.get("ref", "")))
        if ref is None:
            return Observation(ServerState.ABSENT)
        kills = self._groups.oom_kills(volume.name) if self._groups.limits_memory else 0
        facts: dict[str, Any] = {
            "ref": str(ref), "spec_hash": str(run.get("spec_hash", "")),
            "started_at": datetime.fromtimestamp(float(run.get("at", 0)), UTC),
        }  # fmt: skip
        if ref.alive():
            volume.cap_log()
            detail = f"{kills} of its processes ended for memory" if kills else ""
            return Observation(ServerState.RUNNING, detail=detail, oom_killed=kills > 0, **facts)
        if run.get("stopped"):
            return Observation(ServerState.STOPPED, **facts)
        detail = (
            "killed: out of memory" if kills else f"ended by itself: {volume.last_line() or 'no reason in its log'}"
        )
        return Observation(ServerState.STOPPED, oom_killed=kills > 0, detail=detail, **facts)

    def data_exists(self, handle: Handle) -> bool:
        return Volume(self.root, handle).exists()

    def logs(self, handle: Handle, *, tail: int = 200, since: datetime | None = None) -> Iterator[bytes]:
        volume = Volume(self.root, handle)
        yield from tail_lines([volume.own / "server.log.1", volume.log], tail=tail, since=since)

    def usage(self, handles: Sequence[Handle]) -> Mapping[Handle, Usage]:
        refs = {}
        for handle in handles:
            ref = Volume(self.root, handle).last_ref()
            if ref and ref.alive():
                refs[handle] = ref
        measured = self._meter.measure(list(refs.values()))
        answer = {}
        for handle in handles:
            if handle not in refs:
                answer[handle] = Usage()
                continue
            cpu, memory = measured.get(refs[handle], (None, None))
            answer[handle] = Usage(cpu, memory, self._groups.memory_limit(handle.name))
        return answer

    def managed(self) -> Iterable[Handle]:
        for volume in self._volumes():
            if ref := volume.last_ref():
                yield Handle(volume.handle.server_id, volume.handle.incarnation, str(ref))

    def managed_data(self) -> Iterable[Handle]:
        for volume in self._volumes():
            yield volume.handle

    def _volumes(self) -> Iterator[Volume]:
        folder = self.root / "servers"
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if (handle := handle_of(path.name)) and (volume := Volume(self.root, handle)).marked_for(self.install_id):
                yield volume

    def read_epoch(self) -> str:
        with contextlib.suppress(FileNotFoundError):
            return self._epoch_file.read_text().strip()
        return ""

    def write_epoch(self, epoch: str) -> None:
        self._make_root()
        temporary = self._epoch_file.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(epoch)
        temporary.replace(self._epoch_file)

    @property
    def _epoch_file(self) -> Path:
        return self.root / f"epoch-{hashlib.sha256(self.install_id.encode()).hexdigest()[:12]}"

    # --- doing ----------------------------------------------------------------------------------------------------

    @_honest
    def ensure(self, spec: ServerSpec, *, data: DataPolicy) -> Handle:
        volume = Volume(self.root, spec.handle)
        if spec.process is None:
            raise ImageMissing(f"{spec.engine} can't run as a plain process: it needs Docker")
        found = self._find(spec.process.binary, spec.version, spec.process.version_argv)
        self._make_root()
        with volume.held():
            folder = volume.path / spec.data_subdir
            if data is DataPolicy.CREATE:
                if not volume.exists():
                    self._check_port(spec.publish.host, spec.publish.port)
                volume.create(self.install_id, self._account_for(spec.handle))
            else:
                volume.check(self.install_id, folder / spec.initialised_file)
            account = volume.account()
            found = reachable(found, account)
            plan = self._plan(spec, found, folder)
            last = volume.last_ref()
            if last and last.alive():
                if volume.read("run.json").get("spec_hash") == plan["spec_hash"]:
                    volume.write("spec.json", plan)
                    self._groups.set(volume.name, spec.limits)
                    return _with_ref(spec.handle, last)
                self._end(volume, last, grace_seconds=10)
            self._check_port(spec.publish.host, spec.publish.port)
            if not volume.initialised():
                self._initialise(volume, spec, found, folder, account)
            volume.write("spec.json", plan)
            return self._run(volume, account)

    @_honest
    def start(self, handle: Handle) -> Handle:
        volume = Volume(self.root, handle)
        with volume.held():
            plan = self._must_match(volume, handle)
            last = volume.last_ref()
            if last and last.alive():
                return _with_ref(handle, last)
            volume.check(self.install_id, Path(plan["initialised"]))
            self._check_port(plan["host"], plan["port"])
            return self._run(volume, volume.account())

    @_honest
    def stop(self, handle: Handle, *, grace_seconds: float = 15) -> None:
        volume = Volume(self.root, handle)
        if not volume.record.is_file():
            return
        with volume.held():
            self._must_match(volume, handle)
            if last := volume.last_ref():
                self._end(volume, last, grace_seconds=grace_seconds)

    @_honest
    def update(self, handle: Handle, limits: Limits) -> None:
        volume = Volume(self.root, handle)
        with volume.held():
            plan = self._must_match(volume, handle)
            volume.write("spec.json", plan | {"limits": asdict(limits)})
            self._groups.set(volume.name, limits)

    @_honest
    def destroy(self, handle: Handle, *, delete_data: bool) -> None:
        volume = Volume(self.root, handle)
        if not volume.path.is_dir():
            return
        with volume.held():
            if volume.exists() and not volume.marked_for(self.install_id):
                raise StaleHandle("the data in this place belongs to another install")
            if last := volume.last_ref():
                if handle.ref and handle.ref != str(last):
                    raise StaleHandle("the server under this name is not the one that was recorded")
                self._end(volume, last, grace_seconds=5)
                volume.record.unlink(missing_ok=True)
            self._groups.remove(volume.name)
            if delete_data:
                marker = volume.read("marker.json")
                # The marker goes last: what is half deleted is still ours, and deleted again.
                for path in volume.path.iterdir():
                    if path != volume.own:
                        shutil.rmtree(path)
                shutil.rmtree(volume.path)
                if marker.get("own_account"):
                    remove_account(str(marker.get("account", "")))
                (self.root / "locks" / volume.name).unlink(missing_ok=True)

    @_honest
    def run_tool(
        self,
        name: str,
        image: str,
        command: Command,
        *,
        beside: Handle | None = None,
        memory_bytes: int = 256 << 20,
    ) -> ToolHandle:
        program = self._tool_program(image, command.argv[0], beside)
        place = ToolPlace(self.root / "tools", self._groups, self._tool_account)
        self._make_root()
        place.root.mkdir(exist_ok=True)
        place.root.chmod(0o711 if os.geteuid() == 0 else 0o700)
        return start_tool(place, name, program, command, memory_bytes=memory_bytes)

    # --- parts ----------------------------------------------------------------------------------------------------

    def _make_root(self) -> None:
        for folder in (self.root, self.root / "servers"):
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o711 if os.geteuid() == 0 else 0o700)

    def _find(self, program: str, version: str, version_argv: tuple[str, ...] = ("--version",)) -> Found:
        found = find(program, version, version_argv=version_argv, search=self._search)
        if found is None:
            raise ImageMissing(
                f"this machine has no {program} {version}: install it as a system package, or run Docker"
            )
        return found

    @staticmethod
    def _account_for(handle: Handle) -> Account:
        """One account per server; its name carries the random end of the id."""
        digest = hashlib.sha256(handle.name.encode()).hexdigest()[:12]
        return ensure_account(f"nvs{digest}")

    @staticmethod
    def _tool_account() -> Account:
        return ensure_account(TOOL_ACCOUNT)

    def _tool_program(self, image: str, name: str, beside: Handle | None) -> Path:
        """The tool from the folder of the server's own programs, so that versions agree."""
        folder = ""
        if beside is not None:
            folder = str(Volume(self.root, beside).read("spec.json").get("bin", ""))
        match = re.fullmatch(r"(?P<program>.+)-(?P<version>\d+(\.\d+)*)", image)
        if not folder and match:
            found = self._find(match["program"], match["version"])
            folder = str(reachable(found, self._tool_account()).place.bin)
        path = shutil.which(Path(name).name, path=folder or None) or shutil.which(Path(name).name)
        if path is None:
            raise ImageMissing(f"this machine has no {Path(name).name}")
        return Path(path)

    @staticmethod
    def _plan(spec: ServerSpec, found: Found, folder: Path) -> dict[str, Any]:
        """All that a later `start` needs; no secret is in it."""
        assert spec.process is not None  # noqa: S101 - `ensure` refused that
        argv = _fill(spec.process.run, spec, found, folder, None)
        plan: dict[str, Any] = {
            "argv": argv, "bin": str(found.place.bin), "version": found.version, "host": spec.publish.host,
            "port": spec.publish.port, "data": str(folder), "initialised": str(folder / spec.initialised_file),
            "stop_signal": spec.stop_signal, "engine": spec.engine,
        }  # fmt: skip
        digest = hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()
        return plan | {"spec_hash": digest[:32], "limits": asdict(spec.limits)}

    def _initialise(self, volume: Volume, spec: ServerSpec, found: Found, folder: Path, account: Account) -> None:
        """Fresh data in a fresh folder: what a crash left half-made is removed first (it was never ready). The lock is
        handed on: an initialisation whose starter was killed goes on for a while, and must not meet a second one."""
        assert spec.process is not None  # noqa: S101 - `ensure` refused that
        with volume.locked() as lock, volume.secrets(spec.secret_files, account) as secrets_folder:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True, mode=0o700)
            give_tree(volume.path / Path(spec.data_subdir).parts[0] if spec.data_subdir else folder, account)
            argv = _fill(spec.process.init, spec, found, folder, secrets_folder)
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
            raise NovaStackRuntimeError(
                f"making the data failed: {text.splitlines()[-1][:300] if text else 'no reason'}"
            )
        (volume.own / "initialised").touch()

    def _run(self, volume: Volume, account: Account) -> Handle:
        """Start what `spec.json` says, and wait until it listens or has ended."""
        plan = volume.read("spec.json")
        if not plan:
            raise DataMissing("what this server was started with is gone")
        limits = volume.limits()
        volume.cap_log()
        data = Path(plan["data"])
        if last := volume.last_ref():
            last.wait_reaped(3)
        try:
            text = launch(
                plan["argv"], env=_environment(Path(plan["bin"]), data), folder=data, log=volume.log, lock=volume.lock,
                record=volume.record, uid=account.uid, gid=account.gid, extra={"spec_hash": plan["spec_hash"]},
                # Private memory of one process: a runaway query gets an error instead of the kernel's killer.
                rlimits={"RLIMIT_CORE": 0, "RLIMIT_DATA": limits.memory_bytes}
                | ({"RLIMIT_NPROC": limits.pids} if account.own else {}),
                cgroups=self._groups.make(volume.name, limits),
            )  # fmt: skip
        except LaunchLocked as error:
            raise DataInUse("another server process still uses this data") from error
        except LaunchFailed as error:
            raise NovaStackRuntimeError(f"the server could not be started: {error}") from error
        ref = ProcessRef.parse(text)
        if ref is None:
            raise NovaStackRuntimeError("the server could not be started")
        self._wait_listening(volume, plan, ref)
        return _with_ref(volume.handle, ref)

    @staticmethod
    def _wait_listening(volume: Volume, plan: Mapping[str, Any], ref: ProcessRef) -> None:
        deadline = time.monotonic() + LISTEN_SECONDS
        address = (_reachable_host(plan["host"]), plan["port"])
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(address, timeout=0.5):
                if ref.alive():
                    return
            if not ref.alive():
                if not port_is_free(plan["host"], plan["port"]):
                    raise PortTaken(f"port {plan['port']} was taken by somebody else")
                raise NovaStackRuntimeError(f"the server ended at once: {volume.last_line() or 'no reason in its log'}")
            time.sleep(0.01)

    @staticmethod
    def _check_port(host: str, port: int) -> None:
        if not port_is_free(host, port):
            raise PortTaken(f"port {port} belongs to somebody else")

    @staticmethod
    def _end(volume: Volume, ref: ProcessRef, *, grace_seconds: float) -> None:
        """Stop exactly this process, and remember that it was wanted."""
        run = volume.read("run.json")
        volume.write("run.json", run | {"stopped": True})
        number = getattr(signal, str(volume.read("spec.json").get("stop_signal", "SIGTERM")), signal.SIGTERM)
        stop_family(ref, polite=number, grace_seconds=grace_seconds)

    def _must_match(self, volume: Volume, handle: Handle) -> dict[str, Any]:
        """The server's plan. `StaleHandle` if nothing, or another process than the recorded one, is behind the name."""
        last = volume.last_ref()
        if last is None:
            raise (
                StaleHandle("this server is not here any more")
                if volume.exists()
                else DataMissing("the data of this server is not here")
            )
        if handle.ref and handle.ref != str(last):
            raise StaleHandle("the server under this name is not the one that was recorded")
        return volume.read("spec.json")


def end_all_servers(root: Path, *, grace_seconds: float) -> int:
    """Stop every server below `root`, all at once, as wanted stops; returns how many ran. For whoever owns the machine's
    life: data stays, and the reconciler starts them again when the control plane is back."""
    running = []
    folder = root / "servers"
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        handle = handle_of(path.name)
        last = Volume(root, handle).last_ref() if handle else None
        if handle and last and last.alive():
            running.append((Volume(root, handle), last))
    threads = [
        threading.Thread(target=ProcessRuntime._end, args=(volume, ref), kwargs={"grace_seconds": grace_seconds})
        for volume, ref in running
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(running)


def remove_all_servers(root: Path) -> None:
    """Remove every server below `root` with its data and account: for throw-away installs."""
    folder = root / "servers"
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if handle := handle_of(path.name):
            install = str(Volume(root, handle).read("marker.json").get("install", ""))
            runtime = ProcessRuntime(install, root)
            runtime.destroy(handle, delete_data=True)
            runtime._groups.remove("")


def _fill(
    template: Sequence[str], spec: ServerSpec, found: Found, folder: Path, secrets_folder: Path | None
) -> list[str]:
    """The program's path and its arguments, with `{data}`, `{port}`, `{host}`, `{secret:<name>}` put in."""

    def fill(text: str) -> str:
        if secrets_folder is not None:
            text = re.sub(r"\{secret:([^}/]+)\}", lambda match: str(secrets_folder / match[1]), text)
        for key, value in (("data", str(folder)), ("port", str(spec.publish.port)), ("host", spec.publish.host)):
            text = text.replace(f"{{{key}}}", value)
        return text

    return [str(found.program(template[0])), *(fill(argument) for argument in template[1:])]


def _environment(programs: Path, home: Path) -> dict[str, str]:
    """A clean one: nothing of the worker's own (it holds secrets) reaches a server."""
    return {"PATH": f"{programs}:/usr/bin:/bin", "HOME": str(home), "LC_ALL": "C.UTF-8", "TZ": "UTC"}


def _with_ref(handle: Handle, ref: ProcessRef) -> Handle:
    return Handle(handle.server_id, handle.incarnation, str(ref))


def _reachable_host(host: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)  # noqa: S104 - asked, not bound


def port_is_free(host: str, port: int) -> bool:
    """Whether a server could listen there now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True
