"""Start, stop, restart, resize."""

from __future__ import annotations

from datetime import timedelta

from django.db.models import F

from novastack.common.clock import now
from projects import domain
from projects.models import DatabaseServer, Health, OnGiveUp, Operation, Project, ProjectStatus
from projects.operations import steps, wiring
from projects.operations.base import SERVER_RETRY, Definition, RetryPolicy, Step, register
from projects.operations.context import Context

RUN = Step("server", "Start the server", steps.run_server, retry=SERVER_RETRY)
AWAIT = Step("ready", "Wait for a login", steps.await_login, None, RetryPolicy(attempts=2), 300, "server")
IDENTITY = Step("identity", "Check that the data is its own", steps.check_identity, None, SERVER_RETRY, 60, "server")
LOGIN = Step("login", "Verify by a real login", steps.prove_tenant, None, SERVER_RETRY, 60, "server")
STOP = Step("stop", "Stop the server", steps.stop_server, retry=SERVER_RETRY)


def resize(ctx: Context) -> None:
    """New limits on the running server, without a restart; a stopped one gets them with its next start."""
    server, project = ctx.server, ctx.project
    server.memory_bytes, server.cpus = project.memory_bytes, project.cpus
    ctx.save_server("memory_bytes", "cpus")
    if server.initialised_at is None:
        return
    if ctx.adopt().state == domain.ServerState.ABSENT:
        ctx.explain("There is no server now; they hold from its next start on.")
        return
    ctx.guard()
    ctx.runtime.update(server.handle, wiring.limits_of(server))
    ctx.explain(f"{server.memory_bytes // 2**20} MiB, {float(server.cpus):g} CPU")


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
    )
)  # fmt: skip
