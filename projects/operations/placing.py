"""A project gets its place on a pool: a slot is taken under the pool's row lock, and where there is none a pool is made.

Who looks passes over rows that somebody else has locked, so that many are placed side by side; a row is locked for a few
statements only, and its databases are counted under that lock, so that no pool ever holds more than it may. Only when no
pool has room is another one begun, and only as many as those who wait will fill.
"""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from typing import Any, NoReturn
from uuid import UUID

import structlog
from django.db import connection, transaction
from django.db.models import Count, Exists, F, OuterRef, Q, QuerySet, Subquery
from django.db.models.functions import Coalesce

from novastack.common.clock import now
from novastack.common.logs import without_places
from novastack.common.secrets import Sealed, random_password
from projects.models import (
    BlankDatabase,
    Database,
    DatabaseRole,
    DatabaseServer,
    DatabaseSlot,
    Endpoint,
    Health,
    ObservedState,
    Operation,
    OperationState,
    OperationStep,
    Placement,
    Project,
    RoleKind,
    ServerDesired,
    ServerKind,
    StepState,
)
from projects.models.operations import LIVE
from projects.operations import locks, pool_sizes, pools
from projects.operations.base import StepFailed, Wait
from projects.operations.context import Context
from projects.operations.queue import hint_on_commit

log = structlog.get_logger(__name__)

STEP = "place"
PREPARE = "prepare_pool"
TRY_SECONDS = 5.0  # while others lock every pool that has room
PAUSE_SECONDS = 0.02
LOOK_AGAIN_SECONDS = 10  # who waits is told when there is room; this is for when that got lost
CONTROL_CONNECTIONS = 3
HOPEFUL_RECOVERIES = 3  # a pool that is down, and was started no more often in vain, is waited for
_avoiders: list[Callable[[Project], Collection[str]]] = []


class AllBusy(Exception):
    """There is room, but every pool that has some is locked by somebody who takes of it."""


# --- which pools --------------------------------------------------------------------------------------------------------
def pools_for(project: Project) -> QuerySet[DatabaseServer]:
    """Those that take projects like this one, however full; made or being made. Pools that are begun here are of one plan;
    an operator may make one for all."""
    return DatabaseServer.objects.filter(
        Q(plan=None) | Q(plan_id=project.plan_id), kind=ServerKind.POOL, region_id=project.region_id,
        engine=project.engine, version=project.version, desired_state=ServerDesired.RUNNING, reconcile=True,
        draining_at=None,
    )  # fmt: skip


def is_open() -> Q:
    """Ready, up, and well as far as anybody knows."""
    return Q(pool_ready_at__isnull=False, observed_state=ObservedState.RUNNING) & ~Q(pool_health=Health.UNHEALTHY)


def with_taken(pools: QuerySet[DatabaseServer]) -> QuerySet[Any]:
    """With `taken`, the number of databases on each."""
    rows = (
        Database.objects.order_by().filter(server=OuterRef("pk")).values("server").annotate(n=Count("pk")).values("n")
    )
    return pools.annotate(taken=Coalesce(Subquery(rows), 0))


# --- taking a slot ------------------------------------------------------------------------------------------------------
def take(
    project: Project,
    *,
    number: int = 1,
    slot: str = DatabaseSlot.CURRENT,
    besides: Collection[UUID] = (),
    within: Callable[[], AbstractContextManager[None]] = transaction.atomic,
    then: Callable[[DatabaseServer], None] = lambda _pool: None,
) -> Database | None:
    """A slot for this project on the fullest pool that has room, with the rows of its database and roles; None when none
    has any. `number`: which place of this project it is, since names on servers are never used twice. `besides`: not on
    these pools. `within`: the transaction; `then`: what else is written in it. Raises `AllBusy`."""
    free = with_taken(pools_for(project).filter(is_open())).filter(taken__lt=F("max_databases")).exclude(pk__in=besides)
    fullest = free.order_by(F("plan").asc(nulls_last=True), "-taken", "pool_ready_at")
    while True:
        with within():
            # No key: rows that refer to the pool may be written meanwhile.
            pool = fullest.select_for_update(of=("self",), skip_locked=True, no_key=True).first()
            if pool is None:
                break
            if Database.objects.filter(server=pool).count() < pool.max_databases:
                then(pool)
                return put_rows(project, pool, number=number, slot=slot)
        # Somebody took the last slot between our look and our lock: look again.
    if free.exists():
        raise AllBusy
    return None


def put_rows(project: Project, pool: DatabaseServer, *, number: int, slot: str) -> Database:
    """Database and roles on the pool, with passwords of their own. In a transaction that holds the pool's row. Of the
    blanks that are ready one is used up, and is nobody else's from here on: one with the bootstrap tables, or without
    them, as is wanted (a copy brings its own), if there is such a one."""
    wants_tables = project.bootstrap_schema and slot == DatabaseSlot.CURRENT
    again = "" if number <= 1 else f"_{number}"
    short = project.pk.hex[-12:]
    blank = (
        BlankDatabase.objects.select_for_update(of=("self",), skip_locked=True)
        .filter(server=pool, ready_at__isnull=False)
        .order_by("-tables" if wants_tables else "tables", "ready_at")
        .first()
    )
    database = Database.objects.create(
        project=project, server=pool, slot=slot, name=f"tenant_{str(project.pk).replace('-', '_')}{again}",
        made_of=blank.name if blank else "",
    )  # fmt: skip
    made: dict[str, Sealed | None] = {}  # passwords that the blank's roles have
    if blank is not None:
        made = {RoleKind.LOGIN: blank.login_secret, RoleKind.CONTROL: blank.control_secret}
        blank.delete()
    stem, limit = f"nvs_{short}", min(project.plan.connection_limit, pool_sizes.connections_of(pool))
    DatabaseRole.objects.bulk_create(
        DatabaseRole(
            database=database, server=pool, kind=kind, name=f"{name}{again}", connection_limit=most,
            secret=(made.get(kind) or Sealed.of(random_password())) if secret else None,
        )
        for kind, name, most, secret in (
            (RoleKind.OWNER, f"{stem}_owner", 20, False),
            (RoleKind.GROUP, f"{stem}_group", 20, False),
            (RoleKind.CONTROL, f"{stem}_control", CONTROL_CONNECTIONS, True),
            (RoleKind.LOGIN, f"tenant_{short}", limit, True),
        )
    )  # fmt: skip
    return database


def address(project: Project, pool: DatabaseServer) -> None:
    """The project's address is its pool's. In a transaction."""
    region = project.region
    Endpoint.objects.filter(project=project).update(
        shared=True, host=region.client_host, port=pool.port or 0, control_host=pool.control_host,
        control_port=pool.port or 0, bind_address=pool.bind_address, updated_at=now(),
    )  # fmt: skip


# --- the step -----------------------------------------------------------------------------------------------------------
def place(ctx: Context) -> None:
    """Have a slot. `Wait` while there is none."""
    project = ctx.project
    if project.purging_at is not None:
        raise StepFailed("project_gone", "The project is being removed.", retryable=False)
    placed, number = _before(project)
    if placed:
        ctx.explain("It has its place")
        return
    _region_is_fit(ctx)
    until = time.monotonic() + TRY_SECONDS
    besides = avoided(project)
    while True:
        try:
            # The address follows in the same transaction, and only who holds the lease writes.
            database = take(
                project, number=number, besides=besides, within=ctx.fenced, then=functools.partial(address, project)
            )
            break
        except AllBusy:
            if time.monotonic() > until:
                raise Wait("Other projects are being placed at this moment.", seconds=2) from None
            ctx.sleep(random.uniform(PAUSE_SECONDS / 2, 2 * PAUSE_SECONDS))  # noqa: S311 - so that they don't march in step
    if database is None:
        _wait(ctx, besides)
    ctx.forget_rows()
    ctx.lives_in(database)
    ctx.explain(f"{ctx.engine.title} {project.version}, a shared server in {project.region.name}")


# One question, because everybody who gets a place waits for it.
_BEFORE = """
SELECT EXISTS (SELECT FROM projects_database WHERE project_id = %s AND role = %s),
       (SELECT count(*) FROM projects_operation WHERE project_uuid = %s AND kind = 'provision')
"""


def _before(project: Project) -> tuple[bool, int]:
    """Whether it has a place, and the how-many-th provisioning this is."""
    with connection.cursor() as cursor:
        cursor.execute(_BEFORE, [project.pk, DatabaseSlot.CURRENT.value, project.pk])
        placed, number = cursor.fetchone()
    return bool(placed), int(number)


def avoid(names: Callable[[Project], Collection[str]]) -> None:
    """Another app says, from its `AppConfig.ready()`, with which roles' names a project can't share a pool."""
    _avoiders.append(names)


def avoided(project: Project) -> set[UUID]:
    """Servers on which a role has a name that this project's database must have for a while."""
    names = {name for avoider in _avoiders for name in avoider(project)}
    if not names:
        return set()
    return set(DatabaseRole.objects.filter(name__in=names).values_list("server_id", flat=True))


def _region_is_fit(ctx: Context) -> None:
    region = ctx.project.region
    if not region.available:
        raise StepFailed("region_unavailable", f"{region.name} has no runtime.", retryable=False)
    if not region.has_room:  # rule 16
        raise StepFailed(
            "capacity_exhausted", f"The disk of {region.name} is {region.disk_used_percent:.0f} % full. Free some."
        )


# --- no room ------------------------------------------------------------------------------------------------------------
def _wait(ctx: Context, besides: Collection[UUID] = ()) -> NoReturn:
    """Nobody has room. Begin as many pools as those who wait will fill, say what is going on, and come again."""
    project, plan = ctx.project, ctx.project.plan
    awaited, failed = _awaited(ctx)
    ctx.guard()
    with transaction.atomic():
        # Who decides about more pools does so alone, and sees what was decided before.
        locks.lock_subject(locks.subject_of("placing", f"{project.region_id}:{project.engine}:{project.version}"))
        short = _waiting(project) > _room(project, besides)
        if short and failed is None:
            pools.pool_begin(
                region=project.region, engine=project.engine, version=project.version, plan=plan,
                created_by_label="placement",
            )  # fmt: skip
    preparing = list(_preparing(project))
    if failed is not None and not preparing:
        error = failed.error or {"code": "pool_failed", "detail": "It was cancelled.", "retryable": True}
        ctx.record(awaited=[])
        raise StepFailed(
            error["code"], f"A pool for it could not be made: {without_places(error['detail'])}", raw=error["detail"],
            retryable=bool(error["retryable"]) or failed.state == OperationState.CANCELLED,
        )  # fmt: skip
    known = [str(operation.pk) for operation in preparing]
    if known != awaited:
        ctx.record(awaited=known)
    why = pools.waiting_reason(project.region, project.engine, project.version, plan)
    raise Wait(why or "Every pool is full or down; it is looked again.", seconds=LOOK_AGAIN_SECONDS)


def _awaited(ctx: Context) -> tuple[list[str], Operation | None]:
    """The preparations that this project was waiting for, and one of them that came to nothing."""
    awaited = list(ctx.row.data.get("awaited", []))
    ended = Operation.objects.filter(pk__in=awaited, state__in=[OperationState.FAILED, OperationState.CANCELLED])
    return awaited, ended.order_by("-finished_at").first()


def _live_preparation() -> Exists:
    return Exists(Operation.objects.filter(kind=PREPARE, state__in=LIVE, server_uuid=OuterRef("pk")))


def _preparing(project: Project) -> QuerySet[Operation]:
    pools = pools_for(project).filter(_live_preparation(), pool_ready_at=None)
    return Operation.objects.filter(kind=PREPARE, state__in=LIVE, server_uuid__in=pools.values("pk"))


def _room(project: Project, besides: Collection[UUID] = ()) -> int:
    """Slots that are free, that are being made, and of pools that are about to come back. One statement: a pool that gets
    ready at this moment is counted once. Read before `_waiting`: who is placed in between is then missed there, and no
    pool too many is begun."""
    back = Q(pool_ready_at__isnull=False, recoveries__lt=HOPEFUL_RECOVERIES)
    back &= ~Q(observed_state=ObservedState.RUNNING) & ~Q(pool_health=Health.UNHEALTHY)
    pools = pools_for(project).exclude(pk__in=besides)
    rows = with_taken(pools).filter(is_open() | back | (Q(pool_ready_at=None) & _live_preparation()))
    return sum(max(0, most - taken) for most, taken in rows.values_list("max_databases", "taken"))


def _waiting(project: Project) -> int:
    """How many want a place on pools like these and have none."""
    rows = _without_place(project.region_id, project.engine, project.version).filter(plan_id=project.plan_id)
    live = _provisions().filter(project_uuid=OuterRef("pk"))
    return int(rows.filter(Exists(live)).count())


def _without_place(region_id: UUID, engine: str, version: str) -> QuerySet[Project]:
    return Project.objects.filter(
        region_id=region_id, engine=engine, version=version, placement=Placement.POOL, purging_at=None
    ).exclude(databases__slot=DatabaseSlot.CURRENT)  # fmt: skip


def _provisions() -> QuerySet[Operation]:
    return Operation.objects.filter(
        kind="provision", variant="pool", state__in=LIVE, undoing=False, cancel_requested_at=None
    )


def wake(pool: DatabaseServer) -> int:
    """There is room on the pool again: as many of those who wait as it has room for go on now rather than at their next
    look, and one more, who begins the next pool if there are more. In a transaction; returns how many were told."""
    room = pool.max_databases - Database.objects.filter(server=pool).count()
    if room <= 0:
        return 0
    projects = _without_place(pool.region_id, pool.engine, pool.version)
    if pool.plan_id is not None:
        projects = projects.filter(plan_id=pool.plan_id)
    waiting = (
        _provisions()
        .select_for_update(of=("self",), skip_locked=True, no_key=True)
        .filter(
            lease_until=None, next_attempt_at__isnull=False, project_uuid__in=projects.values("pk"),
            pk__in=OperationStep.objects.filter(name=STEP, state=StepState.WAITING).values("operation_id"),
        )
        .order_by("created_at")
    )  # fmt: skip
    ids = [operation.pk for operation in waiting.only("pk")[: room + 1]]
    Operation.objects.filter(pk__in=ids).update(next_attempt_at=None, hinted_at=None)
    for pk in ids:
        hint_on_commit(pk)
    return len(ids)
