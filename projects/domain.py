"""Plain values that engines, runtimes and operations exchange. No Django, no Docker.

Units are in the names: `_bytes`, `_seconds`; CPU is in cores. Secrets never take part in `repr`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from enum import StrEnum
from typing import IO

CA_FILE = "novastack-ca.pem"  # what the downloaded certificate of the CA is called in texts and snippets


PART_SUFFIX = "_part"  # likewise of what puts parts of a backup beside a live database
TOOL_SUFFIX = "_copy"  # of the login of tools; no user can have a name that begins with `nvs_`


class Capability(StrEnum):
    """What an engine can do; callers ask for these, never for an engine's name."""

    POOL = "pool"  # several tenants can share a server without reaching each other
    BLANKS = "blanks"  # a place for a tenant can be made ahead, since making it takes long, and be given a name later
    UPGRADE = "upgrade"
    DUAL_PASSWORD = "dual_password"  # noqa: S105 - one login can have an old and a new password for a while
    RENAME_DATABASE = "rename_database"
    WRITE_FENCE = "write_fence"  # a tenant's writing can be stopped: what makes a storage limit hold
    END_SESSIONS = "end_sessions"  # open sessions of a login can be ended without a restart
    CONNECTION_LIMIT = "connection_limit"  # a login has at most so many connections
    TLS = "tls"  # servers speak TLS with the certificate that a request brings
    TLS_OPTIONAL = (
        "tls_optional"  # they take plain connections beside it, unless told not to; else it is one or the other
    )
    TLS_RELOAD = "tls_reload"  # a running server takes a new certificate; else a start does
    COPY = "copy"  # dumped and restored by tools, and two copies can be compared: what moves (and backups) need


class RuntimeFeature(StrEnum):
    """What a runtime can promise; shown to operators."""

    LOOPBACK_PORTS = "loopback_ports"
    HARDENED = "hardened"
    MEMORY_LIMIT = "memory_limit"
    CPU_LIMIT = "cpu_limit"
    TRUST_DOMAINS = "trust_domains"
    TOOLS_BESIDE = "tools_beside"  # a tool can run beside any server, wherever in the runtime that one runs
    ISOLATED = "isolated"  # a server can be kept from reaching other networks than its machine's own


class DataPolicy(StrEnum):
    CREATE = "create"  # provisioning's init step only: new data, refuses what already exists
    MUST_EXIST = "must_exist"  # everybody else: the server's own data or `DataMissing`


class ServerState(StrEnum):
    """Observed state of a server. ABSENT is a value; UNREACHABLE says that nobody knows."""

    UNKNOWN = "unknown"
    STARTING = "starting"
    RUNNING = "running"
    STOPPED = "stopped"
    ABSENT = "absent"
    UNREACHABLE = "unreachable"


class NovaStackRuntimeError(Exception):
    """Base of what drivers raise. `code` is stable; the text is fit for users and carries no secret."""

    code = "runtime_error"
    retryable = True


class RuntimeUnreachable(NovaStackRuntimeError):
    """The runtime does not answer. Uses up no attempt (rule 4)."""

    code = "runtime_unavailable"


class ImageMissing(NovaStackRuntimeError):
    code = "image_missing"


class PortTaken(NovaStackRuntimeError):
    """The published port belongs to somebody else: try another one."""

    code = "port_taken"


class DataExists(NovaStackRuntimeError):
    """CREATE met data that was there before (rule 9)."""

    code = "data_exists"
    retryable = False


class DataMissing(NovaStackRuntimeError):
    """MUST_EXIST met no data, or data of another server or incarnation (rule 9)."""

    code = "data_missing"
    retryable = False


class DataInUse(NovaStackRuntimeError):
    """Another server process holds the data's lock (rule 10)."""

    code = "data_in_use"


class StaleHandle(NovaStackRuntimeError):
    """The thing under this name is not the one that was recorded (rule 3)."""

    code = "stale_handle"
    retryable = False


class CapacityExhausted(NovaStackRuntimeError):
    """Disk, address pool or memory of the host is used up."""

    code = "capacity_exhausted"


class NoNode(NovaStackRuntimeError):
    """No machine of the runtime may take this server: none has the wanted label, or none of those is ready."""

    code = "no_node"


class AddressRefused(NovaStackRuntimeError):
    """The runtime can't publish on that address only; it would open the port to others."""

    code = "address_refused"
    retryable = False


class NotReachableHere(NovaStackRuntimeError):
    """What was asked needs the machine's own engine, and that one is not among those this region names."""

    code = "node_not_reachable"
    retryable = False


class LimitTooSmall(NovaStackRuntimeError):
    """The server uses more than that; its limits are as they were."""

    code = "limit_too_small"
    retryable = False


class EngineError(Exception):
    """An admin statement failed. `code` is stable; the text carries no secret."""

    code = "engine_error"
    retryable = True


class PartNeedsMore(EngineError):
    """What was chosen of a database can't be without something that was not (`Engine.set_apart`)."""

    code = "dependencies_missing"
    retryable = False


class LoginRefused(EngineError):
    """The server answered and refused these credentials."""

    code = "login_refused"
    retryable = False


class ServerNotReady(EngineError):
    """The server doesn't answer yet, or not any more."""

    code = "server_not_ready"


class TlsNotTrusted(EngineError):
    """What answers does not show the certificate that this install made for the server, or speaks no TLS at all."""

    code = "tls_not_trusted"


class ServerBusy(EngineError):
    """The server answered: it is up, and has no connection left for us."""

    code = "server_busy"


class SourceChanged(EngineError):
    """Somebody held or changed tables just when a dump began: the next one may do."""

    code = "source_changed"


@dataclass(frozen=True, slots=True)
class Bootstrapped:
    """What became of the tables that a new database begins with."""

    version: str  # that the database has now
    created: tuple[str, ...]  # this time
    kept: tuple[str, ...]  # something of the tenant's own has that name: nothing was done to it


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An address of a server: what a client, or a worker, connects to.

    With `ca_pem` (a certificate, PEM) every session of ours is encrypted, and refuses a server whose certificate is not
    of that CA or not for `tls_name` (empty: `host`). Without it a session takes what it gets.
    """

    host: str
    port: int
    tls_name: str = ""
    ca_pem: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Credentials:
    username: str
    password: str = field(repr=False)
    database: str = ""


@dataclass(frozen=True, slots=True)
class Command:
    """Data; argv never holds a secret. `{secret:<name>}` in argv and env is the path of that secret file. `programs`: what
    a shell in argv runs and that need not come with the server; where one is missing it ends with `TOOLS_MISSING`."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    secret_files: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    programs: tuple[str, ...] = ()


TOOLS_MISSING = 69  # exit code of a tool whose program is not there (`sysexits.h`: service unavailable)


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


@dataclass(frozen=True, slots=True)
class Observation:
    """What a runtime saw of one server. `detail` is a reason for people ("killed: out of memory")."""

    state: ServerState
    ref: str = ""
    started_at: datetime | None = None
    exit_code: int | None = None
    oom_killed: bool = False
    detail: str = ""
    spec_hash: str = ""


@dataclass(frozen=True, slots=True)
class Description:
    """What one server is made of, as found in its runtime. None where the runtime can't tell; a limit of 0 is none."""

    ref: str
    running: bool
    publish: Endpoint | None = None  # where it is published; of one that runs: where it really is
    memory_bytes: int | None = None
    cpus: float | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Resource use of one server; None where the runtime can't tell. 100 percent is one full core."""

    cpu_percent: float | None = None
    memory_bytes: int | None = None
    memory_limit_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class RuntimeEndpoint:
    """How a region's engine is reached: `url` is empty (this machine, as the settings say), `unix:///path`,
    `tcp://host:port` or `ssh://user@host[:port][/path]`. PEM texts: the CA of the engine's certificate, our client
    certificate and its key; for SSH the private key, and the lines of the host's keys. `plain`: TCP without TLS was
    decided by the deployment (a proxy on an internal network)."""

    url: str = ""
    ca: str = ""
    certificate: str = ""
    key: str = field(default="", repr=False)
    host_keys: str = ""
    plain: bool = False


@dataclass(frozen=True, slots=True)
class RuntimeFacts:
    """What a runtime says of itself. `identity`: the same for two ways to one engine; empty if it has none. `problems`:
    what will not work as it is, for operators."""

    version: str = ""
    identity: str = ""
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LogPart:
    """Whole lines of a server's log, oldest first, without newlines. `cursor` goes on after the last of them: give it
    back unread. `gap`: lines between the cursor that was given and these are missing. `running`: the server runs, so
    more may come."""

    lines: tuple[bytes, ...] = ()
    cursor: str = ""
    gap: bool = False
    running: bool = False


@dataclass(frozen=True, slots=True)
class Counters:
    """What an engine counts since it began to, `uptime_seconds` ago: two readings make a rate. None where it can't tell.

    `cache_hits` were found in the engine's own cache, `cache_misses` not. `server_wide`: of all databases of the server.
    NovaStack's own looks are in them.
    """

    transactions: int | None = None
    queries: int | None = None
    cache_hits: int | None = None
    cache_misses: int | None = None
    uptime_seconds: float | None = None
    server_wide: bool = False


@dataclass(frozen=True, slots=True)
class TableCount:
    """One table (or collection). Rows and bytes (with its indexes) are the engine's own estimates; None: it can't tell."""

    name: str
    rows: int | None
    size_bytes: int | None


@dataclass(frozen=True, slots=True)
class TableCounts:
    """The largest tables first, as far as asked for; `total` is how many there are."""

    tables: tuple[TableCount, ...]
    total: int


@dataclass(frozen=True, slots=True)
class ServerStats:
    """What the engine itself says: sizes in bytes, connections as counts; None where it can't tell or has no limit."""

    size_bytes: int
    connections: int | None
    connections_limit: int | None
    version: str = ""
    fenced: bool = False  # `EngineAdmin.fence_writers` holds for new sessions
    counters: Counters | None = None


@dataclass(frozen=True, slots=True)
class ExitResult:
    exit_code: int
    oom_killed: bool = False


@dataclass(frozen=True, slots=True)
class TableContent:
    """Rows of one table and a hash over their values that does not depend on their order."""

    rows: int
    digest: str


# The digest of a table whose rows the server removes by itself when their time has come: it is not compared.
EXPIRES = "expires"
# Facts of these kinds are definitions as text, told as two hashes: of the text, and of what a restore can't respell of it.
TEXT = "text of "
TEXTS = ("texts", "compared")  # the fact that names the kinds of them that are told; older fingerprints tell none
EXTENSION_VERSION = "version of extension"


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What a database holds, so told that equal databases give equal fingerprints and others don't: every table's rows,
    and everything else by name and state (columns, indexes, constraints, sequences' values, routines, triggers, views,
    rights, definitions …). `facts`: (kind, name) → state."""

    tables: Mapping[str, TableContent]
    facts: Mapping[tuple[str, str], str]

    @property
    def rows(self) -> int:
        return sum(table.rows for table in self.tables.values())

    def differences(self, copy: Fingerprint) -> list[str]:
        """In what `copy` is not the same, for people, tables first. It names things, and shows no value of a row."""
        found = []
        for name in sorted(self.tables.keys() | copy.tables.keys()):
            mine, theirs = self.tables.get(name), copy.tables.get(name)
            if mine is None or theirs is None:
                found.append(f"table {name} is {'missing' if theirs is None else 'there only in the copy'}")
            elif self._untold(copy, name):
                continue
            elif mine.rows != theirs.rows:
                found.append(f"table {name} has {theirs.rows} rows instead of {mine.rows}")
            elif mine.digest != theirs.digest:
                found.append(f"table {name} has other values")
        for kind, name, state, other in self._facts_beside(copy):
            if state is None or other is None:
                found.append(f"{kind} {name} is {'missing' if other is None else 'there only in the copy'}")
            elif state != other and not _respelled(kind, state, other):
                found.append(f"{kind} {name} differs")
        return found

    def remarks(self, copy: Fingerprint) -> list[str]:
        """In what `copy` is not the same without being wrong, and what could not be compared; for people."""
        found = []
        if (mine := self._texts) != (theirs := copy._texts):
            untold = sorted(mine ^ theirs)
            found.append(f"Not compared, since another version of NovaStack took it: the text of {', '.join(untold)}.")
        if gone := sorted(name for name in self.tables.keys() & copy.tables.keys() if self._untold(copy, name)):
            more = f" and {len(gone) - 5} more" if len(gone) > 5 else ""
            found.append(
                "Not compared, since the server removes their documents by itself when their time has come:"
                f" {', '.join(gone[:5])}{more}."
            )
        versions = {name: v for (kind, name), v in copy.facts.items() if kind == EXTENSION_VERSION}
        for (kind, name), version in sorted(self.facts.items()):
            if kind == EXTENSION_VERSION and versions.get(name, version) != version:
                found.append(
                    f"Extension {name} is {versions[name]} in the copy, and was {version}: its own default there."
                )
        respelled = [
            f"{kind.removeprefix(TEXT)} {name}" for kind, name, state, other in self._facts_beside(copy)
            if state is not None and other is not None and _respelled(kind, state, other)
        ]  # fmt: skip
        if respelled:
            more = f" and {len(respelled) - 5} more" if len(respelled) > 5 else ""
            found.append(
                "After a restore the server spells otherwise, with all the same words but for casts, parentheses and"
                f" aliases: {', '.join(respelled[:5])}{more}."
            )
        return found

    def _untold(self, copy: Fingerprint, name: str) -> bool:
        return EXPIRES in (self.tables[name].digest, copy.tables[name].digest)

    @property
    def _texts(self) -> set[str]:
        return {kind for kind in self.facts.get(TEXTS, "").split(",") if kind}

    def _facts_beside(self, copy: Fingerprint) -> Iterator[tuple[str, str, str | None, str | None]]:
        """(kind, name, mine, the copy's) of all that both would tell if they had it."""
        told = {TEXT + kind for kind in self._texts & copy._texts}
        for kind, name in sorted(self.facts.keys() | copy.facts.keys()):
            if kind in (EXTENSION_VERSION, TEXTS[0]) or (kind.startswith(TEXT) and kind not in told):
                continue
            yield kind, name, self.facts.get((kind, name)), copy.facts.get((kind, name))


def _respelled(kind: str, state: str, other: str) -> bool:
    """The same definition but for casts and parentheses."""
    return kind.startswith(TEXT) and state != other and state.partition(" ")[2] == other.partition(" ")[2] != ""


@dataclass(frozen=True, slots=True)
class Selection:
    """Parts of a database: tables by the names that fingerprints give them, or whole schemas of products that have them."""

    tables: tuple[str, ...] = ()
    schemas: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SetApart:
    """What was chosen of a copy, as it stands there now: by itself. `tables`: its tables with rows, name before → now.
    `places`: what it takes in a target, schemas or tables. `needs`: what it uses of the rest, by (kind, name): the target
    must have it. `notes`: what was left out, for people."""

    tables: Mapping[str, str]
    places: tuple[str, ...]
    needs: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    size_bytes: int


@dataclass(slots=True)
class ToolHandle:
    """A running throw-away tool: streams as given, `poll`, `wait(timeout_seconds)`, `kill` (idempotent, removes it)."""

    name: str
    stdin: IO[bytes] | None
    stdout: IO[bytes] | None
    stderr: IO[bytes] | None
    poll: Callable[[], ExitResult | None]
    wait: Callable[[float], ExitResult]
    kill: Callable[[], None]


class Offer(StrEnum):
    """For how long new projects may have a version."""

    UNTIL_END = "until_end"  # of life
    ALWAYS = "always"
    NEVER = "never"


@dataclass(frozen=True, slots=True)
class EngineVersion:
    """One line of an engine's catalogue. `end_of_life`: the last day on which the vendor mends anything; None if nobody
    names one. `image` and `digest` (`sha256:…`) are empty where the usual order decides."""

    version: str
    end_of_life: date | None = None
    default: bool = False
    deprecated: bool = False
    image: str = ""
    digest: str = ""
    offer: Offer = Offer.UNTIL_END

    def ended(self, today: date) -> bool:
        return self.end_of_life is not None and self.end_of_life < today

    def offered(self, today: date) -> bool:
        """Whether new projects may have it."""
        return self.offer is Offer.ALWAYS or (self.offer is Offer.UNTIL_END and not self.ended(today))

    @property
    def sort_key(self) -> tuple[int, ...]:
        return tuple(int(part) for part in self.version.split("."))


@dataclass(frozen=True, slots=True)
class TenantNames:
    """The roles and the database of one project on one server (rule 17). All already validated identifiers."""

    database: str
    owner: str  # platform role without login that owns the database
    group: str  # tenant group role without login: owns `public` and all objects
    login: str  # the tenant's login, a member of the group
    control: str  # platform login for our own sessions (rule 18)
    connection_limit: int = 20

    @property
    def tool(self) -> str:
        """The login of tools that copy this database; there only meanwhile (`EngineAdmin.admit_tool`)."""
        return f"{self.control.removesuffix('_control')[:26]}{TOOL_SUFFIX}"

    @property
    def part(self) -> str:
        """Another such login, so that a backup may be taken meanwhile: of what puts parts of a backup beside what lives."""
        return f"{self.control.removesuffix('_control')[:26]}{PART_SUFFIX}"


@dataclass(frozen=True, slots=True)
class ConnectionInfo:
    """What a client needs; the password is kept out of repr."""

    engine: str
    host: str
    port: int
    database: str
    username: str
    password: str = field(repr=False)
    tls: bool = False
    tls_required: bool = False  # plain connections are refused
