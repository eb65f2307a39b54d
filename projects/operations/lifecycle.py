"""Start, stop, restart, resize."""

from __future__ import annotations

from datetime import timedelta

from django.db.models import F

from novastack.common.clock import now
from projects import domain
from projects.models import DatabaseServer, Health, OnGiveUp, Operation, Project, ProjectStatus
from projects.operations import steps, wiring
from projects.operations.base import SERVER_RETRY, Definition, RetryPolicy, Step, StepFailed, register
from projects.operations.context import Context

SPARE_BYTES = 16 << 20  # above what it uses: between two breaths it uses more
RUN = Step("server", "Start the server", steps.run_server, retry=SERVER_RETRY)
AWAIT = Step("ready", "Wait for a login", steps.await_login, None, RetryPolicy(attempts=2), 300, "server")
IDENTITY = Step("identity", "Check that the data is its own", steps.check_identity, None, SERVER_RETRY, 60, "server")
LOGIN = Step("login", "Verify by a real login", steps.prove_tenant, None, SERVER_RETRY, 60, "server")
STOP = Step("stop", "Stop the server", steps.stop_server, retry=SERVER_RETRY)


def resize(ctx: Context) -> None:
    """New limits on the running server, without a restart; a stopped one gets them with its next start. Less memory than
    it uses is refused: the kernel would end it. Growing, the limit goes first; shrinking, the server's own sizes do."""
    server = ctx.server
    wanted = domain.Limits(memory_bytes=ctx.project.memory_bytes, cpus=float(ctx.project.cpus))
    seen = ctx.adopt() if server.initialised_at is not None else None
    if seen is None or seen.state == domain.ServerState.ABSENT:
        _put_limits(ctx)
        if seen is not None:
            ctx.explain("There is no server now; they hold from its next start on.")
        return
    running = seen.state == domain.ServerState.RUNNING
    shrinks = running and wanted.memory_bytes < _limit_now(ctx)
    fitted = False
    if shrinks:
        fitted = _fit(ctx, wanted)
        _refuse_below_use(ctx, wanted)
    ctx.guard()
    try:
        ctx.runtime.update(server.handle, wanted)
    except domain.LimitTooSmall:
        _refuse_below_use(ctx, wanted, sure=True)
    if running and not shrinks:
        fitted = wanted.memory_bytes not in {server.memory_bytes, server.sized_for_bytes} and _fit(ctx, wanted)
    if fitted:
        server.sized_for_bytes = wanted.memory_bytes
    _put_limits(ctx)
    later = f" {ctx.engine.resize_words}" if server.restart_pending else ""
    ctx.explain(f"{server.memory_bytes // 2**20} MiB, {float(server.cpus):g} CPU.{later}")


def _limit_now(ctx: Context) -> int:
    """What the row says, or more if the runtime sees more."""
    seen = ctx.runtime.usage([ctx.server.handle])[ctx.server.handle].memory_limit_bytes
    return max(ctx.server.memory_bytes, seen or 0)


def _put_limits(ctx: Context) -> None:
    server, project = ctx.server, ctx.project
    server.memory_bytes, server.cpus = project.memory_bytes, project.cpus
    ctx.save_server("memory_bytes", "cpus", "sized_for_bytes")


def _fit(ctx: Context, limits: domain.Limits) -> bool:
    """Have the server fit its own sizes; False when they wait for its next start. That it doesn't answer now is no reason
    against a limit: then they wait, too."""
    ctx.guard()
    try:
        with wiring.admin_session(ctx.engine, ctx.server) as admin:
            return admin.resize(limits)
    except (domain.ServerNotReady, domain.ServerBusy, domain.LoginRefused, domain.TlsNotTrusted) as error:
        ctx.say(
            f"The server could not be asked to fit itself ({error.code}); it does at its next start.", level="warning"
        )
        return False


def _refuse_below_use(ctx: Context, wanted: domain.Limits, *, sure: bool = False) -> None:
    """`StepFailed` when the server uses more than that; what it was told is taken back first."""
    used = ctx.runtime.usage([ctx.server.handle])[ctx.server.handle].memory_bytes
    if not sure and (used is None or used + SPARE_BYTES <= wanted.memory_bytes):
        return
    _fit(ctx, wiring.limits_of(ctx.server))
    uses = f"The server uses {used // 2**20 + 1} MiB now" if used else "The server uses more than that"
    raise StepFailed(
        "limit_too_small",
        f"{uses}: {wanted.memory_bytes // 2**20} MiB would end it. Its limits are as they were. Stop the project first, or"
        " choose more.",
        retryable=False,
    )


def not_resized(operation: Operation) -> None:
    """The rows say what holds: the limits that the server has."""
    server = DatabaseServer.objects.filter(project_uuid=operation.project_uuid).first()
    if server is not None and server.initialised_at is not None:
        Project.objects.filter(pk=operation.project_key).update(memory_bytes=server.memory_bytes, cpus=server.cpus)


def started(operation: Operation) -> None:
    Project.objects.filter(pk=operation.project_key).update(
        failure=None, health=Health.HEALTHY, health_detail="", health_checked_at=now(), generation=F("generation") + 1
    )


def failed(operation: Operation) -> None:
    """The reason stays on the project until something succeeds. Being cut short is no failure."""
    if operation.error and operation.error["code"] == "cancelled":
        return
    Project.objects.filter(pk=operation.project_key).update(failure=operation.error)
    server = DatabaseServer.objects.filter(project_uuid=operation.project_uuid).first()
    if server is not None:
        server.recover_after = now() + timedelta(seconds=min(300, 5 * 2 ** min(server.recoveries, 6)))
        server.save(update_fields=["recover_after", "updated_at"])


def stopped(operation: Operation) -> None:
    Project.objects.filter(pk=operation.project_key).update(
        failure=None, health=Health.UNKNOWN, health_detail="", connections=None
    )


def _kind(kind: str, title: str, status: ProjectStatus | None, *parts: Step, success: object, **extra: object) -> None:
    register(
        Definition(
            kind=kind, title=title, steps=parts, on_give_up=OnGiveUp.UNDO, while_running=status,
            on_success=success, on_failure=failed, yields=True, **extra,  # type: ignore[arg-type]
        )
    )  # fmt: skip


# Starting and stopping leave nothing to undo: `UNDO` here means that they end as failed after their attempts.
_kind("start", "Start", ProjectStatus.STARTING, RUN, AWAIT, IDENTITY, LOGIN, success=started)
_kind("recover", "Recover", ProjectStatus.STARTING, RUN, AWAIT, IDENTITY, LOGIN, success=started)
_kind("restart", "Restart", ProjectStatus.STARTING, STOP, RUN, AWAIT, IDENTITY, LOGIN, success=started)
_kind("stop", "Stop", ProjectStatus.STOPPING, STOP, success=stopped)
register(
    Definition(
        kind="resize", title="Change limits", on_give_up=OnGiveUp.ROLL_FORWARD, while_running=None, yields=True,
        steps=(Step("limits", "Apply the limits", resize, retry=SERVER_RETRY, deadline_seconds=60),),
        on_failure=not_resized,
    )
)  # fmt: skip
