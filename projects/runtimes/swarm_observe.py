"""What the Swarm's lists say of a server. At most four list calls for any number of servers: services, the tasks that
should run, and only when one doesn't, all kept tasks (the history, with the reasons) and the nodes."""

from __future__ import annotations

import contextlib
import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import docker.errors

from projects.domain import NovaStackRuntimeError, Observation, PortTaken, ServerState
from projects.runtimes import docker_spec, swarm_spec
from projects.runtimes.docker_client import mapped, meaning_of
from projects.runtimes.docker_observe import time_of
from projects.runtimes.swarm_client import Found, Swarm, container_of, exit_code_of, live

_HOPELESS = 3  # failures in a row after which a server that ends at once counts as stopped; a Swarm keeps five
_CLOSE_SECONDS = 120.0  # failures further apart are not "in a row"
_PATIENCE_SECONDS = 6.0  # how long a task may find no node before that is said to be so
_TOLD_AT_ONCE = 8  # reasons looked up by one observation; the rest have theirs at the next
_RAN = "non-zero exit"


@dataclass(frozen=True, slots=True)
class _Reason:
    oom_killed: bool
    last_line: str


class Observer:
    def __init__(self, swarm: Swarm) -> None:
        self._swarm = swarm
        self._reasons: dict[str, _Reason] = {}
        self._lock = threading.Lock()

    def observe(self) -> dict[str, Observation]:
        """Name → what was seen, of all servers of the install."""
        swarm = self._swarm
        services = swarm.services("server")
        labels = docker_spec.labels(swarm.install_id, "server")
        running = _by_service(swarm.tasks(labels, running=True))
        result: dict[str, Observation] = {}
        others: list[Found] = []
        for service in services:
            task = next((t for t in running[service["ID"]] if t["Status"]["State"] == "running"), None)
            if task is not None and replicas(service):
                result[name_of(service)] = _observation(service, ServerState.RUNNING, started_at=_since(task))
            else:
                others.append(service)
        if others:
            history = _by_service(swarm.tasks(labels))
            nodes = swarm.nodes()
            left = [_TOLD_AT_ONCE]
            for service in others:
                result[name_of(service)] = self._one(service, history[service["ID"]], nodes, left)
        return result

    def _one(self, service: Found, tasks: Sequence[Found], nodes: Mapping[str, Found], left: list[int]) -> Observation:
        alive = live(tasks)
        if any(task["Status"]["State"] == "running" and task["DesiredState"] == "running" for task in alive):
            task = next(task for task in alive if task["Status"]["State"] == "running")
            if replicas(service):
                return _observation(service, ServerState.RUNNING, started_at=_since(task))
        away = node_problem(node_of(service), nodes)
        if away:
            # Of a node that is away nobody knows what runs there. One that left for good runs nothing of ours.
            state = ServerState.UNREACHABLE if node_of(service) in nodes else ServerState.STOPPED
            return _observation(service, state, detail=away)
        if not replicas(service):
            up = any(task["Status"]["State"] in {"starting", "running"} for task in alive)
            return _observation(service, ServerState.RUNNING if up else ServerState.STOPPED)
        failures = _lately([task for task in tasks if task["Status"]["State"] in {"failed", "rejected", "complete"}])
        if failures:
            return self._failed(service, failures, left)
        if alive and alive[0]["Status"]["State"] == "pending" and (error := alive[0]["Status"].get("Err")):
            return _observation(service, _after_patience(alive[0]), detail=pending_reason(str(error)))
        detail = str(alive[0]["Status"]["State"]) if alive else "not scheduled yet"
        return _observation(service, ServerState.STARTING, detail="" if detail == "starting" else detail)

    def _failed(self, service: Found, failures: Sequence[Found], left: list[int]) -> Observation:
        last = failures[0]
        code, error = exit_code_of(last), " ".join(str(last["Status"].get("Err") or "").split())
        if code is not None and code in docker_spec.REFUSALS:
            return _observation(service, ServerState.STOPPED, docker_spec.REFUSALS[code], exit_code=code)
        ran = last["Status"]["State"] == "complete" or _RAN in error
        if not ran:  # it never came to run: what the engine says is the reason
            meaning = meaning_of(error)
            state = ServerState.STOPPED if len(failures) >= _HOPELESS or _final(meaning) else ServerState.STARTING
            return _observation(service, state, detail=str(meaning)[:300])
        reason = self._reason(service, last, left)
        hopeless = len(failures) >= _HOPELESS
        detail = f"it keeps ending with code {code}" if hopeless else f"it ended with code {code} and is started again"
        if reason.oom_killed:
            detail += " (killed: out of memory)"
        elif code == 137:
            detail += " (killed)"
        if reason.last_line:
            detail += f": {reason.last_line}"
        state = ServerState.STOPPED if hopeless else ServerState.STARTING
        return _observation(service, state, detail[:500], exit_code=code, oom_killed=reason.oom_killed)

    def _reason(self, service: Found, task: Found, left: list[int]) -> _Reason:
        """More than the exit code, looked up once per task."""
        with self._lock:
            kept = self._reasons.get(task["ID"])
        if kept is not None:
            return kept
        if left[0] <= 0:
            return _Reason(False, "")
        left[0] -= 1
        killed, line = False, ""
        engine = self._swarm.engine_of(str(task.get("NodeID") or ""))
        if engine is not None and container_of(task):
            with contextlib.suppress(docker.errors.NotFound, NovaStackRuntimeError), mapped():
                killed = bool(engine[0].get().inspect_container(container_of(task))["State"].get("OOMKilled"))
        with contextlib.suppress(NovaStackRuntimeError):
            said = [text for _, text in self._swarm.logs(service["ID"], tail=3) if text.strip()]
            line = said[-1].decode("utf-8", "replace")[:200] if said else ""
        reason = _Reason(killed, line)
        with self._lock:
            if len(self._reasons) > 2000:
                self._reasons.clear()
            self._reasons[task["ID"]] = reason
        return reason


def name_of(service: Mapping[str, Any]) -> str:
    return str(service["Spec"]["Name"])


def replicas(service: Mapping[str, Any]) -> int:
    return int(((service["Spec"].get("Mode") or {}).get("Replicated") or {}).get("Replicas") or 0)


def node_of(service: Mapping[str, Any]) -> str:
    """The node that a service is pinned to."""
    constraints = (service["Spec"]["TaskTemplate"].get("Placement") or {}).get("Constraints") or []
    return next((str(each).partition("==")[2].strip() for each in constraints if str(each).startswith("node.id")), "")


def node_problem(node_id: str, nodes: Mapping[str, Found]) -> str:
    """Why nothing can start on the node that has the data; empty if it can."""
    node = nodes.get(node_id)
    if node is None:
        return "the node with its data has left the Swarm"
    name, state = swarm_spec.hostname(node), str(node["Status"].get("State"))
    if state != "ready":
        return f"the node {name} with its data is {state}"
    availability = str(node["Spec"].get("Availability"))
    if availability == "drain":
        return f"the node {name} with its data is drained: `docker node update --availability active {name}`"
    if availability != "active":
        return f"the node {name} with its data takes no new tasks ({availability})"
    return ""


def pending_reason(error: str) -> str:
    """“no suitable node (…)”, said for people."""
    text = " ".join(error.split())
    meaning = meaning_of(text)
    return str(meaning) if isinstance(meaning, PortTaken) else f"waiting for a node: {text}"[:300]


def _final(meaning: NovaStackRuntimeError) -> bool:
    """Trying the same again at once is no use."""
    return type(meaning) is not NovaStackRuntimeError


def _after_patience(task: Mapping[str, Any]) -> ServerState:
    made = time_of(str(task["CreatedAt"]))
    waited = (datetime.now(UTC) - made).total_seconds() if made else 0
    return ServerState.STOPPED if waited > _PATIENCE_SECONDS else ServerState.STARTING


def _lately(failures: list[Found]) -> list[Found]:
    """Those close to the last one: what a Swarm remembers may be weeks apart."""
    last = _since(failures[0]) if failures else None
    if last is None:
        return failures
    return [task for task in failures if (last - (_since(task) or last)).total_seconds() < _CLOSE_SECONDS]


def _since(task: Mapping[str, Any]) -> datetime | None:
    return time_of(str(task["Status"].get("Timestamp") or ""))


def _observation(
    service: Mapping[str, Any], state: ServerState, detail: str = "", *, started_at: datetime | None = None,
    exit_code: int | None = None, oom_killed: bool = False,
) -> Observation:  # fmt: skip
    spec_hash = str((service["Spec"].get("Labels") or {}).get(docker_spec.SPEC, ""))
    return Observation(state, str(service["ID"]), started_at, exit_code, oom_killed, detail, spec_hash)


def _by_service(tasks: Sequence[Found]) -> defaultdict[str, list[Found]]:
    result: defaultdict[str, list[Found]] = defaultdict(list)
    for task in tasks:
        result[str(task.get("ServiceID"))].append(task)
    return result
