"""The control database drops every connection in the middle of a step, and restarts in the middle of an operation, with
real Celery workers at work: they live on, and operations end truthfully."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import psycopg
import pytest
from django.core.management import call_command
from django.db import connection

from novastack.embedded.postgres import EmbeddedPostgres
from projects.models import Operation, OperationLock
from projects.services import project_action
from tests.faults.conftest import ALL, Site, everything, make_site
from tests.faults.stack import FileBroker, Stack, database_url, wait_for

pytestmark = pytest.mark.process
STEPS = ("server", "ready", "secure", "database", "limits", "login") if ALL else ("secure",)


@pytest.fixture
def stack(process_site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stack]:
    broker = FileBroker()
    broker.start()
    stack = Stack(broker, database_url(), monkeypatch)
    try:
        yield stack
    finally:
        print(stack.logs())  # shown where the test failed
        stack.remove()


def end_all_connections() -> int:
    """Of everybody to the control database, ours included."""
    connection.close()
    known = connection.settings_dict
    with psycopg.connect(
        host=known["HOST"], port=known["PORT"], user=known["USER"], password=known["PASSWORD"], dbname="postgres",
        autocommit=True,
    ) as other:  # fmt: skip
        ended = other.execute(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = %s", [known["NAME"]]
        ).fetchone()
    return int(ended[0]) if ended else 0


def begun(operation: Operation, step: str) -> None:
    wait_for(lambda: operation.steps.filter(name=step).exclude(state="pending").exists(), 40, step)


@pytest.mark.parametrize("step", STEPS)
def test_all_connections_are_dropped(process_site: Site, stack: Stack, step: str) -> None:
    site = process_site
    stack.worker()
    stack.beat()
    with site.fault("control database drops all connections", point=step) as run:
        project = site.create()
        operation = site.operation(project)
        begun(operation, step)
        assert end_all_connections()
        run.recovering()
        site.wait_ended(operation, 60)
        run.ended()
        assert operation.state == "succeeded", operation.error
        assert operation.attempt == 1
        assert not OperationLock.objects.exists()
        site.wait_status(project, "running", 30)
        with site.login(project):
            pass
        site.check_exactly(project)
        assert stack.all_alive()


@everything
def test_all_connections_are_dropped_again_and_again(process_site: Site, stack: Stack) -> None:
    site = process_site
    stack.worker()
    stack.beat()
    with site.fault("control database drops all connections", point="every 0.7 s, for 10 s") as run:
        project = site.create()
        operation = site.operation(project)
        began = time.monotonic()
        while time.monotonic() - began < 10:
            end_all_connections()
            time.sleep(0.7)
        run.recovering()
        site.wait_ended(operation, 60)
        run.ended()
        assert operation.state in {"succeeded", "failed"}
        if operation.state == "failed":
            assert operation.error["code"] == "poison", operation.error
        else:
            site.wait_status(project, "running", 30)
            site.check_exactly(project)
        assert stack.all_alive()


@pytest.fixture
def own_control(_fresh: None) -> Iterator[EmbeddedPostgres]:
    """A control database of this test's own, that may be restarted; this process works on it meanwhile."""
    home = Path(tempfile.mkdtemp(prefix="nvs-control-", dir="/tmp"))
    home.chmod(0o711)
    server = EmbeddedPostgres(home / "home", first_port=17432)
    parts = urlsplit(server.start())
    before = dict(connection.settings_dict)
    connection.close()
    connection.settings_dict.update(
        HOST=parts.hostname, PORT=parts.port, USER=parts.username, PASSWORD=unquote(parts.password or ""),
        NAME=parts.path.lstrip("/"),
    )  # fmt: skip
    try:
        call_command("migrate", verbosity=0)
        yield server
    finally:
        connection.close()
        connection.settings_dict.update(before)
        server.stop()
        shutil.rmtree(server.state, ignore_errors=True)
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def own_site(own_control: EmbeddedPostgres) -> Iterator[Site]:
    yield from make_site("process")


WAYS = {"restarted": signal.SIGINT, "killed": signal.SIGKILL} if ALL else {"killed": signal.SIGKILL}


@pytest.mark.parametrize("how", WAYS)
def test_it_restarts_while_a_worker_works(
    own_site: Site, own_control: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    site, broker = own_site, FileBroker()
    broker.start()
    stack = Stack(broker, database_url(), monkeypatch)
    try:
        stack.worker()
        stack.beat()
        first = site.ready("First")
        with site.fault(f"control database {how} while a worker works") as run:
            stop = project_action(principal=site.alice, project=first, action="stop")
            project = site.create()
            operation = site.operation(project)
            begun(operation, "server")
            connection.close()
            ref = own_control.ref()
            assert ref is not None
            os.kill(ref.pid, WAYS[how])
            time.sleep(8)
            assert stack.all_alive(), "workers and beat live on without it"
            own_control.start()
            run.recovering()
            for each in (operation, stop):
                site.wait_ended(each, 60)
            run.ended()
            assert (operation.state, stop.state) == ("succeeded", "succeeded"), (operation.error, stop.error)
            assert operation.attempt == 1
            assert not OperationLock.objects.exists()
            site.wait_status(project, "running", 30)
            site.wait_status(first, "stopped", 30)
            site.check_exactly(project, first)
            assert stack.all_alive()
    finally:
        print(stack.logs())
        stack.remove()
