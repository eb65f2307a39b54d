"""MariaDB 10.11 to 11.8."""

from __future__ import annotations

from typing import ClassVar

from projects.domain import Capability, ServerRequest
from projects.engines import mysql_hashes
from projects.engines.mysql_admin import MySQLFamilyAdmin, buffer_pool_bytes
from projects.engines.mysql_family import FIRST_SQL, MIB, SESSION_CAPABILITIES, MySQLFamily
from projects.engines.mysql_snippets import MARIADB, Dialect


class MariaDBAdmin(MySQLFamilyAdmin):
    tablespaces = "INNODB_SYS_TABLESPACES"
    locked_sql = "SELECT User FROM mysql.global_priv WHERE JSON_VALUE(Priv, '$.account_locked')"
    leftovers = ("healthcheck",)
    routine_right = "SELECT ON mysql.proc"

    def _by_hash(self, plugin: str, verifier: str) -> str:
        return f"IDENTIFIED VIA {plugin} USING '{bytes.fromhex(verifier).decode('ascii')}'"


class MariaDB(MySQLFamily):
    name: ClassVar[str] = "mariadb"
    title: ClassVar[str] = "MariaDB"
    short: ClassVar[str] = "MA"
    oldest_version: ClassVar[str] = "10.11"
    capabilities: ClassVar[frozenset[Capability]] = SESSION_CAPABILITIES | {Capability.POOL}
    official_image: ClassVar[str] = "mariadb"
    server_program: ClassVar[str] = "mariadbd"
    client_program: ClassVar[str] = "mariadb"
    dump_program: ClassVar[str] = "mariadb-dump"
    # Not a transaction for each table: one commit of gigabytes of binary log holds up whoever dumps until it is cut off.
    dump_arguments: ClassVar[tuple[str, ...]] = ("--dump-history", "--skip-no-autocommit")
    restore_arguments: ClassVar[tuple[str, ...]] = ("--loose-sandbox",)
    minimum_memory_bytes: ClassVar[int] = 192 << 20
    resting_bytes: ClassVar[int] = 96 << 20
    admin_class: ClassVar[type[MySQLFamilyAdmin]] = MariaDBAdmin
    dialect: ClassVar[Dialect] = MARIADB
    secret_variable: ClassVar[str] = "MARIADB_ROOT_PASSWORD_FILE"  # noqa: S105 - names a file
    host_variable: ClassVar[str] = "MARIADB_ROOT_HOST"

    # One of them is named after the machine.
    first_removal: ClassVar[str] = "DELETE FROM mysql.global_priv WHERE Host <> '%' AND User <> 'mariadb.sys';"

    def contained_settings(self, request: ServerRequest) -> dict[str, str]:
        """How far the buffer pool can grow while the server runs (`loose`: 11.8 knows it). Only address space, of which a
        process has a limit of its own, a container none."""
        room = max(16 << 30, 2 * buffer_pool_bytes(request.limits.memory_bytes))
        return {"loose-innodb_buffer_pool_size_max": str(room)}

    def own_settings(self, request: ServerRequest) -> dict[str, str]:
        settings = {
            "collation_server": "utf8mb4_uca1400_ai_ci",
            "aria_pagecache_buffer_size": "8M" if request.limits.memory_bytes < 1024 * MIB else "64M",
            "skip_symbolic_links": "ON",  # else a tenant places tables anywhere by DATA DIRECTORY
        }
        if _numbers(request.version) >= (11, 4):
            settings["max_binlog_total_size"] = "1G"
        return settings

    def pool_settings(self, request: ServerRequest) -> dict[str, str]:
        settings = {
            **super().pool_settings(request),
            "maximum-tmp-memory-table-size": "64M",
            "maximum-bulk-insert-buffer-size": "16M",
            "max_statement_time": "300",  # for mistakes: a session may choose another
        }
        if _numbers(request.version) >= (11, 5):
            settings["max_tmp_session_space_usage"] = settings["maximum-max-tmp-session-space-usage"] = "1G"
        return settings

    def identified(self, password: str, *, seed: str = "") -> str:
        # The one way to log in that every client knows. It is unsalted: passwords here are long and random.
        return f"IDENTIFIED VIA mysql_native_password USING '{mysql_hashes.native(password)}'"

    def process_init(self) -> tuple[str, ...]:
        return (
            "mariadb-install-db", "--no-defaults", "--datadir={data}", "--auth-root-authentication-method=normal",
            "--skip-test-db", f"--extra-file={{secret:{FIRST_SQL}}}",
        )  # fmt: skip


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])
