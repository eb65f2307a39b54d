"""Pools that go: drained until nobody is left, then removed, which only the server's own word allows (rule 8).

Draining holds no lock on the server: a pool that fails meanwhile is started again, and a move locks both its ends. What moves
a project out is registered by whoever can (`mover`), so that this module knows nothing of moves.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import NoReturn
from uuid import UUID

import structlog
from django.db import transaction

from novastack.common.clock import now
from projects import domain
from projects.models import (
    BlankDatabase,
    Database,
    DatabaseServer,
    DatabaseSlot,
    Endpoint,
    OnGiveUp,
    Operation,
    OperationLock,
    OperationState,
    Project,
    ServerDesired,
    ServerKind,
)
from projects.operations import base, emptied, locks, pools, removal, steps, wiring
from projects.operations.base import SERVER_RETRY, Definition, Step, StepFailed, Wait, register
from projects.operations.context import Context
from projects.operations.queue import hint_on_commit, make_steps, server_operation_create

log = structlog.get_logger(__name__)

DRAIN, REMOVE = "drain_pool", "remove_pool"
DRAIN_SECONDS = 5.0  # between two looks at what is left
MOVES_AT_ONCE = 2
MOVE_AGAIN_SECONDS, MOVE_AGAIN_MOST = 600, 6 * 3600  # after a move out that failed; doubled each time
REMOVE_AGAIN_SECONDS = 300
# Records the move of one project out of the pool that drains it. Returns why it can't begin now; empty: it has begun.
Mover = Callable[[Project, DatabaseServer], str]
_movers: list[Mover] = []


def mover(function: Mover) -> Mover:
    """Register what moves a project out of a pool that is drained; called outside of transactions. The last one counts."""
    _movers.append(function)
    return function


# --- draining -----------------------------------------------------------------------------------------------------------
def drain_begin(server: DatabaseServer, *, created_by_label: str) -> Operation | None:
    """From here on nothing is placed on it, and everybody moves out; then it is removed. None when it is drained already. In
    a transaction."""
    subject = locks.subject_of("drain", server.pk)
    locks.lock_subject(subject)  # before the row, as in the runner
    row = pools.pools().select_for_update(of=("self",)).get(pk=server.pk)
    if Operation.objects.live().filter(kind=DRAIN, server_uuid=row.pk).exists():
        return None
    definition = base.latest_definition(DRAIN)
    operation = Operation.objects.create(
        kind=DRAIN, definition_version=definition.version, on_give_up=definition.on_give_up, server_uuid=row.pk,
        created_by_label=created_by_label,
    )  # fmt: skip
    make_steps(operation, definition)
    OperationLock.objects.create(operation=operation, subject=subject, mode="exclusive", granted=True)
    if row.draining_at is None:
        row.draining_at = now()
        row.save(update_fields=["draining_at", "updated_at"])
    hint_on_commit(operation.pk)
    return operation


def move_out(ctx: Context) -> None:
    """A few projects at a time, until nothing is on it. Says which are left."""
    server = ctx.server
    rows = list(Database.objects.filter(server=server).select_related("project").order_by("created_at"))
    if not rows:
        ctx.explain("Nobody is on it")
        return
    left = [row for row in rows if row.slot == DatabaseSlot.CURRENT]
    ids = [row.project_id for row in rows]
    at_work = set(
        Operation.objects.live().holding().filter(project_uuid__in=ids).values_list("project_uuid", flat=True)
    )
    failed = _failed_moves(server, ids)
    moving, reasons = len(at_work), {}
    for row in left:
        if row.project_id in at_work or not _movers:
            continue
        reason = _too_soon(failed.get(row.project_id, []))
        if not reason and moving < MOVES_AT_ONCE:
            ctx.guard()
            reason = _movers[-1](row.project, server)
            moving += not reason
        if reason:
            reasons[row.project.name] = reason
    raise Wait(_who_is_left(left, len(rows) - len(left), reasons), seconds=DRAIN_SECONDS)


def _failed_moves(server: DatabaseServer, ids: list[UUID]) -> dict[UUID, list[Operation]]:
    """Project → its moves that failed since the pool is drained, the newest first."""
    since = Operation.objects.filter(
        kind="move", state=OperationState.FAILED, project_uuid__in=ids, created_at__gte=server.draining_at or now()
    )
    found: dict[UUID, list[Operation]] = {}
    for operation in since.order_by("-created_at"):
        if operation.project_uuid is not None:
            found.setdefault(operation.project_uuid, []).append(operation)
    return found


def _too_soon(failed: list[Operation]) -> str:
    """Each try shuts clients out for a while: after a failure the next one waits, longer each time."""
    if not failed or failed[0].finished_at is None:
        return ""
    again = failed[0].finished_at + timedelta(seconds=min(MOVE_AGAIN_MOST, MOVE_AGAIN_SECONDS * 2 ** (len(failed) - 1)))
    if again <= now():
        return ""
    why = str((failed[0].error or {}).get("detail", ""))[:120]
    return f"{why} Next try at {again:%H:%M} UTC."


def _who_is_left(left: list[Database], others: int, reasons: dict[str, str]) -> str:
    parts = []
    if left:
        names = ", ".join(row.project.name for row in left[:10])
        parts.append(f"{len(left)} left: {names}{f' and {len(left) - 10} more' if len(left) > 10 else ''}.")
    if others:
        parts.append(f"{others} old or given-up database{'' if others == 1 else 's'} kept for their time.")
    parts += ["; ".join(f"{name}: {reason}" for name, reason in list(reasons.items())[:3])] if reasons else []
    return " ".join(parts)[:480]


def _drained(operation: Operation) -> None:
    """The upkeep removes it in its next tick: rows decide, so that nothing is lost with a hint."""
    log.info("pool drained", server=str(operation.server_key))


def _not_drained(operation: Operation) -> None:
    """Cancelled: it takes projects again, unless it is being removed."""
    if (operation.error or {}).get("code") == "cancelled":
        mine = pools.pools().filter(pk=operation.server_key, desired_state=ServerDesired.RUNNING)
        mine.update(draining_at=None, updated_at=now())


# --- removing -----------------------------------------------------------------------------------------------------------
@transaction.atomic
def remove_begin(server: DatabaseServer, why: str) -> Operation | None:
    """Nobody is placed on it from here on, and an operation removes it. None when somebody is on it, or works on it."""
    locks.lock_subject(locks.subject_of("server", server.pk))  # before the row, as in the runner
    row = pools.pools().select_for_update(of=("self",)).filter(pk=server.pk).first()
    if row is None or not row.reconcile or Database.objects.filter(server=row).exists():
        return None
    if server.draining_at is not None and row.draining_at is None:
        return None  # somebody wants it again
    if Operation.objects.live().filter(kind=DRAIN, server_uuid=row.pk).exists():
        return None
    operation = server_operation_create(server=row, kind=REMOVE, params={"reason": why[:200]}, created_by_label="pools")
    if operation is not None:
        row.desired_state, row.pool_ready_at = ServerDesired.ABSENT, None
        row.save(update_fields=["desired_state", "pool_ready_at", "updated_at"])
        log.info("pool is removed", pool=row.name, why=why)
    return operation


def prove_empty(ctx: Context) -> None:
    """Nobody's data is on it, says the server; one that is down is started for the question. What was never finished has
    let nobody in, and what is gone holds nothing. One that holds something no row knows is set aside."""
    steps.writes_allowed(ctx)
    server = ctx.server
    if server.kind != ServerKind.POOL or Database.objects.filter(server=server).exists():
        raise StepFailed("pool_in_use", "Projects are on this pool.", retryable=False)
    if emptied.given_up(server):
        ctx.explain("Its data was given up before")
        return
    seen = ctx.adopt()
    if seen.state == domain.ServerState.ABSENT and not ctx.runtime.data_exists(server.handle):
        ctx.explain("Nothing is left of it")
        return
    if server.initialised_at is None and seen.state != domain.ServerState.RUNNING:
        ctx.explain("It was never finished, and let nobody in")
        return
    if server.initialised_at is None:
        _prove_unfinished(ctx)
        return
    if seen.state != domain.ServerState.RUNNING:
        emptied.start_again(ctx)
    steps.await_login(ctx)
    same, things = _asked(ctx)
    if things or not same:
        _set_aside(ctx, f"It holds {', '.join(things[:5])}" if things else "Its data is not its own")
    ctx.explain("Empty")


def _prove_unfinished(ctx: Context) -> None:
    """The rows say that it was never finished; but rows that come from a backup may know less than is true (rule 8). It
    runs, so it is asked."""
    try:
        _, things = _asked(ctx)
    except domain.LoginRefused:  # only what was finished has another password than the one that it was made with
        _set_aside(ctx, "It runs and refuses our login")
    if things:
        _set_aside(ctx, f"It holds {', '.join(things[:5])}")
    ctx.explain("It was never finished, and is empty")


def _asked(ctx: Context) -> tuple[bool, list[str]]:
    """Whether it is the server of its row, and what it holds besides blanks, says the server."""
    blanks = set(BlankDatabase.objects.filter(server=ctx.server).values_list("name", flat=True))
    with wiring.admin_session(ctx.engine, ctx.server) as admin:
        same = admin.system_identifier() == ctx.server.system_identifier
        return same, [name for name in admin.contents() if name not in blanks]


def _set_aside(ctx: Context, what: str) -> NoReturn:
    """For an operator to look at."""
    told = f"{what}, which no row knows: set aside."
    with ctx.fenced():
        pools.pools().filter(pk=ctx.server.pk).update(reconcile=False, observed_detail=told[:500], updated_at=now())
    raise StepFailed("not_empty", told, retryable=False)


def remove_server(ctx: Context) -> None:
    emptied.remove_server(ctx, reason="pool removed")


def forget(ctx: Context) -> None:
    """The row goes; its port stays reserved for a week, if anybody ever had it: old clients still send passwords to it."""
    ctx.guard()
    with ctx.fenced():
        server = pools.pools().filter(pk=ctx.operation.server_key).first()
        if server is None:
            return
        if server.port and server.initialised_at is not None:
            locks.lock_subject(locks.subject_of("ports", server.region_id))
            Endpoint.objects.create(
                project=None, project_uuid=server.pk, region_id=server.region_id, host=server.region.client_host,
                port=server.port, control_host=server.control_host, control_port=server.port,
                bind_address=server.bind_address,
                reserved_until=now() + timedelta(days=removal.PORT_RESERVED_DAYS),
            )  # fmt: skip
        server.delete()
    ctx.explain("Forgotten")


def _not_removed(operation: Operation) -> None:
    """The upkeep asks again later, unless it was set aside."""
    again = now() + timedelta(seconds=REMOVE_AGAIN_SECONDS)
    pools.pools().filter(pk=operation.server_key).update(recover_after=again)


register(
    Definition(
        kind=DRAIN, title="Drain a pool", on_give_up=OnGiveUp.ROLL_FORWARD, while_running=None, cancellable=True,
        on_success=_drained, on_failure=_not_drained,
        steps=(Step("move", "Move everybody out", move_out, retry=SERVER_RETRY, deadline_seconds=60),),
    )
)  # fmt: skip
register(
    Definition(
        kind=REMOVE, title="Remove a pool", on_give_up=OnGiveUp.ROLL_FORWARD, while_running=None,
        on_failure=_not_removed,
        steps=(
            Step("empty", "See that it is empty", prove_empty, retry=SERVER_RETRY, deadline_seconds=120),
            Step("server", "Remove the server", remove_server, retry=SERVER_RETRY),
            Step("data", "Delete the data", removal.await_data_gone, retry=SERVER_RETRY),
            Step("rows", "Forget it", forget, retry=SERVER_RETRY, deadline_seconds=60),
        ),
    )
)  # fmt: skip
