"""Servers that are no project's and go: what removing a warm standby and a pool have in common."""

from __future__ import annotations

from projects import domain
from projects.models import DatabaseServer, DataTombstone
from projects.operations import steps, wiring
from projects.operations.context import Context


def start_again(ctx: Context) -> None:
    """On its own data, to be asked whether it is empty."""
    server = ctx.server
    ctx.guard()
    spec = ctx.engine.server_spec(wiring.server_request(server))
    handle = ctx.runtime.ensure(spec, data=domain.DataPolicy.MUST_EXIST)
    server.runtime_ref = handle.ref
    ctx.save_server("runtime_ref")


def given_up(server: DatabaseServer) -> bool:
    return DataTombstone.objects.filter(server_uuid=server.pk, incarnation=server.incarnation).exists()


def remove_server(ctx: Context, *, reason: str) -> None:
    """The server goes, its data gets a tombstone; what was never made leaves none."""
    steps.writes_allowed(ctx)
    server = ctx.server
    known = bool(server.initialised_at or server.runtime_ref or given_up(server))
    absent = ctx.adopt().state == domain.ServerState.ABSENT
    if absent and not known and not ctx.runtime.data_exists(server.handle):
        ctx.explain("There is no server, and no data.")
        return
    ctx.guard()
    ctx.runtime.destroy(server.handle, delete_data=False)
    with ctx.fenced():
        steps.entomb(server, project_name="", organization_id=None, reason=reason)
    ctx.explain("Removed")
