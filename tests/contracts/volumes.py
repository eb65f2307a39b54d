"""A server's volume on a Docker engine, seen and changed by a container that the runtime knows nothing of."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import docker
import docker.errors

from projects.domain import Handle
from projects.runtimes import docker_spec
from projects.runtimes.base import Runtime
from tests.contracts.runtime_contract import RuntimeContract


class OnVolumes(RuntimeContract):
    """What the contract asks of runtimes whose data lies in volumes. A subclass sets `engine`, and names the image."""

    engine: Any  # docker.APIClient, which has no types

    def image_beside(self) -> str:
        """An image that the engine has, with a shell and the server's account."""
        raise NotImplementedError

    def change_marker(self, runtime: Runtime, handle: Handle) -> bool:
        self.in_volume(handle, f"echo {handle.server_id}/2 >/v/.novastack/marker")
        return True

    def own_file(self, runtime: Runtime, handle: Handle, name: str) -> tuple[bytes, bool]:
        said = self.in_volume(
            handle, f"cd /v/.novastack && stat -c '%U %a' . files files/{name} && cat files/{name}"
        ).splitlines()
        return "\n".join(said[3:]).encode(), said[:3] == ["postgres 700", "postgres 700", "postgres 600"]

    @contextlib.contextmanager
    def hold_lock(self, runtime: Runtime, handle: Handle) -> Iterator[object]:
        holder = self.beside(handle, "exec 9>>/v/.novastack/lock; flock -n 9; echo held; exec sleep 60")
        try:
            while b"held" not in self.engine.logs(holder):
                time.sleep(0.05)
            yield holder
        finally:
            self.engine.remove_container(holder, force=True, v=True)

    def beside(self, handle: Handle, script: str) -> str:
        """The id of a container that runs the script, as root, with the volume at /v."""
        host = self.engine.create_host_config(binds=[f"{docker_spec.volume_name(handle)}:/v"], network_mode="none")
        made = self.engine.create_container(
            self.image_beside(), entrypoint=["sh", "-c", script], host_config=host, user="root"
        )
        try:
            self.engine.start(made["Id"])
        except docker.errors.APIError:
            self.engine.remove_container(made["Id"], force=True, v=True)
            raise
        return str(made["Id"])

    def in_volume(self, handle: Handle, script: str) -> str:
        """What the script printed; it must succeed."""
        made = self.beside(handle, script)
        assert self.engine.wait(made)["StatusCode"] == 0
        said = str(self.engine.logs(made).decode())
        self.engine.remove_container(made, force=True, v=True)
        return said
