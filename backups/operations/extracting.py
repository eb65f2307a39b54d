"""Tables or schemas out of a backup, beside what a live database holds: never over it.

The whole backup is restored into a throw-away server and compared, as for a proof. There what was chosen is set apart under
names that nothing live has, is dumped by itself, and comes into the live database as the tenant's own; it counts as restored
only after it was read there again. Until then a failure takes all of it away, unless somebody uses it already: what lives is
not touched at any time.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from django.conf import settings

from backups.models import Backup, Restore, RestoreStatus
from backups.operations import comparing, proving_steps, restoring_data, scratch, storages
from backups.operations import restore_sides as sides
from backups.operations.large_rows import row_bytes_of
from backups.operations.queueing import subject_of
from backups.operations.scratch import Scratch
from novastack.common.clock import now
from novastack.common.secrets import random_password
from projects import domain
from projects.models import DatabaseServer, LockMode, OnGiveUp, Operation, Project, Region, ServerKind
from projects.operations import copying, locks, move_copying, move_steps, steps, wiring
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
from projects.operations.context import COMMITTED, Context
from projects.operations.move_sides import admitted, admitted_to_restore, given_back, side_of
from projects.operations.queue import also_hold, operation_create

EXTRACT = "extract"
PUT, PROVE = "put", "prove"  # the steps that bring it into the live database, and read it there
HOURS = 3600.0
TWICE = RetryPolicy(attempts=2, delay_seconds=5)


def extract_begin(restore: Restore, backup: Backup, project: Project, *, created_by: Any, label: str) -> Operation:
    """Record the restore of `restore.selection` beside what the project holds. In a transaction, with the project's row
    locked. The project works on meanwhile; backups of it may be taken. Raises `OperationInProgress`."""
    operation = operation_create(
        project=project, kind=EXTRACT, mode=LockMode.SHARED,
        params={"restore": str(restore.pk), "backup": str(backup.pk)}, created_by=created_by, created_by_label=label,
    )  # fmt: skip
    # Its login there is one per project.
    also_hold(operation, locks.subject_of("part", project.pk), LockMode.EXCLUSIVE)
    also_hold(operation, subject_of(backup), LockMode.SHARED)
    return operation


# --- the copy -----------------------------------------------------------------------------------------------------------
def claim(ctx: Context) -> None:
    """A place for the throw-away server, among those that are at work in the region."""
    restore = sides.restore_of(ctx.operation)
    backup = sides.backup_of(restore)
    sides.hold(ctx, backup)
    sides.begun(ctx, restore)
    if ctx.operation.server_uuid is None:
        _take_turn(ctx, backup, scratch.region_for(backup))


def _take_turn(ctx: Context, backup: Backup, region: Region) -> None:
    with ctx.fenced():
        locks.lock_subject(locks.subject_of("extracts", region.pk))
        mine = DatabaseServer.objects.filter(kind=ServerKind.SCRATCH, region=region).values("pk")
        at_work = Operation.objects.live().filter(kind=EXTRACT, server_uuid__in=mine).exclude(pk=ctx.operation.pk)
        if at_work.count() < max(1, settings.NOVASTACK_VERIFY_PARALLEL):
            scratch.plan(
                ctx, region=region, engine=backup.engine, version=backup.version, row_bytes=row_bytes_of(backup)
            )
            return
    raise Wait(f"Another restore of tables is at work in {region.name}.", seconds=10)


def fetch(ctx: Context) -> None:
    """The signed manifest: it has what was chosen, and the object is as long as it should be."""
    restore = sides.restore_of(ctx.operation)
    backup, chosen = sides.backup_of(restore), sides.selection_of(restore)
    with restoring_data.storage_errors():
        storage = storages.storage_of(backup.storage)
    manifest = restoring_data.read_manifest(backup, storage)
    if manifest.contents is None:
        raise StepFailed("nothing_to_compare", "Its manifest does not say what the dump held.", retryable=False)
    restoring_data.check_size(backup, manifest, storage)
    there = {name for _kind, name in manifest.contents.facts} | set(manifest.contents.tables)
    if missing := [name for name in (*chosen.tables, *chosen.schemas) if name not in there]:
        raise StepFailed("not_in_backup", f"The backup does not have {', '.join(missing[:5])}.", retryable=False)
    size = int(manifest.database.get("bytes") or backup.database_bytes or 0)
    side = ctx.seen_as(Scratch)
    scratch.room_for(side.region, size)
    scratch.describe(ctx, names={**manifest.names, "database": manifest.database["name"]}, image=manifest.image)
    ctx.record(database_bytes=size)
    ctx.explain(f"{len(chosen.tables) or len(chosen.schemas)} of {len(manifest.contents.tables)} tables")


def server(ctx: Context) -> None:
    side = ctx.seen_as(Scratch)
    scratch.start(side)
    ctx.explain(f"{side.server.image or side.engine.title} in {side.region.name}")


def _size(ctx: Context) -> int:
    return int(move_steps.row_of(ctx, "fetch").data["database_bytes"])


def restore(ctx: Context) -> None:
    """Done again, it begins with an empty database."""
    _fill(ctx, ctx.seen_as(Scratch))


def _fill(ctx: Context, side: Scratch) -> None:
    backup = sides.backup_of(sides.restore_of(ctx.operation))
    with proving_steps.server_lost(side):
        if side.engine.dumps_name_roles:  # those of an attempt before may have the live ones' names already
            side.guard()
            with wiring.admin_session(side.engine, side.server) as admin:
                admin.drop_tenant(_live_names(ctx, side))
        scratch.make_database(side)
        done = restoring_data.restore_into(
            side, side.names, backup, stem=str(ctx.operation.pk), pulse=proving_steps.watched(side, _size(ctx))
        )
    ctx.explain(f"{done.dump_bytes / sides.MIB:.1f} MiB in {done.seconds:.1f} s")


def compare(ctx: Context) -> None:
    """All of the copy, as a proof does: what is not what was backed up goes nowhere."""
    side = ctx.seen_as(Scratch)
    manifest = restoring_data.read_manifest(sides.backup_of(sides.restore_of(ctx.operation)))
    with proving_steps.server_lost(side):
        found, _remarks = comparing.compared(
            side, manifest, stem=str(ctx.operation.pk), pulse=proving_steps.watched(side, _size(ctx))
        )
    if found:
        for line in found[:20]:
            ctx.say(line, level="error")
        raise StepFailed(
            "restore_differs", f"What it restores is not what was backed up: {'; '.join(found[:5])}.", retryable=False
        )
    assert manifest.contents is not None  # noqa: S101 - `fetch` has looked
    ctx.explain(f"{manifest.contents.rows} rows of {len(manifest.contents.tables)} tables are what was backed up")


# --- into the live database ---------------------------------------------------------------------------------------------
def _live_names(ctx: Context, side: Scratch) -> domain.TenantNames:
    """The copy's database with the live one's roles: policies name them."""
    return replace(ctx.names, database=side.names.database)


def _owner(ctx: Context) -> str:
    """What is written on a place, so that nobody takes away what somebody else has made."""
    return f"Restored from a backup by NovaStack ({ctx.operation.params['restore']})."


def _admitted(ctx: Context, places: tuple[str, ...] = ()) -> domain.Credentials:
    password = random_password()
    ctx.guard()
    with wiring.admin_session(ctx.engine, ctx.server) as admin:
        admin.admit_part(ctx.names, ctx.names.part, password, places)
    return domain.Credentials(ctx.names.part, password, ctx.names.database)


def put(ctx: Context) -> None:
    """What was chosen, by itself, into the live database. Done again, it begins with what came half, and with a new copy."""
    side, data = ctx.seen_as(Scratch), ctx.row.data
    if data.get("copied"):
        return  # whole, and somebody may use it by now
    steps.writes_allowed(ctx)
    if data.get("begun"):
        take_back(ctx)
        scratch.start(side)
        _fill(ctx, side)
    login = _admitted(ctx)
    with wiring.admin_session(ctx.engine, ctx.server) as admin:
        live = admin.stats(ctx.names.database)
    if live.fenced:
        raise StepFailed(
            "plan_too_small", "The project is over its storage limit: nothing is written to it.", retryable=False
        )
    mark = _free_mark(ctx, login)
    ctx.record(begun=True, mark=mark, places=[])
    pulse = proving_steps.watched(side, _size(ctx))
    with proving_steps.server_lost(side):
        names, apart = _set_apart(ctx, side, mark)
        reader = admitted(side, names)
        contents = side.engine.contents_of(
            side.server.control_endpoint, reader, list(apart.tables.values()), pulse=lambda: pulse(0)
        )  # fmt: skip
    _check(ctx, apart, contents, login, live.size_bytes)
    told = {name: [content.rows, content.digest] for name, content in contents.items()}
    ctx.record(
        tables=dict(apart.tables), contents=told, notes=list(apart.notes)[: sides.NOTES_KEPT],
        bytes=apart.size_bytes,
    )  # fmt: skip
    if taken := set(apart.places) & set(ctx.engine.places(ctx.server.control_endpoint, login)):
        raise StepFailed("restore_failed", f"Meanwhile there is {sorted(taken)[0]} in the live database.")
    ctx.record(places=list(apart.places))
    login = _admitted(ctx, apart.places)
    source, target = side_of(side, reader), side_of(ctx, login)
    commands = (
        ctx.engine.dump_part(source.place, reader, apart.places),
        ctx.engine.restore_part(target.place, login, ctx.names),
    )
    copying.remove_tools(side.runtime, ctx.runtime, str(ctx.operation.pk))
    ctx.guard()
    moved = copying.copy(ctx.engine, source, target, stem=str(ctx.operation.pk), pulse=pulse, commands=commands)
    ctx.record(copied=True)
    ctx.explain(f"{moved / sides.MIB:.1f} MiB into {_where(apart.places)}")


def _where(places: tuple[str, ...] | list[str]) -> str:
    return ", ".join(places[:3]) + (f" and {len(places) - 3} more" if len(places) > 3 else "")


def _free_mark(ctx: Context, login: domain.Credentials) -> str:
    """A name that nothing in the live database begins or ends with."""
    taken = ctx.engine.places(ctx.server.control_endpoint, login)
    number, day = 1, f"restored_{now():%Y%m%d}"
    while any(f"{day}_{number}" in name for name in taken):
        number += 1
    return f"{day}_{number}"


def _set_apart(ctx: Context, side: Scratch, mark: str) -> tuple[domain.TenantNames, domain.SetApart]:
    names = side.names
    side.guard()
    if side.engine.dumps_name_roles:
        names = _live_names(ctx, side)
        with wiring.admin_session(side.engine, side.server) as admin:
            admin.dismiss_tool(side.names, side.names.tool)
            admin.rename_tenant(side.names, names)
    lent = admitted_to_restore(side, names)
    chosen = sides.selection_of(sides.restore_of(ctx.operation))
    apart = side.engine.set_apart(side.server.control_endpoint, lent, chosen, mark, _owner(ctx))
    given_back(side, names)
    return names, apart


def _check(
    ctx: Context, apart: domain.SetApart, contents: Any, login: domain.Credentials, live_bytes: int
) -> None:  # fmt: skip
    """Before anything is written: it is what the manifest says, the live database has what it uses, and room."""
    manifest = restoring_data.read_manifest(sides.backup_of(sides.restore_of(ctx.operation)))
    if wrong := sides.wrong_in(manifest, ctx.engine, apart.tables, contents):
        raise StepFailed("restore_differs", f"{_where(wrong)} is not what was backed up.", retryable=False)
    if lacking := ctx.engine.lacking(ctx.server.control_endpoint, login, apart.needs):
        told = ", ".join(lacking[:10]) + (f" and {len(lacking) - 10} more" if len(lacking) > 10 else "")
        raise StepFailed(
            "dependencies_missing", f"It uses what the live database does not have: {told}.", retryable=False
        )
    limit = ctx.project.storage_bytes
    if limit and live_bytes + apart.size_bytes > limit:
        more, used, most = (size / sides.MIB for size in (apart.size_bytes, live_bytes, limit))
        told = f"{more:.0f} MiB more do not fit: {used:.0f} of {most:.0f} MiB are used."
        raise StepFailed("plan_too_small", told, retryable=False)
    if not ctx.region.has_room:
        raise StepFailed("capacity_exhausted", f"The disk of {ctx.region.name} is nearly full.", retryable=False)


def prove(ctx: Context) -> None:
    """Read in the live database what came there; only then it is said to be restored. Done again after that, it is over:
    what was restored may be anything by then."""
    if ctx.row.data.get(COMMITTED):
        return
    data = move_steps.row_of(ctx, PUT).data
    login = _admitted(ctx, tuple(data["places"]))
    pulse = move_copying.watched(ctx, lambda _moved: None)
    found = ctx.engine.contents_of(ctx.server.control_endpoint, login, list(data["contents"]), pulse=lambda: pulse(0))
    wrong = [
        name
        for name, (rows, digest) in data["contents"].items()
        if found.get(name) is None or (found[name].rows, found[name].digest) != (rows, digest)
    ]
    if wrong:
        # It came whole: who has changed it meanwhile wants to keep it.
        ctx.record(kept=True)
        told = f"Unproven, changed meanwhile: {_where(sorted(wrong))} is not what was backed up. Nothing of it is taken away."
        raise StepFailed("restore_unproven", told, retryable=False)
    _dismiss(ctx)
    rows = sum(told[0] for told in data["contents"].values())
    outcome = {
        "places": data["places"], "tables": data["tables"], "notes": data["notes"], "rows": rows, "bytes": data["bytes"],
    }  # fmt: skip
    with ctx.fenced():
        Restore.objects.filter(pk=ctx.operation.params["restore"]).update(outcome=outcome)
        ctx.commit()
    for note in data["notes"]:
        ctx.say(note)
    ctx.explain(f"{rows} rows of {len(data['contents'])} tables are what was backed up")


def _dismiss(ctx: Context) -> None:
    ctx.guard()
    with wiring.admin_session(ctx.engine, ctx.server) as admin:
        admin.dismiss_tool(ctx.names, ctx.names.part)


def take_back(ctx: Context) -> None:
    """Undo: nothing of it stays in the live database, nor its login, but for what somebody uses by now."""
    data = move_steps.row_of(ctx, PUT).data
    if not data.get("begun"):
        return
    copying.remove_tools(ctx.seen_as(Scratch).runtime, ctx.runtime, str(ctx.operation.pk))
    _dismiss(ctx)  # with the sessions of a tool that is not known to be gone
    if data["places"] and not move_steps.row_of(ctx, PROVE).data.get("kept"):
        login = _admitted(ctx, tuple(data["places"]))
        used = ctx.engine.drop_part(ctx.server.control_endpoint, login, data["places"], _owner(ctx))
        if used:
            ctx.say(f"{_where(data['places'])} stays, unproven: {_where(used)} uses it.", level="warning")
        _dismiss(ctx)


# --- ends ---------------------------------------------------------------------------------------------------------------
def succeeded(operation: Operation) -> None:
    Restore.objects.filter(pk=operation.params["restore"]).update(
        status=RestoreStatus.SUCCEEDED, error=None, finished_at=now()
    )


def failed(operation: Operation) -> None:
    sides.ended(operation, operation.params["restore"])


COPY_STEPS = (
    Step("claim", "Wait for its turn", claim, scratch.remove, RetryPolicy(attempts=3, delay_seconds=30), 60),
    Step("fetch", "Read the manifest", fetch, None, RetryPolicy(attempts=3, delay_seconds=30), 120),
    Step(scratch.STEP, "Start a throw-away server", server, None, SERVER_RETRY, 900),
    Step("restore", "Restore the backup into it", restore, None, TWICE, 12 * HOURS, scratch.STEP),
    Step("compare", "Compare with the manifest", compare, None, DATABASE_RETRY, 12 * HOURS, scratch.STEP),
)
register(
    Definition(
        kind=EXTRACT, title="Restore tables", on_give_up=OnGiveUp.UNDO, while_running=None, cancellable=True, yields=True,
        once=True, queue="backups", on_success=succeeded, on_failure=failed,
        steps=(
            *COPY_STEPS,
            Step(PUT, "Put them beside what is live", put, take_back, TWICE, 12 * HOURS, scratch.STEP),
            Step(PROVE, "Compare what came", prove, None, DATABASE_RETRY, 6 * HOURS),
            Step("clean_up", "Remove the throw-away server", scratch.remove, retry=SERVER_RETRY),
        ),
    )
)  # fmt: skip
