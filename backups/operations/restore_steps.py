"""The steps of a restore into a project that lives: in place, or from another one's backup (ADR 0032).

Nothing of the live database is touched until a copy stands beside it that was compared with the manifest. Then clients are
shut out, the copy takes over address and names, and one transaction makes it the project's database. The one from before is
kept, and `undo_restore` brings it back.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from django.conf import settings
from django.db import transaction

from backups.models import Backup, BackupStatus, ProofKind, Restore, RestoreStatus, RestoreTarget
from backups.operations import proving, safety, taking
from backups.operations import restore_sides as sides
from novastack.common.clock import now
from novastack.common.errors import Problem
from projects import domain
from projects.models import (
    Database,
    DatabaseSlot,
    ObservedState,
    Operation,
    Project,
    RoleKind,
    ServerKind,
)
from projects.operations import copying, move_copying, move_steps, move_switch, steps, wiring
from projects.operations.base import PLATFORM_CONNECTIONS, StepFailed, Wait
from projects.operations.context import Context
from projects.operations.move_sides import Incoming, Target, ensure_up, plan_server, shut_out

SAFETY_SECONDS = 2.0


def keep_hours() -> float:
    """For how long the database from before a restore is kept."""
    return float(settings.NOVASTACK_RESTORE_KEEP_HOURS)


# --- before anything is touched -----------------------------------------------------------------------------------------
def verify(ctx: Context) -> None:
    """The backup is whole and fits, by what storage and rows say now; the live server answers."""
    restore = sides.restore_of(ctx.operation)
    backup = sides.backup_of(restore)
    project, target = ctx.project, Target.of(ctx.operation)
    if project.purging_at is not None:
        raise StepFailed("project_gone", "The project is being removed.", retryable=False)
    if not sides.supported(project.engine):
        raise StepFailed("backup_not_supported", f"{ctx.engine.title} can't be restored yet.", retryable=False)
    steps.writes_allowed(ctx)
    sides.begun(ctx, restore)
    if not target.region.has_room:
        told = f"The disk of {target.region.name} is {target.region.disk_used_percent:.0f} % full. Free some."
        raise StepFailed("capacity_exhausted", told, retryable=False)
    manifest = sides.checked_manifest(ctx, backup, version=project.version, storage_bytes=project.storage_bytes)
    ensure_up(ctx)
    ctx.record(password_known=move_steps.password_known(ctx), names=sides.called(manifest))
    ctx.explain(f"{manifest.project.get('name', '')}, of {manifest.taken_at[:19].replace('T', ' ')}"[:200])


def prove_safety(ctx: Context) -> None:
    """The safety backup is stored; here it is proven, as the project's policy has it. It fails, and nothing was touched."""
    if not ctx.operation.params.get("safety"):
        ctx.explain("There is none: it was waived")
        ctx.say("No safety backup was taken: it was waived.", level="warning")
        return
    backup = sides.restore_of(ctx.operation).safety_backup
    if backup is None:
        raise StepFailed("safety_backup_failed", "The safety backup is gone.", retryable=False)
    if backup.status == BackupStatus.VERIFIED:
        ctx.explain(f"Proven, pinned: {(backup.size_bytes or 0) / sides.MIB:.1f} MiB")
        return
    if not taking.verifies(backup):
        ctx.explain("It is not proven: the project's policy says so")
        return
    asked = ctx.row.data.get("operation")
    if asked is None:
        _begin_proof(ctx, backup)
    elif not Operation.objects.live().filter(pk=asked).exists():
        error = backup.error_body() or {}
        told = error.get("detail") or f"It is {backup.get_status_display().lower()}."
        raise StepFailed("safety_backup_failed", f"The safety backup was not proven: {told}"[:500], retryable=False)
    raise Wait("The safety backup is being proven.", seconds=SAFETY_SECONDS)


def _begin_proof(ctx: Context, backup: Backup) -> None:
    ctx.guard()
    try:
        with transaction.atomic():
            operation = proving.verify_begin(
                backup,
                kind=ProofKind.MANUAL,  # somebody waits
                created_by_label=ctx.operation.created_by_label,
            )
            ctx.record(operation=str(operation.pk))
    except Problem as error:
        raise StepFailed("safety_backup_failed", f"It can't be proven: {error.detail}", retryable=False) from None


# --- the copy beside it -------------------------------------------------------------------------------------------------
def _names(ctx: Context) -> dict[str, str]:
    return dict(move_steps.row_of(ctx, "verify").data["names"])


def find_image(ctx: Context) -> None:
    target = Target.of(ctx.operation)
    if target.on_pool:
        ctx.explain("The pool has one")
        return
    plan_server(ctx, target, _names(ctx))
    steps.find_image(ctx.seen_as(Incoming))


def get_server(ctx: Context) -> None:
    target = Target.of(ctx.operation)
    if target.on_pool:
        move_steps.take_pool_slot(ctx, target, _names(ctx))
        return
    side = ctx.seen_as(Incoming)
    steps.create_server(side)
    ctx.explain(f"Listening on {side.server.bind_address}:{side.server.port}")


def fill(ctx: Context) -> None:
    backup = sides.backup_of(sides.restore_of(ctx.operation))
    with move_copying.target_errors():
        sides.fill(ctx, ctx.seen_as(Incoming), backup)


def end_tools(ctx: Context) -> None:
    """Undo: no tool is left running. A copy that was never planned has none."""
    if ctx.operation.params.get("incoming"):
        runtime = ctx.seen_as(Incoming).runtime
        copying.remove_tools(runtime, runtime, str(ctx.operation.pk))


def compare(ctx: Context) -> None:
    backup = sides.backup_of(sides.restore_of(ctx.operation))
    with move_copying.target_errors():
        sides.prove(ctx, ctx.seen_as(Incoming), backup)


# --- clients are shut out -----------------------------------------------------------------------------------------------
def fence(ctx: Context) -> None:
    """Nobody of the tenant's is in, or gets in (rule 31). What the tenant's password is by now holds for the copy too."""
    ensure_up(ctx)
    move_copying.note_password(ctx)
    if "fenced_at" not in ctx.row.data:
        ctx.record(fenced_at=now().isoformat())
    shut_out(ctx)
    carry_password(ctx, ctx.seen_as(Incoming))
    ctx.explain("No client is connected, none can connect")
    ctx.say("Clients are shut out; the restored database takes over.")


def fence_copy(ctx: Context) -> None:
    """As `fence`; what comes from another project finds its events resting, as in a new one."""
    fence(ctx)
    restore = sides.restore_of(ctx.operation)
    if restore.target == RestoreTarget.PROJECT and restore.source_project_uuid != ctx.project.pk:
        sides.rest(ctx, ctx.seen_as(Incoming))


def carry_password(ctx: Context, side: Context) -> None:
    """The login's password as it is at the live database, whoever set it, is the copy's as well. Of a product that gives no
    hashes it is the one that we know, since nobody else can set it there."""
    mine, theirs = ctx.names.login, side.names.login
    with wiring.admin_session(ctx.engine, ctx.server) as admin:
        hashes = admin.password_hashes(ctx.names)
    ctx.guard()
    with move_copying.target_errors(), wiring.admin_session(side.engine, side.server) as admin:
        if mine in hashes:
            admin.put_password_hashes(side.names, {theirs: hashes[mine]})
        elif (known := ctx.role(RoleKind.LOGIN).secret) is not None:
            admin.set_password(theirs, known.open())


# --- the switch ---------------------------------------------------------------------------------------------------------
def switch(ctx: Context) -> None:
    """One transaction: from its commit on what was restored is the project's database, and can be undone."""
    if str(ctx.database.server_id) != ctx.operation.params["source"]:
        return  # done before a crash
    _switch(ctx, undo_until=now() + timedelta(hours=keep_hours()))


def switch_back(ctx: Context) -> None:
    """The same, the other way round. What was restored is kept as well (rule 32)."""
    if str(ctx.database.server_id) == ctx.operation.params["source"]:
        _switch(ctx, undo_until=None)


def _switch(ctx: Context, *, undo_until: datetime | None) -> None:
    side, old = ctx.seen_as(Incoming), ctx.database.pk
    kept = undo_until or now() + timedelta(hours=keep_hours())
    ctx.guard()
    with transaction.atomic():
        Project.objects.select_for_update(of=("self",), no_key=True).get(pk=ctx.project.pk)
        with ctx.fenced():
            move_switch.switch_rows(ctx, side, Target.of(ctx.operation))
            Database.objects.filter(pk=old).update(keep_until=kept)
            Database.objects.filter(pk=side.database.pk).update(keep_until=None)
            Restore.objects.filter(pk=ctx.operation.params["restore"]).update(undo_until=undo_until)
            ctx.commit()
    ctx.explain(f"{side.server.control_host}:{side.server.port} is the project's server")


def succeeded(operation: Operation) -> None:
    move_switch.moved(operation)
    project = Project.objects.get(pk=operation.project_key)
    Restore.objects.filter(pk=operation.params["restore"]).update(
        status=RestoreStatus.SUCCEEDED, error=None, finished_at=now(), generation=project.generation
    )


def failed(operation: Operation) -> None:
    sides.ended(operation, operation.params["restore"])
    safety.let_go(operation.params["restore"])


# --- undo ---------------------------------------------------------------------------------------------------------------
def verify_undo(ctx: Context) -> None:
    """What was restored is still the project's database, the one from before is still there, and nobody has come in
    between (rule 32)."""
    restore = sides.restore_of(ctx.operation)
    if ctx.project.generation != ctx.operation.params["generation"]:
        raise StepFailed("undo_not_possible", "The project has changed since: it can't be undone.", retryable=False)
    steps.writes_allowed(ctx)
    with ctx.fenced():
        # From here on it is nobody's to remove: its time stands still.
        kept = Database.objects.filter(pk=ctx.operation.params["kept"], drop_due_at=None).exclude(
            slot=DatabaseSlot.CURRENT
        )
        if not kept.update(slot=DatabaseSlot.INCOMING):
            raise StepFailed("undo_not_possible", "The database from before is not there any more.", retryable=False)
        Restore.objects.filter(pk=restore.pk).update(status=RestoreStatus.UNDOING, error=None)
    ensure_up(ctx)
    ctx.record(password_known=move_steps.password_known(ctx))
    ctx.explain("The database from before is there")


def keep_as_it_was(ctx: Context) -> None:
    """Undo of an undo: the database from before is kept again, stopped or locked."""
    kept = Database.objects.filter(pk=ctx.operation.params["kept"], slot=DatabaseSlot.INCOMING)
    if not kept.exists():
        return
    side = ctx.seen_as(Incoming)
    if side.server.kind != ServerKind.POOL:
        steps.stop_server(side)
    with ctx.fenced():
        kept.update(slot=DatabaseSlot.PREVIOUS)
        Restore.objects.filter(pk=ctx.operation.params["restore"]).update(status=RestoreStatus.SUCCEEDED)
    ctx.say("Undone: the restored database stays the project's.")


def start_kept(ctx: Context) -> None:
    """The database from before answers again, closed, with the limits that the project has now."""
    side = ctx.seen_as(Incoming)
    server, project = side.server, ctx.project
    if server.kind == ServerKind.POOL:
        if server.observed_state != ObservedState.RUNNING:
            raise Wait("The shared server is down; it is being started.", seconds=5)
    else:
        server.memory_bytes, server.cpus = project.memory_bytes, project.cpus
        server.max_connections = ctx.role(RoleKind.LOGIN).connection_limit + PLATFORM_CONNECTIONS
        side.save_server("memory_bytes", "cpus", "max_connections")
        _run_kept(side)
    sides.close(side)
    ctx.explain(f"It runs, closed, on {server.bind_address}:{server.port}")


def _run_kept(side: Context) -> None:
    for _ in range(steps.PORT_TRIES):
        side.adopt()
        side.guard()
        request = wiring.server_request(side.server, required=side.tls_required)
        try:
            steps.ensure(side, request, domain.DataPolicy.MUST_EXIST, "desired_state")
        except domain.PortTaken:
            steps.move_port(side)
            continue
        steps.await_login(side)
        return
    raise StepFailed("no_free_port", "No port was free for the database from before.")


def carry_over(ctx: Context) -> None:
    """As `fence`; the stored password and connection limit of the project's login are those of today."""
    fence(ctx)
    side = ctx.seen_as(Incoming)
    mine, theirs = ctx.role(RoleKind.LOGIN), side.role(RoleKind.LOGIN)
    ctx.guard()
    with move_copying.target_errors(), wiring.admin_session(side.engine, side.server) as admin:
        admin.limit_connections(theirs.name, mine.connection_limit)
    with ctx.fenced():
        theirs.secret, theirs.rotated_at = mine.secret, mine.rotated_at
        theirs.connection_limit = mine.connection_limit
        theirs.save(update_fields=["secret", "rotated_at", "connection_limit", "updated_at"])


def undone(operation: Operation) -> None:
    move_switch.moved(operation)
    Restore.objects.filter(pk=operation.params["restore"]).update(
        status=RestoreStatus.UNDONE, error=None, undone_at=now(), undo_until=None
    )
    safety.let_go(operation.params["restore"])


def not_undone(operation: Operation) -> None:
    """All is as it was: what was restored stays, and may be undone later."""
    # `keep_as_it_was` may have set it back already.
    stays = (RestoreStatus.UNDOING, RestoreStatus.SUCCEEDED)
    Restore.objects.filter(pk=operation.params["restore"], status__in=stays, undo_operation_id=operation.pk).update(
        status=RestoreStatus.SUCCEEDED, error=operation.error
    )
