"""What an organization's backups count for."""

from __future__ import annotations

from collections.abc import Mapping

from django.db.models import Count, Q, Sum

from accounts.models import Organization
from backups.models import Backup, BackupStatus


def used(organization: Organization) -> Mapping[str, int]:
    """`backups` and `backup_bytes`: whatever takes room, failed ones not."""
    counted = Backup.objects.filter(organization_id=organization.pk).aggregate(
        backups=Count("id", filter=~Q(status=BackupStatus.FAILED)), backup_bytes=Sum("size_bytes", default=0)
    )
    return {key: int(value or 0) for key, value in counted.items()}
