"""Whether pools hold what the rows say, and nothing else: the doctor's part that looks at shared servers.

What no row knows is named and left alone: it may be the only copy of somebody's data (rule 11).
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

from projects import domain, registry
from projects.models import (
    BlankDatabase,
    Database,
    DatabaseRole,
    DatabaseServer,
    DatabaseSlot,
    Region,
    ServerDesired,
    ServerKind,
)
from projects.operations import wiring
from projects.operations.doctor_findings import Finding, of

PARALLEL = 4


def check(
    region: Region, rows: dict[UUID, DatabaseServer], described: dict[UUID, domain.Description]
) -> Iterator[Finding]:
    """Databases and logins that no row knows, rows whose database is not there, and addresses that are not the pool's. A
    pool that doesn't answer is told of by the logins' part."""
    pools = [
        row
        for row in rows.values()
        if row.kind == ServerKind.POOL and row.initialised_at and row.desired_state == ServerDesired.RUNNING
        and row.pk in described and described[row.pk].running
    ]  # fmt: skip
    if not pools:
        return
    before = {pool.pk: _known(pool) for pool in pools}
    made = {pool.pk: _made(pool) for pool in pools}
    asked = [(pool, pool.control_endpoint) for pool in pools]  # reads rows, which threads can't
    with ThreadPoolExecutor(PARALLEL, thread_name_prefix="doctor-pools") as threads:
        answers = list(threads.map(lambda each: _contents(*each), asked))
    for pool, names in zip(pools, answers, strict=True):
        if names is None:
            continue
        # What was placed or dropped meanwhile is somebody's work: known before or after is known.
        for name in sorted(names - before[pool.pk] - _known(pool)):
            yield of(
                pool, "unknown.database", f"It holds “{name}”, a database or login that no row knows.",
                "Look whose it is; if nobody needs it, drop it by hand. Nothing here touches it.",
            )  # fmt: skip
        still = _made(pool)
        for name, project in sorted(made[pool.pk].items()):
            if name not in names and still.get(name) == project:
                yield _about(
                    pool, project, "missing.database", f"The database {name} is gone from it.",
                    "Its data is lost unless there is a backup: restore it, or delete the project.",
                )  # fmt: skip
        yield from _addresses(pool)


def _about(pool: DatabaseServer, project: str, code: str, what: str, advice: str) -> Finding:
    return Finding(code, pool.handle.name, what, advice, pool.region.slug, "", project, str(pool.pk))


def _known(pool: DatabaseServer) -> set[str]:
    """Databases, logins and blanks that may be there."""
    rows = Database.objects.filter(server=pool).values_list("name", "made_of")
    roles = DatabaseRole.objects.filter(server=pool).values_list("name", flat=True)
    blanks = BlankDatabase.objects.filter(server=pool).values_list("name", flat=True)
    return {name for pair in rows for name in pair if name} | set(roles) | set(blanks)


def _made(pool: DatabaseServer) -> dict[str, str]:
    """Databases that must be there → their projects."""
    rows = Database.objects.filter(server=pool, created_in_engine_at__isnull=False, drop_due_at=None, made_of="")
    return {name: str(project) for name, project in rows.values_list("name", "project_id")}


def _contents(pool: DatabaseServer, endpoint: domain.Endpoint) -> set[str] | None:
    """Runs in a thread: no ORM here. None: it did not answer."""
    engine = registry.engine(pool.engine)
    for credentials in wiring.admin_candidates(pool):
        try:
            with engine.admin(endpoint, credentials) as admin:
                return {*admin.contents(), *admin.blanks()}
        except domain.LoginRefused:
            continue
        except domain.EngineError:
            return None
    return None


def _addresses(pool: DatabaseServer) -> Iterator[Finding]:
    rows = Database.objects.filter(server=pool, slot=DatabaseSlot.CURRENT, drop_due_at=None).select_related(
        "project__endpoint"
    )
    for row in rows:
        endpoint = getattr(row.project, "endpoint", None)
        if endpoint is not None and endpoint.shared and endpoint.port != pool.port:
            yield _about(
                pool, str(row.project_id), "endpoint.differs",
                f"Clients of {row.project.slug} are told port {endpoint.port}; the pool's is {pool.port}.",
                "This needs a look at the rows.",
            )  # fmt: skip
