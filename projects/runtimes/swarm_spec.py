"""Pure parts of the Swarm runtime: a region's settings, names, placement, and what a service is made of."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from projects.domain import AddressRefused, Handle, Limits, NovaStackRuntimeError, ServerSpec
from projects.runtimes import docker_spec

NODE = "io.novastack.node"
IMAGE = "io.novastack.image"
LIMITS = "io.novastack.limits"
USER = "io.novastack.user"

PLACEMENT = ("node.labels.role == database",)
ALL_ADDRESSES = frozenset({"", "0.0.0.0", "::"})  # noqa: S104 - what a Swarm publishes on, said
STOP_SECONDS = 15  # what a server gets to end politely; fixed with the service
RESTART_SECONDS = 5
NO_NEW_PRIVILEGES = "1.46"  # the API since which a service can ask for it
_NANO = 1_000_000_000
_CONSTRAINT = re.compile(r"^\s*([\w.\-/]+)\s*(==|!=)\s*(.+?)\s*$")
_SIZES = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_VOLUME = "{volume}"


@dataclass(frozen=True, slots=True)
class SwarmConfig:
    """`Region.config` of a Swarm region. `nodes`: host name or id of a node → the address of its engine, reached with the
    region's own certificates or keys; the endpoint's own node needs no entry. `reserve_*`: the part of a server's limit
    that the scheduler keeps free for it (memory can't be taken back, CPU can)."""

    placement: tuple[str, ...] = PLACEMENT
    network: str = ""
    publish: str = "host"
    volume_driver: str = "local"
    volume_options: Mapping[str, str] = field(default_factory=dict)
    volume_shared: bool = False
    nodes: Mapping[str, str] = field(default_factory=dict)
    reserve_memory: float = 1.0
    reserve_cpus: float = 0.25

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> SwarmConfig:
        placement = config.get("placement", PLACEMENT)
        options = {str(name): str(value) for name, value in (config.get("volume_options") or {}).items()}
        driver = str(config.get("volume_driver") or "local")
        per_server = any(_VOLUME in value for value in options.values())
        return cls(
            placement=(placement,) if isinstance(placement, str) else tuple(str(each) for each in placement),
            network=str(config.get("network") or ""),
            publish=str(config.get("publish") or "host"),
            volume_driver=driver,
            volume_options=options,
            volume_shared=bool(config.get("volume_shared", per_server or driver != "local")),
            nodes={str(name): str(url) for name, url in (config.get("nodes") or {}).items()},
            reserve_memory=float(config.get("reserve_memory", 1.0)),
            reserve_cpus=float(config.get("reserve_cpus", 0.25)),
        )

    @property
    def problem(self) -> str:
        """What is wrong with these settings, for operators; empty if nothing is seen to be."""
        for constraint in self.placement:
            if _CONSTRAINT.match(constraint) is None:
                return f"the placement “{constraint}” is no constraint such as `node.labels.role == database`"
        if self.publish not in {"host", "ingress"}:
            return f"`publish` is “{self.publish}”: it can be host or ingress"
        device = self.volume_options.get("device", "")
        if self.volume_driver == "local" and device and _VOLUME not in device:
            return "`volume_options.device` names no {volume}: all servers would share one folder"
        if _VOLUME in device and not device.endswith(f"/{_VOLUME}"):
            return "`volume_options.device` must end with /{volume}"
        return ""


def constraint_holds(constraint: str, node: Mapping[str, Any]) -> bool:
    """Whether a node (as the engine lists it) fits `node.labels.x == y`, `node.hostname != z` …, as Swarm reads it."""
    match = _CONSTRAINT.match(constraint)
    if match is None:
        return False
    key, operator, wanted = match.groups()
    spec, about = node.get("Spec") or {}, node.get("Description") or {}
    found = ""
    if key.startswith("node.labels."):
        found = (spec.get("Labels") or {}).get(key.removeprefix("node.labels."), "")
    elif key.startswith("engine.labels."):
        found = ((about.get("Engine") or {}).get("Labels") or {}).get(key.removeprefix("engine.labels."), "")
    elif key == "node.id":
        found = node.get("ID", "")
    elif key == "node.hostname":
        found = about.get("Hostname", "")
    elif key == "node.role":
        found = spec.get("Role", "")
    elif key.startswith("node.platform."):
        name = {"os": "OS", "arch": "Architecture"}.get(key.removeprefix("node.platform."), "")
        found = (about.get("Platform") or {}).get(name, "")
    same = str(found).lower() == wanted.lower()
    return same if operator == "==" else not same


def is_usable(node: Mapping[str, Any]) -> bool:
    """New tasks can start there."""
    return bool(node["Status"].get("State") == "ready" and node["Spec"].get("Availability") == "active")


def hostname(node: Mapping[str, Any]) -> str:
    return str((node.get("Description") or {}).get("Hostname") or node.get("ID", "")[:12])


@dataclass(frozen=True, slots=True)
class DataRecord:
    """Where a server's data is: a Swarm config of the volume's name, made before the volume. The driver and its options
    never change; the node is a label, so that data on shared storage can follow (rule 10)."""

    id: str
    labels: Mapping[str, str]
    driver: str
    options: Mapping[str, str]
    shared: bool

    @classmethod
    def of(cls, found: Mapping[str, Any], data: bytes) -> DataRecord:
        body = json.loads(data or b"{}")
        return cls(
            id=str(found["ID"]),
            labels=found["Spec"].get("Labels") or {},
            driver=str(body.get("driver", "local")),
            options=body.get("options") or {},
            shared=bool(body.get("shared")),
        )

    @property
    def node(self) -> str:
        return str(self.labels.get(NODE, ""))

    @property
    def in_folder(self) -> bool:
        """Servers have folders of their own below one place."""
        return any(_VOLUME in value for value in self.options.values())


def record_body(config: SwarmConfig) -> bytes:
    return json.dumps(
        {"driver": config.volume_driver, "options": dict(config.volume_options), "shared": config.volume_shared}
    ).encode()


def volume_mount(
    record: DataRecord, handle: Handle, install_id: str, target: str, *, copy: bool = True
) -> dict[str, Any]:
    """The mount of a server's volume; the node's engine makes it if need be."""
    name = docker_spec.volume_name(handle)
    options = {key: value.replace(_VOLUME, name) for key, value in record.options.items()}
    return _volume(name, target, record.driver, options, docker_spec.labels(install_id, "data", handle), copy=copy)


def parent_mount(record: DataRecord, install_id: str, target: str) -> dict[str, Any]:
    """The mount of the place that holds the servers' folders."""
    options = {key: value.replace(f"/{_VOLUME}", "") or "/" for key, value in record.options.items()}
    labels = docker_spec.labels(install_id, "parent")
    # An engine does not compare options: another place must have another name.
    place = hashlib.sha256(json.dumps([record.driver, sorted(options.items())]).encode()).hexdigest()[:8]
    return _volume(f"nvs-{install_id}-parent-{place}", target, record.driver, options, labels, copy=False)


def _volume(
    name: str, target: str, driver: str, options: Mapping[str, str], labels: Mapping[str, str], *, copy: bool
) -> dict[str, Any]:
    given: dict[str, Any] = {"NoCopy": not copy, "Labels": dict(labels)}
    if driver != "local" or options:
        given["DriverConfig"] = {"Name": driver, "Options": dict(options)}
    return {"Type": "volume", "Source": name, "Target": target, "VolumeOptions": given}


def tmpfs_mounts(spec: ServerSpec) -> list[dict[str, Any]]:
    """Swarm knows a size and a mode; shared memory is a mount like any other there."""
    result = []
    for target, options in {**spec.tmpfs, "/dev/shm": f"mode=1777,size={spec.shm_bytes}"}.items():  # noqa: S108
        given = dict(part.partition("=")[::2] for part in options.split(",") if part)
        limits: dict[str, int] = {}
        if size := given.get("size", ""):
            unit = _SIZES.get(size[-1].lower(), 0)
            limits["SizeBytes"] = int(size[:-1]) * unit if unit else int(size)
        if mode := given.get("mode", ""):
            limits["Mode"] = int(mode, 8)
        result.append({"Type": "tmpfs", "Target": target, "TmpfsOptions": limits})
    return result


def resources(limits: Limits, config: SwarmConfig, *, burst: bool = False) -> dict[str, Any]:
    most: dict[str, int] = {"MemoryBytes": limits.memory_bytes, "Pids": limits.pids}
    if not burst:
        most["NanoCPUs"] = round(limits.cpus * _NANO)
    kept = {
        "MemoryBytes": round(limits.memory_bytes * config.reserve_memory),
        "NanoCPUs": round(limits.cpus * config.reserve_cpus * _NANO),
    }
    return {"Limits": most, "Reservations": {name: value for name, value in kept.items() if value > 0}}


def refuse_address(host: str) -> NoReturn:
    raise AddressRefused(
        f"a Swarm publishes ports on all addresses of a node, not on {host} only: set the region's bind address to 0.0.0.0"
        " and keep strangers out with a firewall"
    )


def service(
    spec: ServerSpec, config: SwarmConfig, record: DataRecord, install_id: str, network_id: str, *, burst: bool
) -> dict[str, Any]:
    """One replicated service of at most one task, on the node that has its data. Never two at once: the old task ends
    first, nothing is rolled back by itself, and the start wrapper holds the volume's lock (rule 10)."""
    labels = {
        **spec.labels,
        **docker_spec.labels(install_id, "server", spec.handle),
        docker_spec.SPEC: docker_spec.spec_hash(spec),
    }
    return {
        "Name": spec.handle.name,
        "Labels": labels,
        "TaskTemplate": {
            "ContainerSpec": {
                "Image": spec.image,
                "Labels": docker_spec.labels(install_id, "task", spec.handle),
                "Command": ["sh"],
                "Args": docker_spec.command(spec),
                "Env": [f"{name}={value}" for name, value in spec.env.items()],
                "User": spec.user,
                "Init": False,
                "ReadOnly": True,
                "CapabilityDrop": ["ALL"],
                "Privileges": {"NoNewPrivileges": True},  # engines before API 1.46 don't know it
                "StopSignal": spec.stop_signal,
                "StopGracePeriod": STOP_SECONDS * _NANO,
                "Mounts": [volume_mount(record, spec.handle, install_id, spec.mount_path), *tmpfs_mounts(spec)],
            },
            "Resources": resources(spec.limits, config, burst=burst),
            "RestartPolicy": {"Condition": "any", "Delay": RESTART_SECONDS * _NANO, "MaxAttempts": 0},
            "Placement": {"Constraints": [f"node.id == {record.node}"]},
            "Networks": [{"Target": network_id}],
            "LogDriver": {"Name": "json-file", "Options": {"max-size": "10m", "max-file": "3"}},
        },
        "Mode": {"Replicated": {"Replicas": 1}},
        "UpdateConfig": {"Parallelism": 1, "Order": "stop-first", "FailureAction": "pause"},
        "EndpointSpec": {
            "Mode": "vip",
            "Ports": [
                {
                    "Protocol": "tcp",
                    "TargetPort": spec.port,
                    "PublishedPort": spec.publish.port,
                    "PublishMode": config.publish,
                }
            ],
        },
    }


# --- jobs -------------------------------------------------------------------------------------------------------------
JOB_MOUNT = "/novastack"
JOB_SECRET = "novastack"  # noqa: S105 - a file's name
_REFUSED = docker_spec.FOREIGN

# Runs as root in the server's image, on its node, with its volume: what `put_archive` does where the engine is at hand.
# $1 user, $2 marker, $3 `init` or `put`, then pairs of name and length: the secret holds the contents one after the other.
PUT = f"""set -eu
mount={JOB_MOUNT} user=$1 marker=$2 how=$3; shift 3
own=$mount/.novastack
if [ "$(cat "$own/marker" 2>/dev/null)" != "$marker" ]; then
  [ "$how" = init ] || exit {_REFUSED}
  for found in "$mount"/* "$mount"/.[!.]*; do
    case ${{found##*/}} in
      '*' | '.[!.]*' | lost+found) ;;
      .novastack) [ ! -e "$own/marker" ] || exit {_REFUSED} ;;
      *) exit {_REFUSED} ;;
    esac
  done
fi
case ${{user:=0:0}} in
  *:*) owner=$user ;;
  *) owner=$(id -u "$user"):$(id -g "$user" 2>/dev/null || echo "$user") || exit {docker_spec.UNFIT} ;;
esac
umask 077
mkdir -p "$own" "$own/files"
from=1
while [ $# -gt 1 ]; do
  tail -c "+$from" /run/secrets/{JOB_SECRET} | head -c "$2" >"$own/.part"
  chown "$owner" "$own/.part"; chmod 600 "$own/.part"
  mv -f "$own/.part" "$own/$1"
  from=$((from + $2)); shift 2
done
chown "$owner" "$own" "$own/files"; chmod 700 "$own" "$own/files"
[ "$how" != init ] || {{ chown "$owner" "$mount"; chmod 755 "$mount"; }}
"""
# $1 folder: below the shared place. Makes it.
FOLDER = f'set -eu; mkdir -p "{JOB_MOUNT}/$1"'
# $1 folder: it goes, with all that is in it.
REMOVE_FOLDER = f'set -eu; rm -rf "{JOB_MOUNT}/$1"'
# The volume stays, empty: only its node's engine can remove it.
EMPTY = f"""set -eu
for found in {JOB_MOUNT}/* {JOB_MOUNT}/.[!.]*; do rm -rf "$found"; done"""


def packed(files: Mapping[str, bytes]) -> tuple[list[str], bytes]:
    """(name, length, name, length …) and the contents, one after the other. A Swarm secret has at most 500 KB and is never
    empty."""
    names = [word for name, content in files.items() for word in (name, str(len(content)))]
    content = b"".join(files.values()) or b"\n"
    if len(content) > 500_000:
        raise NovaStackRuntimeError("the server's files are too large for a Swarm secret (500 KB)")
    return names, content


def init_files(spec: ServerSpec) -> dict[str, bytes]:
    """What lies in `.novastack/` before the first start; the marker goes first, so that a cut-off attempt is known as
    ours."""
    files = {"marker": docker_spec.marker(spec.handle).encode(), "init": b"", **spec.secret_files}
    return files | durable_files(spec.files)


def durable_files(files: Mapping[str, bytes]) -> dict[str, bytes]:
    return {f"files/{name}": content for name, content in files.items()}


def job(
    handle: Handle, install_id: str, image: str, node: str, script: str, argv: Sequence[str], mount: Mapping[str, Any],
    secret: tuple[str, str] | None,
) -> dict[str, Any]:  # fmt: skip
    """A service that runs once on one node. `secret`: (id, name). (Engine 20.10 knows no `none` network for services.)"""
    container: dict[str, Any] = {
        "Image": image,
        "Labels": docker_spec.labels(install_id, "job", handle),
        "Command": ["sh"],
        "Args": ["-c", script, "novastack", *argv],
        "User": "0:0",
        "ReadOnly": True,
        "CapabilityDrop": ["ALL"],
        "CapabilityAdd": ["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER"],
        "Privileges": {"NoNewPrivileges": True},
        "Mounts": [dict(mount)],
    }
    if secret is not None:
        file = {"Name": JOB_SECRET, "UID": "0", "GID": "0", "Mode": 0o400}
        container["Secrets"] = [{"SecretID": secret[0], "SecretName": secret[1], "File": file}]
    return {
        "Name": job_name(handle),
        "Labels": docker_spec.labels(install_id, "job", handle),
        "TaskTemplate": {
            "ContainerSpec": container,
            "Resources": {"Limits": {"MemoryBytes": 64 << 20, "Pids": 32}},
            "RestartPolicy": {"Condition": "none"},
            "Placement": {"Constraints": [f"node.id == {node}"]},
            "LogDriver": {"Name": "json-file", "Options": {"max-size": "100k"}},
        },
        "Mode": {"Replicated": {"Replicas": 1}},
    }


def job_name(handle: Handle) -> str:
    return f"{handle.name}-job"


def limits_label(limits: Limits) -> str:
    return f"{limits.memory_bytes}/{limits.cpus:g}"
