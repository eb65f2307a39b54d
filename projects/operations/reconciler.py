"""The reconciler: what makes state true again without anybody asking (beat, every 5 s).

Hints that were lost are sent again; expired leases are resumed; every region is observed with one call; desired and
observed are brought together by recording operations; what nobody knows is reported. It writes only what changed.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import structlog
from django.db import connection, transaction
from django.db.models import F, Q

from accounts.services import audit
from novastack.common.clock import DatabaseNow, now
from novastack.common.errors import Conflict
from novastack.common.models import Install
from projects import domain
from projects.models import (
    Database,
    DatabaseServer,
    DatabaseSlot,
    DataTombstone,
    DesiredStatus,
    Health,
    ObservedState,
    Operation,
    Orphan,
    Project,
    ProjectStatus,
    Region,
    ServerDesired,
    ServerKind,
)
from projects.models.servers import NOTED_KINDS
from projects.operations import abilities, fanout, pooled_upkeep, pools, status, wiring
from projects.operations.queue import hint_health, operation_create, send_hint
from projects.runtimes.base import Runtime

log = structlog.get_logger(__name__)

HINT_AGE_SECONDS = 2
HINT_EVERY_SECONDS = 5
ABILITIES_EVERY_SECONDS = 60
ORPHAN_EVERY_SECONDS = 60
EPOCH_EVERY_SECONDS = 30
OTHER_ENGINE = "another engine answers at its address: nothing of this install is there, and its servers should be"
OBSERVE_SECONDS = 10.0  # after a worker's start every server is inspected once
OBSERVE_CALLS = 6  # epoch, list, clock, events, and inspecting side by side
SELDOM_SECONDS = 15.0  # registries are asked
MAX_NEW_ORPHANS = 3
MAX_RECOVERY_DELAY_SECONDS = 300
FAILED_EVERY_SECONDS = 15
# What a project must want for the reconciler to do so by itself.
WANTED = {"recover": {DesiredStatus.RUNNING}, "stop": {DesiredStatus.STOPPED, DesiredStatus.RECYCLED}}

OOM_ADVICE = "Raise the memory limit, or look for a large query."
OBSERVED_FIELDS = (
    "kind", "incarnation", "runtime_ref", "desired_state", "observed_state", "observed_detail", "observed_at",
    "started_at", "reconcile", "initialised_at", "recover_after",
)  # fmt: skip
_looked: dict[str, float] = {}


@dataclass(slots=True)
class Report:
    """What one tick did; counts."""

    hinted: int = 0
    observed: int = 0
    changed: int = 0
    started: int = 0
    orphans: int = 0
    unreachable: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Look:
    """One region in one tick."""

    region: Region
    runtime: Runtime
    servers: list[DatabaseServer]
    epoch_due: bool = False
    known: set[tuple[str, str, int]] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class _Seen:
    """What its runtime said. `epoch`: None if nobody asked; an error if it could not be read."""

    observations: Mapping[domain.Handle, domain.Observation]
    epoch: str | domain.NovaStackRuntimeError | None
    elsewhere: bool = False  # nothing of this install is there, and its servers should be


def reconcile() -> Report:
    """One tick. Two at the same time do no harm: locks and leases decide. Regions are asked side by side, and each is done
    with as it answers: one that hangs is given up for this tick."""
    report = Report()
    report.hinted = resend_hints()
    install = Install.load()
    looks: dict[UUID, _Look] = {}
    for region in Region.objects.filter(enabled=True).exclude(runtime=""):
        with _broken_alone(region, report):
            if (runtime := _runtime(region, report)) is not None:
                looks[region.pk] = _Look(region, runtime, [])
    regions = {pk: look.region for pk, look in looks.items()}
    well: dict[UUID, _Look] = {}
    pings = {pk: look.runtime.ping for pk, look in looks.items()}
    for pk, pong in fanout.ask("ping", pings, fanout.patience(regions)):
        with _broken_alone(regions[pk], report):
            if isinstance(pong, Exception):
                _away(regions[pk], pong, report)
            else:
                look = well[pk] = looks[pk]
                look.servers = _servers(look.region)
                look.epoch_due = _due(_epoch_name(look.region, install), EPOCH_EVERY_SECONDS)
    done: dict[UUID, _Look] = {}
    questions = {pk: functools.partial(_see, look) for pk, look in well.items()}
    allowed = fanout.patience_for_calls(regions, OBSERVE_SECONDS, OBSERVE_CALLS, "ping")
    for pk, seen in fanout.ask("observe", questions, allowed):
        with _broken_alone(regions[pk], report):
            if isinstance(seen, Exception):
                _away(regions[pk], seen, report)
                continue
            if seen.elsewhere:
                _looked.pop(_epoch_name(regions[pk], install), None)
                _away(regions[pk], domain.RuntimeUnreachable(OTHER_ENGINE), report)
                continue
            status.set_reachable(regions[pk], True, "")
            if _region(well[pk], seen, install, report):
                done[pk] = well[pk]
    _seldom(done, install, report)
    return report


@contextlib.contextmanager
def _broken_alone(region: Region, report: Report) -> Iterator[None]:
    """One region that breaks must not keep the others from being looked after."""
    try:
        yield
    except Exception as error:
        if connection.in_atomic_block:
            raise
        report.broken.append(region.slug)
        log.error("region not reconciled", region=region.slug, error=type(error).__name__, exc_info=error)


def _runtime(region: Region, report: Report) -> Runtime | None:
    try:
        return wiring.runtime_of(region)
    except domain.NovaStackRuntimeError as error:
        _away(region, error, report)
        return None


def _away(region: Region, error: Exception, report: Report) -> None:
    """Put down that the region can't be reached. Raises what is no runtime's error."""
    if not isinstance(error, domain.NovaStackRuntimeError):
        raise error
    report.unreachable.append(region.slug)
    status.set_reachable(region, False, str(error))


def _see(look: _Look) -> _Seen:
    """Runs in a thread: no ORM here."""
    epoch: str | domain.NovaStackRuntimeError | None = None
    if look.epoch_due:
        try:
            epoch = look.runtime.read_epoch()
        except domain.NovaStackRuntimeError as error:
            epoch = error
    elsewhere = False
    if epoch == "" and _moved(look.region, look.servers):
        elsewhere = not _inventory(look.runtime)
    return _Seen(look.runtime.observe([server.handle for server in look.servers]), epoch, elsewhere)


def _moved(region: Region, servers: list[DatabaseServer]) -> bool:
    """Whether another engine than the servers' could be at the region's address: it was typed, and may have been changed."""
    return bool(region.endpoint_url) and any(server.initialised_at for server in servers)


def _seldom(looks: dict[UUID, _Look], install: Install, report: Report) -> None:
    """What takes longer and is not due in every tick: what the runtimes can run, and what nobody knows."""
    regions = {pk: look.region for pk, look in looks.items()}
    due = [pk for pk in looks if _due(f"abilities:{pk}", ABILITIES_EVERY_SECONDS)]
    if due:
        what = abilities.asked()
        asked = {pk: functools.partial(abilities.reasons, looks[pk].runtime, what) for pk in due}
        for pk, reasons in fanout.ask("abilities", asked, fanout.patience(regions, SELDOM_SECONDS)):
            with _broken_alone(regions[pk], report):
                if isinstance(reasons, domain.NovaStackRuntimeError):
                    continue  # nobody knows: what was seen before stays
                if isinstance(reasons, Exception):
                    raise reasons
                abilities.keep(regions[pk], reasons)
    due = [pk for pk in looks if _due(f"orphans:{pk}", ORPHAN_EVERY_SECONDS)]
    for pk in due:
        looks[pk].known = known_in(looks[pk].region)
    inventories = {pk: functools.partial(_inventory, looks[pk].runtime) for pk in due}
    for pk, found in fanout.ask("orphans", inventories, fanout.patience(regions, SELDOM_SECONDS)):
        with _broken_alone(regions[pk], report):
            report.orphans += _report_orphans(regions[pk], looks[pk].known, found, install)


def resend_hints(limit: int = 200) -> int:
    """Hint at every live operation that is due and that nobody works on: lost hints, ended waits, expired leases."""
    due = (
        Operation.objects.live()
        .filter(Q(lease_until=None) | Q(lease_until__lt=DatabaseNow()))
        .filter(Q(next_attempt_at=None) | Q(next_attempt_at__lte=DatabaseNow()))
        .filter(created_at__lt=now() - timedelta(seconds=HINT_AGE_SECONDS))
        .filter(Q(hinted_at=None) | Q(hinted_at__lt=now() - timedelta(seconds=HINT_EVERY_SECONDS)))
        .order_by("created_at")
        .values_list("pk", flat=True)[:limit]
    )
    ids: list[UUID] = list(due)
    if ids:
        Operation.objects.filter(pk__in=ids).update(hinted_at=now())
        for operation_id in ids:
            send_hint(operation_id)
    return len(ids)


def _servers(region: Region) -> list[DatabaseServer]:
    return list(
        DatabaseServer.objects.filter(region=region)
        .exclude(desired_state=ServerDesired.ABSENT)
        .exclude(runtime_ref="", initialised_at=None)
        .only(*OBSERVED_FIELDS)
    )


def _region(look: _Look, seen: _Seen, install: Install, report: Report) -> bool:
    """Take what was seen of one region, and what follows from it. False if its epoch is not ours."""
    region, servers, observations = look.region, look.servers, seen.observations
    if seen.epoch is not None and not _epoch_judged(region, look.runtime, install, seen.epoch):
        return False
    report.observed += len(servers)
    seen_before = {server.pk: server.observed_at for server in servers}
    changed = [server for server in servers if _take(server, observations[server.handle])]
    if changed:
        stale = _write(changed, seen_before)
        servers = [server for server in servers if server.pk not in stale]
        report.changed += len(changed) - len(stale)
    if not install.read_only and region.reconcile:
        report.started += _converge(servers)
        if any(server.kind == ServerKind.POOL for server in servers):
            report.started += pooled_upkeep.converge(region)
    return True


def _write(changed: list[DatabaseServer], seen_before: dict[UUID, datetime | None]) -> set[UUID]:
    """Store what was seen, except where an operation has looked since: its word is newer than our observation.
    Returns the servers that were left alone."""
    with transaction.atomic():
        rows = DatabaseServer.objects.select_for_update(no_key=True).filter(
            pk__in=seen_before.keys() & {s.pk for s in changed}
        )
        current = dict(rows.order_by("pk").values_list("pk", "observed_at"))
        fresh = [s for s in changed if s.pk in current and current[s.pk] == seen_before[s.pk]]
        DatabaseServer.objects.bulk_update(
            fresh, ["observed_state", "observed_detail", "observed_at", "started_at"], batch_size=500
        )
    projects = _projects_of(fresh)
    # Seen running after it was seen otherwise: only a login makes it "running" again.
    up = {s.pk for s in fresh if s.observed_state == ObservedState.RUNNING}
    awake = [project for project, server in projects.items() if server in up]
    if awake:
        Project.objects.filter(pk__in=awake).update(health=Health.UNKNOWN, health_detail="", health_checked_at=None)
        hint_health()
    status.refresh(projects)
    return {s.pk for s in changed} - {s.pk for s in fresh}


def _due(what: str, every_seconds: float) -> bool:
    """Whether this process has not looked at `what` for so long; then it counts as looked at."""
    moment = time.monotonic()
    if moment - _looked.get(what, -every_seconds) < every_seconds:
        return False
    _looked[what] = moment
    return True


def _epoch_name(region: Region, install: Install) -> str:
    return f"epoch:{region.pk}:{install.epoch}"


def _epoch_judged(
    region: Region, runtime: Runtime, install: Install, found: str | domain.NovaStackRuntimeError
) -> bool:
    """The runtime's epoch is ours (rule 11). A new region gets it; a mismatch makes the install read-only."""
    if isinstance(found, domain.NovaStackRuntimeError):
        log.warning("epoch not read", region=region.slug, error=str(found))
        _looked.pop(_epoch_name(region, install), None)
        return True
    if not found and install.read_only:
        return True
    if not found:
        # Monitoring may only read the runtime (rule 23): then `claim_epochs` does it, in another worker.
        with contextlib.suppress(domain.NovaStackRuntimeError):
            fanout.ask_one("epoch", region, lambda: runtime.write_epoch(str(install.epoch)))
        return True
    if found == str(install.epoch):
        return True
    _looked.pop(_epoch_name(region, install), None)
    make_read_only(
        install,
        f"The runtime of {region.name} was last used by another state of this install (epoch {found[:8]}, "
        f"ours {str(install.epoch)[:8]}). See docs/operations.md.",
    )
    return False


def claim_epochs() -> None:
    """Write our epoch into runtimes that have none. Called where writing to runtimes is allowed."""
    install = Install.load()
    if install.read_only:
        return
    for region in Region.objects.filter(enabled=True, reachable=True).exclude(runtime=""):
        with contextlib.suppress(domain.NovaStackRuntimeError):  # the next tick tries again
            runtime = wiring.runtime_of(region)
            claim = functools.partial(_claim, runtime, str(install.epoch), _moved(region, _servers(region)))
            fanout.ask_one("epoch", region, claim)


def _claim(runtime: Runtime, epoch: str, moved: bool) -> None:
    if not runtime.read_epoch() and not (moved and not _inventory(runtime)):
        runtime.write_epoch(epoch)


def make_read_only(install: Install, reason: str) -> None:
    """Stop every write to runtimes until an operator decides. Recorded once. What was seen under an older epoch does not
    count: an operator has decided since (`read_only off`)."""
    mine = Install.objects.filter(pk=install.pk, epoch=install.epoch, read_only=False)
    if mine.update(read_only=True, read_only_reason=reason[:500]):
        audit.record(None, "install.read_only", data={"reason": reason})
        log.error("install is read-only now", reason=reason)
    install.read_only, install.read_only_reason = True, reason


def _take(server: DatabaseServer, seen: domain.Observation) -> bool:
    """Put an observation on the row; True if it says something new."""
    detail = _describe(seen)
    before = (server.observed_state, server.observed_detail, server.started_at)
    started = seen.started_at if seen.state == domain.ServerState.RUNNING else None
    if started is not None and server.started_at is not None and _same_start(started, server.started_at):
        started = server.started_at
    if seen.state == domain.ServerState.STARTING and server.observed_state == ObservedState.RUNNING:
        return False
    after = (ObservedState(seen.state.value), detail, started)
    if before == after:
        return False
    server.observed_state, server.observed_detail, server.started_at = after
    server.observed_at = now()
    return True


def _same_start(seen: datetime, noted: datetime) -> bool:
    """Our own note of a start is later than the runtime's by the time until the first login. One that the runtime saw
    after our note is another start, however soon: only a login makes it "running" again."""
    return timedelta(seconds=-120) < seen - noted <= timedelta(seconds=2)


def _describe(seen: domain.Observation) -> str:
    if seen.state in {domain.ServerState.STOPPED, domain.ServerState.ABSENT} and seen.oom_killed:
        return f"Killed: out of memory. {OOM_ADVICE}"
    if seen.oom_killed:
        return f"{seen.detail[:1].upper()}{seen.detail[1:]}. {OOM_ADVICE}"
    return seen.detail[:500]


def _projects_of(servers: list[DatabaseServer]) -> dict[UUID, UUID]:
    """Project → the one of these servers on which it lives; a pool has many."""
    rows = Database.objects.filter(server__in=[s.pk for s in servers], slot=DatabaseSlot.CURRENT)
    return dict(rows.values_list("project_id", "server_id"))


def _converge(servers: list[DatabaseServer]) -> int:
    """Record an operation for each project whose server is not as desired and that nobody works on."""
    moment = now()
    started = _recover_pools(servers, moment)
    apart: dict[UUID, str] = {}
    for server in servers:
        if not server.reconcile or server.initialised_at is None or server.kind != ServerKind.DEDICATED:
            continue
        down = server.observed_state in {ObservedState.STOPPED, ObservedState.ABSENT}
        if server.desired_state == ServerDesired.RUNNING and down:
            if server.recover_after is None or server.recover_after <= moment:
                apart[server.pk] = "recover"
        elif server.desired_state == ServerDesired.STOPPED and server.observed_state == ObservedState.RUNNING:
            apart[server.pk] = "stop"
    apart.update(dict.fromkeys(_failed_but_up(servers, moment), "recover"))
    if not apart:
        return started
    by_project = _projects_of([s for s in servers if s.pk in apart])
    busy = set(
        Operation.objects.live().holding().filter(project_uuid__in=by_project).values_list("project_uuid", flat=True)
    )
    for project in Project.objects.filter(pk__in=by_project, ready_at__isnull=False, purging_at=None):
        server_id = by_project[project.pk]
        kind = apart[server_id]
        final = project.failure is not None and not project.failure.get("retryable", True)
        if project.pk in busy or project.desired_status not in WANTED[kind] or final:
            continue
        started += _start_recovery(project, server_id, kind)
    return started


def _recover_pools(servers: list[DatabaseServer], moment: datetime) -> int:
    """Record an operation for each pool that was seen down and that nobody works on; it starts it on its own data."""
    started = 0
    for server in servers:
        down = server.observed_state in {ObservedState.STOPPED, ObservedState.ABSENT}
        if server.kind != ServerKind.POOL or not down or server.desired_state != ServerDesired.RUNNING:
            continue
        if not server.reconcile or server.initialised_at is None:
            continue
        if server.recover_after is not None and server.recover_after > moment:
            continue
        why = server.observed_detail or server.observed_state
        with transaction.atomic():
            if pools.recover_begin(server, why=why) is not None:
                started += 1
                audit.record(None, "pool.recover", target=str(server), data={"reason": why})
    return started


def _failed_but_up(servers: list[DatabaseServer], moment: datetime) -> list[UUID]:
    """Servers of projects that show a failure which may pass, and that run all the same (somebody else started them, or
    only the last look at them failed): recovering proves them by a login, and takes the failure away."""
    up = {
        s.pk
        for s in servers
        if s.desired_state == ServerDesired.RUNNING
        and s.observed_state == ObservedState.RUNNING
        and s.reconcile
        and s.kind == "dedicated"
        and s.initialised_at is not None
        and (s.recover_after is None or s.recover_after <= moment)
    }
    if not servers or not _due(f"failed:{servers[0].region_id}", FAILED_EVERY_SECONDS):
        return []
    rows = Database.objects.filter(
        project__region_id=servers[0].region_id, project__status=ProjectStatus.FAILED, slot=DatabaseSlot.CURRENT,
        project__failure__retryable=True,
    )  # fmt: skip
    return [pk for pk in rows.values_list("server_id", flat=True) if pk in up]


def _start_recovery(project: Project, server_id: UUID, kind: str) -> int:
    server = DatabaseServer.objects.get(pk=server_id)
    delay = min(MAX_RECOVERY_DELAY_SECONDS, 10 * 2 ** min(server.recoveries, 5))
    try:
        with transaction.atomic():
            locked = Project.objects.select_for_update(of=("self",), no_key=True).get(pk=project.pk)
            if locked.desired_status not in WANTED[kind] or locked.generation != project.generation:
                return 0  # somebody acted since we looked: what they want counts
            operation_create(project=project, kind=kind, created_by_label="reconciler")
            if kind == "recover":
                DatabaseServer.objects.filter(pk=server_id).update(
                    recoveries=F("recoveries") + 1, recover_after=now() + timedelta(seconds=delay)
                )
            audit.record(
                None, f"project.{kind}", organization_id=project.organization_id, project_id=project.pk,
                project_name=project.name, data={"reason": server.observed_detail or server.observed_state},
            )  # fmt: skip
    except Conflict:
        return 0
    return 1


def find_orphans(region: Region, runtime: Runtime, install: Install) -> int:
    """Report servers and volumes that carry our label and that no row knows. Nothing is touched (rule 11)."""
    known = known_in(region)
    try:
        return _report_orphans(region, known, _inventory(runtime), install)
    except domain.NovaStackRuntimeError as error:
        return _report_orphans(region, known, error, install)


def _inventory(runtime: Runtime) -> list[tuple[str, domain.Handle]]:
    """Runs in a thread: no ORM here."""
    return [("server", h) for h in runtime.managed()] + [("data", h) for h in runtime.managed_data()]


def _report_orphans(
    region: Region, known: set[tuple[str, str, int]], found: list[tuple[str, domain.Handle]] | Exception, install: Install
) -> int:  # fmt: skip
    """`known`: read before looking. Rows are read again: what is made or removed meanwhile is no orphan."""
    if isinstance(found, domain.NovaStackRuntimeError):
        log.warning("orphans not looked for", region=region.slug, error=str(found))
        return 0
    if isinstance(found, Exception):
        raise found
    known = known | known_in(region)
    strange = {(kind, h.name) for kind, h in found if (kind, h.server_id, h.incarnation) not in known}
    noted = Orphan.objects.filter(region=region, resolved_at=None).exclude(kind__in=NOTED_KINDS)  # no runtime's
    open_rows: dict[Any, Orphan] = {(o.kind, o.name): o for o in noted}
    new = strange - set(open_rows)
    for kind, name in sorted(new):
        Orphan.objects.update_or_create(region=region, kind=kind, name=name, defaults={"resolved_at": None})
        log.warning("orphan found", region=region.slug, kind=kind, name=name)
    gone = [row.pk for key, row in open_rows.items() if key not in strange]
    if gone:
        Orphan.objects.filter(pk__in=gone).update(resolved_at=now())
    if len(new) > MAX_NEW_ORPHANS and not install.read_only:
        make_read_only(install, f"{len(new)} unknown servers or volumes appeared at once in {region.name}.")
    return len(new)


def known_in(region: Region) -> set[tuple[str, str, int]]:
    """(kind, server, incarnation) of what may exist. Given-up data may until it was seen deleted; its server may not."""
    rows = list(DatabaseServer.objects.filter(region=region).values_list("pk", "incarnation"))
    tombs = DataTombstone.objects.filter(region=region, deleted_at=None, forgotten_at=None).values_list(
        "server_uuid", "incarnation"
    )
    known = {(kind, str(pk), number) for pk, number in rows for kind in ("server", "data")}
    return known | {("data", str(pk), number) for pk, number in tombs}
