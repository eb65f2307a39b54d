"""Containers that are removed by hand, killed for memory, or whose data is all that is left: on real Docker."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import psycopg
import pytest

from projects.models import DatabaseServer, Operation, Project
from projects.services import project_action
from tests.faults import eyes
from tests.faults.conftest import Site, everything
from tests.faults.stack import wait_for

pytestmark = pytest.mark.docker


def container(project: Project) -> str:
    return str(DatabaseServer.objects.get(project_uuid=project.pk).handle.name)


def docker(*argv: str) -> str:
    return subprocess.run(["docker", *argv], check=True, capture_output=True, text=True).stdout


def test_removed_by_hand_it_comes_back_with_its_rows(docker_site: Site) -> None:
    """The volume is kept without its container; then once more while it is wanted stopped."""
    site = docker_site
    project = site.ready()
    port = project.endpoint.port
    site.worker()
    with site.fault("container removed by hand", point="while running") as run:
        docker("rm", "-f", container(project))
        run.recovering()
        wait_for(lambda: Operation.objects.filter(kind="recover", state="succeeded").exists(), 60, "recovery")
        site.wait_status(project, "running")
        run.ended()
        run.lost_rows = 1000 - site.rows_of(project)
        assert run.lost_rows == 0
        assert project.endpoint.port == port
        assert eyes.project_answer(site, project)["status_detail"] == ""
        site.check_exactly(project)
    with site.fault("container removed by hand", point="while stopped") as run:
        site.wait_ended(project_action(principal=site.alice, project=project, action="stop"))
        docker("rm", "-f", container(project))
        run.recovering()
        time.sleep(6)  # several ticks
        site.wait_status(project, "stopped", 5)
        assert not list(site.runtime.managed()), "stopped is stopped, with or without a container"
        start = project_action(principal=site.alice, project=project, action="start")
        assert site.wait_ended(start).state == "succeeded"
        site.wait_status(project, "running")
        run.ended()
        run.lost_rows = 1000 - site.rows_of(project)
        assert run.lost_rows == 0
        site.check_exactly(project)
    assert Operation.objects.filter(kind="recover").count() == 1


@everything
def test_a_volume_that_was_removed_is_missing_and_never_made_anew(docker_site: Site) -> None:
    site = docker_site
    project = site.ready()
    with site.fault("container and volume removed by hand") as run:
        name = container(project)
        docker("rm", "-f", name)
        docker("volume", "rm", f"{name}-data")
        run.recovering()
        site.worker()
        site.wait_status(project, "failed")
        run.ended()
        assert eyes.failure(site, project)["code"] == "data_missing"
        time.sleep(4)
        assert not list(site.runtime.managed_data()), "no new, empty one in its place"
        run.orphans = 0


# --- memory -------------------------------------------------------------------------------------------------------------


def told_of_memory(site: Site, project: Project, seconds: float = 30) -> str:
    """What the owner reads of it, within so long."""

    def told() -> str:
        found = eyes.project_answer(site, project)
        return str(found["status_detail"]) if "out of memory" in found["status_detail"].lower() else ""

    wait_for(told, seconds, "the reason")
    return told()


def test_a_query_that_takes_too_much_memory_is_said(docker_site: Site) -> None:
    """The tenant's own query. The kernel kills its backend; PostgreSQL, which is not PID 1's end, goes on by itself."""
    site = docker_site
    project = site.ready()
    site.worker()
    time.sleep(3)
    with site.fault("container killed for memory", point="a tenant's query") as run:
        with pytest.raises(psycopg.OperationalError), site.login(project) as session:
            session.execute("SET work_mem = '4GB'")
            session.execute("SELECT array_agg(repeat(md5(n::text), 40)) FROM generate_series(1, 4000000) n")
        run.recovering()
        detail = told_of_memory(site, project)
        run.ended()
        assert "one of its processes" in detail.lower()
        assert "memory limit" in detail
        assert "out of memory" in eyes.page(site, project)
        site.wait_status(project, "running")
        run.lost_rows = 1000 - site.rows_of(project)
        assert run.lost_rows == 0
        site.check_exactly(project)
    # Said until the next start, not for ever.
    site.wait_ended(project_action(principal=site.alice, project=project, action="restart"))
    wait_for(lambda: eyes.project_answer(site, project)["status_detail"] == "", 20, "forgiveness")


@everything
def test_a_server_whose_first_process_is_killed_for_memory(docker_site: Site) -> None:
    """PID 1 itself: the engine starts the container again at once, and the reason must not be lost."""
    site = docker_site
    project = site.ready()
    site.worker()
    time.sleep(3)
    with site.fault("container killed for memory", point="PID 1") as run:
        name = container(project)
        # Less than it already uses, and PID 1 as the kernel's first choice.
        pid = docker("inspect", "-f", "{{.State.Pid}}", name).strip()
        Path(f"/proc/{pid}/oom_score_adj").write_text("1000")
        with site.login(project) as session:
            session.autocommit = True
            run.recovering()
            with pytest.raises(psycopg.OperationalError):
                session.execute("SET work_mem = '4GB'")
                session.execute("SELECT array_agg(repeat(md5(n::text), 40)) FROM generate_series(1, 4000000) n")
        detail = told_of_memory(site, project)
        run.ended()
        assert "killed" in detail.lower()
        site.wait_status(project, "running", 60)
        run.lost_rows = 1000 - site.rows_of(project)
        assert run.lost_rows == 0
        site.check_exactly(project)
