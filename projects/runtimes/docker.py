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
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any, ClassVar

import docker.errors

from projects.domain import (
    Command,
    DataExists,
    DataMissing,
    DataPolicy,
    Description,
    Handle,
    ImageRef,
    Limits,
    LogPart,
    NovaStackRuntimeError,
    Observation,
    RuntimeEndpoint,
    RuntimeFacts,
    RuntimeFeature,
    RuntimeUnreachable,
    ServerSpec,
    ServerState,
    StaleHandle,
    ToolHandle,
    Usage,
)
from projects.runtimes import docker_logs, docker_spec
from projects.runtimes.base import MAX_LOG_BYTES, MAX_LOG_LINES, Runtime
from projects.runtimes.docker_client import DockerClients, mapped
from projects.runtimes.docker_containers import Container, Containers, NameInUse, is_up, wanted_limits
from projects.runtimes.docker_images import Images
from projects.runtimes.docker_observe import Observer
from projects.runtimes.docker_tools import Tool
from projects.runtimes.docker_usage import UsageReader

_DESTROY_GRACE_SECONDS = 10.0
_PARALLEL = 8
_NAME_TRIES = 3


class DockerRuntime(Runtime):
    name: ClassVar[str] = "docker"
    features: ClassVar[frozenset[RuntimeFeature]] = frozenset(
        {
            RuntimeFeature.LOOPBACK_PORTS,
            RuntimeFeature.HARDENED,
            RuntimeFeature.MEMORY_LIMIT,
            RuntimeFeature.CPU_LIMIT,
            RuntimeFeature.TRUST_DOMAINS,
            RuntimeFeature.TOOLS_BESIDE,
            RuntimeFeature.ISOLATED,
        }
    )

    def __init__(
        self, install_id: str, *, base_url: str = "", network_name: str = "", endpoint: RuntimeEndpoint | None = None
    ) -> None:
        """`endpoint`, or `base_url` for one without keys; neither: this machine's socket. Nothing is contacted before the
        first call."""
        self._install_id = install_id
        self._clients = DockerClients(endpoint or RuntimeEndpoint(base_url))
        self._images = Images(self._clients)
        self._containers = Containers(self._clients, install_id, network_name or f"nvs-{install_id}")
        self._observer = Observer(self._clients)
        self._usage = UsageReader(self._clients)

    @property
    def base_url(self) -> str:
        return self._clients.base_url

    # --- the engine and its images ------------------------------------------------------------------------------------
    def ping(self) -> None:
        self._clients.hello()

    def facts(self) -> RuntimeFacts:
        with mapped():
            info: dict[str, Any] = self._clients.get().info()
        return RuntimeFacts(
            str(info.get("ServerVersion", "")), str(info.get("ID", "")), tuple(docker_spec.lacking(info))
        )

    def close(self) -> None:
        """End what was opened for it; for an endpoint that is used no more."""
        self._clients.close()

    def resolve_image(
        self, engine: str, version: str, official: str, override: str = "", *, pull: bool = False
    ) -> ImageRef:
        return self._images.resolve(engine, version, official, override, pull=pull)

    def can_pull(self, official: str, version: str, override: str = "") -> bool:
        return self._images.can_pull(official, version, override)

    def lacks(self, engine: str, version: str, official: str, override: str = "") -> str:
        return self._images.lacks(engine, version, official, override)

    # --- servers ------------------------------------------------------------------------------------------------------
    def ensure(self, spec: ServerSpec, *, data: DataPolicy) -> Handle:
        for _ in range(_NAME_TRIES):
            try:
                return self._ensure(spec, data)
            except NameInUse:  # an engine that hung may still do what it was asked before: look again
                time.sleep(0.5)
        return self._ensure(spec, data)

    def _ensure(self, spec: ServerSpec, data: DataPolicy) -> Handle:
        self._check_volume(spec, data)
        existing = self._find(spec.handle)
        if existing is not None and self._is_as_described(existing, spec):
            handle = Handle(spec.handle.server_id, spec.handle.incarnation, str(existing["Id"]))
            if not spec.burst and docker_spec.limits_of(existing) != wanted_limits(spec):
                self.update(handle, spec.limits)
            if not is_up(existing):
                self._containers.put_files(existing, spec.files)
                self._containers.restart(existing)
            return handle
        if existing is not None:
            # Removed before its successor is made: two servers must never share a volume (rule 10).
            self._containers.stop(existing, _DESTROY_GRACE_SECONDS)
            self._remove(existing)
        self._containers.ensure_network(isolated=spec.isolated)
        made = self._containers.create(spec)
        try:
            if data is DataPolicy.CREATE:
                self._containers.put_init_files(made, spec)
            else:
                self._containers.put_files(made, spec.files)
            self._containers.start(made)
        except RuntimeUnreachable:
            raise  # nobody would answer the removal either: the next call finds what was made
        except NovaStackRuntimeError:
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
        except NovaStackRuntimeError as error:
            return {handle: Observation(ServerState.UNREACHABLE, detail=str(error)) for handle in handles}
        absent = Observation(ServerState.ABSENT)
        return {handle: seen.get(handle.name, absent) for handle in handles}

    def describe(self, handles: Sequence[Handle]) -> Mapping[Handle, Description]:
        if not handles:
            return {}
        with mapped():
            ids = {name: str(found["Id"]) for name, found in _by_name(self._list("server")).items()}
        there = [handle for handle in handles if handle.name in ids]
        with ThreadPoolExecutor(_PARALLEL) as pool:
            inspected = pool.map(lambda handle: self._containers.inspect(ids[handle.name]), there)
            found = dict(zip(there, inspected, strict=True))
        return {handle: docker_spec.description_of(each) for handle, each in found.items() if each is not None}

    def start(self, handle: Handle) -> Handle:
        found = self._recorded(handle)
        if found is None:
            raise StaleHandle("the server's container is gone")
        if not self.data_exists(handle):
            raise DataMissing("the server's volume is gone")
        if found["State"].get("Paused"):
            with mapped():
                self._clients.get().unpause(found["Id"])
        elif not is_up(found):
            self._containers.restart(found)
        return Handle(handle.server_id, handle.incarnation, str(found["Id"]))

    def stop(self, handle: Handle, *, grace_seconds: float = 15) -> None:
        found = self._recorded(handle)
        if found is not None:
            self._containers.stop(found, grace_seconds)

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

    def put_files(self, handle: Handle, files: Mapping[str, bytes]) -> None:
        found = self._recorded(handle)
        if found is None:
            raise StaleHandle("the server's container is gone")
        self._containers.put_files(found, files)

    def destroy(self, handle: Handle, *, delete_data: bool) -> None:
        found = self._recorded(handle)
        if found is not None:
            self._containers.stop(found, 0 if delete_data else _DESTROY_GRACE_SECONDS)
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
            if found is None or not is_up(found):
                raise StaleHandle("the server that the tool should work on does not run")
            network = f"container:{found['Id']}"
        return Tool(self._clients, self._install_id, name).run(
            image, command, network=network, memory_bytes=memory_bytes
        )

    def remove_tool(self, name: str) -> None:
        Tool(self._clients, self._install_id, name).remove()

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

    def read_log(self, handle: Handle, *, cursor: str = "", tail: int = 200) -> LogPart:
        found = self._recorded(handle)
        if found is None:
            return LogPart(cursor=cursor)
        ref = str(found["Id"])
        return docker_logs.read_part(
            self._clients.get(), f"/containers/{ref}/logs", ref, cursor=cursor, tail=tail, running=is_up(found)
        )

    def usage(self, handles: Sequence[Handle]) -> Mapping[Handle, Usage]:
        if not handles:
            return {}
        with mapped():
            listed = self._list("server")
        running = {name: str(found["Id"]) for name, found in _by_name(listed).items() if found["State"] == "running"}
        wanted = {handle: running[handle.name] for handle in handles if handle.name in running}
        used = self._usage.read(sorted(set(wanted.values())))
        return {handle: used.get(wanted.get(handle, ""), Usage()) for handle in handles}

    def data_root(self) -> str:
        if not self._clients.local:
            return ""
        with mapped():
            return str(self._clients.get().info().get("DockerRootDir") or "")

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

    def remove_network(self) -> None:
        """Remove the install's network; in use or absent is success. For uninstalling and tests."""
        self._containers.remove_network()

    def remove_install(self) -> None:
        """Remove all servers with their data, the epoch and the network: for throw-away installs and uninstalling."""
        for handle in {found.name: found for found in [*self.managed_data(), *self.managed()]}.values():
            self.destroy(handle, delete_data=True)
        with mapped():
            for volume in self._volumes("epoch"):
                with contextlib.suppress(docker.errors.NotFound):
                    self._clients.get().remove_volume(str(volume["Name"]))
        self.remove_network()

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

    def _remove(self, container: Container) -> None:
        self._observer.forget(str(container["Id"]))
        self._containers.remove(container)

    def _find(self, handle: Handle) -> Container | None:
        """What has the server's name; `StaleHandle` when that is not ours."""
        found = self._containers.inspect(handle.name)
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
            # Or of an earlier request of ours, which an engine that hung did only now: nobody has used it.
            ours = (made.get("Labels") or {}).get(docker_spec.NONCE) == nonce or self._is_ours(
                made.get("Labels"), "data", spec.handle
            )
        if not ours:
            raise DataExists("a volume of this name exists and was not made for this server")


def _by_name(listed: Iterable[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    return {str(found["Names"][0]).lstrip("/"): found for found in listed if found.get("Names")}
