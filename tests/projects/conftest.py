from __future__ import annotations

import pytest
from django.core.cache import cache

from tests.factories import Team, make_team


@pytest.fixture(autouse=True)
def _empty_cache() -> None:
    """Throttles and rate limits count in it."""
    cache.clear()


@pytest.fixture
def team(db: None) -> Team:
    return make_team()
