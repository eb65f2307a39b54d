"""The Swarm runtime: the runtime contract on a real Swarm of one node, and what only a Swarm promises, or can't."""

from __future__ import annotations

import contextlib
import json
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import docker
import docker.errors
import pytest

from projects.domain import (
    AddressRefused,
    CapacityExhausted,
    Command,
    DataMissing,
    DataPolicy,
    Endpoint,
    Handle,
    ImageMissing,
    Limits,
    NoNode,
    NotReachableHere,
    PortTaken,
    RuntimeEndpoint,
    RuntimeFeature,
    RuntimeUnreachable,
    ServerState,
)
from projects.runtimes import docker_spec, swarm_spec
from projects.runtimes.base import Runtime
from projects.runtimes.swarm import SwarmRuntime
from tests.contracts.runtime_contract import ENGINE, MIB, MakeSpec, Server
from tests.contracts.volumes import OnVolumes
from tests.dockerd import Daemon, own_swarm

pytestmark = pytest.mark.docker
IMAGE = "novastack-postgresql:17"


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with own_swarm(IMAGE, bridge="nvsswarm0") as daemon:
        yield daemon


class TestSwarm(OnVolumes):
    published_on = "0.0.0.0"  # noqa: S104 - a Swarm publishes there
    keeps_logs = False

    @pytest.fixture(scope="class")
    @classmethod
    def runtime(cls, daemon: Daemon) -> Iterator[Runtime]:
        runtime = SwarmRuntime(f"test{uuid.uuid4().hex[:10]}", endpoint=RuntimeEndpoint(daemon.url))
        yield runtime
        runtime.remove_install()

    @pytest.fixture(autouse=True)
    def _engine(self, daemon: Daemon) -> Iterator[None]:
        self.daemon = daemon
        self.engine: Any = docker.APIClient(base_url=daemon.url, version="auto", timeout=30)
        yield
        self.engine.close()

    def other_install(self, runtime: Runtime) -> Runtime:
        return SwarmRuntime(f"other{uuid.uuid4().hex[:8]}", endpoint=RuntimeEndpoint(self.daemon.url))

    def unreachable(self) -> Runtime:
        return SwarmRuntime("nobody", endpoint=RuntimeEndpoint("unix:///nonexistent/docker.sock"))

    def foreign_data(self, runtime: Runtime, handle: Handle) -> bool:
        self.engine.create_volume(docker_spec.volume_name(handle))
        return True

    def lose_data(self, runtime: Runtime, handle: Handle) -> bool:
        for _ in range(50):
            with contextlib.suppress(docker.errors.APIError):
                self.engine.remove_volume(docker_spec.volume_name(handle))
                return True
            time.sleep(0.1)
        raise AssertionError("the stopped server's volume is in use")

    def image_beside(self) -> str:
        return IMAGE

    # --- what only a Swarm promises -----------------------------------------------------------------------------------
    def test_it_promises_no_more_than_it_keeps(self, runtime: Runtime, make_spec: MakeSpec) -> None:
        assert RuntimeFeature.LOOPBACK_PORTS not in runtime.features
        assert RuntimeFeature.TOOLS_BESIDE not in runtime.features
        spec = make_spec()
        with pytest.raises(AddressRefused, match="all addresses"):
            runtime.ensure(replace(spec, publish=Endpoint("127.0.0.1", spec.publish.port)), data=DataPolicy.CREATE)
        assert not runtime.data_exists(spec.handle)
        assert self.state(runtime, spec.handle) == ServerState.ABSENT

    def test_no_secret_is_seen_by_inspect_and_none_is_kept(
        self, runtime: Runtime, server: Server, password: str
    ) -> None:
        service = self.engine.inspect_service(server.handle.ref)
        tasks = self.engine.tasks({"service": server.handle.ref})
        seen = json.dumps([service, tasks, self.engine.configs(), self.engine.secrets(), self.containers(server)])
        assert password not in seen
        assert json.dumps(password)[1:-1] not in seen
        assert self.engine.secrets() == []
        assert [s for s in self.engine.services() if s["Spec"]["Name"].endswith("-job")] == []

    def containers(self, server: Server) -> list[dict[str, Any]]:
        wanted = {"label": f"com.docker.swarm.service.id={server.handle.ref}", "status": "running"}
        return [self.engine.inspect_container(each["Id"]) for each in self.engine.containers(filters=wanted)]

    def test_the_service_is_what_it_should_be(self, runtime: Runtime, server: Server) -> None:
        spec = self.engine.inspect_service(server.handle.ref)["Spec"]
        assert {n: v for n, v in spec["Labels"].items() if n != swarm_spec.LIMITS} == {
            **docker_spec.labels(runtime._install_id, "server", server.handle),  # type: ignore[attr-defined]
            docker_spec.SPEC: docker_spec.spec_hash(server.spec),
            "io.novastack.project": server.spec.labels["io.novastack.project"],
        }
        task = spec["TaskTemplate"]
        assert task["Placement"]["Constraints"] == [f"node.id == {self.engine.info()['Swarm']['NodeID']}"]
        assert task["Resources"]["Limits"]["Pids"] == server.spec.limits.pids
        assert task["Resources"]["Reservations"]["MemoryBytes"] == server.spec.limits.memory_bytes
        assert spec["UpdateConfig"]["Order"] == "stop-first"
        assert spec["UpdateConfig"]["FailureAction"] == "pause"
        assert spec["EndpointSpec"]["Ports"][0]["PublishMode"] == "host"
        (container,) = self.containers(server)
        host = container["HostConfig"]
        assert host["CapDrop"] == ["ALL"]
        assert host["ReadonlyRootfs"] is True
        assert host["PidsLimit"] == server.spec.limits.pids
        assert host["LogConfig"]["Config"] == {"max-size": "10m", "max-file": "3"}
        assert container["Config"]["User"] == "postgres"
        networks = container["NetworkSettings"]["Networks"]
        assert list(networks) == [f"nvs-{runtime._install_id}"]  # type: ignore[attr-defined]
        local = self.engine.inspect_network(next(iter(networks.values()))["NetworkID"])
        assert local["Options"]["com.docker.network.bridge.enable_icc"] == "false"

    def test_a_thousand_are_observed_by_as_many_calls_as_one(
        self, runtime: Runtime, server: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        swarm = runtime._swarm  # type: ignore[attr-defined]
        calls: list[str] = []
        get, one = swarm._get, swarm._one
        monkeypatch.setattr(swarm, "_get", lambda path, **kw: (calls.append(path), get(path, **kw))[1])
        monkeypatch.setattr(swarm, "_one", lambda path: (calls.append(path), one(path))[1])
        runtime.observe([server.handle, *(Handle(str(uuid.uuid4()), 1) for _ in range(1000))])
        assert calls == ["/services", "/tasks"]

    def test_a_task_that_was_killed_is_started_again_by_the_swarm(
        self, runtime: Runtime, make_spec: MakeSpec, password: str
    ) -> None:
        server = self.create(runtime, make_spec(), password)
        with server.connect() as connection:
            connection.execute("CREATE TABLE kept AS SELECT 1 AS answer")
        (container,) = self.containers(server)
        self.engine.kill(container["Id"])
        seen = self.until(runtime, server.handle, ServerState.STARTING)
        assert "ended with code 137" in seen.detail
        self.until(runtime, server.handle, ServerState.RUNNING)
        self.wait_ready(runtime, server)
        with server.connect() as connection:
            assert connection.execute("SELECT answer FROM kept").fetchone() == (1,)

    def test_a_service_that_was_removed_by_hand_is_absent_and_can_be_made_again(
        self, runtime: Runtime, make_spec: MakeSpec, password: str
    ) -> None:
        server = self.create(runtime, make_spec(), password)
        self.engine.remove_service(server.handle.ref)
        assert self.state(runtime, server.handle) == ServerState.ABSENT
        assert runtime.data_exists(server.handle)
        again = runtime.ensure(server.spec, data=DataPolicy.MUST_EXIST)
        assert again.ref != server.handle.ref
        self.wait_ready(runtime, Server(server.spec, again, server.credentials))

    def test_a_drained_node_is_unreachable_not_stopped_and_comes_back(
        self, runtime: Runtime, make_spec: MakeSpec, password: str
    ) -> None:
        server = self.create(runtime, make_spec(), password)
        node = self.engine.info()["Swarm"]["NodeID"]
        self.daemon.cli("node", "update", "--availability", "drain", node)
        try:
            seen = self.until(runtime, server.handle, ServerState.UNREACHABLE)
            assert "drained" in seen.detail
            with pytest.raises(RuntimeUnreachable, match="drained"):
                runtime.ensure(server.spec, data=DataPolicy.MUST_EXIST)
            began = time.monotonic()
            with pytest.raises(NoNode, match="drained"):
                runtime.ensure(make_spec(), data=DataPolicy.CREATE)
            assert time.monotonic() - began < 30
            assert "drained" in runtime.lacks(ENGINE.name, self.version, ENGINE.official_image)
        finally:
            self.daemon.cli("node", "update", "--availability", "active", node)
        self.until(runtime, server.handle, ServerState.RUNNING)
        self.wait_ready(runtime, server)

    def until(self, runtime: Runtime, handle: Handle, wanted: ServerState, seconds: float = 30) -> Any:
        deadline = time.monotonic() + seconds
        while True:
            seen = runtime.observe([handle])[handle]
            if seen.state == wanted:
                return seen
            assert time.monotonic() < deadline, seen
            time.sleep(0.1)

    def test_no_node_with_the_label(self, runtime: Runtime, make_spec: MakeSpec) -> None:
        elsewhere = self.region(runtime, placement="node.labels.role == nowhere")
        spec = make_spec()
        with pytest.raises(NoNode, match=r"node\.labels\.role == nowhere"):
            elsewhere.ensure(spec, data=DataPolicy.CREATE)
        assert not elsewhere.data_exists(spec.handle)
        assert "nowhere" in elsewhere.lacks(ENGINE.name, self.version, ENGINE.official_image)
        assert "no constraint" in self.region(runtime, placement="ssd").lacks(ENGINE.name, self.version, "postgres")

    def region(self, runtime: Runtime, **config: Any) -> SwarmRuntime:
        """Another region's settings of the same install."""
        install_id = runtime._install_id  # type: ignore[attr-defined]
        return SwarmRuntime(install_id, config, endpoint=RuntimeEndpoint(self.daemon.url))

    def test_an_engine_that_is_no_manager(self, runtime: Runtime) -> None:
        try:
            client = docker.APIClient(version="auto")
            state = client.info()["Swarm"]["LocalNodeState"]
        except docker.errors.DockerException as error:
            pytest.skip(f"no second engine: {error}")
        if state != "inactive":
            pytest.skip("the machine's own engine is in a Swarm")
        plain = SwarmRuntime("nobody")
        with pytest.raises(RuntimeUnreachable, match="no Swarm can be managed"):
            plain.ping()
        handle = Handle(str(uuid.uuid4()), 1)
        assert plain.observe([handle])[handle].state == ServerState.UNREACHABLE

    def test_a_server_that_keeps_ending_says_with_what(self, runtime: Runtime, make_spec: MakeSpec) -> None:
        spec = make_spec()
        handle = runtime.ensure(replace(spec, argv=("postgres", "-c", "nosuch=1")), data=DataPolicy.CREATE)
        seen = self.until(runtime, handle, ServerState.STOPPED, 45)
        assert "keeps ending with code 1" in seen.detail
        assert "nosuch" in seen.detail

    def test_out_of_memory_is_said(self, runtime: Runtime, make_spec: MakeSpec) -> None:
        spec = make_spec(limits=Limits(32 * MIB, 1.0))
        eat = "x=$(head -c 200M /dev/zero | tr '\\0' x); echo ${#x}"
        handle = runtime.ensure(replace(spec, entrypoint=("sh", "-c", eat), argv=()), data=DataPolicy.CREATE)
        deadline = time.monotonic() + 45
        while not (seen := runtime.observe([handle])[handle]).oom_killed:
            assert time.monotonic() < deadline, seen
            time.sleep(0.2)
        assert "out of memory" in seen.detail

    def test_a_pinned_image_that_is_gone_has_no_substitute(self, runtime: Runtime, make_spec: MakeSpec) -> None:
        spec = make_spec(image="sha256:" + "0" * 64)
        with pytest.raises(ImageMissing):
            runtime.ensure(spec, data=DataPolicy.CREATE)
        assert self.state(runtime, spec.handle) == ServerState.ABSENT

    def test_more_memory_than_a_node_has_left(self, runtime: Runtime, make_spec: MakeSpec) -> None:

        spec = make_spec(limits=Limits(1 << 44, 1.0))
        with pytest.raises(CapacityExhausted, match="left to reserve"):
            runtime.ensure(spec, data=DataPolicy.CREATE)
        assert not runtime.data_exists(spec.handle)

    def test_limits_that_were_changed_in_place_are_the_services_after_its_next_start(
        self, runtime: Runtime, make_spec: MakeSpec, password: str
    ) -> None:
        server = self.create(runtime, make_spec(), password)
        runtime.update(server.handle, Limits(300 * MIB, 0.5))
        (container,) = self.containers(server)
        host = container["HostConfig"]
        assert (host["Memory"], host["MemorySwap"], host["NanoCpus"]) == (300 * MIB, 300 * MIB, 500_000_000)
        kept = self.engine.inspect_service(server.handle.ref)["Spec"]["TaskTemplate"]["Resources"]["Limits"]
        assert kept["MemoryBytes"] == server.spec.limits.memory_bytes
        runtime.stop(server.handle)
        runtime.start(server.handle)
        self.wait_ready(runtime, server)
        told = runtime.describe([server.handle])[server.handle]
        assert (told.memory_bytes, told.cpus) == (300 * MIB, 0.5)
        assert swarm_spec.LIMITS not in self.engine.inspect_service(server.handle.ref)["Spec"]["Labels"]
        runtime.update(server.handle, Limits(320 * MIB, 0.6))
        runtime.stop(server.handle)
        runtime.update(server.handle, Limits(300 * MIB, 0.5))  # what the service still says
        runtime.start(server.handle)
        told = runtime.describe([server.handle])[server.handle]
        assert (told.memory_bytes, told.cpus) == (300 * MIB, 0.5)

    def test_it_says_of_itself_what_operators_should_know(
        self, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        facts = runtime.facts()
        assert facts.version
        assert facts.identity == self.engine.info()["Swarm"]["Cluster"]["ID"]
        assert [problem for problem in facts.problems if "no-new-privileges" not in problem] == []
        assert "nowhere" in " ".join(self.region(runtime, placement="node.labels.role == nowhere").facts().problems)
        far = self.region(runtime)
        monkeypatch.setattr(far._swarm, "engine_of", lambda node, nodes=None: None)
        assert "not named under `nodes`" in " ".join(far.facts().problems)

    def test_a_node_whose_engine_is_not_reached(
        self, runtime: Runtime, make_spec: MakeSpec, password: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Made, changed and removed by the Swarm alone; what needs the node's own engine says so."""
        assert isinstance(runtime, SwarmRuntime)
        runtime._swarm.ensure_network()  # what an operator does on such a node
        far = self.region(runtime)
        monkeypatch.setattr(far._swarm, "engine_of", lambda node, nodes=None: None)
        server = self.create(far, make_spec(files={"one": b"first"}), password)
        far.put_files(server.handle, {"one": b"second"})
        assert self.own_file(far, server.handle, "one") == (b"second", True)
        with pytest.raises(NotReachableHere, match="nodes"):
            far.run_tool(f"nvs-tool-{uuid.uuid4()}", server.spec.image, Command(("true",)), beside=server.handle)
        assert far.usage([server.handle])[server.handle].memory_bytes is None
        assert any(b"ready to accept" in line for line in far.logs(server.handle))
        far.update(server.handle, Limits(300 * MIB, 0.5))  # restarts it: a Swarm can't do otherwise
        self.wait_ready(far, server)
        told = far.describe([server.handle])[server.handle]
        assert (told.memory_bytes, told.cpus, told.publish) == (300 * MIB, 0.5, server.endpoint)
        far.stop(server.handle)
        self.change_marker(far, server.handle)
        with pytest.raises(DataMissing):
            far.start(server.handle)
        far.destroy(server.handle, delete_data=True)
        assert not far.data_exists(server.handle)
        # The volume itself can only be removed by its node's engine: it stays, empty.
        assert self.in_volume(server.handle, "find /v -mindepth 1") == ""
        self.lose_data(far, server.handle)

    def test_a_folder_of_its_own_on_a_shared_path(
        self, runtime: Runtime, make_spec: MakeSpec, password: str, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        """A path that every node mounts, such as CephFS: bound by the local driver."""
        root = tmp_path_factory.mktemp("shared")
        for folder in (root, *root.parents[:2]):
            folder.chmod(0o755)
        options = {"type": "none", "o": "bind", "device": f"{root}/{{volume}}"}
        shared = self.region(runtime, volume_options=options)
        assert shared.data_root() == str(root)
        server = self.create(shared, make_spec(), password)
        folder = root / docker_spec.volume_name(server.handle)
        assert (folder / ".novastack/marker").read_text() == f"{server.handle.server_id}/1"
        assert (folder / server.spec.data_subdir / "PG_VERSION").exists()
        runtime.stop(server.handle)  # what a region is set to later does not change where data is
        runtime.start(server.handle)
        self.wait_ready(runtime, server)
        shared.destroy(server.handle, delete_data=True)
        assert not folder.exists()
        assert not shared.data_exists(server.handle)
        assert shared.lacks(ENGINE.name, self.version, ENGINE.official_image) == ""
        alone = self.region(runtime, volume_options={**options, "device": str(root)})
        assert "share one folder" in alone.lacks(ENGINE.name, self.version, ENGINE.official_image)

    def test_data_of_a_node_that_left_for_good(
        self, runtime: Runtime, make_spec: MakeSpec, password: str, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        """On shared storage it goes on elsewhere; what was on the node's own disk is missing, and nothing is made instead."""
        root = tmp_path_factory.mktemp("moved")
        for folder in (root, *root.parents[:2]):
            folder.chmod(0o755)
        options = {"type": "none", "o": "bind", "device": f"{root}/{{volume}}"}
        shared = self.region(runtime, volume_options=options)
        for where, moves in ((shared, True), (self.region(runtime), False)):
            server = self.create(where, make_spec(), password)
            record = where._data.record(server.handle)
            assert record is not None
            where.destroy(server.handle, delete_data=False)
            where._swarm.label_config(record.id, {swarm_spec.NODE: "gonegonegone"})
            if moves:
                handle = where.ensure(server.spec, data=DataPolicy.MUST_EXIST)
                self.wait_ready(where, Server(server.spec, handle, server.credentials))
            else:
                with pytest.raises(DataMissing, match="left the Swarm"):
                    where.ensure(server.spec, data=DataPolicy.MUST_EXIST)
                assert self.state(where, server.handle) == ServerState.ABSENT
                where._swarm.label_config(record.id, {swarm_spec.NODE: where._swarm.own_node()})

    def test_a_taken_port_of_another_service(self, runtime: Runtime, server: Server, make_spec: MakeSpec) -> None:

        spec = make_spec(port=server.endpoint.port)
        with pytest.raises(PortTaken):
            runtime.ensure(spec, data=DataPolicy.CREATE)
        assert self.state(runtime, spec.handle) == ServerState.ABSENT
        assert self.state(runtime, server.handle) == ServerState.RUNNING


@pytest.mark.parametrize(
    ("constraint", "holds"),
    [
        ("node.labels.role == database", True), ("node.labels.role==Database", True), ("node.labels.role != database", False),
        ("node.labels.zone == a", False), ("node.labels.zone != a", True), ("node.hostname == one", True),
        ("node.role == worker", True), ("node.id == n1", True), ("node.platform.os == linux", True),
        ("engine.labels.disk == ssd", True), ("role = database", False),
    ],
)  # fmt: skip
def test_constraints_are_read_as_swarm_reads_them(constraint: str, holds: bool) -> None:
    node = {
        "ID": "n1",
        "Spec": {"Labels": {"role": "database"}, "Role": "worker", "Availability": "active"},
        "Description": {
            "Hostname": "one",
            "Platform": {"OS": "linux", "Architecture": "x86_64"},
            "Engine": {"Labels": {"disk": "ssd"}},
        },
        "Status": {"State": "ready"},
    }
    assert swarm_spec.constraint_holds(constraint, node) is holds
    assert swarm_spec.is_usable(node)
    assert not swarm_spec.is_usable({**node, "Status": {"State": "down"}})


def test_what_can_be_set_for_a_region() -> None:
    assert swarm_spec.SwarmConfig.of({}).placement == ("node.labels.role == database",)
    nfs = {"type": "nfs", "o": "addr=10.0.0.5,rw", "device": ":/export/{volume}"}
    config = swarm_spec.SwarmConfig.of(
        {"volume_options": nfs, "placement": ["node.hostname == a", "node.role == worker"]}
    )
    assert config.problem == ""
    assert config.volume_shared
    record = swarm_spec.DataRecord("c1", {swarm_spec.NODE: "n1"}, config.volume_driver, config.volume_options, True)
    handle = Handle("00000000-0000-7000-8000-000000000000", 1)
    mount = swarm_spec.volume_mount(record, handle, "here", "/data")
    assert mount["VolumeOptions"]["DriverConfig"]["Options"]["device"] == f":/export/{docker_spec.volume_name(handle)}"
    parent = swarm_spec.parent_mount(record, "here", "/data")
    assert parent["VolumeOptions"]["DriverConfig"]["Options"]["device"] == ":/export"
    assert swarm_spec.SwarmConfig.of({"publish": "loopback"}).problem
    assert swarm_spec.SwarmConfig.of({"volume_driver": "rexray"}).volume_shared
    assert not swarm_spec.SwarmConfig.of({"volume_driver": "rexray", "volume_shared": False}).volume_shared
