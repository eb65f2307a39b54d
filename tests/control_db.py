"""The suite's parts. A real control database: `DATABASE_URL` if given, else an embedded PostgreSQL that stays up between
runs (fsync off). Real Docker and real processes where a test asks for them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Playwright's synchronous API keeps an event loop in the thread of the tests; Django's guard would then refuse the
# database to every later test of the same worker. Nothing here runs concurrently in that thread.
os.environ.setdefault("DJANGO_ALLOW_ASYNC_UNSAFE", "true")

if not os.environ.get("DATABASE_URL"):
    from novastack.embedded.postgres import EmbeddedPostgres

    _home = Path(os.environ.get("NOVASTACK_TEST_HOME", Path(__file__).resolve().parent.parent / ".novastack-test"))
    _server = EmbeddedPostgres(_home, durable=False)
    _server.start()
    os.environ["DATABASE_URL"] = _server.url


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of a class that is marked `in_order` tell one story: after the shuffle they take their places in the
    file's order. (`--dist loadscope` keeps a class in one worker; pytest 9.2 ignores xdist 3.8's groups.)"""
    stories: dict[object, list[int]] = {}
    for place, item in enumerate(items):
        if item.get_closest_marker("in_order"):
            stories.setdefault(item.parent, []).append(place)
    for places in stories.values():
        told = sorted((items[place] for place in places), key=lambda item: item.reportinfo()[1] or 0)
        for place, item in zip(places, told, strict=True):
            items[place] = item
