"""Warm standbys: preparing a server that is nobody's yet, and removing one that is not wanted any more.

Preparing is provisioning without a tenant. Removing goes through the same steps as every removal, and only after the
server itself has said that it is empty: what can't be asked is not empty (rule 8), so its data stays until it can be.
"""

from __future__ import annotations

from datetime import timedelta

import structlog
from django.db import transaction
from django.db.models import F

from novastack.common.clock import now
from novastack.common.secrets import Sealed, random_password
from projects import domain, registry
from projects.models import (
    Database,
    DatabaseServer,
    OnGiveUp,
    Operation,
    ServerDesired,
    ServerKind,
    StandbyTarget,
)
from projects.operations import claiming, emptied, locks, provision, removal, steps, wiring
from projects.operations.base import (
    DATABASE_RETRY,
    PLATFORM_CONNECTIONS,
    SERVER_RETRY,
    Definition,
    RetryPolicy,
    Step,
    StepFailed,
    register,
)
from projects.operations.context import Context
from projects.operations.queue import server_operation_create

log = structlog.get_logger(__name__)

PREPARE, REMOVE = "prepare_standby", "remove_standby"
RETRY_SECONDS = 30
MAX_RETRY_SECONDS = 3600
REMOVE_AGAIN_SECONDS = 300
LABEL = "standbys"


# --- beginning ----------------------------------------------------------------------------------------------------------
def prepare_begin(target: StandbyTarget) -> Operation | None:
    """Rows for one more server of this target, and the operation that makes it. In a transaction that holds the target's
    row. None when the region prepares one already. Raises `StepFailed` when no port is free."""
    region, plan = target.region, target.plan
    locks.lock_subject(locks.subject_of("standbys", region.pk))
    preparing = Operation.objects.live().filter(kind=PREPARE, params__region=str(region.pk))
    if preparing.exists():
        return None
    engine = registry.engine(target.engine)
    locks.lock_subject(locks.subject_of("ports", region.pk))
    server = DatabaseServer.objects.create(
        kind=ServerKind.STANDBY, standby_of=target, region=region, engine=engine.name, version=target.version,
        bind_address=region.bind_address, port=steps.free_port(region), control_host=region.control_host,
        memory_bytes=plan.memory_bytes, cpus=plan.cpus, max_connections=plan.connection_limit + PLATFORM_CONNECTIONS,
        admin_username=engine.bootstrap_username, admin_secret=Sealed.of(random_password()), runtime=region.runtime,
    )  # fmt: skip
    params = {"target": str(target.pk), "region": str(region.pk)}
    return server_operation_create(server=server, kind=PREPARE, params=params, created_by_label=LABEL)


@transaction.atomic
def remove_begin(server: DatabaseServer, why: str) -> Operation | None:
    """Nobody claims it from here on, and an operation removes it. None when it was claimed since, or is being worked on."""
    row = DatabaseServer.objects.select_for_update(of=("self",)).filter(pk=server.pk, kind=ServerKind.STANDBY).first()
    if row is None or not row.reconcile:
        return None
    operation = server_operation_create(server=row, kind=REMOVE, params={"reason": why}, created_by_label=LABEL)
    if operation is not None:
        row.desired_state, row.standby_ready_at = ServerDesired.ABSENT, None
        row.save(update_fields=["desired_state", "standby_ready_at", "updated_at"])
        log.info("standby is removed", server=str(row.pk), why=why)
    return operation


# --- preparing ----------------------------------------------------------------------------------------------------------
def still_wanted(ctx: Context) -> None:
    server = ctx.server
    target = server.standby_of
    if target is None or target.count == 0:
        raise StepFailed("not_wanted", "Nobody wants this standby any more.", retryable=False)
    if server.engine not in registry.engines():
        raise StepFailed("engine_unknown", f"There is no engine {server.engine}.", retryable=False)
    ctx.explain(f"{ctx.engine.title} {server.version} in {ctx.region.name}")


def prove_ready(ctx: Context) -> None:
    """What takes long is done ahead; then as whoever claims it will look: it lets us in, and it is empty."""
    ctx.guard()
    with wiring.admin_session(ctx.engine, ctx.server) as admin:
        admin.make_place()
        things = admin.contents()
    if things:
        raise StepFailed("not_empty", f"A new server holds {', '.join(things[:5])}.", retryable=False)
    ctx.explain("Empty, and ready to be given away")


def _prepared(operation: Operation) -> None:
    moment = now()
    DatabaseServer.objects.filter(pk=operation.server_key, kind=ServerKind.STANDBY).update(
        standby_ready_at=moment, recoveries=0, updated_at=moment
    )
    StandbyTarget.objects.filter(pk=operation.params.get("target")).update(failures=0, retry_after=None, problem="")


def _not_prepared(operation: Operation) -> None:
    """Its rows go with it, unless something may be left of it: then the upkeep removes that."""
    error = operation.error or {}
    server = DatabaseServer.objects.filter(pk=operation.server_key, kind=ServerKind.STANDBY).first()
    if server is not None:
        begun = operation.steps.filter(name="server", started_at__isnull=False).exists()
        if not begun or server.incarnation > 1:
            server.delete()
        else:
            server.desired_state = ServerDesired.ABSENT
            server.save(update_fields=["desired_state", "updated_at"])
    target = StandbyTarget.objects.filter(pk=operation.params.get("target")).first()
    if target is None or error.get("code") in {"cancelled", "not_wanted"}:
        return
    delay = min(MAX_RETRY_SECONDS, RETRY_SECONDS * 2 ** min(target.failures, 8))
    StandbyTarget.objects.filter(pk=target.pk, failures__lt=1000).update(
        failures=F("failures") + 1, retry_after=now() + timedelta(seconds=delay),
        problem=f"The last one could not be made: {error.get('detail', '')}"[:500],
    )  # fmt: skip


# --- removing -----------------------------------------------------------------------------------------------------------
def prove_empty(ctx: Context) -> None:
    """Nobody's data is on it, says the server; one that is down is started for the question. What was never finished has
    let nobody in, and what is gone holds nothing."""
    steps.writes_allowed(ctx)
    server = ctx.server
    if server.kind != ServerKind.STANDBY or server.project_uuid or Database.objects.filter(server=server).exists():
        raise StepFailed("standby_in_use", "This server is a project's.", retryable=False)
    if server.initialised_at is None or emptied.given_up(server):
        ctx.explain("It was never finished, and let nobody in")
        return
    seen = ctx.adopt()
    if seen.state == domain.ServerState.ABSENT and not ctx.runtime.data_exists(server.handle):
        ctx.explain("Nothing is left of it")
        return
    if seen.state != domain.ServerState.RUNNING:
        emptied.start_again(ctx)
    steps.await_login(ctx)
    with wiring.admin_session(ctx.engine, server) as admin:
        same, things = admin.system_identifier() == server.system_identifier, admin.contents()
    if things or not same:
        with ctx.fenced():
            claiming.set_aside(server, things)
        raise StepFailed("not_empty", "It is not empty, or not the server that was made: set aside.", retryable=False)
    ctx.explain("Empty")


def remove_server(ctx: Context) -> None:
    emptied.remove_server(ctx, reason="standby removed")


def forget(ctx: Context) -> None:
    ctx.guard()
    with ctx.fenced():
        DatabaseServer.objects.filter(pk=ctx.operation.server_key, kind=ServerKind.STANDBY).delete()


def _not_removed(operation: Operation) -> None:
    """The upkeep asks again later, unless it was set aside."""
    again = now() + timedelta(seconds=REMOVE_AGAIN_SECONDS)
    DatabaseServer.objects.filter(pk=operation.server_key, kind=ServerKind.STANDBY).update(recover_after=again)


register(
    Definition(
        kind=PREPARE, title="Prepare a standby", on_give_up=OnGiveUp.UNDO, while_running=None, cancellable=True,
        on_success=_prepared, on_failure=_not_prepared,
        steps=(
            Step("verify", "See that it is wanted", still_wanted, retry=RetryPolicy(attempts=1)),
            Step("image", "Find the server's image", steps.find_image, retry=RetryPolicy(attempts=1), deadline_seconds=900),
            Step("server", "Start the server", steps.create_server, steps.discard_server, SERVER_RETRY, 120),
            Step("ready", "Wait for the first login", steps.await_login, None, RetryPolicy(attempts=1), 180, "server"),
            Step("secure", "Close the server", provision.secure, None, DATABASE_RETRY, 60, "server"),
            Step("empty", "See that it is empty", prove_ready, None, DATABASE_RETRY, 60, "server"),
            Step("limits", "Apply the plan's limits", provision.apply_limits, None, SERVER_RETRY, 60, "server"),
        ),
    )
)  # fmt: skip
register(
    Definition(
        kind=REMOVE, title="Remove a standby", on_give_up=OnGiveUp.ROLL_FORWARD, while_running=None,
        on_failure=_not_removed,
        steps=(
            Step("empty", "See that it is empty", prove_empty, retry=SERVER_RETRY, deadline_seconds=120),
            Step("server", "Remove the server", remove_server, retry=SERVER_RETRY),
            Step("data", "Delete the data", removal.await_data_gone, retry=SERVER_RETRY),
            Step("rows", "Forget it", forget, retry=SERVER_RETRY, deadline_seconds=60),
        ),
    )
)  # fmt: skip
