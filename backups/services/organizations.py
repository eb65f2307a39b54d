"""What an organization's end means for its backups."""

from __future__ import annotations

from accounts.models import Organization
from backups.models import Backup, BackupKey, BackupStatus
from novastack.common.errors import Conflict


def _backups(count: int) -> str:
    return f"{count} backup{'s' if count != 1 else ''}"


def organization_ending(organization: Organization) -> None:
    """Backups outlive projects, but not their organization: they would be nobody's, seen by nobody and paid for all the same.
    So they go first. Then nothing is left that its keys open, and they go with it. In the transaction that removes it, which
    holds its row."""
    left = list(Backup.objects.filter(organization_id=organization.pk).values_list("status", flat=True))
    going = left.count(BackupStatus.DELETING)
    if len(left) > going:
        raise Conflict(f"It still has {_backups(len(left))}, perhaps of projects that are gone; remove them first.")
    if going:
        raise Conflict(
            f"It still has {_backups(going)} being removed. Where a bucket has object lock, that ends with the lock;"
            " delete the organization then."
        )
    BackupKey.objects.filter(organization=organization).delete()
