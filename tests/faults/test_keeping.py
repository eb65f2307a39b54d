"""A worker is killed before, inside and after each step of removing what retention no longer keeps: it is gone from the storage
and the rows in the end, and what is kept is whole.

`NOVASTACK_FAULTS=all` tries every point; by default one that changes with the day.
"""

from __future__ import annotations

import datetime
import os
import random
from pathlib import Path
from typing import Any

import pytest

from backups.models import Backup
from backups.operations import deleting, retaining, storages
from projects.models import Operation, OperationLock
from projects.operations import base, register_all
from tests.backups import taken
from tests.backups.keeping import make_schedule
from tests.faults.conftest import ALL, Site
from tests.restores.taken import take

register_all()
WHEN = ("before", "inside:2", "inside:4", "later:0.05", "after")
SEED = os.environ.get("NOVASTACK_FAULTS_SEED", datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"))
POINTS = [f"{step.name}:{when}" for step in base.latest_definition(deleting.KIND).steps for when in WHEN]


def chosen() -> list[str]:
    return POINTS if ALL else random.Random(f"{SEED} keeping").sample(POINTS, 1)


@pytest.mark.parametrize("point", chosen())
def test_a_killed_worker_and_retention(
    process_site: Site, settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    site = process_site
    monkeypatch.setenv("NOVASTACK_BACKUP_ROOT", str(tmp_path))
    with site.fault("worker killed: retention", point=f"delete_backup:{point}") as run:
        project = site.ready()
        target = taken.target(settings, tmp_path)
        storages.claim(target)
        target.save()
        old, new = take(project, storage=target), take(project, storage=target)
        schedule = make_schedule(project, keep_last=1)
        Backup.objects.update(schedule=schedule)
        removed = retaining.apply(schedule.pk, by_hand="test").removed
        assert [backup.pk for backup in removed] == [old.pk]
        operation = Operation.objects.live().get()
        site.die_at(f"delete_backup:{point}")
        spared = site.expire_lease(operation)
        run.recovering()
        site.worker()
        site.wait_ended(operation, 120)
        run.ended(spared=spared)
        site.stop_workers()
        assert operation.state == "succeeded", operation.error
        assert list(Backup.objects.values_list("pk", "status")) == [(new.pk, "stored")]
        assert not OperationLock.objects.exists()
        kept = {str(file.relative_to(tmp_path / "all")) for file in (tmp_path / "all").rglob("*") if file.is_file()}
        assert kept == {new.object_key, new.manifest_key, storages.OWNER_KEY}
        run.lost_rows = 1000 - site.rows_of(project)
        assert run.lost_rows == 0
        site.check_exactly(project)
