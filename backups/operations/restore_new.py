"""A backup becomes a new project: optional steps of provisioning, between the empty database and whatever gets to know of
it (ADR 0032).

Rights in a dump name the source's roles. So the new database's roles have those names until the copy is proven, and then
get the project's own; rows say so too, so that no two on one server have one name. Nobody is shown a credential before.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace

from django.db import IntegrityError

from backups.models import Restore, RestoreStatus
from backups.operations import restore_sides as sides
from backups.operations import restoring_data
from novastack.common.clock import now
from projects.models import Operation, Project, RoleKind, ServerKind
from projects.operations import base, copying, move_copying, placing, provision, steps, wiring
from projects.operations.base import RetryPolicy, Step, StepFailed, Wait
from projects.operations.context import Context
from projects.operations.move_sides import (
    admitted,
    admitted_to_restore,
    final_names,
    given_back,
    note,
    quiet,
    renamed,
    take_final_names,
)

HOURS = 3600.0
TWICE = RetryPolicy(attempts=2, delay_seconds=2)
NAMES, DATA, PROOF = "restore_names", "restore_data", "prove_data"
STEPS = frozenset({NAMES, DATA, PROOF})


def wanted_steps(project: Project) -> Collection[str]:
    return STEPS if sides.restore_for(project) is not None else ()


def avoided_names(project: Project) -> Collection[str]:
    """Where the source lives, say, its roles have these names: the new one gets another pool."""
    restore = sides.restore_for(project)
    if restore is None or restore.backup is None:
        return ()
    return sides.row_names(restore.backup)


def _restore(ctx: Context) -> Restore:
    restore = sides.restore_for(ctx.project)
    if restore is None:
        raise StepFailed("backup_gone", "Nobody knows any more what is to be restored.", retryable=False)
    return restore


def _proven(ctx: Context) -> bool:
    """Whether this operation has compared what it restored. When a later step fails, earlier ones are run again: what is
    proven is not restored again, and its roles may have the project's own names by now."""
    return any(step.name == PROOF and step.data.get("proven") for step in ctx.operation.steps.all())


def take_names(ctx: Context) -> None:
    """Look at the backup, before anything is made for it, and call the roles as it does."""
    if _proven(ctx):
        return
    restore = _restore(ctx)
    backup = sides.backup_of(restore)
    sides.hold(ctx, backup)
    sides.begun(ctx, restore)
    project = ctx.project
    manifest = sides.checked_manifest(ctx, backup, version=project.version, storage_bytes=project.storage_bytes)
    wanted = sides.called(manifest)
    roles = [role for role in ctx.database.roles.all() if role.kind in wanted]
    if any(role.name != wanted[role.kind] for role in roles):
        try:
            with ctx.fenced():
                note(ctx, final_names={role.kind: role.name for role in roles})
                for role in roles:
                    role.name = wanted[role.kind]
                    role.save(update_fields=["name", "updated_at"])
        except IntegrityError:
            raise Wait("Another operation on its server uses the same names for now.", seconds=10) from None
    ctx.forget_rows()
    taken = manifest.taken_at[:19].replace("T", " ")
    ctx.explain(f"{manifest.project.get('name', '')}, {manifest.engine} {manifest.version}, of {taken}"[:200])


def give_names_back(ctx: Context) -> None:
    """Undo. A server of its own goes with all that is in it; on a pool the database is dropped by the names that it has."""
    final = final_names(ctx)
    if not final or ctx.database.server.kind == ServerKind.POOL:
        return
    with ctx.fenced():
        for role in ctx.database.roles.all():
            if role.kind in final:
                role.name = final[role.kind]
                role.save(update_fields=["name", "updated_at"])
        note(ctx, final_names={})
    ctx.forget_rows()


def restore_data(ctx: Context) -> None:
    if _proven(ctx):
        return
    backup = sides.backup_of(_restore(ctx))
    sides.fill(ctx, ctx, backup)


def end_tools(ctx: Context) -> None:
    """Undo: no tool is left running."""
    copying.remove_tools(ctx.runtime, ctx.runtime, str(ctx.operation.pk))


def prove_data(ctx: Context) -> None:
    """Compare with the manifest; then the project's own names, and its logins are let in."""
    restore = _restore(ctx)
    if not ctx.row.data.get("proven"):
        sides.prove(ctx, ctx, sides.backup_of(restore))
        ctx.record(proven=True)
    if restore.selection and not ctx.row.data.get("alone"):
        _leave_out_the_rest(ctx, restore)
        ctx.record(alone=True)
    sides.rest(ctx, ctx)
    take_final_names(ctx, ctx)
    ctx.guard()
    with wiring.admin_session(ctx.engine, ctx.server) as admin:
        admin.dismiss_tool(ctx.names, ctx.names.tool)
        admin.lock_tenant(ctx.names, locked=False)
        quiet(ctx, admin, ctx.names, quiet=False)


def _leave_out_the_rest(ctx: Context, restore: Restore) -> None:
    """Of what was restored and compared only what was chosen stays. Repeated, it finds the rest gone."""
    lent = admitted_to_restore(ctx, ctx.names)
    endpoint, chosen = ctx.server.control_endpoint, sides.selection_of(restore)
    apart = ctx.engine.set_apart(endpoint, lent, chosen, "", "")
    given_back(ctx, ctx.names)
    pulse = move_copying.watched(ctx, lambda _moved: None)
    reader = admitted(ctx, ctx.names)
    found = ctx.engine.contents_of(endpoint, reader, list(apart.tables), pulse=lambda: pulse(0))
    manifest = restoring_data.read_manifest(sides.backup_of(restore))
    if wrong := sides.wrong_in(manifest, ctx.engine, apart.tables, found):
        told = f"Without the rest {', '.join(wrong[:5])} is not what was backed up."
        raise StepFailed("restore_differs", told, retryable=False)
    rows = sum(content.rows for content in found.values())
    outcome = {
        "places": [], "tables": dict(apart.tables), "notes": list(apart.notes)[: sides.NOTES_KEPT], "rows": rows,
        "bytes": apart.size_bytes,
    }  # fmt: skip
    with ctx.fenced():
        Restore.objects.filter(pk=restore.pk).update(outcome=outcome)
    for note_ in apart.notes:
        ctx.say(note_)
    ctx.explain(f"{rows} rows of {len(apart.tables)} tables stay")


def names_undone(ctx: Context) -> None:
    """Undo of what was renamed but not yet written down: the rows' names are those that are dropped."""
    final = final_names(ctx)
    names = ctx.names
    if not final or final[RoleKind.LOGIN] == names.login:
        return
    try:
        ctx.guard()
        with wiring.admin_session(ctx.engine, ctx.server) as admin:
            admin.rename_tenant(renamed(names, final), names)
    except sides.domain.EngineError as error:
        raise StepFailed(error.code, str(error)) from error


def prove_login(ctx: Context) -> None:
    """The last step of a provisioning. What was restored may hold anything: settings and triggers of the tenant's own are no
    reason to refuse it, so that a login is what counts."""
    restores = any(step.name == DATA for step in ctx.operation.steps.all())
    if restores and sides.restore_for(ctx.project) is not None:
        steps.prove_tenant(ctx)
    else:
        steps.verify_tenant(ctx)


def restored(operation: Operation) -> None:
    if not operation.steps.filter(name=DATA).exists():
        return
    project = Project.objects.get(pk=operation.project_key)
    restore = sides.restore_for(project)
    if restore is not None:
        Restore.objects.filter(pk=restore.pk).update(
            status=RestoreStatus.SUCCEEDED, error=None, finished_at=now(), generation=project.generation,
        )  # fmt: skip


def not_restored(operation: Operation) -> None:
    project = Project.objects.filter(pk=operation.project_key).first()
    restore = sides.restore_for(project) if project is not None else None
    if restore is not None:
        sides.ended(operation, restore.pk)


def _both(first: Callable[[Operation], None], second: Callable[[Operation], None]) -> Callable[[Operation], None]:
    def run(operation: Operation) -> None:
        first(operation)
        second(operation)

    return run


def extend_provisioning() -> None:
    """Put the steps into provisioning, on servers of its own and on pools. Once, from `AppConfig.ready()`."""
    for variant in ("", "pool"):
        current = base.latest_definition("provision", variant)
        if any(step.name == DATA for step in current.steps):
            continue
        base.insert_steps(
            "provision", "database" if variant else "image",
            (Step(NAMES, "Check the backup", take_names, give_names_back, TWICE, 120, optional=True),), variant,
        )  # fmt: skip
        base.insert_steps(
            "provision", "services",
            (
                Step(DATA, "Restore the backup", restore_data, end_tools, TWICE, 12 * HOURS, optional=True),
                Step(PROOF, "Compare with the backup", prove_data, names_undone, TWICE, 6 * HOURS, optional=True),
            ),
            variant,
        )  # fmt: skip
        current = base.latest_definition("provision", variant)
        base.register(
            replace(
                current, on_success=_both(current.on_success, restored), on_failure=_both(current.on_failure, not_restored),
                steps=tuple(replace(s, run=_run_of(s)) for s in current.steps),
            )
        )  # fmt: skip
    provision.also_wanted(wanted_steps)
    placing.avoid(avoided_names)


def _run_of(step: Step) -> base.StepFunction:
    if step.run is steps.verify_tenant:
        return prove_login
    return _unless_proven(step.run) if step.name == "database" else step.run


def _unless_proven(create: base.StepFunction) -> base.StepFunction:
    """What makes the database does not touch what is proven: its roles may have the project's names, which rows do not
    say yet."""

    def run(ctx: Context) -> None:
        if not _proven(ctx):
            create(ctx)

    return run
