"""A person takes a backup, keeps it, or takes it away with them."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

from django.db import transaction

from accounts.models import Organization
from accounts.permissions import Capability, Principal, require
from accounts.services import audit
from backups.models import Backup, BackupStatus, BackupTrigger, StorageTarget
from backups.operations import deleting, taking
from backups.services.downloads import Download
from novastack.common.errors import ActionNotAllowed, Invalid, NotFound
from projects.domain import Selection
from projects.models import DesiredStatus, Operation, Project, ProjectStatus
from projects.operations import locks

LABEL_MAX = 80
REASON_MAX = 200


def backup_create(
    principal: Principal, project: Project, *, label: str = "", storage: StorageTarget | str | None = None
) -> Backup:
    """Have a backup taken now; its operation is `operation_id`. `storage`: a target, or the id or name of one that the
    project's organization may use; None: the default one.

    Raises `Invalid`, `NotFound` with the field, `PermissionDenied`, `ActionNotAllowed` (a database that is stopped must be
    started first), `OperationInProgress`, `QuotaExceeded`, and what `taking.backup_begin` raises.
    """
    require(principal, project.organization_id, Capability.PROJECT_ACT)
    label = _clean(label, "label", LABEL_MAX)
    target = storage if storage is None or isinstance(storage, StorageTarget) else storage_named(project, storage)
    if target is not None and target.organization_id not in {None, project.organization_id}:
        raise NotFound.field("storage", "There is no such storage here.")
    with transaction.atomic():
        Organization.objects.select_for_update(no_key=True).get(pk=project.organization_id)
        project = Project.objects.select_for_update(of=("self",), no_key=True).get(pk=project.pk)
        if reason := why_not_now(project):
            raise ActionNotAllowed(reason)
        backup = taking.backup_begin(
            project, trigger=BackupTrigger.MANUAL, label=label, storage=target, created_by=principal.user,
            created_by_label=principal.label,
        )  # fmt: skip
        _audit(principal, "backup.started", backup)
    return backup


def why_not_now(project: Project) -> str:
    """Why no backup of it can be begun, for people; empty: one can, as far as the project's own state goes."""
    if project.purging_at is not None or project.desired_status == DesiredStatus.ABSENT:
        return "The project is being removed."
    if project.desired_status == DesiredStatus.RECYCLED or project.status == ProjectStatus.RECYCLED:
        return "The project is in the recycle bin: undelete it first."
    if project.ready_at is None:
        return "The database is not ready yet."
    if project.desired_status == DesiredStatus.STOPPED:
        return "The database is stopped: start it first."
    return ""


def storage_named(project: Project, ref: str) -> StorageTarget:
    """By id or name: the organization's own before the install's. `NotFound` with the field `storage`."""
    usable = StorageTarget.objects.filter(organization_id=project.organization_id) | StorageTarget.objects.filter(
        organization=None
    )
    try:
        found = usable.filter(pk=uuid.UUID(ref)).first()
    except ValueError:
        found = usable.filter(name=ref[:100]).order_by("organization_id").first()
    if found is None:
        raise NotFound.field("storage", "There is no such storage here.")
    return found


def backup_pin(principal: Principal, backup: Backup, *, reason: str = "") -> Backup:
    """From now on retention keeps it. Doing it again changes the reason."""
    return _pin(principal, backup, True, _clean(reason, "reason", REASON_MAX))


def backup_unpin(principal: Principal, backup: Backup) -> Backup:
    """Retention may remove it when its time has come."""
    return _pin(principal, backup, False, "")


def backup_delete(principal: Principal, backup: Backup) -> Operation:
    """Remove it from its storage, then its row. Whatever takes or proves it is asked to end. A pinned one must be unpinned
    first. Raises `PermissionDenied`, `ActionNotAllowed`."""
    require(principal, backup.organization_id, Capability.PROJECT_DELETE)
    with transaction.atomic():
        locks.lock_subject(locks.subject_of("project", backup.project_uuid))  # as pins do
        if Backup.objects.filter(pk=backup.pk, pinned=True).exists():
            raise ActionNotAllowed("It is pinned: unpin it first.")
        operation = deleting.delete_begin(
            backup, created_by=principal.user, created_by_label=principal.label, reason="by hand"
        )
        _audit(principal, "backup.delete", backup)
    return operation


def _pin(principal: Principal, backup: Backup, pinned: bool, reason: str) -> Backup:
    require(principal, backup.organization_id, Capability.PROJECT_ACT)
    with transaction.atomic():
        locks.lock_subject(locks.subject_of("project", backup.project_uuid))  # as retention does before it picks
        backup = Backup.objects.select_for_update(of=("self",), no_key=True).get(pk=backup.pk)
        if backup.status == BackupStatus.DELETING or backup.delete_requested_at is not None:
            raise ActionNotAllowed("It is being removed.")
        backup.pinned, backup.pinned_reason = pinned, reason
        backup.save(update_fields=["pinned", "pinned_reason", "updated_at"])
        _audit(principal, "backup.pinned" if pinned else "backup.unpinned", backup)
    return backup


def backup_download(
    principal: Principal,
    backup: Backup,
    opening: Callable[[], Download],
    *,
    decrypted: bool,
    chosen: Selection | None = None,
) -> Download:
    """Allow one download, open it, and put it down; one that can't be opened is none. It holds all rows, or those of what
    was chosen: the right is that to connect. Raises `PermissionDenied`, `ActionNotAllowed`, and what `opening` raises."""
    download_allowed(principal, backup, decrypted=decrypted)
    download = opening()
    parts = {} if chosen is None else {"tables": list(chosen.tables), "schemas": list(chosen.schemas)}
    said = {name: names for name, names in parts.items() if names}
    try:
        _audit(principal, "backup.downloaded", backup, decrypted=decrypted, **said)
    except BaseException:
        download.close()
        raise
    return download


def download_allowed(principal: Principal, backup: Backup, *, decrypted: bool) -> None:
    """Raises `PermissionDenied`, `ActionNotAllowed`."""
    require(principal, backup.organization_id, Capability.CONNECT)
    if not backup.usable and not (backup.status == BackupStatus.CORRUPT and not decrypted):
        raise ActionNotAllowed(f"There is nothing to download: it is {backup.get_status_display().lower()}.")


def _clean(text: str, field: str, most: int) -> str:
    text = " ".join(text.split())
    if len(text) > most or not text.isprintable():
        raise Invalid.field(field, "invalid", f"Use at most {most} printable characters.")
    return text


def _audit(principal: Principal, action: str, backup: Backup, **data: Any) -> None:
    project = Project.objects.filter(pk=backup.project_uuid).values_list("pk", flat=True).first()
    audit.record(
        principal, action, organization_id=backup.organization_id, project_id=project or backup.project_uuid,
        project_name=backup.project_name, target=str(backup.pk), data={"label": backup.label, **data},
    )  # fmt: skip
