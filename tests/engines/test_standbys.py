"""A warm standby of each engine on a real server: made by the upkeep, claimed by a project, and nobody's but its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from projects.models import DatabaseServer, Operation, OperationStep, Plan, StandbyTarget
from projects.operations import standby_upkeep
from tests.engines.journey import FIRST, Journey
from tests.engines.test_main_path import docker_site
from tests.faults.clients import CLIENTS as EYES
from tests.faults.conftest import Site, _fresh  # noqa: F401 - a fixture


def prepare(site: Site, journey: Journey) -> DatabaseServer:
    """The upkeep's tick, and what it recorded."""
    StandbyTarget.objects.create(
        region=site.region, engine=journey.engine.name, version=journey.version, plan=Plan.objects.get(), count=1
    )
    assert standby_upkeep.keep().preparing == 1
    operation = site.finish(Operation.objects.live().get(kind="prepare_standby"), 120)
    assert operation.state == "succeeded", operation.error
    assert standby_upkeep.keep() == standby_upkeep.Upkeep(), "there is enough, and what is there is as wanted"
    standby = DatabaseServer.objects.get()
    assert standby_upkeep.is_ready(standby) and standby.project_uuid is None
    return standby


@pytest.mark.docker
@pytest.mark.usefixtures("_fresh")
@pytest.mark.parametrize(
    ("engine", "version", "wish"),
    [
        ("postgresql", "18", {"tls_required": True}), ("mariadb", "11.8", {}), ("mysql", "9.7", {}),
        ("ferretdb", "1.24", {}),
    ],
)  # fmt: skip
def test_prepared_claimed_and_purged(
    engine: str, version: str, wish: dict[str, bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standby_upkeep, "_looked", {})
    monkeypatch.setattr(standby_upkeep, "_images", {})
    with docker_site(engine, version) as site:
        journey = Journey(site, engine, version, tmp_path)
        standby = prepare(site, journey)

        journey.create(**wish)
        server, project, eyes = journey.server, journey.project, EYES[engine]
        assert (server.pk, server.runtime_ref, server.system_identifier) == (
            standby.pk, standby.runtime_ref, standby.system_identifier
        ), "the very server, on its own data"  # fmt: skip
        assert server.port == standby.port == project.endpoint.port
        skipped = set(OperationStep.objects.filter(state="skipped").values_list("name", flat=True))
        assert skipped == {"ready", "limits"} | (set() if wish else {"secure"})
        assert set(eyes.things(project)) == eyes.own(project) | eyes.platform, "nobody else's login or database"

        access = journey.connect(tls=True)
        if wish:
            journey.is_shut(replace(access, ca=""))
        journey.client.make(access)
        journey.client.add(access, *FIRST)
        assert journey.client.words(access) == FIRST
        site.check_exactly(project)
        journey.logs_hold_no_secret()
        journey.purge()
        assert not DatabaseServer.objects.exists()
