"""What every engine promises, as one abstract suite on a real server. A subclass overrides the fixture `server`."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from projects import registry
from projects.domain import (
    Capability,
    ConnectionInfo,
    Counters,
    Credentials,
    Endpoint,
    EngineError,
    EngineVersion,
    Handle,
    Limits,
    LoginRefused,
    ServerNotReady,
    ServerRequest,
    TableCounts,
    TenantNames,
)
from projects.engines import catalogue
from projects.engines.admin import BLANK_PREFIX, EngineAdmin
from projects.engines.base import EXPECTED, Engine

HOSTILE = "p@ss:w/o?r#d%20 '\"$`\\&{}é"
SNIPPETS = {"cli", "env", "django", "sqlalchemy", "node", "prisma", "go", "jdbc", "compose"}


@dataclass(frozen=True)
class LiveServer:
    """A ready server and its administrative login. `logs` reads what it has logged so far."""

    endpoint: Endpoint
    admin: Credentials
    logs: object = None

    def log_text(self) -> str:
        return self.logs() if callable(self.logs) else ""


@dataclass(frozen=True)
class Tenant:
    names: TenantNames
    password: str
    control_password: str

    @property
    def login(self) -> Credentials:
        return Credentials(self.names.login, self.password, self.names.database)

    @property
    def control(self) -> Credentials:
        return Credentials(self.names.control, self.control_password, self.names.database)


class TenantSession(Protocol):
    """What the contract does as a tenant. The table has one row at first."""

    def make_table(self) -> None: ...

    def write(self) -> bool:
        """Whether a row could be added; False only for a read-only session."""

    def rows(self) -> int: ...

    def ended(self) -> bool: ...

    def override(self, *, for_good: bool) -> None:
        """Say that this session writes all the same, or (`for_good`) that all sessions of the login do."""

    def begin_writing(self) -> None:
        """A transaction that has written and stays open."""

    def empty_table(self) -> None: ...


def new_names(connection_limit: int = 20) -> TenantNames:
    part = uuid.uuid4().hex[:8]
    return TenantNames(
        f"shop_{part}", f"nvs_o_{part}", f"nvs_g_{part}", f"app_{part}", f"nvs_c_{part}", connection_limit
    )


def request(engine: Engine, version: str, password: str) -> ServerRequest:
    return ServerRequest(
        handle=Handle(str(uuid.uuid4()), 1),
        version=version,
        image="image",
        publish=Endpoint("127.0.0.1", 20000),
        limits=Limits(512 << 20, 0.5),
        max_connections=40,
        admin=Credentials(engine.bootstrap_username, password),
    )


def fencing(test: Callable[..., None]) -> Callable[..., None]:
    """For engines that stop a tenant's writing by new sessions; others say that they can't, which is tested, or do it
    otherwise, and have tests of their own."""

    @functools.wraps(test)
    def wrapped(self: EngineContract, *args: object, **kwargs: object) -> None:
        if Capability.WRITE_FENCE in self.engine.capabilities and self.fence_ends_sessions:
            test(self, *args, **kwargs)

    return wrapped


class EngineContract:
    engine: Engine
    empty_size_bytes = 1  # what an empty database has at least
    snippets = SNIPPETS
    fence_ends_sessions = True  # False: it holds for open ones as they are
    fence_gives_way = True  # a fenced tenant can say in a session, or for good, that it writes all the same

    @pytest.fixture(scope="class")
    @classmethod
    def server(cls) -> Iterator[LiveServer]:
        raise NotImplementedError("override the class-scoped fixture `server`")

    @pytest.fixture
    def tenant(self, server: LiveServer) -> Iterator[Tenant]:
        tenant = self.make(server, new_names())
        yield tenant
        self.drop(server, tenant.names)

    def make(self, server: LiveServer, names: TenantNames) -> Tenant:
        tenant = Tenant(names, f"t'{uuid.uuid4().hex}\"\\", f"c{uuid.uuid4().hex}")
        with self.engine.admin(server.endpoint, server.admin) as admin:
            admin.harden()
            admin.create_tenant(names, login_password=tenant.password, control_password=tenant.control_password)
        return tenant

    def open_session(self, server: LiveServer, tenant: Tenant) -> AbstractContextManager[TenantSession]:
        """As the tenant, with what a client gets that asks for nothing special."""
        raise NotImplementedError("override it for this engine")

    def drop(self, server: LiveServer, names: TenantNames) -> None:
        with self.engine.admin(server.endpoint, server.admin) as admin:
            admin.drop_tenant(names)

    def shipped(self) -> tuple[EngineVersion, ...]:
        return catalogue.shipped(registry.engines())[self.engine.name]

    # --- the catalogue ------------------------------------------------------------------------------------------------
    def test_the_catalogue(self) -> None:
        shipped = self.shipped()
        assert sum(version.default for version in shipped) == 1
        assert shipped[0].default
        for version in shipped:
            assert catalogue.problems_of(self.engine, version) == []
        assert catalogue.problems_of(self.engine, EngineVersion("0.1"))
        assert len(self.engine.short) == 2

    @pytest.mark.parametrize("secret", ["sesame-sesame", "it's \"$open\\"])
    def test_a_spec_holds_its_secret_in_files_only(self, secret: str) -> None:
        for version in self.shipped():
            asked = request(self.engine, version.version, secret)
            spec = self.engine.server_spec(asked)
            assert spec == self.engine.server_spec(asked)
            assert secret.encode() in b"".join(spec.secret_files.values())
            bare = dataclasses.replace(spec, secret_files={})
            assert secret not in repr(dataclasses.asdict(bare))
            assert secret not in repr(spec)
            assert spec.mount_path.startswith("/")
            assert not spec.data_subdir.startswith("/")
            assert spec.user not in {"", "root", "0"}
            assert spec.process is None or secret not in " ".join([*spec.process.init, *spec.process.run])

    # --- names --------------------------------------------------------------------------------------------------------
    @pytest.mark.parametrize("name", ["shop", "my_app_2", "_x", "a" * 63])
    def test_names_that_are_fine(self, name: str) -> None:
        assert self.engine.validate_identifier(name) == name

    @pytest.mark.parametrize(
        "name",
        [
            "",
            "Shop",
            "my-app",
            "2fast",
            "a" * 64,
            "sh op",
            "shop;",
            'a"b',
            "a'b",
            "naïve",
            "shop\n",
            "novastack",
            "nvs_1",
        ],
    )
    def test_names_that_are_refused_with_a_reason(self, name: str) -> None:
        with pytest.raises(ValueError, match=r"Use|reserved|Choose"):
            self.engine.validate_identifier(name)

    def test_user_names_are_as_long_as_the_engine_takes_them(self) -> None:
        longest = "u" * self.engine.max_username_length
        assert self.engine.validate_username(longest) == longest
        with pytest.raises(ValueError, match="Use"):
            self.engine.validate_username(longest + "u")
        with pytest.raises(ValueError, match=r"\w"):
            self.engine.validate_username("sh op")

    def test_reserved_names(self) -> None:
        assert self.engine.reserved_names()
        for name in self.engine.reserved_names():
            with pytest.raises(ValueError, match=r"\w"):
                self.engine.validate_identifier(name)

    # --- how to connect -----------------------------------------------------------------------------------------------
    @pytest.mark.parametrize("host", ["db.example.org", "127.0.0.1", "::1"])
    def test_urls_survive_hostile_characters(self, host: str) -> None:
        info = ConnectionInfo(self.engine.name, host, 20001, "shop", "app", HOSTILE)
        uri = urlsplit(self.engine.urls(info)["uri"])
        assert (uri.hostname, uri.port, unquote(uri.username or "")) == (host, 20001, "app")
        assert unquote(uri.password or "") == HOSTILE
        assert unquote(uri.path) == "/shop"
        if "jdbc" in self.snippets:
            jdbc = urlsplit(self.engine.urls(info)["jdbc_url"].removeprefix("jdbc:"))
            assert (jdbc.hostname, jdbc.port) == (host, 20001)
            assert parse_qs(jdbc.query)["password"] == [HOSTILE]
        assert self.engine.env(info)["DATABASE_URL"] == self.engine.urls(info)["uri"]

    def test_there_is_a_snippet_for_everybody(self) -> None:
        info = ConnectionInfo(self.engine.name, "127.0.0.1", 20001, "shop", "app", HOSTILE)
        found = self.engine.snippets(info)
        assert set(found) == self.snippets
        assert all("20001" in text for text in found.values())
        assert HOSTILE not in repr(info)

    # --- logins -------------------------------------------------------------------------------------------------------
    def test_probe(self, server: LiveServer) -> None:
        self.engine.probe(server.endpoint, server.admin)

    def test_a_wrong_password_is_refused(self, server: LiveServer) -> None:
        wrong = dataclasses.replace(server.admin, password="wrong")
        with pytest.raises(LoginRefused) as error:
            self.engine.probe(server.endpoint, wrong)
        assert "wrong" not in str(error.value)
        with (
            pytest.raises(LoginRefused),
            self.engine.admin(server.endpoint, Credentials("nobody_here", "wrong")) as admin,
        ):
            admin.ping()

    def test_nobody_listens(self) -> None:
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            port = closed.getsockname()[1]
        with pytest.raises(ServerNotReady):
            self.engine.probe(Endpoint("127.0.0.1", port), Credentials("a", "b"))

    def test_a_frozen_server_does_not_hold_us(self) -> None:
        """It accepts, since the kernel does, and never says a word."""
        with socket.socket() as frozen:
            frozen.bind(("127.0.0.1", 0))
            frozen.listen()
            began = time.monotonic()
            with pytest.raises(ServerNotReady):
                self.engine.probe(Endpoint(*frozen.getsockname()), Credentials("a", "b"), timeout_seconds=2)
            assert time.monotonic() - began < 60

    # --- the server ---------------------------------------------------------------------------------------------------
    def test_the_system_identifier_stays(self, server: LiveServer) -> None:
        with self.engine.admin(server.endpoint, server.admin) as admin:
            admin.ping()
            admin.harden()
            first = admin.system_identifier()
        with self.engine.admin(server.endpoint, server.admin) as admin:
            assert admin.system_identifier() == first != ""

    def test_harden_twice(self, server: LiveServer) -> None:
        with self.engine.admin(server.endpoint, server.admin) as admin:
            admin.harden()
            admin.harden()

    # --- tenants ------------------------------------------------------------------------------------------------------
    def test_a_tenant_can_log_in_and_write(self, server: LiveServer, tenant: Tenant) -> None:
        version = self.engine.verify_tenant(server.endpoint, tenant.names, tenant.password)
        assert version[0].isdigit()
        self.engine.probe(server.endpoint, tenant.login)
        self.engine.probe(server.endpoint, tenant.control)

    def test_making_a_tenant_again_changes_nothing_but_passwords(self, server: LiveServer, tenant: Tenant) -> None:
        with self.engine.admin(server.endpoint, server.admin) as admin:
            admin.create_tenant(tenant.names, login_password="again", control_password=tenant.control_password)
        self.engine.verify_tenant(server.endpoint, tenant.names, "again")
        with pytest.raises(LoginRefused):
            self.engine.probe(server.endpoint, tenant.login)

    def test_several_workers_make_the_same_tenant(self, server: LiveServer) -> None:
        """One was killed, and the server goes on with its last statement while the next one begins."""
        tenant = Tenant(new_names(), uuid.uuid4().hex, uuid.uuid4().hex)
        passwords = {"login_password": tenant.password, "control_password": tenant.control_password}

        def make() -> None:
            with self.engine.admin(server.endpoint, server.admin) as admin:
                admin.create_tenant(tenant.names, **passwords)

        try:
            with self.engine.admin(server.endpoint, server.admin) as admin:
                admin.harden()
            with ThreadPoolExecutor(3) as pool:
                for made in [pool.submit(make) for _ in range(3)]:
                    made.result(120)
            self.engine.verify_tenant(server.endpoint, tenant.names, tenant.password)
        finally:
            self.drop(server, tenant.names)

    def test_a_new_password_replaces_the_old_and_reaches_no_log(self, server: LiveServer, tenant: Tenant) -> None:
        with self.engine.admin(server.endpoint, server.admin) as admin:
            admin.set_password(tenant.names.login, "rotated-and-secret")
        self.engine.probe(server.endpoint, dataclasses.replace(tenant.login, password="rotated-and-secret"))
        with pytest.raises(LoginRefused):
            self.engine.probe(server.endpoint, tenant.login)
        assert "rotated-and-secret" not in server.log_text()
        assert tenant.password not in server.log_text()

    def test_two_passwords_for_a_while_where_the_engine_can(self, server: LiveServer, tenant: Tenant) -> None:
        with self.engine.admin(server.endpoint, server.admin) as admin:
            admin.set_password(tenant.names.login, "rotated", keep_old=True)
            self.engine.probe(server.endpoint, dataclasses.replace(tenant.login, password="rotated"))
            if Capability.DUAL_PASSWORD in self.engine.capabilities:
                self.engine.probe(server.endpoint, tenant.login)
            admin.discard_old_password(tenant.names.login)
            admin.discard_old_password(tenant.names.login)
        self.engine.probe(server.endpoint, dataclasses.replace(tenant.login, password="rotated"))
        with pytest.raises(LoginRefused):
            self.engine.probe(server.endpoint, tenant.login)

    def test_our_own_password_can_change_in_the_middle(self, server: LiveServer) -> None:
        names = new_names()
        try:
            with self.engine.admin(server.endpoint, server.admin) as admin:
                admin.harden()
                admin.set_password(server.admin.username, "another")
                admin.create_tenant(names, login_password="a", control_password="b")
            self.engine.verify_tenant(server.endpoint, names, "a")
        finally:
            changed = dataclasses.replace(server.admin, password="another")
            with self.engine.admin(server.endpoint, changed) as admin:
                admin.set_password(server.admin.username, server.admin.password)
        self.drop(server, names)

    def test_a_locked_tenant_is_out_until_it_is_unlocked(self, server: LiveServer, tenant: Tenant) -> None:
        with self.engine.admin(server.endpoint, server.admin) as admin:
            assert tenant.names.login not in (admin.locked_logins() or set())
            admin.lock_tenant(tenant.names, locked=True)
            admin.lock_tenant(tenant.names, locked=True)
            told = admin.locked_logins()
            assert told is None or (tenant.names.login in told and tenant.names.control not in told)
            with pytest.raises(LoginRefused):
                self.engine.probe(server.endpoint, tenant.login)
            self.engine.probe(server.endpoint, tenant.control)
            admin.lock_tenant(tenant.names, locked=False)
            assert tenant.names.login not in (admin.locked_logins() or set())
        self.engine.probe(server.endpoint, tenant.login)

    def test_a_server_says_whether_anybody_has_anything_on_it(self, server: LiveServer) -> None:
        def contents() -> set[str]:
            with self.engine.admin(server.endpoint, server.admin) as admin:
                admin.harden()
                return set(admin.contents())

        before = contents()
        assert not before & {server.admin.username, "novastack", "postgres", "mysql", "admin"}
        tenant = self.make(server, new_names())
        assert {tenant.names.login, tenant.names.control} <= contents()
        self.drop(server, tenant.names)
        assert contents() == before

    # --- servers of several tenants -----------------------------------------------------------------------------------
    def test_a_server_says_which_databases_it_has(self, server: LiveServer, tenant: Tenant) -> None:
        self.fill(server, tenant, "things", 1)
        with self.engine.admin(server.endpoint, server.admin) as admin:
            found = admin.databases()
        assert tenant.names.database in found
        assert not {"postgres", "template0", "template1", "mysql", "sys", "novastack", "admin", "local"} & set(found)
        assert tenant.names.login not in found

    def test_a_blank_becomes_a_tenants_database(self, server: LiveServer) -> None:
        name = f"{BLANK_PREFIX}{uuid.uuid4().hex[:8]}"
        tenant = Tenant(new_names(), uuid.uuid4().hex, uuid.uuid4().hex)
        passwords = {"login_password": tenant.password, "control_password": tenant.control_password}
        with self.engine.admin(server.endpoint, server.admin) as admin:
            admin.harden()
            if Capability.BLANKS not in self.engine.capabilities:
                for call in (admin.make_blank, admin.drop_blank):
                    with pytest.raises(EngineError, match="can't"):
                        call(name)
                admin.create_tenant(tenant.names, **passwords, blank=name)
                admin.drop_tenant(tenant.names)
                return
            before = admin.contents()
            try:
                admin.make_blank(name)
                admin.make_blank(name)
                assert name in admin.blanks()
                assert name in admin.databases()
                assert admin.contents() == before
                admin.create_tenant(tenant.names, **passwords, blank=name)
                assert name not in admin.databases()
                admin.create_tenant(tenant.names, **passwords, blank=name)
                self.engine.verify_tenant(server.endpoint, tenant.names, tenant.password)
                assert admin.stats(tenant.names.database).size_bytes > 0
            finally:
                admin.drop_tenant(tenant.names)
            admin.make_blank(name)
            admin.drop_blank(name)
            admin.drop_blank(name)
            assert name not in admin.databases()

    def test_what_is_no_blank_is_not_touched(self, server: LiveServer, tenant: Tenant) -> None:
        if Capability.BLANKS not in self.engine.capabilities:
            return
        with self.engine.admin(server.endpoint, server.admin) as admin:
            for call in (admin.make_blank, admin.drop_blank):
                with pytest.raises(EngineError, match="blank"):
                    call(tenant.names.database)
        self.engine.verify_tenant(server.endpoint, tenant.names, tenant.password)

    def test_what_is_done_to_one_tenant_leaves_its_neighbour_alone(self, server: LiveServer, tenant: Tenant) -> None:
        """Every method that names a tenant, with another one at work on the same server: its session lives, writes and is
        not fenced, its logins get in, and all that the product keeps of it is as it was."""
        if not {Capability.POOL, Capability.END_SESSIONS} <= self.engine.capabilities:
            return  # one tenant a server; or no way to see whose sessions live
        one = self.make(server, new_names())
        names = one.names

        def dropped_and_made_again(admin: EngineAdmin) -> None:
            admin.drop_tenant(names)
            admin.create_tenant(names, login_password=one.password, control_password=one.control_password)

        calls: dict[str, Callable[[EngineAdmin], object]] = {
            "made again": lambda admin: admin.create_tenant(
                names, login_password=one.password, control_password=one.control_password
            ),
            "rotated": lambda admin: admin.set_password(names.login, "rotated", keep_old=True),
            "the old password discarded": lambda admin: admin.discard_old_password(names.login),
            "its sessions ended": lambda admin: admin.end_sessions(names.login),
            "locked": lambda admin: admin.lock_tenant(names, locked=True),
            "unlocked": lambda admin: admin.lock_tenant(names, locked=False),
            "fenced": lambda admin: admin.fence_writers(names, fenced=True),
            "its fence held": lambda admin: admin.hold_fence(names, hard=True),
            "its fence lifted": lambda admin: admin.fence_writers(names, fenced=False),
            "looked at": lambda admin: admin.stats(names.database),
            "dropped, and made again": dropped_and_made_again,
            "dropped": lambda admin: admin.drop_tenant(names),
        }
        with (
            self.engine.admin(server.endpoint, server.admin) as admin,
            self.open_session(server, tenant) as neighbour,
            self.open_session(server, tenant) as writing,
        ):
            neighbour.make_table()
            neighbour.write()
            writing.begin_writing()
            before = self.fingerprint(server, tenant)
            for what, call in calls.items():
                with contextlib.ExitStack() as stack:
                    if what not in {"locked", "unlocked", "dropped", "rotated", "the old password discarded"}:
                        with contextlib.suppress(Exception):  # of the one that it is done to: whatever state it is in
                            stack.enter_context(self.open_session(server, one))
                    call(admin)
                assert not neighbour.ended(), what
                assert not writing.ended(), what
                assert self.fingerprint(server, tenant) == before, what
                stats = admin.stats(tenant.names.database)
                assert not stats.fenced, what
                assert stats.connections == 2, what
                assert stats.connections_limit == tenant.names.connection_limit, what
                self.engine.probe(server.endpoint, tenant.login)
                self.engine.probe(server.endpoint, tenant.control)
                with self.open_session(server, tenant) as another:
                    assert another.rows() == 2, what
            assert self.table_counts(server, tenant).total == 1

    def fingerprint(self, server: LiveServer, tenant: Tenant) -> object:
        """All that the product keeps of a tenant's logins and database besides its rows; and its sessions."""
        raise NotImplementedError("override it for this engine")

    def test_fencing_one_of_two(self, server: LiveServer, tenant: Tenant) -> None:
        """The fence is the tenant's: seen and felt by nobody else, also not by new sessions."""
        if not {Capability.POOL, Capability.WRITE_FENCE, Capability.END_SESSIONS} <= self.engine.capabilities:
            return
        other = self.make(server, new_names())
        try:
            for each in (tenant, other):
                with self.open_session(server, each) as session:
                    session.make_table()
            with self.engine.admin(server.endpoint, server.admin) as admin:
                admin.fence_writers(other.names, fenced=True)
                assert (admin.stats(tenant.names.database).fenced, admin.stats(other.names.database).fenced) == (
                    False,
                    True,
                )
                with self.open_session(server, tenant) as free, self.open_session(server, other) as fenced:
                    assert free.write()
                    assert not fenced.write()
        finally:
            self.drop(server, other.names)

    def test_dropping_twice_is_success(self, server: LiveServer) -> None:
        tenant = self.make(server, new_names())
        self.drop(server, tenant.names)
        self.drop(server, tenant.names)
        with pytest.raises(LoginRefused):
            self.engine.probe(server.endpoint, tenant.login)
        again = self.make(server, tenant.names)
        self.engine.probe(server.endpoint, again.login)
        self.drop(server, tenant.names)

    def test_stats(self, server: LiveServer, tenant: Tenant) -> None:
        with self.engine.admin(server.endpoint, server.admin) as admin:
            stats = admin.stats(tenant.names.database)
        with self.engine.admin(server.endpoint, tenant.control) as session:
            session.ping()
            assert session.stats(tenant.names.database).connections_limit == stats.connections_limit
        assert stats.size_bytes >= self.empty_size_bytes
        if Capability.CONNECTION_LIMIT in self.engine.capabilities:
            assert stats.connections == 0
            assert stats.connections_limit == tenant.names.connection_limit
        assert stats.version[0].isdigit()

    # --- figures ------------------------------------------------------------------------------------------------------
    def fill(self, server: LiveServer, tenant: Tenant, table: str, rows: int) -> None:
        """As the tenant: a new table of that name with so many rows, and read them."""
        raise NotImplementedError("override it for this engine")

    def table_counts(self, server: LiveServer, tenant: Tenant, *, limit: int = 200) -> TableCounts:
        with self.engine.admin(server.endpoint, tenant.control, statement_seconds=3) as session:
            return session.table_counts(tenant.names.database, limit=limit)

    def test_counters_count_what_is_done(self, server: LiveServer, tenant: Tenant) -> None:
        def read() -> Counters:
            with self.engine.admin(server.endpoint, tenant.control) as session:
                found = session.stats(tenant.names.database).counters
            assert found is not None
            return found

        before = read()
        assert before.transactions is not None or before.queries is not None
        self.fill(server, tenant, "things", 50)
        deadline = time.monotonic() + 90
        while True:
            after = read()
            done = (after.transactions or after.queries or 0) - (before.transactions or before.queries or 0)
            if done >= 50 or time.monotonic() > deadline:
                break
            time.sleep(0.2)
        assert 50 <= done < 500
        if after.cache_hits is not None and after.cache_misses is not None:
            assert after.cache_hits > (before.cache_hits or 0)
            assert after.cache_misses >= 0
        assert after.uptime_seconds is None or after.uptime_seconds >= (before.uptime_seconds or 0)

    def test_tables_with_estimates(self, server: LiveServer, tenant: Tenant) -> None:
        assert self.table_counts(server, tenant) == TableCounts((), 0)
        self.fill(server, tenant, "many", 2000)
        self.fill(server, tenant, "few", 2)
        deadline = time.monotonic() + 90
        while True:
            found = self.table_counts(server, tenant)
            rows = {table.name: table.rows for table in found.tables}
            if rows.get("many") not in {None, 0} or time.monotonic() > deadline:
                break
            time.sleep(0.3)
        assert found.total == 2
        assert rows.keys() == {"many", "few"}
        assert 1000 <= (rows["many"] or 0) <= 4000
        assert (rows["few"] or 0) <= 10
        sizes = [table.size_bytes or 0 for table in found.tables]
        assert sizes == sorted(sizes, reverse=True)
        assert sizes[0] >= 8192
        capped = self.table_counts(server, tenant, limit=1)
        assert (len(capped.tables), capped.total) == (1, 2)

    def test_what_the_product_cannot_do_is_said_and_never_pretended(self, server: LiveServer, tenant: Tenant) -> None:
        calls: dict[Capability, Callable[[EngineAdmin], object]] = {
            Capability.WRITE_FENCE: lambda admin: admin.fence_writers(tenant.names, fenced=True),
            Capability.END_SESSIONS: lambda admin: admin.end_sessions(tenant.names.login),
        }
        with self.engine.admin(server.endpoint, server.admin) as admin:
            for capability, call in calls.items():
                if capability not in self.engine.capabilities:
                    with pytest.raises(EngineError, match="can't"):
                        call(admin)
        lacking = [text for capability, text in EXPECTED.items() if capability not in self.engine.capabilities]
        assert set(lacking) <= set(self.engine.limitations)

    # --- writers that are fenced --------------------------------------------------------------------------------------
    @fencing
    def test_fenced_writers_read_and_may_free_space_on_purpose(self, server: LiveServer, tenant: Tenant) -> None:
        with (
            self.engine.admin(server.endpoint, server.admin) as admin,
            self.open_session(server, tenant) as before,
        ):
            before.make_table()
            assert before.write()
            assert not admin.stats(tenant.names.database).fenced
            assert admin.fence_writers(tenant.names, fenced=True) == 1
            assert before.ended()
            assert admin.stats(tenant.names.database).fenced
            with self.engine.admin(server.endpoint, tenant.control) as session:
                assert session.stats(tenant.names.database).fenced  # as the role of the health checks sees it
            with self.open_session(server, tenant) as session:
                assert session.rows() == 2
                assert not session.write()
                session.override(for_good=False)
                session.empty_table()
                assert session.write() is self.fence_gives_way
            assert admin.fence_writers(tenant.names, fenced=True) == 0
            with self.open_session(server, tenant) as idle:
                assert not idle.write()
                assert admin.fence_writers(tenant.names, fenced=False) == 1
                assert idle.ended()
            assert not admin.stats(tenant.names.database).fenced
            assert admin.fence_writers(tenant.names, fenced=False) == 0
            with self.open_session(server, tenant) as session:
                assert session.write()

    @fencing
    def test_a_fence_is_there_after_everything_that_happens_to_a_tenant(
        self, server: LiveServer, tenant: Tenant
    ) -> None:
        names = tenant.names
        with self.engine.admin(server.endpoint, server.admin) as admin:
            with self.open_session(server, tenant) as session:
                session.make_table()
            admin.fence_writers(names, fenced=True)
            admin.set_password(names.login, "rotated")
            admin.lock_tenant(names, locked=True)
            admin.lock_tenant(names, locked=False)
            admin.create_tenant(names, login_password="again", control_password=tenant.control_password)
            again = dataclasses.replace(tenant, password="again")
            self.engine.verify_tenant(server.endpoint, names, "again")  # our own proof still works
            self.engine.probe(server.endpoint, again.login)
            with self.open_session(server, again) as session:
                assert not session.write()
            assert admin.stats(names.database).fenced

    @fencing
    def test_lifting_leaves_alone_who_is_freeing_space(self, server: LiveServer, tenant: Tenant) -> None:
        with (
            self.engine.admin(server.endpoint, server.admin) as admin,
            self.open_session(server, tenant) as session,
        ):
            session.make_table()
            admin.fence_writers(tenant.names, fenced=True)
            with self.open_session(server, tenant) as busy:
                busy.override(for_good=False)
                busy.begin_writing()
                assert admin.fence_writers(tenant.names, fenced=False) == 0
                assert not busy.ended()

    @fencing
    def test_a_fence_that_is_held(self, server: LiveServer, tenant: Tenant) -> None:
        """Softly: nobody gets around it for good. Hard: nobody writes for long. Readers are never ended."""
        with (
            self.engine.admin(server.endpoint, server.admin) as admin,
            self.open_session(server, tenant) as session,
        ):
            session.make_table()
            admin.fence_writers(tenant.names, fenced=True)
            with self.open_session(server, tenant) as reader, self.open_session(server, tenant) as writer:
                assert reader.rows() == 1
                writer.override(for_good=False)
                writer.begin_writing()
                assert admin.hold_fence(tenant.names, hard=False) == 0
                assert not writer.ended()
                assert admin.hold_fence(tenant.names, hard=True) == 1
                assert writer.ended()
                assert not reader.ended()
            with self.open_session(server, tenant) as sly:
                sly.override(for_good=True)
            with self.open_session(server, tenant) as around:
                assert around.write() is self.fence_gives_way
                assert admin.hold_fence(tenant.names, hard=False) == int(self.fence_gives_way)
                assert around.ended() is self.fence_gives_way
            with self.open_session(server, tenant) as session:
                assert not session.write()
