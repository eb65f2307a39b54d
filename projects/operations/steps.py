"""Steps that several kinds share: find the image, run the server, prove logins."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from uuid import UUID

from django.conf import settings

from novastack.common.clock import now
from novastack.common.secrets import Sealed, random_password
from projects import domain
from projects.models import (
    BlockedPort,
    Database,
    DatabaseRole,
    DatabaseServer,
    DataTombstone,
    Endpoint,
    ObservedState,
    Orphan,
    Region,
    RoleKind,
    ServerDesired,
)
from projects.operations import catalogue, certificates, locks, logs, wiring
from projects.operations.base import LeaseLost, StepFailed, Wait
from projects.operations.context import Context

PORT_TRIES = 20
BLOCKED_PORT_SECONDS = 3600
MAX_STARTS = 2  # of a server while its first login is awaited: its runtime may have to start it once more
_NO_SPACE = re.compile(r"no space left on device|disk (?:is )?full|errno 28\b", re.IGNORECASE)


def writes_allowed(ctx: Context) -> None:
    """Read-only installs change nothing in a runtime, nor does anything change a server that is set aside (rule 11)."""
    from novastack.common.models import Install

    install = Install.load()
    if install.read_only:
        raise Wait(f"The install is read-only: {install.read_only_reason or 'set by an operator'}.", seconds=30)
    if not ctx.server.reconcile:
        raise Wait("An operator has set this server aside: nothing is changed on it.", seconds=30)


@contextlib.contextmanager
def refused_as(code: str) -> Iterator[None]:
    """A statement that the engine refused without a reason of its own kind fails with `code` (docs/errors.md)."""
    try:
        yield
    except domain.EngineError as error:
        if error.code != domain.EngineError.code:
            raise
        raise StepFailed(code, str(error)[:500], retryable=error.retryable) from error


def find_image(ctx: Context) -> None:
    """Choose runtime and image once and pin them (rule 12)."""
    writes_allowed(ctx)
    server, region = ctx.server, ctx.region
    if not region.available:
        raise StepFailed("region_unavailable", f"{region.name} has no runtime.", retryable=False)
    # Chosen once (rule 12): before there is data it may be another one, such as an operator's that was mended meanwhile.
    if server.initialised_at is not None and (server.image_digest or (server.image and server.runtime == "process")):
        ctx.explain(server.image)
        return
    image = ctx.runtime.resolve_image(
        ctx.engine.name, server.version, ctx.engine.official_image,
        catalogue.versions_of(ctx.engine).image_of(server.version), pull=True,
    )  # fmt: skip
    server.runtime, server.image, server.image_digest = region.runtime, image.name, image.digest
    ctx.save_server("runtime", "image", "image_digest")
    ctx.explain(image.name)
    ctx.say(f"Image {image.name}")


def create_server(ctx: Context) -> None:
    """A new server with new data. A taken port is marked and the next one tried: only the start proves it (rule 14)."""
    writes_allowed(ctx)
    server = ctx.server
    # Begun again after the data was made (its server was lost under a later step): then it is never made anew.
    data = domain.DataPolicy.CREATE if server.initialised_at is None else domain.DataPolicy.MUST_EXIST
    if server.initialised_at is None and not server.runtime_ref:
        _room(ctx)
    for _ in range(PORT_TRIES):
        certificates.prepare(ctx)
        ctx.guard()
        burst = server.initialised_at is None
        request = wiring.server_request(server, burst=burst, required=ctx.tls_required)
        try:
            ensure(ctx, request, data, "desired_state")
        except domain.PortTaken:
            taken = server.port
            move_port(ctx)
            ctx.say(f"Port {taken} belongs to somebody else; trying {server.port}.", level="warning")
            continue
        ctx.explain(f"Listening on {server.bind_address}:{server.port}")
        ctx.say(f"Server {server.handle.name} started on {server.bind_address}:{server.port}.")
        return
    raise StepFailed("no_free_port", f"{PORT_TRIES} ports in a row belong to somebody else. Widen the region's range.")


def ensure(ctx: Context, request: domain.ServerRequest, data: domain.DataPolicy, *fields: str) -> None:
    """Have the server run, and put down which process or container it is, with other fields of the row."""
    spec = ctx.engine.server_spec(request)
    handle = ctx.runtime.ensure(spec, data=data)
    if handle.ref == ctx.server.runtime_ref:  # it may have been running: `check_identity` has it take these
        ctx.runtime.put_files(handle, spec.files)
    ctx.server.runtime_ref = handle.ref
    ctx.server.desired_state = ServerDesired.RUNNING
    ctx.server.tls_enabled = request.tls is not None
    ctx.server.sized_for_bytes = request.limits.memory_bytes
    try:
        ctx.save_server("runtime_ref", "tls_enabled", "sized_for_bytes", *fields)
    except LeaseLost:
        _take_back(ctx, handle)
        raise


def _take_back(ctx: Context, handle: domain.Handle) -> None:
    """No fence stops a worker that was paused within `ensure` (rule 3). If this incarnation was given up meanwhile, what
    it made when it woke up is nobody's: it takes that, and nothing else, away again, and leaves the data to the janitor."""
    rows = DatabaseServer.objects.filter(pk=ctx.server.pk, incarnation=handle.incarnation)
    if rows.exclude(desired_state=ServerDesired.ABSENT).exists():
        return  # another worker goes on with it
    if Orphan.objects.filter(region=ctx.server.region_id, name=handle.name, forgotten_at__isnull=False).exists():
        return  # forgotten with its runtime: reported there, touched by nobody
    ctx.runtime.destroy(handle, delete_data=False)
    DataTombstone.objects.update_or_create(
        server_uuid=ctx.server.pk,
        incarnation=handle.incarnation,
        defaults={
            "region_id": ctx.server.region_id,
            "organization_id": ctx.operation.organization_id,
            "project_uuid": ctx.operation.project_uuid,
            "project_name": ctx.operation.project_name,
            "reason": "made by a worker that was late",
            "due_at": now() + timedelta(seconds=settings.NOVASTACK_DATA_GRACE_SECONDS),
            "deleted_at": None,
        },
    )


def _room(ctx: Context) -> None:
    """Nothing new above 90 % of the disk (rule 16)."""
    region = ctx.region
    if not region.has_room:
        raise StepFailed(
            "capacity_exhausted", f"The disk of {region.name} is {region.disk_used_percent:.0f} % full. Free some."
        )


def discard_server(ctx: Context) -> None:
    """Undo of `create_server`: the server goes at once, its data by the janitor; the name is never used again."""
    if ctx.operation.project_uuid is not None and ctx.project.credentials_shown_at is not None:
        return  # rule 7
    writes_allowed(ctx)
    ctx.adopt()
    server = ctx.server
    ctx.guard()
    ctx.runtime.destroy(server.handle, delete_data=False)
    with ctx.fenced():
        # As the operation says it: a standby has no project, nor organization.
        owner = ctx.operation
        entomb(
            server, project_name=owner.project_name, organization_id=owner.organization_id, reason="provisioning undone"
        )
        server.incarnation += 1
        server.runtime_ref, server.initialised_at, server.system_identifier = "", None, ""
        server.image = server.image_digest = ""
        server.tls_enabled = False
        server.observed_state, server.observed_detail = ObservedState.ABSENT, ""
        server.admin_secret, server.admin_pending_secret = Sealed.of(random_password()), None
        server.save()
        Database.objects.filter(server=server).update(created_in_engine_at=None)
    ctx.say("Undone: the server was removed.")


def entomb(server: DatabaseServer, *, project_name: str, organization_id: UUID | None, reason: str) -> DataTombstone:
    """Give this incarnation's data up; the janitor deletes it after the grace."""
    return DataTombstone.objects.get_or_create(
        server_uuid=server.pk,
        incarnation=server.incarnation,
        defaults={
            "region_id": server.region_id,
            "runtime_ref": "",
            "organization_id": organization_id,
            "project_uuid": server.project_uuid,
            "project_name": project_name,
            "reason": reason,
            "due_at": now() + timedelta(seconds=settings.NOVASTACK_DATA_GRACE_SECONDS),
        },
    )[0]


def move_port(ctx: Context) -> None:
    """Mark the server's port as somebody else's and take the next free one, for endpoint and server alike."""
    server, endpoint = ctx.server, ctx.endpoint
    with ctx.fenced():
        BlockedPort.objects.update_or_create(
            region=server.region,
            port=server.port or 0,
            defaults={"until": now() + timedelta(seconds=BLOCKED_PORT_SECONDS)},
        )
        # Those who create projects choose under the same lock, so nobody is refused for a port that is just taken.
        locks.lock_subject(locks.subject_of("ports", server.region_id))
        port = free_port(server.region)
        endpoint.port = endpoint.control_port = server.port = port
        if not endpoint._state.adding:  # what is not yet the project's server has no address on a row
            endpoint.save(update_fields=["port", "control_port", "updated_at"])
        server.save(update_fields=["port", "updated_at"])


def free_port(region: Region) -> int:
    """The lowest port of the region that no endpoint has and nobody was seen to hold. 409-like failure when none is."""
    used = Endpoint.objects.used_ports(region.pk)
    used |= set(BlockedPort.objects.filter(region=region, until__gt=now()).values_list("port", flat=True))
    for port in range(region.port_start, region.port_end + 1):
        if port not in used:
            return port
    raise StepFailed("no_free_port", f"All ports {region.port_start}-{region.port_end} of {region.name} are in use.")


def run_server(ctx: Context) -> None:
    """Run the server on its own data: start it, or make it again around its volume. Never creates data (rule 9)."""
    writes_allowed(ctx)
    server = ctx.server
    if server.initialised_at is None:
        raise StepFailed("data_missing", "This server was never initialised.", retryable=False)
    if ctx.operation.project_uuid is not None:
        # Limits that were changed while it was down, or whose change was cut short, hold from this start on.
        server.memory_bytes, server.cpus = ctx.project.memory_bytes, ctx.project.cpus
    server.desired_state = ServerDesired.RUNNING
    ctx.save_server("desired_state", "memory_bytes", "cpus")
    certificates.prepare(ctx)
    ctx.guard()
    ensure(ctx, wiring.server_request(server, required=ctx.tls_required), domain.DataPolicy.MUST_EXIST)
    ctx.explain(f"Listening on {server.bind_address}:{server.port}")


def await_login(ctx: Context) -> None:
    """Poll with real logins until the server answers; says why when it died instead."""
    starts: set[datetime] = set()
    try:
        _await_login(ctx, starts)
    except StepFailed as error:
        if error.code == "deadline_exceeded":  # the machine was too busy to look before
            _fail_if_dead(ctx, starts, most=1)
        raise


def _await_login(ctx: Context, starts: set[datetime]) -> None:
    server = ctx.server
    candidates = wiring.admin_candidates(server)
    next_look = 10
    polls = 0
    while True:
        refused = None
        for credentials in candidates:
            try:
                ctx.engine.probe(server.control_endpoint, credentials, timeout_seconds=2)
                _seen_running(ctx)
                return
            except (domain.ServerNotReady, domain.ServerBusy):
                refused = None
                break
            except domain.LoginRefused as error:
                refused = error
        if refused is not None:
            new = server.initialised_at is None
            hint = " Its image did not set the password that it was given." if new else ""
            raise StepFailed(
                "login_refused",
                f"The server answers, but refuses NovaStack's own login.{hint}{_last_words(ctx)}",
                retryable=False,
            )
        if ctx.remaining_seconds() < 1:
            ctx.guard()
            _fail_if_dead(ctx, starts, most=1)  # it was started again meanwhile: it does not run, it ends
            spec = ctx.engine.server_spec(wiring.server_request(server))
            raise StepFailed(
                "no_answer",
                f"The server runs, but nothing answers at {server.bind_address}:{server.port}. Its image must listen on"
                f" port {spec.port} of all addresses.{_last_words(ctx)}",
            )
        polls += 1
        if polls == next_look:
            next_look = polls + 40
            ctx.guard()
            _fail_if_dead(ctx, starts)
        ctx.sleep(0.02 if polls < 150 else 0.25)


def _seen_running(ctx: Context) -> None:
    server = ctx.server
    server.observed_state, server.observed_detail = ObservedState.RUNNING, ""
    server.observed_at = server.started_at = now()
    ctx.save_server("observed_state", "observed_detail", "observed_at", "started_at")


def _fail_if_dead(ctx: Context, starts: set[datetime], *, most: int = MAX_STARTS) -> None:
    """`starts`: the times at which it was seen to have been started. One that needs several (more than `most`) never comes
    up."""
    seen = ctx.runtime.observe([ctx.server.handle])[ctx.server.handle]
    if seen.started_at is not None:
        starts.add(seen.started_at)
    if seen.state in {domain.ServerState.STOPPED, domain.ServerState.ABSENT} or len(starts) > most:
        reason = "killed: out of memory" if seen.oom_killed else seen.detail
        words = _last_words(ctx)
        full = bool(_NO_SPACE.search(words))
        told = "The disk is full: the server ended while starting" if full else "The server ended while starting"
        code = "capacity_exhausted" if full else "server_exited"
        raise StepFailed(code, f"{told}{f': {reason}' if reason else ''}.{words or ' It gave no reason.'}")
    if seen.state == domain.ServerState.UNREACHABLE:
        raise domain.RuntimeUnreachable(seen.detail or "The runtime can't be reached.")


def _last_words(ctx: Context) -> str:
    """The end of the server's log as a sentence, and as lines of the operation's own log."""
    lines = logs.last_words(ctx.server)
    for line in lines:
        ctx.say(line, level="error")
    return f" The end of its log: {' | '.join(lines)[-320:]}" if lines else ""


def check_identity(ctx: Context) -> None:
    """The data behind the login is the data of this server (rule 9)."""
    server = ctx.server
    ctx.guard()
    with wiring.admin_session(ctx.engine, server) as admin:
        found = admin.system_identifier()
        if server.tls_enabled:
            admin.reload_tls(required=ctx.tls_required)
    if server.system_identifier and found != server.system_identifier:
        raise StepFailed("data_missing", "The server runs on data that is not its own.", retryable=False)


def stop_server(ctx: Context) -> None:
    """Stop, in slices shorter than the lease, and look that it is so."""
    writes_allowed(ctx)
    server = ctx.server
    with ctx.fenced():
        DatabaseServer.objects.filter(pk=server.pk).exclude(desired_state=ServerDesired.ABSENT).update(
            desired_state=ServerDesired.STOPPED
        )
    if server.initialised_at is None and not server.runtime_ref:
        ctx.explain("There is no server.")
        return
    ctx.adopt()
    ctx.guard()
    ctx.runtime.stop(server.handle, grace_seconds=15)
    seen = ctx.runtime.observe([server.handle])[server.handle]
    if seen.state == domain.ServerState.UNREACHABLE:
        raise domain.RuntimeUnreachable(seen.detail or "The runtime can't be reached.")
    if seen.state not in {domain.ServerState.STOPPED, domain.ServerState.ABSENT}:
        raise StepFailed("not_stopped", "The server still runs after it was told to stop.")
    server.observed_state, server.observed_detail, server.observed_at = seen.state.value, "", now()
    server.started_at = None
    ctx.save_server("observed_state", "observed_detail", "observed_at", "started_at")


def verify_tenant(ctx: Context) -> None:
    """The first real login as the tenant, with a look at its rights: only then is the project ready."""
    login = ctx.role(RoleKind.LOGIN)
    if login.secret is None:
        raise StepFailed("internal_error", "The login has no password.", retryable=False)
    version = ctx.engine.verify_tenant(ctx.server.control_endpoint, ctx.names, login.secret.open())
    ctx.explain(f"Logged in as {login.name}, server {version}")
    ctx.say(f"Logged in as {login.name}; server {version}.")


def prove_tenant(ctx: Context) -> None:
    """A real login as the tenant of a project that was ready before. What the tenant did inside (its own password,
    rights, settings) is not our failure: it is said (rule 19). A rotation that was cut short is settled by what works."""
    login = ctx.role(RoleKind.LOGIN)
    refused = None
    for secret in [s for s in (login.pending_secret, login.secret) if s is not None]:
        credentials = domain.Credentials(login.name, secret.open(), ctx.database.name)
        try:
            ctx.engine.probe(ctx.server.control_endpoint, credentials, timeout_seconds=5)
        except domain.LoginRefused as error:
            refused = error
            continue
        except domain.ServerBusy:
            ctx.explain("All connections of the server are in use; it is up.")
            return
        if login.pending_secret is not None:
            _settle(ctx, login, credentials.password)
        ctx.explain(f"Logged in as {login.name}")
        return
    if refused is not None:
        ctx.say("The tenant's password was changed outside of NovaStack; rotate it to get one that is known here.",
                level="warning")  # fmt: skip
        ctx.explain("The password was changed outside of NovaStack.")


def _settle(ctx: Context, login: DatabaseRole, working: str) -> None:
    """The password that logs in is the one that is shown."""
    if login.pending_secret is not None and login.pending_secret.open() == working:
        login.secret, login.rotated_at = Sealed.of(working), now()
    login.pending_secret = None
    with ctx.fenced():
        login.save(update_fields=["secret", "pending_secret", "rotated_at", "updated_at"])
