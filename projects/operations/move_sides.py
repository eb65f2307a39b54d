"""The two ends of a move: each as a step sees its own server, and the tools' logins on them."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any
from uuid import UUID

from django.conf import settings

from novastack.common.clock import now
from novastack.common.secrets import Sealed, random_password
from projects import domain
from projects.engines.admin import EngineAdmin
from projects.models import (
    Database,
    DatabaseRole,
    DatabaseServer,
    DatabaseSlot,
    Endpoint,
    Exposure,
    ObservedState,
    Operation,
    Placement,
    Plan,
    Project,
    Region,
    RoleKind,
    ServerKind,
)
from projects.operations import copying, locks, placing, steps, wiring
from projects.operations.base import PLATFORM_CONNECTIONS, StepFailed, Wait
from projects.operations.context import Context

FENCE_TRIES = 3
NAMING = ("provision", "move", "restore")  # kinds that make a place on a pool: names there are never used twice


class SlotContext(Context):
    """Looks at another of the project's databases than the current one."""

    slot = DatabaseSlot.CURRENT

    @cached_property
    def database(self) -> Database:
        return Database.objects.select_related("server", "server__region").get(
            project_id=self.operation.project_key, slot=self.slot, server_id__in=self.servers()
        )

    def servers(self) -> list[UUID]:
        """Kept copies of earlier moves have the same slot: this move's servers are those that it names."""
        params = self.operation.params
        return [UUID(params[name]) for name in ("source", "incoming") if params.get(name)]

    @property
    def region(self) -> Region:
        return self.server.region

    @cached_property
    def endpoint(self) -> Endpoint:
        """What would be its address if it were current; on no row."""
        region, server = self.region, self.server
        return Endpoint(
            region=region, host=region.client_host, port=server.port or 0, control_host=server.control_host,
            control_port=server.port or 0, bind_address=server.bind_address, shared=server.kind == ServerKind.POOL,
        )  # fmt: skip


class Incoming(SlotContext):
    slot = DatabaseSlot.INCOMING


class Previous(SlotContext):
    slot = DatabaseSlot.PREVIOUS


@dataclass(frozen=True, slots=True)
class Target:
    """Where a move goes, as its operation recorded it."""

    placement: str
    region: Region
    plan: Plan
    memory_bytes: int
    cpus: str
    storage_bytes: int

    @classmethod
    def of(cls, operation: Operation) -> Target:
        params = operation.params
        return cls(
            params["placement"], Region.objects.get(pk=params["region"]), Plan.objects.get(pk=params["plan"]),
            int(params["memory_bytes"]), str(params["cpus"]), int(params["storage_bytes"]),
        )  # fmt: skip

    @property
    def on_pool(self) -> bool:
        return self.placement == Placement.POOL


def keeps_port(project: Project, current: Database, target: Target) -> bool:
    """Whether the new server can take over the old one's port: it stays on the same machine, and has one of its own."""
    return (
        not target.on_pool
        and current.server.kind == ServerKind.DEDICATED
        and target.region.pk == project.region_id == current.server.region_id
    )


def plan_server(ctx: Context, target: Target, called: Mapping[str, str] | None = None) -> None:
    """Rows of a new dedicated server with the same names and passwords; once. `called`: what its roles are called until
    they get the names of the project's own (kind → name)."""
    project, current = ctx.project, ctx.database
    public = project.exposure == Exposure.PUBLIC and bool(target.region.public_address)
    with ctx.fenced():
        if ctx.operation.params.get("incoming"):
            return
        locks.lock_subject(locks.subject_of("ports", target.region.pk))
        server = DatabaseServer.objects.create(
            kind=ServerKind.DEDICATED, project_uuid=None, region=target.region, engine=project.engine,
            version=project.version, runtime=target.region.runtime, port=steps.free_port(target.region),
            bind_address=target.region.public_address if public else target.region.bind_address,
            control_host=target.region.control_host, memory_bytes=target.memory_bytes, cpus=target.cpus,
            max_connections=target.plan.connection_limit + PLATFORM_CONNECTIONS,
            admin_username=ctx.engine.bootstrap_username, admin_secret=Sealed.of(random_password()),
        )  # fmt: skip
        database = Database.objects.create(
            project=project, server=server, slot=DatabaseSlot.INCOMING, name=current.name
        )
        final = {}
        for role in current.roles.all():
            limit = target.plan.connection_limit if role.kind == RoleKind.LOGIN else role.connection_limit
            final[role.kind] = role.name
            DatabaseRole.objects.create(
                database=database, server=server, kind=role.kind, name=(called or {}).get(role.kind, role.name),
                connection_limit=limit, rotated_at=role.rotated_at,
                secret=Sealed.of(role.secret.open()) if role.secret is not None else None,
            )  # fmt: skip
        different = {"final_names": final} if called and dict(called) != final else {}
        note(ctx, source=str(current.server_id), incoming=str(server.pk), **different)


def note(ctx: Context, **params: Any) -> None:
    """Keep on the operation which servers this is about. In a transaction."""
    ctx.operation.params = {**ctx.operation.params, **params}
    Operation.objects.filter(pk=ctx.operation.pk).update(params=ctx.operation.params)


def final_names(ctx: Context) -> dict[str, str]:
    """Kind → what the roles of the copy are called in the end; until it is proven they are called as at the source, since
    rights in the dump name them."""
    return dict(ctx.operation.params.get("final_names") or {})


def take_slot(ctx: Context, target: Target, called: Mapping[str, str] | None = None) -> bool:
    """A place on a pool in which this project never was, with the source's password, and its roles' names for now where
    dumps tell them, or those `called` (kind → name); once. False when no pool has room."""
    if ctx.operation.params.get("incoming"):
        return True
    project, current = copy(ctx.project), ctx.database
    project.region, project.plan, project.placement = target.region, target.plan, Placement.POOL
    mine = set(Database.objects.filter(project=ctx.project).values_list("server_id", flat=True))
    if called:
        mine |= set(DatabaseRole.objects.filter(name__in=called.values()).values_list("server_id", flat=True))
    number = Operation.objects.filter(project_uuid=ctx.project.pk, kind__in=NAMING).count()
    names = {role.kind: role for role in current.roles.all()}
    with ctx.fenced():
        database = placing.take(project, number=number, slot=DatabaseSlot.INCOMING, besides=mine)
        if database is None:
            return False
        final = {}
        for role in database.roles.all():
            source = names[role.kind]
            if ctx.engine.dumps_name_roles:
                final[role.kind], role.name = role.name, (called or {}).get(role.kind, source.name)
            if role.kind == RoleKind.LOGIN and source.secret is not None:
                role.secret, role.rotated_at = Sealed.of(source.secret.open()), source.rotated_at
            role.save(update_fields=["name", "secret", "rotated_at", "updated_at"])
        note(ctx, source=str(current.server_id), incoming=str(database.server_id), final_names=final)
    return True


def renamed(names: domain.TenantNames, final: dict[str, str]) -> domain.TenantNames:
    return replace(
        names, owner=final[RoleKind.OWNER], group=final[RoleKind.GROUP], login=final[RoleKind.LOGIN],
        control=final[RoleKind.CONTROL],
    )  # fmt: skip


def take_final_names(ctx: Context, side: Context) -> None:
    """The copy is proven: its roles get the names that they keep."""
    final = final_names(ctx)
    roles = list(side.database.roles.all())
    if not final or all(role.name == final[role.kind] for role in roles):
        return
    before = side.names
    after = renamed(before, final)
    ctx.guard()
    with wiring.admin_session(ctx.engine, side.server) as admin:
        admin.dismiss_tool(before, before.tool)
        admin.rename_tenant(before, after)
    with ctx.fenced():
        for role in roles:
            role.name = final[role.kind]
            role.save(update_fields=["name", "updated_at"])
    side.forget_rows()


def admitted(ctx: Context, names: domain.TenantNames) -> domain.Credentials:
    """The login of tools that read, on the context's server, with a new password that nobody keeps."""
    password = random_password()
    ctx.guard()
    with wiring.admin_session(ctx.engine, ctx.server) as admin:
        admin.admit_tool(names, names.tool, password)
    return domain.Credentials(names.tool, password, names.database)


def admitted_to_restore(ctx: Context, names: domain.TenantNames) -> domain.Credentials:
    """The login of the tool that fills the database; `given_back` when it is done."""
    password = random_password()
    ctx.guard()
    with wiring.admin_session(ctx.engine, ctx.server) as admin:
        lent = admin.admit_restorer(names, names.tool, password)
        if ctx.server.kind != ServerKind.POOL:
            admin.take_large(large=True)
    return domain.Credentials(lent, password, names.database)


def given_back(ctx: Context, names: domain.TenantNames) -> None:
    """The database is filled: the tenant's login is locked, and has the password again that its row says."""
    role = DatabaseRole.objects.filter(server=ctx.server, kind=RoleKind.LOGIN, name=names.login).first()
    ctx.guard()
    with wiring.admin_session(ctx.engine, ctx.server) as admin:
        admin.dismiss_restorer(names, names.tool)
        if ctx.server.kind != ServerKind.POOL:
            admin.take_large(large=False)
        if role is not None and role.secret is not None:
            admin.set_password(names.login, role.secret.open())


def quiet(ctx: Context, admin: EngineAdmin, names: domain.TenantNames, *, quiet: bool) -> None:
    """On a server of its own. On a pool nothing runs by itself."""
    if ctx.server.kind != ServerKind.POOL:
        admin.quiet(names, quiet=quiet)


def side_of(ctx: Context, credentials: domain.Credentials) -> copying.Side:
    server = ctx.server
    spec = ctx.engine.server_spec(wiring.server_request(server))
    control = server.control_endpoint
    host, port = ctx.runtime.place_of(spec)
    place = domain.Endpoint(host, port, control.tls_name, control.ca_pem)
    # Tools that do not come with the product may have come into its image after this server was made.
    image = server.image if ctx.engine.tool_programs else server.image_digest
    return copying.Side(ctx.runtime, server.handle, image or server.image, place, credentials)


def ensure_up(ctx: Context) -> None:
    """A server that is down is started: nobody else does while this operation holds the project. Pools have somebody."""
    server = ctx.server
    if server.kind == ServerKind.POOL:
        if server.observed_state != ObservedState.RUNNING:
            raise Wait("The shared server is down; it is being started.", seconds=5)
        return
    if ctx.adopt().state == domain.ServerState.RUNNING and server.observed_state == ObservedState.RUNNING:
        return
    ctx.say("The server is down; it is started.", level="warning")
    request = wiring.server_request(server, required=ctx.tls_required)
    steps.ensure(ctx, request, domain.DataPolicy.MUST_EXIST, "desired_state")
    steps.await_login(ctx)


def shut_out(ctx: Context) -> None:
    """Lock the tenant's logins, and end what is open: by a restart where a lock does not reach that, and again where a
    session let somebody in meanwhile. Raises `StepFailed` (`not_fenced`)."""
    for _ in range(1 if ctx.engine.lock_ends_sessions else FENCE_TRIES):
        ctx.guard()
        with wiring.admin_session(ctx.engine, ctx.server) as admin:
            quiet(ctx, admin, ctx.names, quiet=True)
            admin.lock_tenant(ctx.names, locked=True)
        if ctx.engine.lock_ends_sessions:
            return
        ctx.adopt()
        ctx.guard()
        ctx.runtime.stop(ctx.server.handle, grace_seconds=15)
        request = wiring.server_request(ctx.server, required=ctx.tls_required)
        steps.ensure(ctx, request, domain.DataPolicy.MUST_EXIST, "desired_state")
        steps.await_login(ctx)
        with wiring.admin_session(ctx.engine, ctx.server) as admin:
            if admin.is_locked(ctx.names):
                return
    raise StepFailed("not_fenced", "Sessions that were open let others in again, and again.")


def keep_until(moment: datetime) -> datetime:
    return moment + timedelta(hours=settings.NOVASTACK_MOVE_KEEP_HOURS)


def reserve(endpoint: Endpoint, days: int) -> None:
    """Old clients still send their passwords to an address that was one's own: nobody gets it for a while (rule 14). In a
    transaction, after the endpoint has moved on; `endpoint` is as it was."""
    Endpoint.objects.create(
        project=None, project_uuid=endpoint.project_uuid, region=endpoint.region, host=endpoint.host,
        port=endpoint.port, control_host=endpoint.control_host, control_port=endpoint.control_port,
        bind_address=endpoint.bind_address, reserved_until=now() + timedelta(days=days),
    )  # fmt: skip
