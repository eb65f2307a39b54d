"""The interface of an engine: what differs by database product. An engine says what; a runtime does it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar

from projects.domain import (
    Bootstrapped,
    Capability,
    Command,
    ConnectionInfo,
    Credentials,
    Endpoint,
    EngineError,
    Fingerprint,
    Selection,
    ServerRequest,
    ServerSpec,
    SetApart,
    TableContent,
    TenantNames,
)
from projects.engines.admin import EngineAdmin
from projects.engines.foreign import Left
from projects.engines.moments import Moment, Restoring
from projects.engines.sql_parts import Title

# What people expect of a database: said in words of the engines that can't.
EXPECTED: Mapping[Capability, str] = {
    Capability.POOL: "Its projects have servers of their own: they can't share one in a pool.",
    Capability.WRITE_FENCE: "Its storage limit is not enforced: nothing can stop its writing but stopping it.",
    Capability.COPY: "Its projects can't be moved to another server, region or pool.",
    Capability.CONNECTION_LIMIT: "The number of connections of a login is not limited.",
    Capability.END_SESSIONS: "Open sessions outlive a changed password: they end with a restart.",
}


class _OnlyFinished(Restoring):
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def finish(
        self, endpoint: Endpoint, credentials: Credentials, names: TenantNames, *, pulse: Callable[[], None]
    ) -> None:
        self._engine.finish_copy(endpoint, credentials, names)


class Engine(ABC):
    name: ClassVar[str]
    title: ClassVar[str]
    short: ClassVar[str]  # two letters for the engine tile
    default_port: ClassVar[int]
    # What this class can drive; which versions there are says the catalogue. `18` and `18.4` are both a version.
    oldest_version: ClassVar[str]
    below_version: ClassVar[str] = ""  # the first one that is another product altogether
    version_parts: ClassVar[tuple[int, int]] = (2, 3)  # how many numbers it has, at least and at most
    capabilities: ClassVar[frozenset[Capability]]
    bootstrap_username: ClassVar[str]
    official_image: ClassVar[str]  # "postgres": official name, tag is the version
    server_program: ClassVar[str]  # what must be on a machine to run it without a container
    client_program: ClassVar[str]  # the command line of the `cli` snippet
    lift_fence_sql: ClassVar[str] = ""  # what a fenced tenant says to write all the same; empty: nothing helps
    shrink_words: ClassVar[str]  # how a fenced tenant frees space
    hard_shrink_words: ClassVar[str] = (
        ""  # the same while its sessions are ended in the middle of writing; empty: they aren't
    )
    dump_format: ClassVar[str] = ""  # what `dump` writes, as people know it
    tool_programs: ClassVar[tuple[str, ...]] = ()  # of `dump` and `restore`, where they need not come with the server
    minimum_memory_bytes: ClassVar[int] = 128 << 20  # below, a server does not start or dies of its first work
    connection_bytes: ClassVar[int] = 1 << 20  # memory that an open connection costs before it does anything
    max_username_length: ClassVar[int] = 63
    lock_ends_sessions: ClassVar[bool] = True  # `lock_tenant` reaches sessions that are open; else only a restart does
    tls_relaxes_at_start: ClassVar[bool] = False  # plain connections are allowed again only by the next start
    resize_words: ClassVar[str]  # what of new limits waits for a restart
    tables_title: ClassVar[str] = "Tables"
    upload_formats: ClassVar[
        tuple[str, ...]
    ] = ()  # dumps that others took and that it takes; none: it takes no uploads
    contents_as_backed_up: ClassVar[bool] = False  # `contents_of` tells a table as manifests do, digest and all
    # A dump names the tenant's roles: those of a copy are called as at the source until it is proven, and renamed then.
    dumps_name_roles: ClassVar[bool] = True
    warnings: ClassVar[tuple[str, ...]] = ()  # what else one must know before choosing it

    @property
    def tls_only(self) -> bool:
        """Its servers speak TLS, or plain, and never both: new ones speak TLS."""
        return Capability.TLS in self.capabilities and Capability.TLS_OPTIONAL not in self.capabilities

    @property
    def limitations(self) -> tuple[str, ...]:
        """What this product can't do, in sentences."""
        lacking = (text for capability, text in EXPECTED.items() if capability not in self.capabilities)
        return (*self.warnings, *lacking)

    @abstractmethod
    def server_spec(self, request: ServerRequest) -> ServerSpec:
        """Image and process argv, env, mount path, resources. Pure: the same request gives the same spec."""

    def spec(self, request: ServerRequest, **own: Any) -> ServerSpec:
        """A spec with what every engine passes on as it was asked; `own` is the rest."""
        return ServerSpec(
            handle=request.handle, engine=self.name, version=request.version, image=request.image, port=self.default_port,
            publish=request.publish, limits=request.limits, labels=request.labels, burst=request.burst,
            isolated=request.isolated, **own,
        )  # fmt: skip

    @abstractmethod
    def admin(
        self, endpoint: Endpoint, credentials: Credentials, *, timeout_seconds: float = 5, statement_seconds: float = 15
    ) -> AbstractContextManager[EngineAdmin]:
        """An administrative session. `credentials.database` empty: the maintenance database. Who answers a login within
        `timeout_seconds` and then no statement within `statement_seconds` (about) is `ServerNotReady`."""

    @abstractmethod
    def probe(self, endpoint: Endpoint, credentials: Credentials, *, timeout_seconds: float = 3) -> None:
        """A real login and one statement (rule 19). Raises `LoginRefused` or `ServerNotReady`."""

    @abstractmethod
    def verify_tenant(self, endpoint: Endpoint, names: TenantNames, password: str) -> str:
        """Log in as the tenant, check encoding and rights, write and roll back. Returns the server's version."""

    @abstractmethod
    def bootstrap(self, endpoint: Endpoint, names: TenantNames, password: str) -> Bootstrapped:
        """As the tenant: make the tables that a new database begins with, or what is missing of them (`bootstrap.py`).
        What the tenant made itself is left alone. Idempotent; raises as `verify_tenant` does."""

    def peer_certificate(self, endpoint: Endpoint, *, timeout_seconds: float = 5) -> bytes:
        """The certificate (DER) that the server shows now; nothing is checked, nobody logs in. `TlsNotTrusted` when it
        speaks no TLS, `ServerNotReady` when nobody answers. Only with `Capability.TLS`."""
        raise NotImplementedError

    def accepts_plain(self, endpoint: Endpoint, credentials: Credentials, *, timeout_seconds: float = 5) -> bool:
        """Whether a login without TLS comes about, seen by trying one that is of no use to anybody. `credentials` are our
        own, for products that need an account for it; they are never sent without TLS. Only with `Capability.TLS`."""
        raise NotImplementedError

    # --- copies (`Capability.COPY`): commands for tools that run beside the server at `place` ----------------------------
    def dump(self, place: Endpoint, credentials: Credentials) -> Command:
        """Writes the whole database `credentials.database` to standard output, as of one moment. `credentials` are those
        of `EngineAdmin.admit_tool`. What it holds besides tables and rows says each engine."""
        raise NotImplementedError

    def moment(
        self, endpoint: Endpoint, place: Endpoint, credentials: Credentials, *, compress: bool = False
    ) -> AbstractContextManager[Moment]:
        """A moment of `credentials.database` for a backup: `endpoint` is for our session, `place` for the tool beside the
        server. `compress`: the tool may compress with zstd itself where its image can (the stream then begins with zstd's
        magic number). `credentials` as in `dump`. Two equal databases have equal contents, also
        when they are read from a restored copy by the same way."""
        raise NotImplementedError

    def restore(self, place: Endpoint, credentials: Credentials) -> Command:
        """Fills an empty database from standard input: frames as `framing` says. It ends with 0 only when all of the dump
        came and was taken, and stops at the first error otherwise. `credentials` are those of `admit_restorer`."""
        raise NotImplementedError

    # --- dumps that others took (`upload_formats`): into a throw-away server only ---------------------------------------
    def recognise(self, head: bytes, version: str) -> str:
        """Which of `upload_formats` a file is that begins so (`foreign.HEAD_BYTES`, or all of it), for a server of that
        version. Raises `foreign.ForeignRefused`, which says what it is instead."""
        raise NotImplementedError

    def script_of(self, pieces: Iterable[bytes], kind: str, left: Left) -> Iterator[bytes]:
        """What the tool of `run_script` is to run: statements and data, none of it a client's own command. `left` counts
        what is left out. Raises `ForeignRefused`, also in the middle."""
        raise NotImplementedError

    def run_script(self, place: Endpoint, credentials: Credentials) -> tuple[Command, bytes]:
        """The tool that takes it from frames, and what goes before it. It ends with 0 only when all was taken, and at the
        first error otherwise. `credentials` are those of `admit_restorer`."""
        raise NotImplementedError

    def place_in_script(self, said: str, kind: str, before: int) -> str:
        """What the tool of `run_script` said of its failure, at the line of the file; `before`: lines that were put before
        it. Only of `plain` the lines are the file's own."""
        return said

    # --- some tables out of a dump of ours ------------------------------------------------------------------------------
    def sql_of(self, pieces: Iterable[bytes], chosen: Selection, title: Title) -> Iterator[bytes]:
        """Some tables of a dump as SQL for the product's own client, with what belongs to them, or schemas with all that is
        in them and can be there without the rest. Reads the dump to its end, in bounded memory (of dumps in SQL: one
        statement of at most `foreign.STATEMENT_BYTES`), and runs nothing. Raises `sql_parts.Gone`, `EngineError`,
        also in the middle."""
        raise NotImplementedError

    def finish_copy(self, endpoint: Endpoint, credentials: Credentials, names: TenantNames) -> None:  # noqa: B027 - PostgreSQL's
        """Within a restored database, as the tool's login: what a restore by somebody else than the owner leaves behind."""

    def memory_for_row(self, row_bytes: int) -> int:
        """What a server needs so that `restore` gets a row of so many bytes (`Moment.row_bytes`) into it; 0: any will do."""
        return 0

    def restoring(self) -> Restoring:
        """For one run of `restore`: who moves the dump lets it hear the pieces, and calls its `finish` for `finish_copy`."""
        return _OnlyFinished(self)

    def fingerprint(
        self, endpoint: Endpoint, credentials: Credentials, *, pulse: Callable[[], None] = lambda: None
    ) -> Fingerprint:
        """Read the whole database, with none of the tenant's code. May take as long as its size says; `pulse` is called
        several times a second and ends it by raising."""
        raise NotImplementedError

    # --- parts of a copy, beside what lives -----------------------------------------------------------------------------
    def set_apart(
        self, endpoint: Endpoint, credentials: Credentials, chosen: Selection, mark: str, owner: str
    ) -> SetApart:
        """In a copy that is thrown away: give what was chosen, with partitions and sequences of its own, names that begin
        with `mark` (schemas) or end with it (tables), and undo what ties it to the rest. Without a mark names stay as they
        are, and all other tables and views go. `owner` is written on it where
        that is possible. `credentials` are those of `admit_restorer`. Not to be repeated on the same copy."""
        raise EngineError("parts of a backup of this product can't be restored yet")

    def places(self, endpoint: Endpoint, credentials: Credentials) -> Mapping[str, str]:
        """Names that are taken of those that `set_apart` would use → whose they are, as far as that is written on them."""
        raise NotImplementedError

    def lacking(self, endpoint: Endpoint, credentials: Credentials, needs: Sequence[tuple[str, str]]) -> list[str]:
        """What of `SetApart.needs` is not there, for people."""
        return []

    def dump_part(self, place: Endpoint, credentials: Credentials, places: Sequence[str]) -> Command:
        """As `dump`, of what was set apart alone; without owners and rights."""
        raise NotImplementedError

    def restore_part(self, place: Endpoint, credentials: Credentials, names: TenantNames) -> Command:
        """As `restore`, beside what is there, as the tenant's own; all of it or, where the product can, nothing."""
        raise NotImplementedError

    def drop_part(self, endpoint: Endpoint, credentials: Credentials, places: Sequence[str], owner: str) -> list[str]:
        """Take what `restore_part` made away again; absent is success. Where it is written whose a place is, only `owner`'s.
        Returns what others have built on it meanwhile, for people: then all of it stays."""
        raise NotImplementedError

    def contents_of(
        self, endpoint: Endpoint, credentials: Credentials, tables: Sequence[str], *, pulse: Callable[[], None]
    ) -> Mapping[str, TableContent]:
        """As in `fingerprint`, of these tables alone; one that is not there is left out."""
        raise NotImplementedError

    def first_cell(
        self, endpoint: Endpoint, credentials: Credentials, query: str, *, timeout_seconds: float = 60
    ) -> str | None:
        """The first cell of what a tenant's own query answers, as text (at most some thousand characters); None: it is NULL,
        or there is no row. As the tenant's login `credentials`, read-only, and ended after that time. What the engine
        refuses is an `EngineError`."""
        raise EngineError("questions can't be asked of this product yet")

    @abstractmethod
    def validate_identifier(self, value: str) -> str:
        """A database or user name as given by a user: returned unchanged, or `ValueError` that says what to do."""

    def fixed_memory_bytes(self, memory_bytes: int) -> int:
        """Of a server that was started for so much memory: what it holds until its next start, whatever its limit."""
        return 0

    def validate_username(self, value: str) -> str:
        """As `validate_identifier`, for a login: some products take shorter ones."""
        if len(value) > self.max_username_length:
            raise ValueError(
                f"Use at most {self.max_username_length} characters: {self.title} takes no longer user name."
            )
        return self.validate_identifier(value)

    @abstractmethod
    def reserved_names(self) -> frozenset[str]:
        """Names that a user can't have for a database or login."""

    @abstractmethod
    def urls(self, info: ConnectionInfo) -> Mapping[str, str]:
        """`uri`, and `jdbc_url` where there is a driver (secrets percent-encoded)."""

    @abstractmethod
    def env(self, info: ConnectionInfo) -> Mapping[str, str]:
        """The product's own environment variables (PGHOST …) and DATABASE_URL."""

    @abstractmethod
    def snippets(self, info: ConnectionInfo) -> Mapping[str, str]:
        """Ready-to-paste snippets: `cli env python django sqlalchemy node prisma go jdbc compose`, those that are true."""
