"""Servers as services of a Docker Swarm: one replicated service of one task per incarnation (ADR 0016).

A server stays on the node that was chosen at its first start, where its volume is (rules 10, 27): Swarm starts it again
there after a crash or a reboot, and nowhere else. What a Swarm can't do is said: it publishes on all addresses of a node,
has no standard input for services, and reaches a node's engine only where the region names it.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, ClassVar

import docker.errors
from docker import utils

from projects.domain import (
    Command,
    DataMissing,
    DataPolicy,
    Description,
    Handle,
    ImageMissing,
    ImageRef,
    Limits,
    LogPart,
    NoNode,
    NotReachableHere,
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
from projects.runtimes import docker_logs, docker_spec, swarm_spec
from projects.runtimes.base import MAX_LOG_LINES, Runtime
from projects.runtimes.docker_client import mapped
from projects.runtimes.docker_images import Images
from projects.runtimes.docker_tools import Tool
from projects.runtimes.swarm_client import Conflict, Found, Swarm, container_of, update_container
from projects.runtimes.swarm_data import Data
from projects.runtimes.swarm_jobs import Jobs
from projects.runtimes.swarm_observe import Observer, node_of
from projects.runtimes.swarm_services import Services
from projects.runtimes.swarm_spec import DataRecord, SwarmConfig
from projects.runtimes.swarm_view import View

_PARALLEL = 8
_DESTROY_GRACE_SECONDS = 10.0
_NANO = 1_000_000_000


class SwarmRuntime(Runtime):
    name: ClassVar[str] = "swarm"
    # Not LOOPBACK_PORTS (a Swarm publishes on all addresses), not HARDENED (no-new-privileges is ignored by engines before
    # API 1.46), not TOOLS_BESIDE (only on nodes whose engine is reached).
    features: ClassVar[frozenset[RuntimeFeature]] = frozenset(
        {RuntimeFeature.MEMORY_LIMIT, RuntimeFeature.CPU_LIMIT, RuntimeFeature.TRUST_DOMAINS}
    )

    def __init__(
        self, install_id: str, config: Mapping[str, Any] | None = None, *, endpoint: RuntimeEndpoint | None = None
    ) -> None:
        """`config` as in `SwarmConfig`; `endpoint`: a manager, this machine's socket if not given. Nothing is contacted
        before the first call."""
        self._install_id = install_id
        self._config = SwarmConfig.of(config or {})
        self._swarm = Swarm(install_id, self._config, endpoint or RuntimeEndpoint())
        self._images = Images(self._swarm.clients)
        self._observer = Observer(self._swarm)
        self._jobs = Jobs(self._swarm)
        self._services = Services(self._swarm)
        self._view = View(self._swarm)
        self._data = Data(self._swarm, self._jobs)

    # --- the Swarm and its images -------------------------------------------------------------------------------------
    def ping(self) -> None:
        self._swarm.check()

    def facts(self) -> RuntimeFacts:
        self._swarm.check()
        with mapped():
            info: dict[str, Any] = self._swarm.clients.get().info()
        problems = [self._config.problem] if self._config.problem else []
        problems += self._data.problems()
        version = str(self._swarm.clients.get().api_version)
        if utils.version_lt(version, swarm_spec.NO_NEW_PRIVILEGES):
            problems.append(f"its API {version} knows no `no-new-privileges` for services")
        cluster = str(((info.get("Swarm") or {}).get("Cluster") or {}).get("ID") or "")
        return RuntimeFacts(str(info.get("ServerVersion", "")), cluster, (*problems, *docker_spec.lacking(info)))

    def close(self) -> None:
        self._swarm.close()

    def resolve_image(
        self, engine: str, version: str, official: str, override: str = "", *, pull: bool = False
    ) -> ImageRef:
        """As the endpoint's own engine has it: an image that was built there must be on the other nodes as well."""
        return self._images.resolve(engine, version, official, override, pull=pull)

    def can_pull(self, official: str, version: str, override: str = "") -> bool:
        return self._images.can_pull(official, version, override)

    def lacks(self, engine: str, version: str, official: str, override: str = "") -> str:
        if self._config.problem:
            return self._config.problem
        self._swarm.check()
        try:
            self._data.candidates(self._swarm.nodes())
        except NoNode as error:
            return str(error)
        return self._images.lacks(engine, version, official, override)

    # --- servers ------------------------------------------------------------------------------------------------------
    def ensure(self, spec: ServerSpec, *, data: DataPolicy) -> Handle:
        """Some seconds more than on one engine: the volume is prepared by a job. A minute and a half where the node has yet
        to pull the image."""
        if self._config.problem:
            raise NovaStackRuntimeError(self._config.problem)
        if spec.publish.host not in swarm_spec.ALL_ADDRESSES:
            swarm_spec.refuse_address(spec.publish.host)
        existing = self._find(spec.handle)
        record = self._data.claim(spec, data)
        handle = replace(spec.handle, ref=str(existing["ID"])) if existing is not None else spec.handle
        if existing is not None and self._is_as_described(existing, spec, record):
            task = self._services.running(existing)
            if task is not None:
                if not spec.burst:
                    self.update(handle, spec.limits)
                return handle
            self._data.check_node(record)
            self._data.put(spec.handle, record, spec)
            self._services.start(
                existing, swarm_spec.resources(spec.limits, self._config, burst=self._bursts(spec, record))
            )
            return handle
        self._data.check_node(record)
        if existing is not None:
            # Removed before its successor is made: two servers must never share a volume (rule 10).
            self._services.stop(existing, _DESTROY_GRACE_SECONDS)
            self._services.remove(existing)
        else:
            self._services.await_gone(handle, node=record.node)
        self._check_image(spec, record)
        network = self._swarm.ensure_network()
        if data is DataPolicy.CREATE:
            self._data.make(spec, record)
        else:
            self._data.put(spec.handle, record, spec)
        body = swarm_spec.service(
            spec, self._config, record, self._install_id, network, burst=self._bursts(spec, record)
        )
        try:
            made = self._swarm.create_service(body)
        except Conflict:
            raise StaleHandle("another service of this name appeared") from None
        service = {"ID": made, "Spec": body}
        try:
            self._services.await_accepted(service, set())
        except RuntimeUnreachable:
            raise
        except NovaStackRuntimeError:
            with contextlib.suppress(NovaStackRuntimeError):
                self._services.stop(service, 0)
                self._services.remove(service)
            raise
        return replace(spec.handle, ref=made)

    def observe(self, handles: Sequence[Handle]) -> Mapping[Handle, Observation]:
        if not handles:
            return {}
        try:
            seen = self._observer.observe()
        except NovaStackRuntimeError as error:
            return {handle: Observation(ServerState.UNREACHABLE, detail=str(error)) for handle in handles}
        absent = Observation(ServerState.ABSENT)
        return {handle: seen.get(handle.name, absent) for handle in handles}

    def describe(self, handles: Sequence[Handle]) -> Mapping[Handle, Description]:
        """Where a node's engine is reached, of the container itself; elsewhere what the service says."""
        if not handles:
            return {}
        return self._view.describe(handles)

    def start(self, handle: Handle) -> Handle:
        found = self._recorded(handle)
        if found is None:
            raise StaleHandle("the server's service is gone")
        record = self._data.record(handle)
        if record is None or not self._data.is_there(handle, record):
            raise DataMissing("the server's volume is gone")
        if self._services.running(found) is None:
            self._services.start(found, self._kept_limits(found))
        return replace(handle, ref=str(found["ID"]))

    def stop(self, handle: Handle, *, grace_seconds: float = 15) -> None:
        """At most the 15 s that the service was made with, unless the node's engine is reached."""
        found = self._recorded(handle)
        if found is not None:
            self._services.stop(found, grace_seconds)

    def update(self, handle: Handle, limits: Limits) -> None:
        """On the running container where its node's engine is reached; the service itself follows at its next start (a
        Swarm restarts a task whose resources change). Elsewhere it is restarted, once."""
        found = self._recorded(handle)
        if found is None:
            raise StaleHandle("the server's service is gone")
        wanted = swarm_spec.resources(limits, self._config)
        task = self._services.running(found)
        engine = self._swarm.engine_of(str(task.get("NodeID") or "")) if task is not None else None
        if task is None or engine is None:
            noted = (found["Spec"].get("Labels") or {}).get(swarm_spec.LIMITS, swarm_spec.limits_label(limits))
            if (found["Spec"]["TaskTemplate"].get("Resources"), noted) != (wanted, swarm_spec.limits_label(limits)):
                self._services.set_resources(found, wanted, limits)
                if task is not None:
                    self._services.await_accepted(found, {task["ID"]})
            return
        body = {
            "Memory": limits.memory_bytes, "MemorySwap": limits.memory_bytes, "NanoCpus": round(limits.cpus * _NANO),
            "PidsLimit": limits.pids,
        }  # fmt: skip
        update_container(engine[0], container_of(task), body)
        if (found["Spec"].get("Labels") or {}).get(swarm_spec.LIMITS) != swarm_spec.limits_label(limits):
            self._services.note_limits(found, limits)

    def put_files(self, handle: Handle, files: Mapping[str, bytes]) -> None:
        """By a job on the server's node, into the volume: a Swarm's own secrets can't change under a running task."""
        found = self._recorded(handle)
        record = self._data.record(handle)
        if found is None or record is None:
            raise StaleHandle("the server's service is gone")
        container = found["Spec"]["TaskTemplate"]["ContainerSpec"]
        self._data.put_as(handle, record, str(container["Image"]), str(container.get("User") or ""), files)

    def destroy(self, handle: Handle, *, delete_data: bool) -> None:
        found = self._recorded(handle)
        if found is not None:
            self._services.stop(found, 0 if delete_data else _DESTROY_GRACE_SECONDS)
            self._services.remove(found)
        self._jobs.clean(handle)
        if delete_data:
            record = self._data.record(handle)
            if found is None and record is not None:
                self._services.await_gone(handle, node=record.node, kill=True)
            self._data.delete(handle)

    def data_exists(self, handle: Handle) -> bool:
        record = self._data.record(handle)
        return record is not None and self._data.is_there(handle, record)

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
        """A plain container of the server's node: services have no standard input. `NotReachableHere` where this region
        does not name that node's engine."""
        clients, network = self._swarm.clients, "none"
        if beside is not None:
            found = self._recorded(beside)
            task = self._services.running(found) if found is not None else None
            if task is None:
                raise StaleHandle("the server that the tool should work on does not run")
            engine = self._swarm.engine_of(str(task["NodeID"]))
            if engine is None:
                raise NotReachableHere(
                    "the server runs on a node whose engine NovaStack does not reach: name it under `nodes` in the"
                    " region's settings, so that tools can run there"
                )
            clients, network = engine[0], f"container:{container_of(task)}"
        return Tool(clients, self._install_id, name).run(image, command, network=network, memory_bytes=memory_bytes)

    def remove_tool(self, name: str) -> None:
        """On every node whose engine is reached: which one it ran on is not known any more."""
        engines = [self._swarm.engine_of(node) for node in self._swarm.nodes()]
        every = [self._swarm.clients, *(engine[0] for engine in engines if engine is not None)]
        for clients in {id(each): each for each in every}.values():
            Tool(clients, self._install_id, name).remove()

    def logs(self, handle: Handle, *, tail: int = 200, since: datetime | None = None) -> Iterator[bytes]:
        """Of the tasks that the Swarm keeps (the running one and its last failures); a stopped server has none."""
        found = self._recorded(handle)
        if found is None:
            return
        lines = max(0, min(tail, MAX_LOG_LINES))
        first = since.isoformat() if since else ""
        said = docker_logs.read_lines(
            self._swarm.clients.get(), f"/services/{found['ID']}/logs", tail=max(1, lines), since=first, many=True
        )
        yield from (line.text for line in said[-lines:] if lines)

    def read_log(self, handle: Handle, *, cursor: str = "", tail: int = 200) -> LogPart:
        """A server that was stopped has a new log: its task's container goes with it, and a cursor of before is a gap."""
        found = self._recorded(handle)
        if found is None:
            return LogPart(cursor=cursor)
        ref = str(found["ID"])
        return docker_logs.read_part(
            self._swarm.clients.get(), f"/services/{ref}/logs", ref, cursor=cursor, tail=tail,
            running=self._services.running(found) is not None, many=True,
        )  # fmt: skip

    def usage(self, handles: Sequence[Handle]) -> Mapping[Handle, Usage]:
        """Of servers on nodes whose engine is reached."""
        if not handles:
            return {}
        return self._view.usage(handles)

    def data_root(self) -> str:
        """Known only where the endpoint is this machine and the data can be nowhere else."""
        if not self._swarm.clients.local:
            return ""
        device = self._config.volume_options.get("device", "")
        if device.endswith("/{volume}"):
            bound = "bind" in self._config.volume_options.get("o", "").split(",")
            return device.removesuffix("/{volume}") if bound else ""
        if self._config.volume_driver != "local" or device:
            return ""
        fitting = [node for node in self._swarm.nodes().values() if self._data.fits(node)]
        if [node["ID"] for node in fitting] != [self._swarm.own_node()]:
            return ""
        with mapped():
            return str(self._swarm.clients.get().info().get("DockerRootDir") or "")

    def managed(self) -> Iterable[Handle]:
        found = (docker_spec.handle_of(s["Spec"].get("Labels"), str(s["ID"])) for s in self._swarm.services("server"))
        return [handle for handle in found if handle is not None]

    def managed_data(self) -> Iterable[Handle]:
        found = (docker_spec.handle_of(each["Spec"].get("Labels")) for each in self._swarm.configs("data"))
        return [handle for handle in found if handle is not None]

    # --- the install's epoch is a label of a Swarm config -------------------------------------------------------------
    def read_epoch(self) -> str:
        kept = [each["Spec"].get("Labels") or {} for each in self._swarm.configs("epoch")]
        newest: Mapping[str, str] = max(kept, key=lambda found: int(found.get(docker_spec.WRITTEN, "0")), default={})
        return str(newest.get(docker_spec.EPOCH, ""))

    def write_epoch(self, epoch: str) -> None:
        old = self._swarm.configs("epoch")
        labels = docker_spec.labels(self._install_id, "epoch") | {
            docker_spec.EPOCH: epoch,
            docker_spec.WRITTEN: str(time.time_ns()),
        }
        self._swarm.create_config(f"nvs-epoch-{uuid.uuid4().hex}", b"", labels)
        for each in old:
            self._swarm.remove_config(each["ID"])

    def remove_install(self) -> None:
        """Remove all servers with their data, the epoch and the networks: for throw-away installs and uninstalling."""
        for handle in {found.name: found for found in [*self.managed_data(), *self.managed()]}.values():
            self.destroy(handle, delete_data=True)
        for each in self._swarm.configs("epoch"):
            self._swarm.remove_config(each["ID"])
        self._data.remove_parents()
        self.remove_network()

    def remove_network(self) -> None:
        """Remove the install's network; in use or absent is success. For uninstalling and tests."""
        self._swarm.remove_networks()

    # --- parts: finding -----------------------------------------------------------------------------------------------
    def _find(self, handle: Handle) -> Found | None:
        """What has the server's name; `StaleHandle` when that is not ours."""
        found = self._swarm.service(handle.name)
        if found is not None and not self._data.is_ours(found["Spec"].get("Labels"), "server", handle):
            raise StaleHandle("the service of this name is not this install's")
        return found

    def _recorded(self, handle: Handle) -> Found | None:
        """The service that was recorded (rule 3): None when nothing has the name, `StaleHandle` when another has."""
        found = self._find(handle)
        if found is not None and handle.ref and found["ID"] != handle.ref:
            raise StaleHandle("the service of this name is not the one that was recorded")
        return found

    def _is_as_described(self, found: Found, spec: ServerSpec, record: DataRecord) -> bool:
        same = (found["Spec"].get("Labels") or {}).get(docker_spec.SPEC) == docker_spec.spec_hash(spec)
        return same and node_of(found) == record.node

    def _kept_limits(self, found: Found) -> dict[str, Any] | None:
        """Those that were changed on the running container since the service was written; None: there are none."""
        memory, _, cpus = str((found["Spec"].get("Labels") or {}).get(swarm_spec.LIMITS, "")).partition("/")
        if not memory:
            return None
        pids = int(((found["Spec"]["TaskTemplate"].get("Resources") or {}).get("Limits") or {}).get("Pids") or 512)
        return swarm_spec.resources(Limits(int(memory), float(cpus), pids), self._config)

    def _bursts(self, spec: ServerSpec, record: DataRecord) -> bool:
        """Initialising without a CPU limit, where it can be set afterwards without a restart."""
        return spec.burst and self._swarm.engine_of(record.node) is not None

    def _check_image(self, spec: ServerSpec, record: DataRecord) -> None:
        """An image known by its id can't be pulled: said before anything is made."""
        engine = self._swarm.engine_of(record.node)
        if engine is None or not spec.image.startswith("sha256:"):
            return
        with mapped():
            try:
                engine[0].get().inspect_image(spec.image)  # type: ignore[no-untyped-call]
            except docker.errors.NotFound:
                raise ImageMissing(f"the server's image {spec.image} is not on its node any more") from None
