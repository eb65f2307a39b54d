"""Databases on pools that are given up, and the one place that drops them (rule 3, ADR 0022).

A database on a pool can't be a tombstone of a volume: its server goes on. So its row is the tombstone: given up with a
time, closed until then, and counted as a place that is taken until the server has seen it gone.
"""

from __future__ import annotations

from datetime import datetime, timedelta

import structlog
from django.conf import settings
from django.db import transaction

from accounts.services import audit
from novastack.common.clock import now
from novastack.common.models import Install
from projects import domain, registry
from projects.models import (
    Database,
    DatabaseRole,
    DatabaseSlot,
    Endpoint,
    ObservedState,
    Operation,
    Project,
    ServerDesired,
    ServerKind,
)
from projects.operations import placing, steps, wiring
from projects.operations.context import Context
from projects.operations.queue import hint_on_commit

log = structlog.get_logger(__name__)
AGAIN_SECONDS = 60


def retire(database: Database, *, at: datetime | None = None) -> None:
    """Give the database up: the janitor drops it with its roles at that time, by default after the grace. It must be
    closed to its tenant already. In a transaction."""
    due = at or now() + timedelta(seconds=settings.NOVASTACK_DATA_GRACE_SECONDS)
    Database.objects.filter(pk=database.pk, drop_due_at=None).update(drop_due_at=due, updated_at=now())


def retire_all(project: Project) -> int:
    """All that the project has on pools. What nobody ever made has nothing to wait for. In a transaction."""
    rows = Database.objects.filter(project=project, server__kind=ServerKind.POOL)
    for row in rows:
        retire(row, at=now() if row.created_in_engine_at is None else None)
    return len(rows)


# --- undo of a provisioning ---------------------------------------------------------------------------------------------
def give_back(ctx: Context) -> None:
    """Undo of placing: database and roles go, and the slot is free. Once credentials were shown nothing is destroyed (rule
    7). Of a pool that does not answer the janitor drops it later: nobody waits for that, and the next try has other
    names."""
    if ctx.project.credentials_shown_at is not None:
        return
    row = (
        Database.objects.filter(project=ctx.project, slot=DatabaseSlot.CURRENT, server__kind=ServerKind.POOL)
        .select_related("server", "server__region")
        .first()
    )
    if row is None:
        return
    steps.writes_allowed(ctx)
    try:
        ctx.guard()
        _drop(row)
    except domain.EngineError as error:
        with ctx.fenced():
            retire(row, at=now())
            Database.objects.filter(pk=row.pk).update(slot=DatabaseSlot.PREVIOUS)
            _without_address(ctx.project)
        ctx.say(f"Undone: its pool does not answer ({error.code}), the database is dropped as soon as it does.")
        return
    with ctx.fenced():
        _forget(row)
        _without_address(ctx.project)
        placing.wake(row.server)
    ctx.say("Undone: database and user were removed.")


def _without_address(project: Project) -> None:
    Endpoint.objects.filter(project=project, shared=True).update(port=0, control_port=0, updated_at=now())


def _drop(row: Database) -> None:
    """Absent is success."""
    engine = registry.engine(row.server.engine)
    with wiring.admin_session(engine, row.server) as admin:
        admin.drop_tenant(wiring.tenant_names(row))
        if row.made_of:
            admin.drop_blank(row.made_of)


def _forget(row: Database) -> None:
    DatabaseRole.objects.filter(database=row).delete()
    Database.objects.filter(pk=row.pk).delete()


# --- the janitor's part -------------------------------------------------------------------------------------------------
def drop_due(limit: int = 50) -> int:
    """Drop the databases that are due, each on a pool that is seen to run. Returns how many."""
    if Install.load().read_only:
        return 0
    due = Database.objects.filter(
        drop_due_at__lte=now(), server__kind=ServerKind.POOL, server__desired_state=ServerDesired.RUNNING,
        server__observed_state=ObservedState.RUNNING, server__reconcile=True, server__region__reachable=True,
        server__region__reconcile=True,
    )  # fmt: skip
    rows = due.select_related("server", "server__region", "project").prefetch_related("roles").order_by("drop_due_at")
    done, silent = 0, set()
    for row in rows[:limit]:
        if row.server_id in silent:  # it did not answer a moment ago; those of other pools are next
            continue
        if not _is_due(row):  # the look at all of them may be minutes old
            continue
        try:
            _drop(row)
        except domain.EngineError as error:
            log.warning("database not dropped", database=row.name, server=str(row.server_id), error=str(error)[:200])
            again = now() + timedelta(seconds=AGAIN_SECONDS)
            Database.objects.filter(pk=row.pk).update(drop_error=str(error)[:500] or error.code, drop_due_at=again)
            if isinstance(error, domain.ServerNotReady):
                silent.add(row.server_id)
            continue
        done += _dropped(row)
    return done


def _is_due(row: Database) -> bool:
    """By the rows of this moment: it is given up, its pool is anybody's to change, and so is the install."""
    mine = Database.objects.filter(pk=row.pk, drop_due_at__lte=now(), server__reconcile=True)
    return mine.exists() and not Install.load().read_only


def _dropped(row: Database) -> int:
    project = row.project
    with transaction.atomic():
        if not Database.objects.filter(pk=row.pk).exists():
            return 0
        _forget(row)
        audit.record(
            None, "data.deleted", organization_id=project.organization_id, project_id=project.pk,
            project_name=project.name, target=row.name, data={"reason": "given up on its pool"},
        )  # fmt: skip
        purges = Operation.objects.live().filter(project_uuid=project.pk, kind="purge", lease_until=None)
        ids = list(purges.values_list("pk", flat=True))
        Operation.objects.filter(pk__in=ids).update(next_attempt_at=None, hinted_at=None)
        for pk in ids:
            hint_on_commit(pk)
        placing.wake(row.server)
    return 1
