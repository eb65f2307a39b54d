"""Changes of a project's own fields."""

from __future__ import annotations

from typing import Any

from django.db import transaction

from accounts.models import Organization
from accounts.permissions import Capability, Principal, require
from accounts.services import audit
from novastack.common.clock import now
from novastack.common.errors import ActionNotAllowed, Invalid, NameTaken
from projects import domain, registry
from projects.engines.base import Engine
from projects.models import DatabaseServer, DatabaseSlot, DesiredStatus, ObservedState, Operation, Placement, Project
from projects.operations import certificates
from projects.operations.queue import operation_create
from projects.operations.watch import is_current
from projects.services import quotas, validation
from projects.services.creation import MIB, clean_limits, name_is_free

HEADROOM_BYTES = 48 * MIB  # for sessions, beside what a server set aside at its start
CHANGEABLE = {"name", "description", "labels", "limits", "tls_required", "deletion_protection"}
# (new limits, TLS) → the kind of operation that applies it
KINDS = {(True, False): "resize", (False, True): "change_tls", (True, True): "reconfigure"}


@transaction.atomic
def project_update(
    *, principal: Principal, project: Project, changes: dict[str, Any]
) -> tuple[Project, Operation | None]:
    """Change `name, description, labels, limits, tls_required, deletion_protection`. New limits start a `resize` (rule 47),
    `tls_required` a `change_tls`, both together a `reconfigure`. A plan is changed by `services.moving.plan_change`."""
    require(principal, project.organization_id, Capability.PROJECT_CHANGE)
    for name in changes:
        if name not in CHANGEABLE:
            raise Invalid.field(name, "read_only", f"Only these can be changed: {', '.join(sorted(CHANGEABLE))}.")
    organization = Organization.objects.select_for_update(no_key=True).get(pk=project.organization_id)
    project = Project.objects.get_locked(project.pk)
    if project.desired_status == DesiredStatus.ABSENT:
        raise ActionNotAllowed("The project is being removed.")
    fields: list[str] = []
    if "name" in changes:
        name = validation.clean_name(changes["name"])
        if project.recycled_at is None and not name_is_free(organization, name, besides=project.pk):
            raise NameTaken(f"A project named “{name}” exists; choose another name.")
        fields += _set(project, name=name)
    if "description" in changes:
        fields += _set(project, description=validation.clean_description(changes["description"]))
    if "labels" in changes:
        fields += _set(project, labels=validation.clean_labels(changes["labels"]))
    if "deletion_protection" in changes:
        if not isinstance(changes["deletion_protection"], bool):
            raise Invalid.field("deletion_protection", "invalid", "Give true or false.")
        fields += _set(project, deletion_protection=changes["deletion_protection"])
    secured = _tls(project, changes["tls_required"]) if "tls_required" in changes else []
    resized = _limits(project, organization, changes.get("limits")) if changes.get("limits") is not None else []
    if not fields and not resized and not secured:
        return project, None
    project.save(update_fields=[*fields, *resized, *secured, "updated_at"])
    operation = None
    if resized or secured:
        kind = _kind(project, resized=bool(resized), secured=bool(secured))
        operation = operation_create(
            project=project, kind=kind, created_by=principal.user, created_by_label=principal.label
        )
    audit.record(
        principal, "project.changed", organization=organization, project_id=project.pk, project_name=project.name,
        target=project.slug, data={"fields": sorted({*fields, *resized, *secured})},
    )  # fmt: skip
    return project, operation


def _kind(project: Project, *, resized: bool, secured: bool) -> str:
    """The operation that applies it. Of an engine that takes up TLS only when it starts: a restart, if it runs."""
    if not secured or not tls_restarts(project) or project.desired_status != DesiredStatus.RUNNING:
        return KINDS[resized, secured]
    return "restart"  # which applies new limits as well


def tls_restarts(project: Project) -> bool:
    """Whether a change of `tls_required` restarts the server, when it runs."""
    return domain.Capability.TLS_RELOAD not in registry.engine(project.engine).capabilities


def tls_fixed(project: Project) -> str:
    """Why `tls_required` can't be turned off for this project, for people; empty: it can."""
    engine = registry.engine(project.engine)
    if not (engine.tls_only and project.tls_required):
        return ""
    return f"{engine.title} speaks TLS or plain connections, never both. It speaks TLS, and that can’t be turned off."


def _set(project: Project, **values: Any) -> list[str]:
    changed = [name for name, value in values.items() if getattr(project, name) != value]
    for name in changed:
        setattr(project, name, values[name])
    return changed


def tls_unavailable(project: Project) -> str:
    """Why plain connections to this project can't be refused now, for people; empty: they can."""
    if project.placement == Placement.POOL:
        return "Whether plain connections are refused is the pool’s, for all projects on it. TLS itself is offered."
    server = DatabaseServer.objects.filter(databases__project=project, databases__slot=DatabaseSlot.CURRENT).first()
    return certificates.unavailable(server) if server is not None else ""


def _tls(project: Project, required: Any) -> list[str]:
    if not isinstance(required, bool):
        raise Invalid.field("tls_required", "invalid", "Give true or false.")
    if required == project.tls_required:
        return []
    if project.placement == Placement.POOL:
        raise Invalid.field("tls_required", "not_available", tls_unavailable(project))
    if project.desired_status in {DesiredStatus.RECYCLED, DesiredStatus.ABSENT}:
        raise ActionNotAllowed("The project is deleted; undelete it before changing its TLS.")
    if not required and registry.engine(project.engine).tls_only:
        raise Invalid.field("tls_required", "not_available", tls_fixed(project))
    if required and (reason := tls_unavailable(project)):
        raise Invalid.field("tls_required", "not_available", reason)
    return _set(project, tls_required=required)


def too_small_while_running(project: Project, engine: Engine, memory_bytes: int) -> str:
    """Why the running server can't get along with so little memory, as far as it is known; empty if it can. The operation
    looks once more."""
    server = DatabaseServer.objects.filter(databases__project=project, databases__slot=DatabaseSlot.CURRENT).first()
    if server is None or server.observed_state != ObservedState.RUNNING:
        return ""
    fixed = engine.fixed_memory_bytes(server.sized_for_bytes or server.memory_bytes)
    stop = "Stop the project first; the new limit then holds from its next start."
    if fixed and fixed + HEADROOM_BYTES > memory_bytes:
        least = -(-(fixed + HEADROOM_BYTES) // MIB)
        kept = f"While it runs, {engine.title} keeps {fixed // MIB} MiB that it set aside at its start"
        return f"{kept}: at least {least} MiB. {stop}"
    used = server.memory_used_bytes if is_current(server.usage_at, now()) else None
    if used is not None and used > memory_bytes:
        return f"The server uses {used // MIB + 1} MiB now. {stop}"
    return ""


def _limits(project: Project, organization: Organization, limits: Any) -> list[str]:
    if not isinstance(limits, dict):
        raise Invalid.field("limits", "invalid", "Give an object with `memory_bytes` and `cpus`.")
    if project.placement == Placement.POOL:
        if not limits:
            return []
        raise Invalid.field("limits", "not_available", "Memory and CPU are the pool's, for all projects on it.")
    if project.desired_status in {DesiredStatus.RECYCLED, DesiredStatus.ABSENT}:
        raise ActionNotAllowed("The project is deleted; undelete it before changing its limits.")
    given = {"memory_bytes": project.memory_bytes, "cpus": project.cpus, **limits}
    engine = registry.engine(project.engine)
    memory, cpus = clean_limits(given, project.plan, engine)
    if memory < project.memory_bytes and (reason := too_small_while_running(project, engine, memory)):
        raise Invalid.field("limits.memory_bytes", "too_small_while_running", reason)
    quotas.check(organization, memory_bytes=max(0, memory - project.memory_bytes))
    return _set(project, memory_bytes=memory, cpus=cpus)
