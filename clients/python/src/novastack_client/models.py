"""What the API answers, as frozen dataclasses. Ids and names are text, times are aware datetimes (UTC), sizes are bytes.

Fields that a newer server sends and this release does not know are in `extra`. States are text, not enumerations: a new
one is no error. Secrets are in no `repr`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

ENDED = frozenset({"succeeded", "failed", "cancelled"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """What all of them have."""

    extra: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)


def _secret() -> Any:
    return field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits(Answered):
    """None: on a pool, where memory and cores are everybody's."""

    memory_bytes: int | None = None
    cpus: float | None = None
    storage_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationBrief(Answered):
    id: str
    kind: str
    state: str
    url: str = ""


@dataclass(frozen=True, slots=True)
class OperationError(Answered):
    code: str
    detail: str
    retryable: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Step(Answered):
    name: str
    title: str
    state: str
    attempt: int = 0
    started_at: datetime | None = None
    finished_at: datetime | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation(Answered):
    """`state`: queued, running, succeeded, failed, cancelled."""

    id: str
    kind: str
    state: str
    title: str = ""
    project: str | None = None
    project_name: str = ""
    steps: tuple[Step, ...] = ()
    error: OperationError | None = None
    result: Mapping[str, Any] = field(default_factory=dict)
    attempt: int = 1
    next_attempt_at: datetime | None = None
    cancel_requested_at: datetime | None = None
    cancellable: bool = False
    created_by: str = ""
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    url: str = ""

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    @property
    def succeeded(self) -> bool:
        return self.state == "succeeded"


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteFence(Answered):
    """Why sessions are read-only by default."""

    reason: str
    since: datetime | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey(Answered):
    """A key of a project for its own services. `key`: its value, only in the answer that made it."""

    id: str
    name: str
    prefix: str
    start: str
    scopes: tuple[str, ...]
    state: str
    created_at: datetime
    expires_at: datetime | None = None
    last_used_at: datetime | None = None
    revoked_at: datetime | None = None
    created_by: str | None = None
    key: str | None = _secret()
    already_shown: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyCheck(Answered):
    """Whether a key works, and why not (`code`)."""

    valid: bool
    code: str | None = None
    key: str | None = None
    project: str | None = None
    organization: str | None = None
    scopes: tuple[str, ...] = ()
    expires_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Project(Answered):
    """`operation`: what is at work on it. `api_keys`: with their values, only in the answer that made the project."""

    id: str
    name: str
    slug: str
    organization: str
    engine: str
    version: str
    region: str
    plan: str
    placement: str
    status: str
    desired_status: str
    limits: Limits
    created_at: datetime
    updated_at: datetime
    description: str = ""
    status_detail: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    exposure: str = ""
    tls_required: bool = False
    deletion_protection: bool = False
    bootstrap_schema: bool = False
    size_bytes: int | None = None
    write_fence: WriteFence | None = None
    operation: OperationBrief | None = None
    created_by: str | None = None
    recycle_until: datetime | None = None
    api_keys: tuple[ApiKey, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Server(Answered):
    """What was seen of a project's server; None where nothing was, or where it is not of now."""

    runtime: str = ""
    name: str = ""
    image: str = ""
    version: str = ""
    started_at: datetime | None = None
    measured_at: datetime | None = None
    cpu_percent: float | None = None
    memory_bytes: int | None = None
    memory_limit_bytes: int | None = None
    connections: int | None = None
    connections_limit: int | None = None
    size_bytes: int | None = None
    restart_pending: bool = False
    tls: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectStatus(Answered):
    status: str
    desired_status: str
    health: str
    observed_at: datetime | None = None
    detail: str = ""
    write_fence: WriteFence | None = None
    operation: OperationBrief | None = None
    server: Server | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection(Answered):
    """How to connect. What shows the password is None without the scope `connect`, and never in `repr`."""

    host: str
    port: int
    database: str
    username: str
    tls: bool = False
    ca_url: str | None = None
    password: str | None = _secret()
    uri: str | None = _secret()
    jdbc_url: str | None = _secret()
    env: Mapping[str, str] | None = _secret()
    snippets: Mapping[str, str] | None = _secret()


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation(Answered):
    """An instance's database. `connection` once it is `ready`; until then `operation`, and `previous_error` if an attempt
    has failed before."""

    status: str
    instance_id: str
    project: Project
    connection: Connection | None = None
    operation: OperationBrief | None = None
    retry_after_seconds: int | None = None
    previous_error: OperationError | None = None

    @property
    def ready(self) -> bool:
        return self.connection is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolRoom(Answered):
    """Pools of one engine, version, region and plan (empty: any). `room`: a database finds a place at once."""

    engine: str
    version: str
    region: str
    plan: str
    pools: int
    preparing: int
    databases: int
    max_databases: int
    room: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStatus(Answered):
    """`healthy` or `degraded`, and where there is room."""

    status: str
    pools: tuple[PoolRoom, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Service(Answered):
    """A service around a project. `config` is None without the right to connect, and never in `repr`."""

    service: str
    status: str
    reason: str = ""
    service_id: str = ""
    endpoint: str = ""
    config: Mapping[str, Any] | None = _secret()
    registered_at: datetime | None = None
    available: bool = False
    actions: tuple[str, ...] = ()
    operation: OperationBrief | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolEndpoint(Answered):
    host: str
    port: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolLimits(Answered):
    """`connections_per_database`: guaranteed, and the most of one login."""

    memory_bytes: int
    cpus: float
    max_connections: int
    connections_per_database: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolUsage(Answered):
    cpu_percent: float | None = None
    memory_bytes: int | None = None
    read_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolOperation(Answered):
    """What works on a pool; ask the pool again for how far it is."""

    id: str
    kind: str
    state: str
    url: str = ""
    steps: tuple[Step, ...] = ()
    error: OperationError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolMember(Answered):
    """One of the databases on a pool."""

    database: str
    slot: str
    project: str
    project_slug: str = ""
    organization: str = ""
    status: str = ""
    size_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool(Answered):
    """A shared server. `members`: only of `get_pool`."""

    id: str
    name: str
    engine: str
    version: str
    region: str
    status: str
    health: str
    databases: int
    max_databases: int
    created_at: datetime
    plan: str | None = None
    placement: str = "pool"
    blanks: int = 0
    health_detail: str = ""
    status_detail: str = ""
    endpoint: PoolEndpoint | None = None
    limits: PoolLimits | None = None
    usage: PoolUsage | None = None
    size_bytes: int | None = None
    checked_at: datetime | None = None
    ready_at: datetime | None = None
    draining_at: datetime | None = None
    operation: PoolOperation | None = None
    members: tuple[PoolMember, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveProblem(Answered):
    code: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MovePreview(Answered):
    """What a move or a change of plan will do. `kind`: move, change_plan (at the same place), none. `problems`: what stands
    in its way."""

    kind: str
    placement: str
    region: str
    plan: str
    limits: Limits | None = None
    connection_limit: int | None = None
    size_bytes: int | None = None
    expected_downtime_seconds: float = 0
    address_changes: bool = False
    names_change: bool = False
    quotas: Mapping[str, int] = field(default_factory=dict)
    kept_hours: float = 0
    problems: tuple[MoveProblem, ...] = ()
