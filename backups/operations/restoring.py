"""Restores into projects that live, and the way back (ADR 0032). New projects: `restore_new`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from backups.models import Backup, BackupTrigger, Restore
from backups.operations import restore_new, restore_steps, safety, taking
from backups.operations.queueing import subject_of
from projects.models import (
    Database,
    DatabaseSlot,
    Endpoint,
    LockMode,
    OnGiveUp,
    Operation,
    Placement,
    Project,
    ProjectStatus,
    RoleKind,
    ServerKind,
)
from projects.operations import locks, move_copying, move_steps, move_switch
from projects.operations.base import DATABASE_RETRY, SERVER_RETRY, Definition, RetryPolicy, Step, register
from projects.operations.queue import also_hold, operation_create

RESTORE, UNDO = "restore", "undo_restore"
SAFETY = "safety"  # the param that names the safety backup
HOURS = 3600.0
ONCE = RetryPolicy(attempts=1)
TWICE = RetryPolicy(attempts=2, delay_seconds=2)


def restore_begin(
    restore: Restore, backup: Backup, project: Project, *, created_by: Any, label: str, safety_backup: bool = True
) -> Operation:
    """Record the restore of a backup into a project that lives. In a transaction, with the project's row locked. Raises
    `OperationInProgress`, about the project or the backup. Without `safety_backup` none is taken of what is there; the
    database from before is kept all the same."""
    before = safety_row(restore, project, label=label) if safety_backup else None
    params = {
        "restore": str(restore.pk), "backup": str(backup.pk), **({SAFETY: str(before.pk)} if before else {}),
        **_here(project),
    }  # fmt: skip
    operation = operation_create(
        project=project, kind=RESTORE, params=params, created_by=created_by, created_by_label=label
    )
    # The dump tool's login is one per project.
    also_hold(operation, locks.subject_of("dump", project.pk), LockMode.EXCLUSIVE)
    for held in (backup, before) if before else (backup,):
        also_hold(operation, subject_of(held), LockMode.SHARED)
    if before:
        Backup.objects.filter(pk=before.pk).update(operation_id=operation.pk)
    return operation


def undo_begin(restore: Restore, project: Project, kept: Database, *, created_by: Any, label: str) -> Operation:
    """Record the way back to the database from before. In a transaction, with the project's row locked."""
    params = {
        "restore": str(restore.pk), "kept": str(kept.pk), **_here(project, kept), "incoming": str(kept.server_id),
        "generation": project.generation + 1,  # `operation_create` counts
    }  # fmt: skip
    return operation_create(project=project, kind=UNDO, params=params, created_by=created_by, created_by_label=label)


def safety_row(restore: Restore, project: Project, *, label: str) -> Backup:
    """The backup of what is there now, that the restore takes before anything else. In a transaction. Raises as
    `backup_row`."""
    row = taking.backup_row(project, trigger=BackupTrigger.SAFETY, label="Before a restore", created_by_label=label)
    row.pinned, row.pinned_reason = True, safety.PINNED
    row.save(update_fields=["pinned", "pinned_reason", "updated_at"])
    restore.safety_backup = row
    restore.save(update_fields=["safety_backup", "updated_at"])
    return row


def kept_of(restore: Restore, project: Project) -> Database | None:
    """The database from before, while what was restored is still the project's and no other took its place; None: it can't
    be undone any more."""
    operation = (
        Operation.objects.filter(pk=restore.operation_id, kind=RESTORE).first() if restore.operation_id else None
    )
    if operation is None or not operation.params.get("incoming"):
        return None
    current = Database.objects.filter(project=project, slot=DatabaseSlot.CURRENT).first()
    if current is None or str(current.server_id) != operation.params["incoming"]:
        return None
    rows = Database.objects.filter(
        project=project, slot=DatabaseSlot.PREVIOUS, server_id=operation.params["source"], drop_due_at=None
    )
    return rows.select_related("server").first()


def _here(project: Project, to: Database | None = None) -> dict[str, Any]:
    """What the steps of moves ask of an operation: where it goes, and what was before. By default where it is."""
    current = Database.objects.select_related("server").get(project=project, slot=DatabaseSlot.CURRENT)
    endpoint = Endpoint.objects.get(project=project)
    login = current.roles.filter(kind=RoleKind.LOGIN).order_by("created_at")[0]
    server = (to or current).server
    return {
        "placement": Placement.POOL if server.kind == ServerKind.POOL else Placement.DEDICATED,
        "region": str(server.region_id), "plan": str(project.plan_id), "memory_bytes": project.memory_bytes,
        "cpus": str(project.cpus), "storage_bytes": project.storage_bytes, "source": str(current.server_id),
        "before": {
            "placement": project.placement, "region": str(project.region_id), "plan": project.plan.slug,
            "host": endpoint.host, "port": endpoint.port, "database": current.name, "username": login.name,
        },
    }  # fmt: skip


# As everywhere, with other titles: it is another backup than the one that is restored.
_SAFETY = tuple(
    replace(step, title=title, retry=replace(step.retry, attempts=2))
    for step, title in zip(
        taking.backup_steps(param=SAFETY, prefix="safety_"),
        ("Prepare the safety backup", "Take the safety backup", "Store the safety backup"), strict=True,
    )
)  # fmt: skip

RESTORE_DEFINITION = Definition(
    kind=RESTORE, title="Restore", on_give_up=OnGiveUp.UNDO, while_running=ProjectStatus.RESTORING, cancellable=True,
    yields=True, once=True, queue="backups", on_success=restore_steps.succeeded, on_failure=restore_steps.failed,
    steps=(
        Step("verify", "Check the backup", restore_steps.verify, retry=TWICE, deadline_seconds=360),
        *_SAFETY,
        Step("safety_proof", "Prove the safety backup", restore_steps.prove_safety, retry=TWICE, deadline_seconds=360),
        Step("image", "Find the server's image", restore_steps.find_image, retry=ONCE, deadline_seconds=900),
        Step("server", "Get a place for the copy", restore_steps.get_server, move_steps.discard, SERVER_RETRY, 300),
        Step("ready", "Wait for the first login", move_steps.await_server, retry=ONCE, deadline_seconds=180),
        Step("secure", "Close the server", move_steps.secure, retry=DATABASE_RETRY, deadline_seconds=60),
        Step("database", "Create database and user", move_steps.make_database, retry=DATABASE_RETRY, deadline_seconds=60),
        Step("copy", "Restore the backup", restore_steps.fill, restore_steps.end_tools, TWICE, 12 * HOURS),
        Step("compare", "Compare with the backup", restore_steps.compare, retry=TWICE, deadline_seconds=6 * HOURS),
        Step("fence", "Shut clients out", restore_steps.fence_copy, move_copying.unfence, TWICE, 360),
        Step("address", "Take over the address", move_copying.hand_over, move_copying.hand_back, TWICE, 360),
        Step("switch", "Switch", restore_steps.switch, retry=SERVER_RETRY, deadline_seconds=60),
        Step("open", "Let clients in", move_switch.let_in, retry=DATABASE_RETRY, deadline_seconds=360),
        Step("keep", "Keep the database from before", move_switch.retire, retry=SERVER_RETRY, deadline_seconds=120),
    ),
)  # fmt: skip
register(RESTORE_DEFINITION)

UNDO_DEFINITION = Definition(
    kind=UNDO, title="Undo restore", on_give_up=OnGiveUp.UNDO, while_running=ProjectStatus.RESTORING, cancellable=True,
    yields=True, once=True, queue="backups", on_success=restore_steps.undone, on_failure=restore_steps.not_undone,
    steps=(
        Step("verify", "Look for the database from before", restore_steps.verify_undo, restore_steps.keep_as_it_was,
             TWICE, 360),
        Step("ready", "Start it", restore_steps.start_kept, retry=SERVER_RETRY, deadline_seconds=360),
        Step("fence", "Shut clients out", restore_steps.carry_over, move_copying.unfence, TWICE, 360),
        Step("address", "Take over the address", move_copying.hand_over, move_copying.hand_back, TWICE, 360),
        Step("switch", "Switch", restore_steps.switch_back, retry=SERVER_RETRY, deadline_seconds=60),
        Step("open", "Let clients in", move_switch.let_in, retry=DATABASE_RETRY, deadline_seconds=360),
        Step("keep", "Keep what was restored", move_switch.retire, retry=SERVER_RETRY, deadline_seconds=120),
    ),
)  # fmt: skip
register(UNDO_DEFINITION)
restore_new.extend_provisioning()
