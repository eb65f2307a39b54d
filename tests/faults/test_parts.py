"""A worker is killed while tables of a backup go beside a live database: it ends truthfully, they are there once, and what
lives is as it was."""

from __future__ import annotations

import datetime
import os
import random

import pytest

from backups.models import StorageTarget
from projects.models import DatabaseServer, OperationLock
from projects.operations import base
from tests.backups.conftest import target  # noqa: F401
from tests.faults.conftest import ALL, Site
from tests.faults.test_restores import WHEN, backup_root  # noqa: F401
from tests.restores.taken import take
from tests.restores.test_in_place import begin, ids, unproven, write
from tests.restores.test_parts import logins, rows

SEED = os.environ.get("NOVASTACK_FAULTS_SEED", datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"))
WORST = ("put:inside:4", "put:later:0.4", "put:after", "prove:inside:3", "prove:after", "restore:after")


def chosen() -> list[str]:
    if ALL:
        return [f"{step.name}:{when}" for step in base.latest_definition("extract").steps for when in WHEN]
    return [random.Random(f"{SEED} parts").choice(WORST)]


@pytest.mark.parametrize("point", chosen())
def test_a_killed_worker_and_tables(process_site: Site, target: StorageTarget, point: str) -> None:  # noqa: F811
    site = process_site
    with site.fault("worker killed: tables of a backup", point=f"extract:{point}") as run:
        project = site.ready()
        unproven(project)
        write(site, project, 1, 2)
        backup = take(project)
        write(site, project, 3)
        made, operation = begin(site, backup, target="in_place", tables=["told"])
        site.die_at(f"extract:{point}")
        spared = site.expire_lease(operation)
        run.recovering()
        site.worker()
        site.wait_ended(operation, 240)
        run.ended(spared=spared)
        assert operation.state == "succeeded", operation.error
        site.stop_workers()
        made.refresh_from_db()
        assert made.status == "succeeded"
        found = rows(site, project, "SELECT nspname::text FROM pg_namespace WHERE nspname LIKE 'restored%'")
        assert found == [(place,) for place in made.outcome["places"]] and len(found) == 1
        assert rows(site, project, f"SELECT id FROM {found[0][0]}.told ORDER BY id") == [(1,), (2,)]
        assert ids(site, project) == [1, 2, 3]
        run.lost_rows = 1000 - site.rows_of(project)
        assert run.lost_rows == 0
        assert logins(site, project) == []
        assert not DatabaseServer.objects.filter(kind="scratch").exists()
        assert not OperationLock.objects.exists()
