from __future__ import annotations

import functools

import pytest
from django.core.cache import cache

from projects.domain import NovaStackRuntimeError
from projects.runtimes.docker import DockerRuntime
from tests.factories import Team, make_team


@pytest.fixture(autouse=True)
def _empty_cache() -> None:
    """Throttles and rate limits count in it."""
    cache.clear()


@pytest.fixture
def team(db: None) -> Team:
    return make_team()


@functools.cache
def _mongodb_is_here() -> bool:
    """Its server comes only as the official image, which machines without a hub can't have."""
    try:
        DockerRuntime("probe").resolve_image("mongodb", "8", "mongo")
    except NovaStackRuntimeError:
        return False
    return True


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Not collected rather than skipped: what CI can't run at all is no test that it left out."""
    if not _mongodb_is_here():
        items[:] = [
            item for item in items
            if not ("TestMongoDB" in item.nodeid and "server" in getattr(item, "fixturenames", ()))
        ]  # fmt: skip
