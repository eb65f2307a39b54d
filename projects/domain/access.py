"""How a server is reached, and as whom."""

from __future__ import annotations

from dataclasses import dataclass, field

CA_FILE = "novastack-ca.pem"  # what the downloaded certificate of the CA is called in texts and snippets
TOOL_SUFFIX = "_copy"  # of the login of tools; no user can have a name that begins with `nvs_`
PART_SUFFIX = "_part"  # likewise of what puts parts of a backup beside a live database


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
