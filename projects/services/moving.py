"""A person has a project moved, or changes its plan: first what that will mean, then the operation."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import Any

from django.db import transaction

from accounts.models import Organization
from accounts.permissions import Capability, Principal, require
from accounts.services import audit
from novastack.common.errors import ActionNotAllowed, Conflict, Invalid, OperationInProgress, QuotaExceeded
from projects import domain, registry
from projects.engines.base import Engine
from projects.models import (
    Database,
    DatabaseSlot,
    Operation,
    Placement,
    Plan,
    Project,
    ProjectStatus,
    Region,
    RoleKind,
    ServerKind,
)
from projects.operations import base, moving, status
from projects.operations.move_steps import too_small
from projects.operations.queue import operation_create
from projects.services import quotas
from projects.services.actions import lock_project
from projects.services.changes import too_small_while_running

TARGET = ("placement", "region", "plan")


class PlanTooSmall(Conflict):
    code, title = "plan_too_small", "The plan is too small for the data"


class MoveNotSupported(Conflict):
    code, title = "move_not_supported", "This database can't be moved yet"


class RegionUnavailable(Conflict):
    code, title = "region_unavailable", "The region can't take it"


class NoRoomThere(Conflict):
    code, title = "capacity_exhausted", "The region's disk is almost full"


@dataclass(frozen=True, slots=True)
class Preview:
    """What a change of plan or place will do. `kind`: `move`, `change_plan` (in place) or `none`. `problems` stand in the
    way, as `{code, detail}`; bytes and seconds as named; the downtime is an estimate."""

    kind: str
    placement: str
    region: str
    plan: str
    limits: dict[str, Any]
    connection_limit: int
    size_bytes: int | None
    expected_downtime_seconds: float
    address_changes: bool
    names_change: bool
    quotas: dict[str, int]  # how much more each would be used
    kept_hours: float
    problems: list[dict[str, str]]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Wanted:
    placement: str
    region: Region
    plan: Plan
    memory_bytes: int
    cpus: Decimal

    @property
    def pooled(self) -> bool:
        return self.placement == Placement.POOL


def _wanted(project: Project, target: dict[str, Any]) -> _Wanted:
    unknown = set(target) - set(TARGET)
    if unknown:
        raise Invalid.field(f"target.{min(unknown)}", "unknown", f"Give some of: {', '.join(TARGET)}.")
    plan, region = project.plan, project.region
    if target.get("plan"):
        found = Plan.objects.filter(slug=target["plan"], enabled=True).first()
        if found is None:
            raise Invalid.field("target.plan", "unknown", "There is no such plan; see `plans/`.")
        plan = found
    if target.get("region"):
        place = Region.objects.filter(slug=target["region"], enabled=True, gone_at=None).exclude(runtime="").first()
        if place is None:
            raise Invalid.field("target.region", "unknown", "There is no such available region; see `regions/`.")
        region = place
    changed = plan.pk != project.plan_id
    placement = target.get("placement") or (plan.placement if changed else project.placement)
    if placement not in {Placement.DEDICATED, Placement.POOL}:
        raise Invalid.field("target.placement", "invalid", "Use `dedicated` or `pool`.")
    engine = registry.engine(project.engine)
    if placement == Placement.POOL and domain.Capability.POOL not in engine.capabilities:
        raise Invalid.field("target.placement", "not_available", f"{engine.title} can't share a server.")
    keep = not changed and project.placement == placement == Placement.DEDICATED
    return _Wanted(
        str(placement), region, plan, project.memory_bytes if keep else plan.memory_bytes,
        project.cpus if keep else Decimal(plan.cpus),
    )  # fmt: skip


def preview(principal: Principal, project: Project, *, target: dict[str, Any], move: bool = False) -> Preview:
    """What it would mean. `move`: it is to have another place even where it could stay. Raises `Invalid` with the field;
    what only stands in the way now is in `problems`."""
    require(principal, project.organization_id, Capability.PROJECT_CHANGE)
    return _preview(project, _wanted(project, target), move=move)


def _preview(project: Project, wanted: _Wanted, *, move: bool) -> Preview:
    engine = registry.engine(project.engine)
    current = (
        Database.objects.filter(project=project, slot=DatabaseSlot.CURRENT)
        .select_related("server", "server__plan")
        .first()
    )
    pooled = current is not None and current.server.kind == ServerKind.POOL
    stays = wanted.region.pk == project.region_id and wanted.pooled == pooled
    foreign = pooled and current is not None and current.server.plan_id not in {None, wanted.plan.pk}
    kind = "move" if move or not stays or foreign else "change_plan"
    if kind == "change_plan" and wanted.plan.pk == project.plan_id:
        kind = "none"
    more = {
        "memory_bytes": (0 if wanted.pooled else wanted.memory_bytes) - (0 if pooled else project.memory_bytes),
        "storage_bytes": wanted.plan.storage_bytes - project.storage_bytes if kind != "none" else 0,
    }
    names = kind == "move" and wanted.pooled and current is not None and not _is_opaque(current)
    return Preview(
        kind=kind, placement=wanted.placement, region=wanted.region.slug, plan=wanted.plan.slug,
        limits={
            "memory_bytes": wanted.memory_bytes, "cpus": float(wanted.cpus), "storage_bytes": wanted.plan.storage_bytes,
        },
        connection_limit=wanted.plan.connection_limit, size_bytes=project.size_bytes,
        expected_downtime_seconds=moving.estimated_downtime(project.size_bytes) if kind == "move" else 0.0,
        address_changes=kind == "move" and (not stays or pooled), names_change=names, quotas=more,
        kept_hours=moving.keep_hours() if kind == "move" else 0.0,
        problems=[{"code": p.code, "detail": str(p.detail)} for p in _problems(project, wanted, engine, kind, more)],
    )  # fmt: skip


def _is_opaque(current: Database) -> bool:
    return current.name.startswith("tenant_")


def _problems(project: Project, wanted: _Wanted, engine: Engine, kind: str, more: dict[str, int]) -> list[Conflict]:
    found: list[Conflict] = []
    if project.size_bytes is not None and kind != "none" and project.size_bytes > wanted.plan.storage_bytes:
        found.append(PlanTooSmall(too_small(project.size_bytes, wanted.plan.storage_bytes, wanted.plan.name)))
    if kind != "none" and not wanted.pooled and wanted.memory_bytes < engine.minimum_memory_bytes:
        least = engine.minimum_memory_bytes >> 20
        found.append(PlanTooSmall(f"{engine.title} needs at least {least} MiB of memory; {wanted.plan.name} has less."))
    if kind == "change_plan" and wanted.memory_bytes < project.memory_bytes and not wanted.pooled:
        reason = too_small_while_running(project, engine, wanted.memory_bytes)
        if reason:
            found.append(PlanTooSmall(reason))
    if kind == "move":
        if domain.Capability.COPY not in engine.capabilities:
            found.append(MoveNotSupported(f"{engine.title} can't be moved yet."))
        found.extend(
            MoveNotSupported(f"{engine.title} can't be copied in {region.name}: {reason}.")
            for region in dict.fromkeys((project.region, wanted.region))
            if (reason := region.tools_against(engine.name))
        )
        if reason := wanted.region.reason_against(engine.name, project.version):
            found.append(RegionUnavailable(f"{wanted.region.name} can't run it: {reason}."))
        if not wanted.region.has_room:
            found.append(
                NoRoomThere(f"The disk of {wanted.region.name} is {wanted.region.disk_used_percent:.0f} % full.")
            )
        busy = Operation.objects.live().holding().filter(project_uuid=project.pk).first()
        if busy is not None:
            title = base.titles().get(busy.kind, busy.kind)
            found.append(OperationInProgress(f"“{title}” is running; wait for it or cancel it."))
        elif project.status not in {ProjectStatus.RUNNING, ProjectStatus.UNHEALTHY}:
            found.append(
                ActionNotAllowed(f"Only a running project can be moved; it is {project.get_status_display()}.")
            )
    try:
        quotas.check(project.organization, **more)
    except QuotaExceeded as error:
        found.append(error)
    return found


@transaction.atomic
def project_move(*, principal: Principal, project: Project, target: dict[str, Any]) -> Operation:
    """Give the project another place. Raises `Invalid`, `PlanTooSmall`, `MoveNotSupported`, `RegionUnavailable`,
    `NoRoomThere`, `QuotaExceeded`, `ActionNotAllowed`, `OperationInProgress`."""
    operation = _apply(principal, project, target, move=True)
    assert operation is not None  # noqa: S101 - a move is always something
    return operation


@transaction.atomic
def plan_change(*, principal: Principal, project: Project, plan: str) -> Operation | None:
    """Another plan: in place where that is possible, else by the move that it implies. None when it has that plan."""
    return _apply(principal, project, {"plan": plan}, move=False)


def _apply(principal: Principal, project: Project, target: dict[str, Any], *, move: bool) -> Operation | None:
    require(principal, project.organization_id, Capability.PROJECT_CHANGE)
    Organization.objects.select_for_update(no_key=True).get(pk=project.organization_id)
    project = lock_project(project)
    status.refresh([project.pk])
    project.refresh_from_db(fields=["status"])
    if project.ready_at is None or project.purging_at is not None or project.recycled_at is not None:
        raise ActionNotAllowed("Only a project that is ready, and not deleted, can be moved or get another plan.")
    wanted = _wanted(project, target)
    seen = _preview(project, wanted, move=move)
    if seen.kind == "none":
        return None
    if problems := _problems(project, wanted, registry.engine(project.engine), seen.kind, seen.quotas):
        raise problems[0]
    if seen.kind == "move":
        operation = moving.move_begin(
            project, placement=wanted.placement, region=wanted.region, plan=wanted.plan,
            memory_bytes=wanted.memory_bytes, cpus=wanted.cpus, created_by=principal.user,
            created_by_label=principal.label,
        )  # fmt: skip
    else:
        operation = _in_place(principal, project, wanted)
    audit.record(
        principal, "project.move" if seen.kind == "move" else "project.plan_changed", organization=project.organization,
        project_id=project.pk, project_name=project.name, target=project.slug,
        data={"operation": str(operation.pk), "plan": wanted.plan.slug, "region": wanted.region.slug,
              "placement": wanted.placement},
    )  # fmt: skip
    return operation


def _in_place(principal: Principal, project: Project, wanted: _Wanted) -> Operation:
    before = {
        "plan": str(project.plan_id), "memory_bytes": project.memory_bytes, "cpus": str(project.cpus),
        "storage_bytes": project.storage_bytes,
    }  # fmt: skip
    project.plan, project.storage_bytes = wanted.plan, wanted.plan.storage_bytes
    project.memory_bytes, project.cpus = wanted.memory_bytes, wanted.cpus
    project.save(update_fields=["plan", "storage_bytes", "memory_bytes", "cpus", "updated_at"])
    login = Database.objects.get(project=project, slot=DatabaseSlot.CURRENT).roles.filter(kind=RoleKind.LOGIN)
    return operation_create(
        project=project, kind=moving.CHANGE_PLAN, created_by=principal.user, created_by_label=principal.label,
        params={"before": before, "connection_limit": wanted.plan.connection_limit, "logins": login.count()},
    )  # fmt: skip
