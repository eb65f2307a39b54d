"""What an organization's backups count for, and what it may have more. Under the lock of its row."""

from __future__ import annotations

from collections.abc import Mapping

from django.db.models import Count, Q, Sum

from accounts.models import Organization
from backups.models import Backup, BackupStatus, BackupTrigger
from novastack.common.errors import QuotaExceeded

GIB = 1 << 30
# Those that somebody asked for, or that a schedule takes; what protects from a loss is taken whatever the quota says.
COUNTED = frozenset({BackupTrigger.MANUAL, BackupTrigger.SCHEDULE, BackupTrigger.UPLOAD})


def used(organization: Organization) -> Mapping[str, int]:
    """`backups` and `backup_bytes`: whatever takes room, failed ones not."""
    counted = Backup.objects.filter(organization_id=organization.pk).aggregate(
        backups=Count("id", filter=~Q(status=BackupStatus.FAILED)), backup_bytes=Sum("size_bytes", default=0)
    )
    return {key: int(value or 0) for key, value in counted.items()}


def check(organization: Organization) -> None:
    """Raise `QuotaExceeded` when there is no room for one more. What is there already stays."""
    found, most = used(organization), organization.quotas()
    if found["backups"] >= most["max_backups"]:
        raise QuotaExceeded(
            f"The organization's quota for backups is {most['max_backups']}, {found['backups']} are used."
        )
    if found["backup_bytes"] >= most["max_backup_bytes"]:
        raise QuotaExceeded(
            f"The organization's quota for the storage of backups is {most['max_backup_bytes'] / GIB:g} GiB,"
            f" {found['backup_bytes'] / GIB:g} GiB are used."
        )


def room_bytes(organization: Organization) -> int:
    """How many bytes one more backup may have."""
    return max(0, organization.quotas()["max_backup_bytes"] - used(organization)["backup_bytes"])
