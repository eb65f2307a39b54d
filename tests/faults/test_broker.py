"""The broker forgets, stops, hangs, tells things twice or not at all; beat and reconciler run twice: messages are hints,
the rows are the truth. Real Celery workers and beat, a real Redis, and the file broker of embedded installs."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator

import pytest
from django.db.models import F

from projects.models import DatabaseServer, Operation, OperationLock, OperationStep, Project
from projects.operations import queue
from projects.services import project_action
from tests.faults.conftest import ALL, Site, everything
from tests.faults.stack import Broker, FileBroker, Redis, Stack, database_url, hints_lost, wait_for
from tests.faults.test_lost_things import kill_server

pytestmark = pytest.mark.process


def make(kind: type[Broker], site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stack]:
    broker = kind()
    broker.start()
    stack = Stack(broker, database_url(), monkeypatch)
    try:
        yield stack
    finally:
        print(stack.logs())  # shown where the test failed
        stack.remove()


@pytest.fixture
def redis_stack(process_site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stack]:
    yield from make(Redis, process_site, monkeypatch)


@pytest.fixture(params=[Redis, FileBroker] if ALL else [Redis])
def any_stack(request: pytest.FixtureRequest, process_site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stack]:
    yield from make(request.param, process_site, monkeypatch)


def each_step_once(operation: Operation) -> None:
    assert operation.state == "succeeded", operation.error
    told = list(operation.steps.values_list("name", "state", "attempt", "crashes"))
    assert told == [(name, "succeeded", 1, 0) for name, *_ in told], told


def in_use(site: Site, project: Project) -> None:
    """What the owner sees and has."""
    site.wait_status(project, "running", 30)
    assert not OperationLock.objects.exists()
    with site.login(project):
        pass
    site.check_exactly(project)


MOMENTS = ("image", "server", "ready", "secure", "database", "limits", "login") if ALL else ("server",)


@pytest.mark.parametrize("moment", ["", *MOMENTS] if ALL else MOMENTS)
def test_emptied(process_site: Site, any_stack: Stack, moment: str) -> None:
    """Before any worker took the message, and while one works at each step; then a stop goes through as well."""
    site, stack = process_site, any_stack
    if moment:
        stack.worker()
        stack.beat()
    with site.fault(f"{stack.broker.name} emptied", point=moment or "before it is taken") as run:
        project = site.create()
        operation = site.operation(project)
        if moment:
            wait_for(lambda: operation.steps.filter(name=moment).exclude(state="pending").exists(), 40, moment)
        stack.broker.empty()
        run.recovering()
        if not moment:
            stack.worker()
            stack.beat()
        site.wait_ended(operation, 60)
        run.ended()
        each_step_once(operation)
        in_use(site, project)
        stop = project_action(principal=site.alice, project=project, action="stop")
        stack.broker.empty()
        site.wait_ended(stop, 60)
        site.wait_status(project, "stopped")
        assert stack.all_alive()


@pytest.mark.parametrize("moment", MOMENTS)
def test_stopped_and_started_again(process_site: Site, any_stack: Stack, moment: str) -> None:
    site, stack = process_site, any_stack
    stack.worker()
    stack.beat()
    with site.fault(f"{stack.broker.name} stopped for 8 s", point=moment) as run:
        project = site.create()
        operation = site.operation(project)
        wait_for(lambda: operation.steps.filter(name=moment).exclude(state="pending").exists(), 40, moment)
        stack.broker.stop()
        began = time.monotonic()
        late = site.create("Asked meanwhile")
        assert time.monotonic() - began < 60, "the request did not wait for a broker"
        assert late.status == "queued"
        time.sleep(8)
        stack.broker.start()
        run.recovering()
        for each in (project, late):
            site.wait_ended(site.operation(each), 60)
            each_step_once(site.operation(each))
        run.ended()
        for each in (project, late):
            site.wait_status(each, "running", 30)
        site.check_exactly(project, late)
        assert stack.all_alive()


@everything
def test_a_broker_that_hangs_holds_nobody_up(process_site: Site, redis_stack: Stack) -> None:
    site, stack = process_site, redis_stack
    assert isinstance(stack.broker, Redis)
    stack.worker()
    stack.beat()
    first = site.ready("First")
    with site.fault("Redis hangs for 10 s") as run:
        stack.broker.signal(signal.SIGSTOP)
        began = time.monotonic()
        project = site.create()
        assert time.monotonic() - began < 60, "the request did not wait for the broker"
        time.sleep(max(0, 10 - (time.monotonic() - began)))
        stack.broker.signal(signal.SIGCONT)
        run.recovering()
        operation = site.wait_ended(site.operation(project), 60)
        run.ended()
        each_step_once(operation)
        site.wait_status(project, "running", 30)
        site.wait_status(first, "running", 30)
        site.check_exactly(project, first)
        assert stack.all_alive()


def test_told_many_times_it_is_done_once(process_site: Site, redis_stack: Stack) -> None:
    """Every message five times, to two workers, all the time."""
    site, stack = process_site, redis_stack
    stack.worker()
    stack.worker()
    with site.fault("every message delivered five times, to two workers") as run:
        run.recovering()
        project = site.create()
        operation = site.operation(project)
        over = threading.Event()

        def repeat() -> None:
            while not over.wait(0.05):
                for _ in range(5):
                    stack.app.send_task(queue.RUN_TASK, args=[str(operation.pk)], retry=False)

        repeater = threading.Thread(target=repeat)
        repeater.start()
        try:
            site.wait_ended(operation, 60)
        finally:
            over.set()
            repeater.join()
        run.ended()
        each_step_once(operation)
        assert operation.fence <= 2, "claimed by one worker; at most once more by who came when it had just ended"
        in_use(site, project)


@everything
def test_a_message_that_never_arrives(process_site: Site, redis_stack: Stack, monkeypatch) -> None:
    site, stack = process_site, redis_stack
    hints_lost(monkeypatch)
    stack.worker()
    stack.beat()
    with site.fault("message never delivered") as run:
        run.recovering()
        project = site.create()
        operation = site.wait_ended(site.operation(project), 60)
        run.ended()
        each_step_once(operation)
        in_use(site, project)


def test_two_beats_and_two_reconcilers(process_site: Site, redis_stack: Stack) -> None:
    """A killed server is recovered once, a lost hint is sent, and nobody's work is done twice."""
    site, stack = process_site, redis_stack
    project = site.ready()
    for _ in range(2):
        stack.worker()
        stack.beat()
    with site.fault("two beats, two workers that reconcile") as run:
        kill_server(project)
        run.recovering()
        wait_for(lambda: Operation.objects.filter(kind="recover").exists(), 30, "recovery")
        recover = Operation.objects.get(kind="recover")
        site.wait_ended(recover, 60)
        site.wait_status(project, "running", 30)
        run.ended()
        each_step_once(recover)
        assert site.rows_of(project) == 1000
        run.lost_rows = 0
        second = site.create("Second")
        each_step_once(site.wait_ended(site.operation(second), 60))
        time.sleep(6)  # a tick of each
        assert Operation.objects.filter(kind="recover").count() == 1
        assert not OperationStep.objects.filter(crashes__gt=0).exists()
        assert not DatabaseServer.objects.filter(recoveries__gt=1).exists()
        assert Operation.objects.filter(fence__gt=F("attempt")).count() == 0
        site.check_exactly(project, second)


@everything
def test_two_reconcilers_in_the_same_moment(process_site: Site) -> None:
    site = process_site
    project = site.ready()
    with site.fault("two reconcilers at once") as run:
        kill_server(project)
        time.sleep(0.5)
        run.recovering()
        for _ in range(3):
            site.worker()
        site.wait_status(project, "running", 60)
        wait_for(lambda: Operation.objects.filter(kind="recover", state="succeeded").exists(), 60, "recovery")
        run.ended()
        assert site.rows_of(project) == 1000
        run.lost_rows = 0
        time.sleep(3)
        each_step_once(Operation.objects.get(kind="recover"))
        site.check_exactly(project)
