"""Changes of a project's own fields."""

from __future__ import annotations

from typing import Any

from django.db import transaction

from accounts.models import Organization
from accounts.permissions import Capability, Principal, require
from accounts.services import audit
from novastack.common.errors import ActionNotAllowed, Invalid, NameTaken
from projects.models import DesiredStatus, Operation, Project
from projects.operations.queue import operation_create
from projects.services import quotas, validation
from projects.services.creation import clean_limits, name_is_free

CHANGEABLE = {"name", "description", "labels", "limits", "deletion_protection"}


@transaction.atomic
def project_update(
    *, principal: Principal, project: Project, changes: dict[str, Any]
) -> tuple[Project, Operation | None]:
    """Change `name, description, labels, limits, deletion_protection`. New limits start a `resize` (rule 47)."""
    require(principal, project.organization_id, Capability.PROJECT_CHANGE)
    for name in changes:
        if name not in CHANGEABLE:
            raise Invalid.field(name, "read_only", f"Only these can be changed: {', '.join(sorted(CHANGEABLE))}.")
    organization = Organization.objects.select_for_update(no_key=True).get(pk=project.organization_id)
    project = (
        Project.objects.select_for_update(of=("self",), no_key=True).select_related("plan", "region").get(pk=project.pk)
    )
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
    resized = _limits(project, organization, changes.get("limits")) if changes.get("limits") is not None else []
    if not fields and not resized:
        return project, None
    project.save(update_fields=[*fields, *resized, "updated_at"])
    operation = None
    if resized:
        operation = operation_create(
            project=project, kind="resize", created_by=principal.user, created_by_label=principal.label
        )
    audit.record(
        principal, "project.changed", organization=organization, project_id=project.pk, project_name=project.name,
        target=project.slug, data={"fields": sorted({*fields, *resized})},
    )  # fmt: skip
    return project, operation


def _set(project: Project, **values: Any) -> list[str]:
    changed = [name for name, value in values.items() if getattr(project, name) != value]
    for name in changed:
        setattr(project, name, values[name])
    return changed


def _limits(project: Project, organization: Organization, limits: Any) -> list[str]:
    if not isinstance(limits, dict):
        raise Invalid.field("limits", "invalid", "Give an object with `memory_bytes` and `cpus`.")
    if project.desired_status in {DesiredStatus.RECYCLED, DesiredStatus.ABSENT}:
        raise ActionNotAllowed("The project is deleted; undelete it before changing its limits.")
    given = {"memory_bytes": project.memory_bytes, "cpus": project.cpus, **limits}
    memory, cpus = clean_limits(given, project.plan)
    quotas.check(organization, memory_bytes=max(0, memory - project.memory_bytes))
    return _set(project, memory_bytes=memory, cpus=cpus)
