"""The Docker runtime: the runtime contract on a real engine, and what only containers promise."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import docker
import docker.errors
import pytest

from projects.domain import (
    Command,
    DataMissing,
    DataPolicy,
    Handle,
    ImageMissing,
    ImageRef,
    Limits,
    NovaStackRuntimeError,
    ServerState,
)
from projects.runtimes import docker_client, docker_spec
from projects.runtimes.base import Runtime
from projects.runtimes.docker import DockerRuntime
from projects.runtimes.docker_images import Images
from tests.contracts.runtime_contract import ENGINE, MIB, MakeSpec, Server, spec_maker
from tests.contracts.volumes import OnVolumes

pytestmark = pytest.mark.docker


@pytest.fixture(scope="module")
def engine() -> Iterator[docker.APIClient]:
    """The Docker engine as its own command line sees it; absent is a failure only where it is required."""
    required = os.environ.get("NOVASTACK_REQUIRE_DOCKER") == "1"
    try:
        client = docker.APIClient(version="auto", timeout=30)
        DockerRuntime("probe").resolve_image(ENGINE.name, DockerContract.version, ENGINE.official_image)
    except (docker.errors.DockerException, NovaStackRuntimeError) as error:
        if required:
            raise
        pytest.skip(f"no Docker engine with a PostgreSQL image: {error}")
    yield client
    client.close()


def remove_install(client: docker.APIClient, install_id: str) -> None:
    wanted = {"label": f"{docker_spec.INSTALL}={install_id}"}
    for found in client.containers(all=True, filters=wanted):
        client.remove_container(found["Id"], force=True, v=True)
    for found in client.volumes(filters=wanted)["Volumes"] or []:
        client.remove_volume(found["Name"])
    for found in client.networks(filters=wanted):
        client.remove_network(found["Id"])


class DockerContract(OnVolumes):
    @pytest.fixture(scope="class")
    @classmethod
    def runtime(cls, engine: docker.APIClient) -> Iterator[Runtime]:
        install_id = f"test{uuid.uuid4().hex[:10]}"
        yield DockerRuntime(install_id)
        remove_install(engine, install_id)

    @pytest.fixture(autouse=True)
    def _engine(self, engine: docker.APIClient) -> None:
        self.engine = engine

    def other_install(self, runtime: Runtime) -> Runtime:
        return DockerRuntime(f"other{uuid.uuid4().hex[:8]}")

    def unreachable(self) -> Runtime:
        return DockerRuntime("nobody", base_url="unix:///nonexistent/docker.sock")

    def foreign_data(self, runtime: Runtime, handle: Handle) -> bool:
        # removed with the install, although nothing else says that it is ours
        labels = {docker_spec.INSTALL: runtime._install_id}  # type: ignore[attr-defined]
        self.engine.create_volume(docker_spec.volume_name(handle), labels=labels)
        return True

    def lose_data(self, runtime: Runtime, handle: Handle) -> bool:
        self.engine.remove_container(handle.ref, v=False)
        self.engine.remove_volume(docker_spec.volume_name(handle))
        return True

    def image_beside(self) -> str:
        return DockerRuntime("probe").resolve_image(ENGINE.name, self.version, ENGINE.official_image).name


class TestDocker(DockerContract):
    def test_no_secret_is_seen_by_inspect(self, runtime: Runtime, server: Server, password: str) -> None:
        container = self.engine.inspect_container(server.handle.ref)
        volume = self.engine.inspect_volume(docker_spec.volume_name(server.handle))
        seen = json.dumps([container, volume, self.engine.top(server.handle.ref)]) + str(
            self.engine.logs(server.handle.ref), "utf-8"
        )
        assert password not in seen
        assert json.dumps(password)[1:-1] not in seen
        assert password not in repr(server.spec)

    def test_the_container_is_hardened(self, runtime: Runtime, server: Server) -> None:
        container = self.engine.inspect_container(server.handle.ref)
        host = container["HostConfig"]
        assert host["CapDrop"] == ["ALL"]
        assert host["SecurityOpt"] == ["no-new-privileges"]
        assert host["ReadonlyRootfs"] is True
        assert host["PidsLimit"] == server.spec.limits.pids
        assert host["Memory"] == host["MemorySwap"]
        assert host["LogConfig"]["Config"] == {"max-size": "10m", "max-file": "3"}
        assert host["PortBindings"] == {"5432/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(server.endpoint.port)}]}
        assert not host["Privileged"]
        assert container["Config"]["User"] == "postgres"
        processes = self.engine.top(server.handle.ref, "-eo pid,user,args")
        user = processes["Titles"].index("USER")
        assert {row[user] for row in processes["Processes"]} & {"root", "0"} == set()

    def test_files_that_are_there_already_are_not_touched(
        self, runtime: Runtime, make_spec: MakeSpec, password: str
    ) -> None:
        """The engine removes a file and makes it anew, of root at first: MariaDB that started meanwhile could not read its
        options, and ended. What a worker left half-done is written again."""
        server = self.create(runtime, make_spec(files={"one": b"first", "two": b"second"}), password)

        def inodes() -> list[str]:
            return self.in_volume(server.handle, "cd /v/.novastack/files && stat -c '%i %Z' one two").splitlines()

        before = inodes()
        runtime.put_files(server.handle, {"one": b"first", "two": b"second"})
        assert runtime.ensure(server.spec, data=DataPolicy.MUST_EXIST) == server.handle
        runtime.stop(server.handle)
        runtime.ensure(server.spec, data=DataPolicy.MUST_EXIST)
        assert inodes() == before
        for broken in ("chown root:root", "chmod 640", "truncate -s 3", "rm"):
            self.in_volume(server.handle, f"cd /v/.novastack/files && {broken} one")
            runtime.put_files(server.handle, {"one": b"first"})
            assert self.own_file(runtime, server.handle, "one") == (b"first", True), broken
        self.in_volume(server.handle, "cd /v/.novastack/files && head -c 3000000 /dev/zero >0large && chmod 600 0large")
        runtime.put_files(server.handle, {"one": b"third"})
        assert self.own_file(runtime, server.handle, "one") == (b"third", True)

    def test_a_thread_more_costs_no_call_more(self, engine: docker.APIClient, monkeypatch: pytest.MonkeyPatch) -> None:
        """Far away a call takes seconds, and each question to a region has a thread of its own."""
        asked = []
        ask = docker.APIClient._retrieve_server_version
        monkeypatch.setattr(docker.APIClient, "_retrieve_server_version", lambda self: asked.append(1) or ask(self))
        runtime = DockerRuntime("probe")
        for _ in range(2):
            runtime.ping()
            with ThreadPoolExecutor(3) as pool:
                for found in pool.map(lambda _: list(runtime.managed()), range(3)):
                    assert found == []
        assert len(asked) == 2, "by each ping, whose one call that is"
        monkeypatch.setattr(docker_client, "_VERSION_SECONDS", 0.0)
        with ThreadPoolExecutor(1) as pool:
            pool.submit(runtime.managed).result()
        assert len(asked) == 3, "another engine may stand there by now"

    def test_labels_are_ids_only(self, runtime: Runtime, server: Server) -> None:
        labels = self.engine.inspect_container(server.handle.ref)["Config"]["Labels"]
        of_image = self.engine.inspect_image(server.spec.image)["Config"]["Labels"] or {}
        ours = {name: value for name, value in labels.items() if name not in of_image}
        assert ours[docker_spec.SERVER] == server.handle.server_id
        assert ours[docker_spec.INCARNATION] == "1"
        assert ours["io.novastack.project"] == server.spec.labels["io.novastack.project"]
        assert set(ours) == {
            docker_spec.INSTALL, docker_spec.KIND, docker_spec.SERVER, docker_spec.INCARNATION, docker_spec.SPEC,
            "io.novastack.project",
        }  # fmt: skip

    def test_neighbours_are_out_of_reach(
        self, runtime: Runtime, server: Server, make_spec: MakeSpec, password: str
    ) -> None:
        neighbour = self.create(runtime, make_spec(), password)
        networks = self.engine.inspect_container(neighbour.handle.ref)["NetworkSettings"]["Networks"]
        address = next(iter(networks.values()))["IPAddress"]
        script = f"exec 3<>/dev/tcp/{address}/5432"
        tool = runtime.run_tool(
            f"nvs-tool-{uuid.uuid4()}", server.spec.image, Command(("timeout", "2", "bash", "-c", script)),
            beside=server.handle,
        )  # fmt: skip
        try:
            assert tool.wait(120).exit_code != 0
        finally:
            tool.kill()

    def test_an_isolated_server_answers_and_gets_no_answer_from_elsewhere(
        self, runtime: Runtime, server: Server, make_spec: MakeSpec, password: str
    ) -> None:
        """Rule 26: a throw-away server's code may call whom it likes. The machine beside ours knows our address and not
        those of containers, as every machine elsewhere."""
        if os.geteuid() != 0 or shutil.which("ip") is None:
            pytest.skip("another machine is played by a network namespace, which only root can make")
        alone = self.create(runtime, make_spec(isolated=True), password)
        self.wait_ready(runtime, alone)
        name = f"nvs{uuid.uuid4().hex[:8]}"

        def run(*words: str) -> None:
            subprocess.run(["ip", *words], check=True, capture_output=True, timeout=10)

        listener = None
        try:
            run("netns", "add", name)
            run("link", "add", f"{name}a", "type", "veth", "peer", "name", f"{name}b", "netns", name)
            run("addr", "add", "198.18.77.1/30", "dev", f"{name}a")
            run("link", "set", f"{name}a", "up")
            run("-n", name, "addr", "add", "198.18.77.2/30", "dev", f"{name}b")
            run("-n", name, "link", "set", f"{name}b", "up")
            listener = subprocess.Popen(
                ["ip", "netns", "exec", name, sys.executable, "-m", "http.server", "8077", "--bind", "198.18.77.2"],
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            script = "for n in $(seq 20); do exec 3<>/dev/tcp/198.18.77.2/8077 && exit 0; sleep 0.2; done; exit 1"
            answers = {}
            for which, one in (("open", server), ("isolated", alone)):
                tool = runtime.run_tool(
                    f"nvs-tool-{uuid.uuid4()}", one.spec.image, Command(("timeout", "5", "bash", "-c", script)),
                    beside=one.handle,
                )  # fmt: skip
                try:
                    answers[which] = tool.wait(120).exit_code == 0
                finally:
                    tool.kill()
            assert answers == {"open": True, "isolated": False}
            # Its own network comes back with it as well.
            runtime.stop(alone.handle)
            runtime.start(alone.handle)
            self.wait_ready(runtime, alone)
        finally:
            if listener is not None:
                listener.kill()
                listener.wait()
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True, timeout=10)
            subprocess.run(["ip", "link", "del", f"{name}a"], check=False, capture_output=True, timeout=10)

    def test_inside_the_container_nobody_is_trusted(self, runtime: Runtime, server: Server) -> None:
        """Rule 21: the image's default lets everybody in from 127.0.0.1 and the socket."""
        for target in ("host=127.0.0.1", "host=/run/postgresql"):
            made = self.engine.exec_create(
                server.handle.ref, ["psql", "-w", f"{target} dbname=postgres user=novastack", "-c", "SELECT 1"]
            )
            said = self.engine.exec_start(made["Id"]).decode()
            assert self.engine.exec_inspect(made["Id"])["ExitCode"] != 0
            assert "no password supplied" in said

    def test_what_can_never_be_changed_later(self, runtime: Runtime, server: Server) -> None:
        with server.connect() as connection:

            def setting(name: str) -> Any:
                row = connection.execute("SELECT current_setting(%s)", [name]).fetchone()
                assert row
                return row[0]

            assert setting("data_checksums") == "on"
            assert setting("wal_level") == "logical"
            assert setting("archive_mode") == "on"
            assert setting("archive_command") == "/bin/true"
            assert setting("server_encoding") == "UTF8"
            row = connection.execute(
                "SELECT datlocprovider::text, datlocale FROM pg_database WHERE datname = 'template0'"
            ).fetchone()
            assert row == ("b", "C.UTF-8")

    def test_one_time_secrets_are_emptied_at_the_next_start(
        self, runtime: Runtime, make_spec: MakeSpec, password: str
    ) -> None:
        server = self.create(runtime, make_spec(), password)
        runtime.stop(server.handle)
        runtime.start(server.handle)
        self.wait_ready(runtime, server)
        assert self.in_volume(server.handle, "cat /v/.novastack/bootstrap; ls /v/.novastack") == (
            "bootstrap\nlock\nmarker\n"
        )

    def test_an_initialisation_that_was_cut_off_is_begun_anew(
        self, runtime: Runtime, make_spec: MakeSpec, password: str
    ) -> None:
        spec = make_spec()
        handle = runtime.ensure(spec, data=DataPolicy.CREATE)
        deadline = time.monotonic() + 30
        place = f"/v/{spec.data_subdir}/PG_VERSION"
        while self.in_volume(handle, f"test -e {place} && echo yes || true") != "yes\n":
            assert time.monotonic() < deadline
        self.engine.kill(handle.ref)
        self.create(runtime, spec, password)

    def test_data_that_is_gone_is_never_made_again(self, runtime: Runtime, make_spec: MakeSpec, password: str) -> None:
        server = self.create(runtime, make_spec(), password)
        runtime.stop(server.handle)
        runtime.start(server.handle)
        self.wait_ready(runtime, server)
        runtime.stop(server.handle)
        self.in_volume(server.handle, f"rm -rf /v/{server.spec.data_subdir}")
        with pytest.raises(DataMissing):
            runtime.start(server.handle)
        seen = runtime.observe([server.handle])[server.handle]
        assert (seen.state, seen.exit_code) == (ServerState.STOPPED, docker_spec.MISSING)
        assert "gone" in seen.detail

    @pytest.mark.parametrize("late", [0.1, 0.12, 0.15])
    def test_a_refusal_is_said_also_when_the_engine_is_restarting_the_container(
        self, late: float, runtime: DockerRuntime, make_spec: MakeSpec, password: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Docker starts what failed again after 0.1 s: a stop that comes then meets it in its first milliseconds."""
        server = self.create(runtime, make_spec(), password)
        runtime.stop(server.handle)
        runtime.start(server.handle)
        self.wait_ready(runtime, server)
        runtime.stop(server.handle)
        self.in_volume(server.handle, f"rm -rf /v/{server.spec.data_subdir}")
        client = runtime._clients.get()
        stop = client.stop

        def later(*args: Any, **kwargs: Any) -> None:
            time.sleep(late)
            stop(*args, **kwargs)

        monkeypatch.setattr(client, "stop", later)
        with pytest.raises(DataMissing):
            runtime.start(server.handle)
        seen = runtime.observe([server.handle])[server.handle]
        assert (seen.state, seen.exit_code) == (ServerState.STOPPED, docker_spec.MISSING)

    def test_a_crashed_server_comes_back_by_itself_a_stopped_one_does_not(
        self, runtime: Runtime, make_spec: MakeSpec, password: str
    ) -> None:
        server = self.create(runtime, make_spec(), password)
        pid = self.engine.inspect_container(server.handle.ref)["State"]["Pid"]
        os.kill(pid, 9)
        time.sleep(0.5)
        self.wait_ready(runtime, server)
        assert self.engine.inspect_container(server.handle.ref)["RestartCount"] == 1
        runtime.stop(server.handle)
        time.sleep(1)
        assert self.state(runtime, server.handle) == ServerState.STOPPED

    def test_a_server_that_keeps_ending_is_stopped_with_a_reason(self, runtime: Runtime, make_spec: MakeSpec) -> None:
        spec = make_spec(argv=("postgres", "-c", "shared_buffers=900GB"))
        handle = runtime.ensure(spec, data=DataPolicy.CREATE)
        deadline = time.monotonic() + 60
        while (seen := runtime.observe([handle])[handle]).state != ServerState.STOPPED:
            assert time.monotonic() < deadline, seen
            time.sleep(0.2)
        assert "keeps ending with code 1" in seen.detail
        assert any(b"shared memory" in line for line in runtime.logs(handle, tail=500))

    def test_a_pinned_image_that_is_gone_has_no_substitute(self, runtime: Runtime, make_spec: MakeSpec) -> None:
        spec = make_spec(image="sha256:" + "0" * 64)
        with pytest.raises(ImageMissing):
            runtime.ensure(spec, data=DataPolicy.CREATE)
        assert self.state(runtime, spec.handle) == ServerState.ABSENT

    def test_the_official_image_is_preferred_an_override_wins(self, runtime: Runtime, image: ImageRef) -> None:
        tag = f"novastack-test-{uuid.uuid4().hex[:8]}"
        self.engine.tag(image.digest, tag, "5")
        try:
            assert runtime.resolve_image(ENGINE.name, "5", tag).name == f"{tag}:5"
            assert runtime.resolve_image(ENGINE.name, self.version, "nosuch", override=f"{tag}:5").name == f"{tag}:5"
            assert runtime.resolve_image(ENGINE.name, "5", tag).digest == image.digest
            with pytest.raises(ImageMissing):
                runtime.resolve_image(ENGINE.name, self.version, "postgres", override="nosuch:1")
        finally:
            self.engine.remove_image(f"{tag}:5")

    def test_what_can_not_be_had_is_lacking_and_the_registry_is_asked_once(
        self, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert runtime.lacks(ENGINE.name, self.version, "nosuch") == ""  # ours is on the host
        place = f"127.0.0.1:1/nosuch-{uuid.uuid4().hex[:8]}"
        assert "neither on the host nor" in runtime.lacks("nosuch", "1", place)
        asked: list[str] = []
        monkeypatch.setattr(Images, "can_pull", lambda *arguments: asked.append("again") or True)
        assert "neither on the host nor" in runtime.lacks("nosuch", "1", place)
        assert asked == []
        assert runtime.lacks("nosuch", "2", place) == runtime.lacks("nosuch", "2", place) == ""
        assert asked == ["again"]

    def test_a_pull_that_fails_says_so(self, runtime: Runtime) -> None:
        with pytest.raises(ImageMissing, match="could not be pulled"):
            runtime.resolve_image("nosuch", "1", "127.0.0.1:1/nosuch", pull=True)

    def test_a_network_that_was_removed_is_made_again(
        self, runtime: Runtime, server: Server, make_spec: MakeSpec, password: str
    ) -> None:
        lonely = DockerRuntime(f"test{uuid.uuid4().hex[:10]}")
        try:
            other = self.create(lonely, make_spec(), password)
            lonely.stop(other.handle)
            lonely.remove_network()
            lonely.start(other.handle)
            self.wait_ready(lonely, other)
        finally:
            self.clean(lonely)
            lonely.remove_network()

    def test_a_stop_is_known_to_the_daemon_too(self, runtime: Runtime, make_spec: MakeSpec, password: str) -> None:
        """Else the restart policy would start the server again with the machine."""
        server = self.create(runtime, make_spec(), password)
        state = Path(self.engine.info()["DockerRootDir"], "containers", server.handle.ref, "config.v2.json")
        if not os.access(state, os.R_OK):
            pytest.skip("the daemon's own files can't be read")
        assert json.loads(state.read_text())["HasBeenManuallyStopped"] is False
        runtime.stop(server.handle)
        assert json.loads(state.read_text())["HasBeenManuallyStopped"] is True

    def test_limits_reach_the_container(self, runtime: Runtime, server: Server) -> None:
        runtime.update(server.handle, Limits(300 * MIB, 0.5))
        host = self.engine.inspect_container(server.handle.ref)["HostConfig"]
        assert (host["Memory"], host["MemorySwap"], host["CpuQuota"]) == (300 * MIB, 300 * MIB, 50_000)
        runtime.ensure(replace(server.spec, burst=False), data=DataPolicy.MUST_EXIST)
        host = self.engine.inspect_container(server.handle.ref)["HostConfig"]
        assert (host["Memory"], host["CpuQuota"]) == (server.spec.limits.memory_bytes, 100_000)

    def test_a_tool_leaves_no_log_and_nothing_behind(self, runtime: Runtime, server: Server) -> None:
        name = f"nvs-tool-{uuid.uuid4()}"
        tool = runtime.run_tool(name, server.spec.image, Command(("echo", "data"), secret_files={"word": b"sesame"}))
        made = self.engine.inspect_container(name)
        assert made["HostConfig"]["LogConfig"]["Type"] == "none"
        assert tool.wait(120).exit_code == 0
        tool.kill()
        with pytest.raises(docker.errors.NotFound):
            self.engine.inspect_container(name)
        with pytest.raises(docker.errors.NotFound):
            self.engine.inspect_volume(f"{name}-secrets")

    def test_a_tool_works_on_the_server_beside_it(self, runtime: Runtime, server: Server, password: str) -> None:
        line = f"127.0.0.1:5432:*:novastack:{password}".replace("\\", "\\\\")
        command = Command(
            ("psql", "-Atw", "-h", "127.0.0.1", "-U", "novastack", "-d", "postgres", "-c", "SELECT 6 * 7"),
            env={"PGPASSFILE": "{secret:pgpass}"},
            secret_files={"pgpass": line.encode()},
        )
        tool = runtime.run_tool(f"nvs-tool-{uuid.uuid4()}", server.spec.image, command, beside=server.handle)
        try:
            assert tool.stdout is not None
            assert tool.stdout.read() == b"42\n"
            assert tool.wait(120).exit_code == 0
        finally:
            tool.kill()

    def test_a_tool_streams_megabytes(self, runtime: Runtime, server: Server) -> None:
        tool = runtime.run_tool(
            f"nvs-tool-{uuid.uuid4()}", server.spec.image, Command(("head", "-c", "64M", "/dev/zero"))
        )
        try:
            assert tool.stdout is not None
            size = 0
            while part := tool.stdout.read(1 << 20):
                size += len(part)
            assert size == 64 << 20
            assert tool.wait(120).exit_code == 0
        finally:
            tool.kill()

    def test_memory_is_a_tools_own(self, runtime: Runtime, server: Server) -> None:
        eat = Command(("sh", "-c", "x=$(head -c 200M /dev/zero | tr '\\0' x); echo ${#x}"))
        tool = runtime.run_tool(f"nvs-tool-{uuid.uuid4()}", server.spec.image, eat, memory_bytes=64 << 20)
        try:
            result = tool.wait(60)
            assert result.exit_code != 0
            assert result.oom_killed
        finally:
            tool.kill()


@pytest.mark.parametrize("version", ["15", "18"])
class TestVersions:
    """Oldest and newest: another mount, another provider, other reserved connections."""

    def test_it_starts_stops_and_keeps_data(self, engine: docker.APIClient, version: str) -> None:
        install_id = f"test{uuid.uuid4().hex[:10]}"
        runtime = DockerRuntime(install_id)
        try:
            image = runtime.resolve_image(ENGINE.name, version, ENGINE.official_image)
        except ImageMissing as error:
            pytest.skip(str(error))
        suite = DockerContract()
        suite.version, password = version, uuid.uuid4().hex
        try:
            server = suite.create(runtime, spec_maker(version, image, password)(), password)
            with server.connect() as connection:
                connection.execute("CREATE TABLE kept AS SELECT 1 AS answer")
            runtime.stop(server.handle)
            runtime.start(server.handle)
            suite.wait_ready(runtime, server)
            with server.connect() as connection:
                assert connection.execute("SELECT answer FROM kept").fetchone() == (1,)
                row = connection.execute("SHOW server_version").fetchone()
                assert row is not None
                assert str(row[0]).startswith(version)
        finally:
            remove_install(engine, install_id)
