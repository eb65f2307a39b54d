"""Two regions on two Docker daemons, the second one by TCP with TLS: when it hangs or is gone its projects are not
available, and the first region notices nothing; when it is back they come up by themselves, with their rows."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from novastack.common import pki
from novastack.common.clock import now
from novastack.common.secrets import Sealed
from projects.models import MetricSample, Project, Region
from projects.models.catalogue import UNREACHABLE
from projects.operations import disks, reconciler, watch
from projects.services import ProjectRequest, project_create
from tests.contracts.runtime_contract import free_port
from tests.dockerd import Daemon, own_daemon
from tests.faults import clients
from tests.faults.conftest import VERSION, Site, make_site

pytestmark = pytest.mark.docker
IMAGE = f"novastack-postgresql:{VERSION}"
CA = pki.make_authority("Engines", at=now())
CLIENT = pki.make_client_certificate(CA, "novastack", at=now())


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, str]]:
    folder: Path = tmp_path_factory.mktemp("papers")
    made = pki.make_server_certificate(CA, ["127.0.0.1"], at=now())
    for name, text in (("ca", CA.certificate), ("cert", made.certificate), ("key", made.key)):
        (folder / name).write_text(text)
    url = f"tcp://127.0.0.1:{free_port()}"
    files = [f"--tlscacert={folder}/ca", f"--tlscert={folder}/cert", f"--tlskey={folder}/key"]
    with own_daemon(IMAGE, bridge="nvstest8", argv=["-H", url, "--tlsverify", *files]) as daemon:
        yield daemon, url


@pytest.fixture
def site(_fresh: None) -> Iterator[Site]:
    yield from make_site("docker")


@pytest.fixture
def far(site: Site, engine: tuple[Daemon, str]) -> Iterator[Region]:
    daemon, url = engine
    region = Region(
        slug="far", name="Far", runtime="docker", endpoint_url=url, endpoint_ca=CA.certificate,
        endpoint_certificate=CLIENT.certificate, endpoint_key=Sealed.of(CLIENT.key),
        port_start=site.region.port_end + 1, port_end=site.region.port_end + 50,
    )  # fmt: skip
    region.full_clean(exclude={"endpoint_key"})
    region.save()
    yield region
    site.stop_workers()
    if daemon.process is None:
        daemon.start()
    daemon.process.send_signal(signal.SIGCONT)  # type: ignore[union-attr]


def ready(site: Site, region: str, name: str) -> Project:
    request = ProjectRequest(name=name, engine=site.engine, version=site.version, region=region)
    project = project_create(principal=site.alice, organization=site.team.organization, request=request)
    operation = site.finish(site.operation(project))
    assert operation.state == "succeeded", operation.error
    project.refresh_from_db()
    site.client.fill(project)
    return project


def the_first_goes_on(site: Site, near: Project, name: str) -> None:
    """A database is made as fast as ever, logins are tried, figures are read, and rows are written."""
    began, moment = time.monotonic(), now()
    made = site.create(name)
    site.wait_ended(site.operation(made), 40)
    made.refresh_from_db()
    assert made.ready_at, made.status_detail
    with site.login(made):
        pass
    for _ in range(3):
        tick = time.monotonic()
        assert reconciler.reconcile().unreachable == ["far"]
        disks.measure()
        assert time.monotonic() - tick < 30
    assert watch.collect_usage() >= 1
    assert MetricSample.objects.filter(project=near, at__gte=moment, memory_bytes__gt=0).exists()
    assert time.monotonic() - began < 150
    near.refresh_from_db()
    assert near.status == "running"
    assert site.rows_of(near) == clients.ROWS


def test_a_daemon_that_hangs_and_one_that_is_gone_touch_nobody_else(site, far, engine, ledger):
    daemon, _ = engine
    near = ready(site, "site", "Near")
    away = ready(site, "far", "Away")
    site.worker()
    for name, begin, end in (
        (
            "Hang",
            lambda: daemon.process.send_signal(signal.SIGSTOP),
            lambda: daemon.process.send_signal(signal.SIGCONT),
        ),
        ("Gone", daemon.stop, daemon.start),
    ):
        begin()
        site.wait_status(away, "not_available", 30)
        assert UNREACHABLE in away.status_detail
        far.refresh_from_db()
        assert "answer" in far.reason
        assert "127.0.0.1" not in away.status_detail
        the_first_goes_on(site, near, f"While {name}")
        end()
        site.wait_status(away, "running", 90)
        assert site.rows_of(away) == clients.ROWS
