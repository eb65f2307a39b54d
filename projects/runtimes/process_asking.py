"""What the process runtime can say without changing anything: what runs, since when, with which figures, and its log."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from projects.domain import (
    CapacityExhausted,
    Description,
    Endpoint,
    Handle,
    ImageMissing,
    ImageRef,
    LogPart,
    NovaStackRuntimeError,
    Observation,
    RuntimeFeature,
    RuntimeUnreachable,
    ServerState,
    Usage,
)
from projects.runtimes.base import Runtime
from projects.runtimes.process_accounts import can_make_accounts, make_passable
from projects.runtimes.process_binaries import Found, Place, SearchPath, find, installed, standard_search_path
from projects.runtimes.process_limits import ControlGroups, find_control_groups
from projects.runtimes.process_logs import cut_log, files_of, read_part, tail_lines
from projects.runtimes.process_table import ProcessRef, listens
from projects.runtimes.process_usage import UsageMeter
from projects.runtimes.process_volume import Volume, handle_of

SYSTEM = "/usr/bin:/bin"  # where every tool looks (`process_tools`)
_P = ParamSpec("_P")
_R = TypeVar("_R")


def honest(method: Callable[_P, _R]) -> Callable[_P, _R]:
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


class ProcessAsking(Runtime):
    """The half of `ProcessRuntime` that asks. `root`, `programs`: as there."""

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

    def lacks_programs(self, programs: Sequence[str]) -> str:
        missing = [name for name in programs if not shutil.which(name, path=SYSTEM) and self._place_of(name) is None]
        return f"this machine has no {' and no '.join(missing)}" if missing else ""

    def _place_of(self, name: str) -> Place | None:
        """The first folder with a program of that name."""
        folders = (place for place in self._search("*") if os.access(place.bin / name, os.X_OK))
        return next((Place(place.bin, place.base, (place.bin.name,)) for place in folders), None)

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

    @honest
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
