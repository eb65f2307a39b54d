"""A stored backup of a project that lives, and what may become of what is stored."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from django.db import transaction

from backups import manifest as manifests
from backups.manifest import Manifest
from backups.models import Backup, BackupTrigger
from backups.operations import keys, storages, taking
from projects.models import Operation, Project
from tests.faults.conftest import Site


def take(project: Project, **more: Any) -> Backup:
    with transaction.atomic():
        backup = taking.backup_begin(
            project, **{"trigger": BackupTrigger.MANUAL, "created_by_label": "test", "verify": False, **more}
        )
    operation = Site.finish(Operation.objects.get(pk=backup.operation_id), 120)
    assert operation.state == "succeeded", operation.error
    backup.refresh_from_db()
    return backup


def change_manifest(backup: Backup, **changes: object) -> None:
    """Store another manifest, signed as well."""
    manifest = replace(Manifest.from_json(backup.manifest), **changes)  # type: ignore[arg-type]
    writer = storages.storage_of(backup.storage).writer(backup.manifest_key)
    writer.write(manifests.seal(manifest, keys.recipients_of(backup.organization_id), keys.signing_key()))
    writer.commit()


def stored_file(root: Path, backup: Backup) -> Path:
    (found,) = [path for path in root.rglob(f"*{backup.pk}*/{backup.attempt}") if path.is_file()]
    found.chmod(0o600)
    return found


def damage(root: Path, backup: Backup, at: int = -100) -> None:
    """Flip a bit of what is stored."""
    path = stored_file(root, backup)
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
