"""Taking a backup (kind `backup`): a dump of one moment of the database, beside the server, streamed and sealed into a
storage; then the signed manifest, which is the commit (rules 28 to 30).

Nothing is changed at the source but a login for the dump tool, there only meanwhile. Each attempt has a key of its own,
on the row before anything is sent; what a killed worker left of one is removed by who goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import structlog

from accounts.models import Organization
from backups.models import USABLE, Backup, BackupPolicy, Schedule, StorageTarget
from backups.operations import limits, storages, taking_steps
from backups.operations.queueing import subject_of
from novastack.common.errors import Conflict
from projects import domain, registry
from projects.models import LockMode, OnGiveUp, Operation, OperationState, Project
from projects.operations import locks
from projects.operations.base import Definition, RetryPolicy, Step, register
from projects.operations.queue import also_hold, operation_create

log = structlog.get_logger(__name__)
KIND = "backup"
HOURS = 3600.0
Told = Callable[[Backup, Operation], None]
_when_stored: list[Told] = []
_when_failed: list[Told] = []


class BackupNotSupported(Conflict):
    code, title = "backup_not_supported", "This database can't be backed up yet"


class NoBackupStorage(Conflict):
    code, title = "no_backup_storage", "There is no storage for backups"


class BackupStorageReadOnly(Conflict):
    code, title = "storage_read_only", "Nothing is written to this storage"


def when_stored(told: Told) -> Told:
    """Have it called in the transaction that ends the operation of a backup that is stored now (verification …)."""
    _when_stored.append(told)
    return told


def when_failed(told: Told) -> Told:
    """Likewise of one that failed or was cancelled."""
    _when_failed.append(told)
    return told


def backup_row(
    project: Project, *, trigger: str, label: str = "", storage: StorageTarget | None = None,
    schedule: Schedule | None = None, created_by_label: str = "",
) -> Backup:  # fmt: skip
    """The row alone, for an operation that takes a backup among its own steps (`backup_steps`) and names it in its params.
    In a transaction; of `limits.COUNTED` triggers before the project is locked, since the organization is locked first.

    Raises `BackupNotSupported`, `NoBackupStorage`, `BackupStorageReadOnly`, `QuotaExceeded`.
    """
    engine = registry.engine(project.engine)
    if domain.Capability.COPY not in engine.capabilities:
        raise BackupNotSupported(f"{engine.title} can't be backed up yet.")
    if reason := project.region.tools_against(engine.name):
        raise BackupNotSupported(f"{engine.title} can't be backed up in {project.region.name}: {reason}.")
    target = storage or storages.default_target(project.organization_id)
    if target is None:
        raise NoBackupStorage("Add a storage for backups first, and make it the default.")
    if target.read_only_reason:
        raise BackupStorageReadOnly(f"“{target.name}” is read-only: {target.read_only_reason}")
    if trigger in limits.COUNTED:
        limits.check(Organization.objects.select_for_update(no_key=True).get(pk=project.organization_id))
    return Backup.objects.create(
        organization_id=project.organization_id, project_uuid=project.pk, project_name=project.name,
        project_slug=project.slug, engine=project.engine, version=project.version, trigger=trigger, label=label,
        schedule=schedule, storage=target, encrypted=target.encrypt, created_by_label=created_by_label,
    )  # fmt: skip


def backup_begin(
    project: Project, *, trigger: str, label: str = "", storage: StorageTarget | None = None,
    schedule: Schedule | None = None, created_by: Any = None, created_by_label: str, verify: bool = True,
) -> Backup:  # fmt: skip
    """Record a backup and the operation that takes it. In a transaction, with the project not locked yet by this one.
    `verify`: it is proven afterwards, if the project's policy does not say otherwise.

    Raises as `backup_row`, and `OperationInProgress`: what changes the project excludes it, and one backup of a project is
    taken at a time. Nobody's rights are looked at here, nor whether the project runs.
    """
    backup = backup_row(
        project, trigger=trigger, label=label, storage=storage, schedule=schedule, created_by_label=created_by_label
    )
    operation = operation_create(
        project=project, kind=KIND, mode=LockMode.SHARED, params={"backup": str(backup.pk), "verify": verify},
        created_by=created_by, created_by_label=created_by_label,
    )  # fmt: skip
    # The dump tool's login is one per project.
    also_hold(operation, locks.subject_of("dump", project.pk), LockMode.EXCLUSIVE)
    also_hold(operation, subject_of(backup), LockMode.SHARED)
    backup.operation_id = operation.pk
    backup.save(update_fields=["operation_id", "updated_at"])
    return backup


def backup_steps(*, param: str = "backup", prefix: str = "", optional: bool = False) -> tuple[Step, ...]:
    """The steps that take the backup whose id is `params[param]`; without that param each does nothing. Undone, they
    leave a backup that is stored as it is."""
    taking = taking_steps.Taking(param)
    return (
        Step(f"{prefix}prepare", "Prepare the backup", taking.prepare, taking.undo, RetryPolicy(3, 10), 360, optional=optional),
        Step(f"{prefix}dump", "Dump", taking.dump, None, RetryPolicy(3, 10), 12 * HOURS, optional=optional),
        Step(f"{prefix}store", "Sign and store", taking.store, None, RetryPolicy(5, 5), 1800, optional=optional),
    )  # fmt: skip


def verifies(backup: Backup) -> bool:
    """Whether the project's policy has backups proven after they are taken."""
    policy = BackupPolicy.objects.filter(project_id=backup.project_uuid).first()
    return policy is None or policy.verify_after_backup


def stored(operation: Operation) -> None:
    """The end of an operation that took a backup: whoever wants to know is told."""
    backup = Backup.objects.get(pk=operation.params["backup"])
    for told in _when_stored:
        told(backup, operation)


def failed(operation: Operation) -> None:
    """Whatever ended it, also what can't be undone any more: the row says so."""
    backup = Backup.objects.select_for_update(no_key=True).filter(pk=operation.params["backup"]).first()
    if backup is None or backup.status in USABLE:
        return
    cancelled = operation.state == OperationState.CANCELLED
    error = operation.error or {
        "code": "cancelled" if cancelled else "internal_error",
        "detail": "",
        "retryable": False,
    }
    taking_steps.mark_failed(backup, error)
    for told in _when_failed:
        told(backup, operation)


register(
    Definition(
        kind=KIND, title="Backup", steps=backup_steps(), on_give_up=OnGiveUp.UNDO, while_running=None, cancellable=True,
        yields=True, queue="backups", on_success=stored, on_failure=failed,
    )
)  # fmt: skip
