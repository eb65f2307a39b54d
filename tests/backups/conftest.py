from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from django.core.cache import cache

from backups.models import StorageKind, StorageTarget
from backups.operations import storages
from tests.factories import Team, make_team
from tests.faults.conftest import _fresh, docker_site  # noqa: F401
from tests.operations.conftest import alice, idle, kind, paper, ready, runtime, shop  # noqa: F401


@pytest.fixture(autouse=True)
def _empty_cache() -> None:
    """Throttles and rate limits count in it."""
    cache.clear()


@pytest.fixture(autouse=True)
def backup_root(settings: Any, tmp_path: Path) -> Path:
    """A root of the test's own for filesystem targets."""
    root = tmp_path / "backup-root"
    root.mkdir()
    settings.NOVASTACK_BACKUP_ROOT = str(root)
    return root


@pytest.fixture
def team(db: None) -> Team:
    return make_team()


@pytest.fixture
def target(db: None, backup_root: Path) -> StorageTarget:
    """The install's default: a folder, tried and claimed."""
    made = StorageTarget(name="this-machine", kind=StorageKind.FILESYSTEM, config={"path": "here"}, is_default=True)
    storage = storages.storage_of(made)
    assert all(check.passed for check in storage.check())
    storages.claim(made, storage)
    made.save()
    return made


@pytest.fixture
def storage(target: StorageTarget) -> StorageTarget:
    return target
