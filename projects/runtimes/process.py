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
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from projects.domain import (
    CapacityExhausted,
    Command,
    DataMissing,
    DataPolicy,
    Description,
    Endpoint,
    Handle,
    ImageMissing,
    ImageRef,
    Limits,
    LimitTooSmall,
    LogPart,
    NovaStackRuntimeError,
    Observation,
    RuntimeFeature,
    RuntimeUnreachable,
    ServerSpec,
    ServerState,
    StaleHandle,
    ToolHandle,
    Usage,
)
from projects.runtimes import process_start
from projects.runtimes.base import Runtime
from projects.runtimes.process_accounts import (
    Account,
    can_make_accounts,
    ensure_account,
    make_passable,
    remove_account,
)
from projects.runtimes.process_binaries import (
    Found,
    SearchPath,
    find,
    installed,
    prints,
    reachable,
    standard_search_path,
)
from projects.runtimes.process_limits import ControlGroups, find_control_groups
from projects.runtimes.process_logs import cut_log, files_of, read_part, tail_lines
from projects.runtimes.process_table import ProcessRef, listens
from projects.runtimes.process_tools import ToolPlace, remove_tool, start_tool
from projects.runtimes.process_usage import UsageMeter
from projects.runtimes.process_volume import Volume, handle_of

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
        found = {RuntimeFeature.LOOPBACK_PORTS, RuntimeFeature.TOOLS_BESIDE}
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

    def lacks(self, engine: str, version: str, official: str, override: str = "") -> str:
        try:
            self.resolve_image(engine, version, official)
        except ImageMissing as error:
            return str(error)
        return ""

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
            cut_log(volume)
            detail = f"{kills} of its processes ended for memory" if kills else ""
            return Observation(ServerState.RUNNING, detail=detail, oom_killed=kills > 0, **facts)
        if run.get("stopped"):
            return Observation(ServerState.STOPPED, **facts)
        detail = (
            "killed: out of memory" if kills else f"ended by itself: {volume.last_line() or 'no reason in its log'}"
        )
        return Observation(ServerState.STOPPED, oom_killed=kills > 0, detail=detail, **facts)

    def describe(self, handles: Sequence[Handle]) -> Mapping[Handle, Description]:
        found = {handle: self._describe_one(Volume(self.root, handle)) for handle in handles}
        return {handle: described for handle, described in found.items() if described is not None}

    def _describe_one(self, volume: Volume) -> Description | None:
        ref = volume.last_ref()
        if ref is None or not volume.marked_for(self.install_id):
            return None
        plan = volume.read("spec.json")
        running = ref.alive()
        port = int(plan.get("port") or 0)
        there = port and (not running or listens(ref.pid, port))
        publish = Endpoint(str(plan.get("host", "")), port) if there else None
        if running:  # what holds it; nothing does where there are no control groups
            return Description(
                str(ref), running, publish, self._groups.memory_limit(volume.name), self._groups.cpu_limit(volume.name)
            )
        limits = volume.limits() if "limits" in plan else None
        return Description(
            str(ref), running, publish, limits.memory_bytes if limits else None, limits.cpus if limits else None
        )

    def data_exists(self, handle: Handle) -> bool:
        return Volume(self.root, handle).exists()

    def logs(self, handle: Handle, *, tail: int = 200, since: datetime | None = None) -> Iterator[bytes]:
        volume = Volume(self.root, handle)
        for line in tail_lines(files_of(volume), tail=tail, since=since):
            yield volume.without_paths(line)

    @_honest
    def read_log(self, handle: Handle, *, cursor: str = "", tail: int = 200) -> LogPart:
        volume = Volume(self.root, handle)
        part = read_part(volume, cursor=cursor, tail=tail)
        ref = volume.last_ref()
        return replace(
            part, lines=tuple(map(volume.without_paths, part.lines)), running=ref is not None and ref.alive()
        )

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

    def data_root(self) -> str:
        return str(self.root)

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
                    process_start.check_port(spec.publish.host, spec.publish.port)
                volume.create(self.install_id, self._account_for(spec.handle))
            else:
                volume.check(self.install_id, folder / spec.initialised_file)
            account = volume.account()
            found = reachable(found, account)
            plan = process_start.plan_of(spec, found, folder, volume.files)
            last = volume.last_ref()
            if last and last.alive():
                if volume.read("run.json").get("spec_hash") == plan["spec_hash"]:
                    volume.write("spec.json", plan)
                    self._groups.set(volume.name, spec.limits)
                    return process_start.with_ref(spec.handle, last)
                process_start.end(volume, last, grace_seconds=10)
            process_start.check_port(spec.publish.host, spec.publish.port)
            volume.put_files(spec.files, account)
            if not volume.initialised():
                process_start.initialise(volume, spec, found, folder, account)
            volume.write("spec.json", plan)
            return process_start.run(volume, account, self._groups)

    @_honest
    def start(self, handle: Handle) -> Handle:
        volume = Volume(self.root, handle)
        with volume.held():
            plan = self._must_match(volume, handle)
            last = volume.last_ref()
            if last and last.alive():
                return process_start.with_ref(handle, last)
            volume.check(self.install_id, Path(plan["initialised"]))
            process_start.check_port(plan["host"], plan["port"])
            return process_start.run(volume, volume.account(), self._groups)

    @_honest
    def stop(self, handle: Handle, *, grace_seconds: float = 15) -> None:
        volume = Volume(self.root, handle)
        if not volume.record.is_file():
            return
        with volume.held():
            self._must_match(volume, handle)
            if last := volume.last_ref():
                process_start.end(volume, last, grace_seconds=grace_seconds)

    @_honest
    def update(self, handle: Handle, limits: Limits) -> None:
        volume = Volume(self.root, handle)
        with volume.held():
            plan = self._must_match(volume, handle)
            before = volume.limits()
            self._groups.set(volume.name, limits)
            holds = self._groups.memory_limit(volume.name)
            last = volume.last_ref()
            if last and last.alive():
                if holds is not None and holds > limits.memory_bytes:
                    self._groups.set(volume.name, before)
                    raise LimitTooSmall("the server uses more memory than that")
                process_start.allow(last, process_start.data_bytes(plan, limits))
            volume.write("spec.json", plan | {"limits": asdict(limits)})

    @_honest
    def put_files(self, handle: Handle, files: Mapping[str, bytes]) -> None:
        volume = Volume(self.root, handle)
        with volume.held():
            self._must_match(volume, handle)
            volume.put_files(files, volume.account())

    @_honest
    def tls_reason(self, spec: ServerSpec) -> str:
        if spec.process is None or not spec.process.tls_argv:
            return ""
        found = self._find(spec.process.binary, spec.version, spec.process.version_argv)
        if prints(found.program(spec.process.binary), spec.process.tls_argv):
            return ""
        return f"the {spec.process.binary} {found.version} of this machine was built without TLS"

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
                process_start.end(volume, last, grace_seconds=5)
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
        folder, program = self._tool_program(image, command.argv[0], beside)
        place = self._tool_place()
        self._make_root()
        place.root.mkdir(exist_ok=True)
        place.root.chmod(0o711 if os.geteuid() == 0 else 0o700)
        return start_tool(place, name, program, command, memory_bytes=memory_bytes, folder=folder)

    @_honest
    def remove_tool(self, name: str) -> None:
        remove_tool(self._tool_place(), name)

    def place_of(self, spec: ServerSpec) -> tuple[str, int]:
        """There is one network: that of this machine."""
        return ("127.0.0.1" if spec.publish.host in {"0.0.0.0", "::", ""} else spec.publish.host), spec.publish.port  # noqa: S104 - a comparison

    def _tool_place(self) -> ToolPlace:
        return ToolPlace(self.root / "tools", self._groups, self._tool_account)

    # --- parts ----------------------------------------------------------------------------------------------------

    def _make_root(self) -> None:
        for folder in (self.root, self.root / "servers"):
            make_passable(folder)

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

    def _tool_program(self, image: str, name: str, beside: Handle | None) -> tuple[str, Path]:
        """Folder of the server's own programs, and the tool from there, so that versions agree."""
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
        return folder, Path(path)

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
        threading.Thread(target=process_start.end, args=(volume, ref), kwargs={"grace_seconds": grace_seconds})
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
