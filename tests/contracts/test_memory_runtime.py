"""The memory runtime keeps the contract, and breaks it on demand."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace

import pytest

from projects.domain import (
    DataPolicy,
    Handle,
    NovaStackRuntimeError,
    RuntimeUnreachable,
    ServerState,
)
from projects.runtimes.base import Runtime
from projects.runtimes.memory import MemoryRuntime, _Volume
from tests.contracts.runtime_contract import MakeSpec, RuntimeContract, Server, new_handle


class TestMemoryRuntime(RuntimeContract):
    real = False
    tools = False
    # Nothing runs here, so no tool does either: not part of this runtime's promises (pytest collects no None).
    test_a_tool_has_streams_and_an_exit_code = None
    test_a_tool_gets_secrets_by_file_only = None
    test_a_tool_can_be_killed_by_a_later_one_of_its_name = None
    test_a_tool_that_was_left_is_removed_by_its_name = None
    test_a_tool_beside_a_server_finds_it_at_its_place = None
    test_a_tool_is_no_server = None

    @pytest.fixture(scope="class")
    @classmethod
    def runtime(cls) -> Iterator[Runtime]:
        yield MemoryRuntime("one")

    def other_install(self, runtime: Runtime) -> Runtime:
        assert isinstance(runtime, MemoryRuntime)
        return MemoryRuntime("other", runtime.world)

    def unreachable(self) -> Runtime:
        runtime = MemoryRuntime()
        runtime.unreachable = True
        return runtime

    def foreign_data(self, runtime: Runtime, handle: Handle) -> bool:
        assert isinstance(runtime, MemoryRuntime)
        runtime.world.volumes[handle.name] = _Volume("somebody", handle)
        return True

    def lose_data(self, runtime: Runtime, handle: Handle) -> bool:
        assert isinstance(runtime, MemoryRuntime)
        runtime.lose_data(handle)
        return True

    def change_marker(self, runtime: Runtime, handle: Handle) -> bool:
        assert isinstance(runtime, MemoryRuntime)
        runtime.world.volumes[handle.name].handle = new_handle()
        return True

    def own_file(self, runtime: Runtime, handle: Handle, name: str) -> tuple[bytes, bool]:
        assert isinstance(runtime, MemoryRuntime)
        return runtime.world.volumes[handle.name].files[name], True

    def say(self, runtime: Runtime, server: Server, *lines: str) -> None:
        assert isinstance(runtime, MemoryRuntime)
        runtime.write_log(server.handle, *(line.encode() for line in lines))

    @contextlib.contextmanager
    def hold_lock(self, runtime: Runtime, handle: Handle) -> Iterator[None]:
        assert isinstance(runtime, MemoryRuntime)
        runtime.world.volumes[handle.name].locked = True
        yield
        runtime.world.volumes[handle.name].locked = False

    @pytest.fixture(autouse=True)
    def _remember(self, runtime: Runtime) -> Iterator[None]:
        self._runtime = runtime
        yield

    @contextlib.contextmanager
    def occupy(self, port: int) -> Iterator[None]:
        assert isinstance(self._runtime, MemoryRuntime)
        self._runtime.world.foreign_ports.add(port)
        yield
        self._runtime.world.foreign_ports.discard(port)

    def test_faults_come_at_the_chosen_call(self, make_spec: MakeSpec) -> None:
        runtime = MemoryRuntime()
        runtime.fail("ensure", NovaStackRuntimeError("no"), at=2)
        runtime.ensure(make_spec(), data=DataPolicy.CREATE)
        with pytest.raises(NovaStackRuntimeError):
            runtime.ensure(make_spec(), data=DataPolicy.CREATE)
        runtime.ensure(make_spec(), data=DataPolicy.CREATE)
        assert runtime.calls["ensure"] == 3
        assert len(list(runtime.managed())) == 2

    def test_crashes_are_seen(self, make_spec: MakeSpec) -> None:
        runtime = MemoryRuntime()
        handle = runtime.ensure(make_spec(), data=DataPolicy.CREATE)
        runtime.crash(handle, oom=True)
        seen = runtime.observe([handle])[handle]
        assert (seen.state, seen.oom_killed, seen.exit_code) == (ServerState.STOPPED, True, 137)
        runtime.unreachable = True
        assert runtime.observe([handle])[handle].state == ServerState.UNREACHABLE
        with pytest.raises(RuntimeUnreachable):
            runtime.start(handle)

    def test_a_thousand_servers_are_observed_at_once(self, make_spec: MakeSpec) -> None:
        runtime = MemoryRuntime()
        spec = make_spec()
        handles = [
            runtime.ensure(
                replace(spec, handle=new_handle(), publish=replace(spec.publish, port=30000 + number)),
                data=DataPolicy.CREATE,
            )
            for number in range(1000)
        ]
        seen = runtime.observe(handles)
        assert {observation.state for observation in seen.values()} == {ServerState.RUNNING}
