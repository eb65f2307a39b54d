"""One container from `create` to removal, and the network of the install. Nothing here decides; docker.py does."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from typing import Any

import docker.errors
from docker.types import LogConfig, Mount

from projects.domain import DataInUse, DataMissing, ImageMissing, NovaStackRuntimeError, ServerSpec, StaleHandle
from projects.runtimes import docker_spec
from projects.runtimes.docker_client import DockerClients, mapped
from projects.runtimes.docker_observe import time_of

_ACCEPT_SECONDS = 5.0  # how long `start` watches the wrapper; on a slower machine `observe` tells
_FORCE_SECONDS = 3.0
_REMOVE_SECONDS = 10.0
_COMES_BACK: Any = {"Name": "unless-stopped"}  # docker-py's types know two of the four
_STAYS: Any = {"Name": "no"}
_MAX_FILES_BYTES = 1 << 20
_DAEMON_STOP_SECONDS = 60  # what the daemon gives a server when the machine goes down
_ISOLATED = "com.docker.network.bridge.enable_icc"
_MASQUERADED = "com.docker.network.bridge.enable_ip_masquerade"

Container = Mapping[str, Any]  # what `inspect` answers


class Containers:
    def __init__(self, clients: DockerClients, install_id: str, network_name: str) -> None:
        self._clients = clients
        self._install_id = install_id
        self._network_name = network_name
        self._scratch_name = f"{network_name}-scratch"
        self._owners: dict[tuple[str, str], tuple[int, int]] = {}

    def inspect(self, name: str) -> Container | None:
        with mapped():
            try:
                found: Container = self._clients.get().inspect_container(name)
            except docker.errors.NotFound:
                return None
            return found

    def restart(self, container: Container) -> None:
        """Start a container that was stopped; it joins the install's network again if that was removed meanwhile."""
        networks = container["NetworkSettings"]["Networks"]
        isolated = self._scratch_name in networks
        name = self._scratch_name if isolated else self._network_name
        wanted = self.ensure_network(isolated=isolated)
        joined = networks.get(name, {}).get("NetworkID")
        if joined and joined != wanted:
            client = self._clients.get()
            with mapped(), contextlib.suppress(docker.errors.NotFound):
                client.disconnect_container_from_network(container["Id"], name, force=True)
            with mapped(), contextlib.suppress(_Conflict):
                _conflicting(lambda: client.connect_container_to_network(container["Id"], wanted))
        self.start(container)

    def ensure_network(self, *, isolated: bool = False) -> str:
        """The id of the install's network: a bridge on which containers don't reach each other (rule 23).

        `isolated`: the one of throw-away servers (rule 26). Its addresses are not translated on the way out, so that no
        answer comes back from other networks; published ports work, which an `internal` network would not have. What
        stays: the machine's own addresses.
        """
        client = self._clients.get()
        name = self._scratch_name if isolated else self._network_name
        options = {_ISOLATED: "false", **({_MASQUERADED: "false"} if isolated else {})}
        labels = docker_spec.labels(self._install_id, "network")
        with mapped():
            for _ in range(3):
                try:
                    found = client.inspect_network(name)
                except docker.errors.NotFound:
                    with contextlib.suppress(_Conflict):
                        _conflicting(
                            lambda: client.create_network(
                                name,
                                driver="bridge",
                                check_duplicate=True,
                                options=options,
                                labels=labels,
                            )
                        )
                    continue
                set_to = found.get("Options") or {}
                if any(set_to.get(option) != value for option, value in options.items()):
                    raise NovaStackRuntimeError(
                        f"the network {name} lets containers reach each other, or others: remove it or name another"
                    )
                return str(found["Id"])
        raise NovaStackRuntimeError(f"the network {name} could not be made")

    def remove_network(self) -> None:
        """Remove the install's network; in use or absent is success. For uninstalling and tests."""
        with mapped():
            client = self._clients.get()
            for found in client.networks(names=[self._network_name]):  # as a part of the name: the isolated one as well
                labels = found.get("Labels") or {}
                if labels.get(docker_spec.INSTALL) == self._install_id:
                    with contextlib.suppress(docker.errors.APIError):
                        client.remove_network(found["Id"])

    def create(self, spec: ServerSpec) -> Container:
        memory, quota = wanted_limits(spec)
        client = self._clients.get()
        with mapped():
            host = client.create_host_config(
                mounts=[Mount(spec.mount_path, docker_spec.volume_name(spec.handle), type="volume")],
                port_bindings={f"{spec.port}/tcp": (spec.publish.host, spec.publish.port)},
                network_mode=self._scratch_name if spec.isolated else self._network_name,
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
                restart_policy=_COMES_BACK,
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
                    stop_timeout=_DAEMON_STOP_SECONDS,
                    use_config_proxy=False,
                    host_config=host,
                )
            except docker.errors.ImageNotFound as error:
                raise ImageMissing(f"the server's image {spec.image} is not on the host any more") from error
            except docker.errors.APIError as error:
                if error.status_code == 409:
                    raise NameInUse("a container of this name was just made") from error
                raise
        return made

    def put_init_files(self, container: Container, spec: ServerSpec) -> None:
        """Unpack `.novastack/` into the volume of a created container, owned by the server's user."""
        with mapped():
            packed = docker_spec.init_files(spec, self._owner(container, spec.user))
            self._clients.get().put_archive(container["Id"], spec.mount_path, packed)

    def put_files(self, container: Container, files: Mapping[str, bytes]) -> None:
        """Unpack the server's files into the volume of a container, running or not, owned by the server's user. Also on
        a read-only root: what counts is that the volume can be written. The engine removes each file and makes it anew, of
        root at first: a server that starts meanwhile could not read it, so what is there already stays untouched."""
        if not files:
            return
        inspected = container if "Mounts" in container else self.inspect(str(container["Id"]))
        if inspected is None:
            raise StaleHandle("the server's container is gone")
        mount = next(m["Destination"] for m in inspected["Mounts"] if m.get("Type") == "volume")
        with mapped():
            owner = self._owner(inspected, inspected["Config"].get("User") or "")
            if not docker_spec.holds(self._read_files(str(container["Id"]), mount), files, owner):
                packed = docker_spec.durable_files(files, owner)
                self._clients.get().put_archive(container["Id"], mount, packed)

    def _read_files(self, container: str, mount: str) -> bytes:
        """A tar of the files that are there, cut off where no files of ours are as long: a server may write there, too."""
        try:
            stream, _ = self._clients.get().get_archive(container, f"{mount}/{docker_spec.FILES}")
        except docker.errors.NotFound:
            return b""
        read = b""
        for part in stream:
            read += part
            if len(read) > _MAX_FILES_BYTES:
                break
        return read

    def _owner(self, container: Container, user: str) -> tuple[int, int]:
        # Not `copyUIDGID`: the engine looks the user up in the host's passwd file. The image's own one is right.
        key = str(container.get("Image") or ""), user  # an image's id; its files can't change under a read-only root
        owner = self._owners.get(key)
        if owner is None:
            stream, _ = self._clients.get().get_archive(container["Id"], "/etc/passwd")
            owner = docker_spec.user_ids(b"".join(stream), user)
            if key[0]:
                self._owners[key] = owner
        return owner

    def start(self, container: Container) -> None:
        """Start, and watch until the wrapper has accepted or refused the data. A refused container stays stopped, with the
        refusal's exit code."""
        client, name = self._clients.get(), str(container["Id"])
        with mapped():
            client.start(name)
        deadline = time.monotonic() + _ACCEPT_SECONDS
        pause = 0.01
        while time.monotonic() < deadline:
            with mapped():
                state = client.inspect_container(name)["State"]
                code = int(state["ExitCode"])
                if code in docker_spec.REFUSALS and (not state["Running"] or state["Restarting"]):
                    self._keep_refused(name)
                    raise refusal(code)
                if state["Status"] == "exited" and code:
                    return  # the server itself failed: `observe` and the logs say how
                since = time_of(state["StartedAt"])
                if since is not None and docker_spec.STARTED_LINE in client.logs(
                    name, stdout=False, stderr=True, since=since.timestamp() - 0.001, tail=100
                ):
                    self._comes_back(container)
                    return
            time.sleep(pause)
            pause = min(0.2, pause * 1.5)

    def _keep_refused(self, name: str) -> None:
        """The engine may be restarting it at this very moment, and the stop leaves that attempt's code (130, of a signal)
        where `observe` looks for the refusal's: then it is started once more without its policy, refuses, and stays."""
        client = self._clients.get()
        client.stop(name, timeout=0)
        if int(client.inspect_container(name)["State"]["ExitCode"]) in docker_spec.REFUSALS:
            return
        client.update_container(name, restart_policy=_STAYS)
        client.start(name)
        deadline = time.monotonic() + _REMOVE_SECONDS
        while client.inspect_container(name)["State"]["Running"] and time.monotonic() < deadline:
            time.sleep(0.05)
        client.stop(name, timeout=0)

    def _comes_back(self, container: Container) -> None:
        policy = container.get("HostConfig", {}).get("RestartPolicy")
        if policy and policy.get("Name") != _COMES_BACK["Name"]:  # it was refused once
            self._clients.get().update_container(container["Id"], restart_policy=_COMES_BACK)

    # --- parts: ending ------------------------------------------------------------------------------------------------
    def stop(self, container: Container, grace_seconds: float) -> None:
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
        while (found := self.inspect(name)) is not None and found["State"]["Running"]:
            if time.monotonic() > deadline:
                with mapped(), contextlib.suppress(docker.errors.NotFound):
                    client.stop(name, timeout=0)
                deadline += _FORCE_SECONDS
            if time.monotonic() > deadline + _FORCE_SECONDS:
                raise NovaStackRuntimeError("the container does not end, not even by force")
            time.sleep(0.1)

    def remove(self, container: Container) -> None:
        """Remove the container and wait until it is gone; its named volume stays."""
        client, name = self._clients.get(), str(container["Id"])
        with mapped(), contextlib.suppress(_Conflict, docker.errors.NotFound):
            _conflicting(lambda: client.remove_container(name, force=True, v=False))
        deadline = time.monotonic() + _REMOVE_SECONDS
        while self.inspect(name) is not None:
            if time.monotonic() > deadline:
                raise NovaStackRuntimeError("the container does not go away")
            time.sleep(0.1)


def wanted_limits(spec: ServerSpec) -> tuple[int, int]:
    return spec.limits.memory_bytes, docker_spec.cpu_quota(spec.limits, burst=spec.burst)


def is_up(container: Container) -> bool:
    state = container["State"]
    return bool(state.get("Running")) and not state.get("Restarting") and not state.get("Paused")


class NameInUse(NovaStackRuntimeError):
    """Between looking and making somebody else made it."""


class _Conflict(Exception):
    """409: somebody else is doing the same, or it is done already."""


def _conflicting(act: Any) -> None:
    try:
        act()
    except docker.errors.APIError as error:
        if error.status_code == 409:
            raise _Conflict from error
        raise


def refusal(code: int) -> NovaStackRuntimeError:
    """What the start wrapper's exit code says."""
    text = docker_spec.REFUSALS[code]
    if code == docker_spec.IN_USE:
        return DataInUse(text)
    if code == docker_spec.UNFIT:
        return ImageMissing(text)
    return DataMissing(text)
