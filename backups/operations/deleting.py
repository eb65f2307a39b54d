"""Removing a backup: from its storage first, seen gone, then its row. It insists: what a storage refuses today it is asked
for again, until it is gone."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID

import structlog
from django.db import transaction

from accounts.services import audit
from backups.models import ADOPTED, Backup, BackupStatus, StorageTarget
from backups.operations import storages
from backups.operations.queueing import backup_operation_create, subject_of
from backups.storage.base import Storage, StorageError
from backups.storage.checking import left_removed
from novastack.common.clock import now
from projects.models import LockMode, OnGiveUp, Operation, OperationLock
from projects.operations import locks, wiring
from projects.operations.base import Definition, RetryPolicy, Step, StepFailed, Wait, register
from projects.operations.context import Context
from projects.operations.queue import hint_on_commit

log = structlog.get_logger(__name__)
KIND = "delete_backup"
WRITING = ("backup", "import_upload")
UNDER_WAY = (BackupStatus.QUEUED, BackupStatus.DUMPING, BackupStatus.DELETING)
# Of one that stays locked nobody says until when, every hour is often enough; else it is asked for when that is over, or
# after a day, since locks can be taken off.
LOOK_AGAIN_SECONDS = 24 * 3600.0
AFTER_SECONDS = 60.0  # of the storage's clock and ours
RETRY = RetryPolicy(attempts=5, delay_seconds=10, cap_seconds=3600)


def delete_begin(
    backup: Backup, *, created_by: Any = None, created_by_label: str, reason: str = "", queue_behind: bool = True
) -> Operation:
    """Mark it as going and record the operation; the one that stands if it is going already. What takes, proves or reads
    it is asked to cancel, and waited for, with `queue_behind`; else raises `OperationInProgress`. In a transaction."""
    locks.lock_subject(subject_of(backup))  # before any row: operations come before what they are about
    under_way = Operation.objects.live().filter(kind=KIND, params__backup=str(backup.pk)).first()
    if under_way is not None:
        return under_way
    _ask_to_end(backup)
    operation = backup_operation_create(
        backup=backup, kind=KIND, mode=LockMode.EXCLUSIVE, queue_behind=queue_behind, params={"reason": reason},
        created_by=created_by, created_by_label=created_by_label,
    )  # fmt: skip
    locked = Backup.objects.select_for_update(no_key=True, of=("self",)).get(pk=backup.pk)
    locked.status, locked.delete_requested_at = BackupStatus.DELETING, locked.delete_requested_at or now()
    locked.save(update_fields=["status", "delete_requested_at", "updated_at"])
    return operation


def in_use(backup: Backup) -> bool:
    """Whether any operation reads it, or waits to."""
    return OperationLock.objects.filter(subject=subject_of(backup)).exists()


def _taking(backup: Backup) -> list[Operation]:
    """Operations that write it and may hold nothing but the project."""
    live = Operation.objects.live().exclude(kind=KIND)
    return list(live.filter(params__backup=str(backup.pk), project_uuid=backup.project_uuid, kind__in=WRITING))


def _ask_to_end(backup: Backup) -> None:
    for operation in _taking(backup):
        Operation.objects.filter(pk=operation.pk, cancel_requested_at=None).update(
            cancel_requested_at=now(), next_attempt_at=None
        )
        hint_on_commit(operation.pk)


def backup_of(ctx: Context) -> Backup | None:
    return Backup.objects.select_related("storage").filter(pk=UUID(ctx.operation.params["backup"])).first()


def remove_objects(ctx: Context) -> None:
    """Its dump, its manifest, and what any earlier attempt may have left; each seen gone by asking for it by name."""
    backup = backup_of(ctx)
    if backup is None:
        ctx.explain("It is gone already.")
        return
    if _taking(backup):
        raise Wait("It is still being taken; that was asked to end.", seconds=2)
    try:
        storage = storages.storage_of(backup.storage)
        if not storages.write_allowed(backup.storage, storage):
            raise Wait(f"Nothing is removed from {backup.storage.name}: {backup.storage.read_only_reason}", seconds=300)
        removed = _remove(ctx, storage, backup)
    except StorageError as error:
        _note(ctx, backup, error)
        if error.until is not None:
            left = (error.until - now()).total_seconds() + AFTER_SECONDS
            raise Wait(
                f"{backup.storage.name}: {error.detail}", seconds=min(max(left, 1), LOOK_AGAIN_SECONDS)
            ) from error
        said = f"{backup.storage.name}: {error.detail} It is tried again until it is gone."
        raise StepFailed(error.code, said, retryable=error.retryable) from error
    ctx.explain(f"{removed} object{'' if removed == 1 else 's'} removed" if removed else "Nothing was stored.")


def _remove(ctx: Context, storage: Storage, backup: Backup) -> int:
    for upload in {backup.upload_id} - {""}:
        ctx.guard()
        storage.abort_upload(backup.object_key, upload)
    keys = keys_of(backup)
    if folder := folder_of(backup):  # by name as well: a list may be old, a name may be one that no row knows
        keys |= {found.key for found in storage.objects(folder)}
    removed = 0
    for key in sorted(keys, reverse=True):  # the manifest before the dump: without it nothing is believed
        ctx.guard()
        if storage.head(key) is not None:
            removed += 1
        storage.delete(key)
        if storage.head(key) is not None:
            raise StorageError("object_locked", f"It says that {key} was removed, and still has it.")
    if folder:
        ctx.guard()
        storage.sweep(folder, before=now())
    return removed


def folder_of(backup: Backup) -> str:
    """`<install>/<organization>/<backup>/`: all of its attempts, and nothing else's. Empty: none was begun, or nobody vouches
    that the others are its own: who may write there could have us remove a backup by forging one of its name."""
    if not backup.trusted and backup.created_by_label == ADOPTED:
        return ""
    folder, _, attempt = (backup.object_key or str(backup.upload.get("key", ""))).rpartition("/")
    return f"{folder}/" if attempt and folder.endswith(f"/{backup.pk}") else ""


def keys_of(backup: Backup) -> set[str]:
    """What its attempts are called, whether or not they got so far."""
    uploaded = {str(backup.upload["key"])} if backup.upload.get("key") else set()
    if not backup.object_key:
        return uploaded
    keys = {backup.object_key, backup.manifest_key} | uploaded
    if folder := folder_of(backup):
        for attempt in range(1, backup.attempt + 1):
            keys |= {f"{folder}{attempt}", f"{folder}{attempt}.manifest"}
    return keys


def _note(ctx: Context, backup: Backup, error: StorageError) -> None:
    """What the storage said stands on the backup, for whoever looks at it."""
    body = {"code": error.code, "detail": error.detail[:500], "retryable": True}
    with ctx.fenced():
        Backup.objects.filter(pk=backup.pk).update(error=body, updated_at=now())


def remove_row(ctx: Context) -> None:
    backup = backup_of(ctx)
    if backup is None:
        return
    ctx.guard()
    with ctx.fenced():
        audit.record(
            None, "backup.deleted", organization_id=backup.organization_id, project_id=backup.project_uuid,
            project_name=backup.project_name, target=str(backup),
            data={"backup": str(backup.pk), "reason": str(ctx.operation.params.get("reason", "")),
                  "by": ctx.operation.created_by_label},
        )  # fmt: skip
        backup.delete()
    log.info("backup deleted", backup=ctx.operation.params["backup"], engine=backup.engine)
    ctx.explain("Gone")


def not_deleted(operation: Operation) -> None:
    """Only after five crashes in one step: it stays “deleting”, with the reason, and can be asked for again."""
    Backup.objects.filter(pk=operation.params["backup"]).update(error=operation.error)


def go_on(limit: int = 50) -> int:
    """Those that were left “deleting” without an operation are taken up again. Returns how many."""
    live = Operation.objects.live().filter(kind=KIND).values_list("params__backup", flat=True)
    going = Backup.objects.filter(status=BackupStatus.DELETING).exclude(pk__in=[UUID(pk) for pk in live])
    rows = list(going.defer("manifest")[:limit])
    for backup in rows:
        with transaction.atomic():
            delete_begin(backup, created_by_label="clean-up of backups", reason="was left half removed")
    return len(rows)


def sweep_uploads() -> int:
    """Uploads that nobody will finish: those that our rows name, of what has ended, and all under our prefix that are
    older than a day (rule 29); and what checks of storages left. Returns how many uploads."""
    swept = 0
    for target in StorageTarget.objects.all():
        try:
            storage = storages.storage_of(target)
            if not storages.write_allowed(target, storage):
                continue
            swept += _abort_ended(target, storage)
            swept += storage.sweep(f"{wiring.install_id()}/", before=now() - timedelta(days=1))
            left_removed(storage, before=now() - timedelta(days=1))
        except StorageError as error:
            log.warning("uploads not swept", storage=str(target.pk), code=error.code)
    return swept


def _abort_ended(target: StorageTarget, storage: Storage) -> int:
    ended = Backup.objects.exclude(upload_id="").filter(storage=target).defer("manifest")
    rows = [row for row in ended.exclude(status__in=UNDER_WAY)[:200] if not _taking(row)]
    for backup in rows:
        storage.abort_upload(backup.object_key, backup.upload_id)
        Backup.objects.filter(pk=backup.pk, upload_id=backup.upload_id).update(upload_id="")
    return len(rows)


register(
    Definition(
        kind=KIND, title="Delete a backup", on_give_up=OnGiveUp.ROLL_FORWARD, while_running=None, queue="backups",
        insists=True, on_failure=not_deleted, region=lambda _: None,
        steps=(
            Step("objects", "Remove it from its storage", remove_objects, retry=RETRY, deadline_seconds=300),
            Step("row", "Forget it", remove_row, retry=RETRY, deadline_seconds=60),
        ),
    )
)  # fmt: skip
