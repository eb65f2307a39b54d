"""Rotation of the tenant's password: store, apply, prove, promote (rule 20). It rolls forward: there is no way back
that would not hand out a password twice."""

from __future__ import annotations

from django.db.models import F

from novastack.common.clock import now
from novastack.common.secrets import Sealed, random_password
from projects import domain
from projects.models import DatabaseRole, OnGiveUp, Operation, Project, RoleKind
from projects.operations import wiring
from projects.operations.base import DATABASE_RETRY, Definition, Step, StepFailed, register
from projects.operations.context import Context


def _login(ctx: Context) -> DatabaseRole:
    return ctx.role(RoleKind.LOGIN)


def _dual(ctx: Context) -> bool:
    return domain.Capability.DUAL_PASSWORD in ctx.engine.capabilities


def prepare(ctx: Context) -> None:
    """One pending password, however often this runs."""
    role = _login(ctx)
    if role.pending_secret is None and not ctx.row.data.get("prepared"):
        role.pending_secret = Sealed.of(random_password())
        with ctx.fenced():
            role.save(update_fields=["pending_secret", "updated_at"])
            ctx.record(prepared=True)


def apply(ctx: Context) -> None:
    role = _login(ctx)
    if role.pending_secret is None:
        return  # promoted before a crash
    pending = role.pending_secret.open()
    if _dual(ctx) and _logs_in(ctx, role, pending):
        return  # applied before a crash: once more, and the new one would be what is retained instead of the stored one
    ctx.guard()
    # Where the engine can, old and new log in until the new one is proven: at no moment is the stored one refused.
    with wiring.admin_session(ctx.engine, ctx.server) as admin:
        admin.set_password(role.name, pending, keep_old=_dual(ctx))


def _logs_in(ctx: Context, role: DatabaseRole, password: str) -> bool:
    credentials = domain.Credentials(role.name, password, ctx.database.name)
    try:
        ctx.engine.probe(ctx.server.control_endpoint, credentials, timeout_seconds=5)
    except domain.LoginRefused:
        return False
    return True


def prove(ctx: Context) -> None:
    """The new password logs in, and is promoted; the old one is refused from now on."""
    role = _login(ctx)
    if role.pending_secret is not None:
        _promote(ctx, role, role.pending_secret.open())
    if _dual(ctx):
        ctx.guard()
        with wiring.admin_session(ctx.engine, ctx.server) as admin:
            admin.discard_old_password(role.name)
    if ctx.operation.params.get("end_sessions"):
        ctx.guard()
        with wiring.admin_session(ctx.engine, ctx.server) as admin:
            ended = admin.end_sessions(role.name)
        ctx.explain(f"{ended} old sessions ended")
    else:
        ctx.explain("New logins need the new password; open sessions go on")


def _promote(ctx: Context, role: DatabaseRole, pending: str) -> None:
    try:
        ctx.engine.probe(
            ctx.server.control_endpoint, domain.Credentials(role.name, pending, ctx.database.name), timeout_seconds=5
        )
    except domain.LoginRefused as error:
        raise StepFailed("rotation_not_proven", "The server refuses the new password; it is applied again.") from error
    role.secret, role.pending_secret, role.rotated_at = Sealed.of(pending), None, now()
    with ctx.fenced():
        role.save(update_fields=["secret", "pending_secret", "rotated_at", "updated_at"])


def _done(operation: Operation) -> None:
    Project.objects.filter(pk=operation.project_key).update(generation=F("generation") + 1)


register(
    Definition(
        kind="rotate_password", title="Rotate password", on_give_up=OnGiveUp.ROLL_FORWARD, while_running=None,
        on_success=_done, yields=True,
        steps=(
            Step("prepare", "Make a new password", prepare, retry=DATABASE_RETRY, deadline_seconds=30),
            Step("apply", "Apply it", apply, retry=DATABASE_RETRY, deadline_seconds=60),
            Step("prove", "Prove it by a login", prove, retry=DATABASE_RETRY, deadline_seconds=60),
        ),
    )
)  # fmt: skip
