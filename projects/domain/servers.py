"""A server as it is wanted: what an engine asks of a runtime."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from projects.domain.access import Credentials, Endpoint


class DataPolicy(StrEnum):
    CREATE = "create"  # provisioning's init step only: new data, refuses what already exists
    MUST_EXIST = "must_exist"  # everybody else: the server's own data or `DataMissing`


@dataclass(frozen=True, slots=True)
class Handle:
    """The name of one incarnation of one server (or tool container) in a runtime. Never reused.

    `ref` is what the runtime recorded when it made it (container id; pid and start time): stop and destroy act on that
    and refuse another thing under the same name.
    """

    server_id: str
    incarnation: int
    ref: str = ""

    @property
    def name(self) -> str:
        """Deterministic: `nvs-<server id>-<incarnation>`."""
        return f"nvs-{self.server_id}-{self.incarnation}"


@dataclass(frozen=True, slots=True)
class Limits:
    memory_bytes: int
    cpus: float
    pids: int = 512


@dataclass(frozen=True, slots=True)
class ProcessProgram:
    """How to run a server as a plain OS process. `{data}`, `{port}`, `{host}`, `{secret:<name>}` (path of a secret file,
    while initialising) and `{file:<name>}` (path of one of the spec's `files`) in arguments are filled in by the runtime.

    `tls_argv`: arguments with which `binary` prints something if it was built with TLS; empty: every build is.
    """

    binary: str  # what must be found, e.g. "postgres"
    init: tuple[str, ...]
    run: tuple[str, ...]
    version_argv: tuple[str, ...] = ("--version",)
    tls_argv: tuple[str, ...] = ()
    reserved_bytes: int = 0  # private memory that it only sets aside (stacks of its threads), above what it may use
    session_bytes: int = 0  # private memory that each of its processes may have; 0: as much as the whole server


@dataclass(frozen=True, slots=True)
class ServerSpec:
    """All that a runtime needs to run one server; the engine makes it, the runtime does it.

    The volume is mounted at `mount_path`; the server's own files live in `data_subdir` under it, so that the volume's
    root can hold NovaStack's marker, lock and one-time secrets in `.novastack/`. `initialised_file` (relative to the
    data folder) tells whether data was initialised; `completed_file` (empty: the same) exists only once initialising
    came to its end, so that one that was killed half-way is begun anew. `secret_files` (name → bytes) are put to
    `.novastack/<name>` in the volume before the first start; only used while initialising. `files` (name → bytes, secret
    as well) are put to `.novastack/files/<name>` before every start by us and stay there: only the server's user reads
    them. What is in them is no part of what makes a server another one. `env` never holds a secret.
    """

    handle: Handle
    engine: str
    version: str
    image: str
    port: int  # inside the container; the process runtime listens on the published one
    publish: Endpoint  # host address and port on the runtime's host
    limits: Limits
    mount_path: str
    data_subdir: str
    initialised_file: str
    argv: tuple[str, ...]
    entrypoint: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    secret_files: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    files: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    user: str = ""
    tmpfs: Mapping[str, str] = field(default_factory=dict)
    shm_bytes: int = 64 * 1024 * 1024
    stop_signal: str = "SIGTERM"
    labels: Mapping[str, str] = field(default_factory=dict)  # io.novastack.project; ids only
    process: ProcessProgram | None = None
    completed_file: str = ""
    burst: bool = False  # initialising: CPU is not limited until `update`
    isolated: bool = (
        False  # answers who calls it, and reaches nobody in other networks, where the runtime can (ISOLATED)
    )
    # The server refuses data that another one has open, also one in another container, before it changes anything: then
    # an image without `flock` will do (rule 10).
    locks_itself: bool = False


@dataclass(frozen=True, slots=True)
class Tls:
    """What a server speaks TLS with. `pem`: its certificate and private key in one file, so that the two are never apart.
    `ca_pem`: the certificate of who signed it. `required`: plain connections are refused."""

    pem: bytes = field(repr=False)
    required: bool = False
    ca_pem: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class ServerRequest:
    """What the control plane asks an engine to turn into a `ServerSpec`."""

    handle: Handle
    version: str
    image: str
    publish: Endpoint
    limits: Limits
    max_connections: int
    admin: Credentials  # the one-time bootstrap login
    labels: Mapping[str, str] = field(default_factory=dict)
    burst: bool = False
    tls: Tls | None = None  # none: the server speaks no TLS
    isolated: bool = False  # a throw-away server: what a tenant's code in it tries to reach does not answer
    pool: bool = False  # tenants who don't know each other share it: what one could see or take of others is closed


@dataclass(frozen=True, slots=True)
class ImageRef:
    """An image chosen once at provisioning (rule 12): `name` as asked for, `digest` as found (empty for processes)."""

    name: str
    digest: str = ""
