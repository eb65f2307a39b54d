"""Limits, addresses and use of many servers: of the containers themselves where their node's engine is reached."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import docker.errors

from projects.domain import Description, Endpoint, Handle, NovaStackRuntimeError, Usage
from projects.runtimes import docker_spec
from projects.runtimes.docker_client import mapped
from projects.runtimes.swarm_client import Found, Swarm, container_of
from projects.runtimes.swarm_observe import name_of

_PARALLEL = 8
_NANO = 1_000_000_000


class View:
    def __init__(self, swarm: Swarm) -> None:
        self._swarm = swarm

    def describe(self, handles: Sequence[Handle]) -> Mapping[Handle, Description]:
        services = {name_of(each): each for each in self._swarm.services("server")}
        tasks = self._running_tasks()
        there = [handle for handle in handles if handle.name in services]
        with ThreadPoolExecutor(_PARALLEL) as pool:
            found = pool.map(lambda h: self._described(services[h.name], tasks.get(services[h.name]["ID"])), there)
            return dict(zip(there, found, strict=True))

    def usage(self, handles: Sequence[Handle]) -> Mapping[Handle, Usage]:
        names = {name_of(each): str(each["ID"]) for each in self._swarm.services("server")}
        tasks = self._running_tasks()
        wanted: dict[str, list[str]] = defaultdict(list)
        containers: dict[Handle, str] = {}
        for handle in handles:
            task = tasks.get(names.get(handle.name, ""))
            if task is not None and container_of(task):
                containers[handle] = container_of(task)
                wanted[str(task["NodeID"])].append(container_of(task))
        used: dict[str, Usage] = {}
        for node, ids in wanted.items():
            engine = self._swarm.engine_of(node)
            if engine is not None:
                with contextlib.suppress(NovaStackRuntimeError):  # that node is away, the others' figures count
                    used |= engine[1].read(sorted(set(ids)))
        return {handle: used.get(containers.get(handle, ""), Usage()) for handle in handles}

    def _running_tasks(self) -> dict[str, Found]:
        """Service id → its running task, of all servers of the install."""
        labels = docker_spec.labels(self._swarm.install_id, "server")
        running = [t for t in self._swarm.tasks(labels, running=True) if t["Status"]["State"] == "running"]
        return {str(task["ServiceID"]): task for task in reversed(running)}

    def _described(self, service: Found, task: Found | None) -> Description:
        engine = self._swarm.engine_of(str(task["NodeID"])) if task is not None else None
        if task is not None and engine is not None:
            with mapped(), contextlib.suppress(docker.errors.NotFound):
                inspected = engine[0].get().inspect_container(container_of(task))
                return replace(docker_spec.description_of(inspected), ref=str(service["ID"]))
        limits = (service["Spec"]["TaskTemplate"].get("Resources") or {}).get("Limits") or {}
        ports = (service["Spec"].get("EndpointSpec") or {}).get("Ports") or []
        publish = Endpoint("0.0.0.0", int(ports[0]["PublishedPort"])) if ports else None  # noqa: S104 - as it is
        memory, cpus = int(limits.get("MemoryBytes") or 0), int(limits.get("NanoCPUs") or 0) / _NANO
        return Description(str(service["ID"]), task is not None, publish, memory, cpus)
