"""A worker is killed before, inside and after each step of a move: it ends truthfully, and no row is lost.

`NOVASTACK_FAULTS=all` tries every point; by default a sample that changes with the day.
"""

from __future__ import annotations

import datetime
import os
import random

import pytest
from django.db import transaction

from projects.models import Database, DatabaseServer, DatabaseSlot, Endpoint, OperationLock
from projects.operations import base, register_all
from projects.operations.moving import MOVE, move_begin
from tests.faults.conftest import ALL, Site

register_all()
WHEN = ("before", "inside:2", "inside:5", "later:0.3", "later:1.2", "after")
WORST = ("fence:after", "copy:later:0.3", "address:later:1.2", "switch:inside:5", "switch:after", "open:inside:2")
SEED = os.environ.get("NOVASTACK_FAULTS_SEED", datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"))
POINTS = [f"{step.name}:{when}" for step in base.latest_definition(MOVE).steps for when in WHEN]
SECONDS = 150


def chosen() -> list[str]:
    if ALL:
        return POINTS
    chance = random.Random(f"{SEED} moves")
    return [chance.choice(WORST), *chance.sample(POINTS, 1)]


@pytest.mark.docker
@pytest.mark.parametrize("point", chosen())
def test_a_killed_worker_and_a_move(docker_site: Site, point: str) -> None:
    site = docker_site
    with site.fault("worker killed: move", point=f"move:{point}") as run:
        project = site.ready()
        address = Endpoint.objects.get(project=project)
        old = DatabaseServer.objects.get(project_uuid=project.pk)
        with transaction.atomic():
            operation = move_begin(project, created_by_label="test")
        site.die_at(f"move:{point}")
        spared = site.expire_lease(operation)
        run.recovering()
        site.worker()
        site.wait_ended(operation, SECONDS)
        run.ended(spared=spared)
        assert operation.state == "succeeded", operation.error
        assert not OperationLock.objects.exists()
        site.wait_status(project, "running", 20)
        site.stop_workers()
        run.lost_rows = 1000 - site.rows_of(project)
        assert run.lost_rows == 0
        now = Endpoint.objects.get(project=project)
        assert (now.host, now.port) == (address.host, address.port)
        current = Database.objects.get(project=project, slot=DatabaseSlot.CURRENT)
        assert current.server_id != old.pk
        assert Database.objects.filter(project=project).count() == 2
        assert DatabaseServer.objects.count() == 2
        assert operation.result["downtime_seconds"] > 0
        assert len(list(site.runtime.managed())) == 2
        kept = {handle.name for handle in site.runtime.managed_data()}
        assert kept == {server.handle.name for server in DatabaseServer.objects.all()}
        with site.client.administrator(project) as session:
            left = session.execute("SELECT count(*) FROM pg_roles WHERE rolname LIKE 'nvs%copy'").fetchone()
            assert left == (0,)
