"""Pools for operators: list, make one by hand, look at one now, drain one."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any
from uuid import UUID

from django.db import IntegrityError, models, transaction
from django.db.models import Count, Q, QuerySet, Sum

from accounts.permissions import Principal, require_operator
from accounts.services import audit
from novastack.common.errors import ActionNotAllowed, Conflict, Invalid, NotFound, OperationInProgress
from projects import registry, tasks
from projects.models import (
    BlankDatabase,
    Database,
    DatabaseServer,
    DatabaseSlot,
    Health,
    ObservedState,
    Operation,
    Placement,
    Plan,
    Project,
    Region,
    ServerDesired,
    ServerKind,
)
from projects.operations import catalogue, pool_removal, pool_sizes, pools
from projects.operations.base import StepFailed, titles
from projects.services.actions import operation_cancel
from projects.services.standbys import version_problem

NAME = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,61}[a-z0-9])?")


class PoolStatus(models.TextChoices):
    PREPARING = "preparing", "Preparing"
    READY = "ready", "Ready"
    FULL = "full", "Full"
    UNHEALTHY = "unhealthy", "Unhealthy"
    NOT_AVAILABLE = "not_available", "Not available"
    DRAINING = "draining", "Draining"
    REMOVING = "removing", "Removing"
    FAILED = "failed", "Failed"


class NoRoomElsewhere(Conflict):
    code, title = "no_room_elsewhere", "There is no room for its projects on another pool"


class PoolImpossible(Conflict):
    """A pool that can't work; `code` is the reason's."""

    title = "Such a pool can't be made"

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


@dataclass(slots=True)
class Pool:
    """A pool as operators see it."""

    server: DatabaseServer
    databases: int
    status: str
    status_detail: str
    health: str
    health_detail: str
    operation: Operation | None = None
    blanks: int = 0
    members: list[Database] = field(default_factory=list)

    @property
    def percent(self) -> int:
        return min(100, round(100 * self.databases / max(1, self.server.max_databases)))

    @property
    def connections(self) -> int:
        """Of each database, guaranteed."""
        return pool_sizes.connections_of(self.server)

    @property
    def operation_title(self) -> str:
        return titles().get(self.operation.kind, self.operation.kind) if self.operation else ""

    @property
    def status_label(self) -> str:
        return str(PoolStatus(self.status).label)

    @property
    def can_drain(self) -> bool:
        return self.status not in {PoolStatus.PREPARING, PoolStatus.DRAINING, PoolStatus.REMOVING}

    @property
    def busy(self) -> bool:
        """A page that shows it looks again."""
        return self.operation is not None


# --- looking ------------------------------------------------------------------------------------------------------------
def pool_rows() -> QuerySet[DatabaseServer]:
    """All pools, without secrets, with what a list shows."""
    return pools.pools().select_related("region", "plan").defer("admin_secret", "admin_pending_secret", "tls_key")


def pool_get(pk: UUID) -> DatabaseServer:
    found = pool_rows().filter(pk=pk).first()
    if found is None:
        raise NotFound("There is no such pool.")
    return found


def describe(rows: list[DatabaseServer], *, members: bool = False) -> list[Pool]:
    """Each with what is known of it; a constant number of queries."""
    ids = [row.pk for row in rows]
    used = pools.used_by_pool(rows)
    blanks: dict[UUID, int] = dict(
        BlankDatabase.objects.filter(server__in=ids, ready_at__isnull=False)
        .order_by().values_list("server").annotate(Count("pk"))
    )  # fmt: skip
    live: dict[UUID | None, Operation] = {}
    operations = Operation.objects.live().filter(server_uuid__in=ids, project_uuid=None).with_steps()
    for operation in operations.order_by("created_at"):
        if operation.kind != pool_removal.DRAIN or operation.server_uuid not in live:
            live[operation.server_uuid] = operation  # what works on the server says more than what waits for others
    held: dict[UUID, list[Database]] = {}
    if members:
        on_them = Database.objects.filter(server__in=ids).select_related("project__organization")
        for each in on_them.order_by("created_at"):
            held.setdefault(each.server_id, []).append(each)
    found = []
    for row in rows:
        health, why = pools.health_of(row)
        operation, taken = live.get(row.pk), used.get(row.pk, 0)
        status, detail = status_of(row, taken, health, why, operation)
        mine = held.get(row.pk, [])
        found.append(Pool(row, taken, status, detail, health, why, operation, blanks.get(row.pk, 0), mine))
    return found


def status_of(
    row: DatabaseServer, used: int, health: str, why: str, operation: Operation | None
) -> tuple[str, str]:  # fmt: skip
    """Precedence: not available, removing, preparing, failed, draining, unhealthy, full, ready."""
    doing = _doing(operation)
    if not row.region.reachable or row.observed_state == ObservedState.UNREACHABLE:
        return PoolStatus.NOT_AVAILABLE, row.region.reason_for(operator=True)
    if operation is not None and operation.kind == pool_removal.REMOVE:
        return PoolStatus.REMOVING, doing
    if operation is not None and operation.kind == pools.PREPARE:
        return PoolStatus.PREPARING, doing
    if not row.reconcile:
        return PoolStatus.FAILED, row.observed_detail or "Set aside: nothing is done with it by itself."
    if row.pool_ready_at is None and row.draining_at is None:
        return PoolStatus.FAILED, row.observed_detail or row.pool_health_detail
    if row.draining_at is not None:
        return PoolStatus.DRAINING, doing
    if health == Health.UNHEALTHY or row.observed_state != ObservedState.RUNNING:
        return PoolStatus.UNHEALTHY, doing or why
    return (PoolStatus.FULL if used >= row.max_databases else PoolStatus.READY), why


def _doing(operation: Operation | None) -> str:
    """The step that is at work, and what it says."""
    if operation is None:
        return ""
    steps = [step for step in operation.steps.all() if step.started_at is not None]
    if not steps:
        return "Waits for a worker."
    last = max(steps, key=lambda step: step.position)
    return f"{last.title}: {last.detail}" if last.detail and last.state != "succeeded" else last.title


def pool_stats() -> dict[str, Any]:
    """Sums over all pools, what waits for one, and the dedicated servers beside them."""
    found = describe(list(pool_rows()))
    takes = [p for p in found if p.status in {PoolStatus.READY, PoolStatus.FULL, PoolStatus.UNHEALTHY}]
    most = sum(p.server.max_databases for p in takes)
    on_them = sum(p.databases for p in takes)
    waiting = Project.objects.filter(placement=Placement.POOL, ready_at=None, recycled_at=None, purging_at=None)
    waiting = waiting.exclude(databases__slot=DatabaseSlot.CURRENT)
    dedicated = DatabaseServer.objects.filter(kind=ServerKind.DEDICATED).exclude(desired_state=ServerDesired.ABSENT)
    sums = dedicated.aggregate(count=Count("pk"), memory=Sum("memory_bytes"))
    return {
        "pools": {
            "total": len(found),
            "by_status": dict(Counter(str(p.status) for p in found)),
            "by_health": dict(Counter(str(p.health) for p in found)),
            "by_engine": dict(Counter(p.server.engine for p in found)),
            "by_region": dict(Counter(p.server.region.slug for p in found)),
        },
        "databases": sum(p.databases for p in found),
        "max_databases": most,
        "free": max(0, most - on_them),
        "fill_percent": round(100 * on_them / most, 1) if most else None,
        "blanks": sum(p.blanks for p in found),
        "size_bytes": sum(p.server.pool_size_bytes or 0 for p in found),
        "memory_bytes": sum(p.server.memory_bytes for p in found),
        "waiting_projects": waiting.count(),
        "dedicated_servers": {"total": sums["count"], "memory_bytes": sums["memory"] or 0},
    }


# --- acting ---------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class PoolRequest:
    """What an operator asks for; what is missing is as the settings say."""

    engine: str = registry.DEFAULT_ENGINE
    version: str | None = None
    region: str | None = None
    plan: str | None = None
    name: str = ""
    max_databases: int | None = None
    memory_bytes: int | None = None
    cpus: float | None = None


@transaction.atomic
def pool_create(*, principal: Principal | None, request: PoolRequest) -> DatabaseServer:
    """Rows and the operation that makes it. `principal=None` is the console. Raises `Invalid` with the field,
    `OperationInProgress` when one of its kind is being made, `PoolImpossible`, `Conflict` (`no_free_port`)."""
    if principal is not None:
        require_operator(principal)
    region = _region(request.region)
    if request.engine not in registry.engines():
        raise Invalid.field("engine", "unknown", f"Use one of: {', '.join(sorted(registry.engines()))}.")
    engine = registry.engine(request.engine)
    version = request.version or catalogue.versions_of(engine).default
    if problem := version_problem(engine.name, version):
        raise Invalid.field("version", "not_offered", problem)
    if reason := region.reason_against(engine.name, version):
        raise Invalid.field("region", "not_available", f"{region.name} can't run {engine.title} {version}: {reason}.")
    plan = _plan(request.plan)
    if request.name:
        if not NAME.fullmatch(request.name):
            raise Invalid.field("name", "invalid", "Use lower-case letters, digits, dots and hyphens, at most 63.")
        if DatabaseServer.objects.filter(name=request.name).exists():
            raise Invalid.field("name", "taken", "There is a pool of this name.")
    try:
        server = pools.pool_begin(
            region=region, engine=engine.name, version=version, plan=plan, name=request.name,
            max_databases=request.max_databases, memory_bytes=request.memory_bytes,
            cpus=None if request.cpus is None else Decimal(str(request.cpus)), by_hand=True,
            created_by_label=principal.label if principal else "console",
        )  # fmt: skip
    except StepFailed as error:
        raise PoolImpossible(error.code, error.detail) from None
    except IntegrityError:  # two at once
        raise Invalid.field("name", "taken", "There is a pool of this name.") from None
    if server is None:
        raise OperationInProgress("A pool of this region, engine, version and plan is being made; wait for it.")
    audit.record(
        principal, "pool.created", target=server.name,
        data={"engine": engine.name, "version": version, "region": region.slug, "plan": plan.slug if plan else ""},
    )  # fmt: skip
    return server


def _region(slug: str | None) -> Region:
    rows = Region.objects.filter(enabled=True, gone_at=None).exclude(runtime="")
    if slug is None:
        found = rows.order_by("created_at").first()
        if found is None:
            raise Invalid.field("region", "none", "No region is available.")
        return found
    region = Region.objects.filter(slug=slug).first()
    if region is None:
        raise Invalid.field("region", "unknown", "There is no such region; see `regions/`.")
    if not region.available:
        raise Invalid.field("region", "not_available", f"{region.name} is not available.")
    return region


def _plan(slug: str | None) -> Plan | None:
    """None: the pool takes projects of every plan."""
    if not slug:
        return None
    plan = Plan.objects.filter(slug=slug).first()
    if plan is None:
        raise Invalid.field("plan", "unknown", "There is no such plan; see `plans/`.")
    return plan


def pool_check(*, principal: Principal, server: DatabaseServer) -> None:
    """Have a worker look at it now: `checked_at` says when it has. `ActionNotAllowed` when none can be asked, or there is
    nothing to look at yet."""
    require_operator(principal)
    if server.initialised_at is None:
        raise ActionNotAllowed("This pool has never been ready: there is nothing to look at.")
    audit.record(principal, "pool.checked", target=server.name)
    try:
        tasks.check_pool.apply_async((str(server.pk),), retry=False, expires=120)
    except Exception as error:
        raise ActionNotAllowed("No worker can be asked now; the pool is looked at every five minutes.") from error


@transaction.atomic
def pool_drain(*, principal: Principal | None, server: DatabaseServer) -> Operation:
    """Place nothing new on it, move everybody out, then remove it. Asked again: the same operation. `NoRoomElsewhere` when
    its projects fit on no other pool and none can be made; `ActionNotAllowed` while it is being made or removed."""
    if principal is not None:
        require_operator(principal)
    row = pool_rows().filter(pk=server.pk).first()
    if row is None:
        raise NotFound("There is no such pool.")
    live = Operation.objects.live().filter(server_uuid=row.pk, project_uuid=None)
    draining = live.filter(kind=pool_removal.DRAIN).first()
    if draining is not None:
        return draining
    if live.filter(kind=pools.PREPARE).exists():
        raise OperationInProgress("It is being made; cancel that, or wait for it.")
    if live.filter(kind=pool_removal.REMOVE).exists():
        raise ActionNotAllowed("It is being removed.")
    label = principal.label if principal else "console"
    _make_room(row, label)
    operation = pool_removal.drain_begin(row, created_by_label=label)
    if operation is None:
        raise OperationInProgress("Somebody drains it at this moment.")
    audit.record(principal, "pool.draining", target=row.name, data={"databases": pools.pool_used(row)})
    return operation


def _make_room(row: DatabaseServer, label: str) -> None:
    """Its projects fit on other pools of their kind, or one more is begun for them."""
    needed = pools.pool_used(row)
    if not needed:
        return
    others = pools.pools_open().filter(region=row.region, engine=row.engine, version=row.version).exclude(pk=row.pk)
    others = others.filter(Q(plan=None) | Q(plan=row.plan))  # of every plan, or of this one
    free = sum(max(0, other.max_databases - pools.pool_used(other)) for other in others)
    if free >= needed or pools.preparing(row.region, row.engine, row.version, row.plan) is not None:
        return
    lacking = f"{needed} databases have to move, and other pools have room for {free}."
    if not (row.region.available and row.region.reachable and row.region.has_room):
        raise NoRoomElsewhere(f"{lacking} None can be made in {row.region.name} now.")
    if problem := version_problem(row.engine, row.version) or row.region.reason_against(row.engine, row.version):
        raise NoRoomElsewhere(f"{lacking} No more can be made: {problem}")
    try:
        begun = pools.pool_begin(
            region=row.region,
            engine=row.engine,
            version=row.version,
            plan=row.plan,
            by_hand=True,
            created_by_label=label,
        )
    except StepFailed as error:
        raise NoRoomElsewhere(f"{lacking} No more can be made: {error.detail}") from None
    if begun is None:
        raise NoRoomElsewhere(f"{lacking} No more can be made now.")


def pool_drain_end(*, principal: Principal, server: DatabaseServer) -> Operation:
    """It takes projects again as soon as a worker has seen it; who has moved stays where they are. `ActionNotAllowed` when it
    is not being drained, or is empty and being removed."""
    require_operator(principal)
    operation = Operation.objects.live().filter(kind=pool_removal.DRAIN, server_uuid=server.pk).first()
    if operation is None:
        raise ActionNotAllowed("It is not being drained, or is being removed already.")
    operation = operation_cancel(principal=principal, operation=operation)
    audit.record(principal, "pool.drain_ended", target=server.name)
    return operation
