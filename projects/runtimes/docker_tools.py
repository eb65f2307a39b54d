"""Throw-away tool containers: streams over one attached connection, no log, exit code from inspect (rule 24)."""

from __future__ import annotations

import contextlib
import io
import os
import socket
import struct
import threading
import time
from typing import IO, Any

import docker.errors
from docker.types import LogConfig, Mount

from projects.domain import Command, ExitResult, NovaStackRuntimeError, ToolHandle
from projects.runtimes import docker_spec
from projects.runtimes.docker_client import DockerClients, mapped

NOBODY = 65534
SECRETS = "/run/novastack"
_STDERR_BYTES = 64 << 10
_STDOUT, _STDERR = 1, 2
_HEADER = struct.Struct(">BxxxL")


class _Tail(io.RawIOBase):
    """The last bytes of a stream; reading waits for its end. So nobody has to read it for the tool to go on."""

    def __init__(self) -> None:
        self._kept = bytearray()
        self._ended = threading.Event()

    def add(self, data: bytes) -> None:
        self._kept += data
        del self._kept[:-_STDERR_BYTES]

    def end(self) -> None:
        self._ended.set()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._ended.wait()
        count = min(len(buffer), len(self._kept))
        buffer[:count] = self._kept[:count]
        del self._kept[:count]
        return count


class _Input(io.RawIOBase):
    """The write side of the attached connection; closing it is the tool's end of file."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._connection.sendall(data)
        return len(data)

    def close(self) -> None:
        if not self.closed:
            with contextlib.suppress(OSError):
                self._connection.shutdown(socket.SHUT_WR)
        super().close()


class _InputAlone(_Input):
    """A connection for nothing else, as over TLS: half of one can't be closed there (rule 24), nor may two threads use one.
    A tool meets no end of file on it: who has to know where its input ends is told by `framing`."""

    def __init__(self, attached: Any) -> None:
        super().__init__(getattr(attached, "_sock", attached))
        self._attached = attached

    def close(self) -> None:
        if not self.closed:
            with contextlib.suppress(OSError):
                self._connection.close()
        io.RawIOBase.close(self)


class Tool:
    """One tool container from `create` to removal."""

    def __init__(self, clients: DockerClients, install_id: str, name: str) -> None:
        self._clients = clients
        self._install_id = install_id
        self._name = name
        self._id = ""
        self._result: ExitResult | None = None

    def run(self, image: str, command: Command, *, network: str, memory_bytes: int) -> ToolHandle:
        self.remove()
        api = self._clients.get()
        argv, env = _filled(command)
        labels = docker_spec.labels(self._install_id, "tool")
        mounts = []
        if command.secret_files:
            with mapped():
                volume = docker_spec.labels(self._install_id, "secret")
                api.create_volume(self._secrets, driver="local", labels=volume)
            mounts.append(Mount(SECRETS, self._secrets, type="volume"))
        with mapped():
            host = api.create_host_config(
                mounts=mounts,
                network_mode=network,
                cap_drop=["ALL"],
                security_opt=["no-new-privileges"],
                read_only=True,
                tmpfs={"/tmp": "mode=1777,size=64m"},  # noqa: S108 - inside the container
                pids_limit=128,
                mem_limit=memory_bytes,
                memswap_limit=memory_bytes,
                log_config=LogConfig(type=LogConfig.types.NONE),
            )
            made = api.create_container(
                image, entrypoint=argv[:1], command=argv[1:], name=self._name, environment=env, labels=labels,
                user=f"{NOBODY}:{NOBODY}", host_config=host, stdin_open=True, working_dir="/tmp", use_config_proxy=False,  # noqa: S108
            )  # fmt: skip
            self._id = str(made["Id"])
        try:
            return self._started(command)
        except BaseException:
            self.remove()
            raise

    @property
    def _secrets(self) -> str:
        return f"{self._name}-secrets"

    def _started(self, command: Command) -> ToolHandle:
        # The attached connection waits as long as the tool is silent: a client of its own, without a time limit.
        streams = self._clients.new(30)
        api = self._clients.get()
        with mapped():
            if command.secret_files:
                api.put_archive(self._id, SECRETS, docker_spec.archive(command.secret_files, owner=(NOBODY, NOBODY)))
            whole = self._clients.half_close
            told = {"stdin": int(whole), "stdout": 1, "stderr": 1, "stream": 1, "logs": 0}
            attached = streams.attach_socket(self._id, params=told)
            connection: socket.socket = getattr(attached, "_sock", attached)
            connection.settimeout(None)
            if whole:
                stdin = _Input(connection)
            else:
                stdin = _InputAlone(streams.attach_socket(self._id, params={"stdin": 1, "stream": 1, "logs": 0}))
            api.start(self._id)
        reader, writer = os.pipe()
        stderr = _Tail()
        threading.Thread(
            target=_pump, args=(connection, attached, writer, stderr), name=f"tool-{self._name}", daemon=True
        ).start()
        return ToolHandle(
            name=self._name,
            stdin=io.BufferedWriter(stdin),
            stdout=os.fdopen(reader, "rb"),
            stderr=io.BufferedReader(stderr),
            poll=self.poll,
            wait=self.wait,
            kill=self.remove,
        )

    def poll(self) -> ExitResult | None:
        if self._result is None:
            with mapped():
                try:
                    state = self._clients.get().inspect_container(self._id)["State"]
                except docker.errors.NotFound:
                    raise NovaStackRuntimeError("the tool's container is gone") from None
            if state["Status"] not in {"created", "running", "paused"}:
                self._result = ExitResult(int(state["ExitCode"]), bool(state.get("OOMKilled")))
        return self._result

    def wait(self, timeout_seconds: float) -> ExitResult:
        deadline = time.monotonic() + timeout_seconds
        pause = 0.02
        while (result := self.poll()) is None:
            if time.monotonic() >= deadline:
                raise TimeoutError("the tool is still running")
            time.sleep(min(pause, max(0.0, deadline - time.monotonic())))
            pause = min(0.5, pause * 1.5)
        return result

    def remove(self) -> None:
        """Remove this container, or what an earlier caller left under the name."""
        api = self._clients.get()
        with mapped():
            target = self._id
            if not target:
                with contextlib.suppress(docker.errors.NotFound):
                    found = api.inspect_container(self._name)
                    labels = found["Config"]["Labels"] or {}
                    if labels.get(docker_spec.INSTALL) != self._install_id or labels.get(docker_spec.KIND) != "tool":
                        raise NovaStackRuntimeError("a container that is not ours has the tool's name")
                    target = str(found["Id"])
            if target:
                with contextlib.suppress(docker.errors.NotFound):
                    api.remove_container(target, force=True, v=True)
            with contextlib.suppress(docker.errors.NotFound):
                if not self._id or self._is_last():
                    api.remove_volume(self._secrets, force=False)

    def _is_last(self) -> bool:
        """No later tool took over the name (and with it the volume of secrets)."""
        try:
            self._clients.get().inspect_container(self._name)
        except docker.errors.NotFound:
            return True
        return False


def _filled(command: Command) -> tuple[list[str], dict[str, str]]:
    def fill(text: str) -> str:
        for name in command.secret_files:
            text = text.replace(f"{{secret:{name}}}", f"{SECRETS}/{name}")
        return text

    return [fill(word) for word in command.argv], {name: fill(value) for name, value in command.env.items()}


def _pump(connection: socket.socket, attached: IO[bytes], stdout: int, stderr: _Tail) -> None:
    """Take the multiplexed stream apart until it ends. A caller that stopped reading slows the tool, and no more."""
    listening = True
    try:
        while header := _exactly(connection, _HEADER.size):
            kind, size = _HEADER.unpack(header)
            while size:
                data = connection.recv(min(size, 1 << 16))
                if not data:
                    return
                size -= len(data)
                if kind == _STDERR:
                    stderr.add(data)
                elif kind == _STDOUT and listening:
                    try:
                        _write_all(stdout, data)
                    except BrokenPipeError:
                        listening = False  # keep draining, so that the tool can end
    except OSError:
        pass  # removed while running
    finally:
        os.close(stdout)
        stderr.end()
        with contextlib.suppress(OSError):
            attached.close()


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _exactly(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = connection.recv(size - len(data))
        if not more:
            return b""
        data += more
    return data
