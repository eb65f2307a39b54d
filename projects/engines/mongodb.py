"""MongoDB 7 and 8: the official image's contract, and how a server and a tenant's place on it are made.

MongoDB's own server was not to be had where this was written: this class follows the image's and the product's
documentation, and was never run against them. What it shares with FerretDB (sessions, names, snippets) was.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import ClassVar

from projects.domain import (
    Bootstrapped,
    Capability,
    Command,
    ConnectionInfo,
    Credentials,
    Endpoint,
    EngineError,
    Fingerprint,
    ServerRequest,
    ServerSpec,
    TenantNames,
    Tls,
)
from projects.engines import (
    mongodb_bootstrap,
    mongodb_copy,
    mongodb_moment,
    mongodb_names,
    mongodb_reading,
    mongodb_snippets,
    mongodb_tls,
    trust,
)
from projects.engines.admin import EngineAdmin
from projects.engines.base import Engine
from projects.engines.moments import Moment
from projects.engines.mongodb_admin import PLATFORM, MongoDBAdmin, tenant_roles
from projects.engines.mongodb_session import Session, connect

MIB = 1024**2
SECRET = "bootstrap"  # noqa: S105 - the name of a file
USERNAME = "username"
CONFIG = "mongod.conf"
MOUNT = "/data/db"
DATA = "data"  # the server's own files; the volume's root holds ours
RESERVED_CONNECTIONS = 6
_FOLDER = 'mkdir -p "$0" && exec docker-entrypoint.sh "$@"'


class MongoDB(Engine):
    name: ClassVar[str] = "mongodb"
    title: ClassVar[str] = "MongoDB"
    short: ClassVar[str] = "MO"
    default_port: ClassVar[int] = 27017
    oldest_version: ClassVar[str] = "7"
    version_parts: ClassVar[tuple[int, int]] = (1, 3)
    capabilities: ClassVar[frozenset[Capability]] = frozenset(
        {
            Capability.POOL, Capability.WRITE_FENCE, Capability.TLS, Capability.TLS_OPTIONAL, Capability.TLS_RELOAD,
            Capability.COPY,
        }
    )  # fmt: skip
    tls_relaxes_at_start: ClassVar[bool] = True  # `tlsMode` of a running server can only become stricter
    bootstrap_username: ClassVar[str] = "novastack"
    official_image: ClassVar[str] = "mongo"
    server_program: ClassVar[str] = "mongod"
    client_program: ClassVar[str] = "mongosh"
    resize_words: ClassVar[str] = "Its cache changes at the next restart."
    tables_title: ClassVar[str] = "Collections"
    shrink_words: ClassVar[str] = "drop, or deleteMany followed by compact"
    minimum_memory_bytes: ClassVar[int] = 512 << 20
    admin_class: ClassVar[type[MongoDBAdmin]] = MongoDBAdmin
    dump_format: ClassVar[str] = "mongodump archive"
    dump_program: ClassVar[str] = mongodb_copy.DUMP
    dumps_name_roles: ClassVar[bool] = False
    trims_capped: ClassVar[bool] = (
        False  # capped collections lose their oldest documents some time after a write, not by it
    )
    expires: ClassVar[bool] = True  # documents with a time to live go by themselves

    def server_spec(self, request: ServerRequest) -> ServerSpec:
        data = f"{MOUNT}/{DATA}"
        cache = _cache_mib(request.limits.memory_bytes)
        return self.spec(
            request,
            mount_path=MOUNT,
            data_subdir=DATA,
            initialised_file="WiredTiger",
            # A folder for each database: that of ours appears with `harden`, after the image's entrypoint did its part.
            completed_file=PLATFORM,
            entrypoint=("sh", "-c", _FOLDER, data),
            argv=(
                "mongod", "--dbpath", data, "--directoryperdb", "--bind_ip_all", "--auth", "--wiredTigerCacheSizeGB",
                f"{cache / 1024:.2f}", "--maxConns", str(request.max_connections + RESERVED_CONNECTIONS),
                "--setParameter", "diagnosticDataCollectionEnabled=false",
                *(("--noscripting",) if request.pool else ()),  # $where and mapReduce: code of a tenant in the server
                *(("--config", f"{MOUNT}/.novastack/files/{CONFIG}") if request.tls else ()),
            ),
            # The name comes from a file too: once both are emptied the entrypoint asks for neither.
            env={
                "MONGO_INITDB_ROOT_USERNAME_FILE": f"{MOUNT}/.novastack/{USERNAME}",
                "MONGO_INITDB_ROOT_PASSWORD_FILE": f"{MOUNT}/.novastack/{SECRET}",
            },
            secret_files={USERNAME: request.admin.username.encode(), SECRET: request.admin.password.encode()},
            files=_files(request.tls) if request.tls else {},
            user="mongodb",
            tmpfs={"/tmp": "mode=1777,size=64m"},  # noqa: S108 - the container's
        )  # fmt: skip

    def fixed_memory_bytes(self, memory_bytes: int) -> int:
        return _cache_mib(memory_bytes) * MIB

    @contextlib.contextmanager
    def admin(
        self, endpoint: Endpoint, credentials: Credentials, *, timeout_seconds: float = 5, statement_seconds: float = 15
    ) -> Iterator[EngineAdmin]:
        with connect(
            endpoint, credentials, timeout_seconds=timeout_seconds, statement_seconds=statement_seconds
        ) as session:
            yield self.admin_class(session)

    def probe(self, endpoint: Endpoint, credentials: Credentials, *, timeout_seconds: float = 3) -> None:
        with connect(endpoint, credentials, timeout_seconds=timeout_seconds):
            pass

    def verify_tenant(self, endpoint: Endpoint, names: TenantNames, password: str) -> str:
        with connect(endpoint, Credentials(names.login, password, names.database), timeout_seconds=5) as session:
            if self.check_rights(session, names):
                _write_and_read(session, names.database)
            return self.server_version(session)

    def check_rights(self, session: Session, names: TenantNames) -> bool:
        """Whole rights on its own database and none elsewhere, or `EngineError`. False when it may not write now."""
        roles = session.run(names.database, {"connectionStatus": 1})["authInfo"]["authenticatedUserRoles"]
        found = {(role["role"], role["db"]) for role in roles}
        wanted = [
            {(r["role"], r["db"]) for r in tenant_roles(names.database, fenced=fenced)} for fenced in (False, True)
        ]
        if found not in wanted:
            raise EngineError("the tenant's rights are not those on its own database")
        return found == wanted[0]

    def server_version(self, session: Session) -> str:
        return str(session.run("admin", {"buildInfo": 1})["version"])

    def bootstrap(self, endpoint: Endpoint, names: TenantNames, password: str) -> Bootstrapped:
        return mongodb_bootstrap.run(endpoint, names, password)

    def peer_certificate(self, endpoint: Endpoint, *, timeout_seconds: float = 5) -> bytes:
        return mongodb_tls.peer_certificate(endpoint, timeout_seconds=timeout_seconds)

    def accepts_plain(self, endpoint: Endpoint, credentials: Credentials, *, timeout_seconds: float = 5) -> bool:
        return mongodb_tls.accepts_plain(endpoint, timeout_seconds=timeout_seconds)

    def dump(self, place: Endpoint, credentials: Credentials) -> Command:
        """Collections with their options and indexes, one after the other; no login. Collections of the server's own
        (`system.…`), and those with a line break in their name, are not in it."""
        return mongodb_copy.dump(place, credentials, self.dump_program)

    def moment(
        self, endpoint: Endpoint, place: Endpoint, credentials: Credentials, *, compress: bool = False
    ) -> contextlib.AbstractContextManager[Moment]:
        return mongodb_moment.held(
            endpoint, place, credentials, program=self.dump_program, trims_capped=True, expires=self.expires
        )

    def restore(self, place: Endpoint, credentials: Credentials) -> Command:
        return mongodb_copy.restore(place, credentials)

    def fingerprint(
        self, endpoint: Endpoint, credentials: Credentials, *, pulse: Callable[[], None] = lambda: None
    ) -> Fingerprint:
        return mongodb_reading.read(endpoint, credentials, pulse, trims_capped=self.trims_capped, expires=self.expires)

    def validate_identifier(self, value: str) -> str:
        return mongodb_names.validate(value, self.title)

    def reserved_names(self) -> frozenset[str]:
        return mongodb_names.RESERVED

    def urls(self, info: ConnectionInfo) -> Mapping[str, str]:
        return mongodb_snippets.urls(info)

    def env(self, info: ConnectionInfo) -> Mapping[str, str]:
        return mongodb_snippets.env(info)

    def snippets(self, info: ConnectionInfo) -> Mapping[str, str]:
        return mongodb_snippets.snippets(info)


def _files(tls: Tls) -> Mapping[str, bytes]:
    """All of it in the configuration file, none in arguments: the image's entrypoint leaves `net` out of the first start."""
    config = (
        "# Written by NovaStack at every start and change.\n"
        "net:\n"
        "  tls:\n"
        f"    mode: {'requireTLS' if tls.required else 'preferTLS'}\n"
        f"    certificateKeyFile: {MOUNT}/.novastack/files/{trust.PAIR}\n"
        "    disabledProtocols: TLS1_0,TLS1_1\n"
    )
    return {trust.PAIR: tls.pem, CONFIG: config.encode()}


def _cache_mib(memory_bytes: int) -> int:
    return max(256, (memory_bytes // MIB - 256) // 2)


def _write_and_read(session: Session, database: str) -> None:
    """There is no rolling back on a single server: what is written is removed again."""
    collection, word = f"novastack_check_{uuid.uuid4().hex[:12]}", "naïve ✓ 🐬"
    try:
        session.run(database, {"insert": collection, "documents": [{"_id": 1, "word": word}]})
        if [document["word"] for document in session.find(database, collection, {})] != [word]:
            raise EngineError("the server does not give back what was written")
    finally:
        session.run(database, {"drop": collection})
