"""What the steps of restores share: the rows, the names that roles have meanwhile, and the proof."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from django.db import transaction

from backups.manifest import Manifest
from backups.models import Backup, Restore, RestoreStatus, RestoreTarget
from backups.operations import comparing, restoring_data
from backups.operations.large_rows import memory_told
from backups.operations.queueing import subject_of
from novastack.common.clock import now
from novastack.common.errors import OperationInProgress
from projects import domain, registry
from projects.engines.base import Engine
from projects.models import LockMode, Operation, OperationState, Project, RoleKind
from projects.operations import locks, wiring
from projects.operations.base import StepFailed, Wait
from projects.operations.context import Context
from projects.operations.move_copying import watched
from projects.operations.move_sides import quiet
from projects.operations.queue import also_hold

DIFFERENCES_SHOWN = 5
MIB = 1 << 20
NOTES_KEPT = 50  # of a part of a backup
LINE_CHARACTERS = 400  # of names: `Context.say` keeps 500 of a line
KINDS = (RoleKind.OWNER, RoleKind.GROUP, RoleKind.LOGIN, RoleKind.CONTROL)


# --- rows ---------------------------------------------------------------------------------------------------------------
def restore_of(operation: Operation) -> Restore:
    """The restore that an operation is about."""
    return Restore.objects.select_related("backup__storage", "safety_backup").get(pk=operation.params["restore"])


def restore_for(project: Project) -> Restore | None:
    """The restore that a new project was made by, until it has succeeded."""
    if project.bootstrap_schema:  # asked about every project: these have their tables from a backup
        return None
    rows = Restore.objects.filter(project_uuid=project.pk, target=RestoreTarget.NEW_PROJECT)
    return rows.exclude(status=RestoreStatus.SUCCEEDED).select_related("backup__storage").first()


def backup_of(restore: Restore) -> Backup:
    """What is to be restored; `StepFailed` when it is gone, or no good any more."""
    backup = restore.backup
    if backup is None:
        raise StepFailed("backup_gone", "The backup was removed.", retryable=False)
    if not backup.usable:
        raise StepFailed("backup_not_usable", f"The backup is {backup.get_status_display().lower()}.", retryable=False)
    return backup


def hold(ctx: Context, backup: Backup) -> None:
    """Nobody removes the backup while this operation lives. It was held when that was recorded; a retry holds it anew."""
    subject = subject_of(backup)
    if ctx.operation.locks.filter(subject=subject).exists():
        return
    try:
        with transaction.atomic():
            # Project, then subjects, then the operation: the order of everybody.
            list(
                Project.objects.select_for_update(of=("self",), no_key=True)
                .filter(pk=ctx.operation.project_key)
                .values_list("pk")
            )
            locks.lock_subject(subject)
            with ctx.fenced():
                also_hold(ctx.operation, subject, LockMode.SHARED)
    except OperationInProgress as error:
        raise Wait(f"The backup is in use: {error.detail}", seconds=5) from None


def begun(ctx: Context, restore: Restore) -> None:
    """From here on it shows as running."""
    with ctx.fenced():
        Restore.objects.filter(pk=restore.pk).update(
            status=RestoreStatus.RUNNING, error=None, finished_at=None, operation_id=ctx.operation.pk,
            started_at=restore.started_at or now(),
        )  # fmt: skip


def ended(operation: Operation, restore_id: Any) -> None:
    """What the end of a failed operation means for the restore; rows only."""
    cancelled = operation.state == OperationState.CANCELLED
    Restore.objects.filter(pk=restore_id).exclude(status=RestoreStatus.SUCCEEDED).update(
        status=RestoreStatus.CANCELLED if cancelled else RestoreStatus.FAILED, error=operation.error, finished_at=now(),
        undo_until=None,
    )  # fmt: skip


# --- what the backup says -----------------------------------------------------------------------------------------------
def version_numbers(version: str) -> tuple[int, ...]:
    """`17.4` → (17, 4), as far as it is numbers."""
    numbers = []
    for part in version.split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)


def is_older(server: str, dumped: str) -> bool:
    """Whether a server of the version `server` is of an older line than the one that was dumped: dumps go up, not down."""
    mine, theirs = version_numbers(server), version_numbers(dumped)
    shared = min(len(mine), len(theirs))
    return mine[:shared] < theirs[:shared]


def checked_manifest(ctx: Context, backup: Backup, *, version: str, storage_bytes: int) -> Manifest:
    """The signed manifest, after all that can be known before anything is made: the object is there and has its size,
    fits engine and version, and the room that there is."""
    with restoring_data.storage_errors():
        storage = restoring_data.storages.storage_of(backup.storage)
    manifest = restoring_data.read_manifest(backup, storage)
    restoring_data.check_size(backup, manifest, storage)
    if manifest.engine != ctx.project.engine:
        raise StepFailed("engine_differs", f"It is a backup of {manifest.engine}.", retryable=False)
    if is_older(version, manifest.version):
        told = f"A dump of version {manifest.version} can't go into the older version {version}."
        raise StepFailed("version_too_old", told, retryable=False)
    size = int(manifest.database.get("bytes") or 0)
    if storage_bytes and size > storage_bytes:
        told = f"The backup has {size / MIB:.0f} MiB when restored; the project may have {storage_bytes / MIB:.0f} MiB."
        raise StepFailed("plan_too_small", told, retryable=False)
    return manifest


def called(manifest: Manifest) -> dict[str, str]:
    """Kind of role → what it is called in the dump, where rights there name them: the copy's roles have these names until
    it is proven. Empty: dumps of this engine name none."""
    if not registry.engine(manifest.engine).dumps_name_roles:
        return {}
    return {str(kind): str(manifest.names[kind]) for kind in KINDS}


def selection_of(restore: Restore) -> domain.Selection:
    """Which part of the backup; empty: all of it."""
    told = restore.selection
    return domain.Selection(tuple(told.get("tables", ())), tuple(told.get("schemas", ())))


def row_names(backup: Backup) -> list[str]:
    """The same names from the backup's row: what places are chosen by."""
    if not registry.engine(backup.engine).dumps_name_roles:
        return []
    names = backup.manifest.get("names") or {}
    return [str(names[kind]) for kind in KINDS if names.get(kind)]


def tables_of(backup: Backup) -> dict[str, int]:
    """Table → rows, as the backup's row says it; empty when that is not known."""
    tables = (backup.manifest.get("contents") or {}).get("tables") or {}
    return {str(name): int(told[0] if isinstance(told, list) else told) for name, told in tables.items()}


def wrong_in(
    manifest: Manifest, engine: Engine, tables: Mapping[str, str], found: Mapping[str, domain.TableContent]
) -> list[str]:
    """Tables of a part (by what they are called in the backup → now) that are not what the manifest says; the values too,
    where this engine reads them as manifests have them."""
    assert manifest.contents is not None  # noqa: S101 - it was compared with as a whole
    wrong = []
    for before, after in tables.items():
        wanted, content = manifest.contents.tables.get(before), found.get(after)
        same = wanted is not None and content is not None and wanted.rows == content.rows
        if not same or (engine.contents_as_backed_up and wanted != content):
            wrong.append(before)
    return sorted(wrong)


# --- the content --------------------------------------------------------------------------------------------------------
def close(side: Context) -> None:
    """Nobody of the tenant's gets in before the copy is proven, and nothing in it works by itself."""
    side.guard()
    with wiring.admin_session(side.engine, side.server) as admin:
        admin.lock_tenant(side.names, locked=True)
        quiet(side, admin, side.names, quiet=True)


def empty_again(ctx: Context, side: Context) -> None:
    """The copy's database, empty and closed; what an attempt before left in it goes."""
    login, control = side.role(RoleKind.LOGIN), side.role(RoleKind.CONTROL)
    if login.secret is None or control.secret is None:
        raise StepFailed("internal_error", "The roles have no passwords.", retryable=False)
    names = side.names
    ctx.guard()
    with wiring.admin_session(ctx.engine, side.server) as admin:
        admin.drop_tenant(names)
        admin.create_tenant(names, login_password=login.secret.open(), control_password=control.secret.open())
        admin.lock_tenant(names, locked=True)
        quiet(side, admin, names, quiet=True)


def fill(ctx: Context, side: Context, backup: Backup) -> None:
    """The backup's content into the side's database. Done again, it begins with an empty one."""
    if ctx.row.data.get("begun"):
        empty_again(ctx, side)
    else:
        close(side)
    ctx.record(begun=True)
    pulse = watched(ctx, lambda so_far: ctx.record(moved=so_far))
    with memory_told(side, backup):
        done = restoring_data.restore_into(side, side.names, backup, stem=str(ctx.operation.pk), pulse=pulse)
    ctx.record(bytes=done.dump_bytes, seconds=round(done.seconds, 2))
    ctx.explain(f"{done.dump_bytes / MIB:.1f} MiB in {done.seconds:.1f} s")


def prove(ctx: Context, side: Context, backup: Backup) -> None:
    """All that came about, read in the same way as when the backup was taken: no row or object may differ. A server of a
    newer line spells some things in other words: there rows, large objects and sequences' values must be equal, and the
    rest is told."""
    manifest = restoring_data.read_manifest(backup)
    pulse = watched(ctx, lambda _moved: None)
    found = comparing.contents(side, stem=str(ctx.operation.pk), pulse=pulse)
    wanted = manifest.contents
    if wanted is None:
        raise StepFailed("restore_differs", "The manifest does not say what the backup holds.", retryable=False)
    remarks = wanted.remarks(found)
    newer = is_older(manifest.version, side.server.version)
    wrong = wanted.differences(found)
    if newer:
        respelled, wrong = wrong, wanted.data.differences(found.data)
        for line in [line for line in respelled if line not in wrong][:20]:
            ctx.say(f"After the upgrade: {line}", level="warning")
    if differences := [*wrong, *comparing.around_differences(side, manifest)]:
        for line in differences[:20]:
            ctx.say(line, level="error")
        shown = "; ".join(differences[:DIFFERENCES_SHOWN])
        more = f" and {len(differences) - DIFFERENCES_SHOWN} more" if len(differences) > DIFFERENCES_SHOWN else ""
        raise StepFailed(
            "restore_differs", f"What was restored is not what was backed up: {shown}{more}.", retryable=False
        )
    for line in remarks[:20]:
        ctx.say(line, level="warning")
    ctx.record(tables=len(wanted.tables), rows=wanted.rows, facts=len(wanted.facts))
    told = "" if newer else f" and {len(wanted.facts)} facts"
    ctx.explain(f"{wanted.rows} rows of {len(wanted.tables)} tables{told} are what was backed up")


def rest(ctx: Context, side: Context) -> None:
    """Of a copy beside what lives nothing acts by itself before somebody wants it to (rule 26): what is switched off is
    named. To be called when it was compared. All are named before the first of them is switched off, since an attempt
    after this one finds only those that still act."""
    ctx.guard()
    with wiring.admin_session(side.engine, side.server) as admin:
        known = list(ctx.row.data.get("resting", []))
        events = admin.events_of(side.names)
        if new := [event for event in events if event not in known]:
            for line in _lines(new):  # cut short in here they are said again, which is better than not at all
                ctx.say(f"Scheduled events came disabled, since their source may run them too: {line}", level="warning")
            ctx.record(resting=[*known, *new])
        ctx.guard()
        admin.rest_events(side.names, events)


def _lines(names: Sequence[str]) -> list[str]:
    """All of them, in as many lines as that takes; none is cut."""
    lines = [names[0]]
    for name in names[1:]:
        if len(lines[-1]) + len(name) + 2 <= LINE_CHARACTERS:
            lines[-1] += f", {name}"
        else:
            lines.append(name)
    return lines


def names_as(names: domain.TenantNames, other: Mapping[str, str]) -> domain.TenantNames:
    return replace(
        names, owner=other[RoleKind.OWNER], group=other[RoleKind.GROUP], login=other[RoleKind.LOGIN],
        control=other[RoleKind.CONTROL],
    )  # fmt: skip


def supported(engine: str) -> bool:
    return domain.Capability.COPY in registry.engine(engine).capabilities
