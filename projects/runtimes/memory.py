"""Servers that exist only in this process: for tests of everything above runtimes, with faults on demand.

It keeps the promises of `Runtime` (the same contract suite runs on it), and can be told to break them at a chosen call.
"""

from __future__ import annotations

import collections
import hashlib
import io
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import ClassVar

from projects.domain import (
    Command,
    DataExists,
    DataInUse,
    DataMissing,
    DataPolicy,
    Description,
    ExitResult,
    Handle,
    ImageMissing,
    ImageRef,
    Limits,
    LogPart,
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

ToolProgram = Callable[[Command, bytes], tuple[int, bytes]]


@dataclass(slots=True)
class _Volume:
    install: str
    handle: Handle
    locked: bool = False
    files: dict[str, bytes] = field(default_factory=dict)


@dataclass(slots=True)
class _Server:
    install: str
    handle: Handle
    spec: ServerSpec
    state: ServerState
    limits: Limits
    started_at: datetime
    exit_code: int | None = None
    oom_killed: bool = False
    detail: str = ""
    log: collections.deque[bytes] = field(default_factory=lambda: collections.deque(maxlen=5000))
    logged: int = 0  # lines, ever

    def write_log(self, line: bytes) -> None:
        self.log.append(line)
        self.logged += 1


@dataclass(slots=True)
class _Fault:
    at: int
    times: int
    error: Exception


class MemoryWorld:
    """One imaginary machine. Installs that share it share its ports."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.servers: dict[str, _Server] = {}
        self.volumes: dict[str, _Volume] = {}
        self.epochs: dict[str, str] = {}
        self.foreign_ports: set[int] = set()
        self.missing_images: set[str] = set()
        self.next_ref = 0


class MemoryRuntime(Runtime):
    """`unreachable = True`: nobody answers. `fail(...)`: the next, or the n-th, call of a method raises."""

    name = "memory"
    features: ClassVar[frozenset[RuntimeFeature]] = frozenset(RuntimeFeature)

    def __init__(self, install_id: str = "memory", world: MemoryWorld | None = None) -> None:
        self.install_id = install_id
        self.world = world or MemoryWorld()
        self.unreachable = False
        self.latency_seconds = 0.0
        self.no_tls = ""  # why its servers speak no TLS
        self.calls: collections.Counter[str] = collections.Counter()
        self.tool_programs: dict[str, ToolProgram] = {}
        self._faults: dict[str, list[_Fault]] = collections.defaultdict(list)

    # --- faults and events, for tests -----------------------------------------------------------------------------

    def fail(self, method: str, error: Exception, *, at: int = 1, times: int = 1) -> None:
        """Calls number `at` to `at + times - 1` of `method`, counted from now, raise `error` and do nothing."""
        self._faults[method].append(_Fault(self.calls[method] + at, times, error))

    def crash(self, handle: Handle, *, exit_code: int = 1, oom: bool = False) -> None:
        """The server ends by itself."""
        with self.world.lock:
            server = self.world.servers[handle.name]
            server.state = ServerState.STOPPED
            server.exit_code = 137 if oom else exit_code
            server.oom_killed = oom
            server.detail = "killed: out of memory" if oom else f"ended by itself (exit code {exit_code})"

    def lose_server(self, handle: Handle) -> None:
        """Somebody removed the server behind our back; its data stays."""
        self.world.servers.pop(handle.name, None)

    def lose_data(self, handle: Handle) -> None:
        """Somebody removed the data behind our back."""
        self.world.volumes.pop(handle.name, None)

    def replace_server(self, handle: Handle) -> Handle:
        """Somebody put another thing under this name; returns its handle."""
        with self.world.lock:
            server = self.world.servers[handle.name]
            server.handle = self._new_ref(handle)
            return server.handle

    def _enter(self, method: str) -> None:
        self.calls[method] += 1
        number = self.calls[method]
        for fault in self._faults.get(method, ()):
            if fault.at <= number < fault.at + fault.times:
                raise fault.error
        if self.latency_seconds:
            time.sleep(self.latency_seconds)
        if self.unreachable:
            raise RuntimeUnreachable("the memory runtime was told not to answer")

    def _new_ref(self, handle: Handle) -> Handle:
        self.world.next_ref += 1
        return replace(handle, ref=f"memory-{self.world.next_ref:08d}")

    # --- the interface --------------------------------------------------------------------------------------------

    def ping(self) -> None:
        self._enter("ping")

    def resolve_image(
        self, engine: str, version: str, official: str, override: str = "", *, pull: bool = False
    ) -> ImageRef:
        self._enter("resolve_image")
        name = override or f"{official}:{version}"
        if official.startswith("novastack-nosuch") or name in self.world.missing_images:
            raise ImageMissing(f"there is no image {name}")
        return ImageRef(name, f"sha256:{hashlib.sha256(name.encode()).hexdigest()}")

    def ensure(self, spec: ServerSpec, *, data: DataPolicy) -> Handle:
        self._enter("ensure")
        world, name = self.world, spec.handle.name
        with world.lock:
            volume = world.volumes.get(name)
            ours = volume is not None and volume.install == self.install_id and volume.handle.name == name
            if volume is not None and not ours:
                raise DataExists("foreign data") if data is DataPolicy.CREATE else DataMissing("foreign data")
            if volume is None and data is DataPolicy.MUST_EXIST:
                raise DataMissing("the data of this server is not here")
            server = world.servers.get(name)
            digest = _spec_hash(spec)
            if server and server.state is ServerState.RUNNING and _spec_hash(server.spec) == digest:
                server.limits = spec.limits
                return server.handle
            self._check_port(spec)
            if volume is None:
                volume = world.volumes[name] = _Volume(self.install_id, replace(spec.handle, ref=""))
            if volume.locked:
                raise DataInUse("another server process uses this data")
            volume.files |= spec.files
            if server and _spec_hash(server.spec) == digest:
                return self._up(server)
            server = _Server(
                self.install_id, self._new_ref(spec.handle), spec, ServerState.RUNNING, spec.limits, datetime.now(UTC)
            )
            world.servers[name] = server
            return self._up(server)

    def _check_port(self, spec: ServerSpec) -> None:
        taken = spec.publish.port in self.world.foreign_ports or any(
            other.state is ServerState.RUNNING
            and other.spec.publish.port == spec.publish.port
            and other.handle.name != spec.handle.name
            for other in self.world.servers.values()
        )
        if taken:
            raise PortTaken(f"port {spec.publish.port} belongs to somebody else")

    @staticmethod
    def _up(server: _Server) -> Handle:
        server.state = ServerState.RUNNING
        server.started_at = datetime.now(UTC)
        server.exit_code, server.oom_killed, server.detail = None, False, ""
        server.write_log(f"{server.started_at:%Y-%m-%d %H:%M:%S} ready to accept connections".encode())
        return server.handle

    def observe(self, handles: Sequence[Handle]) -> Mapping[Handle, Observation]:
        try:
            self._enter("observe")
        except RuntimeUnreachable:
            return dict.fromkeys(handles, Observation(ServerState.UNREACHABLE))
        answer = {}
        with self.world.lock:
            for handle in handles:
                server = self.world.servers.get(handle.name)
                answer[handle] = (
                    Observation(
                        server.state, server.handle.ref, server.started_at, server.exit_code, server.oom_killed,
                        server.detail, _spec_hash(server.spec),
                    )
                    if server and server.install == self.install_id
                    else Observation(ServerState.ABSENT)
                )  # fmt: skip
        return answer

    def describe(self, handles: Sequence[Handle]) -> Mapping[Handle, Description]:
        self._enter("describe")
        with self.world.lock:
            found = {handle: self.world.servers.get(handle.name) for handle in handles}
            return {
                handle: Description(
                    server.handle.ref, server.state is ServerState.RUNNING, server.spec.publish,
                    server.limits.memory_bytes, server.limits.cpus,
                )
                for handle, server in found.items()
                if server is not None and server.install == self.install_id
            }  # fmt: skip

    def _recorded(self, handle: Handle) -> _Server | None:
        server = self.world.servers.get(handle.name)
        if server is None:
            return None
        if server.install != self.install_id or (handle.ref and handle.ref != server.handle.ref):
            raise StaleHandle("the server under this name is not the one that was recorded")
        return server

    def start(self, handle: Handle) -> Handle:
        self._enter("start")
        with self.world.lock:
            server = self._recorded(handle)
            if server is None:
                raise StaleHandle("this server is not here any more")
            volume = self.world.volumes.get(handle.name)
            if volume is None or volume.handle.name != handle.name:
                raise DataMissing("the data of this server is not here")
            if server.state is ServerState.RUNNING:
                return server.handle
            if volume.locked:
                raise DataInUse("another server process uses this data")
            self._check_port(server.spec)
            return self._up(server)

    def stop(self, handle: Handle, *, grace_seconds: float = 15) -> None:
        self._enter("stop")
        with self.world.lock:
            server = self._recorded(handle)
            if server and server.state is ServerState.RUNNING:
                server.state, server.exit_code = ServerState.STOPPED, 0

    def update(self, handle: Handle, limits: Limits) -> None:
        self._enter("update")
        with self.world.lock:
            server = self._recorded(handle)
            if server is None:
                raise StaleHandle("this server is not here any more")
            server.limits = limits

    def put_files(self, handle: Handle, files: Mapping[str, bytes]) -> None:
        self._enter("put_files")
        with self.world.lock:
            if self._recorded(handle) is None:
                raise StaleHandle("this server is not here any more")
            self.world.volumes[handle.name].files |= files

    def tls_reason(self, spec: ServerSpec) -> str:
        self._enter("tls_reason")
        return self.no_tls

    def destroy(self, handle: Handle, *, delete_data: bool) -> None:
        self._enter("destroy")
        with self.world.lock:
            if self._recorded(handle):
                del self.world.servers[handle.name]
            if delete_data and handle.name in self.world.volumes:
                if self.world.volumes[handle.name].install != self.install_id:
                    raise StaleHandle("the data under this name belongs to another install")
                del self.world.volumes[handle.name]

    def data_exists(self, handle: Handle) -> bool:
        self._enter("data_exists")
        return handle.name in self.world.volumes

    def run_tool(
        self,
        name: str,
        image: str,
        command: Command,
        *,
        beside: Handle | None = None,
        memory_bytes: int = 256 << 20,
    ) -> ToolHandle:
        """Runs `tool_programs[argv[0]]` on the whole standard input, once that is closed or the result is asked for."""
        self._enter("run_tool")
        program = self.tool_programs.get(command.argv[0])
        if program is None:
            raise ImageMissing(f"there is no {command.argv[0]} in {image}")
        return _MemoryTool(name, program, command).handle()

    def remove_tool(self, name: str) -> None:
        self._enter("remove_tool")

    def logs(self, handle: Handle, *, tail: int = 200, since: datetime | None = None) -> Iterator[bytes]:
        self._enter("logs")
        server = self.world.servers.get(handle.name)
        lines = list(server.log) if server else []
        yield from lines[-min(tail, 5000) :] if tail > 0 else ()

    def read_log(self, handle: Handle, *, cursor: str = "", tail: int = 200) -> LogPart:
        self._enter("read_log")
        with self.world.lock:
            server = self.world.servers.get(handle.name)
            if server is None:
                return LogPart(cursor=cursor)
            ref, _, count = cursor.partition(":")
            known = ref == server.handle.ref and count.isdigit()
            new = min(server.logged - int(count), server.logged) if known else server.logged
            lines = list(server.log)[max(0, len(server.log) - new) :]
            given = lines[-tail:] if tail > 0 else []
            return LogPart(
                tuple(given), f"{server.handle.ref}:{server.logged}", bool(cursor) and (not known or len(given) < new),
                server.state is ServerState.RUNNING,
            )  # fmt: skip

    def write_log(self, handle: Handle, *lines: bytes) -> None:
        """The server logs these lines."""
        with self.world.lock:
            for line in lines:
                self.world.servers[handle.name].write_log(line)

    def usage(self, handles: Sequence[Handle]) -> Mapping[Handle, Usage]:
        self._enter("usage")
        answer = {}
        for handle in handles:
            server = self.world.servers.get(handle.name)
            up = server is not None and server.state is ServerState.RUNNING
            answer[handle] = Usage(1.0, 32 << 20, server.limits.memory_bytes) if server and up else Usage()
        return answer

    def managed(self) -> Iterable[Handle]:
        self._enter("managed")
        with self.world.lock:
            return [server.handle for server in self.world.servers.values() if server.install == self.install_id]

    def managed_data(self) -> Iterable[Handle]:
        self._enter("managed_data")
        with self.world.lock:
            return [volume.handle for volume in self.world.volumes.values() if volume.install == self.install_id]

    def read_epoch(self) -> str:
        self._enter("read_epoch")
        return self.world.epochs.get(self.install_id, "")

    def write_epoch(self, epoch: str) -> None:
        self._enter("write_epoch")
        self.world.epochs[self.install_id] = epoch


def _spec_hash(spec: ServerSpec) -> str:
    """What makes a server another one; limits can be changed on the running one."""
    return f"{spec.image}|{spec.publish.host}:{spec.publish.port}|{'|'.join(spec.argv)}"


class _Input(io.BytesIO):
    """Standard input that keeps what was written after it is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.received = b""

    def close(self) -> None:
        if not self.closed:
            self.received = self.getvalue()
        super().close()


class _MemoryTool:
    def __init__(self, name: str, program: ToolProgram, command: Command) -> None:
        self.name = name
        self.stdin = _Input()
        self.stdout = io.BytesIO()
        self._program = program
        self._command = command
        self._result: ExitResult | None = None

    def _run(self) -> ExitResult:
        if self._result is None:
            self.stdin.close()
            code, output = self._program(self._command, self.stdin.received)
            self.stdout.write(output)
            self.stdout.seek(0)
            self._result = ExitResult(code)
        return self._result

    def _kill(self) -> None:
        self._result = self._result or ExitResult(137)

    def handle(self) -> ToolHandle:
        return ToolHandle(
            self.name,
            self.stdin,
            self.stdout,
            io.BytesIO(),
            poll=self._run,
            wait=lambda _: self._run(),
            kill=self._kill,
        )
