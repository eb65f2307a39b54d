"""Where a server's data is, and what may happen to it. A Swarm config of the volume's name is the record: made before the
volume, so that the node is known and the name is given once, and removed when the data has been (rules 9, 10)."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Mapping

import docker.errors

from projects.domain import (
    CapacityExhausted,
    DataExists,
    DataMissing,
    DataPolicy,
    Handle,
    NoNode,
    NovaStackRuntimeError,
    RuntimeUnreachable,
    ServerSpec,
    StaleHandle,
)
from projects.runtimes import docker_spec, swarm_spec
from projects.runtimes.docker_client import DockerClients, mapped
from projects.runtimes.swarm_client import Conflict, Found, Swarm, live
from projects.runtimes.swarm_jobs import Jobs, handle_only
from projects.runtimes.swarm_observe import node_problem
from projects.runtimes.swarm_spec import DataRecord


class Data:
    def __init__(self, swarm: Swarm, jobs: Jobs) -> None:
        self._swarm, self._jobs = swarm, jobs
        self._install_id, self._config = swarm.install_id, swarm.config

    def problems(self) -> list[str]:
        """What databases will not have here, for operators."""
        nodes = self._swarm.nodes()
        try:
            fitting = self.candidates(nodes)
        except NoNode as error:
            return [str(error)]
        return [
            f"the engine of the node {swarm_spec.hostname(node)} is not named under `nodes`: no figures, no tools and no change"
            " of limits without a restart there"
            for node in fitting
            if self._swarm.engine_of(node["ID"], nodes) is None
        ]

    def is_ours(self, labels: Mapping[str, str] | None, kind: str, handle: Handle) -> bool:
        wanted = docker_spec.labels(self._install_id, kind, handle)
        return all((labels or {}).get(name) == value for name, value in wanted.items())

    def fits(self, node: Found) -> bool:
        return all(swarm_spec.constraint_holds(constraint, node) for constraint in self._config.placement)

    def candidates(self, nodes: Mapping[str, Found]) -> list[Found]:
        wanted = " and ".join(f"`{constraint}`" for constraint in self._config.placement) or "no condition"
        fitting = [node for node in nodes.values() if self.fits(node)]
        if not fitting:
            raise NoNode(
                f"no node of the Swarm fits {wanted}: label one with `docker node update --label-add role=database NODE`,"
                " or change the region's placement"
            )
        usable = [node for node in fitting if swarm_spec.is_usable(node)]
        if not usable:
            told = ", ".join(node_problem(node["ID"], nodes).replace(" with its data", "") for node in fitting)
            raise NoNode(f"no node that fits {wanted} takes new servers: {told}"[:300])
        return usable

    def _choose_node(self, spec: ServerSpec) -> str:
        """The fitting node with the most memory that nobody has reserved."""
        nodes = self._swarm.nodes()
        free = {
            node["ID"]: int((node["Description"].get("Resources") or {}).get("MemoryBytes") or 0)
            for node in self.candidates(nodes)
        }
        for task in live(self._swarm.tasks({})):
            if task.get("NodeID") in free:
                kept = (task["Spec"].get("Resources") or {}).get("Reservations") or {}
                free[task["NodeID"]] -= int(kept.get("MemoryBytes") or 0)
        node = max(free, key=lambda each: free[each])
        need = round(spec.limits.memory_bytes * self._config.reserve_memory)
        if free[node] < need:
            raise CapacityExhausted(
                f"no node has {need >> 20} MiB of memory left to reserve; most is {max(0, free[node]) >> 20} MiB on"
                f" {swarm_spec.hostname(nodes[node])}"
            )
        return str(node)

    def record(self, handle: Handle) -> DataRecord | None:
        """Where this incarnation's data is; None when there is none of this install's."""
        found = self._swarm.config_named(docker_spec.volume_name(handle))
        if found is None or not self.is_ours(found[0]["Spec"].get("Labels"), "data", handle):
            return None
        return DataRecord.of(*found)

    def claim(self, spec: ServerSpec, data: DataPolicy) -> DataRecord:
        handle = spec.handle
        record = self.record(handle)
        if record is None and data is DataPolicy.MUST_EXIST:
            raise DataMissing("the server's volume is gone, or is not this install's")
        if record is None:
            node = self._choose_node(spec)
            if self._node_volume(handle, node) is not None:
                raise DataExists("a volume of this name exists and was not made for this server")
            labels = {
                **spec.labels, **docker_spec.labels(self._install_id, "data", handle), swarm_spec.NODE: node,
                swarm_spec.IMAGE: spec.image, swarm_spec.USER: spec.user,
            }  # fmt: skip
            try:
                self._swarm.create_config(docker_spec.volume_name(handle), swarm_spec.record_body(self._config), labels)
            except Conflict:
                raise DataExists("a volume of this name exists and was not made for this server") from None
            record = self.record(handle)
            if record is None:
                raise NovaStackRuntimeError("the record of the server's volume was removed meanwhile")
            return record
        if record.node not in self._swarm.nodes():
            record = self._follow(spec, record)
        if data is DataPolicy.MUST_EXIST and not self.is_there(handle, record):
            raise DataMissing("the server's volume is gone")
        return record

    def check_node(self, record: DataRecord) -> None:
        """Nothing can start while the node with the data is away: that is waiting, not failing (rule 4)."""
        if problem := node_problem(record.node, self._swarm.nodes()):
            raise RuntimeUnreachable(problem)

    def _follow(self, spec: ServerSpec, record: DataRecord) -> DataRecord:
        """The node has left the Swarm for good (an operator removed it): what is on shared storage goes on elsewhere."""
        if not record.shared:
            raise DataMissing("the node that had the server's data has left the Swarm")
        self._swarm.label_config(record.id, {swarm_spec.NODE: self._choose_node(spec)})
        moved = self.record(spec.handle)
        if moved is None:
            raise DataMissing("the server's volume is gone")
        return moved

    def _node_volume(self, handle: Handle, node: str) -> Found | None:
        """The volume as its node's engine knows it; None when it is not there, or the engine is not reached."""
        engine = self._swarm.engine_of(node)
        if engine is None:
            return None
        with mapped():
            try:
                found: Found = engine[0].get().inspect_volume(docker_spec.volume_name(handle))
            except docker.errors.NotFound:
                return None
        return found

    def is_there(self, handle: Handle, record: DataRecord) -> bool:
        """As far as it can be seen: on other nodes the start wrapper looks, before anything is touched."""
        if record.shared or self._swarm.engine_of(record.node) is None:
            return True
        volume = self._node_volume(handle, record.node)
        return volume is not None and self.is_ours(volume.get("Labels"), "data", handle)

    def make(self, spec: ServerSpec, record: DataRecord) -> None:
        if record.in_folder:
            self._jobs.make_folder(handle_only(spec.handle), record, spec.image)
        files = swarm_spec.init_files(spec)
        self._jobs.put(handle_only(spec.handle), record, image=spec.image, user=spec.user, files=files, init=True)

    def put(self, handle: Handle, record: DataRecord, spec: ServerSpec) -> None:
        self.put_as(handle, record, spec.image, spec.user, spec.files)

    def put_as(self, handle: Handle, record: DataRecord, image: str, user: str, files: Mapping[str, bytes]) -> None:
        if not files:
            return
        named = swarm_spec.durable_files(files)
        try:
            self._jobs.put(handle_only(handle), record, image=image, user=user, files=named, init=False)
        except DataExists as error:
            raise DataMissing(str(error)) from error

    def delete(self, handle: Handle) -> None:
        name = docker_spec.volume_name(handle)
        found = self._swarm.config_named(name)
        if found is None:
            return
        if not self.is_ours(found[0]["Spec"].get("Labels"), "data", handle):
            raise StaleHandle("the volume of this name is not this install's")
        record = DataRecord.of(*found)
        nodes = self._swarm.nodes()
        if record.node in nodes:
            engine = self._swarm.engine_of(record.node, nodes)
            if record.in_folder or engine is None:
                if problem := node_problem(record.node, nodes):
                    raise RuntimeUnreachable(problem)
                self._jobs.wipe(handle_only(handle), record, record.labels.get(swarm_spec.IMAGE, ""))
            if engine is not None:
                self.remove_volumes(name, [record.node])
        elif record.shared:
            raise RuntimeUnreachable("the node with the data has left the Swarm: start the server once elsewhere first")
        self._swarm.remove_config(record.id)

    def remove_parents(self) -> None:
        """The doors to shared places; what is behind them stays."""
        wanted = [f"{name}={value}" for name, value in docker_spec.labels(self._install_id, "parent").items()]
        for node in self._swarm.reachable_nodes():
            if (engine := self._swarm.engine_of(node)) is not None:
                with mapped():
                    found = engine[0].get().volumes(filters={"label": wanted})
                for volume in found.get("Volumes") or []:
                    self.remove_volumes(str(volume["Name"]), [node])

    def remove_volumes(self, name: str, nodes: Iterable[str]) -> None:
        """A container that is just going away may hold it for a moment."""
        engines: list[DockerClients] = [e[0] for node in nodes if (e := self._swarm.engine_of(node)) is not None]
        for clients in engines:
            for left in reversed(range(40)):
                try:
                    with mapped(), contextlib.suppress(docker.errors.NotFound):
                        clients.get().remove_volume(name)
                    break
                except RuntimeUnreachable:
                    raise
                except NovaStackRuntimeError:
                    if not left:
                        raise
                    time.sleep(0.1)
