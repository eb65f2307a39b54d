"""The doctor: what rows say against what is really there. Looks and reports; changes nothing (see services/doctoring).

Whatever somebody works on while it looks is left out: an operation that is under way changes rows and servers in turn.
Of a region that can't be reached it says that, and nothing else: nobody knows what is missing there.
"""

from __future__ import annotations

import functools
import shutil
import socket
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from django.conf import settings
from django.db.models import Exists, OuterRef, Q

from novastack.common import health
from novastack.common.clock import DatabaseNow, now
from novastack.common.models import Install
from projects import domain
from projects.models import (
    DISK_WARN_PERCENT,
    BlockedPort,
    Database,
    DatabaseServer,
    DatabaseSlot,
    DiskLevel,
    Operation,
    OperationLock,
    Orphan,
    Project,
    Region,
    ServerDesired,
    ServerKind,
)
from projects.models.servers import LEFT_BY_UNDO
from projects.operations import disks, doctor_pools, fanout, orphans, wiring
from projects.operations import doctor_logins as logins
from projects.operations.doctor_findings import Finding, Report, of
from projects.runtimes.base import Runtime

PARALLEL = 8
LOOK_SECONDS = 30.0
OVERDUE = timedelta(seconds=60)
CONNECT_SECONDS = 0.5
MEMORY_STEP = 64 << 10  # kernels round to pages
CPU_STEP = 0.011
CACHE_KEY = "doctor:report"
KEPT_SECONDS = 7 * 86400


_Rows = dict[UUID, DatabaseServer]
_Known = set[tuple[str, str, int]]


@dataclass(slots=True)
class _Facts:
    """What one runtime said, at one look."""

    described: dict[UUID, domain.Description]
    servers: set[tuple[str, int]]
    data: set[tuple[str, int]]
    epoch: str


def examine() -> Report:
    """Look at everything. A region that does not answer is a finding; only a control database that does not is an error."""
    report, busy = Report(now()), _busy()
    report.findings += [*_install(), *_control_disk(), *_processes(), *_operations()]
    for region, rows, known, facts in _looked_at():
        report.findings += _region(region, rows, known, facts, report)
    report.findings += _noted_orphans(report.findings)
    busy |= _busy()
    report.findings = [f for f in report.findings if not {f.project, f.key} & busy]
    return report


def _busy() -> set[str]:
    """Projects, and servers that are no project's, that an operation works on."""
    live = Operation.objects.live()
    ids = live.holding().values_list("project_uuid").union(live.values_list("server_uuid"))
    return {str(pk) for (pk,) in ids if pk is not None}


# --- the install itself -------------------------------------------------------------------------------------------------
def _install() -> Iterator[Finding]:
    install = Install.load()
    if install.read_only:
        yield Finding(
            "install.read_only", "install", f"Nothing is written to runtimes: {install.read_only_reason}",
            "Decide whose rows count, then `manage.py read_only off`. Until then nothing is fixed here.",
        )  # fmt: skip
    if refused := install.notes.get("purge_due_refused"):
        yield Finding(
            "bin.refused", "recycle bin", f"Not emptied: {refused}",
            "It is tried again every day; purge by hand what may go, or mend what keeps it.",
        )  # fmt: skip


def _control_disk() -> Iterator[Finding]:
    """Of the control database, where it is on this machine (`make run`)."""
    folder = settings.NOVASTACK_BALLAST_FOLDER
    try:
        used = disks.used_percent(shutil.disk_usage(folder)) if folder else 0
    except OSError:
        return
    if used >= DISK_WARN_PERCENT:
        yield Finding(
            "disk.control", "control database", f"Its disk is {used:.0f} % full.",
            "Free some of it: without room nothing can be recorded.",
        )  # fmt: skip


def _processes() -> Iterator[Finding]:
    alive = {name.removeprefix("worker:") for name in health.fresh_heartbeats("worker:")}
    schedule = settings.CELERY_BEAT_SCHEDULE.values()
    for queue in [entry["args"][0] for entry in schedule if entry["task"] == "projects.pulse"]:
        if queue not in alive:
            yield Finding(
                "worker.silent", f"worker:{queue}", "It has given no sign of life for a minute.",
                "Start it: `docker compose ps`, or the log of `make run`.",
            )  # fmt: skip
    if not health.fresh_heartbeats("beat"):
        yield Finding(
            "beat.silent", "beat", "It has given no sign of life for a minute: nothing is looked after.",
            "Start it; a worker of the queue `monitoring` must live, too.",
        )  # fmt: skip


def stuck() -> Any:
    """Live operations that are due, that nobody holds, and that wait for no lock."""
    overdue = DatabaseNow() - OVERDUE
    waits = OperationLock.objects.filter(operation=OuterRef("pk"), granted=False)
    return (
        Operation.objects.live()
        .filter(Q(lease_until=None) | Q(lease_until__lt=overdue), created_at__lt=overdue, updated_at__lt=overdue)
        .filter(Q(next_attempt_at=None) | Q(next_attempt_at__lt=overdue))
        .exclude(Exists(waits))
    )


def _operations() -> Iterator[Finding]:
    for operation in stuck():
        yield Finding(
            "operation.stuck", f"{operation.kind} of {operation.project_name or '–'}",
            "It is due for more than a minute, and no worker has taken it.",
            "Look whether the workers of `provisioning` live; --fix tells them again.",
            fix="hint", key=str(operation.pk),
        )  # fmt: skip


# --- one region ---------------------------------------------------------------------------------------------------------
def _looked_at() -> Iterator[tuple[Region, _Rows, _Known, _Facts | domain.NovaStackRuntimeError]]:
    """Each region with the rows from before the look and what its runtime said: all are asked at once."""
    regions = {r.pk: r for r in Region.objects.filter(enabled=True, gone_at=None).exclude(runtime="")}
    rows = {pk: _rows(region) for pk, region in regions.items()}
    known = {pk: orphans.known_in(region) for pk, region in regions.items()}
    questions = {}
    for pk, region in regions.items():
        handles = {row.handle: row.pk for row in rows[pk].values()}
        try:
            questions[pk] = functools.partial(_facts, wiring.runtime_of(region), handles)
        except domain.NovaStackRuntimeError as error:
            yield region, rows[pk], known[pk], error
    for pk, facts in fanout.ask("doctor", questions, fanout.patience(regions, LOOK_SECONDS)):
        if isinstance(facts, Exception) and not isinstance(facts, domain.NovaStackRuntimeError):
            raise facts
        yield regions[pk], rows[pk], known[pk], facts


def _region(
    region: Region, rows: _Rows, known: _Known, facts: _Facts | domain.NovaStackRuntimeError, report: Report
) -> list[Finding]:
    found = list(_disk(region))
    if isinstance(facts, domain.NovaStackRuntimeError):
        away = Finding(
            "region.unreachable", region.slug, f"Its runtime does not answer: {facts}",
            "Bring it back. Nothing else is known of it until then.", region.slug,
        )  # fmt: skip
        return [*found, away]
    # What was made, moved or removed meanwhile is somebody's work, and looked at the next time.
    known = known | orphans.known_in(region)
    after = _rows(region)
    rows = {pk: row for pk, row in rows.items() if pk in after and _same(row, after[pk])}
    report.looked["regions"] += 1
    report.looked["servers"] += len(rows)
    if facts.epoch and facts.epoch != str(Install.load().epoch):
        found.append(
            Finding(
                "region.epoch", region.slug, f"It was last used by another state of this install ({facts.epoch[:8]}).",
                "See “Control backup and restore”; nothing is fixed there before.", region.slug,
            )
        )  # fmt: skip
    found += _unknown(region, facts, known)
    projects = {p.pk: p for p in Project.objects.filter(region=region).select_related("endpoint")}
    blocked = set(BlockedPort.objects.filter(region=region, until__gt=now()).values_list("port", flat=True))
    down = [row for pk, row in rows.items() if not (pk in facts.described and facts.described[pk].running)]
    held = _held(down)
    for row in rows.values():
        described = facts.described.get(row.pk)
        project = projects.get(row.project_uuid) if row.project_uuid else None
        found += _existence(row, described, facts)
        if described is not None:
            found += _described(row, described, project)
        if project is not None:
            found += _rows_agree(row, project)
        if row in down and row.initialised_at and (row.pk in held or row.port in blocked):
            found.append(
                of(row, "port.taken", f"Port {row.port} is held by somebody else on {row.control_host}.",
                    "End what holds it (`ss -ltnp`); the server can't start before.")
            )  # fmt: skip
    found += _shared(rows.values(), facts)
    found += doctor_pools.check(region, rows, facts.described)
    return found + logins.check(rows, facts.described, projects, report)


def _rows(region: Region) -> dict[UUID, DatabaseServer]:
    rows = DatabaseServer.objects.filter(region=region).exclude(desired_state=ServerDesired.ABSENT)
    rows = rows.select_related("region")
    return {row.pk: row for row in rows.exclude(runtime_ref="", initialised_at=None)}


def _same(one: DatabaseServer, other: DatabaseServer) -> bool:
    fields = (
        "incarnation", "runtime_ref", "port", "desired_state", "initialised_at", "memory_bytes", "cpus", "project_uuid",
    )  # fmt: skip
    return all(getattr(one, name) == getattr(other, name) for name in fields)


def _facts(runtime: Runtime, handles: dict[domain.Handle, UUID]) -> _Facts:
    """Runs in a thread: no ORM here."""
    runtime.ping()
    told = runtime.describe(list(handles))
    return _Facts(
        described={handles[handle]: description for handle, description in told.items()},
        servers={(h.server_id, h.incarnation) for h in runtime.managed()},
        data={(h.server_id, h.incarnation) for h in runtime.managed_data()},
        epoch=runtime.read_epoch(),
    )


def _disk(region: Region) -> Iterator[Finding]:
    if not (problem := region.disk_problem):
        return
    level = region.disk_level
    if level != DiskLevel.FENCED:
        level = DiskLevel.WARN if region.has_room else DiskLevel.CLOSED
    yield Finding(
        f"disk.{level}", region.slug, f"{problem[0].upper()}{problem[1:]}.",
        "Grow the disk, remove what is not NovaStack's, or purge projects from the recycle bin.", region.slug,
    )  # fmt: skip


def _unknown(region: Region, facts: _Facts, known: set[tuple[str, str, int]]) -> Iterator[Finding]:
    for kind, things in (("server", facts.servers), ("data", facts.data)):
        for server_id, number in sorted(things):
            if (kind, server_id, number) not in known:
                name = domain.Handle(server_id, number).name
                how = (
                    f"If nobody needs it: `manage.py doctor --remove-data {name}`."
                    if kind == "data" else "Look whose it is; stop and remove it by hand. Its data stays."
                )  # fmt: skip
                what = "This volume" if kind == "data" else "This server"
                yield Finding(
                    f"unknown.{kind}", name, f"{what} carries our label, and no row knows it.", how, region.slug
                )


def _noted_orphans(found: list[Finding]) -> Iterator[Finding]:
    """What was reported before, in regions that could not be looked at now or that were given up."""
    looked = {(f.region, f.code, f.thing) for f in found}
    away = {f.region for f in found if f.code == "region.unreachable"}
    for row in Orphan.objects.filter(resolved_at=None).select_related("region"):
        if row.kind == "service":
            yield Finding(
                "left.service", row.name, row.note, "Tell the service by hand; then mark it resolved in the admin, Orphans.",
                row.region.slug,
            )  # fmt: skip
            continue
        if row.kind == "database":
            yield Finding(
                "unknown.database", row.name, row.note,
                "Look whose it is; drop it by hand, then mark it resolved in the admin, Orphans.", row.region.slug,
            )  # fmt: skip
            continue
        if row.kind == LEFT_BY_UNDO:
            yield Finding(
                "left.undo", row.name, row.note, "Look what is left of it; then mark it settled in the admin, Orphans.",
                row.region.slug, key=row.name.rpartition(":")[2],
            )  # fmt: skip
            continue
        unseen = row.region.slug in away or not row.region.enabled or row.region.gone_at is not None
        if unseen and (row.region.slug, f"unknown.{row.kind}", row.name) not in looked:
            yield Finding(
                f"unknown.{row.kind}", row.name, row.note or "Seen before; its region can't be looked at now.",
                "Nothing touches it. When the region is back: look again.", row.region.slug,
            )  # fmt: skip


def _existence(row: DatabaseServer, described: domain.Description | None, facts: _Facts) -> Iterator[Finding]:
    if not row.reconcile:
        yield of(
            row, "server.quarantined", "Nothing is done with it by itself (`reconcile` is off).",
            "When it is well again: admin, Database servers, set `reconcile`.",
        )  # fmt: skip
    if row.initialised_at is None:
        return
    if row.kind == ServerKind.STANDBY and row.reconcile:
        return  # one that is lost is replaced within a minute, by itself
    if (str(row.pk), row.incarnation) not in facts.data:
        yield of(
            row, "missing.data", "Its data is gone, or is not this install's. It is never started on new data.",
            "Bring the volume back under its name, or delete the project.", fix="quarantine" if row.reconcile else "",
        )  # fmt: skip
    if described is None:
        how = "It is made again on its data" if row.reconcile else "`reconcile` is off: start the project"
        yield of(row, "missing.server", "Its container or process record is gone.", f"{how}; look again in a minute.")


def _described(row: DatabaseServer, seen: domain.Description, project: Project | None) -> Iterator[Finding]:
    if seen.ref != row.runtime_ref:
        yield of(
            row, "server.ref", "Another container or process than the recorded one is behind its name.",
            "--fix records this one, if you know where it came from; else remove it by hand.", fix="adopt",
        )  # fmt: skip
    wanted = domain.Endpoint(row.bind_address, row.port or 0)
    if seen.publish is None and seen.running:
        yield of(row, "port.differs", f"It is published nowhere; recorded is {_address(wanted)}.", _RESTART)
    elif seen.publish is not None and (seen.publish.host, seen.publish.port) != (wanted.host, wanted.port):
        is_, want = _address(seen.publish), _address(wanted)
        yield of(row, "port.differs", f"It is published at {is_}; recorded is {want}.", _RESTART)
    limits = wiring.limits_of(row)
    wrong = []
    if seen.memory_bytes is not None and abs(seen.memory_bytes - limits.memory_bytes) > MEMORY_STEP:
        wrong.append(f"memory {_mib(seen.memory_bytes)} instead of {_mib(limits.memory_bytes)}")
    if seen.cpus is not None and abs(seen.cpus - limits.cpus) > CPU_STEP:
        wrong.append(f"CPU {f'{seen.cpus:g}' if seen.cpus else 'without limit'} instead of {limits.cpus:g}")
    if project is not None and (project.memory_bytes, project.cpus) != (row.memory_bytes, row.cpus):
        wrong.append(f"the project has {_mib(project.memory_bytes)} and {float(project.cpus):g} CPU")
    if wrong:
        how = "--fix applies those of the project, without a restart."
        if project is None:
            how = "It is nobody's: set its target to fewer and back, and another one is made."
        yield of(row, "limits.differ", f"{'; '.join(wrong)}.", how, fix="limits" if project else "")


_RESTART = "Restart the project: it is made again where it belongs, on its data."


def _address(endpoint: domain.Endpoint) -> str:
    return f"{endpoint.host}:{endpoint.port}"


def _mib(size: int) -> str:
    return f"{size / 2**20:.0f} MiB" if 0 < size < 1 << 60 else "without limit"


def _rows_agree(row: DatabaseServer, project: Project) -> Iterator[Finding]:
    endpoint = getattr(project, "endpoint", None)
    current = Database.objects.filter(project=project, server=row, slot=DatabaseSlot.CURRENT)
    if endpoint is not None and row.port not in {endpoint.port, endpoint.control_port} and current.exists():
        yield of(
            row, "endpoint.differs", f"Clients are told port {endpoint.port}; the server's is {row.port}.",
            "Restart the project; if it stays, this needs a look at the rows.",
        )  # fmt: skip


def _shared(rows: Iterable[DatabaseServer], facts: _Facts) -> Iterator[Finding]:
    by_port: dict[tuple[str, int], list[DatabaseServer]] = defaultdict(list)
    for row in rows:
        if row.port:
            by_port[row.bind_address, row.port].append(row)
    for (_, port), sharing in by_port.items():
        for row in sharing if len(sharing) > 1 else ():
            others = ", ".join(other.handle.name for other in sharing if other is not row)
            described = facts.described.get(row.pk)
            idle = row.reconcile and not (described and described.running)
            yield of(
                row, "port.shared", f"Port {port} is recorded for {others}, too.",
                "Only one can run. --fix sets aside those that don't.", fix="quarantine" if idle else "",
            )  # fmt: skip


def _held(down: list[DatabaseServer]) -> set[UUID]:
    """Servers that don't run, and whose port somebody answers at all the same."""

    def answers(row: DatabaseServer) -> bool:
        try:
            with socket.create_connection((row.control_host, row.port or 0), CONNECT_SECONDS):
                return True
        except OSError:
            return False

    asked = [row for row in down if row.port and row.initialised_at]
    with ThreadPoolExecutor(PARALLEL, thread_name_prefix="doctor") as pool:
        return {row.pk for row, held in zip(asked, pool.map(answers, asked), strict=True) if held}
