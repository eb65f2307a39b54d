"""A worker is killed before, inside and after each step of a restore, and of its undo: it ends truthfully, the live database
is either one whole, and no row is lost.

`NOVASTACK_FAULTS=all` tries every point; by default a sample that changes with the day.
"""

from __future__ import annotations

import datetime
import os
import random
from pathlib import Path
from typing import Any

import pytest

from backups.models import BackupPolicy, StorageTarget
from backups.operations.restoring import RESTORE, UNDO
from projects.models import Database, DatabaseServer, DatabaseSlot, Endpoint, OperationLock
from projects.operations import base
from tests.backups.conftest import target  # noqa: F401
from tests.faults.conftest import ALL, Site
from tests.restores.taken import take
from tests.restores.test_in_place import begin, ids, undo, unproven, write
from tests.restores.test_new_projects import restore

WHEN = ("before", "inside:2", "inside:5", "later:0.3", "later:1.2", "after")
SEED = os.environ.get("NOVASTACK_FAULTS_SEED", datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"))
WORST = {
    RESTORE: ("copy:later:0.3", "fence:after", "address:later:1.2", "switch:inside:5", "switch:after", "open:inside:2"),
    UNDO: ("verify:after", "fence:after", "address:later:0.3", "switch:inside:5", "open:inside:2"),
    "provision": ("restore_names:after", "restore_data:later:0.3", "restore_data:after", "prove_data:inside:5"),
}
NEW = ("restore_names", "restore_data", "prove_data")
TABLES = "tables"  # a new project of some tables alone: another end of the same provisioning
SECONDS = 200


def points(kind: str) -> list[str]:
    if kind == TABLES:
        return [f"prove_data:{when}" for when in (*WHEN, "inside:9", "inside:14")]
    steps = [step.name for step in base.latest_definition(kind).steps if kind != "provision" or step.name in NEW]
    return [f"{step}:{when}" for step in steps for when in WHEN]


def chosen() -> list[tuple[str, str]]:
    if ALL:
        return [(kind, point) for kind in (*WORST, TABLES) for point in points(kind)]
    chance = random.Random(f"{SEED} restores")
    picked = [(kind, chance.choice(worst)) for kind, worst in WORST.items()]
    return [*picked, (RESTORE, chance.choice(points(RESTORE)))]


@pytest.fixture
def backup_root(settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The workers' as well."""
    root = tmp_path / "backup-root"
    root.mkdir()
    settings.NOVASTACK_BACKUP_ROOT = str(root)
    monkeypatch.setenv("NOVASTACK_BACKUP_ROOT", str(root))
    return root


@pytest.mark.docker
@pytest.mark.parametrize(("kind", "point"), chosen())
def test_a_killed_worker_and_a_restore(docker_site: Site, target: StorageTarget, kind: str, point: str) -> None:  # noqa: F811
    site = docker_site
    with site.fault(f"worker killed: {kind} of a backup", point=f"{kind}:{point}") as run:
        project = site.ready()
        unproven(project)
        write(site, project, 1)
        backup = take(project)
        write(site, project, 2)
        address = Endpoint.objects.get(project=project)
        old = DatabaseServer.objects.get(project_uuid=project.pk)
        if kind in {"provision", TABLES}:
            some = {"tables": ["told"]} if kind == TABLES else {}
            made = restore(site, backup, target="new_project", name="Copy", **some)
            operation = Site.operation(type(project).objects.get(pk=made.project_uuid))
        else:
            made, operation = begin(site, backup, target="in_place", confirm=project.slug)
        if kind == UNDO:
            site.finish(operation, 120)
            made.refresh_from_db()
            operation = undo(site, made)
        site.die_at(f"{'provision' if kind == TABLES else kind}:{point}")
        spared = site.expire_lease(operation)
        run.recovering()
        site.worker()
        site.wait_ended(operation, SECONDS)
        run.ended(spared=spared)
        assert operation.state == "succeeded", operation.error
        assert not OperationLock.objects.exists()
        site.wait_status(project, "running", 30)
        site.stop_workers()
        made.refresh_from_db()
        assert made.status == ("undone" if kind == UNDO else "succeeded")
        shown = type(project).objects.get(pk=made.project_uuid)
        assert ids(site, shown) == ([1, 2] if kind == UNDO else [1])
        run.lost_rows = 1000 - site.rows_of(project if kind == TABLES else shown)
        assert run.lost_rows == 0
        servers = list(DatabaseServer.objects.exclude(desired_state="absent"))
        assert len(servers) == 2
        if kind in {"provision", TABLES}:
            assert ids(site, project) == [1, 2]
            site.check_things(shown)
            if kind == TABLES:
                assert list(made.outcome["tables"]) == ["public.told"]
                with site.login(shown) as session:
                    assert session.execute("SELECT to_regclass('public.orders')").fetchone() == (None,)
        else:
            now = Endpoint.objects.get(project=project)
            assert (now.host, now.port) == (address.host, address.port)
            current = Database.objects.get(project=project, slot=DatabaseSlot.CURRENT)
            assert (current.server_id == old.pk) == (kind == UNDO)
            assert Database.objects.filter(project=project).count() == 2
        kept = {handle.name for handle in site.runtime.managed_data()}
        assert kept == {server.handle.name for server in servers}
        with site.client.administrator(shown) as session:
            left = session.execute("SELECT count(*) FROM pg_roles WHERE rolname LIKE 'nvs%%copy'").fetchone()
            assert left == (0,)
        assert not BackupPolicy.objects.exclude(project=project).exists()
