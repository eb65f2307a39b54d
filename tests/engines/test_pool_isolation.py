"""PostgreSQL pools: each attack of the list, tried by one tenant on a real server while another one works there."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shutil
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from projects.domain import Credentials, TenantNames
from projects.engines.admin import BLANK_PREFIX
from projects.engines.postgresql import PostgreSQL
from projects.runtimes.docker import DockerRuntime
from projects.runtimes.process import ProcessRuntime
from projects.runtimes.process_binaries import find
from tests.contracts.engine_contract import LiveServer
from tests.contracts.engine_servers import docker_server, image_of, live_server
from tests.engines.attacks import Attack, Outcome
from tests.engines.attacks_postgresql import POSTGRESQL

Connection = psycopg.Connection[tuple[Any, ...]]
ENGINE = PostgreSQL()
MARK = "neighboursecret"  # in all that the neighbour says, names and sets
PASSWORD, CONTROL = "tenants-password", "controls-password"
_ERRORS = (
    psycopg.errors.InsufficientPrivilege, psycopg.errors.FeatureNotSupported, psycopg.errors.UndefinedFile,
    psycopg.errors.UndefinedTable, psycopg.errors.CantChangeRuntimeParam, psycopg.errors.ObjectNotInPrerequisiteState,
    psycopg.errors.InvalidParameterValue, psycopg.errors.UndefinedObject, psycopg.errors.ReservedName,
)  # fmt: skip


def pool_names() -> TenantNames:
    part = uuid.uuid4().hex[:12]
    return TenantNames(
        f"tenant_{uuid.uuid4().hex}", f"nvs_{part}_o", f"nvs_{part}_g", f"tenant_{part}", f"nvs_{part}_c", 5
    )


@dataclass
class Pool:
    server: LiveServer
    mine: TenantNames
    theirs: TenantNames
    blank: str
    neighbour: Connection
    beside: Connection  # of ours, a superuser's

    def login(self, names: TenantNames, database: str = "", **options: str) -> Connection:
        place = self.server.endpoint
        return psycopg.connect(
            host=place.host, port=place.port, user=names.login, password=PASSWORD, dbname=database or names.database,
            autocommit=True, connect_timeout=5, **options,  # type: ignore[arg-type]
        )  # fmt: skip

    def filled_in(self, statement: str) -> str:
        mine = {field.name: getattr(self.mine, field.name) for field in dataclasses.fields(TenantNames)}
        theirs = {f"their_{field.name}": getattr(self.theirs, field.name) for field in dataclasses.fields(TenantNames)}
        more = {"mine": self.mine.database, "blank": self.blank, "their_pid": self.neighbour.info.backend_pid,
                "their_channel": f"{MARK}_channel"}  # fmt: skip
        return re.sub(r"\{(\w+)\}", lambda match: str({**mine, **theirs, **more}[match[1]]), statement)

    def traces(self) -> set[str]:
        return {MARK, self.theirs.database, *(getattr(self.theirs, f) for f in ("owner", "group", "login", "control"))}


def busy_neighbour(pool_login: Any, names: TenantNames) -> Connection:
    """It has set, named, locked and written what it would not want to be seen, and has a statement under way."""
    one: Connection = pool_login(names, application_name=f"{MARK}_application")
    one.execute(f"CREATE TABLE {MARK}_table ({MARK}_column text); COMMENT ON TABLE {MARK}_table IS '{MARK}'")
    one.execute(f"INSERT INTO {MARK}_table VALUES ('{MARK}')")
    one.execute(f"CREATE INDEX {MARK}_index ON {MARK}_table ({MARK}_column)")
    one.execute(f"SELECT lo_from_bytea(0, '{MARK}')")
    one.execute(f"CREATE PUBLICATION {MARK}_publication FOR TABLE {MARK}_table")
    one.execute(f"SET ROLE NONE; ALTER ROLE {names.login} SET search_path = '{MARK}'")
    one.execute(f"ALTER ROLE {names.login} IN DATABASE {names.database} SET application_name = '{MARK}'")
    one.execute(f"SET ROLE {names.group}; LISTEN {MARK}_channel; SELECT pg_advisory_lock(4711)")
    one.execute(f"BEGIN; LOCK TABLE {MARK}_table IN ACCESS EXCLUSIVE MODE; SAVEPOINT a; SELECT '{MARK}_statement'")
    one.execute("RELEASE a")
    return one


@pytest.fixture(scope="class")
def pool(request: pytest.FixtureRequest) -> Iterator[Pool]:
    for server in request.cls.servers():
        mine, theirs, blank = pool_names(), pool_names(), f"{BLANK_PREFIX}{uuid.uuid4().hex[:8]}"
        with ENGINE.admin(server.endpoint, server.admin) as admin:
            admin.harden()
            admin.make_blank(blank, login_password=PASSWORD, control_password=CONTROL)
            admin.place_tenant(mine, login_password=PASSWORD, control_password=CONTROL, blank=blank, tables=True)
            admin.create_tenant(theirs, login_password=PASSWORD, control_password=CONTROL)
            admin.make_blank(blank, login_password=PASSWORD, control_password=CONTROL)
        place = server.endpoint
        with psycopg.connect(
            host=place.host, port=place.port, user=server.admin.username, password=server.admin.password,
            dbname="postgres", autocommit=True,
        ) as beside:  # fmt: skip
            found = Pool(server, mine, theirs, blank, beside, beside)
            found.neighbour = busy_neighbour(found.login, theirs)
            yield found
            found.neighbour.close()
            with ENGINE.admin(server.endpoint, server.admin) as admin:
                for names in (mine, theirs):
                    admin.drop_tenant(names)
                admin.drop_blank(blank)
                assert admin.databases() == []
                assert admin.contents() == [], "something of a tenant is left"


def ids(attack: Attack) -> str:
    return f"{attack.name}: {attack.statement[:60]}"


def of(*outcomes: Outcome) -> list[Attack]:
    return [attack for attack in POSTGRESQL if attack.outcome in outcomes]


class Isolation:
    version: str

    def run(self, pool: Pool, attack: Attack, *, as_login: bool) -> list[tuple[Any, ...]]:
        statement = pool.filled_in(attack.statement)
        if statement.startswith("\\c "):
            database, *options = statement.removeprefix("\\c ").split()
            with contextlib.closing(pool.login(pool.mine, database, **dict(o.split("=") for o in options))):
                return []
        with contextlib.closing(pool.login(pool.mine)) as connection:
            if as_login:
                connection.execute("SET ROLE NONE")
            found = connection.execute(statement)  # type: ignore[arg-type]
            while found.nextset():
                pass
            return found.fetchall() if found.description else []

    @pytest.mark.parametrize("as_login", [False, True], ids=["as the group", "as the login"])
    @pytest.mark.parametrize("attack", of(Outcome.REFUSED), ids=ids)
    def test_refused(self, pool: Pool, attack: Attack, *, as_login: bool) -> None:
        if attack.statement.startswith("\\c "):
            said = r"permission denied|not currently accepting|must be|no pg_hba.conf entry"
            with pytest.raises(psycopg.OperationalError, match=said):
                self.run(pool, attack, as_login=as_login)
            return
        with pytest.raises(_ERRORS):
            self.run(pool, attack, as_login=as_login)

    @pytest.mark.parametrize("as_login", [False, True], ids=["as the group", "as the login"])
    @pytest.mark.parametrize("attack", of(Outcome.HIDDEN), ids=ids)
    def test_hidden(self, pool: Pool, attack: Attack, *, as_login: bool) -> None:
        shown = repr(self.run(pool, attack, as_login=as_login))
        assert not [trace for trace in pool.traces() if trace in shown]

    @pytest.mark.parametrize("attack", of(Outcome.HARMLESS), ids=ids)
    def test_harmless(self, pool: Pool, attack: Attack) -> None:
        def state() -> tuple[Any, ...]:
            rows = pool.beside.execute(
                "SELECT pg_postmaster_start_time(), (SELECT array_agg(datacl::text ORDER BY datname) FROM pg_database),"
                " (SELECT count(*) FROM pg_stat_activity WHERE datname = %s)",
                [pool.theirs.database],
            ).fetchall()
            return tuple(rows)

        before = state()
        # Too much of something is an error of its own session; nothing of it waits for the neighbour's lock.
        with contextlib.suppress(
            psycopg.errors.OutOfMemory, psycopg.errors.ConfigurationLimitExceeded,
            psycopg.errors.ProgramLimitExceeded,
        ):  # fmt: skip
            began = time.monotonic()
            self.run(pool, attack, as_login=False)
            assert time.monotonic() - began < 60
        assert state() == before
        assert pool.neighbour.execute("SELECT 1").fetchone() == (1,)
        assert not list(pool.neighbour.notifies(timeout=0))

    @pytest.mark.parametrize("attack", of(Outcome.KNOWN), ids=ids)
    def test_known_limits_are_as_said(self, pool: Pool, attack: Attack) -> None:
        """Should the product learn to close one, the documentation is to be changed."""
        found = repr(self.run(pool, attack, as_login=False))
        assert MARK not in found
        if attack.name.startswith("Names of databases"):
            assert pool.theirs.database in found
        if attack.name.startswith("Names of logins"):
            assert pool.theirs.login in found

    def test_nothing_readable_tells_of_the_neighbour(self, pool: Pool) -> None:
        """Every relation of the catalog that can be read at all, and whatever is in it."""
        # Names of databases can't be hidden, and stand wherever the catalog of databases is shown.
        names_of_databases = {"pg_catalog.pg_database"}
        told: dict[str, set[str]] = {}
        read = 0
        with contextlib.closing(pool.login(pool.mine)) as connection:
            relations = connection.execute(
                "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
                " WHERE n.nspname IN ('pg_catalog', 'information_schema') AND c.relkind IN ('r', 'v')"
            ).fetchall()
            for schema, relation in relations:
                query = sql.SQL("SELECT * FROM {}").format(sql.Identifier(schema, relation))
                try:
                    shown = repr(connection.execute(query).fetchall())
                except (psycopg.errors.InsufficientPrivilege, psycopg.errors.ObjectNotInPrerequisiteState):
                    continue
                read += 1
                traces = {trace for trace in pool.traces() if trace in shown}
                if traces:
                    told[f"{schema}.{relation}"] = traces
        assert read > 120
        assert told.keys() <= names_of_databases, told
        assert all(MARK not in repr(traces) for traces in told.values())

    def test_everyday_looks_work(self, pool: Pool) -> None:
        """What tools read of one's own: sessions, locks, sizes, roles."""
        with contextlib.closing(pool.login(pool.mine)) as connection:

            def first(query: str) -> Any:
                row = connection.execute(query).fetchone()  # type: ignore[arg-type]
                assert row is not None
                return row[0]

            assert first("SELECT query FROM pg_stat_activity WHERE pid = pg_backend_pid()").startswith("SELECT query")
            assert first("SELECT count(*) FROM pg_stat_ssl WHERE pid = pg_backend_pid()") == 1
            assert first("SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()") > 0
            assert first("SELECT pg_database_size(current_database())") > 0
            assert first("SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid()") > 0
            assert first("SELECT rolname FROM pg_roles WHERE rolname = session_user") == pool.mine.login
            assert first("SELECT usename FROM pg_user WHERE usename = session_user") == pool.mine.login
            connection.execute("SET ROLE NONE")
            with contextlib.closing(pool.login(pool.mine)) as second:
                assert first(f"SELECT pg_terminate_backend({second.info.backend_pid})") is True

    def test_connections_of_one_are_nobody_elses(self, pool: Pool) -> None:
        """It fills its limit; the neighbour and we get in as before."""
        with contextlib.ExitStack() as stack:
            for _ in range(pool.mine.connection_limit):
                stack.enter_context(contextlib.closing(pool.login(pool.mine)))
            with pytest.raises(psycopg.OperationalError, match="too many connections for role"):
                pool.login(pool.mine)
            pool.login(pool.theirs).close()
            ENGINE.probe(pool.server.endpoint, Credentials(pool.mine.control, CONTROL, pool.mine.database))
            with ENGINE.admin(pool.server.endpoint, pool.server.admin) as admin:
                admin.ping()
            with ENGINE.admin(
                pool.server.endpoint, Credentials(pool.mine.control, CONTROL, pool.mine.database)
            ) as control:
                assert control.stats(pool.mine.database).connections == pool.mine.connection_limit
                assert control.stats(pool.mine.database).connections_limit == pool.mine.connection_limit

    def test_a_session_has_no_helpers(self, pool: Pool) -> None:
        with contextlib.closing(pool.login(pool.mine)) as connection:
            connection.execute(
                "SET max_parallel_workers_per_gather = 8; SET max_parallel_workers = 64; SET parallel_setup_cost = 0;"
                "SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0;"
                "CREATE TEMP TABLE gone (i int); CREATE TABLE IF NOT EXISTS many AS SELECT generate_series(1, 50000) AS i"
            )
            plan = "\n".join(
                str(row[0]) for row in connection.execute("EXPLAIN (ANALYZE, COSTS off) SELECT count(*) FROM many")
            )
        assert "Workers Planned" in plan
        assert "Workers Launched: 0" in plan

    def test_passwords_and_statements_of_tenants_are_not_in_the_log(self, pool: Pool) -> None:
        assert f"{MARK}_statement" not in pool.server.log_text()

    def test_a_dropped_tenant_leaves_the_others_alone_whatever_it_did(self, pool: Pool) -> None:
        wrecked, stop = pool_names(), threading.Event()
        with ENGINE.admin(pool.server.endpoint, pool.server.admin) as admin:
            admin.create_tenant(wrecked, login_password=PASSWORD, control_password=CONTROL)
        neighbours = self.of_the_neighbour(pool)
        for connection in [pool.login(wrecked) for _ in range(3)]:
            threading.Thread(target=self.hold, args=(connection, stop), daemon=True).start()
        with pool.login(wrecked) as connection:
            connection.execute("SELECT lo_from_bytea(0, 'x'); CREATE SCHEMA other; CREATE TABLE other.t (i int)")
            connection.execute(f"GRANT ALL ON SCHEMA other TO {pool.theirs.login}, PUBLIC")
            connection.execute(f"ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO {pool.theirs.group}")
            connection.execute(f"SET ROLE NONE; ALTER ROLE {wrecked.login} SET search_path = 'x'")
            connection.execute("CREATE TEMP TABLE mine (i int)")
        pool.beside.execute(
            f"ALTER DATABASE {wrecked.database} IS_TEMPLATE true ALLOW_CONNECTIONS false"  # type: ignore[arg-type]
        )
        pool.beside.execute(f"COMMENT ON DATABASE {wrecked.database} IS 'x'")  # type: ignore[arg-type]
        pool.beside.execute(f"COMMENT ON ROLE {wrecked.login} IS 'x'")  # type: ignore[arg-type]
        pool.beside.execute(f"CREATE ROLE {wrecked.login}_2 LOGIN IN ROLE {wrecked.group}")  # type: ignore[arg-type]
        oid = pool.beside.execute("SELECT oid FROM pg_database WHERE datname = %s", [wrecked.database]).fetchone()
        assert oid is not None
        try:
            with ENGINE.admin(pool.server.endpoint, pool.server.admin) as admin:
                admin.drop_tenant(wrecked)
                admin.drop_tenant(wrecked)
        finally:
            stop.set()
        left = pool.beside.execute(
            "SELECT (SELECT count(*) FROM pg_roles WHERE rolname LIKE %(like)s OR rolname = ANY(%(roles)s))"
            " + (SELECT count(*) FROM pg_database WHERE oid = %(oid)s)"
            " + (SELECT count(*) FROM pg_db_role_setting WHERE setdatabase = %(oid)s OR setrole <> 0"
            "      AND setrole NOT IN (SELECT oid FROM pg_authid))"
            " + (SELECT count(*) FROM pg_shdescription WHERE description = 'x')"
            " + (SELECT count(*) FROM pg_shdepend WHERE dbid = %(oid)s)"
            " + (SELECT count(*) FROM pg_auth_members WHERE member NOT IN (SELECT oid FROM pg_authid))",
            {"like": f"{wrecked.login}%", "roles": [wrecked.owner, wrecked.group, wrecked.control], "oid": oid[0]},
        ).fetchone()
        assert left == (0,)
        assert self.of_the_neighbour(pool) == neighbours
        assert pool.neighbour.execute("SELECT 1").fetchone() == (1,)

    @staticmethod
    def hold(connection: Connection, stop: threading.Event) -> None:
        with contextlib.suppress(psycopg.Error):
            connection.execute("BEGIN; CREATE TABLE IF NOT EXISTS held (i int)")
            stop.wait(20)

    @staticmethod
    def of_the_neighbour(pool: Pool) -> object:
        """All that the server knows of it that others could change."""
        return pool.beside.execute(
            "SELECT d.datname, d.datacl::text, d.datconnlimit, d.datallowconn, d.datistemplate,"
            " (SELECT array_agg(setconfig::text ORDER BY 1) FROM pg_db_role_setting WHERE setdatabase = d.oid OR setrole ="
            "   (SELECT oid FROM pg_roles WHERE rolname = %(login)s)),"
            " (SELECT array_agg(a::text ORDER BY rolname) FROM pg_authid a WHERE rolname = ANY(%(roles)s)),"
            " (SELECT array_agg(pid ORDER BY pid) FROM pg_stat_activity WHERE datname = d.datname)"
            "  FROM pg_database d WHERE d.datname = %(database)s",
            {
                "database": pool.theirs.database, "login": pool.theirs.login,
                "roles": [pool.theirs.owner, pool.theirs.group, pool.theirs.login, pool.theirs.control],
            },
        ).fetchall()  # fmt: skip


class InDocker(Isolation):
    @classmethod
    def servers(cls) -> Iterator[LiveServer]:
        yield from docker_server(ENGINE, cls.version, pool=True)

    @pytest.mark.parametrize("as_us", [False, True], ids=["by the tenant", "by us"])
    def test_a_dump_carries_nothing_of_it(self, pool: Pool, *, as_us: bool) -> None:
        """So that it can be restored anywhere: what is closed in the catalog stays here."""
        user = pool.server.admin if as_us else Credentials(pool.mine.login, PASSWORD)
        image = image_of(ENGINE, self.version, DockerRuntime("probe"))
        place = pool.server.endpoint
        with contextlib.closing(pool.login(pool.mine)) as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS dumped (i int)")
        done = subprocess.run(
            ["docker", "run", "--rm", "--network", "host", "-e", "PGPASSWORD", "--entrypoint", "pg_dump", image,
             "-h", place.host, "-p", str(place.port), "-U", user.username, pool.mine.database],
            capture_output=True, timeout=60, check=False, env={**os.environ, "PGPASSWORD": user.password},
        )  # fmt: skip
        text = done.stdout.decode()
        assert "CREATE TABLE public.dumped" in text, done.stderr.decode()
        assert not re.search(r"^(GRANT|REVOKE).*pg_catalog|nvs_(own|all)|pg_init_privs", text, re.MULTILINE)
        assert pool.mine.control not in text


@pytest.mark.docker
class TestPostgreSQL17(InDocker):
    version = "17"


@pytest.mark.docker
class TestPostgreSQL15(InDocker):
    version = "15"


@pytest.mark.docker
class TestPostgreSQL18(InDocker):
    version = "18"


@pytest.mark.process
class TestAsAProcess(Isolation):
    """Whichever version this machine has."""

    version = "15"

    @classmethod
    def servers(cls) -> Iterator[LiveServer]:
        version = next((v for v in ("15", "17", "18") if find("postgres", v) is not None), "")
        if not version:
            pytest.skip("no PostgreSQL is installed here")
        root = Path(tempfile.mkdtemp(prefix="nvs-test-", dir="/tmp"))
        root.chmod(0o711)
        runtime = ProcessRuntime(f"test-{uuid.uuid4().hex[:8]}", root / "state")
        try:
            yield from live_server(ENGINE, version, "", runtime, pool=True)
        finally:
            shutil.rmtree(root, ignore_errors=True)
