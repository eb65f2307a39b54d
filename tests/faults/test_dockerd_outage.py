"""The Docker daemon goes away while provisioning and while running: honest states, recovery by itself, no row lost."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from accounts.models import Organization
from accounts.permissions import Principal
from accounts.services import user_create
from projects import registry
from projects.models import Operation, Plan, Project, Region
from projects.operations import reconciler, runner, watch
from projects.services import ProjectRequest, connection_reveal, project_create
from tests.faults.second_docker import IMAGE, SecondDocker

pytestmark = [pytest.mark.docker, pytest.mark.django_db(transaction=True)]


def _why_not() -> str:
    if os.geteuid() != 0:
        return "starting a second dockerd needs root"
    if shutil.which("dockerd") is None:
        return "no dockerd on this machine"
    if subprocess.run(["docker", "image", "inspect", IMAGE], capture_output=True).returncode:
        return f"no image {IMAGE} on this machine: make images"
    return ""


@pytest.fixture
def docker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecondDocker]:
    reason = _why_not()
    if reason and os.environ.get("NOVASTACK_REQUIRE_DOCKER") == "1":
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)
    root = Path(tmp_path_factory.mktemp("d2"))
    daemon = SecondDocker(root)
    daemon.start()
    try:
        daemon.load(IMAGE)
        yield daemon
    finally:
        daemon.close()


@pytest.fixture
def project(docker: SecondDocker) -> Project:
    region = Region.objects.create(
        slug="second",
        name="Second",
        runtime="docker",
        config={"base_url": docker.url},
        port_start=27500,
        port_end=27600,
    )
    Plan.objects.create(slug="small", name="Small", is_default=True)
    user = user_create(email="alice@example.com", password="a long password 1")
    organization = Organization.objects.get(memberships__user=user)
    return project_create(
        principal=Principal.of(user), organization=organization,
        request=ProjectRequest(name="Orders", region=region.slug, version="18"),
    )  # fmt: skip


def _tick() -> None:
    """What beat and a worker do: reconcile, then run what is due."""
    reconciler.reconcile()
    for pk in Operation.objects.live().values_list("pk", flat=True):
        runner.run(pk)
    watch.check_health()


def _until(project: Project, wanted: Callable[[Project], bool], seconds: float = 60) -> Project:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        _tick()
        project.refresh_from_db()
        if wanted(project):
            return project
        time.sleep(0.5)
    raise AssertionError(f"after {seconds} s: {project.status} ({project.status_detail})")


def _uri(project: Project) -> str:
    info = connection_reveal(principal=Principal.of(project.created_by), project=project)
    return str(registry.engine(project.engine).urls(info)["uri"])


def test_a_daemon_that_goes_away_while_running_and_comes_back(docker: SecondDocker, project: Project) -> None:
    _until(project, lambda p: p.status == "running")
    with psycopg.connect(_uri(project), autocommit=True) as session:
        session.execute("CREATE TABLE kept AS SELECT generate_series(1, 1000) AS i")

    docker.stop()
    gone = _until(project, lambda p: p.status == "not_available", 30)
    assert gone.status_detail
    assert not Operation.objects.live().exists()

    docker.start()
    _until(project, lambda p: p.status == "running", 90)
    with psycopg.connect(_uri(project)) as session:
        assert session.execute("SELECT count(*) FROM kept").fetchone() == (1000,)
    assert len(docker.containers()) == 1


def test_a_daemon_that_is_killed_while_provisioning(docker: SecondDocker, project: Project) -> None:
    operation = Operation.objects.get(project_uuid=project.pk)
    docker.stop(kill=True)
    waiting = _until(project, lambda p: p.status == "not_available", 30)
    assert waiting.status_detail
    operation.refresh_from_db()
    assert operation.live
    assert operation.attempt == 1
    assert all(step.attempt <= 1 for step in operation.steps.all())

    docker.start()
    _until(project, lambda p: p.status == "running", 90)
    operation.refresh_from_db()
    assert operation.state == "succeeded"
    assert len(docker.containers()) == 1
    with psycopg.connect(_uri(project)) as session:
        assert session.execute("SELECT 1").fetchone() == (1,)


def test_a_daemon_that_stops_between_start_and_first_login(docker: SecondDocker, project: Project) -> None:
    operation = Operation.objects.get(project_uuid=project.pk)
    real = registry.engine("postgresql").probe
    seen: list[int] = []

    def probe(*args: object, **kwargs: object) -> None:
        if not seen:
            seen.append(1)
            docker.stop()  # takes its containers along
        real(*args, **kwargs)  # type: ignore[arg-type]

    engine = registry.engine("postgresql")
    engine.probe = probe  # type: ignore[method-assign]
    try:
        runner.run(operation.pk)
    finally:
        del engine.probe
    assert seen, "the daemon was not killed in the step it was meant for"
    docker.start()
    _until(project, lambda p: p.status in {"running", "failed"}, 120)
    operation.refresh_from_db()
    if project.status == "failed":
        assert operation.error is not None
        assert docker.containers() == []
    else:
        assert operation.state == "succeeded"
        assert len(docker.containers()) == 1
