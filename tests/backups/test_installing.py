"""A new install has a storage before its first project."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from backups.models import StorageTarget
from backups.operations import storages
from backups.services.installing import storage_prepare
from projects.services import install
from tests.factories import Team

pytestmark = pytest.mark.django_db


def test_the_first_start_makes_one_that_works(team: Team, settings: Any, tmp_path: Path) -> None:
    settings.NOVASTACK_BACKUP_ROOT = str(tmp_path / "home" / "backups")
    assert storage_prepare in install.also_prepare
    made = storage_prepare()
    assert made is not None
    assert storages.default_target(team.organization.pk) == made
    assert storages.write_allowed(made)
    assert (tmp_path / "home" / "backups").stat().st_mode & 0o777 == 0o700
    assert storage_prepare() is None
    made.delete()
    assert storage_prepare() is None, "what an operator removes stays removed"


def test_without_a_folder_the_start_goes_on(settings: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for root in ("", str(tmp_path / "file" / "x")):
        settings.NOVASTACK_BACKUP_ROOT = root
        assert storage_prepare() is None
    settings.PRODUCTION, settings.NOVASTACK_BACKUP_ROOT = True, str(tmp_path / "not-mounted")
    assert storage_prepare() is None
    assert not (tmp_path / "not-mounted").exists()
    assert not StorageTarget.objects.exists()
    (tmp_path / "not-mounted").mkdir()
    assert storage_prepare() is not None
