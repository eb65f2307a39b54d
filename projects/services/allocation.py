"""Databases for somebody else's instances: the same `instance_id` always gets the same one.

An allocation is a project like any other, and its row in `Allocation` the promise. Whoever asks first makes both, in one
transaction under the organization's lock; whoever asks later, or at the same moment, is given what is there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import Any

from django.db import transaction
from django.db.models import Count, F, Q, QuerySet

from accounts.models import Organization
from accounts.permissions import Capability, Principal, require
from accounts.services import audit
from novastack.common.clock import now
from novastack.common.errors import ActionNotAllowed, Conflict, FieldProblem, Invalid, OperationInProgress
from projects import domain, registry
from projects.models import (
    Allocation,
    DatabaseServer,
    DesiredStatus,
    Health,
    Operation,
    Placement,
    Plan,
    Project,
    ServerDesired,
    ServerKind,
)
from projects.services import fleet
from projects.services.actions import project_action
from projects.services.creation import ProjectRequest, name_is_free, project_create
from projects.services.validation import NAME_MAX

INSTANCE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@/+-]{0,127}")
SOON_SECONDS, LATE_SECONDS = 2, 60  # the least and the most that somebody is told to wait before asking again
PARTS = ("database", "broker", "worker", "runtime", "storage")  # of the install's health, that an allocation needs


class AllocationMismatch(Conflict):
    """The instance has a database, and not the one that is asked for now; `errors` names what differs."""

    code, title = "allocation_mismatch", "The instance has another database than the one asked for"


class AllocationRecycled(Conflict):
    code, title = "allocation_recycled", "The instance's database is in the recycle bin"


class AllocationDeleting(Conflict):
    code, title = "allocation_deleting", "The instance's database is being removed for good"


class ProvisioningFailed(Conflict):
    """Making it failed, and doing it again by itself would not help; `errors` has the operation's own error."""

    code, title = "provisioning_failed", "The instance's database could not be made"


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocationRequest:
    """What is asked for; None: whatever is usual, or whatever the instance has."""

    instance_id: str
    dedicated: bool = False  # a server of its own
    plan: str | None = None
    engine: str | None = None
    version: str | None = None
    region: str | None = None
    # Of the project, when it is made; neither is compared later.
    name: str | None = None
    bootstrap_schema: bool = True


@dataclass(frozen=True, slots=True)
class Allocated:
    """How an allocation stands: `operation` is at work on it until it is ready. `previous_error`: why the attempt before
    failed, when this one is another."""

    project: Project
    operation: Operation | None = None
    retry_after_seconds: int = 0
    previous_error: dict[str, Any] | None = None

    @property
    def ready(self) -> bool:
        return self.operation is None


@transaction.atomic
def allocate(*, principal: Principal, organization: Organization, request: AllocationRequest) -> Allocation:
    """The instance's allocation, made now if there is none. One whose provisioning failed for a reason that may pass is
    tried again.

    Raises what `project_create` raises, and `AllocationMismatch`, `AllocationRecycled`, `AllocationDeleting`,
    `ProvisioningFailed`.
    """
    require(principal, organization, Capability.PROJECT_CREATE)
    if not INSTANCE_ID.fullmatch(request.instance_id):
        raise Invalid.field(
            "instance_id", "invalid", "Use 1 to 128 of A-Z a-z 0-9 . _ : @ / + -, beginning with a letter or digit."
        )
    found = _find(organization, request.instance_id)
    if found is None:
        # Two that come first at the same time: the second waits here, and then finds what the first has made.
        organization = Organization.objects.select_for_update(no_key=True).get(pk=organization.pk)
        found = _find(organization, request.instance_id)
    if found is None:
        return _make(principal, organization, request)
    _refuse_another(found, request)
    if _may_be_tried_again(found.project):
        _try_again(principal, found.project)
    allocation_state(found)
    return found


def allocation_state(allocation: Allocation) -> Allocated:
    """How it stands, by the rows as they are now. Raises `AllocationRecycled`, `AllocationDeleting`, `ProvisioningFailed`."""
    for _ in range(3):  # what was at work may have ended, and the next begun, between the two looks
        project, operation = _looked_at(allocation)
        if project.ready_at is not None:
            return Allocated(project)
        if operation is not None:
            return Allocated(project, operation, _wait_seconds(operation), _previous_error(operation))
        if project.failure is not None:
            break
    raise _failed(project)


def _looked_at(allocation: Allocation) -> tuple[Project, Operation | None]:
    """Its project, and the operation that is at work on it. Raises for one that is deleted, or being removed."""
    project = Project.objects.for_lists().get(pk=allocation.project_id)
    if project.desired_status == DesiredStatus.ABSENT or project.purging_at is not None:
        raise AllocationDeleting(
            f"The project “{project.slug}” is being removed for good; once it is gone, the instance gets a new database.",
            retry_after_seconds=LATE_SECONDS,
        )
    if project.desired_status == DesiredStatus.RECYCLED:
        raise AllocationRecycled(
            f"The project “{project.slug}” was deleted and is in the recycle bin: undelete it, or purge it, after which the"
            " instance gets a new database."
        )
    if project.ready_at is not None:
        return project, None
    return project, Operation.objects.live().holding().filter(project_uuid=project.pk).order_by("created_at").first()


def _find(organization: Organization, instance_id: str) -> Allocation | None:
    rows: QuerySet[Allocation] = Allocation.objects.select_related("project__plan", "project__region")
    return rows.filter(organization=organization, instance_id=instance_id).first()


def _make(principal: Principal, organization: Organization, request: AllocationRequest) -> Allocation:
    name = request.name if request.name is not None else _free_name(organization, request.instance_id)
    placement, plan = _place(request)
    wanted = ProjectRequest(
        name=name, engine=request.engine or registry.DEFAULT_ENGINE, version=request.version, region=request.region,
        plan=plan, placement=placement, description=f"Instance {request.instance_id}",
        bootstrap_schema=request.bootstrap_schema,
    )  # fmt: skip
    project = project_create(principal=principal, organization=organization, request=wanted)
    made = Allocation.objects.create(
        organization=organization, instance_id=request.instance_id, project=project, dedicated=request.dedicated
    )
    audit.record(
        principal, "allocation.created", organization=organization, project_id=project.pk, project_name=project.name,
        target=request.instance_id, data={"placement": project.placement},
    )  # fmt: skip
    return made


def _place(request: AllocationRequest) -> tuple[str, str | None]:
    """Placement and plan: on a pool where the engine can, unless a server of its own is asked for, or a plan is named whose
    projects have such. Who names no plan gets the usual one of those that live on pools, else the default one."""
    engine = registry.engines().get(request.engine or registry.DEFAULT_ENGINE)
    plans = Plan.objects.filter(enabled=True, placement=Placement.POOL)
    if request.dedicated or engine is None or domain.Capability.POOL not in engine.capabilities:
        return Placement.DEDICATED, request.plan
    if request.plan is not None:
        return (Placement.POOL if plans.filter(slug=request.plan).exists() else Placement.DEDICATED), request.plan
    usual = plans.order_by("-is_default", "position").values_list("slug", flat=True).first()
    return Placement.POOL, usual


def _free_name(organization: Organization, instance_id: str) -> str:
    """The instance's id as a project's name; with a number behind it where that is taken."""
    name, number = instance_id[:NAME_MAX], 1
    while not name_is_free(organization, name):
        number += 1
        name = f"{instance_id[: NAME_MAX - 7]} {number}"
    return name


def _refuse_another(allocation: Allocation, request: AllocationRequest) -> None:
    project = allocation.project
    has = {
        "plan": project.plan.slug, "engine": project.engine, "version": project.version, "region": project.region.slug,
    }  # fmt: skip
    asked = {f.name: getattr(request, f.name) for f in fields(request) if f.name in has}
    differ = [
        FieldProblem(name, "mismatch", f"It has {has[name]}, not {value}.")
        for name, value in asked.items()
        if value is not None and value != has[name]
    ]
    if request.dedicated != allocation.dedicated:
        ask = "provision-dedicated" if allocation.dedicated else "allocate"
        differ.append(FieldProblem("placement", "mismatch", f"It was made by `{ask}`; ask there."))
    if differ:
        raise AllocationMismatch(
            f"The instance {allocation.instance_id} has a database already. "
            + " ".join(f"{problem.field}: {problem.detail}" for problem in differ),
            errors=differ,
        )


def _may_be_tried_again(project: Project) -> bool:
    failed = (
        project.ready_at is None and project.desired_status == DesiredStatus.RUNNING and project.failure is not None
    )
    if not failed or not (project.failure or {}).get("retryable"):
        return False
    return not Operation.objects.live().holding().filter(project_uuid=project.pk).exists()


def _try_again(principal: Principal, project: Project) -> None:
    """Somebody else may have done so meanwhile, or the project was deleted: then there is nothing to do."""
    try:
        with transaction.atomic():
            project_action(principal=principal, project=project, action="retry")
    except (ActionNotAllowed, OperationInProgress):
        return


def _failed(project: Project) -> ProvisioningFailed:
    error = project.failure or {
        "code": "internal_error",
        "detail": "There is no operation at work.",
        "retryable": False,
    }
    on = (
        "Ask again: that tries it again." if error.get("retryable") else
        "Once the cause is removed, use the project's action `retry`; or delete and purge the project, and ask again."
    )  # fmt: skip
    return ProvisioningFailed(
        f"{error['detail']} {on}",
        errors=[FieldProblem("operation", str(error["code"]), str(error["detail"]))],
        retry_after_seconds=LATE_SECONDS if error.get("retryable") else None,
    )


def _wait_seconds(operation: Operation) -> int:
    """When asking again may be worth it."""
    if operation.next_attempt_at is None:
        return SOON_SECONDS
    left = (operation.next_attempt_at - now()).total_seconds()
    return round(min(LATE_SECONDS, max(SOON_SECONDS, left)))


def _previous_error(operation: Operation) -> dict[str, Any] | None:
    """Why the operation before this one failed; None when it is the first."""
    before = Operation.objects.filter(
        project_uuid=operation.project_uuid, created_at__lt=operation.created_at, error__isnull=False
    ).order_by("-created_at")  # fmt: skip
    found = before.first()
    return found.error_body() if found else None


@dataclass(frozen=True, slots=True)
class PoolRoom:
    """Pools of one engine, version, region and plan (empty: any plan)."""

    engine: str
    version: str
    region: str
    plan: str
    pools: int  # that take projects now
    preparing: int
    databases: int  # on those that take projects
    max_databases: int

    @property
    def room(self) -> bool:
        return self.databases < self.max_databases


def service_status() -> str:
    """`healthy`, or `degraded` when something is away that an allocation needs; what is asked for then waits for it."""
    checks = fleet.checks()
    return "degraded" if any(checks[part]["status"] != "healthy" for part in PARTS) else "healthy"


def pool_rooms() -> list[PoolRoom]:
    """Where a pooled database would find room at once."""
    servers = DatabaseServer.objects.filter(kind=ServerKind.POOL, draining_at=None).exclude(
        desired_state=ServerDesired.ABSENT
    )
    takes = Q(pool_ready_at__isnull=False, desired_state=ServerDesired.RUNNING) & ~Q(pool_health=Health.UNHEALTHY)
    found: dict[tuple[str, str, str, str], list[int]] = {}
    rows = servers.order_by().annotate(number=Count("databases"), plan_slug=F("plan__slug")).values_list(
        "engine", "version", "region__slug", "plan_slug", "number", "max_databases", "pool_ready_at", "pk"
    )  # fmt: skip
    taking = set(servers.filter(takes).values_list("pk", flat=True))
    for engine, version, region, plan, number, most, ready_at, pk in rows:
        sums = found.setdefault((engine, version, region, plan or ""), [0, 0, 0, 0])
        if pk in taking:
            sums[0] += 1
            sums[2] += number
            sums[3] += most
        elif ready_at is None:
            sums[1] += 1
    return [PoolRoom(*key, *sums) for key, sums in sorted(found.items())]
