"""The sign of life of a project's backups: once for each that is newer and proven, and for nothing else."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from backups.models import Backup, BackupPolicy, Drill, Proof, StorageTarget
from backups.operations import heartbeats
from novastack.common import outbound
from projects.models import Project
from tests.backups.keeping import make_backup

pytestmark = pytest.mark.django_db


@pytest.fixture
def heard(idle: Project, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    BackupPolicy.objects.create(
        project=idle, organization_id=idle.organization_id, heartbeat_url="https://watchdog.example/x"
    )
    calls: list[str] = []

    def post(_url: str, body: bytes, **_: Any) -> Any:
        calls.append(json.loads(body)["backup"])
        return SimpleNamespace(status=200)

    monkeypatch.setattr(outbound, "post", post)
    return calls


def proven(backup: Backup, **fields: Any) -> str:
    proof = Proof.objects.create(backup=backup, **({"kind": "after_backup", "state": "passed"} | fields))
    return heartbeats.send(backup, proof.pk)


def test_each_newer_one_once(idle: Project, storage: StorageTarget, heard: list[str]) -> None:
    first, second = (make_backup(idle, storage, days_ago=days) for days in (2, 1))
    Backup.objects.filter(pk=second.pk).update(verified_at=None, status="stored")
    assert proven(first) == "Taken"
    Backup.objects.filter(pk=second.pk).update(verified_at=second.created_at, status="verified")
    assert proven(second) == "Taken"
    assert heard == [str(first.pk), str(second.pk)]


def test_an_old_one_that_is_proven_again_is_no_sign_of_life(
    idle: Project, storage: StorageTarget, heard: list[str]
) -> None:
    """Backups have stopped, and proofs and drills go on: the watchdog must ring."""
    backup = make_backup(idle, storage, days_ago=40)
    proven(backup)
    drill = Drill.objects.create(project=idle, organization_id=idle.organization_id, name="sums")
    for fields in (
        {"kind": "scheduled"}, {"kind": "manual"}, {"kind": "drill", "drill": drill},
        {"kind": "drill", "drill": drill, "state": "failed", "error": {"code": "assertion_failed"}},
    ):  # fmt: skip
        assert proven(backup, **fields).startswith("Not called")
    assert heard == [str(backup.pk)]


def test_what_comes_late_is_no_sign_of_life(idle: Project, storage: StorageTarget, heard: list[str]) -> None:
    old, _new = (make_backup(idle, storage, days_ago=days) for days in (9, 1))
    assert proven(old).startswith("Not called") and heard == []
    upload = make_backup(idle, storage, trigger="upload")
    backup = make_backup(idle, storage, days_ago=0.1)
    assert upload.created_at > backup.created_at
    assert proven(backup) == "Taken", "what somebody uploaded is no backup of the project's data"


def test_after_one_that_could_not_run_the_next_proof_is_the_first(
    idle: Project, storage: StorageTarget, heard: list[str]
) -> None:
    backup = make_backup(idle, storage)
    Proof.objects.create(backup=backup, kind="after_backup", state="error", error={"code": "target_full"})
    assert proven(backup, kind="scheduled") == "Taken" and heard == [str(backup.pk)]


def test_a_clock_that_was_ahead_does_not_end_it(idle: Project, storage: StorageTarget, heard: list[str]) -> None:
    make_backup(idle, storage, days_ago=-365)
    backup = make_backup(idle, storage)
    assert proven(backup) == "Taken" and heard == [str(backup.pk)]
