"""A worker is killed while an uploaded dump becomes a backup: it becomes one, once, with all that was in the file, and of the
file and of the throw-away server nothing stays.

`NOVASTACK_FAULTS=all` tries every point; by default a sample that changes with the day.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import random
from pathlib import Path

import pytest

from backups.archive import Opener
from backups.models import Backup, StorageTarget
from backups.operations import importing, keys, storages
from backups.operations.restoring_data import read_manifest
from projects.models import DatabaseServer, DataTombstone, Operation, OperationLock
from projects.operations import base
from tests.backups.conftest import target  # noqa: F401
from tests.faults.clients import ROWS
from tests.faults.conftest import ALL, Site
from tests.faults.test_restores import WHEN, backup_root  # noqa: F401
from tests.restores.test_in_place import unproven
from tests.uploads.sent import pg_dump, send, told

SEED = os.environ.get("NOVASTACK_FAULTS_SEED", datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"))
WORST = ("load:later:0.3", "load:after", "dump:later:0.3", "store:after", "clean_up:inside:5", "clean_up:after")


def chosen() -> list[str]:
    if ALL:
        return [f"{step.name}:{when}" for step in base.latest_definition(importing.KIND).steps for when in WHEN]
    return [random.Random(f"{SEED} uploads").choice(WORST)]


@pytest.mark.parametrize("point", chosen())
def test_a_killed_worker_and_an_upload(
    process_site: Site,
    target: StorageTarget,  # noqa: F811
    backup_root: Path,  # noqa: F811
    point: str,
) -> None:
    site = process_site
    with site.fault("worker killed: an upload becomes a backup", point=f"import_upload:{point}") as run:
        project = site.ready()
        unproven(project)
        answer = send(site, project, pg_dump(project, "--format=custom"), filename="shop.dump")
        assert answer.status_code == 202, answer.content
        backup = Backup.objects.get(pk=answer.json()["id"])
        operation = Operation.objects.get(pk=backup.operation_id)
        site.die_at(f"import_upload:{point}")
        spared = site.expire_lease(operation)
        run.recovering()
        site.worker()
        site.wait_ended(operation, 240)
        run.ended(spared=spared)
        site.stop_workers()
        assert operation.state == "succeeded", told(operation)
        backup.refresh_from_db()
        assert (backup.status, backup.trigger, backup.trusted) == ("stored", "upload", True)
        assert backup.notes.count("Made of an uploaded file (shop.dump).") == 1
        # What is stored opens, has all rows of the file, and is all that is stored.
        storage = storages.storage_of(target)
        kept = [item.key for item in storage.objects("") if not item.key.startswith(storages.OWNER_KEY)]
        assert kept == [backup.object_key, backup.manifest_key]
        assert [path for path in backup_root.rglob("*") if path.suffix == ".tmp" or "source" in path.name] == []
        source, identities = storage.open(backup.object_key), keys.identities_of(backup.organization_id)
        with contextlib.closing(Opener(source, identities, compressed=True, sha256=backup.sha256)) as opener:
            assert sum(map(len, opener)) > 0  # to its end, where its hash is compared
        contents = read_manifest(backup).contents
        assert contents is not None and contents.rows == backup.rows
        run.lost_rows = ROWS - contents.tables["public.orders"].rows
        assert run.lost_rows == 0
        assert not DatabaseServer.objects.filter(kind="scratch").exists()
        assert not DataTombstone.objects.filter(deleted_at=None).exists()
        assert not OperationLock.objects.exists()
        assert site.rows_of(project) == ROWS
        site.check_exactly(project)
