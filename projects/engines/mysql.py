"""MySQL 8.4 and 9.7."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import ClassVar

from projects.domain import Capability, ServerRequest
from projects.engines import mysql_hashes
from projects.engines.mysql_admin import MySQLFamilyAdmin
from projects.engines.mysql_family import FIRST_SQL, MIB, SESSION_CAPABILITIES, MySQLFamily
from projects.engines.mysql_session import ANYWHERE
from projects.engines.mysql_snippets import MYSQL, Dialect


class MySQLAdmin(MySQLFamilyAdmin):
    reload_sql: ClassVar[str] = "ALTER INSTANCE RELOAD TLS"
    routine_right: ClassVar[str] = "SHOW_ROUTINE ON *.*"

    def _retaining(self, keep_old: bool) -> str:
        return " RETAIN CURRENT PASSWORD" if keep_old else ""

    def discard_old_password(self, username: str) -> None:
        self._session.do("ALTER USER %s@%s DISCARD OLD PASSWORD", username, ANYWHERE)

    def _by_hash(self, plugin: str, verifier: str) -> str:
        return f"IDENTIFIED WITH {plugin} AS 0x{verifier}"


class MySQL(MySQLFamily):
    name: ClassVar[str] = "mysql"
    title: ClassVar[str] = "MySQL"
    short: ClassVar[str] = "MY"
    oldest_version: ClassVar[str] = "8.4"
    capabilities: ClassVar[frozenset[Capability]] = SESSION_CAPABILITIES | {
        Capability.POOL,
        Capability.DUAL_PASSWORD,
    }
    official_image: ClassVar[str] = "mysql"
    server_program: ClassVar[str] = "mysqld"
    client_program: ClassVar[str] = "mysql"
    dump_program: ClassVar[str] = "mysqldump"
    # Without the table of masking policies, which only an administrator may read: else 9.7 complains, and ends well.
    dump_arguments: ClassVar[tuple[str, ...]] = (
        "--set-gtid-purged=OFF", "--no-tablespaces", "--column-statistics=0", "--loose-masking-policies=0",
        "--loose-init-command=SET SESSION max_execution_time = 0",
    )  # fmt: skip
    minimum_memory_bytes: ClassVar[int] = 384 << 20
    resting_bytes: ClassVar[int] = 160 << 20
    admin_class: ClassVar[type[MySQLFamilyAdmin]] = MySQLAdmin
    dialect: ClassVar[Dialect] = MYSQL
    secret_variable: ClassVar[str] = "MYSQL_ROOT_PASSWORD_FILE"  # noqa: S105 - names a file
    host_variable: ClassVar[str] = "MYSQL_ROOT_HOST"

    own_tls_settings: ClassVar[Mapping[str, str]] = {"auto_generate_certs": "OFF"}
    first_removal: ClassVar[str] = "DROP USER 'root'@'localhost';"

    def own_settings(self, request: ServerRequest) -> dict[str, str]:
        memory = request.limits.memory_bytes // MIB
        return {
            "collation_server": "utf8mb4_0900_ai_ci",
            "loose-mysqlx": "OFF",  # a second protocol on a port of its own
            "persisted_globals_load": "OFF",
            "loose-innodb_numa_interleave": "OFF",
            "loose-container_aware": "ON",  # 9.7: else it sizes itself by the host's memory
            # In what steps the buffer pool changes while it runs; a thousand of them at most.
            "innodb_buffer_pool_chunk_size": "16M" if memory < 16 * 1024 else "128M",
            "temptable_max_ram": f"{max(16, memory // 16)}M",
            "innodb_redo_log_capacity": "100M" if memory < 1024 else "512M",
        }

    def pool_settings(self, request: ServerRequest) -> dict[str, str]:
        return {
            **super().pool_settings(request),
            # Their rows are not in InnoDB: memory without an end, or files that a crash breaks.
            "disabled_storage_engines": "MyISAM,MEMORY,ARCHIVE,BLACKHOLE,FEDERATED,CSV,MRG_MYISAM",
            "maximum-innodb-ddl-buffer-size": "64M",
            "maximum-innodb-ddl-threads": "2",
            "maximum-innodb-parallel-read-threads": "2",
            "maximum-set-operations-buffer-size": "16M",
            "maximum-parser-max-mem-size": "64M",
            # Of SELECT, for mistakes: a session may choose another. mysqldump does not, and reads a table by one statement.
            "max_execution_time": "3600000",
        }

    def no_files(self, empty_folder: str) -> str:
        return "NULL"

    def identified(self, password: str, *, seed: str = "") -> str:
        salt = hashlib.sha256(seed.encode()).hexdigest()[: mysql_hashes.SALT_LENGTH] if seed else ""
        verifier = mysql_hashes.caching_sha2(password, salt=salt).encode().hex().upper()
        return f"IDENTIFIED WITH caching_sha2_password AS 0x{verifier}"

    def process_init(self) -> tuple[str, ...]:
        return (
            "mysqld", "--no-defaults", "--initialize-insecure", "--datadir={data}",
            f"--init-file={{secret:{FIRST_SQL}}}",
        )  # fmt: skip
