"""A PostgreSQL that exists on paper: the real engine's specs, and sessions against what the memory runtime runs.

What it holds lives and dies with the runtime's volume. It keeps a diary of what was done to it, so that a test can tell
that something happened once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from novastack.common import pki
from projects.domain import (
    Bootstrapped,
    Counters,
    Credentials,
    Endpoint,
    LoginRefused,
    ServerNotReady,
    ServerState,
    ServerStats,
    TableCounts,
    TenantNames,
    TlsNotTrusted,
)
from projects.engines import bootstrap
from projects.engines.admin import EngineAdmin
from projects.engines.postgresql import SECRET, PostgreSQL
from projects.runtimes.memory import MemoryRuntime

_numbers = itertools.count(1)


@dataclass
class PaperData:
    """What is in one volume."""

    volume: object
    passwords: dict[str, str]
    system_identifier: str = field(default_factory=lambda: f"paper-{next(_numbers)}")
    shut: set[str] = field(default_factory=set)
    databases: set[str] = field(default_factory=set)
    blanks: set[str] = field(default_factory=set)
    blank_passwords: dict[str, tuple[str, str]] = field(default_factory=dict)
    plain_blanks: set[str] = field(default_factory=set)  # of `blanks`: without the bootstrap tables
    fenced: set[str] = field(default_factory=set)
    tables: dict[str, list[str]] = field(default_factory=dict)
    rows: dict[str, str] = field(default_factory=dict)
    shown: bytes = b""  # its certificate (DER), as of the last start or reload; empty: no TLS
    plain: bool = True
    started_at: object = None

    def read_files(self, files: dict[str, bytes], *, tls: bool) -> None:
        self.shown = pki.der_of(files["server.pem"].decode()) if tls else b""
        self.plain = not tls or b"reject" not in files["pg_hba.conf"]


class PaperPostgreSQL(PostgreSQL):
    def __init__(self, runtime: MemoryRuntime) -> None:
        self.runtime = runtime
        self.data: dict[str, PaperData] = {}
        self.diary: list[str] = []
        self.refuses_to_answer = False
        self.size_bytes = 8 << 20
        self.counters: Counters | None = None
        self.tables = TableCounts((), 0)
        self.fails: dict[str, list[Exception]] = {}

    def of(self, endpoint: Endpoint) -> PaperData:
        """The data behind the server that listens there; `ServerNotReady` if none does."""
        for name, server in self.runtime.world.servers.items():
            if server.state is ServerState.RUNNING and server.spec.publish.port == endpoint.port:
                volume = self.runtime.world.volumes[name]
                held = self.data.get(name)
                if held is None or held.volume is not volume:
                    admin = server.spec.env["POSTGRES_USER"]
                    held = PaperData(volume, {admin: server.spec.secret_files[SECRET].decode()})
                    self.data[name] = held
                if self.refuses_to_answer:
                    break
                if held.started_at != server.started_at:
                    held.started_at = server.started_at
                    held.read_files(volume.files, tls="ssl=on" in server.spec.argv)
                if endpoint.ca_pem and not self.trusts(endpoint, held.shown):
                    raise TlsNotTrusted("not the certificate of this server")
                return held
        raise ServerNotReady("connection refused")

    def probe(self, endpoint: Endpoint, credentials: Credentials, *, timeout_seconds: float = 3) -> None:
        held = self.of(endpoint)
        right = held.passwords.get(credentials.username)
        if right is None or right != credentials.password or credentials.username in held.shut:
            raise LoginRefused("the server refused this login")

    @staticmethod
    def trusts(endpoint: Endpoint, shown: bytes) -> bool:
        """As a client would: signed by one of the CAs, made for this name."""
        if not shown:
            return False
        certificate = x509.load_der_x509_certificate(shown)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        if endpoint.tls_name not in names.get_values_for_type(x509.DNSName):
            return False
        for authority in x509.load_pem_x509_certificates(endpoint.ca_pem.encode()):
            with contextlib.suppress(InvalidSignature, ValueError):
                certificate.verify_directly_issued_by(authority)
                return True
        return False

    def peer_certificate(self, endpoint: Endpoint, *, timeout_seconds: float = 5) -> bytes:
        held = self.of(dataclasses.replace(endpoint, ca_pem=""))
        if not held.shown:
            raise TlsNotTrusted("the server speaks no TLS")
        return held.shown

    def accepts_plain(
        self, endpoint: Endpoint, credentials: Credentials | None = None, *, timeout_seconds: float = 5
    ) -> bool:
        return self.of(dataclasses.replace(endpoint, ca_pem="")).plain

    def verify_tenant(self, endpoint: Endpoint, names: TenantNames, password: str) -> str:
        self.act("verify_tenant")
        self.probe(endpoint, Credentials(names.login, password, names.database))
        if names.database not in self.of(endpoint).databases:
            raise LoginRefused("the database does not exist")
        return "18.0"

    def bootstrap(self, endpoint: Endpoint, names: TenantNames, password: str) -> Bootstrapped:
        self.act("bootstrap")
        self.probe(endpoint, Credentials(names.login, password, names.database))
        tables = self.of(endpoint).tables.setdefault(names.database, [])
        made = tuple(name for name in bootstrap.TABLES if name not in tables)
        tables += made
        return Bootstrapped(bootstrap.FIRST, made, ())

    @contextlib.contextmanager
    def admin(
        self, endpoint: Endpoint, credentials: Credentials, *, timeout_seconds: float = 5, statement_seconds: float = 15
    ) -> Iterator[EngineAdmin]:
        self.probe(endpoint, credentials)
        yield PaperAdmin(self, self.of(endpoint))

    def act(self, what: str) -> None:
        """Note it, or break as told."""
        if self.fails.get(what):
            raise self.fails[what].pop(0)
        self.diary.append(what)


class PaperAdmin(EngineAdmin):
    def __init__(self, engine: PaperPostgreSQL, held: PaperData) -> None:
        self.engine, self.held = engine, held

    def ping(self) -> None:
        self.engine.act("ping")

    def system_identifier(self) -> str:
        return self.held.system_identifier

    def contents(self) -> list[str]:
        self.engine.act("contents")
        return sorted(self.held.databases)

    def database_sizes(self) -> dict[str, int]:
        self.engine.act("database_sizes")
        return dict.fromkeys(self.databases(), self.engine.size_bytes)

    def locked_logins(self) -> set[str]:
        return set(self.held.shut)

    def harden(self) -> None:
        self.engine.act("harden")

    def set_password(self, username: str, password: str, *, keep_old: bool = False) -> None:
        self.engine.act(f"set_password {username}")
        self.held.passwords[username] = password

    def databases(self) -> list[str]:
        return sorted(self.held.databases | self.held.blanks)

    def make_blank(
        self, name: str, *, login_password: str = "", control_password: str = "", tables: bool = True
    ) -> None:
        self.engine.act("make_blank")
        self.held.blanks.add(name)
        if not tables:
            self.held.plain_blanks.add(name)
        self.held.blank_passwords[name] = (login_password, control_password)

    def drop_blank(self, name: str) -> None:
        self.engine.act("drop_blank")
        self.held.blanks.discard(name)

    def blanks(self) -> list[str]:
        return sorted(self.held.blanks)

    def create_tenant(self, names: TenantNames, *, login_password: str, control_password: str, blank: str = "") -> None:
        self.engine.act("create_tenant")
        self.held.blanks.discard(blank)
        self.held.passwords |= {names.login: login_password, names.control: control_password}
        self.held.databases.add(names.database)

    def place_tenant(
        self, names: TenantNames, *, login_password: str, control_password: str, blank: str = "", tables: bool = False
    ) -> Bootstrapped | None:
        """A blank brings the tables."""
        brought = blank in self.held.blanks - self.held.plain_blanks and tables
        self.create_tenant(names, login_password=login_password, control_password=control_password, blank=blank)
        return Bootstrapped(version="novastack-0001", created=("settings",), kept=()) if brought else None

    def drop_tenant(self, names: TenantNames) -> None:
        self.held.databases.discard(names.database)

    def lock_tenant(self, names: TenantNames, *, locked: bool) -> None:
        self.engine.act("lock" if locked else "unlock")
        (self.held.shut.add if locked else self.held.shut.discard)(names.login)

    def end_sessions(self, username: str) -> int:
        return 0

    def fence_writers(self, names: TenantNames, *, fenced: bool) -> int:
        self.engine.act("fence" if fenced else "lift")
        (self.held.fenced.add if fenced else self.held.fenced.discard)(names.database)
        return 0

    def hold_fence(self, names: TenantNames, *, hard: bool) -> int:
        self.engine.act("hold hard" if hard else "hold")
        return 0

    def reload_tls(self, *, required: bool) -> None:
        self.engine.act("reload_tls")
        self.held.read_files(self.held.volume.files, tls=bool(self.held.shown))  # type: ignore[attr-defined]

    def stats(self, database: str) -> ServerStats:
        self.engine.act("stats")
        return ServerStats(
            self.engine.size_bytes, 1, 20, "18.0", database in self.held.fenced, counters=self.engine.counters
        )

    def table_counts(self, database: str, *, limit: int = 200) -> TableCounts:
        self.engine.act("table_counts")
        return self.engine.tables
