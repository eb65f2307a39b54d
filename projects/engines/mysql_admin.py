"""The administrative session of a MariaDB or MySQL server: accounts, databases, and what a tenant may do on them.

Databases have no owner here, and objects belong to their database, so a tenant's rights are grants on that one database,
given to each of its logins: `TenantNames.owner` and `.group` are not used. (A role as the group would not do: inside
views, triggers and routines the definer's roles are off in MariaDB, so a tenant's own would break.) A tenant has all
rights inside its database and none outside. That includes DROP DATABASE, which can't be told apart from DROP TABLE;
its grants stay, so it can create the database again.

A schema `novastack`, closed to tenants, holds one row that names this data for ever, and a procedure by which the
control login counts a database's bytes and sessions: it has no right to any row, and none to see what others run.
"""

from __future__ import annotations

import contextlib
import time
import uuid
import zlib
from collections.abc import Callable, Iterator
from typing import ClassVar

from projects.domain import Counters, EngineError, Limits, ServerStats, TableCount, TableCounts, TenantNames
from projects.engines import mysql_prepared, mysql_tls
from projects.engines.admin import TABLES_MOST, TABLES_SECONDS
from projects.engines.mysql_copy import MySQLFamilyCopies
from projects.engines.mysql_session import ANYWHERE, Session, name, pattern

CONTROL_CONNECTIONS = 5
PLATFORM = "novastack"
IDENTITY = "identity"
_UNKNOWN_THREAD = "(1094)"
# `Delete_priv` below marks a tenant's logins: they have that right also while their writes are fenced; the control login,
# which may enter the database too, does not.
# What fenced writers lack. They read, run, delete, truncate and drop; the server has no weaker way to say "read-only" for
# one tenant that the tenant itself could not undo.
_WRITING = (
    "INSERT, UPDATE, CREATE, ALTER, INDEX, REFERENCES, CREATE TEMPORARY TABLES, CREATE VIEW, CREATE ROUTINE, EVENT,"
    " TRIGGER"
)
_LATE_LOGIN_SECONDS = 0.05
_END_SECONDS = 5.0
_RESIZE_SECONDS = 6.0
_NOT_NOW = ("(1231)", "(1238)", "(1232)")  # the value is refused; the variable is read-only here

_STATS = """
CREATE PROCEDURE novastack.tenant_stats(IN wanted VARCHAR(64)) READS SQL DATA SQL SECURITY DEFINER
BEGIN
  SELECT (SELECT COUNT(*) FROM information_schema.schemata WHERE schema_name = wanted),
         (SELECT COALESCE(SUM(data_length + index_length), 0) FROM information_schema.tables WHERE table_schema = wanted),
         (SELECT COUNT(*) FROM information_schema.processlist p WHERE p.user IN
           (SELECT d.User FROM mysql.db d WHERE d.Db = REPLACE(wanted, '_', '\\\\_') AND d.Delete_priv = 'Y')),
         (SELECT SUM(u.max_user_connections) FROM mysql.user u WHERE u.User IN
           (SELECT d.User FROM mysql.db d WHERE d.Db = REPLACE(wanted, '_', '\\\\_') AND d.Delete_priv = 'Y')),
         @@GLOBAL.max_connections,
         (SELECT COUNT(*) > 0 AND SUM(d.Insert_priv = 'Y') = 0 FROM mysql.db d
           WHERE d.Db = REPLACE(wanted, '_', '\\\\_') AND d.Delete_priv = 'Y');
END
"""


class MySQLFamilyAdmin(MySQLFamilyCopies):
    reload_sql: ClassVar[str] = "FLUSH LOCAL SSL"
    tablespaces: ClassVar[str] = "INNODB_TABLESPACES"  # where InnoDB says how large its files are
    locked_sql: ClassVar[str] = "SELECT User FROM mysql.user WHERE account_locked = 'Y'"
    leftovers: ClassVar[tuple[str, ...]] = ()  # accounts that the product's image makes and nobody needs

    def __init__(self, session: Session, identified: Callable[[str], str]) -> None:
        self._session = session
        self.identified = identified  # the clause that sets a password by its hash

    # --- the server ---------------------------------------------------------------------------------------------------
    def ping(self) -> None:
        self._session.value("SELECT 1")

    def system_identifier(self) -> str:
        found = self._session.value("SELECT id FROM novastack.identity")
        if not found:
            raise EngineError("this data has no name: it was never made ready")
        return str(found)

    def contents(self) -> list[str]:
        rows = self._session.rows(
            "SELECT User FROM mysql.user WHERE User NOT LIKE 'mysql.%' AND User <> 'mariadb.sys'"
            " AND User <> SUBSTRING_INDEX(CURRENT_USER(), '@', 1)"
        )
        return sorted([*self.databases(), *(str(row[0]) for row in rows)])

    def databases(self) -> list[str]:
        rows = self._session.rows(
            "SELECT schema_name FROM information_schema.schemata WHERE schema_name NOT IN"
            " ('mysql', 'information_schema', 'performance_schema', 'sys', %s)",
            PLATFORM,
        )
        return sorted(str(row[0]) for row in rows)

    def database_sizes(self) -> dict[str, int]:
        """By InnoDB's files: asking `information_schema.tables` would open every table of every tenant."""
        sizes = self._session.rows(
            "SELECT SUBSTRING_INDEX(NAME, '/', 1), SUM(ALLOCATED_SIZE) FROM"  # noqa: S608 - ours
            f" information_schema.{self.tablespaces} WHERE NAME LIKE '%/%' GROUP BY 1"
        )
        found = {str(name): int(size or 0) for name, size in sizes}
        return {name: found.get(name, 0) for name in self.databases()}

    def locked_logins(self) -> set[str]:
        return {str(row[0]) for row in self._session.rows(self.locked_sql)}

    def harden(self) -> None:
        own = str(self._session.value("SELECT CURRENT_USER()"))
        for user, host in self._session.rows("SELECT User, Host FROM mysql.user"):
            unwanted = user == "" or user in self.leftovers or user == own.partition("@")[0]
            if unwanted and f"{user}@{host}" != own:
                # Anonymous accounts shadow a tenant's on localhost; root's other ones have passwords of their own, or none.
                self._session.do("DROP USER IF EXISTS %s@%s", user, host)
        if self._session.do("DELETE FROM mysql.db WHERE Db IN ('test', 'test\\\\_%%')"):
            self._session.do("FLUSH PRIVILEGES")
        self._session.do("DROP DATABASE IF EXISTS test")
        self._platform_schema()

    def reload_tls(self, *, required: bool) -> None:
        self._session.do(self.reload_sql)
        self._session.do(mysql_tls.required_sql(required))

    @contextlib.contextmanager
    def trial_account(self, username: str, password: str) -> Iterator[None]:
        """An account without any right, there only meanwhile; one that a crash left behind is gone as well."""
        self._session.do("DROP USER IF EXISTS %s@%s", username, ANYWHERE)
        try:
            bounds = "WITH MAX_USER_CONNECTIONS 1"
            self._session.do(f"CREATE USER %s@%s {self.identified(password)} {bounds}", username, ANYWHERE)
            yield
        finally:
            self._session.do("DROP USER IF EXISTS %s@%s", username, ANYWHERE)

    def set_password(self, username: str, password: str, *, keep_old: bool = False) -> None:
        hosts = [str(row[0]) for row in self._session.rows("SELECT Host FROM mysql.user WHERE User = %s", username)]
        if not hosts:
            raise EngineError("there is no such login")
        clause = self.identified(password) + self._retaining(keep_old)
        for host in hosts:
            self._session.do(f"ALTER USER %s@%s {clause}", username, host)

    def _retaining(self, keep_old: bool) -> str:
        return ""

    # --- tenants ------------------------------------------------------------------------------------------------------
    def create_tenant(self, names: TenantNames, *, login_password: str, control_password: str, blank: str = "") -> None:
        for user, password, limit in (
            (names.login, login_password, names.connection_limit),
            (names.control, control_password, CONTROL_CONNECTIONS),
        ):
            bounds = f"WITH MAX_USER_CONNECTIONS {max(limit, 0):d}"
            # Locked until all is in place; an account that is there already stays as it is.
            made = f"CREATE USER IF NOT EXISTS %s@%s {self.identified(password)} {bounds} ACCOUNT LOCK"
            self._session.do(made, user, ANYWHERE)
            self._session.do(f"ALTER USER %s@%s {bounds}", user, ANYWHERE)
        self._session.do(f"CREATE DATABASE IF NOT EXISTS {name(names.database)} CHARACTER SET utf8mb4")
        database = name(pattern(names.database))
        rights = self._rights(names)
        if not rights or any(rights.values()):  # else its writes are fenced, and stay so
            self._session.do(f"GRANT ALL PRIVILEGES ON {database}.* TO %s@%s", names.login, ANYWHERE)
        # Enough to enter the database; it shows no row and no definition.
        self._session.do(f"GRANT REFERENCES ON {database}.* TO %s@%s", names.control, ANYWHERE)
        self._session.do("GRANT EXECUTE ON PROCEDURE novastack.tenant_stats TO %s@%s", names.control, ANYWHERE)
        for user, password in ((names.login, login_password), (names.control, control_password)):
            self.set_password(user, password)
            self._session.do("ALTER USER %s@%s ACCOUNT UNLOCK", user, ANYWHERE)

    def drop_tenant(self, names: TenantNames) -> None:
        self.lock_tenant(names, locked=True)
        for user in (names.control, names.tool, names.part):
            self._end_all(user)
        logins = self._logins(names)
        self._session.bound(16)  # it removes files
        mysql_prepared.end_prepared(self._session, names.database)
        mysql_prepared.drop(self._session, f"DROP DATABASE IF EXISTS {name(names.database)}")
        for user in [*logins, names.control, names.tool, names.part]:
            self._session.do("DROP USER IF EXISTS %s@%s", user, ANYWHERE)

    def lock_tenant(self, names: TenantNames, *, locked: bool) -> None:
        logins = self._logins(names)
        for user in logins:
            self._session.do(f"ALTER USER %s@%s ACCOUNT {'LOCK' if locked else 'UNLOCK'}", user, ANYWHERE)
        if locked:
            for user in logins:
                self._end_all(user)

    def fence_writers(self, names: TenantNames, *, fenced: bool) -> int:
        database = name(pattern(names.database))
        for user, writes in self._rights(names).items():
            if fenced and writes:
                self._session.do(f"REVOKE {_WRITING} ON {database}.* FROM %s@%s", user, ANYWHERE)
            elif not fenced and not writes:
                self._session.do(f"GRANT ALL PRIVILEGES ON {database}.* TO %s@%s", user, ANYWHERE)
        # A session keeps the rights that it had when it entered the database. Who is writing while a fence is lifted is
        # freeing space.
        return self._end_older(names, besides=set if fenced else self._writing)

    def hold_fence(self, names: TenantNames, *, hard: bool) -> int:
        """Nobody gets around it: no tenant can give itself a right."""
        if not hard:
            return 0
        writing = self._writing()
        return sum(self._kill(number) for number in self._sessions(names) if number in writing)

    def end_sessions(self, username: str) -> int:
        found = self._session.rows(
            "SELECT id FROM information_schema.processlist WHERE user = %s AND id <> CONNECTION_ID()", username
        )
        return sum(self._kill(int(number)) for (number,) in found)

    def limit_connections(self, username: str, most: int) -> None:
        self._session.do(f"ALTER USER %s@%s WITH MAX_USER_CONNECTIONS {most:d}", username, ANYWHERE)

    def resize(self, limits: Limits) -> bool:
        wanted = buffer_pool_bytes(limits.memory_bytes)
        self._session.bound(_RESIZE_SECONDS)
        try:
            self._session.do(f"SET GLOBAL innodb_buffer_pool_size = {wanted:d}")
        except EngineError as error:
            if not any(code in str(error) for code in _NOT_NOW):
                raise
            return False  # a server that was started before it could grow, say
        until = time.monotonic() + _RESIZE_SECONDS
        while self._pool_bytes() != wanted or self._resizing():
            if time.monotonic() > until:
                return False  # rounded up to the steps of this server, or still at it
            time.sleep(0.05)
        return True

    def _pool_bytes(self) -> int:
        return int(self._session.value("SELECT @@GLOBAL.innodb_buffer_pool_size"))

    def _resizing(self) -> bool:
        """MySQL does it in the background, and says so; MariaDB has done it when it answers."""
        rows = self._session.rows("SHOW GLOBAL STATUS LIKE 'Innodb_buffer_pool_resize_status_code'")
        return bool(rows) and str(rows[0][1]) not in {"0", ""}

    def stats(self, database: str) -> ServerStats:
        rows = self._session.rows("CALL novastack.tenant_stats(%s)", database)
        exists, size, connections, limit, server_limit, fenced = rows[0]
        if not exists:
            raise EngineError("the database does not exist")
        version = self._session.server_version.partition("-")[0]
        limit = int(limit or server_limit)
        return ServerStats(int(size), int(connections), limit, version, bool(fenced), self._counters())

    def table_counts(self, database: str, *, limit: int = TABLES_MOST) -> TableCounts:
        """Rows: what InnoDB estimates from samples of its pages, often some ten percent off."""
        self._session.short(TABLES_SECONDS)
        of_database = "FROM information_schema.tables WHERE table_schema = %s AND table_type NOT LIKE '%%VIEW'"
        total = self._session.value(f"SELECT COUNT(*) {of_database}", database)
        rows = self._session.rows(
            f"SELECT table_name, table_rows, data_length + index_length {of_database} ORDER BY 3 DESC, 1 LIMIT %s",
            database, limit,
        )  # fmt: skip
        tables = (TableCount(str(name), _whole(count), _whole(size)) for name, count, size in rows)
        return TableCounts(tuple(tables), int(total or 0))

    def _counters(self) -> Counters:
        """Any login may read them; they are the server's. Statements that clients sent; pages of InnoDB's cache."""
        wanted = ("Questions", "Innodb_buffer_pool_read_requests", "Innodb_buffer_pool_reads", "Uptime")
        rows = self._session.rows("SHOW GLOBAL STATUS WHERE Variable_name IN %s", wanted)
        found = {str(name): int(value) for name, value in rows}
        asked, missed = found.get("Innodb_buffer_pool_read_requests"), found.get("Innodb_buffer_pool_reads")
        return Counters(
            queries=found.get("Questions"), cache_hits=None if asked is None else max(0, asked - (missed or 0)),
            cache_misses=missed, uptime_seconds=found.get("Uptime"), server_wide=True,
        )  # fmt: skip

    # --- parts --------------------------------------------------------------------------------------------------------
    def _platform_schema(self) -> None:
        self._session.do("CREATE DATABASE IF NOT EXISTS novastack CHARACTER SET utf8mb4")
        self._stats_procedure()
        # The table last: its file says that all of this is done (`ServerSpec.completed_file`).
        self._session.do(
            "CREATE TABLE IF NOT EXISTS novastack.identity (one TINYINT PRIMARY KEY CHECK (one = 1), id CHAR(36) NOT NULL)"
            " ENGINE=InnoDB"
        )
        self._session.do("INSERT IGNORE INTO novastack.identity VALUES (1, %s)", str(uuid.uuid4()))

    def _stats_procedure(self) -> None:
        """Made anew only when it is another one: with a procedure go the rights to it, of every tenant's control login."""
        text = f"{zlib.crc32(_STATS.encode()):08x}"
        known = self._session.value(
            "SELECT routine_comment FROM information_schema.routines WHERE routine_schema = 'novastack'"
            " AND routine_name = 'tenant_stats'"
        )
        if known == text:
            return
        users = self._session.rows(
            "SELECT User, Host FROM mysql.procs_priv WHERE Db = 'novastack' AND Routine_name = 'tenant_stats'"
        )
        self._session.do("DROP PROCEDURE IF EXISTS novastack.tenant_stats")
        self._session.do(_STATS.replace("READS SQL DATA", f"READS SQL DATA COMMENT '{text}'"))
        for user, host in users:
            self._session.do("GRANT EXECUTE ON PROCEDURE novastack.tenant_stats TO %s@%s", user, host)

    def _logins(self, names: TenantNames) -> list[str]:
        """Every login of the tenant that exists: the first one, and those that were given its database later."""
        rows = self._session.rows(
            "SELECT User FROM mysql.user WHERE Host = %s AND (User = %s OR User IN"
            " (SELECT d.User FROM mysql.db d WHERE d.Db = %s AND d.Delete_priv = 'Y'))",
            ANYWHERE,
            names.login,
            pattern(names.database),
        )
        return sorted({str(row[0]) for row in rows})

    def _rights(self, names: TenantNames) -> dict[str, bool]:
        """Each login that has the tenant's database, and whether it may write there."""
        rows = self._session.rows(
            "SELECT User, Insert_priv FROM mysql.db WHERE Host = %s AND Db = %s AND Delete_priv = 'Y'",
            ANYWHERE,
            pattern(names.database),
        )
        return {str(user): right == "Y" for user, right in rows}

    def _sessions(self, names: TenantNames) -> list[int]:
        logins = self._logins(names)
        if not logins:
            return []
        query = "SELECT id FROM information_schema.processlist WHERE user IN %s AND id <> CONNECTION_ID()"
        return [int(number) for (number,) in self._session.rows(query, logins)]

    def _writing(self) -> set[int]:
        """Sessions in a transaction that has changed rows."""
        rows = self._session.rows(
            "SELECT trx_mysql_thread_id FROM information_schema.innodb_trx WHERE trx_rows_modified > 0"
        )
        return {int(row[0]) for row in rows}

    def _kill(self, number: int) -> int:
        try:
            self._session.do(f"KILL {number}")
        except EngineError as error:
            if _UNKNOWN_THREAD not in str(error):
                raise
            return 0  # it ended by itself meanwhile
        return 1

    def _end_older(self, names: TenantNames, *, besides: Callable[[], set[int]]) -> int:
        """End the tenant's sessions that began before now, also those whose login is still under way. Session numbers
        only grow."""
        newest = max(
            (int(row[0]) for row in self._session.rows("SELECT id FROM information_schema.processlist")), default=0
        )
        deadline = time.monotonic() + _END_SECONDS
        killed: set[int] = set()
        quiet = 0
        while quiet < 2:
            spared = besides()
            found = [n for n in self._sessions(names) if n <= newest and n not in spared]
            for number in found:
                if self._kill(number):
                    killed.add(number)
            quiet = 0 if found else quiet + 1
            if time.monotonic() > deadline:
                raise EngineError("sessions of the tenant did not end in time")
            time.sleep(_LATE_LOGIN_SECONDS)
        return len(killed)

    def _end_all(self, username: str, seconds: float = 5) -> None:
        """A login that began before the lock can still appear: repeat until there is none."""
        deadline = time.monotonic() + seconds
        while self.end_sessions(username):
            if time.monotonic() > deadline:
                raise EngineError("sessions of the tenant did not end in time")
            time.sleep(0.05)


def buffer_pool_bytes(memory_bytes: int) -> int:
    """What a server with so much memory gives InnoDB's pages, in steps of 16 MiB."""
    mib = memory_bytes >> 20
    pool = max(16, mib // (4 if mib < 1024 else 2))
    return max(16, pool - pool % 16) << 20


def _whole(value: object) -> int | None:
    return None if value is None else int(str(value))
