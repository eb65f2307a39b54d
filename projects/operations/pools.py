"""Pools: servers with room for many projects' databases. Preparing one, and starting one again that was seen down.

A pool that could not be made keeps its row with the reason: the next wish for such a pool takes it up again, later each
time, and the daily clean-up removes what nobody took up. Removing and draining: `pool_removal`.
"""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from uuid import UUID

import structlog
from django.db.models import Count, QuerySet

from novastack.common.clock import now
from novastack.common.logs import without_places
from novastack.common.secrets import Sealed, random_password
from projects import registry
from projects.models import (
    Database,
    DatabaseServer,
    Health,
    ObservedState,
    OnGiveUp,
    Operation,
    Placement,
    Plan,
    Project,
    Region,
    ServerDesired,
    ServerKind,
)
from projects.operations import lifecycle, locks, pool_sizes, provision, status, steps, wiring
from projects.operations.base import (
    DATABASE_RETRY,
    SERVER_RETRY,
    Definition,
    RetryPolicy,
    Step,
    StepFailed,
    register,
)
from projects.operations.context import Context
from projects.operations.queue import hint_health, hint_on_commit, server_operation_create

log = structlog.get_logger(__name__)

PREPARE, RECOVER, RESTART = "prepare_pool", "recover_pool", "restart_pool"
RETRY_SECONDS = 30
MAX_RETRY_SECONDS = 3600
MAX_RECOVERY_DELAY_SECONDS = 300


# --- looking ------------------------------------------------------------------------------------------------------------
def pools() -> QuerySet[DatabaseServer]:
    return DatabaseServer.objects.filter(kind=ServerKind.POOL)


def pools_open() -> QuerySet[DatabaseServer]:
    """On which projects are placed as long as they have room: ready, running, not set aside, not draining."""
    return pools().filter(
        pool_ready_at__isnull=False, draining_at=None, desired_state=ServerDesired.RUNNING,
        observed_state=ObservedState.RUNNING, reconcile=True,
    )  # fmt: skip


def pool_used(server: DatabaseServer) -> int:
    """How many of its places are taken: by databases in any slot, also those that are being made, moved or removed."""
    return Database.objects.filter(server=server).count()


def used_by_pool(servers: list[DatabaseServer]) -> dict[UUID, int]:
    """Server → taken places; one query."""
    rows = Database.objects.filter(server__in=[s.pk for s in servers]).order_by().values_list("server")
    return dict(rows.annotate(Count("pk")))


def preparing(region: Region, engine: str, version: str, plan: Plan | None) -> DatabaseServer | None:
    """The pool of this kind that is being prepared now."""
    mine = pools().filter(region=region, engine=engine, version=version, plan=plan, pool_ready_at=None)
    live = Operation.objects.live().filter(kind=PREPARE, server_uuid__in=mine.values("pk"))
    return mine.filter(pk__in=live.values("server_uuid")).first()


def waiting_reason(region: Region, engine: str, version: str, plan: Plan | None) -> str:
    """Why a project of this kind has no place yet, for tenants: without addresses and paths, which operators find on the
    pool. Empty when nobody makes one and none failed."""
    return without_places(_waiting_reason(region, engine, version, plan))


def _waiting_reason(region: Region, engine: str, version: str, plan: Plan | None) -> str:
    row = preparing(region, engine, version, plan)
    if row is not None:
        operation = Operation.objects.live().filter(kind=PREPARE, server_uuid=row.pk).order_by("-created_at").first()
        step = operation.steps.exclude(state="pending").order_by("-position").first() if operation else None
        detail = step.detail if step and (step.state in {"retrying", "waiting"} or step.error_code) else ""
        return f"A pool is being made ready{f': {step.title}' if step else ''}{f' ({detail})' if detail else ''}."[:500]
    # Not of one that was ready once and goes: what is said of that names its tenants.
    failed = _failed(region, engine, version, plan).filter(initialised_at=None).first()
    if failed is None:
        return ""
    later = failed.recover_after is not None and failed.recover_after > now()
    again = f" Next try at {failed.recover_after:%H:%M:%S} UTC." if later else ""
    return f"A pool could not be made: {failed.observed_detail}{again}"[:500]


def _failed(region: Region, engine: str, version: str, plan: Plan | None) -> QuerySet[DatabaseServer]:
    """Those that could not be made and are nobody's work now; the newest first."""
    mine = pools().filter(
        region=region, engine=engine, version=version, plan=plan, pool_ready_at=None, draining_at=None,
        desired_state=ServerDesired.ABSENT, recoveries__gt=0,
    )  # fmt: skip
    return mine.exclude(pk__in=Operation.objects.live().filter(server_uuid__in=mine).values("server_uuid"))


def health_of(server: DatabaseServer) -> tuple[str, str]:
    """Its health now, and why: what the last check said, unless it was seen otherwise since."""
    if server.pool_ready_at is None and server.desired_state == ServerDesired.ABSENT:
        return server.pool_health, server.pool_health_detail
    if not server.region.reachable or server.observed_state == ObservedState.UNREACHABLE:
        return Health.UNKNOWN, "Its region can't be reached."
    if server.observed_state in {ObservedState.STOPPED, ObservedState.ABSENT}:
        return Health.UNHEALTHY, server.observed_detail or f"The server was seen {server.observed_state}."
    return server.pool_health, server.pool_health_detail


# --- beginning ----------------------------------------------------------------------------------------------------------
def pool_begin(
    *, region: Region, engine: str, version: str, plan: Plan | None = None, name: str = "",
    max_databases: int | None = None, memory_bytes: int | None = None, cpus: Decimal | float | None = None,
    created_by_label: str, by_hand: bool = False,
) -> DatabaseServer | None:  # fmt: skip
    """Rows for one more pool, and the operation that makes it. None when one of this region, engine, version and plan is
    being prepared already, or when the last one failed a moment ago (`waiting_reason` says what is the case; `by_hand`
    does not wait). Raises `StepFailed` when such a pool can't work or no port is free.

    In a transaction that holds no operation's row (not within `ctx.fenced()`): it takes advisory locks.
    """
    locks.lock_subject(locks.subject_of("pools", f"{region.pk}:{engine}:{version}:{plan.pk if plan else ''}"))
    if preparing(region, engine, version, plan) is not None:
        return None
    driver = registry.engine(engine)
    size = pool_sizes.size_of(driver, plan, max_databases=max_databases, memory_bytes=memory_bytes, cpus=cpus)
    failed = _failed(region, engine, version, plan).first()
    if failed is not None:  # the subject before the row, as in the runner: two orders would deadlock
        locks.lock_subject(locks.subject_of("server", failed.pk))
        failed = _failed(region, engine, version, plan).select_for_update(of=("self",)).filter(pk=failed.pk).first()
    if failed is not None and failed.recover_after and failed.recover_after > now() and not by_hand:
        return None
    locks.lock_subject(locks.subject_of("ports", region.pk))
    fields = {
        "bind_address": region.bind_address, "control_host": region.control_host, "memory_bytes": size.memory_bytes,
        "cpus": size.cpus, "max_connections": size.max_connections, "max_databases": size.max_databases,
        "admin_username": driver.bootstrap_username, "runtime": region.runtime,
    }  # fmt: skip
    if failed is not None and not name and _clean(failed):
        server = failed
        for field, value in fields.items():
            setattr(server, field, value)
        server.desired_state, server.observed_detail, server.recover_after = ServerDesired.RUNNING, "", None
        server.pool_health, server.pool_health_detail, server.pool_checked_at = Health.UNKNOWN, "", None
        server.save()
    else:
        server = DatabaseServer.objects.create(
            kind=ServerKind.POOL, region=region, engine=engine, version=version, plan=plan,
            name=name or _free_name(region, driver.short, version), port=steps.free_port(region),
            admin_secret=Sealed.of(random_password()), recoveries=failed.recoveries if failed else 0, **fields,
        )  # fmt: skip
    params = {"incarnation": server.incarnation}
    server_operation_create(server=server, kind=PREPARE, params=params, created_by_label=created_by_label)
    log.info("pool begun", pool=server.name, region=region.slug, databases=size.max_databases)
    return server


def _free_name(region: Region, short: str, version: str) -> str:
    """Such as `pg-18-local-3`."""
    stem = f"{short.lower()}-{version}-{region.slug[:40]}-"
    taken = DatabaseServer.objects.filter(name__startswith=stem).values_list("name", flat=True)
    numbers = [int(found[1]) for each in taken if (found := re.fullmatch(r"(\d+)", each[len(stem) :]))]
    return f"{stem}{max(numbers, default=0) + 1}"


def _clean(server: DatabaseServer) -> bool:
    """Whether undoing has left nothing of it, so that its row may be used again (its next server has another name)."""
    if server.initialised_at is not None or server.runtime_ref or not server.reconcile:
        return False
    last = Operation.objects.filter(kind=PREPARE, server_uuid=server.pk).order_by("-created_at").first()
    if last is None:
        return True
    begun = last.steps.filter(name="server", started_at__isnull=False).exists()
    return not begun or server.incarnation > int(last.params.get("incarnation", 0))


def recover_begin(server: DatabaseServer, *, why: str, kind: str = RECOVER) -> Operation | None:
    """Start it again on its own data. None when somebody works on it. In a transaction."""
    locks.lock_subject(locks.subject_of("server", server.pk))  # before the row, as in the runner
    row = pools().select_for_update(of=("self",)).filter(pk=server.pk, desired_state=ServerDesired.RUNNING).first()
    if row is None or row.initialised_at is None or not row.reconcile:
        return None
    operation = server_operation_create(
        server=row, kind=kind, params={"reason": why[:200]}, created_by_label="reconciler"
    )
    if operation is not None:
        delay = min(MAX_RECOVERY_DELAY_SECONDS, 10 * 2 ** min(row.recoveries, 5))
        row.recoveries = min(row.recoveries + 1, 30_000)
        row.recover_after = now() + timedelta(seconds=delay)
        row.save(update_fields=["recoveries", "recover_after", "updated_at"])
    return operation


# --- preparing ----------------------------------------------------------------------------------------------------------
def still_wanted(ctx: Context) -> None:
    server = ctx.server
    if server.draining_at is not None or server.desired_state == ServerDesired.ABSENT:
        raise StepFailed("not_wanted", "Nobody wants this pool any more.", retryable=False)
    if server.engine not in registry.engines():
        raise StepFailed("engine_unknown", f"There is no engine {server.engine}.", retryable=False)
    if not ctx.region.available:
        raise StepFailed("region_unavailable", f"{ctx.region.name} is not available.", retryable=False)
    each = pool_sizes.connections_of(server)
    ctx.explain(f"{server.max_databases} databases, {each} connections each, {server.memory_bytes >> 20} MiB")


def prove_open(ctx: Context) -> None:
    """As whoever is placed on it will find it: it lets us in, and nobody is on it."""
    ctx.guard()
    with wiring.admin_session(ctx.engine, ctx.server) as admin:
        things = admin.contents()
    if things:
        raise StepFailed("not_empty", f"A new pool holds {', '.join(things[:5])}.", retryable=False)
    ctx.explain("Empty, and ready for projects")


def _prepared(operation: Operation) -> None:
    moment = now()
    pools().filter(pk=operation.server_key).update(
        pool_ready_at=moment, recoveries=0, recover_after=None, pool_health=Health.HEALTHY, pool_health_detail="",
        pool_checked_at=moment, updated_at=moment,
    )  # fmt: skip
    server = pools().filter(pk=operation.server_key).first()
    if server is not None:
        _wake(server)


def _not_prepared(operation: Operation) -> None:
    """The row stays with the reason, for those who wait and for operators; the next wish takes it up again."""
    error = operation.error or {}
    server = pools().filter(pk=operation.server_key).first()
    if server is None:
        return
    detail = str(error.get("detail", ""))[:500]
    moment = now()
    server.desired_state, server.pool_ready_at = ServerDesired.ABSENT, None
    server.observed_detail = server.pool_health_detail = detail
    server.pool_health, server.pool_checked_at = Health.UNHEALTHY, moment
    server.recover_after = moment + timedelta(seconds=retry_delay(server.recoveries))
    server.recoveries = min(server.recoveries + 1, 30_000)
    server.save(
        update_fields=[
            "desired_state", "pool_ready_at", "observed_detail", "pool_health", "pool_health_detail", "pool_checked_at",
            "recover_after", "recoveries", "updated_at",
        ]
    )  # fmt: skip
    _wake(server)  # they say the reason


def retry_delay(failures: int) -> float:
    return float(min(MAX_RETRY_SECONDS, RETRY_SECONDS * 2 ** min(failures, 8)))


def _wake(server: DatabaseServer) -> None:
    """Operations of projects that wait for a place of this kind go on now, rather than at their next look."""
    projects = Project.objects.filter(
        placement=Placement.POOL, region_id=server.region_id, engine=server.engine, version=server.version
    )
    waiting = Operation.objects.live().filter(
        project_uuid__in=projects.values("pk"), lease_until=None, next_attempt_at__isnull=False, steps__state="waiting"
    )
    # Those that somebody works on at this moment see for themselves; to wait for their rows could be a deadlock.
    rows = Operation.objects.select_for_update(of=("self",), skip_locked=True, no_key=True)
    rows = rows.filter(pk__in=waiting.values("pk"), lease_until=None).order_by("created_at")
    ids = list(rows.values_list("pk", flat=True)[:500])
    Operation.objects.filter(pk__in=ids).update(next_attempt_at=None, hinted_at=None)
    for pk in ids:
        hint_on_commit(pk)


# --- starting again -----------------------------------------------------------------------------------------------------
def tell_projects(ctx: Context) -> None:
    """Each database is logged in to before it is said to run again."""
    with ctx.fenced():
        pools().filter(pk=ctx.server.pk).update(
            pool_health=Health.HEALTHY, pool_health_detail="", pool_checked_at=now(), updated_at=now()
        )
    ids = project_ids(ctx.server)
    Project.objects.filter(pk__in=ids).update(health=Health.UNKNOWN, health_detail="", health_checked_at=None)
    status.refresh(ids)
    hint_health()
    ctx.explain(f"{len(ids)} project{'' if len(ids) == 1 else 's'}")


def project_ids(server: DatabaseServer) -> list[UUID]:
    """Of projects whose current database is here."""
    return list(Database.objects.filter(server=server, slot="current").values_list("project_id", flat=True))


def _not_recovered(operation: Operation) -> None:
    """The reason stays; the reconciler tries again later."""
    detail = str((operation.error or {}).get("detail", ""))[:500]
    server = pools().filter(pk=operation.server_key).first()
    if server is None:
        return
    server.pool_health, server.pool_health_detail, server.pool_checked_at = Health.UNHEALTHY, detail, now()
    server.recover_after = now() + timedelta(seconds=min(300, 5 * 2 ** min(server.recoveries, 6)))
    if server.desired_state == ServerDesired.STOPPED:  # a restart that did not come to its second half
        server.desired_state = ServerDesired.RUNNING
    # These only: somebody may set it aside or drain it at this moment.
    server.save(
        update_fields=[
            "pool_health", "pool_health_detail", "pool_checked_at", "recover_after", "desired_state", "updated_at",
        ]
    )  # fmt: skip
    status.refresh(project_ids(server))  # a restart that has stopped it and went no further, say


register(
    Definition(
        kind=PREPARE, title="Prepare a pool", on_give_up=OnGiveUp.UNDO, while_running=None, cancellable=True,
        on_success=_prepared, on_failure=_not_prepared,
        steps=(
            Step("verify", "See that it is wanted", still_wanted, retry=RetryPolicy(attempts=1)),
            Step("image", "Find the server's image", steps.find_image, retry=RetryPolicy(attempts=1), deadline_seconds=900),
            Step("server", "Start the server", steps.create_server, steps.discard_server, SERVER_RETRY, 120),
            Step("ready", "Wait for the first login", steps.await_login, None, RetryPolicy(attempts=1), 180, "server"),
            Step("secure", "Close the server", provision.secure, None, DATABASE_RETRY, 60, "server"),
            Step("limits", "Apply its limits", provision.apply_limits, None, SERVER_RETRY, 60, "server"),
            Step("open", "See that it is empty", prove_open, None, DATABASE_RETRY, 60, "server"),
        ),
    )
)  # fmt: skip


def _shown(step: Step) -> Step:
    """What it does to the pool is seen on its projects at once, also when it fails."""

    def run(ctx: Context) -> None:
        try:
            step.run(ctx)
        finally:
            status.refresh(project_ids(ctx.server))

    return replace(step, run=run)


_TELL = Step("projects", "Look after its projects", tell_projects, retry=SERVER_RETRY, deadline_seconds=60)
for _kind, _title, _first in (
    (RECOVER, "Start a pool again", ()),
    (RESTART, "Restart a pool", (_shown(lifecycle.STOP),)),
):
    register(
        Definition(
            kind=_kind, title=_title, on_give_up=OnGiveUp.UNDO, while_running=None, on_failure=_not_recovered,
            steps=(*_first, lifecycle.RUN, _shown(lifecycle.AWAIT), lifecycle.IDENTITY, _TELL),
        )
    )  # fmt: skip
