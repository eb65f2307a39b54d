"""Delete (into the recycle bin), undelete, purge. They roll forward: retried with capped back-off, never undone."""

from __future__ import annotations

from collections.abc import Collection
from datetime import timedelta
from typing import Any, Protocol
from uuid import UUID

from django.db.models import Q

from novastack.common.clock import now
from projects import domain
from projects.models import (
    Database,
    DatabaseRole,
    DatabaseServer,
    DatabaseSlot,
    DataTombstone,
    DesiredStatus,
    Endpoint,
    Health,
    ObservedState,
    OnGiveUp,
    Operation,
    OperationStep,
    Project,
    ProjectService,
    ProjectStatus,
    ServerDesired,
    ServerKind,
)
from projects.operations import lifecycle, registration, retiring, status, steps, wiring
from projects.operations.base import DATABASE_RETRY, SERVER_RETRY, Definition, Step, Wait, register
from projects.operations.context import Context
from projects.operations.queue import hint_on_commit, operation_create

PORT_RESERVED_DAYS = 7
# In a deletion's params: the final backup that it takes, and that this was waived.
FINAL, WAIVED = "final_backup", "final_backup_waived"


class FinalBackups(Protocol):
    """Another app's: what a deletion does about a final backup."""

    def plan(self, project: Project, kind: str, asked: bool | None, label: str) -> tuple[dict[str, Any], set[str]]:
        """Params and optional steps of the deletion. Raises a `Conflict` when one is asked for and can't be taken."""

    def recorded(self, operation: Operation) -> None: ...

    def failed(self, operation: Operation) -> None:
        """A deletion has failed for good. In the transaction that ends it."""

    def removed(self, project_id: UUID) -> None: ...


_final: list[FinalBackups] = []


def final_backups_by(other: FinalBackups) -> None:
    """From its `AppConfig.ready()` (rule 6)."""
    _final[:] = [other]


def deletion_create(
    project: Project, kind: str, *, final_backup: bool | None, optional: Collection[str] = (), created_by: Any = None,
    created_by_label: str,
) -> Operation:  # fmt: skip
    """Record a deletion, with its final backup unless that is waived (`False`); asked for (`True`) and not possible, it
    raises. In a transaction that holds the project."""
    params: dict[str, Any] = {}
    steps_too: set[str] = set()
    for final in _final:
        params, steps_too = final.plan(project, kind, final_backup, created_by_label)
    operation = operation_create(
        project=project, kind=kind, queue_behind=True, params=params, created_by=created_by,
        created_by_label=created_by_label, optional_steps={*optional, *steps_too},
    )  # fmt: skip
    for final in _final:
        final.recorded(operation)
    return operation


def waive_final(project: Project) -> Operation | None:
    """A deletion that still takes, or waits for, its final backup goes on without it. None: there is none. In a
    transaction that holds the project."""
    rows = Operation.objects.live().filter(project_uuid=project.pk, kind__in=["delete", "purge"], params__has_key=FINAL)
    waiting = list(rows.exclude(params__has_key=WAIVED).order_by("created_at").select_for_update(no_key=True))
    for found in waiting:  # a purge may wait behind a deletion, and for the same backup
        found.params = {**found.params, WAIVED: True}
        Operation.objects.filter(pk=found.pk).update(params=found.params, next_attempt_at=None, hinted_at=None)
        hint_on_commit(found.pk)
    return waiting[0] if waiting else None


def shut_out(ctx: Context) -> None:
    """Nobody may log in any more. A server that is down is shut by being down; one that refuses even us is shut by the
    next step, which stops it."""
    server = ctx.server
    if server.initialised_at is None or ctx.project.ready_at is None or server.observed_state != ObservedState.RUNNING:
        ctx.explain("The server is not running.")
        return
    ctx.guard()
    try:
        with wiring.admin_session(ctx.engine, server) as admin:
            admin.lock_tenant(ctx.names, locked=True)
    except domain.EngineError as error:
        ctx.explain(f"Not possible ({error.code}); stopping the server shuts everybody out.")


def recycled(operation: Operation) -> None:
    project = Project.objects.select_related("plan").get(pk=operation.project_key)
    project.recycled_at = project.recycled_at or now()
    project.recycle_until = project.recycled_at + timedelta(days=project.plan.recycle_days)
    project.failure, project.health, project.connections = None, Health.UNKNOWN, None
    project.save(update_fields=["recycled_at", "recycle_until", "failure", "health", "connections", "updated_at"])


def let_in(ctx: Context) -> None:
    ctx.guard()
    with wiring.admin_session(ctx.engine, ctx.server) as admin:
        admin.lock_tenant(ctx.names, locked=False)


def purge_begin(
    project: Project, *, created_by: Any = None, created_by_label: str, final_backup: bool | None = None
) -> Operation | None:
    """Want the project absent and record the purge; None if one is on its way or the project is protected. In a
    transaction."""
    locked = Project.objects.select_for_update(of=("self",), no_key=True).get(pk=project.pk)
    under_way = Operation.objects.live().filter(project_uuid=project.pk, kind="purge").exists()
    if under_way or locked.deletion_protection:
        return None
    copies = Database.objects.filter(project_id=locked.pk).exclude(slot=DatabaseSlot.CURRENT).exists()
    known = ProjectService.objects.filter(project_id=locked.pk, generation__gt=0).exists()
    operation = deletion_create(
        locked, "purge", final_backup=final_backup, created_by=created_by, created_by_label=created_by_label,
        optional={name for name, asked in (("services", known), ("copies", copies)) if asked},
    )  # fmt: skip
    locked.desired_status = DesiredStatus.ABSENT
    locked.save(update_fields=["desired_status", "updated_at"])
    status.refresh([locked.pk])
    return operation


def mark_purging(ctx: Context) -> None:
    """Final: written before the first destructive act (rule 5)."""
    steps.writes_allowed(ctx)
    ctx.guard()
    with ctx.fenced():
        Project.objects.filter(pk=ctx.project.pk, purging_at=None).update(purging_at=now())
        DatabaseServer.objects.filter(pk=ctx.server.pk).update(desired_state=ServerDesired.ABSENT)


def remove_server(ctx: Context) -> None:
    """The server goes now; its data gets a tombstone. What was never made leaves none, and nothing to wait for."""
    steps.writes_allowed(ctx)
    if never_made(ctx):
        ctx.explain("There is no server, and no data.")
        return
    ctx.adopt()
    ctx.guard()
    ctx.runtime.destroy(ctx.server.handle, delete_data=False)
    with ctx.fenced():
        steps.entomb(
            ctx.server, project_name=ctx.project.name, organization_id=ctx.project.organization_id, reason="purged"
        )
    ctx.explain("Removed")


def remove_copies(ctx: Context) -> None:
    """All databases of the project that are not current: what moves kept, or left."""
    rows = Database.objects.filter(project_id=ctx.project.pk, drop_due_at=None).exclude(slot=DatabaseSlot.CURRENT)
    for copy in rows.select_related("server__region"):
        remove_copy(ctx, copy)
    ctx.explain("Removed")


def remove_copy(ctx: Context, copy: Database) -> None:
    """An old copy goes: its database on a pool, or its server, whose data gets a tombstone. Rows go last."""
    if copy.slot == DatabaseSlot.CURRENT:
        raise ValueError("the current database is no old copy")
    server, project = copy.server, ctx.project
    ctx.guard()
    if server.kind == ServerKind.POOL:
        with ctx.fenced():  # the janitor drops it, which needs its pool up
            retiring.retire(copy)
        return
    if not server.reconcile:
        raise Wait("An operator has set the old copy's server aside: nothing is changed on it.", seconds=30)
    if server.initialised_at is not None or server.runtime_ref:
        runtime = wiring.runtime_of(server.region)
        seen = runtime.observe([server.handle])[server.handle]
        if seen.state == domain.ServerState.UNREACHABLE:
            raise domain.RuntimeUnreachable(seen.detail or "The runtime can't be reached.")
        runtime.destroy(domain.Handle(str(server.pk), server.incarnation, seen.ref), delete_data=False)
    with ctx.fenced():
        tomb = steps.entomb(
            server, project_name=project.name, organization_id=project.organization_id, reason="old copy after a move"
        )
        DataTombstone.objects.filter(pk=tomb.pk).update(project_uuid=project.pk)
        forget_copy(copy)


def forget_copy(copy: Database) -> None:
    """The rows of a database that is not current, with its server when that was its own. In a transaction."""
    server = copy.server
    DatabaseRole.objects.filter(database=copy).delete()
    copy.delete()
    if server.kind == ServerKind.DEDICATED:
        server.delete()


def never_begun(server: DatabaseServer) -> bool:
    """By the rows alone: no worker ever began to make this incarnation, so that there is nothing to look for anywhere."""
    if server.initialised_at is not None or server.runtime_ref or server.incarnation > 1:
        return False
    begun = OperationStep.objects.filter(
        operation__project_uuid=server.project_uuid, operation__kind="provision", name="server",
        started_at__isnull=False,
    )  # fmt: skip
    return not begun.exists()


def never_made(ctx: Context) -> bool:
    """Whether this incarnation was never made. A worker that died while it made it has written nothing down: then the
    runtime is asked. One that is only late takes away what it makes (`steps.create_server`)."""
    server = ctx.server
    if server.initialised_at is not None or server.runtime_ref:
        return False
    if DataTombstone.objects.filter(server_uuid=server.pk, incarnation=server.incarnation).exists():
        return False
    if never_begun(server):
        return True
    return ctx.adopt().state == domain.ServerState.ABSENT and not ctx.runtime.data_exists(server.handle)


def await_data_gone(ctx: Context) -> None:
    """Wait for the janitor: nothing is reported done that was not seen done."""
    mine = Q(server_uuid=ctx.server.pk) | Q(project_uuid=ctx.operation.project_uuid, forgotten_at=None)
    tombs = DataTombstone.objects.filter(mine, deleted_at=None).order_by("due_at")
    tomb = tombs.last()
    if tomb is not None:
        seconds = max(1.0, (tomb.due_at - now()).total_seconds())
        raise Wait(f"The data is deleted at {tomb.due_at:%H:%M:%S} UTC.", seconds=min(seconds, 60))
    ctx.explain("Data deleted")


def forget(ctx: Context) -> None:
    """Rows go last. The port stays reserved for a week: old clients still send their passwords to it (rule 14)."""
    ctx.guard()
    with ctx.fenced():  # all or nothing: half of it would leave rows that nothing points to
        remove_rows(ctx.project.pk)


def remove_rows(project_id: UUID) -> None:
    """The project's rows, but for what outlives it: operations, audit events, tombstones, the reserved port. In a
    transaction."""
    for final in _final:
        final.removed(project_id)
    Endpoint.objects.filter(project_id=project_id, shared=True, port=0).delete()  # never had a place on a pool
    Endpoint.objects.filter(project_id=project_id).update(
        project=None, reserved_until=now() + timedelta(days=PORT_RESERVED_DAYS)
    )
    DatabaseRole.objects.filter(database__project_id=project_id).delete()
    Database.objects.filter(project_id=project_id).delete()
    DatabaseServer.objects.filter(project_uuid=project_id).delete()
    Project.objects.filter(pk=project_id).delete()


def rows_gone(ctx: Context) -> None:
    if not Project.objects.filter(pk=ctx.operation.project_key).exists():
        return
    forget(ctx)


def not_removed(operation: Operation) -> None:
    """Only after five crashes in one step. The status goes on saying “deleting”, with this reason; it can be retried."""
    for final in _final:
        final.failed(operation)
    Project.objects.filter(pk=operation.project_key).update(failure=operation.error)


register(
    Definition(
        kind="delete", title="Delete", on_give_up=OnGiveUp.ROLL_FORWARD, while_running=ProjectStatus.DELETING,
        on_success=recycled, on_failure=not_removed, insists=True,
        steps=(
            Step("shut", "Shut everybody out", shut_out, retry=DATABASE_RETRY, deadline_seconds=60),
            Step("stop", "Stop the server", steps.stop_server, retry=SERVER_RETRY),
        ),
    )
)  # fmt: skip
register(
    Definition(
        kind="undelete", title="Undelete", on_give_up=OnGiveUp.ROLL_FORWARD, while_running=ProjectStatus.STARTING,
        on_success=lifecycle.started, on_failure=lifecycle.failed, yields=True,
        steps=(
            lifecycle.RUN,
            lifecycle.AWAIT,
            lifecycle.IDENTITY,
            Step("let_in", "Let the owner in again", let_in, retry=DATABASE_RETRY, deadline_seconds=60),
            lifecycle.LOGIN,
        ),
    )
)  # fmt: skip
register(
    Definition(
        kind="purge", title="Delete for good", on_give_up=OnGiveUp.ROLL_FORWARD, while_running=ProjectStatus.DELETING,
        on_failure=not_removed, insists=True,
        steps=(
            Step("mark", "Make it final", mark_purging, retry=SERVER_RETRY, deadline_seconds=60),
            Step("services", "Deregister from the services", registration.farewell, deadline_seconds=60, optional=True),
            Step("shut", "Shut everybody out", shut_out, retry=DATABASE_RETRY, deadline_seconds=60),
            Step("stop", "Stop the server", steps.stop_server, retry=SERVER_RETRY),
            Step("copies", "Remove old copies", remove_copies, retry=SERVER_RETRY, optional=True),
            Step("server", "Remove the server", remove_server, retry=SERVER_RETRY),
            Step("data", "Delete the data", await_data_gone, retry=SERVER_RETRY),
            Step("rows", "Forget it", rows_gone, retry=SERVER_RETRY, deadline_seconds=60),
        ),
    )
)  # fmt: skip
