"""A project's status: one pure function over facts (rule 42), and the one place that writes it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import structlog
from django.db import connection, transaction
from django.db.models import Q

from novastack.common.clock import now
from projects.models import (
    Database,
    DatabaseServer,
    DesiredStatus,
    Health,
    ObservedState,
    Operation,
    OperationStep,
    Project,
    ProjectStatus,
    Region,
    ServerKind,
    StepState,
)
from projects.models.catalogue import UNREACHABLE
from projects.operations import base

log = structlog.get_logger(__name__)
MANY_GROUPS = 8
_PROJECT_FACTS = (
    "desired_status", "recycled_at", "failure", "ready_at", "health", "health_detail", "status", "status_detail",
    "region__reachable", "region__reason",
)  # fmt: skip
_DATABASE_FACTS = ("project_id", "locked_at", "server__kind", "server__observed_state", "server__observed_detail")
POOL_DOWN = "Its pool is down; it is started again."
_OPERATION_FACTS = ("project_uuid", "kind", "definition_version", "variant", "started_at")


@dataclass(frozen=True, slots=True)
class Facts:
    desired: str
    recycled: bool
    region_reachable: bool
    operation_kind: str | None  # the live operation that holds the project, if any
    operation_while: str | None
    operation_detail: str  # what it waits for, or why it tries again
    failure: dict[str, Any] | None
    ready: bool
    observed: str
    observed_detail: str
    health: str
    health_detail: str


def derive(facts: Facts) -> tuple[str, str]:
    """Status and detail. Precedence: recycled, deleting, not_available, the running operation, failed, observed."""
    if facts.recycled and facts.operation_kind is None and facts.desired == DesiredStatus.RECYCLED:
        return ProjectStatus.RECYCLED, ""
    if facts.desired in {DesiredStatus.RECYCLED, DesiredStatus.ABSENT}:
        return ProjectStatus.DELETING, _why_not_deleted(facts)
    if not facts.region_reachable:
        return ProjectStatus.NOT_AVAILABLE, UNREACHABLE
    if facts.operation_kind is not None and facts.operation_while:
        return facts.operation_while, facts.operation_detail
    if facts.failure:
        return ProjectStatus.FAILED, str(facts.failure.get("detail", ""))
    if not facts.ready:
        return ProjectStatus.QUEUED, ""
    return _observed(facts)


def _why_not_deleted(facts: Facts) -> str:
    if not facts.region_reachable:
        return UNREACHABLE
    if facts.failure and facts.operation_kind is None:
        return str(facts.failure.get("detail", ""))
    return facts.operation_detail


def _observed(facts: Facts) -> tuple[str, str]:
    if facts.observed == ObservedState.UNREACHABLE:
        return ProjectStatus.NOT_AVAILABLE, UNREACHABLE
    if facts.observed == ObservedState.RUNNING:
        if facts.desired == DesiredStatus.STOPPED:
            return ProjectStatus.STOPPING, "The server still runs."
        if facts.health == Health.UNHEALTHY:
            return ProjectStatus.UNHEALTHY, facts.health_detail
        if facts.health == Health.UNKNOWN:
            return ProjectStatus.STARTING, facts.health_detail or "The server runs; waiting for a login."
        return ProjectStatus.RUNNING, facts.observed_detail  # such as: the kernel killed one of its processes
    if facts.desired == DesiredStatus.STOPPED:
        return ProjectStatus.STOPPED, ""
    if facts.observed == ObservedState.STARTING:
        return ProjectStatus.STARTING, ""
    detail = facts.observed_detail or "The server was seen stopped; it is started again."
    return ProjectStatus.UNHEALTHY, detail


def refresh(project_ids: Iterable[UUID]) -> int:
    """Recompute and store the status of these projects; writes only what changed. A constant number of queries.

    The projects are locked before the facts are read: of two at the same time the later one sees the newer facts, so
    that no stale status is the last one written. Whoever changes a fact calls this afterwards.
    """
    wanted = list(project_ids)
    if not wanted:
        return 0
    with transaction.atomic():
        return _refresh(wanted)


# Whose commit is not awaited: what is lost with the control database is said again by who goes on.
_BEGUN = """
WITH unawaited AS MATERIALIZED (SELECT set_config('synchronous_commit', 'off', true))
UPDATE projects_project project SET status = %s FROM unawaited
WHERE project.id = %s AND project.status = %s AND project.status_detail = ''
"""


def begun(project_id: UUID, definition: base.Definition) -> None:
    """An operation of this kind has begun. For a new project in one statement: while it is said to be queued nothing else
    is known of it that would say more, and whoever makes it so says so after us."""
    if definition.while_running == ProjectStatus.PROVISIONING:
        with connection.cursor() as cursor:
            cursor.execute(_BEGUN, [ProjectStatus.PROVISIONING.value, project_id, ProjectStatus.QUEUED.value])
            if cursor.rowcount:
                return
    refresh([project_id])


def _refresh(wanted: list[UUID]) -> int:
    locked = Project.objects.select_for_update(of=("self",), no_key=True).filter(pk__in=wanted).order_by("pk")
    projects = list(locked.select_related("region").only(*_PROJECT_FACTS))
    current = Database.objects.filter(project_id__in=wanted, slot="current").select_related("server")
    databases: dict[UUID, Database] = {row.project_id: row for row in current.only(*_DATABASE_FACTS)}
    live: dict[UUID | None, Operation] = {}
    for operation in (
        Operation.objects.live()
        .holding()
        .filter(project_uuid__in=wanted)
        .order_by("created_at")
        .only(*_OPERATION_FACTS)
    ):
        live.setdefault(operation.project_uuid, operation)
    held_up = _held_up([operation.pk for operation in live.values() if operation.started_at is not None])
    changed = []
    for project in projects:
        operation = live.get(project.pk)
        why = held_up.get(operation.pk, "") if operation else ""
        status, detail = derive(_facts(project, databases.get(project.pk), operation, why))
        detail = detail[:500]
        if (project.status, project.status_detail) != (status, detail):
            project.status, project.status_detail = status, detail
            changed.append(project)
    _store(changed)
    return len(changed)


def _held_up(operations: list[UUID]) -> dict[UUID, str]:
    """Operation → why it is not further: what a step of it waits for, or the error for which it is tried again."""
    if not operations:
        return {}
    rows = OperationStep.objects.filter(operation__in=operations).exclude(detail="")
    rows = rows.filter(
        Q(state__in=[StepState.WAITING, StepState.RETRYING]) | Q(state=StepState.RUNNING) & ~Q(error_code="")
    )
    found = rows.order_by("-position").values_list("operation_id", "title", "detail")
    return {operation: f"{title}: {detail}" for operation, title, detail in found}


def _store(changed: list[Project]) -> None:
    """A region that goes takes thousands along, with one status and one reason: that is one statement, not thousands of
    cases in one."""
    groups: dict[tuple[str, str], list[UUID]] = {}
    for project in changed:
        groups.setdefault((project.status, project.status_detail), []).append(project.pk)
    if len(groups) > MANY_GROUPS:
        Project.objects.bulk_update(changed, ["status", "status_detail"], batch_size=500)
        return
    for (status, detail), ids in groups.items():
        Project.objects.filter(pk__in=ids).update(status=status, status_detail=detail)


def set_reachable(region: Region, reachable: bool, reason: str) -> None:
    """Record a change of the region's reach, and what it means for its projects."""
    reason = reason[:500]
    if region.reachable == reachable and region.reason == reason:
        return
    since = None if reachable else region.unreachable_since or now()
    region.reachable, region.reason, region.observed_at, region.unreachable_since = reachable, reason, now(), since
    region.save(update_fields=["reachable", "reason", "observed_at", "unreachable_since", "updated_at"])
    log.warning("region changed", region=region.slug, reachable=reachable, reason=reason)
    if not reachable:
        # What was seen before says nothing any more: back again, each server is looked at, and logged in to, anew.
        DatabaseServer.objects.filter(region=region).exclude(observed_state=ObservedState.ABSENT).update(
            observed_state=ObservedState.UNREACHABLE, observed_detail=reason, observed_at=now()
        )
        Project.objects.filter(region=region).update(health=Health.UNKNOWN, health_detail="", health_checked_at=None)
    refresh(Project.objects.filter(region=region).values_list("pk", flat=True))


def _seen(database: Database | None) -> tuple[str, str]:
    """State and detail of what was observed. On a pool it is the database that is stopped, by shutting its logins out; what
    the pool's runtime says is for operators."""
    if database is None:
        return ObservedState.UNKNOWN, ""
    server = database.server
    if server.kind != ServerKind.POOL:
        return server.observed_state, server.observed_detail
    if server.observed_state == ObservedState.RUNNING:
        return (ObservedState.STOPPED, "Its logins are shut out; they are let in again.") if database.locked_at else (
            ObservedState.RUNNING, "")  # fmt: skip
    return server.observed_state, POOL_DOWN


def _facts(project: Project, database: Database | None, operation: Operation | None, held_up: str) -> Facts:
    kind = operation.kind if operation else None
    observed, observed_detail = _seen(database)
    return Facts(
        desired=project.desired_status,
        recycled=project.recycled_at is not None,
        region_reachable=project.region.reachable,
        operation_kind=kind,
        operation_while=_while(operation),
        operation_detail=held_up,
        failure=project.failure,
        ready=project.ready_at is not None,
        observed=observed,
        observed_detail=observed_detail,
        health=project.health,
        health_detail=project.health_detail,
    )


def _while(operation: Operation | None) -> str | None:
    if operation is None:
        return None
    definition = base.definition_of(operation.kind, operation.definition_version, operation.variant)
    status = definition.while_running if definition else None
    if status == ProjectStatus.PROVISIONING and operation.started_at is None:
        return ProjectStatus.QUEUED
    return status
