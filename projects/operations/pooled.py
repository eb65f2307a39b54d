"""What happens to projects on pools: the same kinds as everywhere, done to one database of a server that others share.

Nothing here starts, stops or changes a server. A project is stopped by refusing its logins and ending its sessions (rule
22), and what is removed is its own database and roles: `retiring`.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from django.db.models import F

from novastack.common.clock import now
from projects.models import (
    Database,
    DatabaseSlot,
    ObservedState,
    OnGiveUp,
    Operation,
    Project,
    ProjectStatus,
    ServerDesired,
)
from projects.operations import lifecycle, placing, provision, registration, removal, retiring, status, steps, wiring
from projects.operations.base import (
    DATABASE_RETRY,
    SERVER_RETRY,
    Definition,
    RetryPolicy,
    Step,
    StepFailed,
    Wait,
    register,
)
from projects.operations.context import Context

POOL = "pool"
MAX_RECOVERY_DELAY_SECONDS = 300


def has_place(ctx: Context) -> bool:
    """Whether a database was ever planned for it: one that waited for a place in vain has none."""
    return Database.objects.filter(project=ctx.project, slot=DatabaseSlot.CURRENT).exists()


def await_pool(ctx: Context) -> None:
    """Its pool runs, as far as anybody has seen; `Wait` while it does not: somebody else starts it."""
    pool = ctx.server
    if not pool.reconcile:  # a read-only install is seen by the guard
        raise Wait("An operator has set its pool aside: nothing is changed on it.", seconds=30)
    if pool.desired_state != ServerDesired.RUNNING or pool.observed_state != ObservedState.RUNNING:
        raise Wait(status.POOL_DOWN, seconds=5)


def create_database(ctx: Context) -> None:
    """Of a blank that was claimed with the place, if there was one."""
    await_pool(ctx)
    provision.create_database(ctx)


def lock(ctx: Context) -> None:
    """Nobody logs in any more, and nobody who was in stays."""
    if not has_place(ctx):
        ctx.explain("It never had a database.")
        return
    _locked(ctx, True)
    ctx.explain("Logins are refused, sessions were ended")


def unlock(ctx: Context) -> None:
    _locked(ctx, False)
    ctx.explain("Logins are let in")


def _locked(ctx: Context, locked: bool) -> None:
    await_pool(ctx)
    ctx.guard()
    with wiring.admin_session(ctx.engine, ctx.server) as admin:
        admin.lock_tenant(ctx.names, locked=locked)
    with ctx.fenced():
        Database.objects.filter(pk=ctx.database.pk).update(locked_at=now() if locked else None, updated_at=now())


def mark_purging(ctx: Context) -> None:
    """Final: written before the first destructive act (rule 5)."""
    ctx.guard()
    with ctx.fenced():
        Project.objects.filter(pk=ctx.project.pk, purging_at=None).update(purging_at=now())


def shut_out(ctx: Context) -> None:
    """As `lock`; of a database that is given up already nothing is left to lock."""
    if has_place(ctx) and ctx.database.drop_due_at is None:
        lock(ctx)


def give_up_databases(ctx: Context) -> None:
    """Its databases get their tombstones; the janitor drops them after the grace (rule 3)."""
    ctx.guard()
    with ctx.fenced():
        due = retiring.retire_all(ctx.project)
    ctx.explain(f"{due} database{'' if due == 1 else 's'} given up" if due else "There is no database.")


def await_dropped(ctx: Context) -> None:
    """Nothing is reported done that was not seen done."""
    rows = list(Database.objects.filter(project=ctx.project))
    if any(row.drop_due_at is None for row in rows):
        raise StepFailed("not_given_up", "It still has a database that nobody has given up.")
    left = max(rows, key=lambda row: row.drop_due_at or now(), default=None)
    if left is None or left.drop_due_at is None:
        ctx.explain("Dropped")
        return
    seconds = max(1.0, (left.drop_due_at - now()).total_seconds())
    why = f" ({left.drop_error})" if left.drop_error else ""
    raise Wait(f"The database is dropped at {left.drop_due_at:%H:%M:%S} UTC{why}.", seconds=min(seconds, 60))


# --- ends ---------------------------------------------------------------------------------------------------------------
def _provisioned(operation: Operation) -> None:
    provision.ready(operation)
    _well(operation)


def _started(operation: Operation) -> None:
    lifecycle.started(operation)
    _well(operation)


def _stopped(operation: Operation) -> None:
    lifecycle.stopped(operation)
    _well(operation)


def _well(operation: Operation) -> None:
    rows = Database.objects.filter(project_id=operation.project_key, slot=DatabaseSlot.CURRENT)
    rows.exclude(recoveries=0, recover_after=None).update(recoveries=0, recover_after=None)


def failed(operation: Operation) -> None:
    """The reason stays on the project until something succeeds. Being cut short is no failure."""
    if operation.error and operation.error["code"] == "cancelled":
        return
    Project.objects.filter(pk=operation.project_key).update(failure=operation.error)
    row = Database.objects.filter(project_id=operation.project_key, slot=DatabaseSlot.CURRENT).first()
    if row is not None:
        again = now() + timedelta(seconds=min(MAX_RECOVERY_DELAY_SECONDS, 5 * 2 ** min(row.recoveries, 6)))
        Database.objects.filter(pk=row.pk).update(recover_after=again)


def count_recovery(database: Database) -> None:
    """The reconciler tries; the next time later. In a transaction."""
    delay = min(MAX_RECOVERY_DELAY_SECONDS, 10 * 2 ** min(database.recoveries, 5))
    Database.objects.filter(pk=database.pk, recoveries__lt=1000).update(
        recoveries=F("recoveries") + 1, recover_after=now() + timedelta(seconds=delay)
    )


# --- kinds --------------------------------------------------------------------------------------------------------------
_PLACE = Step(
    placing.STEP, "Find a place on a pool", placing.place, retiring.give_back, RetryPolicy(attempts=1), 60
)  # fmt: skip
_CREATE = Step("database", "Create database and user", create_database, None, DATABASE_RETRY, 60)
_LOCK = Step("lock", "Refuse its logins", lock, retry=DATABASE_RETRY, deadline_seconds=60)
_UNLOCK = Step("unlock", "Let its logins in", unlock, retry=DATABASE_RETRY, deadline_seconds=60)
_LOGIN = Step("login", "Verify by a real login", steps.prove_tenant, retry=SERVER_RETRY, deadline_seconds=60)
# Those that do not make or run the server are the same everywhere.
_SHARED = {"schema", "services", "api_keys", "login"}

PROVISION = Definition(
    kind="provision", variant=POOL, title="Provision", on_give_up=OnGiveUp.UNDO,
    while_running=ProjectStatus.PROVISIONING, cancellable=True, carries=True, on_success=_provisioned,
    on_failure=provision.failed,
    steps=(_PLACE, _CREATE, *(replace(step, back_to="") for step in provision.PROVISION.steps if step.name in _SHARED)),
)  # fmt: skip
register(PROVISION)
for _kind, _title in (("start", "Start"), ("recover", "Recover")):
    register(
        Definition(
            kind=_kind, variant=POOL, title=_title, steps=(_UNLOCK, _LOGIN), on_give_up=OnGiveUp.UNDO,
            while_running=ProjectStatus.STARTING, on_success=_started, on_failure=failed, yields=True,
        )
    )  # fmt: skip
register(
    Definition(
        kind="stop", variant=POOL, title="Stop", steps=(_LOCK,), on_give_up=OnGiveUp.UNDO,
        while_running=ProjectStatus.STOPPING, on_success=_stopped, on_failure=failed, yields=True,
    )
)  # fmt: skip
register(
    Definition(
        kind="delete", variant=POOL, title="Delete", steps=(_LOCK,), on_give_up=OnGiveUp.ROLL_FORWARD,
        while_running=ProjectStatus.DELETING, on_success=removal.recycled, on_failure=removal.not_removed, insists=True,
    )
)  # fmt: skip
register(
    Definition(
        kind="undelete", variant=POOL, title="Undelete", steps=(_UNLOCK, _LOGIN), on_give_up=OnGiveUp.ROLL_FORWARD,
        while_running=ProjectStatus.STARTING, on_success=_started, on_failure=failed, yields=True,
    )
)  # fmt: skip
register(
    Definition(
        kind="purge", variant=POOL, title="Delete for good", on_give_up=OnGiveUp.ROLL_FORWARD,
        while_running=ProjectStatus.DELETING, on_failure=removal.not_removed, insists=True,
        steps=(
            Step("mark", "Make it final", mark_purging, retry=SERVER_RETRY, deadline_seconds=60),
            Step("services", "Deregister from the services", registration.farewell, deadline_seconds=60, optional=True),
            Step("shut", "Shut everybody out", shut_out, retry=DATABASE_RETRY, deadline_seconds=60),
            Step("copies", "Remove old copies", removal.remove_copies, retry=SERVER_RETRY, optional=True),
            Step("server", "Give up the database", give_up_databases, retry=SERVER_RETRY, deadline_seconds=60),
            Step("data", "Delete the data", await_dropped, retry=SERVER_RETRY),
            Step("rows", "Forget it", removal.rows_gone, retry=SERVER_RETRY, deadline_seconds=60),
        ),
    )
)  # fmt: skip
