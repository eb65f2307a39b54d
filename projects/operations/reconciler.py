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
from uuid import UUID

import structlog
from django.db import connection, transaction
from django.db.models import Q

from novastack.common.clock import DatabaseNow, now
from novastack.common.models import Install
from projects import domain
from projects.models import DatabaseServer, Health, ObservedState, Operation, Project, Region, ServerDesired, ServerKind
from projects.operations import abilities, converging, fanout, orphans, pooled_upkeep, status, wiring
from projects.operations.queue import hint_health, send_hint
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
FAILED_EVERY_SECONDS = 15

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
        elsewhere = not orphans.inventory(look.runtime)
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
        looks[pk].known = orphans.known_in(looks[pk].region)
    inventories = {pk: functools.partial(orphans.inventory, looks[pk].runtime) for pk in due}
    for pk, found in fanout.ask("orphans", inventories, fanout.patience(regions, SELDOM_SECONDS)):
        with _broken_alone(regions[pk], report):
            report.orphans += orphans.report(regions[pk], looks[pk].known, found, install)


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
        failed_too = bool(servers) and _due(f"failed:{region.pk}", FAILED_EVERY_SECONDS)
        report.started += converging.converge(servers, failed_too=failed_too)
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
    projects = converging.projects_on(fresh)
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
    orphans.make_read_only(
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
    if not runtime.read_epoch() and not (moved and not orphans.inventory(runtime)):
        runtime.write_epoch(epoch)


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
