"""Rows for tests of schedules, retention and deletion."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from backups.models import Backup, BackupStatus, BackupTrigger, Schedule, StorageTarget
from backups.operations import dispatching, storages
from backups.operations import schedules as times
from backups.storage.base import Storage
from novastack.common.clock import now
from projects.models import Project
from projects.operations import wiring


def make_schedule(project: Project, cron: str = "0 2 * * *", zone: str = "UTC", **fields: Any) -> Schedule:
    schedule = Schedule(project=project, organization_id=project.organization_id, cron=cron, time_zone=zone, **fields)
    if "spread_seconds" not in fields:
        schedule.spread_seconds = times.spread_of(schedule.pk, cron, zone, at=now())
    dispatching.plan_next(schedule, after=now())
    schedule.save()
    return schedule


def make_backup(project: Project, storage: StorageTarget, *, days_ago: float = 0, **fields: Any) -> Backup:
    """A verified one, unless the fields say something else."""
    at = now() - timedelta(days=days_ago)
    values = {
        "organization_id": project.organization_id, "project_uuid": project.pk, "project_name": project.name,
        "project_slug": project.slug, "engine": project.engine, "version": project.version, "storage": storage,
        "status": BackupStatus.VERIFIED, "trigger": BackupTrigger.SCHEDULE, "verified_at": at, "finished_at": at,
        "size_bytes": 1000, "dump_bytes": 4000, "rows": 100, "attempt": 1, **fields,
    }  # fmt: skip
    if values["status"] != BackupStatus.VERIFIED:
        values["verified_at"] = fields.get("verified_at")
    backup = Backup(created_at=at, **values)
    backup.object_key = f"{wiring.install_id()}/{project.organization_id}/{backup.pk}/1"
    backup.save()
    return backup


def put(storage: Storage, key: str, content: bytes = b"x" * 100) -> None:
    writer = storage.writer(key)
    writer.write(content)
    writer.commit()


def store(backup: Backup) -> Storage:
    """Its dump and manifest are really there."""
    storage = storages.storage_of(backup.storage)
    put(storage, backup.object_key)
    put(storage, backup.manifest_key)
    return storage


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)
