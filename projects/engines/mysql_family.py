"""What MariaDB and MySQL have in common: the official images' contract, and how a server and a tenant's place are made."""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
    ProcessProgram,
    Selection,
    ServerRequest,
    ServerSpec,
    SetApart,
    TableContent,
    TenantNames,
)
from projects.engines import (
    mysql_ask,
    mysql_bootstrap,
    mysql_copy,
    mysql_fingerprint,
    mysql_moment,
    mysql_names,
    mysql_parts,
    mysql_script,
    mysql_snippets,
    mysql_sql,
    mysql_tls,
)
from projects.engines.admin import EngineAdmin
from projects.engines.base import Engine
from projects.engines.foreign import Left
from projects.engines.moments import Moment
from projects.engines.mysql_admin import IDENTITY, PLATFORM, MySQLFamilyAdmin, buffer_pool_bytes
from projects.engines.mysql_session import LoginFull, Session, connect, pattern
from projects.engines.sql_parts import Title

MIB = 1024**2
SESSION_CAPABILITIES = frozenset(
    {
        Capability.WRITE_FENCE, Capability.END_SESSIONS, Capability.CONNECTION_LIMIT, Capability.TLS,
        Capability.TLS_OPTIONAL, Capability.TLS_RELOAD, Capability.COPY,
    }
)  # fmt: skip
SECRET = "bootstrap"  # noqa: S105 - the name of a file
FIRST_SQL = "first.sql"
MOUNT = "/var/lib/mysql"
DATA = "data"  # the server's own files; the volume's root holds ours, its temporary files and an empty folder
RESERVED_CONNECTIONS = 6  # for control logins; root has one more of its own
# What a server takes for a statement of one row, for each of its bytes (its packet, its text, the value, the row): tried
# with 68 MiB on MySQL 9.7 and MariaDB 11.8, which took 400 and 420 MiB.
ROW_FACTOR = 6.5
THREAD_BYTES = 384 * MIB  # threads get stacks of 8 MB that they hardly use
_FOLDERS = 'mkdir -p "$0/tmp" "$0/files" && exec docker-entrypoint.sh "$@"'


class MySQLFamily(Engine):
    default_port: ClassVar[int] = 3306
    bootstrap_username: ClassVar[str] = "root"
    max_username_length: ClassVar[int] = 32
    dumps_name_roles: ClassVar[bool] = False
    shrink_words: ClassVar[str] = "DROP, TRUNCATE, or DELETE"
    hard_shrink_words: ClassVar[str] = (
        "DROP and TRUNCATE always work, and DELETE in batches of a few seconds; a long DELETE may be cut off"
    )
    resize_words: ClassVar[str] = "The buffer pool follows while it runs; smaller buffers change at the next restart."

    dump_program: ClassVar[str]
    dump_format: ClassVar[str] = "SQL"
    upload_formats: ClassVar[tuple[str, ...]] = mysql_script.FORMATS
    dump_arguments: ClassVar[tuple[str, ...]]
    restore_arguments: ClassVar[tuple[str, ...]] = ()
    admin_class: ClassVar[type[MySQLFamilyAdmin]]
    dialect: ClassVar[mysql_snippets.Dialect]
    secret_variable: ClassVar[str]  # names the file with root's first password
    host_variable: ClassVar[str]
    own_tls_settings: ClassVar[Mapping[str, str]] = {}
    resting_bytes: ClassVar[int]  # of a server at rest, besides its buffer pool
    first_removal: ClassVar[str]  # the statement that removes the accounts without a password, of fresh data

    @abstractmethod
    def own_settings(self, request: ServerRequest) -> dict[str, str]:
        """Settings that only this product has."""

    def pool_settings(self, request: ServerRequest) -> dict[str, str]:
        """Settings of a server that several tenants share. `maximum-…`: no session chooses more."""
        return {
            # Events run beside the connections that a tenant may have, as many as it likes.
            "event_scheduler": "OFF",
            "maximum-sort-buffer-size": "16M",
            "maximum-join-buffer-size": "16M",
            "maximum-read-buffer-size": "4M",
            "maximum-read-rnd-buffer-size": "4M",
            "maximum-tmp-table-size": "64M",
            "maximum-max-heap-table-size": "64M",
            "maximum-group-concat-max-len": "64M",
            "maximum-myisam-sort-buffer-size": "16M",
        }

    def contained_settings(self, request: ServerRequest) -> dict[str, str]:
        """Settings that only this product has, in a container."""
        return {}

    @abstractmethod
    def identified(self, password: str, *, seed: str = "") -> str:
        """The clause that sets a password by its hash; digits, letters and quotes only. The same seed gives the same."""

    @abstractmethod
    def process_init(self) -> tuple[str, ...]:
        """How data is made without a container: a program and its arguments, which run `FIRST_SQL`."""

    def server_spec(self, request: ServerRequest) -> ServerSpec:
        chosen = {
            **_settings(request),
            **self.own_settings(request),
            **(self.pool_settings(request) if request.pool else {}),
            **(_THROWN_AWAY if request.isolated else {}),
        }
        settings = arguments(chosen)
        if request.isolated:  # every row of a restore would be written once more
            del chosen["log_bin"]
            settings = (*arguments(chosen), *(() if self._is_mariadb else ("--skip-log-bin",)))
        in_memory = {"/tmp": "mode=1777,size=64m", "/run/mysqld": "mode=3777,size=1m"}  # noqa: S108 - the container's
        options, secure = self._tls(request, f"{MOUNT}/.novastack/files/{{}}", "extra-file")
        only, secure_process = self._tls(request, "{file:{}}", "file")
        contained = self.contained_settings(request)
        contained |= {"tmpdir": f"{MOUNT}/tmp", "socket": "/run/mysqld/mysqld.sock"}  # noqa: S108 - on the volume
        return self.spec(
            request,
            mount_path=MOUNT,
            data_subdir=DATA,
            initialised_file="ibdata1",
            # Made by `harden`, which comes after the image's own entrypoint has done its part.
            completed_file=f"{PLATFORM}/{IDENTITY}.ibd",
            entrypoint=("sh", "-c", _FOLDERS, MOUNT),
            argv=(
                self.server_program, *options, f"--datadir={MOUNT}/{DATA}", *settings, *secure,
                *arguments({**contained, "secure_file_priv": self.no_files(f"{MOUNT}/files")}),
            ),
            env={self.secret_variable: f"{MOUNT}/.novastack/{SECRET}", self.host_variable: "%"},
            secret_files={
                SECRET: request.admin.password.encode(),
                FIRST_SQL: self._first_sql(request).encode(),
            },
            files=mysql_tls.files(request.tls) if request.tls else {},
            user="mysql",
            tmpfs=in_memory,
            process=ProcessProgram(
                binary=self.server_program,
                init=self.process_init(),
                run=(
                    self.server_program, *(only or ("--no-defaults",)), "--datadir={data}", "--port={port}",
                    "--bind-address={host}", "--socket=", "--pid-file={data}/server.pid", *settings, *secure_process,
                ),
                reserved_bytes=THREAD_BYTES,
            ),
            locks_itself=True,  # InnoDB (and Aria): the kernel's locks on its files, not a file with a process id
        )  # fmt: skip

    def _tls(self, request: ServerRequest, place: str, how: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """(what has to be the first argument, further ones) of a server that speaks TLS; `place` as for the settings."""
        if request.tls is None:
            return (), ()
        options = f"--defaults-{how}={place.replace('{}', mysql_tls.OPTIONS)}"
        return (options,), arguments({**mysql_tls.settings(place), **self.own_tls_settings})

    def _first_sql(self, request: ServerRequest) -> str:
        """What a server made without a container needs before it may listen. One statement a line."""
        user = f"'{request.admin.username}'@'%'"
        return (
            "FLUSH PRIVILEGES;\n"
            f"CREATE USER {user} {self.identified(request.admin.password, seed=request.handle.name)};\n"
            f"GRANT ALL PRIVILEGES ON *.* TO {user} WITH GRANT OPTION;\n"
            f"{self.first_removal}\n"
        )

    def no_files(self, empty_folder: str) -> str:
        """The value of `secure_file_priv` that lets nobody read or write files of the server's machine."""
        return empty_folder

    @contextlib.contextmanager
    def admin(
        self, endpoint: Endpoint, credentials: Credentials, *, timeout_seconds: float = 5, statement_seconds: float = 15
    ) -> Iterator[EngineAdmin]:
        with connect(endpoint, credentials, timeout_seconds=timeout_seconds) as session:
            session.bound(min(10, statement_seconds))
            yield self.admin_class(session, self.identified)

    def probe(self, endpoint: Endpoint, credentials: Credentials, *, timeout_seconds: float = 3) -> None:
        try:
            with connect(endpoint, credentials, timeout_seconds=timeout_seconds) as session:
                session.value("SELECT 1")
        except LoginFull:
            return  # the password was checked, and the server is up: its login is just busy

    def verify_tenant(self, endpoint: Endpoint, names: TenantNames, password: str) -> str:
        with connect(endpoint, Credentials(names.login, password, names.database), timeout_seconds=5) as session:
            fenced = _check_rights(session, names)
            if session.value("SELECT @@character_set_database") != "utf8mb4":
                raise EngineError("the database's character set is not utf8mb4")
            if not (session.value("SELECT @@log_bin") and session.value("SELECT @@sync_binlog") == 1):
                raise EngineError("the server does not keep its binary log safe")
            if fenced:
                return session.server_version.partition("-")[0]
            session.do("CREATE TEMPORARY TABLE novastack_check (word VARCHAR(20)) ENGINE=InnoDB")
            session.do("START TRANSACTION")
            session.do("INSERT INTO novastack_check VALUES (%s)", "naïve ✓ 🐬")
            if session.value("SELECT word FROM novastack_check") != "naïve ✓ 🐬":
                raise EngineError("the server does not give back what was written")
            session.do("ROLLBACK")
            if session.value("SELECT COUNT(*) FROM novastack_check") != 0:
                raise EngineError("the server does not roll back")
            return session.server_version.partition("-")[0]

    def bootstrap(self, endpoint: Endpoint, names: TenantNames, password: str) -> Bootstrapped:
        return mysql_bootstrap.run(endpoint, names, password)

    def peer_certificate(self, endpoint: Endpoint, *, timeout_seconds: float = 5) -> bytes:
        return mysql_tls.peer_certificate(endpoint, timeout_seconds=timeout_seconds)

    def accepts_plain(self, endpoint: Endpoint, credentials: Credentials, *, timeout_seconds: float = 5) -> bool:
        with connect(endpoint, credentials, timeout_seconds=timeout_seconds) as session:
            password = mysql_tls.new_password()
            with self.admin_class(session, self.identified).trial_account(mysql_tls.TRIAL, password):
                return mysql_tls.accepts_plain(endpoint, password, timeout_seconds=timeout_seconds)

    def dump(self, place: Endpoint, credentials: Credentials) -> Command:
        """As of one moment where tables are InnoDB's. With routines, triggers, events, sequences and (MariaDB) the history
        of system-versioned tables; the database's charset, and MariaDB's comment on it, at its head. No login, no right,
        no name of the database. FLOAT values that six digits don't tell are put right by UPDATE statements behind the
        tables (`mysql_floats`)."""
        return mysql_copy.dump(
            place, credentials, mariadb=self._is_mariadb, programs=(self.client_program, self.dump_program),
            arguments=self.dump_arguments,
        )  # fmt: skip

    def moment(
        self, endpoint: Endpoint, place: Endpoint, credentials: Credentials, *, compress: bool = False
    ) -> contextlib.AbstractContextManager[Moment]:
        return mysql_moment.held(endpoint, credentials, self.dump(place, credentials), compress=compress)

    def restore(self, place: Endpoint, credentials: Credentials) -> Command:
        """`credentials` are those of `EngineAdmin.admit_restorer`: everything comes to belong to that login."""
        return mysql_copy.restore(
            place, credentials, mariadb=self._is_mariadb, program=self.client_program, arguments=self.restore_arguments
        )

    def recognise(self, head: bytes, version: str) -> str:
        return mysql_script.recognise(head, version, mariadb=self._is_mariadb)

    def script_of(self, pieces: Iterable[bytes], kind: str, left: Left) -> Iterator[bytes]:
        return mysql_script.script(pieces, left)

    def sql_of(self, pieces: Iterable[bytes], chosen: Selection, title: Title) -> Iterator[bytes]:
        return mysql_sql.script(pieces, chosen.tables, title, self.client_program)

    def memory_for_row(self, row_bytes: int) -> int:
        if row_bytes <= 0:
            return 0
        memory, needed = self.minimum_memory_bytes, self.resting_bytes + int(ROW_FACTOR * row_bytes)
        while memory - buffer_pool_bytes(memory) < needed:
            memory += 64 * MIB
        return memory

    def run_script(self, place: Endpoint, credentials: Credentials) -> tuple[Command, bytes]:
        """The client in binary mode: it knows no command of its own but `delimiter`, and reads no file."""
        return self.restore(place, credentials), b""

    def place_in_script(self, said: str, kind: str, before: int) -> str:
        return mysql_script.place_in_script(said, before)

    @property
    def _is_mariadb(self) -> bool:
        return self.dump_program.startswith("mariadb")

    def fingerprint(
        self, endpoint: Endpoint, credentials: Credentials, *, pulse: Callable[[], None] = lambda: None
    ) -> Fingerprint:
        return mysql_fingerprint.read(endpoint, credentials, pulse)

    def set_apart(
        self, endpoint: Endpoint, credentials: Credentials, chosen: Selection, mark: str, owner: str
    ) -> SetApart:
        return mysql_parts.set_apart(endpoint, credentials, chosen, mark)

    def places(self, endpoint: Endpoint, credentials: Credentials) -> Mapping[str, str]:
        return mysql_parts.places(endpoint, credentials)

    def dump_part(self, place: Endpoint, credentials: Credentials, places: Sequence[str]) -> Command:
        return mysql_parts.dump(
            place, credentials, mariadb=self._is_mariadb, programs=(self.client_program, self.dump_program),
            arguments=self.dump_arguments, tables=places,
        )  # fmt: skip

    def restore_part(self, place: Endpoint, credentials: Credentials, names: TenantNames) -> Command:
        return self.restore(place, credentials)

    def drop_part(self, endpoint: Endpoint, credentials: Credentials, places: Sequence[str], owner: str) -> list[str]:
        return mysql_parts.drop(endpoint, credentials, places)

    def contents_of(
        self, endpoint: Endpoint, credentials: Credentials, tables: Sequence[str], *, pulse: Callable[[], None]
    ) -> Mapping[str, TableContent]:
        return mysql_fingerprint.read_tables(endpoint, credentials, tables, pulse)

    def first_cell(
        self, endpoint: Endpoint, credentials: Credentials, query: str, *, timeout_seconds: float = 60
    ) -> str | None:
        return mysql_ask.first_cell(endpoint, credentials, query, timeout_seconds=timeout_seconds)

    def validate_identifier(self, value: str) -> str:
        return mysql_names.validate(value, self.title)

    def reserved_names(self) -> frozenset[str]:
        return mysql_names.RESERVED

    def urls(self, info: ConnectionInfo) -> Mapping[str, str]:
        return mysql_snippets.urls(self.dialect, info)

    def env(self, info: ConnectionInfo) -> Mapping[str, str]:
        return mysql_snippets.env(self.dialect, info)

    def snippets(self, info: ConnectionInfo) -> Mapping[str, str]:
        return mysql_snippets.snippets(self.dialect, info)


def arguments(settings: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(f"--{name}={value}" for name, value in settings.items())


# Of a server that is thrown away: nothing of it needs to outlive a crash, so nobody waits for the disk, and what was written is
# read from the system's cache; and nothing happens in it by itself.
_THROWN_AWAY = {
    "loose-innodb_flush_method": "nosync",
    "sync_binlog": "0",
    "innodb_flush_log_at_trx_commit": "0",
    "innodb_doublewrite": "OFF",
    "event_scheduler": "OFF",
}


def _settings(request: ServerRequest) -> dict[str, str]:
    """Settings by command line: no tenant and no file in the volume overrides them. Sizes follow the memory limit."""
    memory = request.limits.memory_bytes // MIB
    return {
        "skip_name_resolve": "ON",
        "local_infile": "OFF",
        "max_connections": str(request.max_connections + RESERVED_CONNECTIONS),
        # All tenants come from one address, the gateway's: one that sends rubbish must not lock the others out.
        "max_connect_errors": "4294967295",
        "max_allowed_packet": f"{mysql_copy.PACKET_BYTES // MIB}M",
        "character_set_server": "utf8mb4",
        "server_id": "1",
        "log_bin": "binlog",
        "binlog_format": "ROW",
        "sync_binlog": "1",
        "innodb_flush_log_at_trx_commit": "1",
        "binlog_expire_logs_seconds": str(3 * 86400),
        "max_binlog_size": "64M",
        "log_bin_trust_function_creators": "ON",  # else tenants can't make triggers and functions
        "innodb_buffer_pool_size": f"{buffer_pool_bytes(request.limits.memory_bytes) // MIB}M",
        "innodb_log_buffer_size": "8M",
        "key_buffer_size": "8M",
        "performance_schema": "ON" if memory >= 1024 else "OFF",  # 140 MB of MySQL's memory, 40 of MariaDB's
        "table_open_cache": "400" if memory < 1024 else "2000",
        "table_definition_cache": "400" if memory < 1024 else "2000",
        "tmp_table_size": "16M",
        "max_heap_table_size": "16M",
        "general_log": "OFF",
        "slow_query_log": "OFF",
        "default_time_zone": "+00:00",
        "event_scheduler": "ON",
    }


def _check_rights(session: Session, names: TenantNames) -> bool:
    """Nothing but USAGE on the server, all rights on the one database; nothing else. True when its writes are fenced."""
    wanted = f"ON `{pattern(names.database)}`.* TO"
    found = [str(row[0]) for row in session.rows("SHOW GRANTS")]
    server = [line for line in found if " ON *.* " in line]
    inside = [line for line in found if wanted in line]
    if len(server) != 1 or not server[0].startswith("GRANT USAGE ON") or "GRANT OPTION" in " ".join(found):
        raise EngineError("the tenant has rights on the whole server")
    whole = len(inside) == 1 and inside[0].startswith("GRANT ALL PRIVILEGES")
    fenced = len(inside) == 1 and inside[0].startswith("GRANT SELECT, DELETE, DROP")
    if not (whole or fenced):
        raise EngineError("the tenant lacks rights on its database")
    if len(found) != 2:
        raise EngineError("the tenant has rights outside of its database")
    return fenced
