"""What an organization's end means for its backups."""

from __future__ import annotations

from accounts.models import Organization
from backups.models import Backup, BackupKey
from novastack.common.errors import Conflict


def organization_ending(organization: Organization) -> None:
    """Backups outlive projects, but not their organization: they would be nobody's, seen by nobody and paid for all the same.
    So they go first. Then nothing is left that its keys open, and they go with it. In the transaction that removes it, which
    holds its row."""
    left = Backup.objects.filter(organization_id=organization.pk).count()
    if left:
        raise Conflict(
            f"It still has {left} backup{'s' if left != 1 else ''}, perhaps of projects that are gone; remove them first."
        )
    BackupKey.objects.filter(organization=organization).delete()
