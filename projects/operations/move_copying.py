"""The steps of a move that shut clients out: copy, compare, take over the address. Up to `switch` all is undone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import structlog

from novastack.common.clock import now
from projects import domain
from projects.models import DesiredStatus, RoleKind, ServerDesired
from projects.operations import copying, disks, steps, wiring
from projects.operations.base import StepFailed, Wait
from projects.operations.context import Context
from projects.operations.move_sides import (
    Incoming,
    Target,
    admitted,
    admitted_to_restore,
    ensure_up,
    given_back,
    keeps_port,
    quiet,
    shut_out,
    side_of,
    take_final_names,
)
from projects.operations.move_steps import MIB, password_known, row_of, stem_of

log = structlog.get_logger(__name__)
GUARD_SECONDS = 2.0
DIFFERENCES_SHOWN = 5
SAID = 20


def note_password(ctx: Context) -> None:
    """`fence`, once and before it locks: tenants may have changed their password since `verify`, hours ago."""
    if "password_known" not in ctx.row.data:
        ctx.record(password_known=password_known(ctx))


def knew_password(ctx: Context) -> bool:
    """Whether the stored password was the login's when clients were shut out."""
    fenced = row_of(ctx, "fence").data  # begun by an older version it does not say
    return bool(fenced.get("password_known", row_of(ctx, "verify").data["password_known"]))


def fence(ctx: Context) -> None:
    """Nobody of the tenant's is in, or gets in (rule 31). From here on the clock of the downtime runs."""
    ensure_up(ctx)
    note_password(ctx)
    if "fenced_at" not in ctx.row.data:
        ctx.record(fenced_at=now().isoformat())
    shut_out(ctx)
    with wiring.admin_session(ctx.engine, ctx.server) as admin:
        obstacles = admin.obstacles(ctx.names, renamed=Target.of(ctx.operation).on_pool)
    if obstacles:
        raise StepFailed("not_movable", f"A copy would lose: {'; '.join(obstacles)}.", retryable=False)
    ctx.explain("No client is connected, none can connect")
    ctx.say("Clients are shut out; the copy begins.")


def unfence(ctx: Context) -> None:
    """Undo: the project runs as before. It waits for the server rather than give up: nobody else would let clients in."""
    try:
        copying.remove_tools(ctx.runtime, None, stem_of(ctx))
        ensure_up(ctx)
        ctx.guard()
        with wiring.admin_session(ctx.engine, ctx.server) as admin:
            admin.dismiss_tool(ctx.names, ctx.names.tool)
            if ctx.project.desired_status == DesiredStatus.RUNNING:
                admin.lock_tenant(ctx.names, locked=False)
            quiet(ctx, admin, ctx.names, quiet=False)
    except (domain.EngineError, StepFailed) as error:
        raise Wait(f"The server does not let us open it again: {error}"[:300], seconds=5) from error
    ctx.say("Undone: clients are let in again, at the old place.")


def copy(ctx: Context) -> None:
    """Dump and restore, streamed. Done again, it begins with an empty database."""
    ensure_up(ctx)
    _at_rest(ctx)
    side = ctx.seen_as(Incoming)
    names = side.names
    with target_errors():
        if ctx.row.data.get("begun"):
            copying.remove_tools(ctx.runtime, side.runtime, stem_of(ctx))
            empty_again(ctx, side, names)
        ctx.record(begun=True)
        taker = admitted_to_restore(side, names)
    giver = admitted(ctx, ctx.names)
    began = time.monotonic()
    pulse = watched(ctx, lambda so_far: ctx.record(moved=so_far))
    restoring = ctx.engine.restoring()
    try:
        moved = copying.copy(
            ctx.engine, side_of(ctx, giver), side_of(side, taker), stem=stem_of(ctx), pulse=pulse, restoring=restoring
        )
    except StepFailed as error:
        if error.code == "target_lost" and disks.is_full(side.region):  # a server without room for its log just ends
            detail = f"The disk of {side.region.name} is full."
            raise StepFailed("target_full", detail, retryable=False) from error
        raise
    with target_errors():
        side.guard()
        restoring.finish(side.server.control_endpoint, taker, names, pulse=lambda: pulse(moved))
        given_back(side, names)
    with wiring.admin_session(ctx.engine, ctx.server) as admin:
        around = admin.around(ctx.names)
        hashes = {} if knew_password(ctx) else admin.password_hashes(ctx.names)
        hashes = {names.login if login == ctx.names.login else login: kept for login, kept in hashes.items()}
    with target_errors(), wiring.admin_session(ctx.engine, side.server) as admin:
        admin.put_around(names, around)
        admin.put_password_hashes(names, hashes)  # of one that the tenant has changed itself
        if admin.around(names) != around:
            raise StepFailed("copy_differs", "Settings around the database did not arrive.", retryable=False)
    seconds = time.monotonic() - began
    ctx.record(bytes=moved, seconds=round(seconds, 2))
    ctx.explain(f"{moved / MIB:.1f} MiB in {seconds:.1f} s")


def _at_rest(ctx: Context) -> None:
    """A server that was started anew meanwhile does things by itself again."""
    with wiring.admin_session(ctx.engine, ctx.server) as admin:
        quiet(ctx, admin, ctx.names, quiet=True)


def empty_again(ctx: Context, side: Context, names: domain.TenantNames) -> None:
    login, control = side.role(RoleKind.LOGIN), side.role(RoleKind.CONTROL)
    if login.secret is None or control.secret is None:
        raise StepFailed("internal_error", "The roles have no passwords.", retryable=False)
    ctx.guard()
    with wiring.admin_session(ctx.engine, side.server) as admin:
        admin.drop_tenant(names)
        admin.create_tenant(names, login_password=login.secret.open(), control_password=control.secret.open())
        admin.lock_tenant(names, locked=True)
        quiet(side, admin, names, quiet=True)


def watched(ctx: Context, told: Callable[[int], None]) -> Callable[[int], None]:
    """What a long piece of work calls: promises are looked at often, the rows every few seconds."""
    asked = [time.monotonic()]

    def pulse(moved: int = 0) -> None:
        ctx.pulse()
        if time.monotonic() - asked[0] > GUARD_SECONDS:
            asked[0] = time.monotonic()
            ctx.guard()
            told(moved)

    return pulse


def compare(ctx: Context) -> None:
    """Source and copy, read in the same way, all of both: not one row or object may differ."""
    ensure_up(ctx)
    _at_rest(ctx)
    side = ctx.seen_as(Incoming)
    names = side.names
    with target_errors():
        _at_rest(side)
        theirs = admitted(side, names)
    mine = admitted(ctx, ctx.names)
    stop = threading.Event()

    def pulse() -> None:
        ctx.pulse()
        if stop.is_set():
            raise StepFailed("copy_interrupted", "Comparing was interrupted.")

    ends = ((ctx.server.control_endpoint, mine), (side.server.control_endpoint, theirs))
    engine, looked = ctx.engine, watched(ctx, lambda _: None)
    with ThreadPoolExecutor(2, thread_name_prefix="fingerprint") as pool:
        both = [pool.submit(engine.fingerprint, endpoint, login, pulse=pulse) for endpoint, login in ends]
        try:
            while not all(each.done() for each in both):
                looked(0)
                time.sleep(0.05)
        except BaseException:
            stop.set()
            raise
    source = both[0].result()
    with target_errors():
        copied = both[1].result()
    if found := source.differences(copied):
        for line in found[:SAID]:
            ctx.say(line, level="error")
        shown = "; ".join(found[:DIFFERENCES_SHOWN])
        more = f" and {len(found) - DIFFERENCES_SHOWN} more" if len(found) > DIFFERENCES_SHOWN else ""
        raise StepFailed("copy_differs", f"The copy is not what the source is: {shown}{more}.", retryable=False)
    for line in source.remarks(copied)[:SAID]:
        ctx.say(line, level="warning")
    ctx.record(tables=len(source.tables), rows=source.rows, facts=len(source.facts))
    ctx.explain(f"{source.rows} rows of {len(source.tables)} tables and {len(source.facts)} facts are equal")


def hand_over(ctx: Context) -> None:
    """The new server takes the old one's port, so that clients need no new address. Only when both are on one machine."""
    side = ctx.seen_as(Incoming)
    take_final_names(ctx, side)
    if not keeps_port(ctx.project, ctx.database, Target.of(ctx.operation)):
        ctx.explain("The address changes")
        return
    old, new = ctx.server, side.server
    if "port" not in ctx.row.data:
        ctx.record(port=new.port)
    steps.stop_server(ctx)
    wanted = ctx.endpoint.port
    try:
        _publish(side, wanted)
        ctx.explain(f"{ctx.endpoint.host}:{wanted}, as before")
    except domain.PortTaken:
        _publish(side, int(ctx.row.data["port"]))
        ctx.say(f"Port {wanted} belongs to somebody else by now: the address changes.", level="warning")
        ctx.explain(f"The address changes to port {new.port}")
    log.info("port handed over", old=str(old.pk), new=str(new.pk), port=new.port)


def _publish(side: Context, port: int) -> None:
    """Run the incoming server at this port, on its data."""
    server = side.server
    side.adopt()
    if server.port != port:
        side.guard()
        side.runtime.stop(server.handle, grace_seconds=15)
        server.port = port
        side.save_server("port")
    side.guard()
    with target_errors():
        steps.ensure(side, wiring.server_request(server, required=side.tls_required), domain.DataPolicy.MUST_EXIST)
        steps.await_login(side)


def hand_back(ctx: Context) -> None:
    """Undo: the old server has its port again, and runs."""
    port = ctx.row.data.get("port")
    if port is None:
        return
    side = ctx.seen_as(Incoming)
    try:
        side.adopt()
        ctx.guard()
        side.runtime.stop(side.server.handle, grace_seconds=10)
        side.server.port = int(port)
        side.save_server("port")
        ctx.server.desired_state = ServerDesired.RUNNING
        ctx.save_server("desired_state")
        ensure_up(ctx)
    except (domain.EngineError, domain.NovaStackRuntimeError, StepFailed) as error:
        if isinstance(error, domain.RuntimeUnreachable):
            raise
        raise Wait(f"The old server does not start again yet: {error}"[:300], seconds=5) from error


class target_errors:
    """A target that goes away while clients are shut out is a failure, not a wait: the source is opened again."""

    def __enter__(self) -> None:
        return

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, domain.RuntimeUnreachable | domain.ServerNotReady):
            raise StepFailed("target_lost", f"The target does not answer any more: {error}"[:300]) from error
