"""An organization's end: not before its backups', and then without what is left of them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest

from backups.models import Backup, BackupKey, BackupStatus, OfflineKey, StorageTarget
from backups.operations import keys
from projects.models import Project
from tests.backups.keeping import make_backup
from tests.factories import Team, api_client

URL = "/api/v1/organizations/acme/"


@pytest.mark.parametrize("encrypted", [True, False])
def test_its_backups_go_first(team: Team, storage: StorageTarget, encrypted: bool) -> None:
    """Of a project that is gone; they would be nobody's, in a storage that is everybody's."""
    gone: Any = SimpleNamespace(
        organization_id=team.organization.pk, pk=uuid4(), name="Shop", slug="shop", engine="postgresql", version="17"
    )
    if encrypted:
        keys.recipients_of(team.organization.pk)
    backup = make_backup(gone, storage, encrypted=encrypted, pinned=True)
    alice = api_client(team.alice)
    refused = alice.delete(URL)
    assert (refused.status_code, refused.json()["code"]) == (409, "conflict")
    assert "1 backup, perhaps of projects that are gone" in refused.json()["detail"]
    Backup.objects.filter(pk=backup.pk).update(status=BackupStatus.DELETING)  # perhaps for long: object lock
    told = alice.delete(URL).json()["detail"]
    assert "1 backup being removed" in told and "object lock" in told and "remove them first" not in told
    Backup.objects.filter(pk=backup.pk).delete()
    assert alice.delete(URL).status_code == 204
    assert not BackupKey.objects.exists() and not OfflineKey.objects.exists()


def test_with_projects_its_keys_stay(team: Team, idle: Project) -> None:
    keys.recipients_of(team.organization.pk)
    assert "projects" in api_client(team.alice).delete(URL).json()["detail"]
    assert BackupKey.objects.count() == 1
