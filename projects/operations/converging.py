"""Desired and observed brought together: the reconciler records an operation for each server that is not as desired."""

from __future__ import annotations

from datetime import datetime, timedelta
from uuid import UUID

from django.db import transaction
from django.db.models import F

from accounts.services import audit
from novastack.common.clock import now
from novastack.common.errors import Conflict
from projects.models import (
    Database,
    DatabaseServer,
    DatabaseSlot,
    DesiredStatus,
    ObservedState,
    Operation,
    Project,
    ProjectStatus,
    ServerDesired,
    ServerKind,
)
from projects.operations import pools
from projects.operations.queue import operation_create

MAX_RECOVERY_DELAY_SECONDS = 300
# What a project must want for the reconciler to do so by itself.
WANTED = {"recover": {DesiredStatus.RUNNING}, "stop": {DesiredStatus.STOPPED, DesiredStatus.RECYCLED}}


def projects_on(servers: list[DatabaseServer]) -> dict[UUID, UUID]:
    """Project → the one of these servers on which it lives; a pool has many."""
    rows = Database.objects.filter(server__in=[s.pk for s in servers], slot=DatabaseSlot.CURRENT)
    return dict(rows.values_list("project_id", "server_id"))


def converge(servers: list[DatabaseServer], *, failed_too: bool) -> int:
    """Record an operation for each project whose server is not as desired and that nobody works on; how many."""
    moment = now()
    started = _recover_pools(servers, moment)
    apart: dict[UUID, str] = {}
    for server in servers:
        if not server.reconcile or server.initialised_at is None or server.kind != ServerKind.DEDICATED:
            continue
        down = server.observed_state in {ObservedState.STOPPED, ObservedState.ABSENT}
        if server.desired_state == ServerDesired.RUNNING and down:
            if server.recover_after is None or server.recover_after <= moment:
                apart[server.pk] = "recover"
        elif server.desired_state == ServerDesired.STOPPED and server.observed_state == ObservedState.RUNNING:
            apart[server.pk] = "stop"
    if failed_too:
        apart.update(dict.fromkeys(_failed_but_up(servers, moment), "recover"))
    if not apart:
        return started
    by_project = projects_on([s for s in servers if s.pk in apart])
    busy = set(
        Operation.objects.live().holding().filter(project_uuid__in=by_project).values_list("project_uuid", flat=True)
    )
    for project in Project.objects.filter(pk__in=by_project, ready_at__isnull=False, purging_at=None):
        server_id = by_project[project.pk]
        kind = apart[server_id]
        final = project.failure is not None and not project.failure.get("retryable", True)
        if project.pk in busy or project.desired_status not in WANTED[kind] or final:
            continue
        started += _start_recovery(project, server_id, kind)
    return started


def _recover_pools(servers: list[DatabaseServer], moment: datetime) -> int:
    """Record an operation for each pool that was seen down and that nobody works on; it starts it on its own data."""
    started = 0
    for server in servers:
        down = server.observed_state in {ObservedState.STOPPED, ObservedState.ABSENT}
        if server.kind != ServerKind.POOL or not down or server.desired_state != ServerDesired.RUNNING:
            continue
        if not server.reconcile or server.initialised_at is None:
            continue
        if server.recover_after is not None and server.recover_after > moment:
            continue
        why = server.observed_detail or server.observed_state
        with transaction.atomic():
            if pools.recover_begin(server, why=why) is not None:
                started += 1
                audit.record(None, "pool.recover", target=str(server), data={"reason": why})
    return started


def _failed_but_up(servers: list[DatabaseServer], moment: datetime) -> list[UUID]:
    """Servers of projects that show a failure which may pass, and that run all the same (somebody else started them, or
    only the last look at them failed): recovering proves them by a login, and takes the failure away."""
    up = {
        s.pk
        for s in servers
        if s.desired_state == ServerDesired.RUNNING
        and s.observed_state == ObservedState.RUNNING
        and s.reconcile
        and s.kind == "dedicated"
        and s.initialised_at is not None
        and (s.recover_after is None or s.recover_after <= moment)
    }
    rows = Database.objects.filter(
        project__region_id=servers[0].region_id, project__status=ProjectStatus.FAILED, slot=DatabaseSlot.CURRENT,
        project__failure__retryable=True,
    )  # fmt: skip
    return [pk for pk in rows.values_list("server_id", flat=True) if pk in up]


def _start_recovery(project: Project, server_id: UUID, kind: str) -> int:
    server = DatabaseServer.objects.get(pk=server_id)
    delay = min(MAX_RECOVERY_DELAY_SECONDS, 10 * 2 ** min(server.recoveries, 5))
    try:
        with transaction.atomic():
            locked = Project.objects.select_for_update(of=("self",), no_key=True).get(pk=project.pk)
            if locked.desired_status not in WANTED[kind] or locked.generation != project.generation:
                return 0  # somebody acted since we looked: what they want counts
            operation_create(project=project, kind=kind, created_by_label="reconciler")
            if kind == "recover":
                DatabaseServer.objects.filter(pk=server_id).update(
                    recoveries=F("recoveries") + 1, recover_after=now() + timedelta(seconds=delay)
                )
            audit.record(
                None, f"project.{kind}", organization_id=project.organization_id, project_id=project.pk,
                project_name=project.name, data={"reason": server.observed_detail or server.observed_state},
            )  # fmt: skip
    except Conflict:
        return 0
    return 1
