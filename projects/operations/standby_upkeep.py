"""Keeping the number of warm standbys that operators want: one at a time per region, and never at the tenants' expense.

A tick only records operations; without targets and standbys it costs two queries.
"""

from __future__ import annotations

import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from uuid import UUID

import structlog
from django.db import transaction
from django.db.models import F

from novastack.common.clock import now
from novastack.common.models import Install
from projects import domain, registry
from projects.engines.base import Engine
from projects.models import (
    DISK_WARN_PERCENT,
    DatabaseServer,
    DataTombstone,
    Endpoint,
    ObservedState,
    Operation,
    Orphan,
    Region,
    ServerDesired,
    ServerKind,
    StandbyTarget,
)
from projects.operations import catalogue, certificates, forgetting, standbys, wiring
from projects.operations.base import PLATFORM_CONNECTIONS, StepFailed

log = structlog.get_logger(__name__)

PROBE_EVERY_SECONDS = 60
IMAGE_EVERY_SECONDS = 60
PARALLEL = 4
PROBE_FAILURES = 2  # in a row: one may be a busy host
MAX_LEAVING = 3  # of a target, that are being removed: else servers that can't be would fill the disk
_looked: dict[str, float] = {}
_images: dict[str, domain.ImageRef] = {}


@dataclass(slots=True)
class Upkeep:
    """What one tick did; counts."""

    preparing: int = 0
    removing: int = 0
    forgotten: int = 0


@dataclass(slots=True)
class Standing:
    """How a target does: `ready` may be claimed now, `leaving` are being removed or were set aside."""

    target: StandbyTarget
    ready: int = 0
    made: int = 0
    leaving: int = 0
    rows: list[DatabaseServer] = field(default_factory=list)


def keep() -> Upkeep:
    """One tick. Two at the same time do no harm: the target's row and the servers' locks decide."""
    done = Upkeep()
    targets = list(StandbyTarget.objects.select_related("region", "plan"))
    rows = list(DatabaseServer.objects.filter(kind=ServerKind.STANDBY).select_related("region", "standby_of__plan"))
    if not targets and not rows:
        return done
    install = Install.load()
    for region in {row.region for row in rows if row.region.gone_at is not None}:
        done.forgotten += _forget(region, [row for row in rows if row.region_id == region.pk])
    rows = [row for row in rows if row.region.gone_at is None]
    if not install.read_only:
        done.removing = _remove_unwanted(targets, rows)
    for standing in standings(targets, rows):
        reason = why_not(standing, install)
        if not reason and len(standing.rows) - standing.leaving < standing.target.count:
            reason = _prepare(standing.target, done)
        if reason != standing.target.problem and not (standing.target.retry_after and not reason):
            StandbyTarget.objects.filter(pk=standing.target.pk).update(problem=reason[:500])
    return done


def standings(targets: list[StandbyTarget], rows: list[DatabaseServer]) -> list[Standing]:
    """Each target with its servers."""
    by_target: dict[UUID | None, list[DatabaseServer]] = defaultdict(list)
    for row in rows:
        by_target[row.standby_of_id].append(row)
    found = []
    for target in targets:
        mine = by_target[target.pk]
        leaving = [row for row in mine if row.desired_state == ServerDesired.ABSENT or not row.reconcile]
        ready = [row for row in mine if row not in leaving and is_ready(row)]
        found.append(Standing(target, len(ready), len(mine) - len(leaving), len(leaving), mine))
    return found


def is_ready(row: DatabaseServer) -> bool:
    up = row.observed_state == ObservedState.RUNNING and row.desired_state == ServerDesired.RUNNING
    return row.standby_ready_at is not None and up and row.reconcile


def why_not(standing: Standing, install: Install) -> str:
    """Why no more are made though there are fewer than wanted, for operators; empty: nothing stands in the way."""
    target, region = standing.target, standing.target.region
    if standing.made >= target.count:
        return ""
    if install.read_only:
        return "The install is read-only."
    if not region.available:
        return f"{region.name} is off."
    if not region.reconcile:
        return f"Nothing is changed in {region.name} by itself (`reconcile` is off)."
    if not region.reachable:
        return f"{region.name} can't be reached."
    if reason := _not_offered(target):
        return reason
    used = region.disk_used_percent or 0
    if used >= DISK_WARN_PERCENT:
        return f"The disk of {region.name} is {used:.0f} % full; standbys are made below {DISK_WARN_PERCENT} %."
    if standing.leaving >= MAX_LEAVING:
        return f"{standing.leaving} earlier ones could not be removed yet."
    if target.retry_after is not None and target.retry_after > now():
        return target.problem or "The last one could not be made."
    return ""


def _not_offered(target: StandbyTarget) -> str:
    if target.engine not in registry.engines():
        return f"There is no engine {target.engine}."
    engine = registry.engine(target.engine)
    if target.version not in {v.version for v in catalogue.versions_of(engine).offered}:
        return f"{engine.title} {target.version} is not offered any more."
    if reason := target.region.reason_against(engine.name, target.version):
        return f"{target.region.name} can't run it: {reason}."
    if target.plan.memory_bytes < engine.minimum_memory_bytes:
        return f"{engine.title} needs at least {engine.minimum_memory_bytes >> 20} MiB of memory."
    return ""


def _prepare(target: StandbyTarget, done: Upkeep) -> str:
    """Record one more; the reason why not."""
    with transaction.atomic():
        locked = (
            StandbyTarget.objects.select_for_update(of=("self",)).select_related("region", "plan").filter(pk=target.pk)
        )
        row = locked.first()
        if row is None:
            return ""
        mine = DatabaseServer.objects.filter(standby_of=row, kind=ServerKind.STANDBY, reconcile=True)
        if mine.exclude(desired_state=ServerDesired.ABSENT).count() >= row.count:
            return ""
        try:
            with transaction.atomic():
                done.preparing += standbys.prepare_begin(row) is not None
        except StepFailed as error:
            return error.detail
    return ""


# --- what has to go -----------------------------------------------------------------------------------------------------
def _remove_unwanted(targets: list[StandbyTarget], rows: list[DatabaseServer]) -> int:
    """Record a removal for each that is too many, not as wanted any more, or ill, and that nobody works on."""
    by_key = {target.pk: target for target in targets}
    at_work = set(
        Operation.objects.live().filter(server_uuid__in=[row.pk for row in rows]).values_list("server_uuid", flat=True)
    )
    open_ = [row for row in rows if row.reconcile and row.pk not in at_work and _can_be_touched(row.region)]
    reasons: dict[UUID, str] = {}
    for row in open_:
        if reason := _why_remove(row, by_key.get(row.standby_of_id) if row.standby_of_id else None):
            reasons[row.pk] = reason
    reasons |= _surplus(targets, rows, open_, reasons)
    reasons |= _silent([row for row in open_ if row.pk not in reasons])
    done = 0
    for row in open_:
        if row.pk in reasons and standbys.remove_begin(row, reasons[row.pk]) is not None:
            row.desired_state = ServerDesired.ABSENT
            done += 1
    return done


def _can_be_touched(region: Region) -> bool:
    return region.available and region.reachable and region.reconcile


def _why_remove(row: DatabaseServer, target: StandbyTarget | None) -> str:
    if row.desired_state == ServerDesired.ABSENT:  # a removal that ended before its end
        return "" if row.recover_after and row.recover_after > now() else "removed again"
    if target is None:
        return "nobody wants it any more"
    if row.standby_ready_at is None:
        return row.observed_detail or "it was not finished"
    plan, region = target.plan, target.region
    wanted = (
        target.region_id, target.engine, target.version, plan.memory_bytes, plan.connection_limit + PLATFORM_CONNECTIONS,
        region.runtime, region.bind_address, region.control_host,
    )  # fmt: skip
    is_ = (
        row.region_id, row.engine, row.version, row.memory_bytes, row.max_connections, row.runtime, row.bind_address,
        row.control_host,
    )  # fmt: skip
    if wanted != is_:
        return "it is not what is wanted now"
    if reason := _not_offered(target):
        return reason
    if row.tls_certificate and (certificates.is_due(row.tls_not_after) or row.tls_names != _names(row, region)):
        return "its certificate ends, or is for other names"
    if row.observed_state in {ObservedState.STOPPED, ObservedState.ABSENT}:
        return f"it was seen {row.observed_state}"
    return _other_image(row)


def _names(row: DatabaseServer, region: Region) -> list[str]:
    return certificates.names_of(
        row, Endpoint(region=region, host=region.client_host, control_host=region.control_host)
    )


def _other_image(row: DatabaseServer) -> str:
    """Whether a new server would be made from another image now. What can't be found out is no reason."""
    engine, region = registry.engine(row.engine), row.region
    key = f"image:{region.pk}:{row.engine}:{row.version}"
    if _due(key, IMAGE_EVERY_SECONDS):
        try:
            _images[key] = wiring.runtime_of(region).resolve_image(
                engine.name, row.version, engine.official_image, catalogue.versions_of(engine).image_of(row.version)
            )
        except domain.NovaStackRuntimeError:
            _images.pop(key, None)
    image = _images.get(key)
    if image is None or (image.digest or image.name) == (row.image_digest or row.image):
        return ""
    return "its image is not the current one"


def _surplus(
    targets: list[StandbyTarget], rows: list[DatabaseServer], open_: list[DatabaseServer], reasons: dict[UUID, str]
) -> dict[UUID, str]:
    """The newest beyond the number wanted."""
    found = {}
    for target in targets:
        mine = [
            row for row in rows
            if row.standby_of_id == target.pk and row.pk not in reasons and row.reconcile
            and row.desired_state != ServerDesired.ABSENT
        ]  # fmt: skip
        free = [row for row in sorted(mine, key=lambda r: r.created_at, reverse=True) if row in open_]
        for row in free[: max(0, len(mine) - target.count)]:
            found[row.pk] = "fewer are wanted"
    return found


def _silent(rows: list[DatabaseServer]) -> dict[UUID, str]:
    """Real logins, each minute, bounded: a standby that does not answer is of no use."""
    ready = [row for row in rows if is_ready(row) and _due(f"probe:{row.pk}", PROBE_EVERY_SECONDS)]
    if not ready:
        return {}
    asked = [(registry.engine(row.engine), row.control_endpoint, wiring.admin_candidates(row)[-1]) for row in ready]

    def answers(one: tuple[Engine, domain.Endpoint, domain.Credentials]) -> bool:
        engine, endpoint, credentials = one
        try:
            engine.probe(endpoint, credentials)
        except domain.ServerBusy:
            return True
        except domain.EngineError:
            return False
        return True

    with ThreadPoolExecutor(PARALLEL, thread_name_prefix="standbys") as pool:
        results = list(pool.map(answers, asked))
    mute = [row for row, ok in zip(ready, results, strict=True) if not ok]
    well = [row.pk for row, ok in zip(ready, results, strict=True) if ok and row.recoveries]
    mine = DatabaseServer.objects.filter(kind=ServerKind.STANDBY)
    if well:
        mine.filter(pk__in=well).update(recoveries=0)
    if mute:
        mine.filter(pk__in=[row.pk for row in mute]).update(recoveries=F("recoveries") + 1)
    return {row.pk: "it does not answer" for row in mute if row.recoveries + 1 >= PROBE_FAILURES}


def _due(what: str, every_seconds: float) -> bool:
    """Whether this process has not looked at `what` for so long; then it counts as looked at."""
    moment = time.monotonic()
    if moment - _looked.get(what, -every_seconds) < every_seconds:
        return False
    if len(_looked) > 10_000:
        _looked.clear()
    _looked[what] = moment
    return True


# --- a runtime that will not come back ------------------------------------------------------------------------------------
def _forget(region: Region, rows: list[DatabaseServer]) -> int:
    """Its standbys are written down as what may still exist there, and forgotten: nothing of anybody's was on them."""
    note = f"May still exist: a warm standby of {region.name}, which was declared gone."
    forgotten = 0
    for row in rows:
        with transaction.atomic():
            forgetting.end_operations(server=row)
            locked = DatabaseServer.objects.select_for_update(of=("self",)).filter(pk=row.pk, kind=ServerKind.STANDBY)
            if locked.first() is None:
                continue
            DataTombstone.objects.filter(server_uuid=row.pk, deleted_at=None).update(
                forgotten_at=now(), last_error=forgetting.DETAIL
            )
            if row.initialised_at or row.runtime_ref:
                for kind in ("server", "data"):
                    Orphan.objects.update_or_create(
                        region=region, kind=kind, name=row.handle.name,
                        defaults={"resolved_at": None, "forgotten_at": now(), "note": note[:500]},
                    )  # fmt: skip
            row.delete()
            forgotten += 1
    return forgotten
