"""Operations about backups: they hold the backup, and the project as far as they touch it."""

from __future__ import annotations

from typing import Any

from backups.models import Backup
from projects.models import LockMode, Operation
from projects.operations import locks
from projects.operations.queue import subject_operation_create


def subject_of(backup: Backup) -> str:
    return locks.subject_of("backup", backup.pk)


def backup_operation_create(
    *,
    backup: Backup,
    kind: str,
    mode: str = LockMode.SHARED,
    queue_behind: bool = False,
    params: dict[str, Any] | None = None,
    created_by: Any = None,
    created_by_label: str = "",
) -> Operation:
    """Record an operation about a backup whose project may be gone: it holds `backup:<id>` and nothing of the project.
    `params["backup"]` is its id. In a transaction. Raises `OperationInProgress` unless `queue_behind`."""
    return subject_operation_create(
        subject=subject_of(backup), kind=kind, mode=mode, queue_behind=queue_behind,
        params={"backup": str(backup.pk), **(params or {})}, organization_id=backup.organization_id,
        project_uuid=backup.project_uuid, project_name=backup.project_name,
        created_by=created_by, created_by_label=created_by_label,
    )  # fmt: skip
