"""A warm standby becomes a project's server: in one transaction, and only one that was seen to answer and to be empty.

A worker that is killed before the transaction leaves the standby free; one that is killed after it leaves a project whose
server is initialised, which the next worker goes on with. What was claimed never returns: undone, it is removed like
any other server.
"""

from __future__ import annotations

import structlog

from novastack.common.clock import now
from projects import domain
from projects.models import (
    Database,
    DatabaseRole,
    DatabaseServer,
    Endpoint,
    ObservedState,
    OperationStep,
    ServerDesired,
    ServerKind,
    StepState,
)
from projects.operations import certificates, wiring
from projects.operations.context import Context

log = structlog.get_logger(__name__)

STEP = "server"  # of provisioning, which claims
CANDIDATES = 3  # looked at before a new server is made
LOOK_SECONDS = 2.0


def take(ctx: Context) -> bool:
    """Give the project a standby in place of the server that its rows only plan. True when it has one that answers."""
    if _was_claimed(ctx):
        return _answers(ctx, ctx.server)
    if not _is_only_planned(ctx):
        return False
    for standby in _fitting(ctx):
        if _answers(ctx, standby) and _claim(ctx, standby):
            ctx.forget_rows()
            ctx.explain(f"A server that was ready, on {ctx.server.bind_address}:{ctx.server.port}")
            ctx.say(f"Server {ctx.server.handle.name} was ready, on {ctx.server.bind_address}:{ctx.server.port}.")
            return True
    return False


def claimed(ctx: Context) -> bool:
    """Whether this provisioning has taken a standby for the server that the project has now."""
    steps = OperationStep.objects.filter(operation=ctx.operation, name=STEP)
    return steps.filter(data__standby=str(ctx.server.pk)).exists()


def _was_claimed(ctx: Context) -> bool:
    return bool(ctx.row.data.get("standby") == str(ctx.server.pk))


def _is_only_planned(ctx: Context) -> bool:
    """Nobody has begun to make the server of the rows, so that nothing is lost with them: this is the first time that
    this step is entered, for the server's first incarnation."""
    row, server = ctx.row, ctx.server
    first = row.attempt == 1 and row.crashes == 0 and not row.detail and not row.data
    return first and server.incarnation == 1 and server.initialised_at is None and not server.runtime_ref


def _fitting(ctx: Context) -> list[DatabaseServer]:
    """Those that are what would be made now. Memory must be the same, since engines size their caches when they start;
    CPU is changed on the running server."""
    server = ctx.server
    rows = DatabaseServer.objects.filter(
        kind=ServerKind.STANDBY, region_id=server.region_id, engine=server.engine, version=server.version,
        runtime=server.runtime, image=server.image, image_digest=server.image_digest,
        memory_bytes=server.memory_bytes, max_connections=server.max_connections, bind_address=server.bind_address,
        control_host=server.control_host, admin_username=server.admin_username, desired_state=ServerDesired.RUNNING,
        observed_state=ObservedState.RUNNING, reconcile=True, standby_ready_at__isnull=False,
    ).order_by("standby_ready_at")  # fmt: skip
    found = list(rows[:CANDIDATES])
    return [row for row in found if _certificate_fits(ctx, row)]


def _certificate_fits(ctx: Context, row: DatabaseServer) -> bool:
    if not row.tls_certificate:
        return not ctx.tls_required
    return row.tls_names == certificates.names_of(row, ctx.endpoint) and not certificates.is_due(row.tls_not_after)


def _answers(ctx: Context, server: DatabaseServer) -> bool:
    """It lets us in, it is the one that was made, and nobody was ever given anything on it: read from the server itself,
    since rows that were restored from a backup may say less than is true (rule 8)."""
    try:
        with wiring.admin_session(ctx.engine, server, timeout_seconds=LOOK_SECONDS) as admin:
            found, things = admin.system_identifier(), admin.contents()
    except domain.EngineError as error:
        log.warning("standby does not answer", server=str(server.pk), error=str(error))
        _give_up(server, "It did not answer when it was wanted.")
        return False
    if server.kind != ServerKind.STANDBY:
        return found == server.system_identifier
    if things or found != server.system_identifier:
        log.error("standby is not empty, or another one", server=str(server.pk), holds=things[:5])
        set_aside(server, things)
        return False
    return True


def _give_up(server: DatabaseServer, why: str) -> None:
    """Nobody claims it any more; the upkeep replaces it."""
    DatabaseServer.objects.filter(pk=server.pk, kind=ServerKind.STANDBY).update(
        standby_ready_at=None, observed_detail=why, updated_at=now()
    )


def set_aside(server: DatabaseServer, things: list[str]) -> None:
    """For an operator to look at: it is neither claimed nor removed."""
    what = f"It holds {', '.join(things[:5])}" if things else "Its data is not its own"
    DatabaseServer.objects.filter(pk=server.pk, kind=ServerKind.STANDBY).update(
        reconcile=False, standby_ready_at=None, observed_detail=f"{what}: set aside."[:500], updated_at=now()
    )


def _claim(ctx: Context, standby: DatabaseServer) -> bool:
    """The one transaction. False when somebody else was faster, or it is to be removed."""
    planned = ctx.server
    with ctx.fenced():
        free = DatabaseServer.objects.select_for_update(skip_locked=True, of=("self",)).filter(
            pk=standby.pk, kind=ServerKind.STANDBY, desired_state=ServerDesired.RUNNING, reconcile=True,
            standby_ready_at__isnull=False, incarnation=standby.incarnation, runtime_ref=standby.runtime_ref,
        )  # fmt: skip
        taken = free.first()
        if taken is None:
            return False
        Database.objects.filter(server=planned).update(server=taken)
        DatabaseRole.objects.filter(server=planned).update(server=taken)
        DatabaseServer.objects.filter(pk=planned.pk).delete()
        taken.kind, taken.project_uuid = ServerKind.DEDICATED, ctx.project.pk
        taken.standby_of, taken.standby_ready_at, taken.observed_at = None, None, now()
        taken.save(
            update_fields=["kind", "project_uuid", "standby_of", "standby_ready_at", "observed_at", "updated_at"]
        )
        Endpoint.objects.filter(project=ctx.project).update(port=taken.port, control_port=taken.port, updated_at=now())
        ctx.row.data = {**ctx.row.data, "standby": str(taken.pk)}
        OperationStep.objects.filter(pk=ctx.row.pk).update(data=ctx.row.data)
        skipped = _not_needed(ctx, taken)
        OperationStep.objects.filter(operation=ctx.operation, name__in=skipped).update(
            state=StepState.SKIPPED, detail="Done when the server was made ready"
        )
    ctx.skipped |= skipped
    return True


def _not_needed(ctx: Context, taken: DatabaseServer) -> set[str]:
    """Later steps of provisioning that were done ahead. Should the server have to be started again, they are run again."""
    done = {"ready"}
    if not ctx.tls_required or ctx.engine.tls_only:  # the engine has no plain connections that could be refused
        done.add("secure")
    if (taken.memory_bytes, taken.cpus) == (ctx.project.memory_bytes, ctx.project.cpus):
        done.add("limits")
    return done
