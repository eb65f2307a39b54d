"""Some tables or schemas of a backup as SQL, for who may have their rows."""

from __future__ import annotations

from collections.abc import Sequence

from accounts.permissions import Capability, Principal, require
from backups.models import Backup
from backups.services import downloads
from backups.services.backups import backup_download
from backups.services.downloads import Download
from backups.services.parts import selection, supported
from novastack.common.errors import ActionNotAllowed, Invalid
from projects.domain import Selection


def sql_download(
    principal: Principal, backup: Backup, tables: Sequence[str], schemas: Sequence[str], *, packed: bool
) -> tuple[Download, str]:
    """And what the file is called. `tables`: as the manifest names them, or without `public`; or whole `schemas`. Put down as a
    download. Raises `PermissionDenied`, `ActionNotAllowed`, `Invalid` with the field, and what `downloads.sql` raises."""
    chosen = sql_choice(principal, backup, tables, schemas)
    download = backup_download(
        principal, backup, lambda: downloads.sql(backup, chosen, packed=packed), decrypted=True, chosen=chosen
    )  # fmt: skip
    return download, downloads.name_of(backup, ".sql.zst" if packed else ".sql")


def sql_choice(principal: Principal, backup: Backup, tables: Sequence[str], schemas: Sequence[str]) -> Selection:
    """By their whole names, if they may be downloaded, as far as that is known before the backup is read."""
    require(principal, backup.organization_id, Capability.CONNECT)
    if not backup.usable:
        raise ActionNotAllowed("There is nothing to download.")
    if not supported(backup.engine):
        raise Invalid.field("tables", "not_available", "Backups of this product hold no SQL: download all of it.")
    if not tables and not schemas:
        raise Invalid.field("tables", "required", "Choose a table first.")
    return selection(backup, tables, schemas)
