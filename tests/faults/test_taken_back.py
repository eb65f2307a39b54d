"""A restore, its undo, tables of a backup or an upload can't go on, and the worker is killed while what was done is taken
back: it ends as failed with the first reason, what lives is as it was, and nothing is left over.

`NOVASTACK_FAULTS=all` tries every point; by default a sample that changes with the day.
"""

from __future__ import annotations

import datetime
import os
import random
from pathlib import Path

import pytest

from backups.models import Backup, StorageTarget
from backups.operations import importing, storages
from backups.operations.extracting import EXTRACT
from backups.operations.restoring import RESTORE, UNDO
from projects.models import DatabaseServer, DataTombstone, Endpoint, Operation, OperationLock, Orphan, Project
from projects.operations import base, janitor
from tests.backups.conftest import target  # noqa: F401
from tests.faults.clients import ROWS
from tests.faults.conftest import ALL, Site, everything
from tests.faults.ledger import Run
from tests.faults.test_restores import backup_root  # noqa: F401
from tests.restores.taken import take
from tests.restores.test_in_place import as_it_was, begin, ids, undo, unproven, write
from tests.restores.test_parts import logins, rows
from tests.uploads.sent import pg_dump, send, told

WHEN = ("before", "inside:2", "inside:5", "later:0.1", "after")
SEED = os.environ.get("NOVASTACK_FAULTS_SEED", datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"))
# The last step before which all can be taken back.
REFUSED = {RESTORE: "switch", UNDO: "switch", EXTRACT: "prove", importing.KIND: "store"}
SECONDS = 200


def points(kind: str) -> list[str]:
    """The safety backup of a restore stays: nothing of it is taken back."""
    steps = [step.name for step in base.latest_definition(kind).steps if step.undo is not None]
    back = [name for name in steps if not name.startswith("safety_")]
    return [f"{kind}:undo {name}/{REFUSED[kind]}:{when}" for name in back for when in WHEN]


def chosen(*kinds: str) -> list[str]:
    found = [point for kind in kinds for point in points(kind)]
    return found if ALL else [random.Random(f"{SEED} taken back").choice(found)]


def killed(site: Site, run: Run, operation: Operation, point: str) -> None:
    site.die_at(point)
    operation.refresh_from_db()
    assert operation.undoing
    spared = site.expire_lease(operation)
    run.recovering()
    site.worker()
    site.wait_ended(operation, SECONDS)
    run.ended(spared=spared)
    site.stop_workers()
    janitor.delete_due_data()
    assert (operation.state, (operation.error or {}).get("code")) == ("failed", "refused"), told(operation)
    assert not operation.steps.filter(data__has_key="undo_failed").exists()
    assert not OperationLock.objects.exists()
    assert not Orphan.objects.filter(resolved_at=None).exists()


def unharmed(site: Site, run: Run, project: Project) -> None:
    run.lost_rows = ROWS - site.rows_of(project)
    assert run.lost_rows == 0
    assert not DatabaseServer.objects.filter(kind="scratch").exists()
    assert not DataTombstone.objects.filter(deleted_at=None).exists()
    site.check_exactly(project)


@everything
@pytest.mark.docker
@pytest.mark.parametrize("point", chosen(RESTORE, UNDO))
def test_a_restore_is_taken_back(docker_site: Site, target: StorageTarget, point: str) -> None:  # noqa: F811
    site, kind = docker_site, point.partition(":")[0]
    with site.fault(f"worker killed: {kind} of a backup, taken back", point=point) as run:
        project = site.ready()
        unproven(project)
        write(site, project, 1)
        backup = take(project)
        write(site, project, 2)
        address = Endpoint.objects.values_list("host", "port").get(project=project)
        server = DatabaseServer.objects.get(project_uuid=project.pk)
        made, operation = begin(site, backup, target="in_place", confirm=project.slug)
        if kind == UNDO:
            assert site.finish(operation, 120).state == "succeeded", told(operation)
            made.refresh_from_db()
            operation = undo(site, made)
        killed(site, run, operation, point)
        site.wait_status(project, "running", 30)
        made.refresh_from_db()
        assert Endpoint.objects.values_list("host", "port").get(project=project) == address
        if kind == RESTORE:
            assert (made.status, made.error, made.undo_until) == ("failed", operation.error, None)
            as_it_was(site, project, server)
            assert ids(site, project) == [1, 2]
            unharmed(site, run, project)
            return
        # What was restored stays the project's, and can still be undone.
        assert (made.status, made.error, made.undo_until is None) == ("succeeded", operation.error, False)
        assert ids(site, project) == [1]
        run.lost_rows = ROWS - site.rows_of(project)
        assert run.lost_rows == 0
        again = undo(site, made)
        assert site.finish(again, 120).state == "succeeded", told(again)
        assert ids(site, project) == [1, 2]
        assert Endpoint.objects.values_list("host", "port").get(project=project) == address


@pytest.mark.parametrize("point", chosen(EXTRACT, importing.KIND))
def test_what_a_throw_away_server_was_for_is_taken_back(
    process_site: Site,
    target: StorageTarget,  # noqa: F811
    backup_root: Path,  # noqa: F811
    point: str,
) -> None:
    site, kind = process_site, point.partition(":")[0]
    with site.fault(f"worker killed: {kind}, taken back", point=point) as run:
        project = site.ready()
        unproven(project)
        write(site, project, 1)
        if kind == EXTRACT:
            made, operation = begin(site, take(project), target="in_place", tables=["told"])
        else:
            answer = send(site, project, pg_dump(project, "--format=custom"))
            assert answer.status_code == 202, answer.content
            operation = Operation.objects.get(pk=answer.json()["operation"]["id"])
        killed(site, run, operation, point)
        if kind == EXTRACT:
            made.refresh_from_db()
            assert (made.status, made.error) == ("failed", operation.error)
            assert rows(site, project, "SELECT nspname FROM pg_namespace WHERE nspname LIKE 'restored%'") == []
            assert logins(site, project) == []
        else:
            backup = Backup.objects.get(pk=operation.params["backup"])
            assert (backup.status, backup.error, backup.size_bytes) == ("failed", operation.error, None)
            objects = storages.storage_of(target).objects("")
            assert [item.key for item in objects if not item.key.startswith(storages.OWNER_KEY)] == []
            assert [path for path in backup_root.rglob("*") if path.suffix == ".tmp" or "source" in path.name] == []
        assert ids(site, project) == [1]
        unharmed(site, run, project)
