"""A worker is killed before, inside and after each step of taking a backup: it ends truthfully, what is stored opens and is
whole, and of attempts that were cut short nothing is left.

`NOVASTACK_FAULTS=all` tries every point; by default a sample that changes with the day.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import random
from pathlib import Path
from typing import Any

import pytest
from django.db import transaction

from backups.archive import Opener
from backups.models import BackupTrigger
from backups.operations import keys, storages, streaming, taking
from backups.operations.restoring_data import read_manifest
from projects.models import DatabaseServer, Operation, OperationLock
from projects.operations import base, register_all
from projects.operations.base import StepFailed
from tests.backups import taken
from tests.faults.conftest import ALL, Site

register_all()
WHEN = ("before", "inside:2", "inside:4", "later:0.3", "later:1.2", "after")
WORST = (
    "prepare:after",
    "dump:inside:4",
    "dump:later:0.3",
    "dump:later:1.2",
    "dump:after",
    "store:inside:2",
    "store:after",
)
SEED = os.environ.get("NOVASTACK_FAULTS_SEED", datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"))
POINTS = [f"{step.name}:{when}" for step in base.latest_definition(taking.KIND).steps for when in WHEN]


def chosen() -> list[str]:
    if ALL:
        return POINTS
    chance = random.Random(f"{SEED} backups")
    return [chance.choice(WORST), *chance.sample(POINTS, 1)]


@pytest.mark.docker
@pytest.mark.parametrize("point", chosen())
def test_a_killed_worker_and_a_backup(
    docker_site: Site, settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    site = docker_site
    with site.fault("worker killed: backup", point=f"backup:{point}") as run:
        project = site.ready()
        with site.login(project) as session:
            session.execute("CREATE TABLE public.big AS SELECT i, md5(i::text) t FROM generate_series(1, 100000) i")
        target = taken.target(settings, tmp_path)
        storages.claim(target)
        target.save()
        monkeypatch.setenv("NOVASTACK_BACKUP_ROOT", str(settings.NOVASTACK_BACKUP_ROOT))
        monkeypatch.setenv("NOVASTACK_BACKUP_RATE_BYTES", "2500000")  # so that it takes some seconds
        with transaction.atomic():
            backup = taking.backup_begin(
                project, trigger=BackupTrigger.MANUAL, storage=target, created_by_label="test", verify=False
            )
        operation = Operation.objects.get(pk=backup.operation_id)
        site.die_at(f"backup:{point}")
        spared = site.expire_lease(operation)
        run.recovering()
        site.worker()
        site.wait_ended(operation, 120)
        run.ended(spared=spared)
        site.stop_workers()
        assert operation.state == "succeeded", operation.error
        assert not OperationLock.objects.exists()
        backup.refresh_from_db()
        assert backup.status == "stored" and backup.attempt in {1, 2}
        storage = storages.storage_of(target)
        kept = [o.key for o in storage.objects("") if not o.key.startswith(storages.OWNER_KEY)]
        assert kept == [backup.object_key, backup.manifest_key]
        assert list(Path(settings.NOVASTACK_BACKUP_ROOT).rglob("*.tmp")) == []
        manifest = read_manifest(backup)
        assert manifest.contents is not None and manifest.contents.tables["public.big"].rows == 100000
        source, identities = storage.open(backup.object_key), keys.identities_of(backup.organization_id)
        with contextlib.closing(Opener(source, identities, compressed=True, sha256=backup.sha256)) as opener:
            assert sum(map(len, opener)) == backup.dump_bytes
        run.lost_rows = 1000 - site.rows_of(project)
        with site.client.administrator(project) as session:
            left = session.execute("SELECT count(*) FROM pg_roles WHERE rolname LIKE 'nvs%copy'").fetchone()
            assert left == (0,)
        site.check_exactly(project)


def test_a_backup_that_failed_with_its_server_leaves_no_login(
    process_site: Site, settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server is started again, since the dump tool's login has to go."""
    site = process_site
    project = site.ready()
    target = taken.target(settings, tmp_path)
    storages.claim(target)
    target.save()

    def lost(*_: Any, **__: Any) -> None:
        site.runtime.stop(DatabaseServer.objects.get(project_uuid=project.pk).handle, grace_seconds=1)
        raise StepFailed("source_lost", "The source's server went away.", retryable=False)

    monkeypatch.setattr(streaming, "take", lost)
    with transaction.atomic():
        backup = taking.backup_begin(project, trigger=BackupTrigger.MANUAL, storage=target, created_by_label="test")
    site.finish(Operation.objects.get(pk=backup.operation_id), 60)
    backup.refresh_from_db()
    assert (backup.status, backup.error["code"]) == ("failed", "source_lost")
    with site.client.administrator(project) as session:
        left = session.execute("SELECT rolname FROM pg_roles WHERE rolname LIKE 'nvs%copy'").fetchall()
    assert left == []
    assert site.rows_of(project) == 1000
    site.check_exactly(project)
