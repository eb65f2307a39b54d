"""A new install can take its first backup at once: one storage for everybody, on this machine."""

from __future__ import annotations

from pathlib import Path

import structlog
from django.conf import settings
from django.db import IntegrityError

from backups.models import StorageKind, StorageTarget
from backups.operations import storages
from backups.storage.base import StorageError
from novastack.common.models import Install

log = structlog.get_logger(__name__)
NAME = "this-machine"


def storage_prepare() -> StorageTarget | None:
    """Once per install; what an operator removes stays removed. A start does not fail for want of a folder."""
    root = settings.NOVASTACK_BACKUP_ROOT
    if not root or Install.load().notes.get("storage_made") or StorageTarget.objects.exists():
        return None
    try:
        if not settings.PRODUCTION:  # there it is mounted, or missing
            Path(root).mkdir(mode=0o700, parents=True, exist_ok=True)
        target = StorageTarget(name=NAME, kind=StorageKind.FILESYSTEM, config={"path": NAME}, is_default=True)
        checks = storages.tried(target)
        if not target.test_ok:
            log.warning("no storage for backups yet", reason=checks[-1].detail)
            return None
        storages.claim(target)
        target.save()
    except (OSError, StorageError) as error:
        log.warning("no storage for backups yet", reason=str(error))
        return None
    except IntegrityError:  # two start at once
        return None
    Install.merge_notes(storage_made=True)
    return target
