"""Services of a project: asked for, retried, switched off. What a service knows is learned by an operation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from django.db import transaction

from accounts.permissions import Capability, Principal, require
from accounts.services import audit
from novastack.common.errors import ActionNotAllowed, Invalid, NotFound, QuotaExceeded
from projects.models import (
    ApiKey,
    Database,
    DatabaseSlot,
    DesiredStatus,
    Operation,
    Project,
    ProjectService,
    ServiceConnector,
    ServiceStatus,
    ServiceType,
)
from projects.operations.queue import operation_create
from projects.operations.registration import NOT_CONFIGURED, SWITCHED_OFF, new_generation
from projects.services.actions import lock_project

ACTIONS = ("enable", "disable", "retry", "register")
NOT_ASKED = "Nobody asked for it."


@dataclass(frozen=True, slots=True)
class ServiceState:
    """One service as people see it. `can_register`: there is an endpoint that takes registrations now."""

    service_type: str
    title: str
    status: str
    reason: str
    service_id: str
    endpoint: str
    config: dict[str, Any]
    registered_at: Any
    can_register: bool
    actions: tuple[str, ...]


def services_of(project: Project) -> list[ServiceState]:
    """All types, asked for or not, in a fixed order."""
    rows = {row.service_type: row for row in ProjectService.objects.filter(project=project)}
    enabled = dict(ServiceConnector.objects.filter(region_id=project.region_id).values_list("service_type", "enabled"))
    found = []
    for service in ServiceType:
        row, there = rows.get(service.value), enabled.get(service.value)
        away = NOT_CONFIGURED if there is None else "" if there else SWITCHED_OFF
        found.append(
            ServiceState(
                service.value, str(service.label),
                row.status if row else ServiceStatus.DISABLED,
                row.reason if row else away or NOT_ASKED,
                row.service_id if row else "", row.endpoint if row else "", row.config if row else {},
                row.registered_at if row else None, not away, _actions(project, row),
            )
        )  # fmt: skip
    return found


def _actions(project: Project, row: ProjectService | None) -> tuple[str, ...]:
    if project.ready_at is None or project.desired_status in {DesiredStatus.RECYCLED, DesiredStatus.ABSENT}:
        return ()
    if row is None or row.status == ServiceStatus.DISABLED:
        return ("enable",)
    return ("register", "disable") if row.status == ServiceStatus.ACTIVE else ("retry", "disable")


@transaction.atomic
def service_action(*, principal: Principal, project: Project, service: str, action: str) -> Operation:
    """`enable`, `disable`, `retry` after an error, `register` anew. Raises `NotFound`, `ActionNotAllowed`,
    `OperationInProgress`."""
    require(principal, project.organization_id, Capability.PROJECT_CHANGE)
    if service not in ServiceType.values:
        raise NotFound
    if action not in ACTIONS:
        raise Invalid.field("action", "invalid_choice", f"Use one of: {', '.join(ACTIONS)}.")
    project = lock_project(project)
    row = ProjectService.objects.filter(project=project, service_type=service).first()
    if action not in _actions(project, row):
        raise ActionNotAllowed(_why_not(project, row))
    if action in {"enable", "register"}:
        others = ProjectService.objects.filter(project=project).exclude(service_type=service)
        if others.exclude(status=ServiceStatus.DISABLED).count() >= project.plan.max_services:
            raise QuotaExceeded(f"The plan {project.plan.name} allows {project.plan.max_services} services.")
        new_generation(project, service)
    operation = operation_create(
        project=project, kind="deregister_services" if action == "disable" else "register_services",
        params={"services": [service]}, created_by=principal.user, created_by_label=principal.label,
    )  # fmt: skip
    audit.record(
        principal, f"service.{action}", organization=project.organization, project_id=project.pk,
        project_name=project.name, target=service,
    )  # fmt: skip
    return operation


def _why_not(project: Project, row: ProjectService | None) -> str:
    if project.ready_at is None:
        return "The project is not ready yet."
    if project.desired_status in {DesiredStatus.RECYCLED, DesiredStatus.ABSENT}:
        return "The project is deleted."
    return f"The service is {row.status if row else 'disabled'}: that makes no sense now."


def resources_of(project: Project) -> list[dict[str, Any]]:
    """What exists of a project, read from where it is recorded: `type`, `id`, `metadata`, `created_at`; oldest first."""
    found: list[dict[str, Any]] = []
    made = Database.objects.filter(project=project, created_in_engine_at__isnull=False).select_related("server")
    for base in made:
        data = {"name": base.name, "slot": base.slot}
        if base.server.project_uuid is not None:  # of a server that others share nothing is told
            data["server"] = base.server.handle.name
        found.append(_resource("databases", base.pk, base.created_in_engine_at, data))
        if base.slot == DatabaseSlot.CURRENT:
            size = {"limit_bytes": project.storage_bytes, "used_bytes": project.size_bytes}
            found.append(_resource("storage", base.pk, base.created_in_engine_at, size))
    found += [
        _resource("api_keys", key.pk, key.created_at, {"name": key.name, "start": key.start, "state": key.state})
        for key in ApiKey.objects.filter(project=project, revoked_at=None)
    ]
    for row in ProjectService.objects.filter(project=project).exclude(service_id=""):
        data = {"service": row.service_type, "status": row.status, "service_id": row.service_id}
        found.append(_resource("services", row.pk, row.created_at, data))
    return sorted(found, key=lambda each: (each["created_at"], each["id"]))


def _resource(type_: str, pk: Any, created_at: Any, metadata: dict[str, Any]) -> dict[str, Any]:
    return {"type": type_, "id": str(pk), "metadata": metadata, "created_at": created_at}
