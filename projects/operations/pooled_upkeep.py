"""What makes the state of projects on pools true again without anybody asking: shut out or let in as it is wanted."""

from __future__ import annotations

from django.db import transaction
from django.db.models import Q

from accounts.services import audit
from novastack.common.clock import now
from novastack.common.errors import Conflict
from projects.models import (
    Database,
    DatabaseSlot,
    DesiredStatus,
    ObservedState,
    Operation,
    Placement,
    Project,
    ProjectStatus,
    Region,
    ServerKind,
)
from projects.operations import pooled
from projects.operations.queue import operation_create

BATCH = 100  # a tick: a pool that comes back has many


def converge(region: Region) -> int:
    """Record an operation for each project on a pool that is not as desired and that nobody works on. One query when there
    is none. Pools that are down are started by others; their projects' logins are then tried by health checks."""
    moment = now()
    open_wanted = Q(project__desired_status=DesiredStatus.RUNNING)
    shut_wanted = Q(project__desired_status__in=[DesiredStatus.STOPPED, DesiredStatus.RECYCLED])
    failed = Q(project__status=ProjectStatus.FAILED, project__failure__retryable=True)
    rows = (
        Database.objects.filter(
            server__region=region, server__kind=ServerKind.POOL, server__observed_state=ObservedState.RUNNING,
            server__reconcile=True, slot=DatabaseSlot.CURRENT, drop_due_at=None,
            project__placement=Placement.POOL, project__ready_at__isnull=False, project__purging_at=None,
        )
        .filter((open_wanted & (Q(locked_at__isnull=False) | failed)) | (shut_wanted & Q(locked_at=None)))
        .filter(Q(recover_after=None) | Q(recover_after__lte=moment))
        .select_related("project")
        .order_by("recover_after")
    )  # fmt: skip
    found = list(rows[:BATCH])
    if not found:
        return 0
    ids = [row.project_id for row in found]
    busy = set(Operation.objects.live().holding().filter(project_uuid__in=ids).values_list("project_uuid", flat=True))
    return sum(_start(row) for row in found if row.project_id not in busy and not _final(row.project))


def _final(project: Project) -> bool:
    return project.failure is not None and not project.failure.get("retryable", True)


def _start(row: Database) -> int:
    project = row.project
    kind = "recover" if project.desired_status == DesiredStatus.RUNNING else "stop"
    try:
        with transaction.atomic():
            locked = Project.objects.select_for_update(of=("self",), no_key=True).get(pk=project.pk)
            if locked.desired_status != project.desired_status or locked.generation != project.generation:
                return 0  # somebody acted since we looked: what they want counts
            operation_create(project=locked, kind=kind, created_by_label="reconciler")
            pooled.count_recovery(row)
            audit.record(
                None, f"project.{kind}", organization_id=project.organization_id, project_id=project.pk,
                project_name=project.name, data={"reason": "not as desired on its pool"},
            )  # fmt: skip
    except Conflict:
        return 0
    return 1
