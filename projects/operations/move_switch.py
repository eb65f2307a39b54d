"""The steps of a move from `switch` on: the copy is the project's database; from here on only forward."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from django.db import transaction
from django.db.models import F

from novastack.common.clock import now
from projects import domain
from projects.models import (
    Database,
    DatabaseServer,
    DatabaseSlot,
    DesiredStatus,
    Endpoint,
    Health,
    ObservedState,
    Operation,
    OperationStep,
    Project,
    ProjectService,
    RoleKind,
    ServerKind,
    ServiceStatus,
)
from projects.operations import registration, removal, steps, wiring
from projects.operations.context import Context
from projects.operations.move_copying import knew_password
from projects.operations.move_sides import Incoming, Previous, Target, ensure_up, keep_until, quiet, reserve
from projects.operations.move_steps import row_of
from projects.operations.queue import operation_create


def switch(ctx: Context) -> None:
    """One transaction: from its commit on the copy is the project's database."""
    target = Target.of(ctx.operation)
    if str(ctx.database.server_id) != ctx.operation.params["source"]:
        return  # done before a crash
    side = ctx.seen_as(Incoming)
    ctx.guard()
    with transaction.atomic():
        Project.objects.select_for_update(of=("self",), no_key=True).get(pk=ctx.project.pk)
        with ctx.fenced():
            switch_rows(ctx, side, target)
            ctx.commit()
    ctx.explain(f"{side.server.control_host}:{side.server.port} is the project's server")


def switch_rows(ctx: Context, side: Context, target: Target) -> None:
    moment, old, new = now(), ctx.server, side.server
    before = Endpoint.objects.get(project_id=ctx.project.pk)
    old_address = (before.region_id, before.port)
    handed_over = new.kind == ServerKind.DEDICATED and new.port == old.port and new.region_id == old.region_id
    Database.objects.filter(pk=ctx.database.pk).update(slot=DatabaseSlot.PREVIOUS, keep_until=keep_until(moment))
    Database.objects.filter(pk=side.database.pk).update(slot=DatabaseSlot.CURRENT)
    if old.kind == ServerKind.DEDICATED:
        changes: dict[str, Any] = {"project_uuid": None, "updated_at": moment}
        if handed_over:  # were it ever started again, then not in its successor's place
            changes["port"] = int(row_of(ctx, "address").data["port"])
        DatabaseServer.objects.filter(pk=old.pk).update(**changes)
    if new.kind == ServerKind.DEDICATED:
        DatabaseServer.objects.filter(pk=new.pk).update(
            project_uuid=ctx.project.pk, observed_state=ObservedState.RUNNING, observed_at=moment, updated_at=moment,
            recoveries=0, recover_after=None,
        )  # fmt: skip
    Endpoint.objects.filter(pk=before.pk).update(
        region=target.region, host=target.region.client_host, port=new.port, control_host=new.control_host,
        control_port=new.port, bind_address=new.bind_address, shared=new.kind == ServerKind.POOL, updated_at=moment,
    )  # fmt: skip
    if old_address != (target.region.pk, new.port) and not before.shared:
        reserve(before, removal.PORT_RESERVED_DAYS)
    Project.objects.filter(pk=ctx.project.pk).update(
        region=target.region, plan=target.plan, placement=target.placement, memory_bytes=target.memory_bytes,
        cpus=target.cpus, storage_bytes=target.storage_bytes, generation=F("generation") + 1, health=Health.UNKNOWN,
        health_checked_at=None, write_fence_applied=False, updated_at=moment,
    )  # fmt: skip


def let_in(ctx: Context) -> None:
    """Clients get in at the new place, which a login as the tenant proves, or ours where the tenant's password is its own
    secret."""
    ensure_up(ctx)
    control = ctx.role(RoleKind.CONTROL)
    if control.secret is not None:
        ours = domain.Credentials(ctx.names.control, control.secret.open(), ctx.names.database)
        ctx.engine.probe(ctx.server.control_endpoint, ours, timeout_seconds=5)
    login = ctx.role(RoleKind.LOGIN)
    wanted = ctx.project.desired_status == DesiredStatus.RUNNING
    ctx.guard()
    with wiring.admin_session(ctx.engine, ctx.server) as admin:
        admin.dismiss_tool(ctx.names, ctx.names.tool)
        if wanted:
            admin.lock_tenant(ctx.names, locked=False)
        quiet(ctx, admin, ctx.names, quiet=False)
    with ctx.fenced():
        pooled = ctx.server.kind == ServerKind.POOL
        Database.objects.filter(pk=ctx.database.pk).update(locked_at=now() if pooled and not wanted else None)
    if not wanted:
        _put_result(ctx)
        ctx.explain("It stays stopped")
        return
    if login.secret is not None and knew_password(ctx):
        credentials = domain.Credentials(ctx.names.login, login.secret.open(), ctx.names.database)
        try:
            ctx.engine.probe(ctx.server.control_endpoint, credentials, timeout_seconds=5)
        except domain.ServerBusy:
            pass  # clients were faster
        except domain.LoginRefused:
            with wiring.admin_session(ctx.engine, ctx.server) as admin:
                admin.set_password(ctx.names.login, login.secret.open())
            ctx.engine.probe(ctx.server.control_endpoint, credentials, timeout_seconds=5)
    _put_result(ctx)
    away = ctx.operation.result["downtime_seconds"]
    where = f"{ctx.endpoint.host}:{ctx.endpoint.port}"
    ctx.explain(f"Logged in as {ctx.names.login} at {where}; clients were shut out for {away:.1f} s")


def _put_result(ctx: Context) -> None:
    if ctx.operation.result.get("downtime_seconds") is not None:
        return
    began = datetime.fromisoformat(row_of(ctx, "fence").data["fenced_at"])
    # A swap back has nothing to copy.
    rows = {row.name: row.data for row in OperationStep.objects.filter(operation=ctx.operation)}
    told, copied = rows.get("compare", {}), rows.get("copy", {})
    before = ctx.operation.params["before"]
    downtime = round((now() - began).total_seconds(), 2)
    address = {"host": ctx.endpoint.host, "port": ctx.endpoint.port}
    names = {"database": ctx.names.database, "username": ctx.names.login}
    result = {
        "downtime_seconds": downtime, "tables": told.get("tables"), "rows": told.get("rows"),
        "bytes": copied.get("bytes"),
        "before": before, "after": {**address, **names},
        "address_changed": address != {"host": before["host"], "port": before["port"]},
        "names_changed": names != {"database": before["database"], "username": before["username"]},
    }  # fmt: skip
    with ctx.fenced():
        Operation.objects.filter(pk=ctx.operation.pk).update(result=result)
    ctx.operation.result = result
    ctx.say(f"Clients are let in at {ctx.endpoint.host}:{ctx.endpoint.port} after {downtime:.1f} s.")


def retire(ctx: Context) -> None:
    """The old copy stays, out of the way: its server stopped, or on a pool its login locked. A server that can't be reached
    now lets nobody of the tenant's in either, since the fence, and goes on until it is removed."""
    side = ctx.seen_as(Previous)
    server = side.server
    try:
        if server.kind == ServerKind.POOL:
            ctx.guard()
            with wiring.admin_session(ctx.engine, server) as admin:
                admin.dismiss_tool(side.names, side.names.tool)
            with ctx.fenced():
                Database.objects.filter(pk=side.database.pk).update(locked_at=now())
        else:
            steps.stop_server(side)
    except (domain.RuntimeUnreachable, domain.EngineError) as error:
        ctx.say(
            f"The old server could not be stopped; it lets nobody in, and is removed in time: {error}"[:300],
            level="warning",
        )
    kept = side.database.keep_until
    with ctx.fenced():
        result = {**ctx.operation.result, "kept_until": kept.isoformat() if kept else None}
        Operation.objects.filter(pk=ctx.operation.pk).update(result=result)
    _leave_services(ctx)
    ctx.explain(f"Kept until {kept:%Y-%m-%d %H:%M} UTC" if kept else "Kept")


def _leave_services(ctx: Context) -> None:
    """Services of another region know the project no more; those of the new one are told when this has ended."""
    before = UUID(ctx.operation.params["before"]["region"])
    if before != ctx.project.region_id:
        registration.leave_region(ctx, before)


def moved(operation: Operation) -> None:
    """The project is where it should be; services that knew its address are told the new one."""
    well = Project.objects.filter(pk=operation.project_key, desired_status=DesiredStatus.RUNNING)
    well.update(failure=None, health=Health.HEALTHY, health_detail="", health_checked_at=now())
    project = Project.objects.get(pk=operation.project_key)
    wanted = ProjectService.objects.filter(project=project, generation__gt=0).exclude(status=ServiceStatus.DISABLED)
    left = ProjectService.objects.filter(project=project, reason=registration.MOVED_AWAY)
    names = sorted({*wanted.values_list("service_type", flat=True), *left.values_list("service_type", flat=True)})
    if names and operation.result.get("address_changed"):
        for name in names:
            registration.new_generation(project, name)
        operation_create(
            project=project, kind="register_services", queue_behind=True, params={"services": names},
            created_by_label=operation.created_by_label,
        )  # fmt: skip
