"""What a runtime promises, and what it says of itself and of its servers."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from projects.domain.access import Endpoint


class RuntimeFeature(StrEnum):
    """What a runtime can promise; shown to operators."""

    LOOPBACK_PORTS = "loopback_ports"
    HARDENED = "hardened"
    MEMORY_LIMIT = "memory_limit"
    CPU_LIMIT = "cpu_limit"
    TRUST_DOMAINS = "trust_domains"
    TOOLS_BESIDE = "tools_beside"  # a tool can run beside any server, wherever in the runtime that one runs
    ISOLATED = "isolated"  # a server can be kept from reaching other networks than its machine's own


class ServerState(StrEnum):
    """Observed state of a server. ABSENT is a value; UNREACHABLE says that nobody knows."""

    UNKNOWN = "unknown"
    STARTING = "starting"
    RUNNING = "running"
    STOPPED = "stopped"
    ABSENT = "absent"
    UNREACHABLE = "unreachable"


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
