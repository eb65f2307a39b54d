"""Rows of backups for tests of pages: what operations would have written."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import uuid4

from backups.models import (
    Backup,
    BackupStatus,
    BackupTrigger,
    Proof,
    ProofKind,
    ProofState,
    Restore,
    RestoreStatus,
    RestoreTarget,
    Schedule,
    StorageKind,
    StorageTarget,
)
from novastack.common.clock import now
from projects.models import Database, DatabaseServer, DatabaseSlot, Operation, Project

TABLES = 128
MIB = 1024**2


def make_storage(organization: Any = None, name: str = "this-machine", **fields: Any) -> StorageTarget:
    values: dict[str, Any] = {
        "kind": StorageKind.FILESYSTEM, "config": {"path": name}, "is_default": True, "test_ok": True,
        "tested_at": now(), "test_detail": "Written, read, listed and removed.", "test_ms": 9,
    }  # fmt: skip
    return StorageTarget.objects.create(organization=organization, name=name, **(values | fields))


def make_backup(project: Project, storage: StorageTarget, *, hours: float = 2, **fields: Any) -> Backup:
    """A verified one, `hours` old, unless `fields` say otherwise."""
    began = now() - timedelta(hours=hours)
    values: dict[str, Any] = {
        "organization_id": project.organization_id, "project_uuid": project.pk, "project_name": project.name,
        "project_slug": project.slug, "engine": project.engine, "version": project.version, "server_version": "17.6",
        "trigger": BackupTrigger.SCHEDULE, "status": BackupStatus.VERIFIED, "storage": storage,
        "object_key": f"install/organization/{began:%Y%m%d%H%M%S}/1", "size_bytes": 700 * MIB,
        "dump_bytes": 2100 * MIB, "database_bytes": 3000 * MIB, "sha256": "9f2c41" + "0" * 54 + "b07e",
        "rows": 41_803_552, "tables": TABLES, "started_at": began, "finished_at": began + timedelta(seconds=188),
        "verified_at": began + timedelta(seconds=400), "rto_seconds": 201.0, "progress_bytes": 2100 * MIB,
        "created_by_label": "bob@example.test", "key_ids": ["age1current"],
    }  # fmt: skip
    backup = Backup.objects.create(**(values | fields))
    Backup.objects.filter(pk=backup.pk).update(created_at=began)
    backup.created_at = began
    return backup


def make_proof(backup: Backup, **fields: Any) -> Proof:
    values: dict[str, Any] = {
        "kind": ProofKind.AFTER_BACKUP, "state": ProofState.PASSED, "started_at": backup.finished_at,
        "finished_at": backup.verified_at, "restore_seconds": 170.0, "compare_seconds": 31.0, "tables": backup.tables,
        "rows": backup.rows,
    }  # fmt: skip
    return Proof.objects.create(backup=backup, **(values | fields))


def make_schedule(project: Project, **fields: Any) -> Schedule:
    values: dict[str, Any] = {
        "cron": "0 */4 * * *", "time_zone": "UTC", "keep_last": 12, "keep_daily": 14,
        "next_slot_at": now() + timedelta(hours=1), "next_run_at": now() + timedelta(hours=1, minutes=4),
    }  # fmt: skip
    return Schedule.objects.create(project=project, organization_id=project.organization_id, **(values | fields))


def make_restore(backup: Backup, project: Project, **fields: Any) -> Restore:
    """One in place that succeeded and can be undone for some days."""
    moment = now()
    values: dict[str, Any] = {
        "organization_id": project.organization_id, "backup_uuid": backup.pk, "target": RestoreTarget.IN_PLACE,
        "source_project_uuid": project.pk, "project_uuid": project.pk, "project_name": project.name,
        "status": RestoreStatus.SUCCEEDED, "started_at": moment - timedelta(minutes=9), "finished_at": moment,
        "undo_until": moment + timedelta(days=7), "created_by_label": "bob@example.test",
    }  # fmt: skip
    return Restore.objects.create(backup=backup, **(values | fields))


def keep_before(restore: Restore, project: Project) -> Database:
    """The database from before it, as the restore's operation kept it: it can be undone."""
    current = Database.objects.select_related("server").get(project=project, slot=DatabaseSlot.CURRENT)
    server = DatabaseServer.objects.get(pk=current.server_id)
    server.pk, server.project_uuid, server.port = uuid4(), None, None
    server._state.adding = True
    server.save(force_insert=True)
    operation = Operation.objects.create(
        project_uuid=project.pk, organization_id=project.organization_id, kind="restore", state="succeeded",
        params={"incoming": str(current.server_id), "source": str(server.pk)}, finished_at=now(),
    )  # fmt: skip
    Restore.objects.filter(pk=restore.pk).update(operation_id=operation.pk)
    return Database.objects.create(
        project=project, server=server, slot=DatabaseSlot.PREVIOUS, name="before", keep_until=restore.undo_until
    )
