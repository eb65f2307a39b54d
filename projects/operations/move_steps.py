"""The steps of a move. Up to `switch` all is undone and the project goes on as before; from there on only forward."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any
from uuid import UUID

import structlog
from django.db import IntegrityError, transaction
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
    ServerDesired,
    ServerKind,
    ServiceStatus,
)
from projects.operations import copying, disks, locks, placing, pools, provision, registration, removal, steps, wiring
from projects.operations.base import StepFailed, Wait
from projects.operations.context import Context
from projects.operations.move_sides import (
    Incoming,
    Previous,
    Target,
    admitted,
    admitted_to_restore,
    ensure_up,
    final_names,
    given_back,
    keep_until,
    keeps_port,
    note,
    plan_server,
    quiet,
    renamed,
    reserve,
    side_of,
    take_final_names,
    take_slot,
)
from projects.operations.queue import operation_create

log = structlog.get_logger(__name__)
GUARD_SECONDS = 2.0
POOL_SECONDS = 900.0  # for which a shared server with room is waited for
DIFFERENCES_SHOWN = 5
MIB = 1 << 20


def _stem(ctx: Context) -> str:
    return str(ctx.operation.pk)


def row_of(ctx: Context, name: str) -> OperationStep:
    """Another step of the same operation."""
    return OperationStep.objects.get(operation=ctx.operation, name=name)


# --- before anybody notices ---------------------------------------------------------------------------------------------
def verify(ctx: Context) -> None:
    """The target fits, by what is true now; the source answers and holds nothing that a copy would lose."""
    target, project = Target.of(ctx.operation), ctx.project
    if project.purging_at is not None:
        raise StepFailed("project_gone", "The project is being removed.", retryable=False)
    if domain.Capability.COPY not in ctx.engine.capabilities:
        raise StepFailed("move_not_supported", f"{ctx.engine.title} can't be moved yet.", retryable=False)
    if not target.region.available:
        raise StepFailed("region_unavailable", f"{target.region.name} has no runtime.", retryable=False)
    if reason := target.region.reason_against(ctx.engine.name, project.version):
        raise StepFailed("region_unavailable", f"{target.region.name} can't run it: {reason}.", retryable=False)
    steps.writes_allowed(ctx)
    ensure_up(ctx)
    with wiring.admin_session(ctx.engine, ctx.server) as admin:
        size = admin.stats(ctx.names.database).size_bytes
        obstacles = admin.obstacles(ctx.names, renamed=target.on_pool)
    if size > target.storage_bytes:
        raise StepFailed("plan_too_small", too_small(size, target.storage_bytes, target.plan.name), retryable=False)
    if obstacles:
        raise StepFailed("not_movable", f"A copy would lose: {'; '.join(obstacles)}.", retryable=False)
    ctx.record(size_bytes=size, password_known=password_known(ctx))
    ctx.explain(
        f"{size / MIB:.0f} MiB to {target.region.name}, {'a pool' if target.on_pool else 'a server of its own'}"
    )


def too_small(size: int, storage: int, plan: str) -> str:
    return f"The database has {size / MIB:.0f} MiB; the plan {plan} allows {storage / MIB:.0f} MiB."


def password_known(ctx: Context) -> bool:
    """Whether the stored password logs in: tenants may have changed it themselves, and then we can't prove theirs."""
    for secret in wiring.role_candidates(ctx.role(RoleKind.LOGIN)):
        try:
            ctx.engine.probe(
                ctx.server.control_endpoint, domain.Credentials(ctx.names.login, secret, ctx.names.database)
            )
        except domain.LoginRefused:
            continue
        except domain.ServerBusy:
            return True
        return True
    return False


def note_password(ctx: Context) -> None:
    """`fence`, once and before it locks: tenants may have changed their password since `verify`, hours ago."""
    if "password_known" not in ctx.row.data:
        ctx.record(password_known=password_known(ctx))


def _knew_password(ctx: Context) -> bool:
    """Whether the stored password was the login's when clients were shut out."""
    fenced = row_of(ctx, "fence").data  # begun by an older version it does not say
    return bool(fenced.get("password_known", row_of(ctx, "verify").data["password_known"]))


def find_image(ctx: Context) -> None:
    target = Target.of(ctx.operation)
    if target.on_pool:
        ctx.explain("The pool has one")
        return
    plan_server(ctx, target)
    steps.find_image(ctx.seen_as(Incoming))


def get_server(ctx: Context) -> None:
    """A server of its own by the same steps as provisioning, or a slot on a pool."""
    target = Target.of(ctx.operation)
    if target.on_pool:
        take_pool_slot(ctx, target)
        return
    side = ctx.seen_as(Incoming)
    steps.create_server(side)
    ctx.explain(f"Listening on {side.server.bind_address}:{side.server.port}")


def take_pool_slot(ctx: Context, target: Target, called: Mapping[str, str] | None = None) -> None:
    """On a pool with room; when none has any one is made, as for those who provision. `called`: as in `take_slot`."""
    if "since" not in ctx.row.data:
        ctx.record(since=now().isoformat())
    try:
        found = take_slot(ctx, target, called)
    except placing.AllBusy:
        raise Wait("Other projects are being placed at this moment.", seconds=2) from None
    except IntegrityError:
        raise Wait("Another move on that pool uses the same names for now.", seconds=10) from None
    if found:
        ctx.explain("A place on a shared server")
        return
    waited = (now() - datetime.fromisoformat(ctx.row.data["since"])).total_seconds()
    if waited > POOL_SECONDS:
        raise StepFailed("no_pool", "No shared server with room came up in time.", retryable=False)
    project, plan = ctx.project, target.plan  # as `placing` makes them
    ctx.guard()
    with transaction.atomic():
        subject = f"{target.region.pk}:{project.engine}:{project.version}"
        locks.lock_subject(locks.subject_of("placing", subject))
        pools.pool_begin(
            region=target.region, engine=project.engine, version=project.version, plan=plan, created_by_label="move"
        )
    why = pools.waiting_reason(target.region, project.engine, project.version, plan)
    raise Wait(why or "A shared server is being prepared.", seconds=5)


def await_server(ctx: Context) -> None:
    if not Target.of(ctx.operation).on_pool:
        steps.await_login(ctx.seen_as(Incoming))


def secure(ctx: Context) -> None:
    if Target.of(ctx.operation).on_pool:
        ctx.explain("It was closed when it was made")
        return
    side = ctx.seen_as(Incoming)
    provision.secure(side)
    provision.apply_limits(side)
    ctx.explain("Closed, with the plan's limits")


def make_database(ctx: Context) -> None:
    """Database and roles as at the source, and closed: nobody gets in before the copy is proven."""
    side = ctx.seen_as(Incoming)
    names, login, control = side.names, side.role(RoleKind.LOGIN), side.role(RoleKind.CONTROL)
    if login.secret is None or control.secret is None:
        raise StepFailed("internal_error", "The roles have no passwords.", retryable=False)
    ctx.guard()
    with wiring.admin_session(ctx.engine, side.server) as admin:
        if ctx.row.data.get("made"):
            admin.drop_tenant(names)  # of an attempt before
        else:
            ctx.record(made=True)
        admin.create_tenant(
            names, login_password=login.secret.open(), control_password=control.secret.open(),
            blank=side.database.made_of,
        )  # fmt: skip
        admin.lock_tenant(names, locked=True)
        quiet(side, admin, names, quiet=True)
    with ctx.fenced():
        Database.objects.filter(pk=side.database.pk).update(created_in_engine_at=now(), made_of="", locked_at=now())
    ctx.explain(f"{names.database}, closed until the copy is proven")


def discard(ctx: Context) -> None:
    """Undo: the copy goes; the source never needed it."""
    if not ctx.operation.params.get("incoming"):
        return
    side = ctx.seen_as(Incoming)
    if not Database.objects.filter(project_id=ctx.project.pk, slot=side.slot, server_id__in=side.servers()).exists():
        return
    steps.writes_allowed(ctx)
    server, names = side.server, side.names
    try:
        copying.remove_tools(None, side.runtime, _stem(ctx))
        if server.kind == ServerKind.POOL:
            ctx.guard()
            with wiring.admin_session(ctx.engine, server) as admin:
                admin.drop_tenant(names)
                if (final := final_names(ctx)) and final[RoleKind.LOGIN] != names.login:
                    admin.rename_tenant(renamed(names, final), names)  # half-done
                    admin.drop_tenant(names)
        else:
            side.adopt()
            ctx.guard()
            side.runtime.destroy(server.handle, delete_data=False)
    except domain.RuntimeUnreachable:
        if server.kind == ServerKind.POOL:
            raise
        ctx.say("The target can't be reached; what was made there is removed when it can.", level="warning")
    with ctx.fenced():
        if server.kind != ServerKind.POOL:
            steps.entomb(
                server,
                project_name=ctx.project.name,
                organization_id=ctx.operation.organization_id,
                reason="move undone",
            )
        removal.forget_copy(side.database)
        note(ctx, incoming="", final_names={})
    ctx.say("Undone: the copy was removed.")


# --- clients are shut out -----------------------------------------------------------------------------------------------
def fence(ctx: Context) -> None:
    """Nobody of the tenant's is in, or gets in (rule 31). From here on the clock of the downtime runs."""
    ensure_up(ctx)
    note_password(ctx)
    if "fenced_at" not in ctx.row.data:
        ctx.record(fenced_at=now().isoformat())
    ctx.guard()
    with wiring.admin_session(ctx.engine, ctx.server) as admin:
        quiet(ctx, admin, ctx.names, quiet=True)
        admin.lock_tenant(ctx.names, locked=True)
        obstacles = admin.obstacles(ctx.names, renamed=Target.of(ctx.operation).on_pool)
    if obstacles:
        raise StepFailed("not_movable", f"A copy would lose: {'; '.join(obstacles)}.", retryable=False)
    ctx.explain("No client is connected, none can connect")
    ctx.say("Clients are shut out; the copy begins.")


def unfence(ctx: Context) -> None:
    """Undo: the project runs as before. It waits for the server rather than give up: nobody else would let clients in."""
    try:
        copying.remove_tools(ctx.runtime, None, _stem(ctx))
        ensure_up(ctx)
        ctx.guard()
        with wiring.admin_session(ctx.engine, ctx.server) as admin:
            admin.dismiss_tool(ctx.names, ctx.names.tool)
            if ctx.project.desired_status == DesiredStatus.RUNNING:
                admin.lock_tenant(ctx.names, locked=False)
            quiet(ctx, admin, ctx.names, quiet=False)
    except (domain.EngineError, StepFailed) as error:
        raise Wait(f"The server does not let us open it again: {error}"[:300], seconds=5) from error
    ctx.say("Undone: clients are let in again, at the old place.")


def copy(ctx: Context) -> None:
    """Dump and restore, streamed. Done again, it begins with an empty database."""
    ensure_up(ctx)
    _at_rest(ctx)
    side = ctx.seen_as(Incoming)
    names = side.names
    with target_errors():
        if ctx.row.data.get("begun"):
            copying.remove_tools(ctx.runtime, side.runtime, _stem(ctx))
            empty_again(ctx, side, names)
        ctx.record(begun=True)
        taker = admitted_to_restore(side, names)
    giver = admitted(ctx, ctx.names)
    began = time.monotonic()
    watched = _watched(ctx, lambda so_far: ctx.record(moved=so_far))
    try:
        moved = copying.copy(ctx.engine, side_of(ctx, giver), side_of(side, taker), stem=_stem(ctx), pulse=watched)
    except StepFailed as error:
        if error.code == "target_lost" and disks.is_full(side.region):  # a server without room for its log just ends
            detail = f"The disk of {side.region.name} is full."
            raise StepFailed("target_full", detail, retryable=False) from error
        raise
    with target_errors():
        ctx.engine.finish_copy(side.server.control_endpoint, taker, names)
        given_back(side, names)
    with wiring.admin_session(ctx.engine, ctx.server) as admin:
        around = admin.around(ctx.names)
        hashes = {} if _knew_password(ctx) else admin.password_hashes(ctx.names)
        hashes = {names.login if login == ctx.names.login else login: kept for login, kept in hashes.items()}
    with target_errors(), wiring.admin_session(ctx.engine, side.server) as admin:
        admin.put_around(names, around)
        admin.put_password_hashes(names, hashes)  # of one that the tenant has changed itself
        if admin.around(names) != around:
            raise StepFailed("copy_differs", "Settings around the database did not arrive.", retryable=False)
    seconds = time.monotonic() - began
    ctx.record(bytes=moved, seconds=round(seconds, 2))
    ctx.explain(f"{moved / MIB:.1f} MiB in {seconds:.1f} s")


def _at_rest(ctx: Context) -> None:
    """A server that was started anew meanwhile does things by itself again."""
    with wiring.admin_session(ctx.engine, ctx.server) as admin:
        quiet(ctx, admin, ctx.names, quiet=True)


class target_errors:
    """A target that goes away while clients are shut out is a failure, not a wait: the source is opened again."""

    def __enter__(self) -> None:
        return

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, domain.RuntimeUnreachable | domain.ServerNotReady):
            raise StepFailed("target_lost", f"The target does not answer any more: {error}"[:300]) from error


def empty_again(ctx: Context, side: Context, names: domain.TenantNames) -> None:
    login, control = side.role(RoleKind.LOGIN), side.role(RoleKind.CONTROL)
    if login.secret is None or control.secret is None:
        raise StepFailed("internal_error", "The roles have no passwords.", retryable=False)
    ctx.guard()
    with wiring.admin_session(ctx.engine, side.server) as admin:
        admin.drop_tenant(names)
        admin.create_tenant(names, login_password=login.secret.open(), control_password=control.secret.open())
        admin.lock_tenant(names, locked=True)
        quiet(side, admin, names, quiet=True)


def _watched(ctx: Context, told: Callable[[int], None]) -> Callable[[int], None]:
    """What a long piece of work calls: promises are looked at often, the rows every few seconds."""
    asked = [time.monotonic()]

    def pulse(moved: int = 0) -> None:
        ctx.pulse()
        if time.monotonic() - asked[0] > GUARD_SECONDS:
            asked[0] = time.monotonic()
            ctx.guard()
            told(moved)

    return pulse


def compare(ctx: Context) -> None:
    """Source and copy, read in the same way, all of both: not one row or object may differ."""
    ensure_up(ctx)
    _at_rest(ctx)
    side = ctx.seen_as(Incoming)
    names = side.names
    with target_errors():
        _at_rest(side)
        theirs = admitted(side, names)
    mine = admitted(ctx, ctx.names)
    stop = threading.Event()

    def pulse() -> None:
        ctx.pulse()
        if stop.is_set():
            raise StepFailed("copy_interrupted", "Comparing was interrupted.")

    ends = ((ctx.server.control_endpoint, mine), (side.server.control_endpoint, theirs))
    engine, watched = ctx.engine, _watched(ctx, lambda _: None)
    with ThreadPoolExecutor(2, thread_name_prefix="fingerprint") as pool:
        both = [pool.submit(engine.fingerprint, endpoint, login, pulse=pulse) for endpoint, login in ends]
        try:
            while not all(each.done() for each in both):
                watched(0)
                time.sleep(0.05)
        except BaseException:
            stop.set()
            raise
    source = both[0].result()
    with target_errors():
        copied = both[1].result()
    if found := source.differences(copied):
        for line in found[:20]:
            ctx.say(line, level="error")
        shown = "; ".join(found[:DIFFERENCES_SHOWN])
        more = f" and {len(found) - DIFFERENCES_SHOWN} more" if len(found) > DIFFERENCES_SHOWN else ""
        raise StepFailed("copy_differs", f"The copy is not what the source is: {shown}{more}.", retryable=False)
    ctx.record(tables=len(source.tables), rows=source.rows, facts=len(source.facts))
    ctx.explain(f"{source.rows} rows of {len(source.tables)} tables and {len(source.facts)} facts are equal")


def hand_over(ctx: Context) -> None:
    """The new server takes the old one's port, so that clients need no new address. Only when both are on one machine."""
    side = ctx.seen_as(Incoming)
    take_final_names(ctx, side)
    if not keeps_port(ctx.project, ctx.database, Target.of(ctx.operation)):
        ctx.explain("The address changes")
        return
    old, new = ctx.server, side.server
    if "port" not in ctx.row.data:
        ctx.record(port=new.port)
    steps.stop_server(ctx)
    wanted = ctx.endpoint.port
    try:
        _publish(side, wanted)
        ctx.explain(f"{ctx.endpoint.host}:{wanted}, as before")
    except domain.PortTaken:
        _publish(side, int(ctx.row.data["port"]))
        ctx.say(f"Port {wanted} belongs to somebody else by now: the address changes.", level="warning")
        ctx.explain(f"The address changes to port {new.port}")
    log.info("port handed over", old=str(old.pk), new=str(new.pk), port=new.port)


def _publish(side: Context, port: int) -> None:
    """Run the incoming server at this port, on its data."""
    server = side.server
    side.adopt()
    if server.port != port:
        side.guard()
        side.runtime.stop(server.handle, grace_seconds=15)
        server.port = port
        side.save_server("port")
    side.guard()
    with target_errors():
        steps.ensure(side, wiring.server_request(server, required=side.tls_required), domain.DataPolicy.MUST_EXIST)
        steps.await_login(side)


def hand_back(ctx: Context) -> None:
    """Undo: the old server has its port again, and runs."""
    port = ctx.row.data.get("port")
    if port is None:
        return
    side = ctx.seen_as(Incoming)
    try:
        side.adopt()
        ctx.guard()
        side.runtime.stop(side.server.handle, grace_seconds=10)
        side.server.port = int(port)
        side.save_server("port")
        ctx.server.desired_state = ServerDesired.RUNNING
        ctx.save_server("desired_state")
        ensure_up(ctx)
    except (domain.EngineError, domain.NovaStackRuntimeError, StepFailed) as error:
        if isinstance(error, domain.RuntimeUnreachable):
            raise
        raise Wait(f"The old server does not start again yet: {error}"[:300], seconds=5) from error


# --- the switch ---------------------------------------------------------------------------------------------------------
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


# --- after it -----------------------------------------------------------------------------------------------------------
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
    if login.secret is not None and _knew_password(ctx):
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
