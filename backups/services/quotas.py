"""What an organization's backups count for, beside its projects."""

from backups.operations.limits import used

__all__ = ["used"]
