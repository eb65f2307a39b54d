"""NOVASTACK_RUNTIME=swarm: what the first start makes of it, and what production and operators are told."""

from __future__ import annotations

from typing import Any

import pytest
from django.core.exceptions import ValidationError

from novastack.common.checks import production_problems
from projects.models import Region
from projects.operations import wiring
from projects.runtimes.swarm import SwarmRuntime
from projects.services.install import catalogue_prepare, runtime_settle

pytestmark = pytest.mark.django_db


def test_the_first_start_on_a_swarm(settings: Any) -> None:
    settings.NOVASTACK_RUNTIME, settings.NOVASTACK_DOCKER_URL = "swarm", "unix:///nonexistent/docker.sock"
    region = catalogue_prepare()
    choice = runtime_settle(region)
    region.refresh_from_db()
    assert (choice.runtime, region.runtime) == ("swarm", "swarm")
    assert region.bind_address == "0.0.0.0"  # noqa: S104 - a Swarm publishes there, and the row says so
    assert isinstance(wiring.runtime_of(region), SwarmRuntime)
    region.full_clean()


def test_production_may_run_on_a_swarm(settings: Any) -> None:
    settings.NOVASTACK_RUNTIME = "swarm"
    assert "novastack.E004" not in {problem.id for problem in production_problems()}
    settings.NOVASTACK_RUNTIME = "process"
    assert "novastack.E004" in {problem.id for problem in production_problems()}


@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.7"])
def test_a_swarms_region_is_not_shown_as_bound_to_one_address(address: str) -> None:
    region = Region(slug="s", name="S", runtime="swarm", bind_address=address)
    with pytest.raises(ValidationError, match="all addresses"):
        region.full_clean()
