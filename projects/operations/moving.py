"""Moves: a project's database gets another place, by a copy that is proven before anybody uses it (ADR 0025).

The source stays as it is, only fenced, until one transaction makes the copy the project's database; whatever fails before
is undone, whatever comes after only goes forward. The old copy is kept for a while and then removed (`copies_due`).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.db import transaction

from accounts.services import audit
from novastack.common.clock import now
from novastack.common.errors import Conflict
from projects import domain, registry
from projects.models import (
    Database,
    DatabaseServer,
    DatabaseSlot,
    DesiredStatus,
    Endpoint,
    Health,
    OnGiveUp,
    Operation,
    Placement,
    Plan,
    Project,
    ProjectStatus,
    Region,
    RoleKind,
    ServerKind,
)
from projects.operations import lifecycle, move_copying, move_steps, move_switch, pool_removal, removal, wiring
from projects.operations.base import (
    DATABASE_RETRY,
    PLATFORM_CONNECTIONS,
    SERVER_RETRY,
    Definition,
    RetryPolicy,
    Step,
    register,
)
from projects.operations.context import Context
from projects.operations.queue import operation_create

MOVE, DISCARD, CHANGE_PLAN = "move", "discard_copy", "change_plan"
HOURS = 3600.0
ONCE = RetryPolicy(attempts=1)
TWICE = RetryPolicy(attempts=2, delay_seconds=2)
# What a copy takes, for previews: measured (docs/benchmarks.md), rounded against us.
FIXED_SECONDS = 6.0
BYTES_PER_SECOND = 8 << 20


def move_begin(
    project: Project,
    *,
    placement: str | None = None,
    region: Region | None = None,
    plan: Plan | None = None,
    memory_bytes: int | None = None,
    cpus: Any = None,
    created_by: Any = None,
    created_by_label: str,
) -> Operation:
    """Record the move of a project; what is not given stays as it is, but for sizes, which are the new plan's when that
    changes. In a transaction. Raises `OperationInProgress`; nobody's rights or quotas are looked at here."""
    current = Database.objects.select_related("server").get(project=project, slot=DatabaseSlot.CURRENT)
    endpoint = Endpoint.objects.get(project=project)
    region, chosen = region or project.region, plan or project.plan
    changed = chosen.pk != project.plan_id
    login = current.roles.filter(kind=RoleKind.LOGIN).order_by("created_at")[0]
    params = {
        "placement": placement or project.placement, "region": str(region.pk), "plan": str(chosen.pk),
        "memory_bytes": memory_bytes or (chosen.memory_bytes if changed else project.memory_bytes),
        "cpus": str(cpus or (chosen.cpus if changed else project.cpus)),
        "storage_bytes": chosen.storage_bytes if changed else project.storage_bytes,
        "source": str(current.server_id),
        "before": {
            "placement": project.placement, "region": str(project.region_id), "plan": project.plan.slug,
            "host": endpoint.host, "port": endpoint.port, "database": current.name, "username": login.name,
        },
    }  # fmt: skip
    return operation_create(
        project=project, kind=MOVE, params=params, created_by=created_by, created_by_label=created_by_label
    )


@pool_removal.mover
def move_out(project: Project, pool: DatabaseServer) -> str:
    """Of a pool that is drained: to another pool, as it is, running or stopped. Why not now; empty: it has begun."""
    if domain.Capability.COPY not in registry.engine(project.engine).capabilities:
        return "move_not_supported: this engine can't be moved yet; delete the project, or keep the pool."
    if project.ready_at is None or project.purging_at is not None:
        return "It is being made, or removed."
    try:
        with transaction.atomic():
            move_begin(project, placement=Placement.POOL, created_by_label="drain")
    except Conflict as error:
        return str(error.detail)
    return ""


def estimated_downtime(size_bytes: int | None) -> float:
    """Seconds for which clients will be shut out, roughly."""
    return round(FIXED_SECONDS + (size_bytes or 0) / BYTES_PER_SECOND, 1)


def keep_hours() -> float:
    """For how long an old copy is kept."""
    return float(settings.NOVASTACK_MOVE_KEEP_HOURS)


MOVE_DEFINITION = Definition(
    kind=MOVE,
    title="Move",
    on_give_up=OnGiveUp.UNDO,
    while_running=ProjectStatus.MOVING,
    cancellable=True,
    yields=True,
    once=True,
    on_success=move_switch.moved,
    steps=(
        Step("verify", "Verify the move", move_steps.verify, retry=TWICE, deadline_seconds=360),
        Step("image", "Find the server's image", move_steps.find_image, retry=ONCE, deadline_seconds=900),
        Step("server", "Get the new place", move_steps.get_server, move_steps.discard, SERVER_RETRY, 300),
        Step("ready", "Wait for the first login", move_steps.await_server, retry=ONCE, deadline_seconds=180),
        Step("secure", "Close the server", move_steps.secure, retry=DATABASE_RETRY, deadline_seconds=60),
        Step(
            "database", "Create database and user", move_steps.make_database, retry=DATABASE_RETRY, deadline_seconds=60
        ),
        Step("fence", "Shut clients out", move_copying.fence, move_copying.unfence, TWICE, 360),
        Step("copy", "Copy", move_copying.copy, retry=TWICE, deadline_seconds=12 * HOURS),
        Step("compare", "Compare source and copy", move_copying.compare, retry=TWICE, deadline_seconds=6 * HOURS),
        Step("address", "Take over the address", move_copying.hand_over, move_copying.hand_back, TWICE, 360),
        Step("switch", "Switch", move_switch.switch, retry=SERVER_RETRY, deadline_seconds=60),
        Step("open", "Let clients in", move_switch.let_in, retry=DATABASE_RETRY, deadline_seconds=360),
        Step("keep", "Keep the old copy", move_switch.retire, retry=SERVER_RETRY, deadline_seconds=120),
    ),
)
register(MOVE_DEFINITION)


# --- old copies ---------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class CopiesDue:
    """`databases` may be removed now; `seen` is what this look found due; `later` says that more are, and when they go."""

    databases: list[Database]
    seen: list[str]
    later: str


def copies_due(seen_before: Collection[str]) -> CopiesDue:
    """Kept copies whose time is over (rule 8): due at two daily looks, of projects whose present database was proven and
    is well; the oldest first, at most max(3, 5 %) of the databases at one look. The others go at the next ones."""
    due = list(
        Database.objects.filter(
            slot=DatabaseSlot.PREVIOUS, keep_until__lte=now(), project__purging_at=None, drop_due_at=None
        )
        .select_related("project", "server")
        .order_by("keep_until")
    )
    most = max(3, Database.objects.count() // 20)
    seen = [str(row.pk) for row in due]
    ready = [row for row in due if str(row.pk) in seen_before and _is_replaced(row)]
    rest = len(ready) - most
    later = f"{len(ready)} old copies are due: {most} go now, {rest} at the next looks." if rest > 0 else ""
    return CopiesDue(ready[:most], seen, later)


def _is_replaced(copy: Database) -> bool:
    """The project's present database is another one, answers, and was last seen well."""
    project = copy.project
    current = Database.objects.filter(project=project, slot=DatabaseSlot.CURRENT).exclude(server=copy.server)
    proven = current.filter(server__initialised_at__isnull=False).exists()
    return proven and project.status == ProjectStatus.RUNNING and project.health == Health.HEALTHY


def discard_begin(copy: Database, *, created_by_label: str) -> Operation | None:
    """Record the removal of a kept copy; None while somebody works on its project. In a transaction."""
    project = Project.objects.select_for_update(of=("self",), no_key=True).get(pk=copy.project_id)
    if project.desired_status != DesiredStatus.RUNNING or not _is_replaced(copy):
        return None
    try:
        with transaction.atomic():
            operation = operation_create(
                project=project, kind=DISCARD, params={"database": str(copy.pk), "source": str(copy.server_id)},
                created_by_label=created_by_label,
            )  # fmt: skip
    except Conflict:
        return None
    audit.record(
        None, "project.copy_removed", organization_id=project.organization_id, project_id=project.pk,
        project_name=project.name, target=project.slug, data={"operation": str(operation.pk)},
    )  # fmt: skip
    return operation


def remove_copy(ctx: Context) -> None:
    """Of one old copy: its server and, by the janitor, its data; or its database on a pool. Never the current one."""
    copy = Database.objects.filter(pk=ctx.operation.params["database"]).select_related("server__region").first()
    if copy is None:
        ctx.explain("Removed")
        return
    removal.remove_copy(ctx, copy)
    ctx.explain("Removed")


register(
    Definition(
        kind=DISCARD, title="Remove the old copy", on_give_up=OnGiveUp.UNDO, while_running=None, yields=True, once=True,
        steps=(Step("copy", "Remove the old copy", remove_copy, retry=SERVER_RETRY, deadline_seconds=120),),
    )
)  # fmt: skip


def has_copies(project: Project) -> bool:
    return Database.objects.filter(project=project).exclude(slot=DatabaseSlot.CURRENT).exists()


def kept(project: Project) -> list[Database]:
    """Old copies that are still there, the newest first."""
    rows = Database.objects.filter(project=project, slot=DatabaseSlot.PREVIOUS).select_related("server__region")
    return list(rows.order_by("-keep_until"))


# --- another plan at the same place ---------------------------------------------------------------------------------------
def put_limits(ctx: Context) -> None:
    """Memory and CPU on a server of its own; on a pool they are the pool's."""
    if ctx.server.kind == ServerKind.POOL:
        ctx.explain("Memory and CPU are the pool's")
        return
    lifecycle.resize(ctx)


def put_connections(ctx: Context) -> None:
    """How many connections the login may have. A server's own maximum follows at its next start."""
    most, login = int(ctx.operation.params["connection_limit"]), ctx.role(RoleKind.LOGIN)
    ctx.guard()
    with wiring.admin_session(ctx.engine, ctx.server) as admin:
        admin.limit_connections(login.name, most)
    with ctx.fenced():
        login.connection_limit = most
        login.save(update_fields=["connection_limit", "updated_at"])
        if ctx.server.kind == ServerKind.DEDICATED:
            ctx.server.max_connections = most + PLATFORM_CONNECTIONS
            ctx.server.save(update_fields=["max_connections", "updated_at"])
    ctx.explain(f"At most {most}")


def _plan_not_changed(operation: Operation) -> None:
    """The rows say what holds."""
    before = operation.params["before"]
    Project.objects.filter(pk=operation.project_key).update(
        plan_id=before["plan"], memory_bytes=before["memory_bytes"], cpus=before["cpus"],
        storage_bytes=before["storage_bytes"],
    )  # fmt: skip


register(
    Definition(
        kind=CHANGE_PLAN, title="Change plan", on_give_up=OnGiveUp.UNDO, while_running=None, once=True,
        on_failure=_plan_not_changed,
        steps=(
            Step("limits", "Apply the limits", put_limits, retry=SERVER_RETRY, deadline_seconds=60),
            Step("connections", "Apply the connection limit", put_connections, retry=DATABASE_RETRY, deadline_seconds=60),
        ),
    )
)  # fmt: skip
