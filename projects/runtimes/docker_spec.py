"""Pure parts of the Docker runtime: names, labels, the start wrapper, and what a container is made of."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import tarfile
from collections.abc import Iterator, Mapping
from typing import Any

from projects.domain import Description, Endpoint, Handle, ImageMissing, Limits, ServerSpec

INSTALL = "io.novastack.install"
KIND = "io.novastack.kind"
SERVER = "io.novastack.server"
INCARNATION = "io.novastack.incarnation"
SPEC = "io.novastack.spec"
NONCE = "io.novastack.nonce"
EPOCH = "io.novastack.epoch"
WRITTEN = "io.novastack.written"

FORMAT = 1  # raise it when containers made before must be made again
CPU_PERIOD = 100_000  # microseconds
FILES = ".novastack/files"
STARTED_LINE = b"novastack: data accepted, starting"

IN_USE, FOREIGN, MISSING, UNFIT = 75, 76, 77, 78
REFUSALS: Mapping[int, str] = {
    IN_USE: "another server is using this data",
    FOREIGN: "the volume holds no data, or data of another server",
    MISSING: "the volume's data was never initialised, or is gone",
    UNFIT: "the image has no flock program",
}

# Runs before the image's own entrypoint, as the server's user, and becomes it (PID 1, signals). The lock's descriptor
# is inherited by the server and all its children: the lock lives as long as any of them. No engine is known here.
WRAPPER = f"""set -eu
mount=$1 data=$2 completed=$3 marker=$4 secrets=$5 locks=$6; shift 6
own=$mount/.novastack
refuse() {{ code=$1; shift; echo "novastack: $*" >&2; exit "$code"; }}
flock=$(command -v flock) || [ "$locks" = itself ] || refuse {UNFIT} "{REFUSALS[UNFIT]}"
[ "$(cat "$own/marker" 2>/dev/null)" = "$marker" ] || refuse {FOREIGN} "{REFUSALS[FOREIGN]}"
exec 9>>"$own/lock"
[ -z "$flock" ] || flock -n 9 || refuse {IN_USE} "{REFUSALS[IN_USE]}"
if [ -e "$data/$completed" ]; then
  # One-time secrets have done their work. Emptied, not removed: entrypoints want to read these files.
  rm -f "$own/init"
  for name in $secrets; do : >"$own/$name"; done
elif [ -e "$own/init" ]; then
  # Nobody ever used this data: an attempt that was cut off half-way is begun anew.
  rm -rf "$data"
else
  refuse {MISSING} "{REFUSALS[MISSING]}"
fi
echo "{STARTED_LINE.decode()}" >&2
exec "$@"
"""


def volume_name(handle: Handle) -> str:
    return f"{handle.name}-data"


def marker(handle: Handle) -> str:
    return f"{handle.server_id}/{handle.incarnation}"


def labels(install_id: str, kind: str, handle: Handle | None = None) -> dict[str, str]:
    """Ids only. `kind` is server, data, tool, secret, network or epoch."""
    result = {INSTALL: install_id, KIND: kind}
    if handle is not None:
        result |= {SERVER: handle.server_id, INCARNATION: str(handle.incarnation)}
    return result


def handle_of(found: Mapping[str, str] | None, ref: str = "") -> Handle | None:
    """The handle that labels name, if they do."""
    found = found or {}
    if not found.get(SERVER) or not found.get(INCARNATION, "").isdigit():
        return None
    return Handle(found[SERVER], int(found[INCARNATION]), ref)


def spec_hash(spec: ServerSpec) -> str:
    """What makes a container another one. Limits can be changed on the running one; secrets are no part of it."""
    parts = [
        FORMAT, spec.image, spec.port, spec.publish.host, spec.publish.port, spec.mount_path, spec.data_subdir,
        spec.initialised_file, spec.completed_file, spec.argv, spec.entrypoint, sorted(spec.env.items()), spec.user,
        sorted(spec.tmpfs.items()), spec.shm_bytes, spec.stop_signal, *(["isolated"] if spec.isolated else []),
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def command(spec: ServerSpec) -> list[str]:
    """Arguments of `sh`: the wrapper, what it needs to know, and the original entrypoint."""
    return [
        "-c", WRAPPER, "novastack", spec.mount_path, f"{spec.mount_path}/{spec.data_subdir}",
        spec.completed_file or spec.initialised_file, marker(spec.handle), " ".join(sorted(spec.secret_files)),
        "itself" if spec.locks_itself else "",
        *spec.entrypoint, *spec.argv,
    ]  # fmt: skip


def cpu_quota(limits: Limits, *, burst: bool = False) -> int:
    """Microseconds per period; -1 is unlimited. Not `NanoCpus`: that can't be changed on a running container."""
    return -1 if burst else max(1000, round(limits.cpus * CPU_PERIOD))


def init_files(spec: ServerSpec, owner: tuple[int, int]) -> bytes:
    """A tar with `.novastack/`: the marker, leave to initialise, the one-time secrets, and the server's files."""
    files = {"marker": marker(spec.handle).encode(), "init": b"", **spec.secret_files}
    named = {f".novastack/{name}": content for name, content in files.items()}
    folders = [".novastack", FILES] if spec.files else [".novastack"]
    return archive(named | _in_files(spec.files), *folders, owner=owner)


def durable_files(files: Mapping[str, bytes], owner: tuple[int, int]) -> bytes:
    """A tar with `.novastack/files/`."""
    return archive(_in_files(files), FILES, owner=owner)


def holds(packed: bytes, files: Mapping[str, bytes], owner: tuple[int, int]) -> bool:
    """Whether a tar of `.novastack/files/`, perhaps cut off, has all of these, whole and the owner's alone. What else is in
    it does not matter."""
    found = {}
    with contextlib.suppress(tarfile.TarError, ValueError), tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        for entry in tar:
            if entry.isfile() and (entry.uid, entry.gid, entry.mode & 0o777) == (*owner, 0o600):
                content = tar.extractfile(entry)
                found[entry.name.partition("/")[2]] = content.read() if content else b""
    return all(found.get(name) == content for name, content in files.items())


def _in_files(files: Mapping[str, bytes]) -> dict[str, bytes]:
    return {f"{FILES}/{name}": content for name, content in files.items()}


def archive(files: Mapping[str, bytes], *folders: str, owner: tuple[int, int]) -> bytes:
    """A tar of folders and files that only `owner` (user id, group id) can read."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:

        def add(name: str, kind: bytes, mode: int, content: bytes) -> None:
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode, entry.size = kind, mode, len(content)
            entry.uid, entry.gid = owner
            tar.addfile(entry, io.BytesIO(content))

        for folder in folders:
            add(folder, tarfile.DIRTYPE, 0o700, b"")
        for name, content in files.items():
            add(name, tarfile.REGTYPE, 0o600, content)
    return stream.getvalue()


def user_ids(passwd_tar: bytes, user: str) -> tuple[int, int]:
    """(user id, group id) of `user` ("name", "uid" or "uid:gid") by a tar with the image's passwd file."""
    name, _, group = user.partition(":")
    if name.isdigit():
        return int(name), int(group) if group.isdigit() else int(name)
    with tarfile.open(fileobj=io.BytesIO(passwd_tar)) as tar:
        member = tar.extractfile(tar.getmembers()[0])
        lines = member.read().decode(errors="replace").splitlines() if member else []
    for line in lines:
        fields = line.split(":")
        if len(fields) > 3 and fields[0] == (name or "root"):
            return int(fields[2]), int(fields[3])
    raise ImageMissing(f"the image has no user {name}: it is not the one that this engine needs")


def limits_of(inspected: Mapping[str, Any]) -> tuple[int, int]:
    """(memory bytes, CPU quota) that a container has now."""
    host = inspected["HostConfig"]
    return int(host.get("Memory") or 0), int(host.get("CpuQuota") or 0)


def description_of(inspected: Mapping[str, Any]) -> Description:
    """Address and limits of an inspected container: of one that runs what the engine has bound, else what was asked for."""
    memory, quota = limits_of(inspected)
    state, host = inspected["State"], inspected["HostConfig"]
    running = bool(state.get("Running")) and not state.get("Restarting")
    bound = (inspected.get("NetworkSettings") or {}).get("Ports") if running else host.get("PortBindings")
    first = next((entry for entries in (bound or {}).values() for entry in entries or ()), None)
    period = int(host.get("CpuPeriod") or 0) or CPU_PERIOD
    cpus = max(0, quota) / period or int(host.get("NanoCpus") or 0) / 1e9
    publish = Endpoint(str(first.get("HostIp") or "0.0.0.0"), int(first["HostPort"])) if first else None  # noqa: S104
    return Description(str(inspected["Id"]), running, publish, memory, cpus)


def lacking(info: Mapping[str, Any]) -> Iterator[str]:
    """Of what `info` says, what servers will not get here."""
    if info.get("OSType", "linux") != "linux":
        yield "it does not run Linux containers"
    if not info.get("MemoryLimit", True):
        yield "its kernel can't limit memory"
    if not info.get("CpuCfsQuota", info.get("CPUCfsQuota", True)):
        yield "its kernel can't limit CPU"
    if not info.get("PidsLimit", True):
        yield "its kernel can't limit the number of processes"
