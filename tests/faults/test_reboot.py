"""The whole machine goes down without a word: databases, container engine, workers and beat, all at once. Data stays.
Afterwards the desired state comes back by itself: what ran runs with its rows, what was stopped stays stopped."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from novastack.common.clock import now
from projects.models import DatabaseServer, Operation, Project
from projects.runtimes.process_table import ProcessRef, family
from projects.services import project_action
from tests.dockerd import Daemon, own_daemon
from tests.faults import eyes
from tests.faults.conftest import Site, everything
from tests.faults.stack import wait_for
from tests.faults.test_dockerd import IMAGE
from tests.faults.test_dockerd import site as site_on_own_daemon

site = pytest.fixture(site_on_own_daemon.__wrapped__, name="site")


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with own_daemon(IMAGE, bridge="nvsboot0") as daemon:
        yield daemon


def powered_off(daemon: Daemon) -> None:
    """Everything of the daemon ends at once: itself, containerd, the shims, the containers' processes, the proxies. What
    a boot clears is cleared: its run folder, its mounts."""
    ids = daemon.cli("ps", "-q", "--no-trunc").stdout.decode().split()
    told = daemon.cli("inspect", "-f", "{{.State.Pid}}", *ids).stdout.decode().split() if ids else []
    pids = {int(pid) for pid in told if pid != "0"}
    assert daemon.process is not None
    own = {daemon.process.pid} | {p for p, argv, _ in processes() if str(daemon.folder) in argv}
    children = {p for p, _, parent in processes() if parent == daemon.process.pid}
    for pid in [daemon.process.pid, *sorted(own | children), *sorted(pids)]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    daemon.process.wait(60)
    daemon.process = None
    wait_for(lambda: not any(Path(f"/proc/{p}").exists() for p in pids), 10, "the end of all containers")
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for place in reversed([m for m in mounts if m.startswith(f"{daemon.folder}/")]):
        subprocess.run(["umount", "-l", place], capture_output=True, check=False)
    shutil.rmtree(daemon.folder / "exec", ignore_errors=True)


def processes() -> Iterator[tuple[int, str, int]]:
    """(pid, command line, parent) of all."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            with contextlib.suppress(OSError, IndexError, ValueError):
                argv = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                yield int(folder.name), argv, int((folder / "stat").read_text().rpartition(")")[2].split()[1])


def back(site: Site, ran: list[Project], stopped: Project, since: datetime) -> int:
    """Waits for what is desired; returns how many rows are missing."""
    for project in ran:
        seen = DatabaseServer.objects.filter(project_uuid=project.pk, started_at__gt=since)
        wait_for(seen.exists, 60, "a look at it since the machine is back")
        time.sleep(1)  # from here on the status is the truth: what it says running takes logins
        site.wait_status(project, "running", 90)
    lost = sum(1000 - site.rows_of(project) for project in ran)
    time.sleep(4)
    told = eyes.project_answer(site, stopped)
    assert (told["status"], told["desired_status"]) == ("stopped", "stopped")
    return lost


@pytest.mark.docker
def test_a_docker_host_is_powered_off(site: Site, daemon: Daemon) -> None:
    ran = [site.ready("One"), site.ready("Two")]
    stopped = site.ready("Stopped")
    site.finish(project_action(principal=site.alice, project=stopped, action="stop"))
    site.worker()
    time.sleep(3)
    with site.fault("machine rebooted", point="idle") as run:
        since = now()
        site.stop_workers()
        powered_off(daemon)
        daemon.start()
        run.recovering()
        site.worker()
        run.lost_rows = back(site, ran, stopped, since)
        run.ended()
        assert run.lost_rows == 0
        site.check_exactly(*ran, stopped)
    site.stop_workers()
    start = project_action(principal=site.alice, project=stopped, action="start")
    assert site.finish(start).state == "succeeded", start.error
    assert site.rows_of(stopped) == 1000


@everything
@pytest.mark.docker
@pytest.mark.parametrize("step", ["server", "ready", "secure", "limits"])
def test_a_docker_host_is_powered_off_while_provisioning(site: Site, daemon: Daemon, step: str) -> None:
    ran = [site.ready("One")]
    project = site.create("Young")
    operation = site.operation(project)
    site.worker()
    with site.fault("machine rebooted", point=f"provisioning, {step}") as run:
        wait_for(lambda: operation.steps.filter(name=step).exclude(state="pending").exists(), 40, step)
        site.stop_workers()
        powered_off(daemon)
        daemon.start()
        run.recovering()
        site.worker()
        site.wait_ended(operation, 60)
        assert operation.state == "succeeded", operation.error
        for each in (*ran, project):
            site.wait_status(each, "running", 60)
        run.ended()
        run.lost_rows = 1000 - site.rows_of(ran[0])
        assert run.lost_rows == 0
        with site.login(project):
            pass
        site.check_exactly(*ran, project)


@everything
@pytest.mark.process
def test_a_host_of_processes_is_powered_off(process_site: Site) -> None:
    site = process_site
    ran = [site.ready("One"), site.ready("Two")]
    stopped = site.ready("Stopped")
    site.finish(project_action(principal=site.alice, project=stopped, action="stop"))
    site.worker()
    time.sleep(3)
    with site.fault("machine rebooted", point="idle") as run:
        since = now()
        site.stop_workers()
        for server in DatabaseServer.objects.exclude(runtime_ref=""):
            ref = ProcessRef.parse(server.runtime_ref)
            assert ref is not None
            for each in family([ref.pid])[ref.pid] if ref.alive() else []:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(each.pid, signal.SIGKILL)
        run.recovering()
        site.worker()
        run.lost_rows = back(site, ran, stopped, since)
        run.ended()
        assert run.lost_rows == 0
        assert Operation.objects.filter(kind="recover").count() == 2
        site.check_exactly(*ran, stopped)
