"""The doctor on real servers, as containers and as processes: ports, limits, passwords and data changed behind its back."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import docker as docker_sdk
import pytest

from novastack.common.models import Heartbeat, Install
from projects import domain, registry
from projects.models import DatabaseRole, DatabaseServer, Operation, Project
from projects.operations import doctor, reconciler, wiring
from projects.runtimes import docker_spec
from projects.runtimes.docker import DockerRuntime
from projects.runtimes.process import ProcessRuntime
from projects.runtimes.process_binaries import find
from projects.services import doctoring
from tests.operations.conftest import drive
from tests.projects.test_tls_servers import Site


def codes() -> list[str]:
    return sorted(f.code for f in doctor.examine().findings)


def alive() -> None:
    for name in ("beat", "worker:provisioning", "worker:monitoring", "worker:maintenance", "worker:backups"):
        Heartbeat.touch(name)


def server_of(project: Project) -> DatabaseServer:
    return DatabaseServer.objects.get(project_uuid=project.pk)


@pytest.fixture
def _fresh(db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_built", {})
    monkeypatch.setattr(reconciler, "_looked", {})
    alive()


@pytest.fixture
def docker_site(_fresh: None, tmp_path: Path) -> Iterator[Site]:
    engine = registry.engine("postgresql")
    try:
        DockerRuntime("probe").resolve_image(engine.name, "17", engine.official_image)
    except domain.NovaStackRuntimeError as error:
        if os.environ.get("NOVASTACK_REQUIRE_DOCKER") == "1":
            raise
        pytest.skip(f"no Docker engine with PostgreSQL 17: {error}")
    site = Site("docker", "17", {}, tmp_path)
    site.runtime.write_epoch(str(Install.load().epoch))
    yield site
    site.runtime.remove_install()


@pytest.fixture
def process_site(_fresh: None, tmp_path: Path) -> Iterator[Site]:
    if find("postgres", "18") is None:
        pytest.skip("PostgreSQL 18 is neither installed nor bundled here")
    root = Path(tempfile.mkdtemp(prefix="nvs-test-", dir="/tmp"))
    root.chmod(0o711)
    site = Site("process", "18", {"root": str(root / "state")}, tmp_path)
    yield site
    runtime = site.runtime
    assert isinstance(runtime, ProcessRuntime)
    for handle in [*runtime.managed(), *runtime.managed_data()]:
        runtime.destroy(handle, delete_data=True)
    shutil.rmtree(root)


def change_password(site: Site, project: Project, kind: str) -> None:
    """As somebody with the admin's login would."""
    server, role = server_of(project), DatabaseRole.objects.get(kind=kind, database__project=project)
    with wiring.admin_session(registry.engine("postgresql"), server) as admin:
        admin.set_password(role.name, "changed-behind-our-back")


@pytest.mark.docker
@pytest.mark.django_db
class TestDocker:
    def test_ports_limits_logins_and_what_is_gone(self, docker_site: Site) -> None:
        """One server's story: each thing is found, and said once it is right again no more."""
        client = docker_sdk.APIClient(version="auto", timeout=30)
        project = docker_site.create()
        server = server_of(project)
        assert doctor.examine().findings == []

        # limits, by `docker update`
        client.update_container(server.runtime_ref, mem_limit=1 << 30, memswap_limit=1 << 30, cpu_quota=-1)
        (found,) = doctor.examine().findings
        assert found.code == "limits.differ" and "1024 MiB" in found.what and "without limit" in found.what
        ((_, text),) = doctoring.fix(doctor.examine())
        operation = Operation.objects.filter(project_uuid=project.pk, kind="resize").get()
        assert str(operation.pk) in text and drive(operation).state == "succeeded"
        assert codes() == []
        described = docker_site.runtime.describe([server.handle])[server.handle]
        assert described.memory_bytes == server.memory_bytes and described.cpus == float(server.cpus)

        # a password
        change_password(docker_site, project, "login")
        assert codes() == ["login.refused"]
        role = DatabaseRole.objects.get(kind="login", database__project=project)
        with wiring.admin_session(registry.engine("postgresql"), server) as admin:
            admin.set_password(role.name, role.secret.open())
        assert codes() == []

        # the rows say another port than the container
        other = server.port + 1
        DatabaseServer.objects.filter(pk=server.pk).update(port=other)
        project.endpoint.__class__.objects.filter(project=project).update(port=other, control_port=other)
        assert codes() == ["port.differs", "server.silent"]
        DatabaseServer.objects.filter(pk=server.pk).update(port=server.port)
        project.endpoint.__class__.objects.filter(project=project).update(port=server.port, control_port=server.port)
        assert codes() == []

        # somebody else takes the port of a stopped server
        client.stop(server.runtime_ref, timeout=5)
        assert codes() == []
        with socket.socket() as strange:
            strange.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            strange.bind(("127.0.0.1", server.port))
            strange.listen()
            assert codes() == ["port.taken"]

        # the container is removed by hand, then the volume, too
        client.remove_container(server.runtime_ref, v=False)
        assert codes() == ["missing.server"]
        client.remove_volume(docker_spec.volume_name(server.handle))
        assert codes() == ["missing.data", "missing.server"]
        doctoring.fix(doctor.examine())
        server.refresh_from_db()
        assert not server.reconcile and not docker_site.runtime.data_exists(server.handle)

    def test_a_volume_that_nobody_knows(self, docker_site: Site) -> None:
        client = docker_sdk.APIClient(version="auto", timeout=30)
        handle = domain.Handle("00000000-0000-7000-8000-0000000000aa", 1)
        install = docker_site.runtime._install_id
        for name, labels in (
            (docker_spec.volume_name(handle), docker_spec.labels(install, "data", handle)),
            ("doctor-test-foreign", docker_spec.labels("another", "data", handle)),
        ):
            client.create_volume(name, labels=labels)
        try:
            (found,) = doctor.examine().findings
            assert (found.code, found.thing) == ("unknown.data", handle.name)
            doctoring.orphan_data_remove(name=handle.name, confirm=handle.name)
            assert codes() == []
            assert client.inspect_volume("doctor-test-foreign")
        finally:
            client.remove_volume("doctor-test-foreign")


@pytest.mark.process
@pytest.mark.django_db
class TestProcess:
    def test_limits_logins_and_what_is_gone(self, process_site: Site) -> None:
        runtime = process_site.runtime
        runtime.write_epoch(str(Install.load().epoch))
        project = process_site.create()
        server = server_of(project)
        assert doctor.examine().findings == []
        if domain.RuntimeFeature.MEMORY_LIMIT in runtime.features:
            runtime.update(server.handle, domain.Limits(1 << 30, float(server.cpus)))
            assert codes() == ["limits.differ"]
            doctoring.fix(doctor.examine())
            assert drive(Operation.objects.get(project_uuid=project.pk, kind="resize")).state == "succeeded"
            assert codes() == []
        change_password(process_site, project, "control")
        assert codes() == ["login.refused"]
        runtime.stop(server.handle)
        assert codes() == []
        with socket.socket() as strange:
            strange.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            strange.bind(("127.0.0.1", server.port))
            strange.listen()
            time.sleep(0.05)
            assert codes() == ["port.taken"]
        runtime.destroy(server.handle, delete_data=True)
        assert codes() == ["missing.data", "missing.server"]
