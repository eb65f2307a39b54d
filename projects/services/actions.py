"""Actions on a project and on operations. Each records an operation; none touches a runtime."""

from __future__ import annotations

from typing import Any

from django.db import transaction

from accounts.models import Organization
from accounts.permissions import Capability, Principal, require
from accounts.services import audit
from novastack.common.clock import now
from novastack.common.errors import (
    ActionNotAllowed,
    ConfirmMismatch,
    ConfirmRequired,
    Conflict,
    Invalid,
    NameTaken,
    NotFound,
)
from projects import domain, registry
from projects.models import DesiredStatus, Operation, OperationState, Placement, Project, ProjectService, ProjectStatus
from projects.operations import base, provision, removal, status
from projects.operations.cancelling import is_committed, of_a_cancellable_kind
from projects.operations.queue import hint_on_commit, operation_create
from projects.operations.registration import new_generation
from projects.services import quotas, validation
from projects.services.creation import name_is_free

S = ProjectStatus
# action → the statuses in which it makes sense, and what to say otherwise
ALLOWED: dict[str, tuple[set[str], str]] = {
    "start": ({S.STOPPED, S.FAILED, S.NOT_AVAILABLE}, "Only a stopped project can be started."),
    "stop": ({S.RUNNING, S.UNHEALTHY, S.STARTING, S.FAILED, S.NOT_AVAILABLE}, "Only a running project can be stopped."),
    "restart": ({S.RUNNING, S.UNHEALTHY, S.STARTING, S.NOT_AVAILABLE}, "Only a running project can be restarted."),
    "rotate_password": ({S.RUNNING, S.UNHEALTHY}, "The password can be rotated while the project runs."),
    "undelete": ({S.RECYCLED}, "Only a project in the recycle bin can be undeleted."),
    "retry": ({S.FAILED}, "Only a failed project can be retried."),
}
ACTIONS = tuple(ALLOWED)
RESTART_ON_POOL = (
    "The project shares its server with others, so that it can't be restarted."
    " Stopping and starting it ends its sessions."
)


class DeletionProtected(Conflict):
    code, title = "deletion_protected", "Deletion protection is on"


def lock_project(project: Project) -> Project:
    """The project's row, locked and fresh, with its organization, plan and region. In a transaction. Raises `NotFound`."""
    found: Project = Project.objects.get_locked(project.pk)
    return found


def allowed_actions(project: Project) -> set[str]:
    """What `project_action` would accept in the present status."""
    found = {action for action, (statuses, _) in ALLOWED.items() if project.status in statuses}
    if project.placement == Placement.POOL:
        found.discard("restart")
    if project.ready_at is None:
        found -= {"start", "stop", "restart", "rotate_password"}
    if project.purging_at is not None:
        found.clear()
    # “Starting” is also what nobody has logged in to yet, perhaps because no monitoring worker lives: then people may act.
    # While an operation starts it, it is not theirs to interrupt.
    if project.status == S.STARTING and found and _held(project):
        found -= {"stop", "restart"}
    return found


def _held(project: Project) -> bool:
    return Operation.objects.live().holding().filter(project_uuid=project.pk).exists()


@transaction.atomic
def project_action(
    *, principal: Principal, project: Project, action: str, new_name: str | None = None, end_sessions: bool = False
) -> Operation:
    """Start, stop, restart, rotate_password, undelete, retry. Raises `ActionNotAllowed`, `OperationInProgress`."""
    needed = Capability.PROJECT_DELETE if action == "undelete" else Capability.PROJECT_ACT
    require(principal, project.organization_id, needed)
    if action not in ALLOWED:
        raise ActionNotAllowed(f"There is no action “{action[:40]}”; use one of: {', '.join(ACTIONS)}.")
    if action == "undelete":  # its quota is counted under this lock; organization before project, as everywhere
        Organization.objects.select_for_update(no_key=True).get(pk=project.organization_id)
    project = lock_project(project)
    if action == "restart" and project.placement == Placement.POOL:
        raise ActionNotAllowed(RESTART_ON_POOL)
    status.refresh([project.pk])
    project.refresh_from_db(fields=["status", "status_detail"])
    if action not in allowed_actions(project):
        raise ActionNotAllowed(f"{ALLOWED[action][1]} It is {project.get_status_display().lower()} now.")
    kind, params = action, {}
    if action == "undelete":
        kind = _prepare_undelete(project, new_name)
    elif action == "retry":
        kind = _prepare_retry(project)
    elif action == "rotate_password":
        if end_sessions and domain.Capability.END_SESSIONS not in registry.engine(project.engine).capabilities:
            title = registry.engine(project.engine).title
            raise Invalid.field(
                "end_sessions", "not_available", f"{title} can't end sessions: restart the database after."
            )
        params = {"end_sessions": end_sessions}
    if kind in {"start", "restart"}:
        project.desired_status = DesiredStatus.RUNNING
    elif kind == "stop":
        project.desired_status = DesiredStatus.STOPPED
    project.save(update_fields=["desired_status", "updated_at"])
    operation = operation_create(
        project=project, kind=kind, params=params, created_by=principal.user, created_by_label=principal.label,
        optional_steps=_provision_again(project) if kind == "provision" else (),
    )  # fmt: skip
    _audit(principal, project, f"project.{action}", operation)
    return operation


def _prepare_retry(project: Project) -> str:
    """A failed provision is done again from the start; anything else is brought to what is desired."""
    if project.ready_at is None:
        return "provision"
    return "stop" if project.desired_status == DesiredStatus.STOPPED else "start"


def _provision_again(project: Project) -> set[str]:
    """All that was asked for with the project is asked for again; services that were told to forget it are told anew."""
    for name in list(ProjectService.objects.filter(project=project).values_list("service_type", flat=True)):
        new_generation(project, name)
    return provision.wanted_steps(project)


def _prepare_undelete(project: Project, new_name: str | None) -> str:
    organization = project.organization
    if new_name is not None:
        project.name = validation.clean_name(new_name)
    if not name_is_free(organization, project.name, besides=project.pk):
        raise NameTaken(f"The name “{project.name}” was given to another project since; give a new one (`name`).")
    own_memory = 0 if project.placement == Placement.POOL else project.memory_bytes
    quotas.check(organization, projects=1, memory_bytes=own_memory)
    project.recycled_at = project.recycle_until = None
    project.desired_status = DesiredStatus.RUNNING
    project.save(update_fields=["name", "recycled_at", "recycle_until", "desired_status", "updated_at"])
    return "undelete" if project.ready_at is not None else "provision"


def check_confirm(project: Project, confirm: str | None) -> None:
    """The typed slug (rule 43)."""
    if not confirm:
        raise ConfirmRequired(f"Type the project's slug, “{project.slug}”, to confirm.")
    if confirm != project.slug:
        raise ConfirmMismatch(f"That is not the slug of this project; it is “{project.slug}”.")


@transaction.atomic
def project_delete(*, principal: Principal, project: Project, final_backup: bool | None = None) -> Operation:
    """Into the recycle bin. Always accepted unless protected: a running operation is asked to cancel (rule 5). A final
    backup is taken and verified first, where one can be; `final_backup=False` waives it, also of a deletion that is under
    way; with `True` it raises where none can be taken."""
    require(principal, project.organization_id, Capability.PROJECT_DELETE)
    project = lock_project(project)
    if final_backup is False and (waived := removal.waive_final(project)) is not None:
        _audit(principal, project, "project.final_backup_waived", waived)
        return waived
    if _is_deleted(project):
        raise ActionNotAllowed("The project is deleted already; see the recycle bin.")
    refuse_protected(project)
    operation = removal.deletion_create(
        project, "delete", final_backup=final_backup, created_by=principal.user, created_by_label=principal.label
    )
    project.desired_status = DesiredStatus.RECYCLED
    project.save(update_fields=["desired_status", "updated_at"])
    status.refresh([project.pk])
    _audit(principal, project, "project.deleted", operation)
    return operation


@transaction.atomic
def project_purge(
    *, principal: Principal, project: Project, confirm: str | None, final_backup: bool | None = None
) -> Operation:
    """Server and data for good, also from the recycle bin. Needs the typed slug. The final backup as with
    `project_delete`; what went into the bin with one needs no other."""
    require(principal, project.organization_id, Capability.PROJECT_PURGE)
    check_confirm(project, confirm)
    project = lock_project(project)
    refuse_protected(project)
    waived = removal.waive_final(project) if final_backup is False else None
    operation = removal.purge_begin(
        project, created_by=principal.user, created_by_label=principal.label, final_backup=final_backup
    )
    if waived is not None:
        _audit(principal, project, "project.final_backup_waived", waived)
    if operation is None:
        if waived is not None:
            return waived
        raise ActionNotAllowed("The project is being removed already.")
    _audit(principal, project, "project.purged", operation)
    return operation


def _is_deleted(project: Project) -> bool:
    """In the bin, on its way there, or further. A deletion that broke for good may be asked for again."""
    if project.desired_status != DesiredStatus.RECYCLED or project.recycled_at is not None:
        return project.desired_status in {DesiredStatus.RECYCLED, DesiredStatus.ABSENT}
    return Operation.objects.live().filter(project_uuid=project.pk, kind="delete").exists()


def refuse_protected(project: Project) -> None:
    """`DeletionProtected` while deletion protection is on."""
    if project.deletion_protection:
        raise DeletionProtected("Turn deletion protection off in the project's settings first.")


def _project_of(operation: Operation) -> Project:
    project = Project.objects.filter(pk=operation.project_key).first()
    if project is None:
        raise NotFound("The project of this operation is gone.")
    return project


def _require_for(principal: Principal, operation: Operation) -> None:
    if operation.organization_id is None:  # a standby's: nobody's but the operators'
        if not principal.is_operator:
            raise NotFound
        return
    require(principal, operation.organization_id, Capability.PROJECT_ACT)


@transaction.atomic
def operation_cancel(*, principal: Principal, operation: Operation) -> Operation:
    """Ask a live operation to stop and undo what it did. Kinds that roll forward can't be cancelled once they began, nor
    can others once they are past their point of no return. Raises `ActionNotAllowed`."""
    _require_for(principal, operation)
    operation = Operation.objects.select_for_update(no_key=True).get(pk=operation.pk)
    title = base.titles().get(operation.kind, operation.kind)
    if not operation.live:
        raise ActionNotAllowed(f"The operation has {operation.get_state_display().lower()}.")
    if not of_a_cancellable_kind(operation):
        raise ActionNotAllowed(f"“{title}” can't be cancelled.")
    if is_committed(operation):
        raise ActionNotAllowed(f"“{title}” has done what can't be taken back by stopping: it only finishes.")
    operation.cancel_requested_at = operation.cancel_requested_at or now()
    operation.next_attempt_at = None
    operation.save(update_fields=["cancel_requested_at", "next_attempt_at", "updated_at"])
    hint_on_commit(operation.pk)
    audit.record(
        principal, "operation.cancelled", organization_id=operation.organization_id,
        project_id=operation.project_uuid, project_name=operation.project_name, target=operation.kind,
    )  # fmt: skip
    return operation


@transaction.atomic
def operation_retry(*, principal: Principal, operation: Operation) -> Operation:
    """A waiting operation goes on at once; for a failed one, its project is retried as a new operation."""
    _require_for(principal, operation)
    operation = Operation.objects.select_for_update(no_key=True).get(pk=operation.pk)
    if operation.live:
        if operation.next_attempt_at is None:
            raise ActionNotAllowed("The operation is at work; there is nothing to retry.")
        operation.next_attempt_at = None
        operation.save(update_fields=["next_attempt_at", "updated_at"])
        hint_on_commit(operation.pk)
        _audit_retry(principal, operation)
        return operation
    if operation.state == OperationState.SUCCEEDED:
        raise ActionNotAllowed("The operation has succeeded.")
    if operation.project_uuid is None:
        raise ActionNotAllowed("Standbys are looked after by themselves: another one is made, or removed again.")
    project = _project_of(operation)
    gone = project.desired_status in {DesiredStatus.RECYCLED, DesiredStatus.ABSENT}
    if operation.kind == "purge" and project.desired_status == DesiredStatus.ABSENT:
        require(principal, project.organization_id, Capability.PROJECT_PURGE)
        again = removal.purge_begin(project, created_by=principal.user, created_by_label=principal.label)
        if again is None:
            raise ActionNotAllowed("The project is being removed already, or is protected.")
        _audit_retry(principal, again)
        return again
    if operation.kind == "delete" and gone and project.recycled_at is None:
        return project_delete(principal=principal, project=project)
    if operation.kind == "rotate_password":
        return project_action(principal=principal, project=project, action="rotate_password")
    if operation.kind in {"resize", "change_tls", "reconfigure", "renew_certificate"} and not gone:
        return _again(principal, project, operation.kind)
    return project_action(principal=principal, project=project, action="retry")


def _again(principal: Principal, project: Project, kind: str) -> Operation:
    operation = operation_create(
        project=project, kind=kind, created_by=principal.user, created_by_label=principal.label
    )
    _audit_retry(principal, operation)
    return operation


def _audit_retry(principal: Principal, operation: Operation) -> None:
    audit.record(
        principal, "operation.retried", organization_id=operation.organization_id,
        project_id=operation.project_uuid, project_name=operation.project_name, target=operation.kind,
    )  # fmt: skip


def _audit(principal: Principal, project: Project, action: str, operation: Operation) -> Any:
    return audit.record(
        principal, action, organization=project.organization, project_id=project.pk, project_name=project.name,
        target=project.slug, data={"operation": str(operation.pk)},
    )  # fmt: skip
