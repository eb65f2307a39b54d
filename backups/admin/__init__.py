"""Backups in the Django admin: to look at, and to act through the same services as everybody (audited).

What a row says is written by operations alone; keys and access keys are never shown, and nothing is deleted here.
"""

from backups.admin import backups, schedules, storages

__all__ = ["backups", "schedules", "storages"]
