"""What stands in the way of a new database: a port of somebody else's, an image that can't be had, a full disk, an engine
without addresses. Each time the owner reads why, with a code that is stable; nothing is left behind; Retry works when the
cause is gone."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings

from projects.models import BlockedPort, Endpoint, OperationLock, Project
from projects.operations import base, janitor
from projects.runtimes import docker_images
from projects.services import operation_retry, project_action
from tests.dockerd import Daemon, own_daemon
from tests.faults import eyes
from tests.faults.conftest import ALL, Site, everything
from tests.faults.registry_server import RegistryServer
from tests.faults.test_dockerd import IMAGE
from tests.faults.test_dockerd import site as site_on_own_daemon
from tests.faults.test_full_disk import cramped_site, fill, small_disk
from tests.faults.test_lost_things import listening

__all__ = ["cramped_site", "small_disk"]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """One attempt: the pauses of five minutes between attempts of an operation are tried elsewhere."""
    monkeypatch.setattr(base, "OPERATION_ATTEMPTS", 1)


def failed(site: Site, project: Project, *, seconds: float = 120) -> dict[str, Any]:
    """It ended; what the owner reads; and nothing is left."""
    assert site.finish(site.operation(project), seconds).state == "failed"
    janitor.delete_due_data()
    assert not list(site.runtime.managed())
    assert not list(site.runtime.managed_data())
    assert not OperationLock.objects.exists()
    assert Endpoint.objects.count() == 1, "its own address"
    site.check_exactly()
    return eyes.failure(site, project)


def works_after_retry(site: Site, project: Project) -> None:
    operation = project_action(principal=site.alice, project=project, action="retry")
    assert site.finish(operation, 120).state == "succeeded", operation.error
    project.refresh_from_db()
    assert (project.status, project.status_detail) == ("running", "")
    with site.login(project) as session:
        session.execute("CREATE TABLE orders (n int)")
    janitor.delete_due_data()
    site.check_exactly(project)


# --- ports --------------------------------------------------------------------------------------------------------------


@pytest.mark.docker
def test_a_port_of_somebody_else_is_left_to_him(docker_site: Site) -> None:
    site = docker_site
    first = site.region.port_start
    with site.fault("host port taken before provisioning") as run, listening(first):
        run.recovering()
        project = site.ready()
        run.ended()
        assert Endpoint.objects.get(project=project).port != first
        assert BlockedPort.objects.filter(port=first).exists()
        assert site.rows_of(project) == 1000
        site.check_exactly(project)


def port_taken_while_stopped(site: Site) -> None:
    project = site.ready()
    stop = project_action(principal=site.alice, project=project, action="stop")
    assert site.finish(stop).state == "succeeded"
    port = project.endpoint.port
    with site.fault("host port taken while the server was stopped") as run:
        with listening(port):
            start = site.finish(project_action(principal=site.alice, project=project, action="start"))
            assert start.state == "failed"
            error = eyes.failure(site, project)
            assert (error["code"], error["retryable"]) == ("port_taken", True)
            assert "port" in error["detail"]
        run.recovering()
        retry = project_action(principal=site.alice, project=project, action="retry")
        assert site.finish(retry).state == "succeeded", retry.error
        run.ended()
        project.refresh_from_db()
        assert (project.status, project.endpoint.port) == ("running", port), "the address that clients know"
        run.lost_rows = 1000 - site.rows_of(project)
        assert run.lost_rows == 0
        site.check_exactly(project)


@everything
@pytest.mark.docker
def test_a_port_that_was_taken_while_the_server_was_stopped(docker_site: Site, impatient: None) -> None:
    port_taken_while_stopped(docker_site)


@everything
@pytest.mark.process
def test_a_port_that_was_taken_while_the_process_was_stopped(process_site: Site, impatient: None) -> None:
    port_taken_while_stopped(process_site)


@pytest.mark.process
def test_while_it_waits_for_its_next_try_the_status_says_why(process_site: Site) -> None:
    """Between attempts of an operation lie five minutes: the owner reads the reason at once, and may go on at once."""
    site = process_site
    project = site.ready()
    site.finish(project_action(principal=site.alice, project=project, action="stop"))
    with site.fault("host port taken while the server was stopped", point="between attempts") as run:
        with listening(project.endpoint.port):
            start = project_action(principal=site.alice, project=project, action="start")
            site.worker()
            deadline = time.monotonic() + 90
            while not (told := eyes.project_answer(site, project))["status_detail"]:
                assert time.monotonic() < deadline
                time.sleep(0.1)
            assert told["status"] == "starting"
            assert "port" in told["status_detail"]
            assert "port" in eyes.page(site, project)
        run.recovering()
        start.refresh_from_db()
        if start.next_attempt_at is not None:
            operation_retry(principal=site.alice, operation=start)
        assert site.wait_ended(start, 60).state == "succeeded"
        run.ended()
        site.wait_status(project, "running")
        run.lost_rows = 1000 - site.rows_of(project)
        assert run.lost_rows == 0
        site.check_exactly(project)
        assert eyes.project_answer(site, project)["status_detail"] == ""


# --- images -------------------------------------------------------------------------------------------------------------

MODES = ("500", "404", "hangs", "stalls", "cuts") if ALL else ("500",)


@pytest.mark.docker
@pytest.mark.parametrize("mode", MODES)
def test_an_image_that_can_not_be_pulled(
    docker_site: Site, impatient: None, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    site = docker_site
    monkeypatch.setattr(docker_images, "PULL_STALL_SECONDS", 12)
    server = RegistryServer(IMAGE, mode)
    monkeypatch.setattr(settings, "NOVASTACK_IMAGES", {"postgresql": server.name})
    try:
        with site.fault("pull fails", point={"500": "answers 500", "404": "answers 404"}.get(mode, mode)) as run:
            project = site.create()
            error = failed(site, project)
            assert (error["code"], error["retryable"]) == ("image_missing", True)
            # The image by its name; where the operator has it from is for operators.
            assert server.name.partition("/")[2] in error["detail"]
            assert "127.0.0.1" not in error["detail"]
            server.mode = "ok"
            run.recovering()
            works_after_retry(site, project)
            run.ended()
            assert project.databases.get().server.image == server.name
    finally:
        site.clean_up()
        server.close()


@everything
@pytest.mark.docker
def test_an_image_that_is_nowhere(docker_site: Site, impatient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    site = docker_site
    monkeypatch.setattr(settings, "NOVASTACK_IMAGES", {"postgresql": "127.0.0.1:9/nothing:1"})
    with site.fault("image missing") as run:
        project = site.create()
        error = failed(site, project)
        assert error["code"] == "image_missing"
        assert "nothing:1" in error["detail"]
        monkeypatch.setattr(settings, "NOVASTACK_IMAGES", {})
        run.recovering()
        works_after_retry(site, project)
        run.ended()


@everything
@pytest.mark.docker
def test_a_pinned_image_that_was_removed_is_never_replaced(
    docker_site: Site, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a server that has data: a clear reason, and back with its rows when the image is."""
    site, own = docker_site, "nvs-faults-pinned:1"
    monkeypatch.setattr(settings, "NOVASTACK_IMAGES", {"postgresql": own})
    build = ["docker", "build", "-q", "-t", own, "-"]
    recipe = f"FROM {IMAGE}\nLABEL io.novastack.test=pinned\n".encode()
    subprocess.run(build, input=recipe, check=True, capture_output=True)
    with site.fault("image removed from the host while the server was away") as run:
        project = site.ready()
        server = project.databases.get().server
        site.finish(project_action(principal=site.alice, project=project, action="stop"))
        subprocess.run(["docker", "rm", "-f", server.handle.name], check=True, capture_output=True)
        subprocess.run(["docker", "save", "-o", "/tmp/nvs-faults-pinned.tar", own], check=True)
        subprocess.run(["docker", "rmi", "-f", own], check=True, capture_output=True)
        start = site.finish(project_action(principal=site.alice, project=project, action="start"))
        assert start.state == "failed"
        error = eyes.failure(site, project)
        assert (error["code"], error["retryable"]) == ("image_missing", True)
        subprocess.run(["docker", "load", "-i", "/tmp/nvs-faults-pinned.tar"], check=True, capture_output=True)
        Path("/tmp/nvs-faults-pinned.tar").unlink()
        run.recovering()
        retry = project_action(principal=site.alice, project=project, action="retry")
        assert site.finish(retry).state == "succeeded", retry.error
        run.ended()
        run.lost_rows = 1000 - site.rows_of(project)
        assert run.lost_rows == 0
        site.check_exactly(project)
    site.clean_up()
    subprocess.run(["docker", "rmi", "-f", own], check=True, capture_output=True)


# --- room ---------------------------------------------------------------------------------------------------------------


@pytest.mark.process
def test_a_disk_that_is_full_while_provisioning(cramped_site: Site, small_disk: Any, impatient: None) -> None:
    site = cramped_site
    with site.fault("disk full while provisioning") as run:
        fill(small_disk, 98)
        project = site.create()
        error = failed(site, project)
        assert (error["code"], error["retryable"]) == ("capacity_exhausted", True)
        assert "disk" in error["detail"].lower()
        (small_disk / "filler").unlink()
        run.recovering()
        works_after_retry(site, project)
        run.ended()


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    """With room for three networks. Started once: with pools, a second start would take docker0 away."""
    pool = ("--default-address-pool", "base=10.213.77.0/28,size=30")
    with own_daemon(IMAGE, bridge="nvspool0", argv=pool) as daemon:
        yield daemon


own_site = pytest.fixture(site_on_own_daemon.__wrapped__, name="own_site")


@everything
@pytest.mark.docker
def test_the_engine_has_no_address_left(
    own_site: Site, daemon: Daemon, impatient: None, request: pytest.FixtureRequest
) -> None:
    site = own_site
    with site.fault("address pool of Docker exhausted") as run:
        taken = 0
        while daemon.cli("network", "create", f"taken{taken}", check=False).returncode == 0:
            taken += 1
        assert taken
        request.addfinalizer(lambda: daemon.cli("network", "prune", "-f", check=False))  # their bridges are the host's
        project = site.create()
        error = failed(site, project)
        assert (error["code"], error["retryable"]) == ("capacity_exhausted", True)
        assert "address" in error["detail"]
        daemon.cli("network", "rm", *(f"taken{n}" for n in range(taken)))
        run.recovering()
        works_after_retry(site, project)
        run.ended()


@pytest.fixture
def small_daemon(small_disk: Path) -> Iterator[Daemon]:
    """Its images and volumes are on a small disk of their own."""
    subprocess.run(["mount", "-o", "remount,size=1400m", str(small_disk)], check=True)
    try:
        with own_daemon(IMAGE, bridge="nvsfull0", argv=("--data-root", str(small_disk))) as daemon:
            yield daemon
    finally:
        mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
        for place in reversed([m for m in mounts if m.startswith(f"{small_disk}/")]):
            subprocess.run(["umount", "-l", place], capture_output=True, check=False)


@everything
@pytest.mark.docker
@pytest.mark.parametrize("free_bytes", [100 << 10, 20 << 20])
def test_the_engines_disk_is_full_while_provisioning(
    small_daemon: Daemon, docker_site: Site, small_disk: Path, impatient: None, free_bytes: int
) -> None:
    """With room for nothing, and with room for the beginning of a database only."""
    site = docker_site
    site.region.config = {"base_url": small_daemon.url}
    site.region.save()
    with site.fault("disk full while provisioning", point=f"{free_bytes >> 10} KiB free") as run:
        with (small_disk / "filler").open("wb") as filler:
            os.posix_fallocate(filler.fileno(), 0, shutil.disk_usage(small_disk).free - free_bytes)
        project = site.create()
        error = failed(site, project, seconds=200)
        assert (error["code"], error["retryable"]) == ("capacity_exhausted", True), error
        (small_disk / "filler").unlink()
        run.recovering()
        works_after_retry(site, project)
        run.ended()
