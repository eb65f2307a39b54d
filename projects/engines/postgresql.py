"""PostgreSQL 15 to 18: the official image's contract, and how a server and a tenant's place on it are made."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import ClassVar

import psycopg

from projects.domain import (
    Bootstrapped,
    Capability,
    Command,
    ConnectionInfo,
    Credentials,
    Endpoint,
    EngineError,
    Fingerprint,
    ProcessProgram,
    Selection,
    ServerRequest,
    ServerSpec,
    SetApart,
    TableContent,
    TenantNames,
)
from projects.engines import (
    postgresql_apart,
    postgresql_ask,
    postgresql_bootstrap,
    postgresql_copy,
    postgresql_fingerprint,
    postgresql_foreign,
    postgresql_moment,
    postgresql_names,
    postgresql_parts,
    postgresql_pools,
    postgresql_snippets,
    postgresql_sql,
    postgresql_tls,
)
from projects.engines.admin import EngineAdmin
from projects.engines.base import Engine
from projects.engines.foreign import Left
from projects.engines.moments import Moment
from projects.engines.postgresql_admin import RESERVED_CONNECTIONS, SUPERUSER_CONNECTIONS, PostgreSQLAdmin
from projects.engines.postgresql_session import OWN_LIMITS, RoleFull, connect, translated
from projects.engines.sql_parts import Title

MIB = 1024**2
SECRET = "bootstrap"  # noqa: S105 - the name of a file

# The images' own entrypoint initialises by a server that it starts, asks and stops before the real one: a fifth of the
# time. Nothing of that is needed here, unless the operator's image brings scripts. On data that exists it only starts.
_INITIALISE = """set -eu
if [ ! -s "$PGDATA/PG_VERSION" ] && [ -z "$(ls -A /docker-entrypoint-initdb.d 2>/dev/null)" ]; then
  # shellcheck disable=SC2086 - the arguments are words
  initdb --pgdata="$PGDATA" --username="$POSTGRES_USER" --pwfile="$POSTGRES_PASSWORD_FILE" $POSTGRES_INITDB_ARGS
  printf '\\nhost all all all scram-sha-256\\n' >>"$PGDATA/pg_hba.conf"
fi
exec docker-entrypoint.sh "$@"
"""


_TRY_WRITING = """
BEGIN;
CREATE TABLE public.novastack_verify (id integer);
INSERT INTO public.novastack_verify VALUES (1);
ROLLBACK
"""


class PostgreSQL(Engine):
    name: ClassVar[str] = "postgresql"
    title: ClassVar[str] = "PostgreSQL"
    short: ClassVar[str] = "PG"
    default_port: ClassVar[int] = 5432
    oldest_version: ClassVar[str] = "15"
    version_parts: ClassVar[tuple[int, int]] = (1, 2)
    capabilities: ClassVar[frozenset[Capability]] = frozenset(
        {
            Capability.POOL, Capability.BLANKS, Capability.UPGRADE, Capability.RENAME_DATABASE, Capability.WRITE_FENCE,
            Capability.END_SESSIONS, Capability.CONNECTION_LIMIT, Capability.TLS,
            Capability.TLS_OPTIONAL, Capability.TLS_RELOAD, Capability.COPY,
        }
    )  # fmt: skip
    bootstrap_username: ClassVar[str] = "novastack"
    connection_bytes: ClassVar[int] = 3 << 20
    official_image: ClassVar[str] = "postgres"
    server_program: ClassVar[str] = "postgres"
    dump_format: ClassVar[str] = "pg_dump custom"
    contents_as_backed_up: ClassVar[bool] = True
    upload_formats: ClassVar[tuple[str, ...]] = postgresql_foreign.FORMATS
    client_program: ClassVar[str] = "psql"
    lift_fence_sql: ClassVar[str] = "SET default_transaction_read_only = off;"
    hard_shrink_words: ClassVar[str] = (
        "DROP and TRUNCATE always work, and DELETE in batches of a few seconds; a long DELETE or a VACUUM FULL may be cut off"
    )
    resize_words: ClassVar[str] = (
        "Shared buffers and the other sizes that follow from memory change at the next restart."
    )
    shrink_words: ClassVar[str] = "DROP, TRUNCATE, or DELETE followed by VACUUM FULL"

    def server_spec(self, request: ServerRequest) -> ServerSpec:
        major = int(request.version.partition(".")[0])
        # From 18 on the official image wants the volume one level higher, so that pg_upgrade can link.
        mount, sub = (
            ("/var/lib/postgresql", f"{major}/docker") if major >= 18 else ("/var/lib/postgresql/data", "pgdata")
        )
        initdb = _initdb_arguments(major)
        settings = _arguments(_settings(request, major))
        secure = _arguments(postgresql_tls.settings(f"{mount}/.novastack/files/{{}}")) if request.tls else ()
        secure_process = _arguments(postgresql_tls.settings("{file:{}}")) if request.tls else ()
        return self.spec(
            request,
            mount_path=mount,
            data_subdir=sub,
            initialised_file="PG_VERSION",
            # Written by the first server that runs on the data, which is after initdb and pg_hba.conf.
            completed_file="postmaster.opts",
            entrypoint=("sh", "-c", _first_words(request) + _INITIALISE, "novastack-initialise"),
            argv=("postgres", "-c", "listen_addresses=*", *settings, *secure),
            env={
                "PGDATA": f"{mount}/{sub}",
                "LANG": "C.UTF-8",
                "POSTGRES_USER": request.admin.username,
                "POSTGRES_DB": "postgres",
                "POSTGRES_PASSWORD_FILE": f"{mount}/.novastack/{SECRET}",
                "POSTGRES_INITDB_ARGS": " ".join(initdb),
            },
            secret_files={SECRET: request.admin.password.encode()},
            files=postgresql_tls.files(request.tls) if request.tls else {},
            user="postgres",
            tmpfs={"/tmp": "mode=1777,size=64m", "/run/postgresql": "mode=3777,size=1m"},  # noqa: S108
            shm_bytes=max(64 * MIB, request.limits.memory_bytes // 4),
            stop_signal="SIGINT",  # fast shutdown: sessions are ended, nothing is lost
            process=ProcessProgram(
                binary="postgres",
                init=(
                    "initdb",
                    "--pgdata={data}",
                    f"--username={request.admin.username}",
                    f"--pwfile={{secret:{SECRET}}}",
                    *initdb,
                ),
                run=("postgres", "-D", "{data}", "-p", "{port}", "-h", "{host}", "-k", "", *settings, *secure_process),
                session_bytes=postgresql_pools.session_bytes(request.limits.memory_bytes) if request.pool else 0,
                tls_argv=("-C", "ssl_library", "-D", ".", "-c", "config_file=/dev/null"),  # "OpenSSL", or nothing
            ),
        )

    def fixed_memory_bytes(self, memory_bytes: int) -> int:
        return _shared_buffers(memory_bytes) * MIB

    @contextlib.contextmanager
    def admin(
        self, endpoint: Endpoint, credentials: Credentials, *, timeout_seconds: float = 5, statement_seconds: float = 15
    ) -> Iterator[EngineAdmin]:
        # CREATE and DROP DATABASE copy and remove files: they get more time than the login.
        settings = {"statement_timeout": str(int(statement_seconds * 1000))}
        with connect(endpoint, credentials, timeout_seconds=timeout_seconds, settings=settings) as connection:
            connection.bound_seconds = statement_seconds + 1
            yield PostgreSQLAdmin(connection, endpoint, credentials)

    def probe(self, endpoint: Endpoint, credentials: Credentials, *, timeout_seconds: float = 3) -> None:
        try:
            with connect(endpoint, credentials, timeout_seconds=timeout_seconds) as connection, translated():
                try:
                    connection.execute("SELECT 1")
                except psycopg.Error as error:
                    if error.sqlstate not in OWN_LIMITS:
                        raise
        except RoleFull:
            return  # the password was checked, and the server is up: its login is just busy

    def verify_tenant(self, endpoint: Endpoint, names: TenantNames, password: str) -> str:
        credentials = Credentials(names.login, password, names.database)
        with connect(endpoint, credentials, timeout_seconds=5) as connection, translated():
            row = connection.execute(
                "SELECT current_setting('server_encoding'), current_user::text, split_part(version(), ' ', 2),"
                " bool_or(rolsuper OR rolcreatedb OR rolcreaterole OR rolreplication OR rolbypassrls),"
                " has_database_privilege(current_database(), 'TEMPORARY')"
                " FROM pg_roles WHERE rolname IN (session_user, current_user)"
            ).fetchone()
            assert row is not None  # noqa: S101 - an aggregate has a row
            encoding, user, version, mighty, temporary = row
            if encoding != "UTF8":
                raise EngineError(f"the database is encoded in {encoding}, not UTF8")
            if user != names.group:
                raise EngineError("the login does not act as the tenant's group role")
            if mighty:
                raise EngineError("the tenant's role has rights that it must not have")
            if not temporary:
                raise EngineError("the tenant may not make temporary tables")
            connection.execute(_TRY_WRITING)
            return str(version)

    def bootstrap(self, endpoint: Endpoint, names: TenantNames, password: str) -> Bootstrapped:
        return postgresql_bootstrap.run(endpoint, names, password)

    def peer_certificate(self, endpoint: Endpoint, *, timeout_seconds: float = 5) -> bytes:
        return postgresql_tls.peer_certificate(endpoint, timeout_seconds=timeout_seconds)

    def accepts_plain(self, endpoint: Endpoint, credentials: Credentials, *, timeout_seconds: float = 5) -> bool:
        return postgresql_tls.accepts_plain(endpoint, timeout_seconds=timeout_seconds)

    def dump(self, place: Endpoint, credentials: Credentials) -> Command:
        return postgresql_copy.dump(place, credentials)

    def moment(
        self, endpoint: Endpoint, place: Endpoint, credentials: Credentials, *, compress: bool = False
    ) -> contextlib.AbstractContextManager[Moment]:
        return postgresql_moment.held(endpoint, place, credentials, compress=compress)

    def restore(self, place: Endpoint, credentials: Credentials) -> Command:
        return postgresql_copy.restore(place, credentials)

    def recognise(self, head: bytes, version: str) -> str:
        return postgresql_foreign.recognise(head, version)

    def script_of(self, pieces: Iterable[bytes], kind: str, left: Left) -> Iterator[bytes]:
        return postgresql_foreign.script_of(pieces, kind, left)

    def run_script(self, place: Endpoint, credentials: Credentials) -> tuple[Command, bytes]:
        return postgresql_foreign.run_script(place, credentials)

    def place_in_script(self, said: str, kind: str, before: int) -> str:
        return postgresql_foreign.place_in_script(said, kind, before)

    def sql_of(self, pieces: Iterable[bytes], chosen: Selection, title: Title) -> Iterator[bytes]:
        return postgresql_sql.script(pieces, chosen, title)

    def finish_copy(self, endpoint: Endpoint, credentials: Credentials, names: TenantNames) -> None:
        postgresql_copy.finish(endpoint, credentials, names)

    def fingerprint(
        self, endpoint: Endpoint, credentials: Credentials, *, pulse: Callable[[], None] = lambda: None
    ) -> Fingerprint:
        return postgresql_fingerprint.read(endpoint, credentials, pulse)

    def set_apart(
        self, endpoint: Endpoint, credentials: Credentials, chosen: Selection, mark: str, owner: str
    ) -> SetApart:
        return postgresql_apart.set_apart(endpoint, credentials, chosen, mark, owner)

    def places(self, endpoint: Endpoint, credentials: Credentials) -> Mapping[str, str]:
        return postgresql_parts.places(endpoint, credentials)

    def lacking(self, endpoint: Endpoint, credentials: Credentials, needs: Sequence[tuple[str, str]]) -> list[str]:
        return postgresql_parts.lacking(endpoint, credentials, needs)

    def dump_part(self, place: Endpoint, credentials: Credentials, places: Sequence[str]) -> Command:
        return postgresql_parts.dump(place, credentials, places)

    def restore_part(self, place: Endpoint, credentials: Credentials, names: TenantNames) -> Command:
        return postgresql_parts.restore(place, credentials, names)

    def drop_part(self, endpoint: Endpoint, credentials: Credentials, places: Sequence[str], owner: str) -> list[str]:
        return postgresql_parts.drop(endpoint, credentials, places, owner)

    def contents_of(
        self, endpoint: Endpoint, credentials: Credentials, tables: Sequence[str], *, pulse: Callable[[], None]
    ) -> Mapping[str, TableContent]:
        return postgresql_parts.contents_of(endpoint, credentials, tables, pulse)

    def first_cell(
        self, endpoint: Endpoint, credentials: Credentials, query: str, *, timeout_seconds: float = 60
    ) -> str | None:
        return postgresql_ask.first_cell(endpoint, credentials, query, timeout_seconds=timeout_seconds)

    def validate_identifier(self, value: str) -> str:
        return postgresql_names.validate(value)

    def reserved_names(self) -> frozenset[str]:
        return postgresql_names.RESERVED

    def urls(self, info: ConnectionInfo) -> Mapping[str, str]:
        return postgresql_snippets.urls(info)

    def env(self, info: ConnectionInfo) -> Mapping[str, str]:
        return postgresql_snippets.env(info)

    def snippets(self, info: ConnectionInfo) -> Mapping[str, str]:
        return postgresql_snippets.snippets(info)


def _initdb_arguments(major: int) -> tuple[str, ...]:
    """What can't be changed later (rule 15). The image's default would trust everybody in the container (rule 21)."""
    # C.UTF-8 of the builtin provider never changes its order under an index; libc's may with the system.
    provider = ("--locale-provider=builtin",) if major >= 17 else ()
    return (
        "--encoding=UTF8",
        "--locale=C.UTF-8",
        *provider,
        "--data-checksums",
        "--auth-local=scram-sha-256",
        "--auth-host=scram-sha-256",
    )


def _arguments(settings: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(word for pair in settings.items() for word in ("-c", "=".join(pair)))


def _first_words(request: ServerRequest) -> str:
    """A tenant may ask for any `work_mem`. What one session can't get is its error; without a limit the kernel ends the
    largest process, and every tenant's sessions with it."""
    if not request.pool:
        return ""
    return f"ulimit -d {postgresql_pools.session_bytes(request.limits.memory_bytes) // 1024}\n"


def _shared_buffers(memory_bytes: int) -> int:
    return max(16, memory_bytes // MIB // 4)


# Of a server that is thrown away: nothing of it needs to outlive a crash, so nobody waits for the disk.
_THROWN_AWAY = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "archive_mode": "off",
    "autovacuum": "off",
    "checkpoint_timeout": "1h",
}


def _settings(request: ServerRequest, major: int) -> dict[str, str]:
    """Settings by command line: no tenant and no file in the volume overrides them. Sizes follow the memory limit."""
    memory = request.limits.memory_bytes // MIB
    reserved = RESERVED_CONNECTIONS if major >= 16 else 0
    connections = request.max_connections + SUPERUSER_CONNECTIONS + RESERVED_CONNECTIONS
    settings = {
        "max_connections": str(connections),
        "superuser_reserved_connections": str(SUPERUSER_CONNECTIONS + RESERVED_CONNECTIONS - reserved),
        "shared_buffers": f"{_shared_buffers(request.limits.memory_bytes)}MB",
        "effective_cache_size": f"{max(64, memory * 6 // 10)}MB",
        "work_mem": f"{min(64, max(1, memory // (4 * connections)))}MB",
        "maintenance_work_mem": f"{min(512, max(16, memory // 16))}MB",
        "min_wal_size": "80MB",
        "max_wal_size": f"{min(4096, max(256, memory))}MB",
        "huge_pages": "off",
        # A dump locks all tables, and its sequences before 18: with the product's 64 some thousand of them can't be dumped.
        "max_locks_per_transaction": str(min(1024, max(64, memory // 2))),
        "temp_file_limit": "5GB",
        "password_encryption": "scram-sha-256",
        "wal_level": "logical",
        "max_slot_wal_keep_size": "1GB",  # a forgotten slot must not fill the disk
        "archive_mode": "on",
        "archive_command": "/bin/true",
        "logging_collector": "off",
        "log_destination": "stderr",
        "log_line_prefix": "%m [%p] %q%u@%d ",
        "log_timezone": "UTC",
        "timezone": "UTC",
        "lc_messages": "C",
        "log_statement": "none",
        # A tenant's failed `ALTER ROLE … PASSWORD` would stand in the log that its organization reads: errors without text.
        "log_min_error_statement": "panic",
        "log_min_duration_statement": "-1",
        "log_lock_waits": "on",
    }
    if reserved:
        settings["reserved_connections"] = str(reserved)
    if request.isolated:
        settings |= _THROWN_AWAY
    if request.pool:
        settings |= postgresql_pools.SETTINGS
        if major >= 17:
            settings["max_notify_queue_pages"] = postgresql_pools.NOTIFY_PAGES
    return settings
