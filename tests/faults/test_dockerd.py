"""The Docker daemon goes away, politely or not, while projects are made and while they run: honest states, and recovery
by itself. On a daemon of the test's own, so that nobody else's containers suffer."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator

import pytest

from projects import domain
from projects.models import Project
from projects.services import project_action, project_purge
from tests.dockerd import Daemon, own_daemon
from tests.faults.conftest import VERSION, Site, make_site

pytestmark = pytest.mark.docker
ALL = os.environ.get("NOVASTACK_FAULTS") == "all"
HOW = (signal.SIGTERM, signal.SIGKILL)
IMAGE = f"novastack-postgresql:{VERSION}"


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with own_daemon(IMAGE) as daemon:
        yield daemon


@pytest.fixture
def site(_fresh: None, daemon: Daemon) -> Iterator[Site]:
    if daemon.process is None:
        daemon.start()
    sites = make_site("docker")
    found = next(sites)
    found.region.config = {"base_url": daemon.url}
    found.region.save()
    yield found
    found.stop_workers()
    if daemon.process is None:
        daemon.start()
    with contextlib.suppress(domain.NovaStackRuntimeError):
        found.clean_up()
        found.runtime.remove_network()  # type: ignore[attr-defined] # else its bridge stays on the host
    sites.close()


def wait_rows(site: Site, project: Project, number: int) -> None:
    """The status is the truth: when it says running, a login works."""
    site.wait_status(project, "running", 90)
    assert site.rows_of(project) == number


def test_made_while_it_is_away_it_comes_up_with_it(site, daemon):
    with site.fault("dockerd away while a database is asked for") as run:
        daemon.stop()
        site.worker()
        project = site.create()
        site.wait_status(project, "not_available", 20)
        assert project.status_detail
        operation = site.operation(project)
        time.sleep(8)
        operation.refresh_from_db()
        assert operation.live
        assert operation.attempt == 1
        assert all(step.attempt <= 1 for step in operation.steps.all())
        daemon.start()
        run.recovering()
        site.wait_ended(operation, 90)
        assert operation.state == "succeeded"
        run.ended()
        with site.login(project):
            pass
        site.check_exactly(project)


@pytest.mark.parametrize(
    ("how", "step"),
    [(how, step) for how in HOW for step in ("server", "ready")] if ALL else [(signal.SIGKILL, "server")],
)
def test_stopped_while_provisioning(site, daemon, how, step):
    project = site.create()
    operation = site.operation(project)
    site.worker()
    while not operation.steps.filter(name=step).exclude(state="pending").exists():
        time.sleep(0.005)
    with site.fault(f"dockerd {how.name} while provisioning", point=step) as run:
        daemon.stop(how)
        time.sleep(3)
        project.refresh_from_db()
        assert project.status in {"not_available", "provisioning"}, project.status
        daemon.start()
        run.recovering()
        site.wait_ended(operation, 90)
        assert operation.state == "succeeded", (
            operation.error,
            list(operation.events.values_list("message", flat=True)),
        )
        run.ended()
        with site.login(project):
            pass
        site.check_exactly(project)


@pytest.mark.parametrize("how", HOW if ALL else [signal.SIGTERM])
def test_stopped_while_running(site, daemon, how):
    project = site.ready()
    site.worker()
    with site.fault(f"dockerd {how.name} while running") as run:
        daemon.stop(how)
        site.wait_status(project, "not_available", 20)
        daemon.start()
        run.recovering()
        wait_rows(site, project, 1000)
        run.ended()
        run.lost_rows = 0
        site.check_exactly(project)
        site.stop_workers()
        operation = project_action(principal=site.alice, project=project, action="restart")
        assert site.finish(operation).state == "succeeded"


def test_deleted_while_it_is_away_it_is_deleted_when_it_is_back(site, daemon):
    project = site.ready()
    site.worker()
    with site.fault("dockerd away while a database is purged") as run:
        daemon.stop()
        site.wait_status(project, "not_available", 20)
        purge = project_purge(principal=site.alice, project=project, confirm=project.slug)
        time.sleep(4)
        project.refresh_from_db()
        assert project.status == "deleting"
        assert project.status_detail, "and why it takes long"
        daemon.start()
        run.recovering()
        site.wait_ended(purge, 90)
        assert purge.state == "succeeded"
        run.ended()
        site.check_exactly()
        assert not list(site.runtime.managed_data())
