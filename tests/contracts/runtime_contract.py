"""What every runtime promises, as one abstract suite on real PostgreSQL servers.

A subclass names its runtime by overriding the class-scoped fixture `runtime`, and says how things go wrong there by
overriding the hooks (`foreign_data`, `lose_data` …). A hook that returns `None` skips what can't be tried in that
runtime. Servers are `self.version` of PostgreSQL; a runtime without real servers sets `real = False`.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import psycopg
import pytest

from projects.domain import (
    Command,
    Credentials,
    DataExists,
    DataInUse,
    DataMissing,
    DataPolicy,
    Endpoint,
    EngineError,
    Handle,
    ImageMissing,
    ImageRef,
    Limits,
    LogPart,
    NovaStackRuntimeError,
    PortTaken,
    RuntimeFeature,
    RuntimeUnreachable,
    ServerRequest,
    ServerSpec,
    ServerState,
    StaleHandle,
)
from projects.engines.postgresql import PostgreSQL
from projects.runtimes.base import Runtime

ENGINE = PostgreSQL()
MIB = 1024**2
MakeSpec = Callable[..., ServerSpec]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def new_handle() -> Handle:
    return Handle(str(uuid.uuid4()), 1)


def spec_maker(version: str, image: ImageRef, password: str, published_on: str = "127.0.0.1") -> MakeSpec:
    """Makes specs of small servers: each with its own name and port unless told."""

    def make(handle: Handle | None = None, *, port: int = 0, **changes: object) -> ServerSpec:
        spec = ENGINE.server_spec(
            ServerRequest(
                handle=handle or new_handle(),
                version=version,
                image=image.digest or image.name,
                publish=Endpoint(published_on, port or free_port()),
                limits=Limits(256 * MIB, 1.0),
                max_connections=40,
                admin=Credentials(ENGINE.bootstrap_username, password),
                labels={"io.novastack.project": str(uuid.uuid4())},
                burst=True,
            )
        )
        return replace(spec, **changes)  # type: ignore[arg-type]

    return make


def numbers(part: LogPart, prefix: bytes) -> list[int]:
    """Of the lines that carry the prefix, what stands behind it."""
    found = (re.search(re.escape(prefix) + rb"(\d+)", line) for line in part.lines)
    return [int(match[1]) for match in found if match]


@dataclass(frozen=True)
class Server:
    """A server that was started for tests, with the login to its maintenance database."""

    spec: ServerSpec
    handle: Handle
    credentials: Credentials

    @property
    def endpoint(self) -> Endpoint:
        return self.spec.publish

    def connect(self) -> psycopg.Connection[tuple[object, ...]]:
        return psycopg.connect(
            host=self.endpoint.host, port=self.endpoint.port, dbname="postgres", autocommit=True, connect_timeout=5,
            user=self.credentials.username, password=self.credentials.password,
        )  # fmt: skip


class RuntimeContract:
    """The suite. Class-scoped: one runtime (its own install), one healthy server shared by tests that don't harm it."""

    real = True  # servers answer SQL
    tools = True  # run_tool runs real programs
    keeps_logs = True  # of a stopped server; otherwise its log begins anew, and says so
    published_on = "127.0.0.1"  # a runtime that publishes on all addresses only: 0.0.0.0 (and then it refuses this one)
    version = "17"

    # --- what a subclass overrides ------------------------------------------------------------------------------------
    @pytest.fixture(scope="class")
    @classmethod
    def runtime(cls) -> Iterator[Runtime]:
        raise NotImplementedError("override the fixture `runtime` (scope class): a runtime of an install of its own")

    def other_install(self, runtime: Runtime) -> Runtime | None:
        """Another install on the same place: must see nothing of this one."""
        return None

    def unreachable(self) -> Runtime | None:
        """A runtime of this kind where nobody answers."""
        return None

    def foreign_data(self, runtime: Runtime, handle: Handle) -> object | None:
        """Put data under this handle's name that is not ours (True when done)."""
        return None

    def lose_data(self, runtime: Runtime, handle: Handle) -> object | None:
        """Take a stopped server's data away behind its back (True when done); the server itself may go as well."""
        return None

    def change_marker(self, runtime: Runtime, handle: Handle) -> object | None:
        """Make a stopped server's data say that it belongs to another one (True when done)."""
        return None

    def hold_lock(self, runtime: Runtime, handle: Handle) -> contextlib.AbstractContextManager[object] | None:
        """Hold the lock of a stopped server's data, as a second server would."""
        return None

    def own_file(self, runtime: Runtime, handle: Handle, name: str) -> tuple[bytes, bool] | None:
        """One of the spec's `files` as it lies there, and whether nobody but the server's user (and root) can read it."""
        return None

    def occupy(self, port: int) -> contextlib.AbstractContextManager[object]:
        """Somebody else listens on the port."""
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen()
        return contextlib.closing(listener)

    # --- fixtures and helpers -----------------------------------------------------------------------------------------
    @pytest.fixture(scope="class")
    @classmethod
    def image(cls, runtime: Runtime) -> ImageRef:
        return runtime.resolve_image(ENGINE.name, cls.version, ENGINE.official_image)

    @pytest.fixture(scope="class")
    @classmethod
    def password(cls) -> str:
        return "boot'$\\ %" + secrets.token_urlsafe(18)

    @pytest.fixture(scope="class")
    @classmethod
    def make_spec(cls, image: ImageRef, password: str) -> MakeSpec:
        return spec_maker(cls.version, image, password, cls.published_on)

    @pytest.fixture(scope="class")
    @classmethod
    def server(cls, runtime: Runtime, make_spec: MakeSpec, password: str) -> Iterator[Server]:
        suite = cls()
        yield suite.create(runtime, make_spec(), password)
        suite.clean(runtime)

    @pytest.fixture(autouse=True)
    def leave_nothing(self, request: pytest.FixtureRequest, runtime: Runtime) -> Iterator[None]:
        """Remove what a test made beside the shared server."""
        kept = {request.getfixturevalue("server").handle.name} if "server" in request.fixturenames else None
        yield
        if kept is None:
            shared = getattr(type(self), "_shared", "")
            kept = {shared} if shared else set()
        else:
            type(self)._shared = next(iter(kept))  # type: ignore[attr-defined]
        self.clean(runtime, kept=kept)

    def clean(self, runtime: Runtime, kept: set[str] | frozenset[str] = frozenset()) -> None:
        for handle in {h.name: h for h in [*runtime.managed_data(), *runtime.managed()]}.values():
            if handle.name not in kept:
                runtime.destroy(handle, delete_data=True)

    def create(self, runtime: Runtime, spec: ServerSpec, password: str) -> Server:
        handle = runtime.ensure(spec, data=DataPolicy.CREATE)
        server = Server(spec, handle, Credentials(ENGINE.bootstrap_username, password))
        self.wait_ready(runtime, server)
        return server

    def wait_ready(self, runtime: Runtime, server: Server, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while True:
            seen = runtime.observe([server.handle])[server.handle]
            try:
                if self.real:
                    ENGINE.probe(server.endpoint, server.credentials, timeout_seconds=3)
                assert seen.state == ServerState.RUNNING
                return
            except (EngineError, AssertionError):
                if time.monotonic() > deadline or seen.state in {ServerState.STOPPED, ServerState.ABSENT}:
                    tail = b"\n".join(runtime.logs(server.handle, tail=30))
                    pytest.fail(f"not ready: {seen}\n{tail.decode(errors='replace')}")
                time.sleep(0.1)

    def state(self, runtime: Runtime, handle: Handle) -> ServerState:
        return runtime.observe([handle])[handle].state

    def needs(self, done: object | None) -> None:
        if not done:
            pytest.skip("can't be tried in this runtime")

    # --- the promises -------------------------------------------------------------------------------------------------
    def test_it_answers(self, runtime: Runtime) -> None:
        runtime.ping()
        assert runtime.name

    def test_nobody_answers(self) -> None:
        runtime = self.unreachable()
        self.needs(runtime)
        assert runtime is not None
        first, second = new_handle(), new_handle()
        with pytest.raises(RuntimeUnreachable):
            runtime.ping()
        seen = runtime.observe([first, second])
        assert {seen[first].state, seen[second].state} == {ServerState.UNREACHABLE}
        with pytest.raises(RuntimeUnreachable):
            runtime.stop(first)
        with pytest.raises(RuntimeUnreachable):
            list(runtime.managed())
        with pytest.raises(RuntimeUnreachable):
            runtime.describe([first])

    def test_an_image_that_nobody_has(self, runtime: Runtime) -> None:
        with pytest.raises(ImageMissing):
            runtime.resolve_image("nosuchengine", "99", "novastack-nosuch")

    def test_ensure_is_idempotent(self, runtime: Runtime, server: Server) -> None:
        assert server.handle.ref
        again = runtime.ensure(server.spec, data=DataPolicy.CREATE)
        assert again == server.handle
        assert runtime.ensure(server.spec, data=DataPolicy.MUST_EXIST) == server.handle

    def test_observe(self, runtime: Runtime, server: Server) -> None:
        nobody = new_handle()
        seen = runtime.observe([server.handle, nobody])
        assert set(seen) == {server.handle, nobody}
        assert seen[nobody].state == ServerState.ABSENT
        assert seen[server.handle].state == ServerState.RUNNING
        assert seen[server.handle].ref == server.handle.ref
        assert seen[server.handle].started_at is not None
        assert runtime.observe([]) == {}

    def test_another_incarnation_is_absent(self, runtime: Runtime, server: Server) -> None:
        assert self.state(runtime, Handle(server.handle.server_id, 2)) == ServerState.ABSENT
        assert not runtime.data_exists(Handle(server.handle.server_id, 2))

    def test_managed_names_servers_and_data(self, runtime: Runtime, server: Server) -> None:
        assert server.handle in list(runtime.managed())
        assert server.handle.name in {handle.name for handle in runtime.managed_data()}
        assert runtime.data_exists(server.handle)

    def test_another_install_sees_nothing(self, runtime: Runtime, server: Server) -> None:
        other = self.other_install(runtime)
        self.needs(other)
        assert other is not None
        assert list(other.managed()) == []
        assert list(other.managed_data()) == []
        with pytest.raises((DataExists, StaleHandle)):
            other.ensure(server.spec, data=DataPolicy.CREATE)
        with contextlib.suppress(StaleHandle):
            other.destroy(server.handle, delete_data=True)
        assert self.state(runtime, server.handle) == ServerState.RUNNING
        assert runtime.data_exists(server.handle)

    def test_stop_and_start_keep_data(self, runtime: Runtime, server: Server) -> None:
        if self.real:
            with server.connect() as connection:
                connection.execute("CREATE TABLE IF NOT EXISTS kept AS SELECT 42 AS answer")
        runtime.stop(server.handle)
        assert self.state(runtime, server.handle) == ServerState.STOPPED
        runtime.stop(server.handle)
        assert runtime.start(server.handle).name == server.handle.name
        seen = runtime.observe([server.handle])[server.handle]
        started = Server(server.spec, replace(server.handle, ref=seen.ref), server.credentials)
        try:
            self.wait_ready(runtime, started)
            if self.real:
                with started.connect() as connection:
                    row = connection.execute("SELECT answer FROM kept").fetchone()
                    assert row == (42,)
        finally:
            if started.handle != server.handle:  # a runtime whose refs name a run, not a thing
                object.__setattr__(server, "handle", started.handle)

    def test_files_are_there_at_each_start_and_can_be_replaced(
        self, runtime: Runtime, make_spec: MakeSpec, password: str
    ) -> None:
        spec = make_spec(files={"one": b"first", "two": b"second"})
        server = self.create(runtime, spec, password)
        found = self.own_file(runtime, server.handle, "one")
        self.needs(found)
        assert found == (b"first", True)
        runtime.put_files(server.handle, {"one": b"other"})
        assert self.own_file(runtime, server.handle, "one") == (b"other", True)
        assert self.own_file(runtime, server.handle, "two") == (b"second", True)
        assert self.state(runtime, server.handle) == ServerState.RUNNING
        assert runtime.ensure(spec, data=DataPolicy.MUST_EXIST) == server.handle  # content does not make another server
        runtime.stop(server.handle)
        runtime.put_files(server.handle, {"two": b"while stopped"})
        assert self.own_file(runtime, server.handle, "two") == (b"while stopped", True)
        again = runtime.ensure(replace(spec, files={"one": b"third"}), data=DataPolicy.MUST_EXIST)
        assert self.own_file(runtime, again, "one") == (b"third", True)
        moved = make_spec(server.handle, files={"one": b"fourth"})  # another port makes it another server
        changed = runtime.ensure(moved, data=DataPolicy.MUST_EXIST)
        assert self.own_file(runtime, changed, "one") == (b"fourth", True)

    def test_files_of_nothing_are_refused(self, runtime: Runtime) -> None:
        with pytest.raises((StaleHandle, DataMissing)):
            runtime.put_files(new_handle(), {"one": b"first"})

    def test_stop_of_nothing_is_success(self, runtime: Runtime) -> None:
        runtime.stop(new_handle())

    def test_start_of_nothing_is_refused(self, runtime: Runtime) -> None:
        with pytest.raises((StaleHandle, DataMissing)):
            runtime.start(replace(new_handle(), ref="0123456789ab"))

    def test_a_stale_handle_is_refused(self, runtime: Runtime, server: Server) -> None:
        stale = replace(server.handle, ref="0" * len(server.handle.ref))
        for act in (
            lambda: runtime.stop(stale),
            lambda: runtime.start(stale),
            lambda: runtime.update(stale, server.spec.limits),
            lambda: runtime.destroy(stale, delete_data=True),
        ):
            with pytest.raises(StaleHandle):
                act()
        assert self.state(runtime, server.handle) == ServerState.RUNNING
        assert runtime.data_exists(server.handle)

    def test_without_data_nothing_is_made(self, runtime: Runtime, make_spec: MakeSpec) -> None:
        spec = make_spec()
        with pytest.raises(DataMissing):
            runtime.ensure(spec, data=DataPolicy.MUST_EXIST)
        assert self.state(runtime, spec.handle) == ServerState.ABSENT
        assert not runtime.data_exists(spec.handle)

    def test_foreign_data_is_refused(self, runtime: Runtime, make_spec: MakeSpec) -> None:
        spec = make_spec()
        self.needs(self.foreign_data(runtime, spec.handle))
        with pytest.raises(DataExists):
            runtime.ensure(spec, data=DataPolicy.CREATE)
        with pytest.raises(DataMissing):
            runtime.ensure(spec, data=DataPolicy.MUST_EXIST)
        assert self.state(runtime, spec.handle) == ServerState.ABSENT

    def test_lost_data_is_never_replaced(self, runtime: Runtime, make_spec: MakeSpec, password: str) -> None:
        server = self.create(runtime, make_spec(), password)
        runtime.stop(server.handle)
        self.needs(self.lose_data(runtime, server.handle))
        with pytest.raises((DataMissing, StaleHandle)):
            runtime.start(server.handle)
        with pytest.raises(DataMissing):
            runtime.ensure(server.spec, data=DataPolicy.MUST_EXIST)
        assert self.state(runtime, server.handle) != ServerState.RUNNING

    def test_data_of_another_server_is_refused(self, runtime: Runtime, make_spec: MakeSpec, password: str) -> None:
        server = self.create(runtime, make_spec(), password)
        runtime.stop(server.handle)
        self.needs(self.change_marker(runtime, server.handle))
        with pytest.raises(DataMissing):
            runtime.start(server.handle)
        with pytest.raises(DataMissing):
            runtime.ensure(server.spec, data=DataPolicy.MUST_EXIST)
        assert self.state(runtime, server.handle) != ServerState.RUNNING

    def test_data_in_use_is_refused(self, runtime: Runtime, make_spec: MakeSpec, password: str) -> None:
        server = self.create(runtime, make_spec(), password)
        runtime.stop(server.handle)
        held = self.hold_lock(runtime, server.handle)
        self.needs(held)
        assert held is not None
        with held:
            with pytest.raises(DataInUse):
                runtime.start(server.handle)
            assert self.state(runtime, server.handle) != ServerState.RUNNING
        handle = runtime.ensure(server.spec, data=DataPolicy.MUST_EXIST)
        self.wait_ready(runtime, Server(server.spec, handle, server.credentials))

    def test_a_taken_port(self, runtime: Runtime, make_spec: MakeSpec, password: str) -> None:
        port = free_port()
        spec = make_spec(port=port)
        with self.occupy(port):
            with pytest.raises(PortTaken):
                runtime.ensure(spec, data=DataPolicy.CREATE)
            assert self.state(runtime, spec.handle) in {ServerState.ABSENT, ServerState.STOPPED}
        self.create(runtime, replace(spec, publish=Endpoint(self.published_on, free_port())), password)

    def test_a_port_taken_while_stopped(self, runtime: Runtime, make_spec: MakeSpec, password: str) -> None:
        server = self.create(runtime, make_spec(), password)
        runtime.stop(server.handle)
        with self.occupy(server.endpoint.port), pytest.raises(PortTaken):
            runtime.start(server.handle)
        handle = runtime.ensure(server.spec, data=DataPolicy.MUST_EXIST)
        self.wait_ready(runtime, Server(server.spec, handle, server.credentials))

    def test_destroy_keeps_data_unless_told(self, runtime: Runtime, make_spec: MakeSpec, password: str) -> None:
        server = self.create(runtime, make_spec(), password)
        if self.real:
            with server.connect() as connection:
                connection.execute("CREATE TABLE kept AS SELECT 7 AS answer")
        runtime.destroy(server.handle, delete_data=False)
        runtime.destroy(server.handle, delete_data=False)
        assert self.state(runtime, server.handle) == ServerState.ABSENT
        assert runtime.data_exists(server.handle)
        assert server.handle.name in {handle.name for handle in runtime.managed_data()}

        handle = runtime.ensure(server.spec, data=DataPolicy.MUST_EXIST)
        again = Server(server.spec, handle, server.credentials)
        self.wait_ready(runtime, again)
        if self.real:
            with again.connect() as connection:
                assert connection.execute("SELECT answer FROM kept").fetchone() == (7,)

        runtime.destroy(handle, delete_data=True)
        runtime.destroy(handle, delete_data=True)
        assert not runtime.data_exists(handle)
        assert self.state(runtime, handle) == ServerState.ABSENT

    def test_another_spec_replaces_the_server_and_keeps_data(
        self, runtime: Runtime, make_spec: MakeSpec, password: str
    ) -> None:
        server = self.create(runtime, make_spec(), password)
        if self.real:
            with server.connect() as connection:
                connection.execute("CREATE TABLE kept AS SELECT 8 AS answer")
        moved = replace(server.spec, handle=server.handle, publish=Endpoint(self.published_on, free_port()))
        handle = runtime.ensure(moved, data=DataPolicy.MUST_EXIST)
        assert handle.name == server.handle.name
        assert handle.ref != server.handle.ref
        again = Server(moved, handle, server.credentials)
        self.wait_ready(runtime, again)
        assert [h.name for h in runtime.managed()].count(handle.name) == 1
        if self.real:
            with again.connect() as connection:
                assert connection.execute("SELECT answer FROM kept").fetchone() == (8,)
            with socket.socket() as probe:
                assert probe.connect_ex((server.endpoint.host, server.endpoint.port)) != 0

    def test_update_does_not_restart(self, runtime: Runtime, server: Server) -> None:
        before = runtime.observe([server.handle])[server.handle]
        runtime.update(server.handle, Limits(512 * MIB, 0.5))
        runtime.update(server.handle, server.spec.limits)
        after = runtime.observe([server.handle])[server.handle]
        assert (after.state, after.ref, after.started_at) == (before.state, before.ref, before.started_at)
        assert runtime.ensure(server.spec, data=DataPolicy.MUST_EXIST) == server.handle

    def test_describe_tells_address_and_limits(self, runtime: Runtime, server: Server) -> None:
        """What is there, by name: which one it is, where it is published, what it may use. Burst: no CPU limit."""
        nobody, wrong = new_handle(), replace(server.handle, ref="something else")
        told = runtime.describe([server.handle, nobody, wrong])
        assert set(told) == {server.handle, wrong}
        found = told[server.handle]
        assert told[wrong] == found
        assert (found.ref, found.running) == (server.handle.ref, True)
        assert found.publish == server.endpoint
        assert runtime.describe([]) == {}
        runtime.update(server.handle, Limits(320 * MIB, 0.25))
        changed = runtime.describe([server.handle])[server.handle]
        if RuntimeFeature.MEMORY_LIMIT in runtime.features:
            assert changed.memory_bytes == 320 * MIB
        if RuntimeFeature.CPU_LIMIT in runtime.features:
            assert changed.cpus == pytest.approx(0.25)
        runtime.update(server.handle, server.spec.limits)
        again = runtime.describe([server.handle])[server.handle]
        assert again.memory_bytes in {server.spec.limits.memory_bytes, None}
        other = self.other_install(runtime)
        if other is not None:
            assert other.describe([server.handle]) == {}

    def test_logs(self, runtime: Runtime, server: Server, password: str) -> None:
        lines = list(runtime.logs(server.handle, tail=50))
        assert 0 < len(lines) <= 50
        assert all(isinstance(line, bytes) and b"\n" not in line for line in lines)
        assert len(list(runtime.logs(server.handle, tail=1))) == 1
        assert not any(password.encode() in line for line in runtime.logs(server.handle, tail=5000))

    def test_a_log_is_read_on_where_it_was_left(self, runtime: Runtime, server: Server) -> None:
        start = runtime.read_log(server.handle, tail=0).cursor
        self.say(runtime, server, "said before")
        self.read_on(runtime, server, start, "said before")  # it takes its time into the runtime's log
        part = runtime.read_log(server.handle, tail=0)
        assert (part.lines, part.gap, part.running) == ((), False, True)
        assert part.cursor
        self.say(runtime, server, "one-1", "one-2")
        part = self.read_on(runtime, server, part.cursor, "one-2")
        assert not part.gap
        assert numbers(part, b"one-") == [1, 2]
        assert b"said before" not in b"".join(part.lines)
        again = runtime.read_log(server.handle, cursor=part.cursor)
        assert (again.lines, again.cursor, again.gap) == ((), part.cursor, False)

    def test_a_burst_is_read_once_and_in_order_or_said_to_be_cut(self, runtime: Runtime, server: Server) -> None:
        start = runtime.read_log(server.handle, tail=0).cursor
        self.say(runtime, server, *(f"burst-{i}" for i in range(1, 1301)))
        part = self.read_on(runtime, server, start, "burst-1300", tail=5000)
        assert numbers(part, b"burst-") == list(range(1, 1301))
        assert not part.gap
        cut = runtime.read_log(server.handle, cursor=start, tail=50)
        assert len(cut.lines) == 50
        assert cut.gap
        assert cut.lines == part.lines[-50:]
        assert runtime.read_log(server.handle, cursor=cut.cursor).lines == ()
        for foreign in ("nonsense", "p1:999999999999", f"d{'0' * 12}:2026-01-01T00:00:00.000000000Z:00000000"):
            found = runtime.read_log(server.handle, cursor=foreign, tail=3)
            assert found.gap
            assert found.cursor == cut.cursor

    def test_a_log_goes_on_over_a_restart(self, runtime: Runtime, make_spec: MakeSpec, password: str) -> None:
        server = self.create(runtime, make_spec(), password)
        self.say(runtime, server, "old-1")
        part = runtime.read_log(server.handle, tail=5000)
        runtime.stop(server.handle)
        stopped = runtime.read_log(server.handle, cursor=part.cursor)
        assert not stopped.running
        server = replace(server, handle=runtime.start(server.handle))
        self.wait_ready(runtime, server)
        self.say(runtime, server, "new-1")
        part = self.read_on(runtime, server, stopped.cursor, "new-1", tail=5000)
        assert part.gap is not self.keeps_logs
        assert part.lines
        assert not any(b"old-1" in line for line in part.lines)
        runtime.destroy(server.handle, delete_data=True)
        gone = runtime.read_log(server.handle, cursor=part.cursor)
        assert (gone.lines, gone.running) == ((), False)

    def test_following_ends_and_leaves_nothing(self, runtime: Runtime, server: Server) -> None:
        cursor = runtime.read_log(server.handle, tail=0).cursor
        speaker = threading.Timer(1.0, self.say, (runtime, server, *(f"live-{i}" for i in range(1, 21))))
        speaker.start()
        seen: list[int] = []
        for part in runtime.follow_log(server.handle, cursor=cursor, seconds=120):
            seen += numbers(part, b"live-")
            if 20 in seen:
                break
        assert seen == list(range(1, 21))
        speaker.join()
        began = time.monotonic()
        few = list(runtime.follow_log(server.handle, cursor=cursor, seconds=2, lines_per_second=4))
        assert time.monotonic() - began > 1.5
        assert all(len(part.lines) <= 2 for part in few)
        assert few[0].gap
        assert len(list(runtime.follow_log(server.handle, seconds=5, max_bytes=1))) == 1
        before = (threading.active_count(), len(list(Path("/proc/self/fd").iterdir())))
        for _ in range(10):
            assert next(runtime.follow_log(server.handle, tail=5)).lines  # the reader goes away
        after = (threading.active_count(), len(list(Path("/proc/self/fd").iterdir())))
        # A pool of connections may have made one anew; what a reader leaves behind comes ten times.
        assert all(now < then + 5 for now, then in zip(after, before, strict=True)), (before, after)

    def test_no_line_is_lost_or_doubled_when_the_log_rotates(self, runtime: Runtime, server: Server) -> None:
        """12 MB, more than any runtime keeps in one file."""
        text, cursor = "x" * 3000, runtime.read_log(server.handle, tail=0).cursor
        seen: list[int] = []
        for round_ in range(80 if self.real else 4):
            last = 50 * round_ + 50
            self.say(runtime, server, *(f"turn-{i} {text}" for i in range(last - 49, last + 1)))
            runtime.observe([server.handle])
            part = self.read_on(runtime, server, cursor, f"turn-{last} ", tail=5000)
            assert not part.gap
            cursor = part.cursor
            seen += numbers(part, b"turn-")
        assert seen == list(range(1, last + 1))

    def say(self, runtime: Runtime, server: Server, *lines: str) -> None:
        """The server logs these lines."""
        with server.connect() as connection:
            connection.execute("SET client_min_messages = error")
            for line in lines:
                connection.execute(f"DO $$ BEGIN RAISE WARNING '{line}'; END $$")

    def read_on(self, runtime: Runtime, server: Server, cursor: str, last: str, *, tail: int = 200) -> LogPart:
        """From the cursor on, until the line that ends with `last`; as one part."""
        lines: tuple[bytes, ...] = ()
        gap = False
        for _ in range(100):
            part = runtime.read_log(server.handle, cursor=cursor, tail=tail)
            lines, gap, cursor = lines + part.lines, gap or part.gap, part.cursor
            if any(last.encode() in line for line in lines):
                return replace(part, lines=lines, gap=gap)
            time.sleep(0.05)
        raise AssertionError(f"{last} was not logged: {lines[-5:]}")

    def test_usage(self, runtime: Runtime, server: Server) -> None:
        nobody = new_handle()
        used = runtime.usage([server.handle, nobody])
        assert set(used) == {server.handle, nobody}
        assert used[nobody].memory_bytes is None
        if self.real:
            memory, cpu = used[server.handle].memory_bytes, used[server.handle].cpu_percent
            assert memory is not None
            assert 1 * MIB < memory < 2048 * MIB
            assert cpu is not None
            assert cpu >= 0

    def test_a_tool_has_streams_and_an_exit_code(self, runtime: Runtime, server: Server) -> None:
        self.needs(self.tools)
        tool = runtime.run_tool(
            f"nvs-tool-{uuid.uuid4()}",
            server.spec.image,
            Command(("sh", "-c", "cat; echo trouble >&2; exit 3")),
            beside=server.handle,
        )
        try:
            stdin = tool.stdin
            stdin.write(b"line\n" * 1000)
            stdin.close()
            assert tool.stdout is not None
            assert tool.stdout.read() == b"line\n" * 1000
            result = tool.wait(120)
            assert (result.exit_code, result.oom_killed) == (3, False)
            assert tool.poll() == result
            assert tool.stderr is not None
            assert tool.stderr.read() == b"trouble\n"
        finally:
            tool.kill()
            tool.kill()

    def test_a_tool_gets_secrets_by_file_only(self, runtime: Runtime, server: Server) -> None:
        self.needs(self.tools)
        tool = runtime.run_tool(
            f"nvs-tool-{uuid.uuid4()}",
            server.spec.image,
            Command(("sh", "-c", 'cat "$1"', "sh", "{secret:word}"), secret_files={"word": b"open sesame"}),
        )
        try:
            tool.stdin.close()
            assert tool.stdout is not None
            assert tool.stdout.read() == b"open sesame"
            assert tool.wait(120).exit_code == 0
        finally:
            tool.kill()

    def test_a_tool_can_be_killed_by_a_later_one_of_its_name(self, runtime: Runtime, server: Server) -> None:
        """A crashed caller's tool is found by its name: starting it again ends the old one."""
        self.needs(self.tools)
        name = f"nvs-tool-{uuid.uuid4()}"
        first = runtime.run_tool(name, server.spec.image, Command(("sleep", "60")))
        with pytest.raises(TimeoutError):
            first.wait(0.2)
        second = runtime.run_tool(name, server.spec.image, Command(("sh", "-c", "exit 0")))
        assert second.wait(120).exit_code == 0
        second.kill()
        first.kill()

    def test_a_tool_that_was_left_is_removed_by_its_name(self, runtime: Runtime, server: Server) -> None:
        self.needs(self.tools)
        name = f"nvs-tool-{uuid.uuid4()}"
        runtime.remove_tool(name)  # absent is success
        left = runtime.run_tool(name, server.spec.image, Command(("sleep", "60"), secret_files={"word": b"x"}))
        runtime.remove_tool(name)
        with contextlib.suppress(NovaStackRuntimeError):  # gone altogether
            left.wait(5)
        runtime.remove_tool(name)

    def test_a_tool_beside_a_server_finds_it_at_its_place(self, runtime: Runtime, server: Server) -> None:
        self.needs(self.tools)
        host, port = runtime.place_of(server.spec)
        listening = Command(("sh", "-c", f"pg_isready --username=any --host={host} --port={port}"))
        tool = runtime.run_tool(f"nvs-tool-{uuid.uuid4()}", server.spec.image, listening, beside=server.handle)
        try:
            assert tool.wait(120).exit_code == 0, tool.stderr.read() if tool.stderr else ""
        finally:
            tool.kill()

    def test_a_tool_is_no_server(self, runtime: Runtime, server: Server) -> None:
        self.needs(self.tools)
        name = f"nvs-tool-{uuid.uuid4()}"
        tool = runtime.run_tool(name, server.spec.image, Command(("sleep", "60")))
        try:
            assert {handle.name for handle in runtime.managed()} == {server.handle.name}
        finally:
            tool.kill()

    def test_the_epoch(self, runtime: Runtime) -> None:
        assert runtime.read_epoch() == ""
        runtime.write_epoch("one")
        assert runtime.read_epoch() == "one"
        runtime.write_epoch("two")
        assert runtime.read_epoch() == "two"
        other = self.other_install(runtime)
        if other is not None:
            assert other.read_epoch() == ""
