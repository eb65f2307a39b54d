"""The Swarm's objects by the engine's interface: services, tasks, nodes, configs and secrets, as plain dictionaries.

Raw bodies instead of docker-py's classes: those know only a part of what a service can say (API 1.41).
"""

from __future__ import annotations

import base64
import contextlib
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import docker.errors
import docker.utils

from projects.domain import NovaStackRuntimeError, RuntimeEndpoint, RuntimeUnreachable
from projects.runtimes import docker_spec, swarm_spec
from projects.runtimes.docker_client import DockerClients, mapped
from projects.runtimes.docker_usage import UsageReader
from projects.runtimes.swarm_spec import SwarmConfig

Found = dict[str, Any]
_TRIES = 5
UNFINISHED = frozenset(
    {"new", "allocated", "pending", "assigned", "accepted", "preparing", "ready", "starting", "running"}
)


class Conflict(NovaStackRuntimeError):
    """The name is taken."""


class Swarm:
    """One manager's view. Node engines that can be reached directly are `engine_of(node id)`."""

    def __init__(self, install_id: str, config: SwarmConfig, endpoint: RuntimeEndpoint) -> None:
        self.install_id, self.config = install_id, config
        self._endpoint = endpoint
        self.clients = DockerClients(endpoint)
        self._lock = threading.Lock()
        self._own_node = ""
        self._engines: dict[str, tuple[DockerClients, UsageReader]] = {}

    def close(self) -> None:
        with self._lock:
            engines, self._engines = list(self._engines.values()), {}
        for clients in {id(each): each for each in (self.clients, *(clients for clients, _ in engines))}.values():
            clients.close()

    # --- calls --------------------------------------------------------------------------------------------------------
    def _get(self, path: str, **params: Any) -> Any:
        client: Any = self.clients.get()
        with mapped():
            return client._result(client._get(client._url(path), params=params), json=True)

    def _post(self, path: str, body: Any, **params: Any) -> Any:
        client: Any = self.clients.get()
        with mapped():
            try:
                response = client._post_json(client._url(path), data=body, params=params)
                client._raise_for_status(response)
            except docker.errors.APIError as error:
                if error.status_code == 409:
                    raise Conflict(" ".join(str(error.explanation).split())[:300]) from error
                raise
        return response.json() if response.content.strip() else {}

    def _delete(self, path: str) -> None:
        client: Any = self.clients.get()
        with mapped(), contextlib.suppress(docker.errors.NotFound):
            client._raise_for_status(client._delete(client._url(path)))

    def _one(self, path: str) -> Found | None:
        client: Any = self.clients.get()
        with mapped():
            try:
                found: Found = client._result(client._get(client._url(path)), json=True)
            except docker.errors.NotFound:
                return None
        return found

    def _list(self, path: str, labels: Mapping[str, str], **filters: list[str]) -> list[Found]:
        wanted = {"label": [f"{name}={value}" for name, value in labels.items()], **filters}
        found: list[Found] = self._get(path, filters=docker.utils.convert_filters(wanted)) or []
        return found

    def check(self) -> None:
        """This engine is a manager of a Swarm that answers."""
        try:
            # Not `/swarm`: its answer holds the tokens to join with, which are nothing for a worker.
            self._get("/nodes", filters=docker.utils.convert_filters({"role": "manager"}))
        except RuntimeUnreachable as error:
            if "swarm" not in str(error).lower():
                raise
            raise RuntimeUnreachable(
                f"the Docker engine answers, but no Swarm can be managed there: {error}"
            ) from error

    # --- services and tasks -------------------------------------------------------------------------------------------
    def services(self, kind: str) -> list[Found]:
        return self._list("/services", docker_spec.labels(self.install_id, kind))

    def service(self, name: str) -> Found | None:
        return self._one(f"/services/{name}")

    def tasks(self, labels: Mapping[str, str], *, running: bool = False) -> list[Found]:
        """Newest first; by labels of their service. `running`: only those that should run."""
        filters = {"desired-state": ["running"]} if running else {}
        return sorted(self._list("/tasks", labels, **filters), key=lambda task: str(task["CreatedAt"]), reverse=True)

    def tasks_of(self, service_id: str) -> list[Found]:
        """Newest first; empty when the service is gone."""
        with contextlib.suppress(_Gone):
            client: Any = self.clients.get()
            with mapped():
                try:
                    found = client.tasks({"service": service_id})
                except docker.errors.NotFound:
                    raise _Gone from None
            return sorted(found, key=lambda task: str(task["CreatedAt"]), reverse=True)
        return []

    def create_service(self, body: Mapping[str, Any]) -> str:
        client: Any = self.clients.get()
        with mapped():
            try:
                made = client.create_service(
                    dict(body["TaskTemplate"]), name=body["Name"], labels=body["Labels"], mode=body["Mode"],
                    update_config=body.get("UpdateConfig"), endpoint_spec=body.get("EndpointSpec"),
                )  # fmt: skip
            except docker.errors.APIError as error:
                if error.status_code == 409 or "name conflicts with an existing object" in str(error.explanation):
                    raise Conflict("a service of this name exists") from error
                raise
        return str(made["ID"])

    def change_service(self, service_id: str, change: Callable[[Found], None]) -> bool:
        """Read, change, write; again if somebody else wrote meanwhile. False: the service is gone."""
        for left in reversed(range(_TRIES)):
            found = self.service(service_id)
            if found is None:
                return False
            change(found["Spec"])
            try:
                self._post(f"/services/{service_id}/update", found["Spec"], version=found["Version"]["Index"])
            except NovaStackRuntimeError as error:
                if "out of sequence" in str(error) and left:
                    continue
                raise
            return True
        return False

    def remove_service(self, service_id: str) -> None:
        self._delete(f"/services/{service_id}")

    def logs(self, service_id: str, *, tail: int, since: float | None = None) -> list[tuple[bytes, bytes]]:
        """(time, line) of all tasks that are kept, oldest first."""
        client: Any = self.clients.get()
        with mapped():
            try:
                stream = client.service_logs(
                    service_id, stdout=True, stderr=True, timestamps=True, tail=tail, since=since or 0, is_tty=False
                )
                text = b"".join(stream)
            except docker.errors.NotFound:
                return []
        return sorted(
            ((when, line) for when, _, line in (each.partition(b" ") for each in text.splitlines())),
            key=lambda each: each[0],
        )

    def said_by(self, task: Mapping[str, Any], *, tail: int) -> list[bytes]:
        """Lines of this task alone: a service's log has those of its earlier tasks, too."""
        client: Any = self.clients.get()
        with mapped():
            try:
                stream = client.service_logs(
                    task["ServiceID"], details=True, stdout=True, stderr=True, tail=tail, is_tty=False
                )
                text = b"".join(stream)
            except docker.errors.NotFound:
                return []
        mark = f"com.docker.swarm.task.id={task['ID']}".encode()
        return [line for line in text.splitlines() if mark in line]

    # --- nodes --------------------------------------------------------------------------------------------------------
    def nodes(self) -> dict[str, Found]:
        return {str(node["ID"]): node for node in self._get("/nodes") or []}

    def own_node(self) -> str:
        """The id of the endpoint's own node."""
        if not self._own_node:
            self._own_node = str((self._get("/info").get("Swarm") or {}).get("NodeID") or "")
        return self._own_node

    def engine_of(
        self, node_id: str, nodes: Mapping[str, Found] | None = None
    ) -> tuple[DockerClients, UsageReader] | None:
        """The engine of that node, if this region says how to reach it; the endpoint's own node always is."""
        with self._lock:
            if node_id in self._engines:
                return self._engines[node_id]
        if not node_id:
            return None
        clients: DockerClients | None = None
        if node_id == self.own_node():
            clients = self.clients
        elif self.config.nodes:
            node = (nodes if nodes is not None else self.nodes()).get(node_id)
            url = self.config.nodes.get(node_id) or self.config.nodes.get(swarm_spec.hostname(node) if node else "")
            if url:
                clients = DockerClients(replace(self._endpoint, url=url))
        if clients is None:
            return None
        with self._lock:
            return self._engines.setdefault(node_id, (clients, UsageReader(clients)))

    def reachable_nodes(self) -> list[str]:
        nodes = self.nodes()
        return [node for node in nodes if self.engine_of(node, nodes) is not None]

    # --- configs and secrets ------------------------------------------------------------------------------------------
    def configs(self, kind: str) -> list[Found]:
        return self._list("/configs", docker_spec.labels(self.install_id, kind))

    def config_named(self, name: str) -> tuple[Found, bytes] | None:
        found = self._one(f"/configs/{name}")
        if found is None:
            return None
        return found, base64.b64decode(found["Spec"].get("Data") or "")

    def create_config(self, name: str, data: bytes, labels: Mapping[str, str]) -> str:
        """`Conflict` when the name is taken: so a name is given once."""
        body = {"Name": name, "Labels": dict(labels), "Data": base64.b64encode(data or b"\n").decode()}
        return str(self._post("/configs/create", body)["ID"])

    def label_config(self, config_id: str, labels: Mapping[str, str]) -> None:
        """Only labels of a config can change."""
        found = self._one(f"/configs/{config_id}")
        if found is not None:
            body = {**found["Spec"], "Labels": {**(found["Spec"].get("Labels") or {}), **labels}}
            self._post(f"/configs/{config_id}/update", body, version=found["Version"]["Index"])

    def remove_config(self, config_id: str) -> None:
        self._delete(f"/configs/{config_id}")

    def secrets(self, labels: Mapping[str, str]) -> list[Found]:
        return self._list("/secrets", labels)

    def create_secret(self, name: str, data: bytes, labels: Mapping[str, str]) -> str:
        body = {"Name": name, "Labels": dict(labels), "Data": base64.b64encode(data).decode()}
        return str(self._post("/secrets/create", body)["ID"])

    def remove_secret(self, secret_id: str) -> None:
        self._delete(f"/secrets/{secret_id}")

    # --- networks -----------------------------------------------------------------------------------------------------
    def ensure_network(self) -> str:
        """The id of the network of the install's servers: the region's own choice, else a bridge on each node on which
        containers don't reach each other (rule 23). A Swarm keeps no driver options for such a network, so every node
        needs a `config-only` one that has them; on nodes that this region does not reach an operator makes it."""
        if self.config.network:
            found = self._one(f"/networks/{self.config.network}")
            if found is None or found.get("Scope") != "swarm":
                raise NovaStackRuntimeError(
                    f"the network {self.config.network} is not there, or is none of the Swarm's"
                )
            return str(found["Id"])
        name, template = f"nvs-{self.install_id}", f"nvs-{self.install_id}-node"
        labels = docker_spec.labels(self.install_id, "network")
        nodes = self.nodes()
        for node in nodes:
            engine = self.engine_of(node, nodes)
            if engine is not None:
                _node_network(engine[0], template, labels)
        for _ in range(3):
            found = self._one(f"/networks/{name}")
            if found is not None:
                return str(found["Id"])
            # Without labels: an engine takes nothing but the name beside `ConfigFrom`.
            body = {"Name": name, "Driver": "bridge", "Scope": "swarm", "ConfigFrom": {"Network": template}}
            with contextlib.suppress(Conflict):
                self._post("/networks/create", body)
        raise NovaStackRuntimeError(f"the network {name} could not be made")

    def remove_networks(self) -> None:
        """In use or absent is success."""
        self._remove_network(self.clients, f"nvs-{self.install_id}")
        for node in self.reachable_nodes():
            if (engine := self.engine_of(node)) is not None:
                self._remove_network(engine[0], f"nvs-{self.install_id}-node")

    @staticmethod
    def _remove_network(clients: DockerClients, name: str) -> None:
        with mapped(), contextlib.suppress(docker.errors.APIError):
            clients.get().remove_network(name)


class _Gone(Exception):
    pass


def _node_network(clients: DockerClients, name: str, labels: Mapping[str, str]) -> None:
    client: Any = clients.get()
    with mapped():
        try:
            client.inspect_network(name)
        except docker.errors.NotFound:
            body = {
                "Name": name, "ConfigOnly": True, "Labels": dict(labels), "CheckDuplicate": True,
                "Options": {"com.docker.network.bridge.enable_icc": "false"},
            }  # fmt: skip
            response = client._post_json(client._url("/networks/create"), data=body)
            if response.status_code != 409:
                client._raise_for_status(response)


def live(tasks: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those whose container runs or may yet be started."""
    return [task for task in tasks if task["Status"]["State"] in UNFINISHED]


def update_container(clients: DockerClients, container: str, body: Mapping[str, Any]) -> None:
    """Limits of a running container, as the engine names them (docker-py knows no `NanoCpus` there)."""
    client: Any = clients.get()
    with mapped():
        client._raise_for_status(client._post_json(client._url("/containers/{0}/update", container), data=dict(body)))


def container_of(task: Mapping[str, Any]) -> str:
    return str((task["Status"].get("ContainerStatus") or {}).get("ContainerID") or "")


def exit_code_of(task: Mapping[str, Any]) -> int | None:
    """Of a container that ran and ended; None when none did."""
    if task["Status"]["State"] not in {"failed", "complete", "shutdown", "remove"}:
        return None
    return int((task["Status"].get("ContainerStatus") or {}).get("ExitCode") or 0)
