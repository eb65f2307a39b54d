"""Writers that are fenced: on a disk that is nearly full (rule 16), or of a database above its storage limit (rule 50).

The row says what must be so and why; the engine is told, and what it was told is compared with what health checks see.
So a worker that dies anywhere in between, a restored control database or a late worker is made good by the next tick.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from uuid import UUID

import structlog
from django.db import transaction
from django.db.models import F, Q

from accounts.services import audit
from novastack.common.clock import now
from novastack.common.models import Install
from projects import domain, registry
from projects.engines.base import Engine
from projects.models import (
    Database,
    DatabaseServer,
    DatabaseSlot,
    DiskLevel,
    ObservedState,
    Placement,
    Project,
    Region,
    WriteFence,
)
from projects.operations import parallel, wiring
from projects.querysets import ProjectQuerySet

log = structlog.get_logger(__name__)
PARALLEL = 8
PARALLEL_ILL = 2  # those that failed the last time
TICK_SECONDS = 4.0  # nothing is begun later than this into a tick
ANSWER_SECONDS = 3.0
STATEMENT_SECONDS = 8.0  # ending sessions may take five
DECIDE_BATCH = 500
ACT_BATCH = 64
HOLD_EVERY_SECONDS = 20
LIFT_AT_PERCENT = 95  # of the storage limit
_UNFENCED = [e.name for e in registry.engines().values() if domain.Capability.WRITE_FENCE not in e.capabilities]
_acted: dict[tuple[UUID, bool, bool], float] = {}
_failed: set[UUID] = set()


def keep() -> None:
    """One tick."""
    decide()
    converge()


# --- who must be fenced -------------------------------------------------------------------------------------------------
def fence_for(fence: str, *, size_bytes: int | None, limit_bytes: int, disk_full: bool) -> str:
    """The fence that a project must have, given the one it has. No limit is 0; an unknown size changes nothing."""
    if disk_full:
        return WriteFence.DISK
    if limit_bytes <= 0:
        return ""
    if size_bytes is None:
        return fence if fence == WriteFence.STORAGE else ""
    if size_bytes > limit_bytes:
        return WriteFence.STORAGE
    if fence == WriteFence.STORAGE and size_bytes * 100 > limit_bytes * LIFT_AT_PERCENT:
        return WriteFence.STORAGE
    return ""


def decide() -> int:
    """Fence and lift in the rows, with an event for each; returns how many changed. Two queries when none does. Engines
    that can't fence have no storage limit, and nothing is promised of them on a full disk."""
    full = set(Region.objects.filter(disk__level=DiskLevel.FENCED).values_list("pk", flat=True))
    ids = list(_to_change(full).values_list("pk", flat=True)[:DECIDE_BATCH])
    if not ids:
        return 0
    moment, changed = now(), []
    with transaction.atomic():
        locked = Project.objects.select_for_update(no_key=True, skip_locked=True).filter(pk__in=ids).order_by("pk")
        for project in locked:
            before = project.write_fence
            fence = fence_for(
                before, size_bytes=project.size_bytes, limit_bytes=project.storage_bytes,
                disk_full=project.region_id in full,
            )  # fmt: skip
            if fence == before:
                continue
            project.write_fence, project.write_fenced_at = fence, moment if fence else None
            changed.append(project)
            audit.record(
                None, "project.writes_fenced" if fence else "project.writes_allowed",
                organization_id=project.organization_id, project_id=project.pk, project_name=project.name,
                target=project.slug,
                data={"reason": fence or before, "size_bytes": project.size_bytes, "limit_bytes": project.storage_bytes},
            )  # fmt: skip
        Project.objects.bulk_update(changed, ["write_fence", "write_fenced_at"], batch_size=500)
    for project in changed:
        log.warning("writers fenced" if project.write_fence else "writers allowed", project=project.slug,
                    reason=str(project.write_fence))  # fmt: skip
    return len(changed)


def _to_change(full: set[UUID]) -> ProjectQuerySet:
    """Those for which `fence_for` says something else than the row."""
    on_full = Q(region_id__in=full)
    above = Q(storage_bytes__gt=0, size_bytes__gt=F("storage_bytes"))
    below = Q(storage_bytes__lte=0) | Q(size_bytes__lte=F("storage_bytes") * LIFT_AT_PERCENT / 100)
    return (
        Project.objects.live()
        .filter(ready_at__isnull=False)
        .exclude(placement=Placement.EXTERNAL)
        .exclude(engine__in=_UNFENCED)
        .filter(
            (on_full & ~Q(write_fence=WriteFence.DISK))
            | (~on_full & Q(write_fence=WriteFence.DISK))
            | (~on_full & Q(write_fence="") & above)
            | (~on_full & Q(write_fence=WriteFence.STORAGE) & below)
        )
    )


# --- the engines are told -----------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class _Target:
    project_id: UUID
    slug: str
    engine: Engine
    server: DatabaseServer
    names: domain.TenantNames
    fenced: bool
    applied: bool
    hard: bool

    @property
    def key(self) -> tuple[UUID, bool, bool]:
        return self.project_id, self.fenced, self.applied


def converge() -> int:
    """Tell running servers what the rows say, and keep the fences that stand; returns how many were told anew. Side
    effects outside any transaction; writes only for those that were told. One query when there is no fence."""
    targets = _targets()
    if not targets or Install.load().read_only:  # rule 11
        return 0
    moment = time.monotonic()
    well, ill = [t for t in targets if t.project_id not in _failed], [t for t in targets if t.project_id in _failed]
    lanes = [
        parallel.start("fence", _act, _broken, some, threads=threads, seconds=TICK_SECONDS)
        for some, threads in ((well, PARALLEL), (ill, PARALLEL_ILL))
        if some
    ]
    return sum(_put_down(lane.collect(), moment) for lane in lanes)


def _put_down(done: list[tuple[_Target, str]], moment: float) -> int:
    """What was told, in the rows; which of them failed, for the next tick. Those that were not come to are due still."""
    _acted.update((target.key, moment) for target, _ in done)
    told = [target for target, failure in done if not failure and target.fenced != target.applied]
    for fenced in (True, False):
        # What was done, whatever is wanted by now: if that has changed, the next tick sees the difference.
        ids = [target.project_id for target in told if target.fenced == fenced]
        if ids:
            Project.objects.filter(pk__in=ids).update(write_fence_applied=fenced)
    for target, failure in done:
        _failed.discard(target.project_id)
        if failure:
            _failed.add(target.project_id)
            log.warning("writers' fence not applied", project=target.slug, fenced=target.fenced, error=failure)
    return len(told)


def _targets() -> list[_Target]:
    rows = (
        Database.objects.filter(
            Q(project__write_fence_applied=True) | ~Q(project__write_fence=""),
            slot=DatabaseSlot.CURRENT, project__recycled_at=None, project__ready_at__isnull=False,
            project__region__reachable=True, project__region__reconcile=True,
            server__observed_state=ObservedState.RUNNING, server__reconcile=True, locked_at=None,
        )
        .select_related("project", "server")
        .prefetch_related("roles")
    )  # fmt: skip
    found = [_target(row) for row in rows]
    moment = time.monotonic()
    due = [target for target in found if moment - _acted.get(target.key, -HOLD_EVERY_SECONDS) >= HOLD_EVERY_SECONDS]
    due = sorted(due, key=lambda target: _acted.get(target.key, 0.0))[:ACT_BATCH]
    _forget({target.key for target in found})
    return due


def _forget(known: set[tuple[UUID, bool, bool]]) -> None:
    for key in _acted.keys() - known:
        del _acted[key]
    _failed.intersection_update({project_id for project_id, _, _ in known})


def _target(row: Database) -> _Target:
    project = row.project
    return _Target(
        project.pk, project.slug, registry.engine(row.server.engine), row.server, wiring.tenant_names(row),
        fenced=bool(project.write_fence), applied=project.write_fence_applied,
        hard=project.write_fence == WriteFence.DISK or project.write_fence_hard,
    )  # fmt: skip


def _act(target: _Target) -> str:
    """Runs in a thread: no ORM here. Returns why it failed, or nothing."""
    try:
        with wiring.admin_session(
            target.engine, target.server, timeout_seconds=ANSWER_SECONDS, statement_seconds=STATEMENT_SECONDS
        ) as admin:
            if target.fenced != target.applied:
                admin.fence_writers(target.names, fenced=target.fenced)
            elif target.fenced:
                admin.hold_fence(target.names, hard=target.hard)
    except domain.EngineError as error:
        return str(error) or error.code
    return ""


def _broken(error: Exception) -> str:
    return f"unexpected: {type(error).__name__}"


def seen(project: Project, fenced: bool) -> bool:
    """`write_fence_applied` after a health check saw the engine's side. It only ever makes the engine be told again: who
    tells it knows when that is done."""
    if project.write_fence:
        return project.write_fence_applied and fenced
    return project.write_fence_applied or fenced
