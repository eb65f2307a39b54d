"""A Docker daemon that answers slowly, or not at all for a while: nothing is undone, no attempt is used up, nobody is told
that something failed, pages answer, and another region does not notice."""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from projects import domain
from projects.models import Operation, OperationStep, Region
from projects.operations import wiring
from projects.services import ProjectRequest, project_action, project_create
from tests.dockerd import Daemon, own_daemon
from tests.faults import eyes
from tests.faults.conftest import ALL, VERSION, Site, everything
from tests.faults.stack import FileBroker, Stack, database_url, wait_for
from tests.faults.test_dockerd import IMAGE
from tests.faults.test_dockerd import site as site_on_own_daemon
from tests.faults.test_lost_things import kill_server

pytestmark = pytest.mark.docker
HANGS_SECONDS = 90 if ALL else 16
SLOW_SECONDS = 3.0 if ALL else 1.0
MOMENTS = ("", "server", "ready", "secure", "limits") if ALL else ("server",)

site = pytest.fixture(site_on_own_daemon.__wrapped__, name="site")


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with own_daemon(IMAGE, bridge="nvshang0") as daemon:
        yield daemon


@pytest.fixture
def stack(site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stack]:
    broker = FileBroker()
    broker.start()
    stack = Stack(broker, database_url(), monkeypatch)
    try:
        yield stack
    finally:
        print(stack.logs())  # shown where the test failed
        stack.remove()


class SlowProxy:
    """In front of a daemon's socket: each answer comes `seconds` late."""

    def __init__(self, folder: Path, target: Path, seconds: float) -> None:
        self.path, self.target, self.seconds = folder / "slow.sock", target, seconds
        self.path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(self.path))
        self._listener.listen(64)
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"unix://{self.path}"

    def close(self) -> None:
        self._listener.close()
        self.path.unlink(missing_ok=True)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            server.connect(str(self.target))
            asked = threading.Event()
            threading.Thread(target=self._pump, args=(client, server, asked, False), daemon=True).start()
            threading.Thread(target=self._pump, args=(server, client, asked, True), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, asked: threading.Event, answers: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if not answers:
                    asked.set()
                elif asked.is_set():
                    asked.clear()
                    time.sleep(self.seconds)
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)


def another_region(site: Site, folder: Path) -> Region:
    """Without that daemon: processes of this machine."""
    first = site.region.port_end + 1
    root = folder / "another"
    return Region.objects.create(
        slug="another",
        name="Another",
        runtime="process",
        config={"root": str(root)},
        port_start=first,
        port_end=first + 20,
    )


def nothing_used_up(*operations: Operation) -> None:
    for operation in operations:
        assert operation.state == "succeeded", operation.error
        assert operation.attempt == 1
        assert not operation.undoing
        told = list(operation.steps.values_list("name", "state", "attempt", "error_code"))
        assert told == [(name, "succeeded", 1, "") for name, *_ in told]


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_daemon_that_hangs(site: Site, stack: Stack, daemon: Daemon, moment: str) -> None:
    folder = Path(tempfile.mkdtemp(prefix="nvs-another-", dir="/tmp"))
    folder.chmod(0o711)
    other_region = another_region(site, folder)
    try:
        stack.worker()
        stack.beat()
        running = site.ready("Running")
        neighbour = project_create(
            principal=site.alice, organization=site.team.organization,
            request=ProjectRequest(name="Neighbour", version=VERSION, region="another"),
        )  # fmt: skip
        site.wait_ended(site.operation(neighbour), 60)
        site.wait_status(neighbour, "running", 30)
        assert daemon.process is not None
        with site.fault(f"dockerd hangs for {HANGS_SECONDS} s", point=moment or "before it begins") as run:
            if moment:
                project = site.create()
                operation = site.operation(project)
                wait_for(lambda: operation.steps.filter(name=moment).exclude(state="pending").exists(), 40, moment)
            daemon.process.send_signal(signal.SIGSTOP)
            began = time.monotonic()
            if not moment:
                project = site.create()
                operation = site.operation(project)
            kill_server(neighbour)
            seen = set()
            while time.monotonic() - began < HANGS_SECONDS:
                for each in (project, running):
                    told = eyes.project_answer(site, each)
                    seen.add(told["status"])
                    eyes.page(site, each)
                assert "failed" not in seen, "nobody knows that"
                time.sleep(1)
                if HANGS_SECONDS > 60 and time.monotonic() - began > 60:
                    assert eyes.project_answer(site, running)["status"] == "not_available"
            neighbour.refresh_from_db()
            recovered = Operation.objects.filter(project_uuid=neighbour.pk, kind="recover").first()
            daemon.process.send_signal(signal.SIGCONT)
            run.recovering()
            assert recovered is not None, "the other region was looked after meanwhile"
            site.wait_ended(operation, 60)
            for each in (project, running):
                site.wait_status(each, "running", 60)
            run.ended()
            nothing_used_up(operation)
            site.wait_status(neighbour, "running", 60)
            run.lost_rows = 1000 - site.rows_of(running)
            assert run.lost_rows == 0
            with site.login(project):
                pass
            assert not OperationStep.objects.filter(crashes__gt=0).exists()
            site.check_exactly(project, running)
            assert stack.all_alive()
    finally:
        stack.kill()
        runtime = wiring.runtime_of(other_region)
        for handle in list(runtime.managed_data()):
            runtime.destroy(domain.Handle(handle.server_id, handle.incarnation), delete_data=True)
        shutil.rmtree(folder, ignore_errors=True)
        if daemon.process is not None:
            daemon.process.send_signal(signal.SIGCONT)


@everything
def test_a_daemon_that_answers_slowly(site: Site, daemon: Daemon, stack: Stack) -> None:
    """From the first call to the last: a database is made, stopped and started through it."""
    proxy = SlowProxy(daemon.folder, daemon.folder / "docker.sock", SLOW_SECONDS)
    site.region.config = {"base_url": proxy.url}
    site.region.save()
    try:
        stack.worker()
        stack.beat()
        with site.fault(f"dockerd answers {SLOW_SECONDS:g} s late") as run:
            run.recovering()
            project = site.create()
            operation = site.operation(project)
            seen = set()
            while operation.live:
                seen.add(eyes.project_answer(site, project)["status"])
                eyes.page(site, project)
                time.sleep(0.5)
                operation.refresh_from_db()
            assert seen <= {"queued", "provisioning", "running", "starting"}, "it is slow, not away"
            site.wait_status(project, "running", 60)
            nothing_used_up(operation)
            stop = project_action(principal=site.alice, project=project, action="stop")
            site.wait_ended(stop, 60)
            start = project_action(principal=site.alice, project=project, action="start")
            site.wait_ended(start, 90)
            nothing_used_up(stop, start)
            site.wait_status(project, "running", 60)
            run.ended()
            assert "reachable=False" not in stack.logs()
            with site.login(project):
                pass
            stack.kill()
            site.check_exactly(project)
    finally:
        stack.kill()
        proxy.seconds = 0.0
        site.clean_up()
        site.region.config = {"base_url": daemon.url}
        site.region.save()
        proxy.close()
