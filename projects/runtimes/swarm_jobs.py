"""What must be done to a volume on whichever node it is: as a service that runs once there. Secrets travel as a Swarm
secret of that job alone, which is removed with it."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from projects.domain import DataExists, Handle, ImageMissing, NoNode, NovaStackRuntimeError
from projects.runtimes import docker_spec, swarm_spec
from projects.runtimes.docker_client import meaning_of
from projects.runtimes.swarm_client import Conflict, Swarm, exit_code_of

_DONE_SECONDS = 12.0
_PULL_SECONDS = 90.0  # a node that has not the image yet
_PENDING_SECONDS = 4.0


class Jobs:
    def __init__(self, swarm: Swarm) -> None:
        self._swarm = swarm

    def put(
        self, handle: Handle, record: swarm_spec.DataRecord, *, image: str, user: str, files: Mapping[str, bytes],
        init: bool,
    ) -> None:  # fmt: skip
        """Write files to `.novastack/` of the server's volume, each replaced in one go. `init`: the volume may be empty
        (`DataExists` when it holds anything else); otherwise it must carry the server's marker (`DataExists` as well)."""
        names, content = swarm_spec.packed(files)
        argv = [user, docker_spec.marker(handle), "init" if init else "put", *names]
        mount = swarm_spec.volume_mount(record, handle, self._swarm.install_id, swarm_spec.JOB_MOUNT, copy=False)
        self._run(handle, record.node, image, swarm_spec.PUT, argv, mount, content)

    def make_folder(self, handle: Handle, record: swarm_spec.DataRecord, image: str) -> None:
        self._in_parent(handle, record, image, swarm_spec.FOLDER)

    def wipe(self, handle: Handle, record: swarm_spec.DataRecord, image: str) -> None:
        """Delete the data: the folder, or what is in the volume."""
        if record.in_folder:
            self._in_parent(handle, record, image, swarm_spec.REMOVE_FOLDER)
            return
        mount = swarm_spec.volume_mount(record, handle, self._swarm.install_id, swarm_spec.JOB_MOUNT, copy=False)
        self._run(handle, record.node, image, swarm_spec.EMPTY, [], mount, None)

    def _in_parent(self, handle: Handle, record: swarm_spec.DataRecord, image: str, script: str) -> None:
        mount = swarm_spec.parent_mount(record, self._swarm.install_id, swarm_spec.JOB_MOUNT)
        self._run(handle, record.node, image, script, [docker_spec.volume_name(handle)], mount, None)

    def clean(self, handle: Handle) -> None:
        """Remove what an earlier, cut-off job left."""
        swarm = self._swarm
        left = swarm.service(swarm_spec.job_name(handle))
        if left is not None and docker_spec.handle_of(left["Spec"].get("Labels")) == handle_only(handle):
            swarm.remove_service(left["ID"])
            labels = docker_spec.labels(swarm.install_id, "job", handle)
            deadline = time.monotonic() + 5
            while swarm.tasks(labels) and time.monotonic() < deadline:
                time.sleep(0.05)
        for secret in swarm.secrets(docker_spec.labels(swarm.install_id, "secret", handle)):
            swarm.remove_secret(secret["ID"])

    def _run(
        self, handle: Handle, node: str, image: str, script: str, argv: Sequence[str], mount: Mapping[str, Any],
        secret: bytes | None,
    ) -> None:  # fmt: skip
        swarm = self._swarm
        self.clean(handle)
        named: tuple[str, str] | None = None
        try:
            if secret is not None:
                name = f"{handle.name}-{uuid.uuid4().hex[:8]}"
                labels = docker_spec.labels(swarm.install_id, "secret", handle)
                named = swarm.create_secret(name, secret, labels), name
            body = swarm_spec.job(handle, swarm.install_id, image, node, script, argv, mount, named)
            try:
                service = swarm.create_service(body)
            except Conflict:
                raise NovaStackRuntimeError("another job works on this server's volume") from None
            self._wait(service)
        finally:
            with contextlib.suppress(NovaStackRuntimeError):  # what is left is taken by the next job, or by `destroy`
                self.clean(handle)

    def _wait(self, service: str) -> None:
        began = time.monotonic()
        while True:
            tasks = self._swarm.tasks_of(service)
            status = tasks[0]["Status"] if tasks else {"State": "new"}
            state, error = str(status["State"]), " ".join(str(status.get("Err") or "").split())
            waited = time.monotonic() - began
            if state == "complete":
                return
            if state in {"failed", "rejected", "orphaned", "shutdown", "remove"}:
                raise self._failure(service, tasks[0], error)
            if state == "pending" and error and waited > _PENDING_SECONDS:
                raise NoNode(f"the node with the server's data takes no task: {error}"[:300])
            if waited > (_PULL_SECONDS if state == "preparing" else _DONE_SECONDS):
                raise NovaStackRuntimeError(f"a job on the server's node is still {state} after {waited:.0f} s")
            time.sleep(0.05)

    def _failure(self, service: str, task: Mapping[str, Any], error: str) -> NovaStackRuntimeError:
        code = exit_code_of(task)
        if code == docker_spec.FOREIGN:
            return DataExists(docker_spec.REFUSALS[docker_spec.FOREIGN])
        if code == docker_spec.UNFIT:
            return ImageMissing("the image has not the user that this engine needs")
        said: list[tuple[bytes, bytes]] = []
        with contextlib.suppress(NovaStackRuntimeError):
            said = self._swarm.logs(service, tail=3)
        text = b" ".join(line for _, line in said).decode("utf-8", "replace")
        return meaning_of(f"{error} {text}".strip() or f"a job on the server's node ended with code {code}")


def handle_only(handle: Handle) -> Handle:
    return Handle(handle.server_id, handle.incarnation)
