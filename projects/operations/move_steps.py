"""The steps of a move up to the copy's place: all is undone, and the project goes on as before without noticing."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from django.db import IntegrityError, transaction

from novastack.common.clock import now
from projects import domain
from projects.models import Database, OperationStep, RoleKind, ServerKind
from projects.operations import copying, locks, placing, pools, provision, removal, steps, wiring
from projects.operations.base import StepFailed, Wait
from projects.operations.context import Context
from projects.operations.move_sides import (
    Incoming,
    Target,
    ensure_up,
    final_names,
    note,
    plan_server,
    quiet,
    renamed,
    take_slot,
)

POOL_SECONDS = 900.0  # for which a shared server with room is waited for
MIB = 1 << 20


def stem_of(ctx: Context) -> str:
    return str(ctx.operation.pk)


def row_of(ctx: Context, name: str) -> OperationStep:
    """Another step of the same operation."""
    return OperationStep.objects.get(operation=ctx.operation, name=name)


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
        copying.remove_tools(None, side.runtime, stem_of(ctx))
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
