"""Looking after pools: health every five minutes, the next one ahead of its need, drained ones removed, failed ones cleaned up,
empty databases kept ready. A tick only records operations; without pools it costs one query.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

import structlog
from django.conf import settings
from django.db import transaction
from django.db.models import Q

from novastack.common.clock import now
from novastack.common.models import Install
from projects import domain, registry
from projects.engines.admin import BLANK_PREFIX
from projects.engines.base import Engine
from projects.models import (
    DISK_WARN_PERCENT,
    BlankDatabase,
    Database,
    DatabaseServer,
    DatabaseSlot,
    DataTombstone,
    Health,
    ObservedState,
    Operation,
    Orphan,
    Region,
    RoleKind,
    ServerDesired,
)
from projects.operations import forgetting, pool_removal, pools, wiring
from projects.operations.base import StepFailed

log = structlog.get_logger(__name__)

PARALLEL = 4
LOOK_SECONDS = 5.0  # for a login
STATEMENT_SECONDS = 20.0  # sizes of many databases
WELL_FOR_SECONDS = 600
DOWN_FOR = timedelta(hours=24)  # a pool without databases that was down so long is cleaned up


@dataclass(slots=True)
class Upkeep:
    """What one tick did; counts."""

    begun: int = 0
    draining: int = 0
    removing: int = 0
    forgotten: int = 0


def keep() -> Upkeep:
    """One tick. Two at the same time do no harm: the servers' locks decide."""
    done = Upkeep()
    rows = list(pools.pools().select_related("region", "plan"))
    if not rows:
        return done
    used = pools.used_by_pool(rows)
    for row in rows:
        if row.region.gone_at is not None and not used.get(row.pk):
            done.forgotten += _forget(row)
    rows = [row for row in rows if row.region.gone_at is None]
    _forgive(rows)
    if Install.load().read_only:
        return done
    at_work = _at_work(rows)
    for row in rows:
        if row.pk in at_work or not row.reconcile or not _can_be_touched(row.region):
            continue
        if row.draining_at is not None and used.get(row.pk):
            with transaction.atomic():  # a drain that ended before its end
                done.draining += pool_removal.drain_begin(row, created_by_label="pools") is not None
        elif reason := _why_remove(row):
            done.removing += pool_removal.remove_begin(row, reason) is not None
    done.begun = _successors(rows, used)
    return done


def _at_work(rows: list[DatabaseServer]) -> set[UUID | None]:
    live = Operation.objects.live().filter(server_uuid__in=[row.pk for row in rows], project_uuid=None)
    return set(live.values_list("server_uuid", flat=True))


def _can_be_touched(region: Region) -> bool:
    return region.available and region.reachable and region.reconcile


def _why_remove(row: DatabaseServer) -> str:
    """Drained to the end, or a removal that ended before its end. Failed ones are the daily clean-up's."""
    if row.recover_after is not None and row.recover_after > now() and row.desired_state == ServerDesired.ABSENT:
        return ""
    if row.draining_at is not None:
        return "drained"
    begun = Operation.objects.filter(kind=pool_removal.REMOVE, server_uuid=row.pk)
    return "removed again" if row.desired_state == ServerDesired.ABSENT and begun.exists() else ""


def _forgive(rows: list[DatabaseServer]) -> None:
    well = now() - timedelta(seconds=WELL_FOR_SECONDS)
    ids = [
        row.pk for row in rows
        if row.recoveries and row.pool_ready_at and row.observed_state == ObservedState.RUNNING
        and row.started_at is not None and row.started_at < well
    ]  # fmt: skip
    if ids:
        pools.pools().filter(pk__in=ids, observed_state=ObservedState.RUNNING).update(recoveries=0, recover_after=None)


# --- the next one, ahead of its need --------------------------------------------------------------------------------------
def _successors(rows: list[DatabaseServer], used: dict[UUID, int]) -> int:
    """Begin one more pool of each kind of which every open pool is filled to the mark."""
    percent = settings.NOVASTACK_POOL_FILL_PERCENT
    if not 0 < percent < 100:
        return 0
    groups: dict[tuple[UUID, str, str, UUID | None], list[DatabaseServer]] = defaultdict(list)
    for row in rows:
        if row.pool_ready_at is not None and row.draining_at is None and row.desired_state == ServerDesired.RUNNING:
            groups[row.region_id, row.engine, row.version, row.plan_id].append(row)
    begun = 0
    for same in groups.values():
        if all(used.get(row.pk, 0) >= mark(row.max_databases, percent) for row in same):
            begun += _begin_one_like(same[0])
    return begun


def mark(max_databases: int, percent: int) -> int:
    """From so many databases on the next pool is made."""
    return max(1, math.ceil(max_databases * percent / 100))


def _begin_one_like(row: DatabaseServer) -> bool:
    region = row.region
    if not _can_be_touched(region) or (region.disk_used_percent or 0) >= DISK_WARN_PERCENT:
        return False
    if pools.preparing(region, row.engine, row.version, row.plan) is not None:
        return False
    if region.reason_against(row.engine, row.version) or row.engine not in registry.engines():
        return False
    try:
        with transaction.atomic():
            begun = pools.pool_begin(
                region=region, engine=row.engine, version=row.version, plan=row.plan, created_by_label="pools"
            )
    except StepFailed as error:
        log.warning("no pool ahead of its need", like=row.name, code=error.code, detail=error.detail)
        return False
    return begun is not None


# --- health ---------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class _Look:
    """`sizes`: database → bytes; None when it could not be asked, for the reason in `detail`. `shut`: logins that are kept out,
    if the product says so."""

    sizes: dict[str, int] | None = None
    shut: set[str] | None = None
    busy: bool = False
    detail: str = ""


def check_pools(ids: Collection[UUID] | None = None) -> int:
    """Look at all pools, or at these: a real login, the databases on the server against the rows, and their sizes. Returns how
    many are healthy."""
    rows = pools.pools().filter(initialised_at__isnull=False).exclude(desired_state=ServerDesired.ABSENT)
    if ids is not None:
        rows = rows.filter(pk__in=ids)
    found = list(rows.select_related("region"))
    for row in found:
        if row.observed_state != ObservedState.RUNNING or not row.region.reachable:
            health, detail = pools.health_of(row)
            _record(row, health, detail)
    up = [row for row in found if row.observed_state == ObservedState.RUNNING and row.region.reachable]
    if not up:
        return 0
    before = {row.pk: _expected(row) for row in up}
    doors = {row.pk: _doors(row) for row in up}
    asked = [(registry.engine(r.engine), r.control_endpoint, wiring.admin_candidates(r)) for r in up]
    with ThreadPoolExecutor(PARALLEL, thread_name_prefix="pools") as workers:
        looks = list(workers.map(_look, asked))
    healthy = 0
    for row, look in zip(up, looks, strict=True):
        health, detail = _judge(row, look, before[row.pk])
        size = sum(look.sizes.values()) if look.sizes is not None else None
        healthy += health == Health.HEALTHY
        _record(row, health, detail, size=size)
        if look.shut is not None:
            _correct_doors(doors[row.pk], look.shut)
    return healthy


def _doors(row: DatabaseServer) -> list[Database]:
    """Databases on it that tenants use, with their roles, as they are before we look."""
    rows = Database.objects.filter(
        server=row, slot=DatabaseSlot.CURRENT, drop_due_at=None, created_in_engine_at__isnull=False,
        project__ready_at__isnull=False, project__purging_at=None,
    )  # fmt: skip
    return list(rows.prefetch_related("roles"))


def _correct_doors(doors: list[Database], shut: set[str]) -> None:
    """What rows say of who is let in is what the server does: a late worker, or somebody by hand, may have changed it. From
    then on the reconciler sees what is not as people want it. Nothing is said of a project that somebody works on, or that
    was locked or let in since."""
    wrong = []
    for door in doors:
        logins = {role.name for role in door.roles.all() if role.kind == RoleKind.LOGIN}
        if (door.locked_at is None and logins <= shut) or (door.locked_at is not None and logins - shut):
            wrong.append(door)
    busy = Operation.objects.live().holding().filter(project_uuid__in=[door.project_id for door in wrong])
    at_work = set(busy.values_list("project_uuid", flat=True)) if wrong else set()
    for door in wrong:
        if door.project_id in at_work:
            continue
        moment = now() if door.locked_at is None else None
        same = Database.objects.filter(pk=door.pk, updated_at=door.updated_at, slot=DatabaseSlot.CURRENT)
        if same.update(locked_at=moment, updated_at=now()):
            log.warning("login on a pool was not as recorded", project=str(door.project_id), locked=moment is not None)


def _look(asked: tuple[Engine, domain.Endpoint, list[domain.Credentials]]) -> _Look:
    """Runs in a thread: no ORM here."""
    engine, endpoint, candidates = asked
    refused = ""
    for credentials in candidates:
        try:
            with engine.admin(
                endpoint, credentials, timeout_seconds=LOOK_SECONDS, statement_seconds=STATEMENT_SECONDS
            ) as session:
                session.ping()
                return _Look(dict(session.database_sizes()), session.locked_logins())
        except domain.LoginRefused:
            refused = "The server answers, but refuses NovaStack's own login."
        except domain.ServerBusy:
            return _Look(busy=True, detail="All connections of the server are in use.")
        except domain.EngineError as error:
            return _Look(detail=str(error)[:400] or "The server does not answer.")
        except Exception as error:
            log.error("pool not looked at", error=type(error).__name__, exc_info=error)
            return _Look(detail=f"NovaStack could not look at it ({type(error).__name__}); see the worker's log.")
    return _Look(detail=refused)


def _expected(row: DatabaseServer) -> tuple[set[str], set[str]]:
    """Names of databases that must be there, and of those that may: of projects on which somebody works, given up, and
    blanks."""
    rows = list(
        Database.objects.filter(server=row).only("project_id", "name", "created_in_engine_at", "drop_due_at", "made_of")
    )
    at_work = set(
        Operation.objects.live()
        .filter(project_uuid__in=[each.project_id for each in rows])
        .values_list("project_uuid", flat=True)
    )
    made = [each for each in rows if each.created_in_engine_at is not None and each.drop_due_at is None]
    must = {each.name for each in made if each.project_id not in at_work}
    may = {name for each in rows for name in (each.name, each.made_of) if name}
    return must, may | set(BlankDatabase.objects.filter(server=row).values_list("name", flat=True))


def _judge(row: DatabaseServer, look: _Look, before: tuple[set[str], set[str]]) -> tuple[Health, str]:
    if look.busy:
        return Health.HEALTHY, look.detail
    if look.sizes is None:
        return Health.UNHEALTHY, look.detail
    after = _expected(row)  # what was made or removed while we looked is in one of the two only
    missing = sorted((before[0] & after[0]) - set(look.sizes))
    strange = sorted(n for n in set(look.sizes) - before[1] - after[1] if not n.startswith(BLANK_PREFIX))
    if missing:
        return Health.UNHEALTHY, f"{len(missing)} of its databases are missing: {', '.join(missing[:5])}"[:500]
    if strange:
        return Health.HEALTHY, f"{len(strange)} databases that no row knows: {', '.join(strange[:5])}"[:500]
    return Health.HEALTHY, ""


def _record(row: DatabaseServer, health: Health | str, detail: str, *, size: int | None = None) -> None:
    """Unless somebody looked later, or it was started or stopped meanwhile: theirs is newer."""
    changes: dict[str, object] = {"pool_health": health, "pool_health_detail": detail[:500], "pool_checked_at": now()}
    if size is not None:
        changes["pool_size_bytes"] = size
    if row.pool_health != health:
        log.warning("pool's health changed", pool=row.name, health=str(health), detail=detail)
    pools.pools().filter(
        pk=row.pk, pool_checked_at=row.pool_checked_at, observed_state=row.observed_state, incarnation=row.incarnation
    ).update(**changes)


# --- failed ones ------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Due:
    """`pools` may be removed now; `seen` is what this look found due, for the next one; `refusal` says why nothing is."""

    pools: list[DatabaseServer]
    seen: list[str]
    refusal: str


def due_failed(seen_before: Collection[str]) -> Due:
    """Pools without any database that could not be made, or that were down for a day (rule 8): due at two daily looks, and at
    most max(3, 5 %) of all at once, else none. Removing asks the server itself whether it is empty."""
    never = Q(pool_ready_at=None, desired_state=ServerDesired.ABSENT, recoveries__gt=0)
    down = Q(
        desired_state=ServerDesired.RUNNING, observed_state__in=[ObservedState.STOPPED, ObservedState.ABSENT],
        observed_at__lt=now() - DOWN_FOR, pool_ready_at__isnull=False,
    )  # fmt: skip
    rows = list(
        pools.pools()
        .filter(never | down, reconcile=True, databases=None, region__reachable=True, region__gone_at=None)
        .select_related("region")
        .order_by("created_at")
    )
    at_work = _at_work(rows)
    rows = [row for row in rows if row.pk not in at_work]
    total = pools.pools().count()
    most = max(3, total // 20)
    seen = [str(row.pk) for row in rows]
    if len(rows) > most:
        return Due(
            [], seen, f"{len(rows)} of {total} pools have failed (at most {most} are removed at once): drain them."
        )
    return Due([row for row in rows if str(row.pk) in seen_before], seen, "")


def clean_up_failed() -> int:
    """The daily clean-up: runs once in 20 hours however often it is called. Returns how many removals were recorded."""
    Install.load()
    with transaction.atomic():
        install = Install.objects.select_for_update().get(pk=1)  # of two at once the second sees that it was done
        last = install.notes.get("pools_due_at", "")
        if install.read_only or (last and last > (now() - timedelta(hours=20)).isoformat()):
            return 0
        due = due_failed(install.notes.get("pools_due_seen", []))
        Install.merge_notes(pools_due_at=now().isoformat(), pools_due_seen=due.seen, pools_due_refused=due.refusal)
    if due.refusal:
        log.error("failed pools not cleaned up", reason=due.refusal)
    return sum(pool_removal.remove_begin(row, "it failed") is not None for row in due.pools)


# --- a runtime that will not come back --------------------------------------------------------------------------------------
def _forget(row: DatabaseServer) -> int:
    """What may still exist there is written down, and the pool is forgotten: no row knows anybody on it."""
    note = f"May still exist: pool {row.name} of {row.region.name}, which was declared gone."
    with transaction.atomic():
        forgetting.end_operations(server=row)
        locked = pools.pools().select_for_update(of=("self",)).filter(pk=row.pk).first()
        if locked is None or Database.objects.filter(server=row).exists():
            return 0
        DataTombstone.objects.filter(server_uuid=row.pk, deleted_at=None).update(
            forgotten_at=now(), last_error=forgetting.DETAIL
        )
        if row.initialised_at or row.runtime_ref:
            for kind in ("server", "data"):
                Orphan.objects.update_or_create(
                    region=row.region, kind=kind, name=row.handle.name,
                    defaults={"resolved_at": None, "forgotten_at": now(), "note": note[:500]},
                )  # fmt: skip
        row.delete()
    return 1
