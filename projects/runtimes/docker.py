"""Servers as containers of a Docker engine, one bridge network and one set of labels per install.

Restart policy `unless-stopped`: after a crash of the server or a reboot of the machine databases come up before, and
without, the control plane. That is safe because the start wrapper (docker_spec.WRAPPER) checks lock and marker at every
start, and because `stop` marks the container as stopped for the daemon too. A refused start is stopped, not repeated.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, ClassVar

import docker.errors
from docker.tls import TLSConfig
from docker.types import LogConfig, Mount

from projects.domain import (
    Command,
    DataExists,
    DataInUse,
    DataMissing,
    DataPolicy,
    Handle,
    ImageMissing,
    ImageRef,
    Limits,
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
from projects.runtimes import docker_spec
from projects.runtimes.base import Runtime
from projects.runtimes.docker_client import PULL_TIMEOUT_SECONDS, REGISTRY_TIMEOUT_SECONDS, DockerClients, mapped
from projects.runtimes.docker_observe import Observer, time_of
from projects.runtimes.docker_tools import Tool
from projects.runtimes.docker_usage import UsageReader

MAX_LOG_LINES = 5000
MAX_LOG_BYTES = 1 << 20
_ACCEPT_SECONDS = 5.0  # how long `start` watches the wrapper; on a slower machine `observe` tells
_DESTROY_GRACE_SECONDS = 10.0
_FORCE_SECONDS = 3.0

Container = Mapping[str, Any]  # what `inspect` answers


class DockerRuntime(Runtime):
    name: ClassVar[str] = "docker"
    features: ClassVar[frozenset[RuntimeFeature]] = frozenset(
        {
            RuntimeFeature.LOOPBACK_PORTS,
            RuntimeFeature.HARDENED,
            RuntimeFeature.MEMORY_LIMIT,
            RuntimeFeature.CPU_LIMIT,
            RuntimeFeature.TRUST_DOMAINS,
        }
    )

    def __init__(
        self, install_id: str, *, base_url: str = "", network_name: str = "", tls: Mapping[str, str] | None = None
    ) -> None:
        """`base_url` empty: this machine's socket. `tls` names the files `ca`, `cert` and `key` for an engine behind TLS;
        its certificate is always checked. Nothing is contacted before the first call."""
        self._install_id = install_id
        self._network_name = network_name or f"nvs-{install_id}"
        files = (
            TLSConfig(client_cert=(tls["cert"], tls["key"]), ca_cert=tls["ca"], verify=True)
            if tls is not None
            else None
        )
        self._clients = DockerClients(base_url, files)
        self._observer = Observer(self._clients)
        self._usage = UsageReader(self._clients)

    # --- the engine and its images ------------------------------------------------------------------------------------
    def ping(self) -> None:
        with mapped():
            self._clients.get().ping()

    def resolve_image(
        self, engine: str, version: str, official: str, override: str = "", *, pull: bool = False
    ) -> ImageRef:
        tagged = _tagged(official, version)
        candidates = [override] if override else [tagged, f"novastack-{engine}:{version}"]
        for candidate in candidates:
            found = self._image(candidate)
            if found is not None:
                return found
        if not pull:
            raise ImageMissing(
                f"none of these images is on the host: {', '.join(candidates)}. Pull one, build ours with"
                " `make images`, or name one in NOVASTACK_IMAGES"
            )
        return self._pulled(candidates[0])

    def can_pull(self, official: str, version: str, override: str = "") -> bool:
        client = self._clients.new(REGISTRY_TIMEOUT_SECONDS)
        try:
            with mapped():
                client.inspect_distribution(override or _tagged(official, version))  # type: ignore[no-untyped-call]
        except NovaStackRuntimeError:
            return False
        return True

    def _image(self, name: str) -> ImageRef | None:
        with mapped():
            try:
                found = self._clients.get().inspect_image(name)  # type: ignore[no-untyped-call]
            except docker.errors.NotFound:
                return None
        # A repository digest can be pulled again elsewhere; an image that was built here only has its id.
        digests = found.get("RepoDigests") or []
        return ImageRef(name, str(digests[0] if digests else found["Id"]))

    def _pulled(self, name: str) -> ImageRef:
        client = self._clients.new(PULL_TIMEOUT_SECONDS)
        repository, _, tag = name.rpartition(":") if "@" not in name else (name, "", "")
        try:
            with mapped():
                for event in client.pull(repository or name, tag=tag or None, stream=True, decode=True):
                    if "error" in event:
                        raise ImageMissing(f"{name} could not be pulled: {str(event['error'])[:200]}")
        except (RuntimeUnreachable, ImageMissing):
            raise
        except NovaStackRuntimeError as error:
            raise ImageMissing(f"{name} could not be pulled: {error}") from error
        found = self._image(name)
        if found is None:
            raise ImageMissing(f"{name} is not there after pulling it")
        return found

    # --- servers ------------------------------------------------------------------------------------------------------
    def ensure(self, spec: ServerSpec, *, data: DataPolicy) -> Handle:
        self._check_volume(spec, data)
        existing = self._find(spec.handle)
        if existing is not None and self._is_as_described(existing, spec):
            handle = Handle(spec.handle.server_id, spec.handle.incarnation, str(existing["Id"]))
            if not spec.burst and docker_spec.limits_of(existing) != _limits(spec):
                self.update(handle, spec.limits)
            if not _is_up(existing):
                self._start(existing)
            return handle
        if existing is not None:
            # Removed before its successor is made: two servers must never share a volume (rule 10).
            self._stop(existing, _DESTROY_GRACE_SECONDS)
            self._remove(existing)
        self._ensure_network()
        made = self._create(spec)
        try:
            if data is DataPolicy.CREATE:
                self._put_init_files(made, spec)
            self._start(made)
        except (NovaStackRuntimeError, RuntimeUnreachable):
            with contextlib.suppress(NovaStackRuntimeError):
                self._remove(made)
            raise
        return Handle(spec.handle.server_id, spec.handle.incarnation, str(made["Id"]))

    def observe(self, handles: Sequence[Handle]) -> Mapping[Handle, Observation]:
        if not handles:
            return {}
        try:
            with mapped():
                listed = self._list("server")
            seen = self._observer.observe(listed)
        except RuntimeUnreachable as error:
            return {handle: Observation(ServerState.UNREACHABLE, detail=str(error)) for handle in handles}
        absent = Observation(ServerState.ABSENT)
        return {handle: seen.get(handle.name, absent) for handle in handles}

    def start(self, handle: Handle) -> Handle:
        found = self._recorded(handle)
        if found is None:
            raise StaleHandle("the server's container is gone")
        if not self.data_exists(handle):
            raise DataMissing("the server's volume is gone")
        if found["State"].get("Paused"):
            with mapped():
                self._clients.get().unpause(found["Id"])
        elif not _is_up(found):
            self._ensure_network()
            self._start(found)
        return Handle(handle.server_id, handle.incarnation, str(found["Id"]))

    def stop(self, handle: Handle, *, grace_seconds: float = 15) -> None:
        found = self._recorded(handle)
        if found is not None:
            self._stop(found, grace_seconds)

    def update(self, handle: Handle, limits: Limits) -> None:
        found = self._recorded(handle)
        if found is None:
            raise StaleHandle("the server's container is gone")
        with mapped():
            self._clients.get().update_container(
                found["Id"],
                mem_limit=limits.memory_bytes,
                memswap_limit=limits.memory_bytes,
                cpu_period=docker_spec.CPU_PERIOD,
                cpu_quota=docker_spec.cpu_quota(limits),
            )

    def destroy(self, handle: Handle, *, delete_data: bool) -> None:
        found = self._recorded(handle)
        if found is not None:
            self._stop(found, 0 if delete_data else _DESTROY_GRACE_SECONDS)
            self._remove(found)
        if not delete_data:
            return
        volume = self._volume(handle)
        if volume is None:
            return
        if not self._is_ours(volume.get("Labels"), "data", handle):
            raise StaleHandle("the volume of this name is not this install's")
        with mapped(), contextlib.suppress(docker.errors.NotFound):
            self._clients.get().remove_volume(docker_spec.volume_name(handle))

    def data_exists(self, handle: Handle) -> bool:
        volume = self._volume(handle)
        return volume is not None and self._is_ours(volume.get("Labels"), "data", handle)

    # --- tools, logs, figures -----------------------------------------------------------------------------------------
    def run_tool(
        self,
        name: str,
        image: str,
        command: Command,
        *,
        beside: Handle | None = None,
        memory_bytes: int = 256 << 20,
    ) -> ToolHandle:
        """Secret files are at `{secret:<name>}`; `command.env` is seen by `inspect` and must hold none."""
        network = "none"
        if beside is not None:
            found = self._recorded(beside)
            if found is None or not _is_up(found):
                raise StaleHandle("the server that the tool should work on does not run")
            network = f"container:{found['Id']}"
        return Tool(self._clients, self._install_id, name).run(
            image, command, network=network, memory_bytes=memory_bytes
        )

    def logs(self, handle: Handle, *, tail: int = 200, since: datetime | None = None) -> Iterator[bytes]:
        found = self._recorded(handle)
        if found is None:
            return
        options: dict[str, Any] = {"since": since.timestamp()} if since is not None else {}
        lines = max(0, min(tail, MAX_LOG_LINES))
        with mapped():
            text: bytes = self._clients.get().logs(found["Id"], stdout=True, stderr=True, tail=lines, **options)
        if len(text) > MAX_LOG_BYTES:
            text = text[-MAX_LOG_BYTES:].partition(b"\n")[2]
        yield from text.splitlines()[-lines:]

    def usage(self, handles: Sequence[Handle]) -> Mapping[Handle, Usage]:
        if not handles:
            return {}
        with mapped():
            listed = self._list("server")
        running = {name: str(found["Id"]) for name, found in _by_name(listed).items() if found["State"] == "running"}
        wanted = {handle: running[handle.name] for handle in handles if handle.name in running}
        used = self._usage.read(sorted(set(wanted.values())))
        return {handle: used.get(wanted.get(handle, ""), Usage()) for handle in handles}

    def managed(self) -> Iterable[Handle]:
        with mapped():
            listed = self._list("server")
        found = (docker_spec.handle_of(each.get("Labels"), str(each["Id"])) for each in listed)
        return [handle for handle in found if handle is not None]

    def managed_data(self) -> Iterable[Handle]:
        found = (docker_spec.handle_of(each.get("Labels")) for each in self._volumes("data"))
        return [handle for handle in found if handle is not None]

    # --- the install's epoch is a label of an empty volume -----------------------------------------------------------
    def read_epoch(self) -> str:
        kept = [volume["Labels"] for volume in self._volumes("epoch")]
        newest: Mapping[str, str] = max(kept, key=lambda found: int(found.get(docker_spec.WRITTEN, "0")), default={})
        return str(newest.get(docker_spec.EPOCH, ""))

    def write_epoch(self, epoch: str) -> None:
        old = [str(volume["Name"]) for volume in self._volumes("epoch")]
        labels = docker_spec.labels(self._install_id, "epoch") | {
            docker_spec.EPOCH: epoch,
            docker_spec.WRITTEN: str(time.time_ns()),
        }
        with mapped():
            client = self._clients.get()
            client.create_volume(f"nvs-{self._install_id}-epoch-{uuid.uuid4().hex[:12]}", driver="local", labels=labels)
            for name in old:
                with contextlib.suppress(docker.errors.NotFound):
                    client.remove_volume(name)

    # --- parts: finding -----------------------------------------------------------------------------------------------
    def _list(self, kind: str) -> list[dict[str, Any]]:
        wanted = [f"{name}={value}" for name, value in docker_spec.labels(self._install_id, kind).items()]
        result: list[dict[str, Any]] = self._clients.get().containers(all=True, filters={"label": wanted})
        return result

    def _volumes(self, kind: str) -> list[dict[str, Any]]:
        wanted = [f"{name}={value}" for name, value in docker_spec.labels(self._install_id, kind).items()]
        with mapped():
            found = self._clients.get().volumes(filters={"label": wanted})
        return list(found.get("Volumes") or [])

    def _volume(self, handle: Handle) -> dict[str, Any] | None:
        with mapped():
            try:
                found: dict[str, Any] = self._clients.get().inspect_volume(docker_spec.volume_name(handle))
            except docker.errors.NotFound:
                return None
            return found

    def _inspect(self, name: str) -> Container | None:
        with mapped():
            try:
                found: Container = self._clients.get().inspect_container(name)
            except docker.errors.NotFound:
                return None
            return found

    def _find(self, handle: Handle) -> Container | None:
        """What has the server's name; `StaleHandle` when that is not ours."""
        found = self._inspect(handle.name)
        if found is not None and not self._is_ours(found["Config"].get("Labels"), "server", handle):
            raise StaleHandle("the container of this name is not this install's")
        return found

    def _recorded(self, handle: Handle) -> Container | None:
        """The container that was recorded (rule 3): None when nothing has the name, `StaleHandle` when another has."""
        found = self._find(handle)
        if found is not None and handle.ref and found["Id"] != handle.ref:
            raise StaleHandle("the container of this name is not the one that was recorded")
        return found

    def _is_ours(self, labels: Mapping[str, str] | None, kind: str, handle: Handle) -> bool:
        wanted = docker_spec.labels(self._install_id, kind, handle)
        return all((labels or {}).get(name) == value for name, value in wanted.items())

    def _is_as_described(self, found: Container, spec: ServerSpec) -> bool:
        # `created` was never started: its files may not all be there, so it is made again.
        same = (found["Config"].get("Labels") or {}).get(docker_spec.SPEC) == docker_spec.spec_hash(spec)
        return same and found["State"]["Status"] not in {"created", "dead", "removing"}

    # --- parts: making ------------------------------------------------------------------------------------------------
    def _check_volume(self, spec: ServerSpec, data: DataPolicy) -> None:
        volume = self._volume(spec.handle)
        ours = volume is not None and self._is_ours(volume.get("Labels"), "data", spec.handle)
        if data is DataPolicy.MUST_EXIST:
            if not ours:
                raise DataMissing("the server's volume is gone, or is not this install's")
            return
        if volume is None:
            # Creating a volume that exists silently returns the old one: the nonce tells whose it is.
            nonce = uuid.uuid4().hex
            labels = {
                **spec.labels,
                **docker_spec.labels(self._install_id, "data", spec.handle),
                docker_spec.NONCE: nonce,
            }
            with mapped():
                made = self._clients.get().create_volume(
                    docker_spec.volume_name(spec.handle), driver="local", labels=labels
                )
            ours = (made.get("Labels") or {}).get(docker_spec.NONCE) == nonce
        if not ours:
            raise DataExists("a volume of this name exists and was not made for this server")

    def _ensure_network(self) -> None:
        with mapped():
            client = self._clients.get()
            for _ in range(2):
                try:
                    found = client.inspect_network(self._network_name)
                except docker.errors.NotFound:
                    with contextlib.suppress(_Conflict):
                        _conflicting(
                            lambda: client.create_network(
                                self._network_name,
                                driver="bridge",
                                check_duplicate=True,
                                options={"com.docker.network.bridge.enable_icc": "false"},
                                labels=docker_spec.labels(self._install_id, "network"),
                            )
                        )
                    continue
                if found.get("Options", {}).get("com.docker.network.bridge.enable_icc") != "false":
                    raise NovaStackRuntimeError(
                        f"the network {self._network_name} lets containers reach each other: remove it or name another"
                    )
                return

    def remove_network(self) -> None:
        """Remove the install's network; in use or absent is success. For uninstalling and tests."""
        with mapped():
            client = self._clients.get()
            for found in client.networks(names=[self._network_name]):
                labels = found.get("Labels") or {}
                if labels.get(docker_spec.INSTALL) == self._install_id:
                    with contextlib.suppress(docker.errors.APIError):
                        client.remove_network(found["Id"])

    def _create(self, spec: ServerSpec) -> Container:
        memory, quota = _limits(spec)
        client = self._clients.get()
        with mapped():
            host = client.create_host_config(
                mounts=[Mount(spec.mount_path, docker_spec.volume_name(spec.handle), type="volume")],
                port_bindings={f"{spec.port}/tcp": (spec.publish.host, spec.publish.port)},
                network_mode=self._network_name,
                cap_drop=["ALL"],
                security_opt=["no-new-privileges"],
                pids_limit=spec.limits.pids,
                mem_limit=memory,
                memswap_limit=memory,
                cpu_period=docker_spec.CPU_PERIOD,
                cpu_quota=quota,
                read_only=True,
                tmpfs=dict(spec.tmpfs),
                shm_size=spec.shm_bytes,
                init=False,
                restart_policy={"Name": "unless-stopped"},
                log_config=LogConfig(type=LogConfig.types.JSON, config={"max-size": "10m", "max-file": "3"}),
            )
            try:
                made: Container = client.create_container(
                    spec.image,
                    name=spec.handle.name,
                    entrypoint=["sh"],
                    command=docker_spec.command(spec),
                    environment=dict(spec.env),
                    user=spec.user or None,
                    ports=[(spec.port, "tcp")],
                    labels={
                        **spec.labels,
                        **docker_spec.labels(self._install_id, "server", spec.handle),
                        docker_spec.SPEC: docker_spec.spec_hash(spec),
                    },
                    stop_signal=spec.stop_signal,
                    host_config=host,
                )
            except docker.errors.ImageNotFound as error:
                raise ImageMissing(f"the server's image {spec.image} is not on the host any more") from error
        return made

    def _put_init_files(self, container: Container, spec: ServerSpec) -> None:
        """Unpack `.novastack/` into the volume of a created container, owned by the server's user."""
        client = self._clients.get()
        with mapped():
            # Not `copyUIDGID`: the engine looks the user up in the host's passwd file. The image's own one is right.
            stream, _ = client.get_archive(container["Id"], "/etc/passwd")
            owner = docker_spec.user_ids(b"".join(stream), spec.user)
            client.put_archive(container["Id"], spec.mount_path, docker_spec.init_files(spec, owner))

    def _start(self, container: Container) -> None:
        """Start, and watch until the wrapper has accepted or refused the data. A refused container stays stopped."""
        client, name = self._clients.get(), str(container["Id"])
        with mapped():
            client.start(name)
        deadline = time.monotonic() + _ACCEPT_SECONDS
        pause = 0.03
        while time.monotonic() < deadline:
            with mapped():
                state = client.inspect_container(name)["State"]
                code = int(state["ExitCode"])
                if code in docker_spec.REFUSALS and (not state["Running"] or state["Restarting"]):
                    client.stop(name, timeout=0)
                    raise _refusal(code)
                if state["Status"] == "exited" and code:
                    return  # the server itself failed: `observe` and the logs say how
                since = time_of(state["StartedAt"])
                if since is not None and docker_spec.STARTED_LINE in client.logs(
                    name, stdout=False, stderr=True, since=since.timestamp() - 0.001, tail=100
                ):
                    return
            time.sleep(pause)
            pause = min(0.2, pause * 1.5)

    # --- parts: ending ------------------------------------------------------------------------------------------------
    def _stop(self, container: Container, grace_seconds: float) -> None:
        """The polite signal, then watching in slices, then by force: no single call that outlives a lease."""
        client, name = self._clients.get(), str(container["Id"])
        signal = container["Config"].get("StopSignal") or "SIGTERM"
        deadline = time.monotonic() + grace_seconds
        if container["State"].get("Restarting") or container["State"].get("Paused") or grace_seconds <= 0:
            with mapped(), contextlib.suppress(docker.errors.NotFound):
                client.stop(name, timeout=0)
        elif container["State"].get("Running"):
            with mapped(), contextlib.suppress(_Conflict, docker.errors.NotFound):
                _conflicting(lambda: client.kill(name, signal=signal))
        while (found := self._inspect(name)) is not None and found["State"]["Running"]:
            if time.monotonic() > deadline:
                with mapped(), contextlib.suppress(docker.errors.NotFound):
                    client.stop(name, timeout=0)
                deadline += _FORCE_SECONDS
            if time.monotonic() > deadline + _FORCE_SECONDS:
                raise NovaStackRuntimeError("the container does not end, not even by force")
            time.sleep(0.1)

    def _remove(self, container: Container) -> None:
        """Remove the container and wait until it is gone; its named volume stays."""
        client, name = self._clients.get(), str(container["Id"])
        self._observer.forget(name)
        with mapped(), contextlib.suppress(_Conflict, docker.errors.NotFound):
            _conflicting(lambda: client.remove_container(name, force=True, v=False))
        deadline = time.monotonic() + _DESTROY_GRACE_SECONDS
        while self._inspect(name) is not None:
            if time.monotonic() > deadline:
                raise NovaStackRuntimeError("the container does not go away")
            time.sleep(0.1)


class _Conflict(Exception):
    """409: somebody else is doing the same, or it is done already."""


def _conflicting(act: Any) -> None:
    try:
        act()
    except docker.errors.APIError as error:
        if error.status_code == 409:
            raise _Conflict from error
        raise


def _tagged(official: str, version: str) -> str:
    return official if ":" in official.rpartition("/")[2] else f"{official}:{version}"


def _limits(spec: ServerSpec) -> tuple[int, int]:
    return spec.limits.memory_bytes, docker_spec.cpu_quota(spec.limits, burst=spec.burst)


def _is_up(container: Container) -> bool:
    state = container["State"]
    return bool(state.get("Running")) and not state.get("Restarting") and not state.get("Paused")


def _by_name(listed: Iterable[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    return {str(found["Names"][0]).lstrip("/"): found for found in listed if found.get("Names")}


def _refusal(code: int) -> NovaStackRuntimeError:
    text = docker_spec.REFUSALS[code]
    if code == docker_spec.IN_USE:
        return DataInUse(text)
    if code == docker_spec.UNFIT:
        return ImageMissing(text)
    return DataMissing(text)
