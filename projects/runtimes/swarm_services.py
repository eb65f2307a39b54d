"""Starting, stopping and watching one service. Nothing here decides; swarm.py does."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from typing import Any

import docker.errors

from projects.domain import Handle, Limits, NoNode, NovaStackRuntimeError, RuntimeUnreachable, StaleHandle
from projects.runtimes import docker_spec, swarm_spec
from projects.runtimes.docker_client import mapped, meaning_of
from projects.runtimes.docker_containers import refusal
from projects.runtimes.swarm_client import Found, Swarm, container_of, exit_code_of, live
from projects.runtimes.swarm_observe import node_of, node_problem, pending_reason, replicas

_ACCEPT_SECONDS = 8.0  # how long a start is watched; on a slower machine `observe` tells
_PENDING_SECONDS = 4.0
_FORCE_SECONDS = 3.0
_FORCE_TIMES = 8  # the Swarm tells of an end late when its machine is busy
_REMOVE_SECONDS = 10.0


class Services:
    def __init__(self, swarm: Swarm) -> None:
        self._swarm = swarm

    def running(self, service: Mapping[str, Any]) -> Found | None:
        """The service's running task; None when it has none, or is on its way down."""
        found = self._swarm.service(str(service["ID"]))
        if found is None or not replicas(found):
            return None
        tasks = self._swarm.tasks_of(str(service["ID"]))
        return next((t for t in tasks if t["Status"]["State"] == "running" and t["DesiredState"] == "running"), None)

    def start(self, service: Found, resources: Mapping[str, Any] | None) -> None:
        """One task, begun now, with these resources (None: as they are). A task that waits to be started again is given
        up first: its delay and its failures are not this start's."""
        if replicas(service):
            self.stop(service, 0)
        before = {task["ID"] for task in self._swarm.tasks_of(service["ID"])}

        def change(spec: Found) -> None:
            spec["Mode"] = {"Replicated": {"Replicas": 1}}
            if resources is not None:
                spec["TaskTemplate"]["Resources"] = dict(resources)
                spec["Labels"] = {n: v for n, v in (spec.get("Labels") or {}).items() if n != swarm_spec.LIMITS}

        if not self._swarm.change_service(service["ID"], change):
            raise StaleHandle("the server's service is gone")
        try:
            self.await_accepted(service, before)
        except RuntimeUnreachable:
            raise  # its node is away: it starts when that is back
        except NovaStackRuntimeError:
            with contextlib.suppress(NovaStackRuntimeError):
                self.stop(service, 0)
            raise

    def set_resources(self, service: Found, resources: Mapping[str, Any], limits: Limits) -> None:
        """In the service itself: a Swarm restarts a task that runs."""

        def change(spec: Found) -> None:
            spec["TaskTemplate"]["Resources"] = dict(resources)
            spec["Labels"] = {**(spec.get("Labels") or {}), swarm_spec.LIMITS: swarm_spec.limits_label(limits)}

        self._swarm.change_service(service["ID"], change)

    def note_limits(self, service: Found, limits: Limits) -> None:
        """What the running container has, until the service has it too. A label restarts nothing."""

        def change(spec: Found) -> None:
            spec["Labels"] = {**(spec.get("Labels") or {}), swarm_spec.LIMITS: swarm_spec.limits_label(limits)}

        self._swarm.change_service(service["ID"], change)

    def await_accepted(self, service: Mapping[str, Any], before: set[str]) -> None:
        """Watch until the start wrapper has accepted or refused the data, or the engine says why nothing starts. `before`:
        tasks of earlier starts."""
        began = time.monotonic()
        pause = 0.02
        while (waited := time.monotonic() - began) < _ACCEPT_SECONDS:
            tasks = [task for task in self._swarm.tasks_of(str(service["ID"])) if task["ID"] not in before]
            failed = next((t for t in tasks if t["Status"]["State"] in {"failed", "rejected", "complete"}), None)
            if failed is not None:
                self._ended(failed)
                return  # the server itself ended: `observe` and the logs say how
            if tasks and self._is_up(tasks[0], service):
                return
            error = str(tasks[0]["Status"].get("Err") or "") if tasks else ""
            if error and tasks[0]["Status"]["State"] == "pending" and waited > _PENDING_SECONDS:
                problem = node_problem(node_of(service), self._swarm.nodes())
                if problem:
                    raise RuntimeUnreachable(problem)
                meaning = meaning_of(error)
                raise meaning if type(meaning) is not NovaStackRuntimeError else NoNode(pending_reason(error))
            time.sleep(pause)
            pause = min(0.2, pause * 1.5)

    def _ended(self, task: Found) -> None:
        code, error = exit_code_of(task), " ".join(str(task["Status"].get("Err") or "").split())
        if code is not None and code in docker_spec.REFUSALS:
            raise refusal(code)
        if task["Status"]["State"] == "rejected" or ("non-zero exit" not in error and error):
            raise meaning_of(error)

    def _is_up(self, task: Found, service: Mapping[str, Any]) -> bool:
        if task["Status"]["State"] != "running":
            return False
        engine = self._swarm.engine_of(str(task.get("NodeID") or ""))
        if engine is None:
            return any(docker_spec.STARTED_LINE in line for line in self._swarm.said_by(task, tail=50))
        with mapped(), contextlib.suppress(docker.errors.NotFound):
            said = engine[0].get().logs(container_of(task), stdout=False, stderr=True, tail=100)
            return docker_spec.STARTED_LINE in said
        return False

    # --- ending -------------------------------------------------------------------------------------------------------
    def stop(self, service: Mapping[str, Any], grace_seconds: float) -> None:
        """No task any more: politely, then by force after the grace where the node's engine is reached. Swarm itself uses
        force after the time that the service was made with."""

        def none(spec: Found) -> None:
            spec["Mode"] = {"Replicated": {"Replicas": 0}}

        if not self._swarm.change_service(str(service["ID"]), none):
            return
        deadline = time.monotonic() + grace_seconds
        forced = 0
        pause = 0.02
        while tasks := live(self._swarm.tasks_of(str(service["ID"]))):
            if time.monotonic() > deadline:
                problem = node_problem(node_of(service), self._swarm.nodes())
                if problem and "drained" not in problem:
                    raise RuntimeUnreachable(f"{problem}; it is told to stop")
                for task in tasks:
                    self._kill(task)
                reached = any(self._swarm.engine_of(str(t.get("NodeID") or "")) for t in tasks)
                deadline += _FORCE_SECONDS if reached else max(_FORCE_SECONDS, swarm_spec.STOP_SECONDS - grace_seconds)
                forced += 1
            if forced > _FORCE_TIMES:
                raise NovaStackRuntimeError("the server does not end, not even by force")
            time.sleep(pause)
            pause = min(0.2, pause * 1.5)

    def _kill(self, task: Mapping[str, Any]) -> None:
        engine = self._swarm.engine_of(str(task.get("NodeID") or ""))
        if engine is None or not container_of(task):
            return
        with contextlib.suppress(NovaStackRuntimeError), mapped():
            engine[0].get().kill(container_of(task))

    def remove(self, service: Mapping[str, Any]) -> None:
        """Remove the service and wait until its tasks' containers are gone too."""
        self._swarm.remove_service(str(service["ID"]))
        handle = docker_spec.handle_of(service["Spec"].get("Labels"))
        if handle is not None:
            self.await_gone(handle, node=node_of(service))

    def await_gone(self, handle: Handle, *, node: str, kill: bool = False) -> None:
        """Wait until no task of this server is left, also of a service that somebody else removed; `kill`: by force, where
        its node's engine is reached."""
        labels = docker_spec.labels(self._swarm.install_id, "server", handle)
        deadline = time.monotonic() + _REMOVE_SECONDS
        while tasks := self._swarm.tasks(labels):
            for task in live(tasks) if kill else ():
                self._kill(task)
            if time.monotonic() > deadline:
                if node_problem(node, self._swarm.nodes()):
                    return  # its node is away, or drained: nothing of it can start there again
                raise NovaStackRuntimeError("the service's tasks do not go away")
            time.sleep(0.1)
