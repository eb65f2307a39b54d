"""Proofs of backups under faults: a worker is killed before, inside and after each step, and so is the throw-away server.
The verdict is true in the end, nothing of the throw-away server is left, and the source never notices.

`NOVASTACK_FAULTS=all` tries every point; by default a sample that changes with the day.
"""

from __future__ import annotations

import datetime
import os
import random
from pathlib import Path
from typing import Any

import pytest
from django.db import transaction

from backups.models import Backup, Proof
from backups.operations import proving, restoring_data
from projects.models import DatabaseServer, DataTombstone, Operation, OperationLock, Project
from projects.operations import base, register_all
from tests.backups import taken
from tests.faults.conftest import ALL, Site

register_all()
WHEN = ("before", "inside:2", "inside:4", "later:0.3", "after")
WORST = (
    "claim:inside:4",
    "server:later:0.3",
    "restore:later:0.3",
    "compare:inside:4",
    "compare:after",
    "clean_up:inside:4",
)
WORST_DAMAGED = ("restore:inside:4", "restore:later:0.3", "undo claim:inside:4")
SEED = os.environ.get("NOVASTACK_FAULTS_SEED", datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"))
STEPS = base.latest_definition(proving.VERIFY).steps
POINTS = [f"{step.name}:{when}" for step in STEPS for when in WHEN]
# The proof of a damaged one ends while it is restored: what comes after is taking it all back.
UNTIL = next(number for number, step in enumerate(STEPS) if step.name == "restore")
DAMAGED = [
    *(
        f"{step.name}:{when}"
        for step in STEPS[: UNTIL + 1]
        for when in WHEN
        if (step.name, when) != ("restore", "after")
    ),
    *(f"undo {step.name}:{when}" for step in STEPS[: UNTIL + 1] if step.undo is not None for when in WHEN),
]
SECONDS = 120


def chosen() -> list[object]:
    whole, damaged = POINTS, DAMAGED
    if not ALL:
        chance = random.Random(f"{SEED} proofs")
        whole = [chance.choice(WORST), *chance.sample(POINTS, 1)]
        damaged = [chance.choice(WORST_DAMAGED), *chance.sample(DAMAGED, 1)]
    return [
        pytest.param(point, made is damaged, id=f"{point}-{'damaged' if made is damaged else 'whole'}")
        for made in (whole, damaged) for point in dict.fromkeys(made)
    ]  # fmt: skip


def begun(
    site: Site, settings: Any, root: Path, *, damaged: bool = False, **options: Any
) -> tuple[Project, Backup, Operation]:
    project = site.ready()
    target = taken.target(settings, root)
    backup = taken.take(project, target, **options)
    if damaged:
        data = bytearray(taken.read(target, backup.object_key))
        data[len(data) // 2] ^= 1
        taken.put(target, backup.object_key, bytes(data))
    with transaction.atomic():
        operation = proving.verify_begin(backup, kind="manual", created_by_label="test")
    return project, backup, operation


def nothing_left(site: Site, project: Project) -> None:
    assert not DatabaseServer.objects.filter(kind="scratch").exists()
    assert not DataTombstone.objects.filter(deleted_at=None).exists()
    assert not OperationLock.objects.exists()
    site.check_exactly(project)
    assert site.rows_of(project) == 1000


@pytest.mark.parametrize(("point", "damaged"), chosen())
def test_a_killed_worker_and_a_proof(
    process_site: Site, settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str, damaged: bool
) -> None:
    site = process_site
    monkeypatch.setenv("NOVASTACK_BACKUP_ROOT", str(tmp_path))
    with site.fault("worker killed: verify", point=f"verify:{point}") as run:
        project, backup, operation = begun(site, settings, tmp_path, damaged=damaged)
        site.die_at(f"verify:{point}")
        spared = site.expire_lease(operation)
        run.recovering()
        site.worker()
        site.wait_ended(operation, SECONDS)
        run.ended(spared=spared)
        site.stop_workers()
        backup.refresh_from_db()
        proof = Proof.objects.get()
        if damaged:
            assert (backup.status, proof.state) == ("corrupt", "failed"), operation.error
            assert operation.error is not None and operation.error["code"] in restoring_data.CORRUPT
        else:
            assert (backup.status, proof.state) == ("verified", "passed"), operation.error
        nothing_left(site, project)


def test_a_throw_away_server_that_is_killed_is_replaced(
    process_site: Site, settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, seen = process_site, []
    whole = restoring_data.restore_into

    def killed_first(side: Any, *arguments: Any, **options: Any) -> Any:
        seen.append(side.server.incarnation)
        if len(seen) == 1:
            side.runtime.destroy(side.server.handle, delete_data=False)
        return whole(side, *arguments, **options)

    monkeypatch.setattr(restoring_data, "restore_into", killed_first)
    with site.fault("throw-away server killed", point="verify:restore") as run:
        project, backup, operation = begun(site, settings, tmp_path)
        run.recovering()
        site.finish(operation, SECONDS)
        run.ended()
        backup.refresh_from_db()
        assert backup.status == "verified", operation.error
        assert seen == [1, 2]
        nothing_left(site, project)


def test_a_cancelled_proof_leaves_the_backup_as_it_was(
    process_site: Site, settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, whole = process_site, restoring_data.restore_into

    def cancelled(side: Any, *arguments: Any, **options: Any) -> Any:
        Operation.objects.filter(pk=side.operation.pk).update(cancel_requested_at=datetime.datetime.now(datetime.UTC))
        return whole(side, *arguments, **options)

    monkeypatch.setattr(restoring_data, "restore_into", cancelled)
    project, backup, operation = begun(site, settings, tmp_path)
    site.finish(operation, SECONDS)
    backup.refresh_from_db()
    assert (operation.state, backup.status, backup.verify_error) == ("cancelled", "stored", None)
    assert Proof.objects.get().state == "cancelled"
    nothing_left(site, project)


@pytest.mark.docker
def test_an_image_that_is_gone_is_said_and_the_version_s_is_used(
    docker_site: Site, settings: Any, tmp_path: Path
) -> None:
    site = docker_site
    project, backup, operation = begun(site, settings, tmp_path, image=f"sha256:{'0' * 64}")
    site.finish(operation, SECONDS)
    backup.refresh_from_db()
    assert backup.status == "verified", operation.error
    (note,) = Proof.objects.get().notes
    assert "the image that it was taken from is not there any more" in note
    nothing_left(site, project)
