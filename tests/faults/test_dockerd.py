"""The Docker daemon goes away, politely or not, while projects are made and while they run: honest states, and recovery
by itself. On a daemon of the test's own, so that nobody else's containers suffer."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from projects import domain
from projects.models import Project
from projects.services import project_action, project_purge
from tests.faults.conftest import VERSION, Site, make_site

pytestmark = pytest.mark.docker
ALL = os.environ.get("NOVASTACK_FAULTS") == "all"
HOW = (signal.SIGTERM, signal.SIGKILL)
IMAGE = f"novastack-postgresql:{VERSION}"


BRIDGE = "nvstest0"
SIOCBRADDBR, SIOCBRDELBR, SIOCSIFFLAGS = 0x89A0, 0x89A1, 0x8914  # linux/sockios.h


def bridge_ioctl(request: int) -> None:
    """Make or remove the bridge; done already is success."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as control, contextlib.suppress(OSError):
        if request == SIOCBRDELBR:
            fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sh14x", BRIDGE.encode(), 0))
        fcntl.ioctl(control, request, BRIDGE.encode() + b"\0")


class Daemon:
    def __init__(self, folder: Path) -> None:
        self.folder, self.url = folder, f"unix://{folder}/docker.sock"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        # Without iptables: the rules are the host's, and another daemon's. Published ports on loopback need none.
        # Its own bridge, and no address pools: with `--bridge=none`, or with pools at its second start, a daemon
        # removes docker0, which belongs to the machine's own (moby 20.10, daemon_unix.go: removeDefaultBridgeInterface).
        bridge_ioctl(SIOCBRADDBR)
        argv = [
            "dockerd", "--data-root", f"{self.folder}/data", "--exec-root", f"{self.folder}/exec", "-H", self.url,
            "-p", f"{self.folder}/pid", "--bridge", BRIDGE, "--iptables=false", "--ip-masq=false",
            "--shutdown-timeout", "10",
            "--containerd-namespace", "nvsfaults", "--containerd-plugins-namespace", "nvsfaultsplugins",
        ]  # fmt: skip
        (self.folder / "pid").unlink(missing_ok=True)
        end_containerd(self.folder)
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(argv, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + 40
        while self.cli("version", check=False).returncode:
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise RuntimeError((self.folder / "log").read_text()[-2000:])
            time.sleep(0.2)

    def stop(self, number: int = signal.SIGTERM) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            try:
                self.process.wait(25)
            except subprocess.TimeoutExpired:  # the daemon itself can hang over a container that is just being started
                self.process.kill()
                self.process.wait(10)
            self.process = None

    def cli(self, *argv: str, check: bool = True, **options: object) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(["docker", "-H", self.url, *argv], check=check, capture_output=True, **options)  # type: ignore[call-overload,no-any-return]


def end_containerd(folder: Path) -> None:
    """What a daemon that was killed leaves: found by its own pid file, nobody else's."""
    with contextlib.suppress(OSError, ValueError):
        file = folder / "exec/containerd/containerd.pid"
        os.kill(int(file.read_text()), signal.SIGKILL)
        file.unlink()
        time.sleep(0.5)


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    required = os.environ.get("NOVASTACK_REQUIRE_DOCKER") == "1"
    if os.geteuid() != 0 or shutil.which("dockerd") is None:
        pytest.skip("needs root and dockerd, to start a daemon of its own")
    image = subprocess.run(["docker", "image", "inspect", IMAGE], capture_output=True, check=False)
    if image.returncode:
        if required:
            raise AssertionError(f"no {IMAGE}: run `make images`")
        pytest.skip(f"no {IMAGE} here: run `make images`")
    folder = Path(tempfile.mkdtemp(prefix="nvsd-", dir="/tmp"))
    daemon = Daemon(folder)
    try:
        daemon.start()
    except RuntimeError as error:
        end_containerd(folder)
        shutil.rmtree(folder, ignore_errors=True)
        pytest.skip(f"a second Docker daemon does not start here: {error}"[:300])
    saved = subprocess.Popen(["docker", "save", IMAGE], stdout=subprocess.PIPE)
    daemon.cli("load", stdin=saved.stdout)
    saved.wait()
    yield daemon
    daemon.stop()
    end_containerd(folder)
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines() if f" {folder}/" in line]
    subprocess.run(["umount", "-l", *reversed(mounts)], capture_output=True, check=False)
    shutil.rmtree(folder, ignore_errors=True)
    bridge_ioctl(SIOCBRDELBR)


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
    site.wait_ended(operation, 90)
    assert operation.state == "succeeded"
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
    daemon.stop(how)
    time.sleep(3)
    project.refresh_from_db()
    assert project.status in {"not_available", "provisioning"}, project.status
    daemon.start()
    site.wait_ended(operation, 90)
    assert operation.state == "succeeded", (operation.error, list(operation.events.values_list("message", flat=True)))
    with site.login(project):
        pass
    site.check_exactly(project)


@pytest.mark.parametrize("how", HOW if ALL else [signal.SIGTERM])
def test_stopped_while_running(site, daemon, how):
    project = site.ready()
    site.worker()
    daemon.stop(how)
    site.wait_status(project, "not_available", 20)
    daemon.start()
    wait_rows(site, project, 1000)
    site.check_exactly(project)
    site.stop_workers()
    operation = project_action(principal=site.alice, project=project, action="restart")
    assert site.finish(operation).state == "succeeded"


def test_deleted_while_it_is_away_it_is_deleted_when_it_is_back(site, daemon):
    project = site.ready()
    site.worker()
    daemon.stop()
    site.wait_status(project, "not_available", 20)
    purge = project_purge(principal=site.alice, project=project, confirm=project.slug)
    time.sleep(4)
    project.refresh_from_db()
    assert project.status == "deleting"
    assert project.status_detail, "and why it takes long"
    daemon.start()
    site.wait_ended(purge, 90)
    assert purge.state == "succeeded"
    site.check_exactly()
    assert not list(site.runtime.managed_data())
