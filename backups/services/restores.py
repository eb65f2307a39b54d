"""A person has a backup restored: first what that will mean, then the operation; and the way back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.db import transaction

from accounts.models import Organization
from accounts.permissions import Capability, Principal, require
from accounts.services import audit
from backups.models import Backup, Restore, RestoreStatus, RestoreTarget
from backups.operations import restore_new, restoring
from backups.operations.queueing import subject_of
from backups.services import parts
from backups.services.preflight import (
    TABLES_SHOWN,
    Preflight,
    TableChange,
    Wanted,
    look,
    look_outside,
    refuse_unknown_version,
)
from novastack.common.clock import now
from novastack.common.errors import ActionNotAllowed, Conflict, Invalid, NotFound
from projects import domain, registry
from projects.domain import Selection
from projects.models import LockMode, Operation, Placement, Plan, Project, Region
from projects.operations import catalogue
from projects.operations.queue import also_hold
from projects.services import validation
from projects.services.actions import check_confirm, lock_project, refuse_protected
from projects.services.creation import ProjectRequest, project_create


class UndoNotPossible(Conflict):
    code, title = "undo_not_possible", "This restore can't be undone"


def restore_preflight(
    principal: Principal,
    backup: Backup,
    *,
    target: str,
    name: str = "",
    project: Project | None = None,
    region: str | None = None,
    plan: str | None = None,
    placement: str | None = None,
    version: str | None = None,
    tables: Sequence[str] = (),
    schemas: Sequence[str] = (),
) -> Preflight:
    """What it would mean, and what stands in the way (`problems`). The storage is asked, which may take seconds; counts of
    the live database are those that its last look left. Raises `Invalid` with the field, `NotFound`, `PermissionDenied`."""
    part = bool(tables or schemas)
    wanted = _wanted(principal, backup, target, name, project, region, plan, placement, version, part=part)
    organization = Organization.objects.get(pk=backup.organization_id)
    seen, found = look(backup, wanted, organization)
    if part:
        chosen = parts.selection(backup, tables, schemas)
        found = parts.obstacles(found) if wanted.project is not None else found
        _say_part(seen, chosen, backup)
    if backup.usable:
        found += look_outside(seen, backup)
    seen.problems = [{"code": problem.code, "detail": str(problem.detail)} for problem in found]
    return seen


def restore_create(
    principal: Principal,
    backup: Backup,
    *,
    target: str,
    name: str = "",
    project: Project | None = None,
    confirm: str | None = "",
    region: str | None = None,
    plan: str | None = None,
    placement: str | None = None,
    version: str | None = None,
    tables: Sequence[str] = (),
    schemas: Sequence[str] = (),
    safety_backup: bool = True,
) -> Restore:
    """Begin it. Into a project that lives `confirm` must be its slug; with `tables` or `schemas` only these come, beside what
    the project holds, and nothing needs to be confirmed. Raises what `restore_preflight` finds in its way, as far
    as rows tell; what only the storage knows the operation's first step looks at, before anything is made."""
    part = bool(tables or schemas)
    wanted = _wanted(principal, backup, target, name, project, region, plan, placement, version, part=part)
    if not safety_backup and (part or wanted.project is None):
        told = "Nothing that lives is replaced: no safety backup is taken. Leave it out."
        raise Invalid.field("safety_backup", "not_available", told)
    if wanted.project is not None and not part:
        check_confirm(wanted.project, confirm)
    with transaction.atomic():
        organization = Organization.objects.select_for_update(no_key=True).get(pk=backup.organization_id)
        if part:
            chosen = parts.selection(backup, tables, schemas)
            if wanted.project is None:
                return _into_new(principal, backup, wanted, organization, chosen)
            return _beside(principal, backup, wanted, chosen, organization)
        if wanted.project is not None:
            return _into_project(principal, backup, wanted, organization, safety_backup=safety_backup)
        return _into_new(principal, backup, wanted, organization)


def _wanted(
    principal: Principal, backup: Backup, target: str, name: str, project: Project | None, region: str | None,
    plan: str | None, placement: str | None, version: str | None, *, part: bool = False,
) -> Wanted:  # fmt: skip
    if target not in RestoreTarget.values:
        raise Invalid.field("target", "invalid", f"Use one of: {', '.join(RestoreTarget.values)}.")
    # Who restores reads all that is in it.
    require(principal, backup.organization_id, Capability.PROJECT_VIEW)
    if target == RestoreTarget.NEW_PROJECT:
        require(principal, backup.organization_id, Capability.PROJECT_CREATE)
        return _new(backup, name, region, plan, placement, version)
    _only_for_new(region=region, plan=plan, placement=placement, version=version, name=name or None)
    if target == RestoreTarget.IN_PLACE:
        if project is not None and project.pk != backup.project_uuid:
            raise Invalid.field("project", "invalid", "In place is the project that it was taken of. Leave it out.")
        project = Project.objects.for_principal(principal).filter(pk=backup.project_uuid).first()
        if project is None:
            raise NotFound("The project of this backup is gone: restore it into a new one.")
    elif project is None:
        raise Invalid.field("project", "required", "Name the project that the backup is to go into.")
    elif project.pk == backup.project_uuid:
        target = RestoreTarget.IN_PLACE  # what it is: nothing of it lives beside its source
    if project.organization_id != backup.organization_id:
        raise NotFound.field("project", "There is no such project in the backup's organization.")
    require(principal, project.organization_id, Capability.PROJECT_CHANGE)
    if not part:  # which replaces nothing
        require(principal, project.organization_id, Capability.PROJECT_DELETE)
    if project.recycled_at is not None or project.purging_at is not None or project.ready_at is None:
        raise ActionNotAllowed("Only a project that is ready, and not deleted, can be restored over.")
    return Wanted(target=target, project=project)


def _only_for_new(**given: str | None) -> None:
    for field, value in given.items():
        if value:
            raise Invalid.field(field, "not_available", "This is for `new_project` only. Leave it out.")


def _new(
    backup: Backup, name: str, region: str | None, plan: str | None, placement: str | None, version: str | None
) -> Wanted:
    clean = validation.clean_name(name)
    source = Project.objects.filter(pk=backup.project_uuid).select_related("region", "plan").first()
    places = Region.objects.filter(enabled=True, gone_at=None).exclude(runtime="").order_by("created_at")
    place = places.filter(slug=region).first() if region else None
    if region and place is None:
        raise Invalid.field("region", "unknown", "There is no such available region; see `regions/`.")
    if place is None and source is not None and source.region.available:
        place = source.region
    plans = Plan.objects.filter(enabled=True).order_by("-is_default", "position")
    chosen = plans.filter(slug=plan).first() if plan else None
    if plan and chosen is None:
        raise Invalid.field("plan", "unknown", "There is no such plan; see `plans/`.")
    if chosen is None:
        chosen = source.plan if source is not None and source.plan.enabled else plans.first()
    if placement and placement not in {Placement.DEDICATED, Placement.POOL}:
        raise Invalid.field("placement", "invalid", "Use `dedicated` or `pool`.")
    where = placement or (chosen.placement if chosen is not None else Placement.DEDICATED)
    engine = registry.engine(backup.engine)
    if where == Placement.POOL and domain.Capability.POOL not in engine.capabilities:
        told = f"{engine.title} can't share a server: ask for `dedicated`."
        raise Invalid.field("placement", "not_available", told)
    if version:
        refuse_unknown_version(backup.engine, version)
    return Wanted(
        target=RestoreTarget.NEW_PROJECT, name=clean, region=place or places.first(), plan=chosen, placement=where,
        version=version or _version_for(backup),
    )  # fmt: skip


def _version_for(backup: Backup) -> str:
    """The backup's own version, or where that is offered no more the oldest newer one."""
    offered = catalogue.versions_of(registry.engine(backup.engine)).offered
    if any(each.version == backup.version for each in offered):
        return backup.version
    from backups.operations.restore_sides import is_older

    newer = [each for each in offered if not is_older(each.version, backup.version)]
    return min(newer, key=lambda each: each.sort_key).version if newer else backup.version


def _refuse(found: list[Conflict]) -> None:
    if found:
        raise found[0]


def _row(principal: Principal, backup: Backup, wanted: Wanted, seen: Preflight, **given: Any) -> Restore:
    return Restore.objects.create(
        organization_id=backup.organization_id, backup=backup, backup_uuid=backup.pk, target=wanted.target,
        source_project_uuid=backup.project_uuid, preflight=seen.as_json(), created_by_label=principal.label, **given,
    )  # fmt: skip


def _into_new(
    principal: Principal, backup: Backup, wanted: Wanted, organization: Organization, chosen: Selection | None = None
) -> Restore:
    seen, found = look(backup, wanted, organization)
    _refuse(found)
    if chosen is not None:
        _say_part(seen, chosen, backup)
    told = {"tables": list(chosen.tables), "schemas": list(chosen.schemas)} if chosen is not None else {}
    made: list[Restore] = []
    # As at the source, where that is a name of its own: of some engines a dump names its database.
    called = (backup.manifest.get("database") or {}).get("name") or ""
    own = wanted.placement == Placement.DEDICATED and not called.startswith("tenant_")
    request = ProjectRequest(
        name=wanted.name, database_name=called if own else None, engine=backup.engine, version=wanted.version,
        placement=wanted.placement, region=wanted.region.slug if wanted.region is not None else None,
        plan=wanted.plan.slug if wanted.plan is not None else None, bootstrap_schema=False,
    )  # fmt: skip
    project = project_create(
        principal=principal, organization=organization, request=request, more_steps=restore_new.STEPS,
        before=lambda row: made.append(
            _row(principal, backup, wanted, seen, project_uuid=row.pk, project_name=row.name, selection=told)
        ),
    )  # fmt: skip
    restore = made[0]
    operation = Operation.objects.live().get(project_uuid=project.pk)
    also_hold(operation, subject_of(backup), LockMode.SHARED)
    restore.operation_id = operation.pk
    restore.save(update_fields=["operation_id", "updated_at"])
    _audit(principal, restore, "restore.started", backup)
    return restore


def _say_part(seen: Preflight, chosen: Selection, backup: Backup) -> None:
    """Of what comes alone; nothing is replaced, and nobody is shut out."""
    schemas = set(chosen.schemas)
    mine = [
        each for each in parts.parts_of(backup, Project.objects.filter(pk=backup.project_uuid).first())
        if each.name in chosen.tables or each.schema in schemas
    ]  # fmt: skip
    seen.tables = [TableChange(each.name, None, each.rows) for each in mine[:TABLES_SHOWN]]
    seen.tables_total, seen.rows_in_backup = len(mine), sum(each.rows or 0 for each in mine)
    seen.rows_live = seen.rows_lost = seen.counted_at = None
    seen.confirm, seen.safety_backup, seen.address_changes = "", False, False
    seen.expected_downtime_seconds = seen.kept_hours = 0.0


def _beside(
    principal: Principal, backup: Backup, wanted: Wanted, chosen: Selection, organization: Organization
) -> Restore:
    assert wanted.project is not None  # noqa: S101 - who calls has looked
    seen, found = look(backup, wanted, organization)
    _refuse(parts.obstacles(found))
    _say_part(seen, chosen, backup)
    told = {"tables": list(chosen.tables), "schemas": list(chosen.schemas)}
    row = _row(
        principal,
        backup,
        wanted,
        seen,
        project_uuid=wanted.project.pk,
        project_name=wanted.project.name,
        selection=told,
    )
    parts.begin_beside(principal, backup, wanted, row)
    _audit(principal, row, "restore.started", backup)
    return row


def _into_project(
    principal: Principal, backup: Backup, wanted: Wanted, organization: Organization, *, safety_backup: bool
) -> Restore:
    assert wanted.project is not None  # noqa: S101 - who calls has looked
    project = lock_project(wanted.project)
    refuse_protected(project)
    seen, found = look(backup, Wanted(target=wanted.target, project=project), organization)
    _refuse(found)
    seen.safety_backup = safety_backup
    restore = _row(principal, backup, wanted, seen, project_uuid=project.pk, project_name=project.name)
    operation = restoring.restore_begin(
        restore, backup, project, created_by=principal.user, label=principal.label, safety_backup=safety_backup
    )
    restore.operation_id = operation.pk
    restore.save(update_fields=["operation_id", "updated_at"])
    _audit(principal, restore, "restore.started", backup, **({} if safety_backup else {"safety_backup": False}))
    return restore


@transaction.atomic
def restore_undo(principal: Principal, restore: Restore, *, confirm: str | None = None) -> Restore:
    """Swap the database from before back; what was restored, and written since, is kept aside. Raises `UndoNotPossible`,
    `OperationInProgress`. `confirm`, when it is given, must be the project's slug."""
    project = Project.objects.filter(pk=restore.project_uuid).first() if restore.project_uuid else None
    require(principal, restore.organization_id, Capability.PROJECT_CHANGE)
    require(principal, restore.organization_id, Capability.PROJECT_DELETE)
    if project is None:
        raise UndoNotPossible("The project is gone.")
    if confirm:
        check_confirm(project, confirm)
    project = lock_project(project)
    restore = Restore.objects.select_for_update(of=("self",), no_key=True).get(pk=restore.pk)
    if restore.selection:
        raise UndoNotPossible("It came beside what the project holds: drop what you don't want.")
    if restore.target == RestoreTarget.NEW_PROJECT:
        raise UndoNotPossible("A new project was made: delete that one.")
    if restore.status == RestoreStatus.UNDONE:
        raise UndoNotPossible("It was undone already.")
    if not restore.undoable(now()):
        until = f" It could be until {restore.undo_until:%Y-%m-%d %H:%M} UTC." if restore.undo_until else ""
        raise UndoNotPossible(f"The restore is {restore.get_status_display().lower()}.{until}")
    if project.recycled_at is not None or project.purging_at is not None:
        raise UndoNotPossible("The project is deleted.")
    kept = restoring.kept_of(restore, project)
    if kept is None:
        raise UndoNotPossible("The project has another database since: it was moved, or restored again.")
    refuse_protected(project)
    operation = restoring.undo_begin(restore, project, kept, created_by=principal.user, label=principal.label)
    restore.status, restore.undo_operation_id, restore.error = RestoreStatus.UNDOING, operation.pk, None
    restore.save(update_fields=["status", "undo_operation_id", "error", "updated_at"])
    backup = restore.backup
    _audit(principal, restore, "restore.undo", backup)
    return restore


def _audit(principal: Principal, restore: Restore, action: str, backup: Backup | None, **more: Any) -> None:
    audit.record(
        principal, action, organization_id=restore.organization_id, project_id=restore.project_uuid,
        project_name=restore.project_name, target=restore.project_name,
        data={
            "restore": str(restore.pk), "target": restore.target, "backup": str(backup.pk) if backup else None,
            **({"selection": restore.selection} if restore.selection else {}), **more,
        },
    )  # fmt: skip
