"""What a restore would mean, before anything is done: what fits, what stands in the way, what would be lost."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

from django.db.models import F

from accounts.models import Organization
from backups.models import Backup, BackupStatus
from backups.operations import restore_sides, restore_steps, restoring_data
from backups.operations.restoring_data import BackupCorrupt
from novastack.common.clock import now
from novastack.common.errors import (
    ActionNotAllowed,
    Conflict,
    Invalid,
    NameTaken,
    OperationInProgress,
    QuotaExceeded,
)
from projects import domain, registry
from projects.models import (
    Database,
    DatabaseSlot,
    Operation,
    Placement,
    Plan,
    Project,
    ProjectStatus,
    Region,
    ServerKind,
    TableSnapshot,
)
from projects.operations import base, catalogue
from projects.operations.base import StepFailed
from projects.services import quotas
from projects.services.creation import name_is_free
from projects.services.moving import NoRoomThere, PlanTooSmall

# What a restore takes when it was never measured: as for moves, rounded against us.
FIXED_SECONDS = 12.0
BYTES_PER_SECOND = 8 << 20
SWAP_SECONDS = 4.0
ROOM_FACTOR = 1.2  # of the database's size: what sorting for indexes, and the log, take meanwhile
TABLES_SHOWN = 200
MIB = 1 << 20
MOST_COPIES = 3  # databases from before that a project may have: they count for no quota


class BackupNotSupported(Conflict):
    code, title = "backup_not_supported", "Backups of this engine are not supported yet"


class BackupNotUsable(Conflict):
    code, title = "backup_not_usable", "There is nothing to restore from"


class BackupCorrupted(Conflict):
    code, title = "backup_corrupt", "The backup is damaged"


class VersionTooOld(Conflict):
    code, title = "version_too_old", "The server's version is older than the backup's"


class EngineDiffers(Conflict):
    code, title = "engine_differs", "The backup is of another engine"


class TooManyCopies(Conflict):
    code, title = "too_many_copies", "Too many databases from before are kept"


class ObjectMissing(Conflict):
    code, title = "object_missing", "The storage has no such object"


@dataclass(frozen=True, slots=True)
class Wanted:
    """Where a restore is to go. Of a new project `name`, `region` and `plan`; else `project`."""

    target: str
    project: Project | None = None
    name: str = ""
    region: Region | None = None
    plan: Plan | None = None
    version: str = ""
    placement: str = Placement.DEDICATED

    @property
    def storage_bytes(self) -> int:
        if self.project is not None:
            return self.project.storage_bytes
        return self.plan.storage_bytes if self.plan is not None else 0

    @property
    def place(self) -> Region | None:
        return self.project.region if self.project is not None else self.region

    @property
    def pooled(self) -> bool:
        return (self.project.placement if self.project is not None else self.placement) == Placement.POOL


@dataclass(slots=True)
class Check:
    """One thing that was looked at, for people."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True, slots=True)
class TableChange:
    """Rows of one table: an estimate of now, and what the backup holds. None: not known, or not there."""

    name: str
    live_rows: int | None
    backup_rows: int | None

    @property
    def change_rows(self) -> int | None:
        """How many more there would be after the restore; negative: lost."""
        if self.live_rows is None and self.backup_rows is None:
            return None
        return (self.backup_rows or 0) - (self.live_rows or 0)


@dataclass(slots=True)
class Preflight:
    """Bytes, seconds and counts as named. `problems` stand in the way, as `{code, detail}`: empty, it can begin. Counts of
    the live database are its engine's own estimates, as of `counted_at`."""

    target: str
    engine: str
    backup_version: str
    target_version: str
    database_bytes: int | None
    storage_limit_bytes: int
    disk_free_bytes: int | None
    checks: list[Check] = field(default_factory=list)
    problems: list[dict[str, str]] = field(default_factory=list)
    tables: list[TableChange] = field(default_factory=list)
    tables_total: int = 0
    counted_at: datetime | None = None
    rows_live: int | None = None
    rows_in_backup: int | None = None
    rows_lost: int | None = None
    open_connections: int | None = None
    safety_backup: bool = False
    address_changes: bool = False
    confirm: str = ""
    expected_seconds: float = 0.0
    measured: bool = False
    expected_downtime_seconds: float = 0.0
    kept_hours: float = 0.0
    checked_at: datetime | None = None

    @property
    def ready(self) -> bool:
        return not self.problems

    def as_json(self) -> dict[str, Any]:
        body = asdict(self)
        body["tables"] = [{**asdict(row), "change_rows": row.change_rows} for row in self.tables]
        body["estimates"] = True
        for name in ("counted_at", "checked_at"):
            body[name] = body[name].isoformat().replace("+00:00", "Z") if body[name] is not None else None
        return body


def look(backup: Backup, wanted: Wanted, organization: Organization) -> tuple[Preflight, list[Conflict]]:
    """By rows alone: no storage and no server is asked."""
    seen = Preflight(
        target=wanted.target, engine=backup.engine, backup_version=backup.version,
        target_version=wanted.project.version if wanted.project is not None else wanted.version,
        database_bytes=backup.database_bytes, storage_limit_bytes=wanted.storage_bytes,
        disk_free_bytes=wanted.place.disk.get("free_bytes") if wanted.place is not None else None,
        rows_in_backup=backup.rows, checked_at=now(),
    )  # fmt: skip
    found = [*_about_backup(backup), *_about_place(backup, wanted, seen), *_about_target(backup, wanted, organization)]
    _duration(seen, backup)
    if wanted.project is not None:
        _about_live(seen, backup, wanted.project)
    return seen, found


def _about_backup(backup: Backup) -> list[Conflict]:
    found: list[Conflict] = []
    if not restore_sides.supported(backup.engine):
        found.append(BackupNotSupported(f"{registry.engine(backup.engine).title} can't be restored yet."))
    if backup.status == BackupStatus.CORRUPT:
        found.append(BackupCorrupted("Its content is not what was backed up; choose another one."))
    elif not backup.usable:
        found.append(
            BackupNotUsable(f"The backup is {backup.get_status_display().lower()}; only a stored one has data.")
        )
    if not backup.trusted:
        found.append(
            BackupNotUsable("It came from outside, without a signature that is known here: it can't be restored.")
        )
    return found


def _about_place(backup: Backup, wanted: Wanted, seen: Preflight) -> list[Conflict]:
    found: list[Conflict] = []
    engine = wanted.project.engine if wanted.project is not None else backup.engine
    if engine != backup.engine:
        found.append(EngineDiffers(f"It is a backup of {backup.engine}, and the project is {engine}."))
    elif seen.target_version and restore_sides.is_older(seen.target_version, backup.version):
        found.append(
            VersionTooOld(f"A dump of version {backup.version} can't go into the older version {seen.target_version}.")
        )
    size = backup.database_bytes
    if size is not None and wanted.storage_bytes and size > wanted.storage_bytes:
        told = f"It has {size / MIB:.0f} MiB when restored; the plan allows {wanted.storage_bytes / MIB:.0f} MiB."
        found.append(PlanTooSmall(told))
    place = wanted.place
    if place is not None:
        free = place.disk.get("free_bytes")
        if not place.has_room:
            found.append(NoRoomThere(f"The disk of {place.name} is {place.disk_used_percent:.0f} % full."))
        elif free is not None and size is not None and size * ROOM_FACTOR > free:
            found.append(
                NoRoomThere(f"{place.name} has {free / MIB:.0f} MiB of disk left; the restore needs about"
                            f" {size * ROOM_FACTOR / MIB:.0f} MiB.")
            )  # fmt: skip
    return found


def _about_target(backup: Backup, wanted: Wanted, organization: Organization) -> list[Conflict]:
    found: list[Conflict] = []
    if wanted.project is None:
        plan = wanted.plan
        if wanted.name and not name_is_free(organization, wanted.name):
            found.append(NameTaken(f"A project named “{wanted.name}” exists; choose another name."))
        if plan is not None:
            memory = 0 if wanted.pooled else plan.memory_bytes
            found += _quota(organization, projects=1, memory_bytes=memory, storage_bytes=plan.storage_bytes)
        return found
    project = wanted.project
    busy = Operation.objects.live().filter(project_uuid=project.pk).first()
    if busy is not None:
        title = base.titles().get(busy.kind, busy.kind)
        found.append(OperationInProgress(f"“{title}” is running; wait for it or cancel it."))
    elif project.status not in {ProjectStatus.RUNNING, ProjectStatus.UNHEALTHY}:
        found.append(
            ActionNotAllowed(
                f"Only a project that runs can be restored over; it is {project.get_status_display().lower()}."
            )
        )
    kept = Database.objects.filter(project=project, slot=DatabaseSlot.PREVIOUS, drop_due_at=None)
    until = list(kept.order_by(F("keep_until").asc(nulls_last=True)).values_list("keep_until", flat=True))
    if len(until) >= MOST_COPIES:
        first = f"The oldest goes after {until[0]:%Y-%m-%d %H:%M} UTC" if until[0] else "The oldest has no end yet"
        found.append(
            TooManyCopies(
                f"The project keeps {len(until)} databases of before restores or moves, and at most {MOST_COPIES} may be"
                f" kept. {first}; then you can restore again. A restore into a new project works now."
            )
        )
    return found  # the safety backup is outside quotas


def _quota(organization: Organization, **more: int) -> list[Conflict]:
    try:
        quotas.check(organization, **more)
    except QuotaExceeded as error:
        return [error]
    return []


def _duration(seen: Preflight, backup: Backup) -> None:
    seen.measured = backup.rto_seconds is not None
    seen.expected_seconds = round(
        backup.rto_seconds
        if backup.rto_seconds is not None
        else FIXED_SECONDS + (backup.database_bytes or 0) / BYTES_PER_SECOND, 1
    )  # fmt: skip


def _about_live(seen: Preflight, backup: Backup, project: Project) -> None:
    current = Database.objects.filter(project=project, slot=DatabaseSlot.CURRENT).select_related("server").first()
    seen.confirm, seen.safety_backup = project.slug, True
    seen.kept_hours = restore_steps.keep_hours()
    seen.open_connections = project.connections
    seen.expected_downtime_seconds = SWAP_SECONDS
    # A server of its own takes over the port. On a pool the copy gets another pool, whose address is another one.
    seen.address_changes = current is not None and current.server.kind == ServerKind.POOL
    snapshot = TableSnapshot.objects.filter(project=project).first()
    mine = rows_of(backup)
    if snapshot is None or snapshot.at is None:
        seen.tables = [TableChange(name, None, rows) for name, rows in list(mine.items())[:TABLES_SHOWN]]
        seen.tables_total = len(mine)
        return
    live = {str(name): rows for name, rows, _size in snapshot.tables}
    whole = snapshot.total <= len(live)  # else the smaller tables of now were not counted
    names = [*live, *(name for name in mine if name not in live)]
    changes = [TableChange(name, live.get(name), mine.get(name)) for name in names if name in live or whole]
    changes.sort(key=lambda row: -abs(row.change_rows or 0))
    seen.tables, seen.tables_total = changes[:TABLES_SHOWN], max(len(names), snapshot.total)
    seen.counted_at = snapshot.at
    seen.rows_live = sum(rows or 0 for rows in live.values())
    seen.rows_lost = sum(-row.change_rows for row in changes if row.change_rows is not None and row.change_rows < 0)


def rows_of(backup: Backup) -> dict[str, int]:
    """Table → rows, as the backup's row says; the largest first. Tables of `public` without the schema, as counts of live
    databases have them."""
    tables = restore_sides.tables_of(backup)
    found = {name.removeprefix("public."): rows for name, rows in tables.items()}
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))


def look_outside(seen: Preflight, backup: Backup) -> list[Conflict]:
    """What only the storage can tell: the object is there, whole as far as its size says, and its manifest is ours. Adds a
    check for each. Seconds may pass."""
    try:
        with restoring_data.storage_errors():
            storage = restoring_data.storages.storage_of(backup.storage)
        manifest = restoring_data.read_manifest(backup, storage)
        seen.checks.append(Check("manifest", True, "Signed by this installation, and of this backup."))
        restoring_data.check_size(backup, manifest, storage)
    except BackupCorrupt as error:
        seen.checks.append(Check("object", False, error.detail))
        return [BackupCorrupted(error.detail)]
    except StepFailed as error:
        seen.checks.append(Check("object", False, error.detail))
        if error.code == "object_missing":
            return [ObjectMissing(error.detail)]
        return [Conflict(error.detail, code=error.code)]
    seen.checks.append(Check("object", True, "It is there, and has the size that the manifest says."))
    return []


def refuse_unknown_version(engine_name: str, version: str) -> None:
    """`Invalid` with the field when new projects can't have that version."""
    engine = registry.engine(engine_name)
    if version not in {offered.version for offered in catalogue.versions_of(engine).offered}:
        raise Invalid.field("version", "unknown", f"{engine.title} {version} is not offered to new projects.")


def supports(engine: str) -> bool:
    return domain.Capability.COPY in registry.engine(engine).capabilities
