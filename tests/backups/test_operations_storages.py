"""Which storage, and whether it is still ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from backups.models import StorageKind, StorageTarget
from backups.operations import storages
from backups.storage.base import StorageError
from tests.factories import Team

pytestmark = pytest.mark.django_db


def test_an_organizations_own_default_comes_before_the_installs(team: Team, target: StorageTarget) -> None:
    assert storages.default_target(team.organization.pk) == target
    own = StorageTarget.objects.create(
        organization=team.organization, name="own", kind=StorageKind.FILESYSTEM, config={"path": "own"}, is_default=True
    )
    assert storages.default_target(team.organization.pk) == own
    assert storages.default_target(team.elsewhere.pk) == target
    StorageTarget.objects.all().delete()
    assert storages.default_target(team.organization.pk) is None


def test_a_target_writes_while_its_owner_object_is_its_own(target: StorageTarget) -> None:
    assert storages.write_allowed(target)
    other = StorageTarget(name="other", kind=StorageKind.FILESYSTEM, config=target.config)
    with pytest.raises(storages.NotOurs) as refused:
        storages.claim(other)
    assert refused.value.code == "storage_owned"
    assert storages.write_allowed(target)


def test_who_lost_the_place_is_read_only_from_then_on(target: StorageTarget) -> None:
    other = StorageTarget(name="other", kind=StorageKind.FILESYSTEM, config=target.config)
    storages.claim(other, take_over=True)
    other.save()
    assert storages.write_allowed(other)
    assert not storages.write_allowed(target)
    target.refresh_from_db()
    assert "took it over" in target.read_only_reason
    storages.claim(target, take_over=True)
    target.save()
    assert storages.write_allowed(target)


def test_an_empty_folder_in_its_place_is_not_the_place(target: StorageTarget, backup_root: Path) -> None:
    (backup_root / "here").rename(backup_root / "mounted-elsewhere")
    with pytest.raises(StorageError) as failed:
        storages.write_allowed(target)
    assert failed.value.code == "storage_missing"
    assert not target.read_only_reason
    (backup_root / "here").mkdir()
    assert not storages.write_allowed(target)
    target.refresh_from_db()
    assert "owner object is gone" in target.read_only_reason


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff", b'{"epoch": 5}'])
def test_a_damaged_owner_object_is_not_ours(target: StorageTarget, backup_root: Path, content: bytes) -> None:
    (backup_root / "here" / storages.OWNER_KEY).write_bytes(content)
    assert not storages.write_allowed(target)


@pytest.mark.parametrize("config", [{}, {"path": ""}, {"path": "../x"}, {"path": "/etc"}, {"path": None}, []])
def test_settings_that_lead_elsewhere_are_refused(config: Any) -> None:
    with pytest.raises(StorageError):
        storages.storage_of(StorageTarget(kind=StorageKind.FILESYSTEM, config=config))


def test_without_a_root_there_are_no_filesystem_targets(target: StorageTarget, settings: Any) -> None:
    settings.NOVASTACK_BACKUP_ROOT = ""
    with pytest.raises(StorageError, match="NOVASTACK_BACKUP_ROOT"):
        storages.storage_of(target)


def test_targets_are_tried_by_the_clock(target: StorageTarget, backup_root: Path) -> None:
    StorageTarget.objects.update(tested_at=None, test_ok=None)
    assert storages.test_due() == 1
    target.refresh_from_db()
    assert (target.test_ok, target.test_detail) == (True, "Everything works.")
    assert storages.test_due() == 0
    (backup_root / "here" / storages.OWNER_KEY).unlink()
    StorageTarget.objects.update(tested_at=None)
    assert storages.test_due() == 1
    target.refresh_from_db()
    assert target.test_ok is False
    assert "owner object is gone" in target.read_only_reason
    assert storages.test_due(seconds=0) == 0


def test_a_folder_that_is_mounted_again_is_written_to_again(target: StorageTarget, backup_root: Path) -> None:
    (backup_root / "here").rename(backup_root / "unmounted")
    storages.test(target)
    assert not (backup_root / "here").exists(), "what is missing is not made by who only looks"
    target.refresh_from_db()
    assert (target.test_ok, target.read_only_reason) == (False, "")
    (backup_root / "here").mkdir()  # where it is to be mounted
    assert not storages.write_allowed(target)
    storages.test(target)
    target.refresh_from_db()
    assert "owner object is gone" in target.read_only_reason
    (backup_root / "here").rmdir()
    (backup_root / "unmounted").rename(backup_root / "here")
    storages.test(target)
    target.refresh_from_db()
    assert (target.test_ok, target.read_only_reason) == (True, "")
    assert storages.write_allowed(target)


def test_who_lost_the_place_to_another_stays_read_only(target: StorageTarget) -> None:
    other = StorageTarget(name="other", kind=StorageKind.FILESYSTEM, config=target.config)
    storages.claim(other, take_over=True)
    other.save()
    assert not storages.write_allowed(target)
    storages.test(target)
    target.refresh_from_db()
    assert "took it over" in target.read_only_reason
