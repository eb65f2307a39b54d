"""The client against the real server: Django's live server with the real control database, a worker in a thread, and a
proxy between them that loses answers."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.core.cache import cache
from django.db import connection
from pytest_django.live_server_helper import LiveServer

from accounts.models import Organization
from novastack_client import AsyncNovaStack, NovaStack
from projects.models import Operation
from projects.operations import runner
from projects.runtimes.memory import MemoryRuntime
from tests.client.proxy import Proxy
from tests.factories import Team, make_catalogue, make_team, make_token
from tests.operations.conftest import paper, ready, runtime, shop

__all__ = ["paper", "ready", "runtime", "shop"]


class Awaited:
    """The asynchronous client for tests that are not: calls are run to their end, lists are collected."""

    def __init__(self, runner: asyncio.Runner, client: AsyncNovaStack) -> None:
        self.runner, self.client = runner, client

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.client, name)

        async def collect(items: Any) -> list[Any]:
            return [item async for item in items]

        def call(*args: Any, **kwargs: Any) -> Any:
            made = method(*args, **kwargs)
            if hasattr(made, "__aiter__"):
                return iter(self.runner.run(collect(made)))
            return self.runner.run(made)

        return call


@pytest.fixture
def team(transactional_db: None) -> Team:
    cache.clear()
    make_catalogue()
    team = make_team()
    Organization.objects.update(max_projects=500, max_memory_bytes=2**50, max_storage_bytes=2**50)
    return team


@pytest.fixture
def token(team: Team) -> str:
    return make_token(team.alice)[1]


@pytest.fixture
def proxy(live_server: LiveServer) -> Iterator[Proxy]:
    live_server.thread.httpd.socket.listen(128)  # Django's own queue is of 10; more are reset
    with Proxy(live_server.url) as found:
        yield found
    _await_quiet()


def _await_quiet() -> None:
    """Requests that nobody waited for have ended: emptying the tables, which comes next, would meet them."""
    deadline, busy = time.monotonic() + 20, True
    while busy:
        assert time.monotonic() < deadline, "a request does not end"
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
                " AND backend_type = 'client backend' AND state <> 'idle'"
            )
            busy = cursor.fetchone()[0] > 0
        time.sleep(0.05 if busy else 0)


@pytest.fixture(params=["sync", "async"])
def connect(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """Makes a client of either kind: `connect(url, token, **options)`."""
    made: list[Any] = []
    with asyncio.Runner() as loop:

        def make(url: str, token: str, **options: Any) -> Any:
            options = {"backoff_seconds": 0.05, **options}
            if request.param == "sync":
                made.append(NovaStack(url, token, **options))
            else:
                made.append(Awaited(loop, AsyncNovaStack(url, token, **options)))
            return made[-1]

        yield make
        for client in made:
            client.close() if isinstance(client, NovaStack) else client.aclose()


@pytest.fixture
def nova(connect: Callable[..., Any], proxy: Proxy, token: str) -> Any:
    """Alice's client; what it says goes through the proxy."""
    return connect(proxy.url, token)


@pytest.fixture
def worker(team: Team, runtime: MemoryRuntime) -> Iterator[threading.Event]:
    """Does what is queued, on the memory runtime, while the event is set."""
    at_work, ends = threading.Event(), threading.Event()
    at_work.set()

    def work() -> None:
        while not ends.is_set():
            if at_work.wait(0.05):
                for pk in Operation.objects.live().values_list("pk", flat=True):
                    runner.run(pk)
            time.sleep(0.02)
        connection.close()

    thread = threading.Thread(target=work, name="worker")
    thread.start()
    yield at_work
    ends.set()
    thread.join(30)
