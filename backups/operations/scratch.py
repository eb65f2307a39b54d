"""Throw-away servers: one is made for one operation, a backup is restored into it, and it goes with its data when the
operation ends, whichever way (rules 11 and 26).

A scratch server is a `DatabaseServer` of kind SCRATCH that its operation names (`server_uuid`): whoever resumes the
operation finds it, and what no live operation names is removed by `sweep`. It holds no project's database: nothing is
placed on it, nobody gets its passwords, its names are those of the backup's source.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from functools import cached_property
from typing import Any
from uuid import UUID

import structlog
from django.conf import settings
from django.db import transaction

from backups.models import Backup
from novastack.common.clock import now
from novastack.common.secrets import Sealed, random_password
from projects import domain, registry
from projects.engines.base import Engine
from projects.models import (
    DatabaseServer,
    DataTombstone,
    DiskLevel,
    Endpoint,
    OnGiveUp,
    Operation,
    Orphan,
    Project,
    Region,
    ServerDesired,
    ServerKind,
)
from projects.operations import catalogue, copying, emptied, janitor, locks, provision, steps, wiring
from projects.operations.base import SERVER_RETRY, Definition, Step, StepFailed, register
from projects.operations.context import Context
from projects.operations.queue import server_operation_create

log = structlog.get_logger(__name__)
REMOVE = "remove_scratch"
LABEL = "backups"
STEP = "server"  # of whatever operation makes one: its name says whether it was ever begun
CONNECTIONS = 40
AGAIN_SECONDS = 60
MOST_MEMORY = 4  # times what is set
GIB = 1 << 30


class Scratch(Context):
    """The same step, looking at its operation's own scratch server. There is no project in sight, and no database row."""

    @cached_property
    def server(self) -> DatabaseServer:
        return DatabaseServer.objects.select_related("region").get(pk=self.operation.server_key)

    @property
    def region(self) -> Region:
        return self.server.region

    @cached_property
    def engine(self) -> Engine:
        return registry.engine(self.server.engine)

    @cached_property
    def endpoint(self) -> Endpoint:
        """What would be its address; on no row."""
        server, region = self.server, self.server.region
        return Endpoint(
            region=region, host=region.client_host, port=server.port or 0, control_host=server.control_host,
            control_port=server.port or 0, bind_address=server.bind_address,
        )  # fmt: skip

    @property
    def tls_required(self) -> bool:
        return self.engine.tls_only

    @cached_property
    def names(self) -> domain.TenantNames:
        return names_of(self.operation.params["names"])


def names_of(told: dict[str, Any]) -> domain.TenantNames:
    """Of the database and roles of a backup's source, as its manifest tells them."""
    return domain.TenantNames(
        database=str(told["database"]), owner=str(told["owner"]), group=str(told["group"]), login=str(told["login"]),
        control=str(told["control"]), connection_limit=CONNECTIONS // 2,
    )  # fmt: skip


# --- where and what -----------------------------------------------------------------------------------------------------
def region_for(backup: Backup) -> Region:
    """The project's region; when the project is gone, any that can run the version. Raises `StepFailed` with
    `no_scratch_region`, which may pass."""
    project = Project.objects.filter(pk=backup.project_uuid).select_related("region").first()
    regions = [project.region] if project else list(Region.objects.filter(gone_at=None).order_by("name"))
    reasons = {region: _against(region, backup) for region in regions}
    for region, reason in reasons.items():
        if not reason:
            return region
    told = "; ".join(f"{region.name}: {reason}" for region, reason in reasons.items()) or "there is none"
    raise StepFailed("no_scratch_region", f"No region can run a throw-away server for it now. {told}."[:500])


def _against(region: Region, backup: Backup) -> str:
    if not region.available:
        return "it has no runtime"
    if not region.reachable:
        return "it can't be reached"
    if not region.has_room:
        return region.disk_problem
    return region.reason_against(backup.engine, backup.version)


def room_for(region: Region, database_bytes: int) -> None:
    """Fails with `capacity_exhausted` when the region's disk, as last seen, would not take the copy."""
    free, total = region.disk.get("free_bytes"), region.disk.get("total_bytes")
    if free is None or not total:
        return
    used = region.disk_used_percent
    if used is not None and used < 100:  # of what can be used: a file system may keep a part to itself
        total = int(int(free) / (1 - used / 100))
    kept = int(total) // 10  # nothing new above 90 %
    if int(free) - kept < needed_bytes(database_bytes):
        raise StepFailed(
            "capacity_exhausted",
            f"A copy of {database_bytes >> 20} MiB does not fit on the disk of {region.name}.",
        )


def needed_bytes(database_bytes: int) -> int:
    """What a restored copy may take while it is made: sorting for indexes and the log beside the data."""
    return database_bytes + database_bytes // 2 + GIB // 4


def most_bytes(database_bytes: int) -> int:
    """A copy that grows beyond this is ended: it is not what the manifest says, or something writes by itself."""
    return 2 * database_bytes + 2 * GIB


def memory_bytes(engine: Engine, row_bytes: int = 0) -> int:
    """Of a scratch server that takes a row of so many bytes in the dump: what is set, or more for the sake of that row."""
    usual = settings.NOVASTACK_SCRATCH_MEMORY_BYTES
    return max(usual, engine.minimum_memory_bytes, min(engine.memory_for_row(row_bytes), MOST_MEMORY * usual))


def plan(ctx: Context, *, region: Region, engine: str, version: str, row_bytes: int = 0) -> DatabaseServer:
    """Rows of the operation's scratch server; once. `row_bytes`: as of `memory_bytes`. Under the fence."""
    driver = registry.engine(engine)
    memory = memory_bytes(driver, row_bytes)
    with ctx.fenced():
        if ctx.operation.server_uuid is not None:
            found = DatabaseServer.objects.filter(pk=ctx.operation.server_uuid).first()
            if found is not None:
                return found
        locks.lock_subject(locks.subject_of("ports", region.pk))
        server = DatabaseServer.objects.create(
            kind=ServerKind.SCRATCH, region=region, engine=engine, version=version, runtime=region.runtime,
            port=steps.free_port(region), bind_address=region.bind_address, control_host=region.control_host,
            memory_bytes=memory, cpus=settings.NOVASTACK_SCRATCH_CPUS, max_connections=CONNECTIONS,
            admin_username=driver.bootstrap_username, admin_secret=Sealed.of(random_password()),
        )  # fmt: skip
        ctx.operation.server_uuid = server.pk
        Operation.objects.filter(pk=ctx.operation.pk).update(server_uuid=server.pk)
    return server


def describe(ctx: Context, *, names: Mapping[str, str], image: str) -> None:
    """What is to be on it: database and roles by name (`names_of`), and the image of the source, which is used if it is
    still there; empty: the version's. Under the fence, before `start`."""
    with ctx.fenced():
        ctx.operation.params = {**ctx.operation.params, "names": dict(names), "image": image}
        Operation.objects.filter(pk=ctx.operation.pk).update(params=ctx.operation.params)


# --- up -----------------------------------------------------------------------------------------------------------------
def start(side: Scratch) -> None:
    """The server runs, closed, with its own limits. What a crash or a lost container left half-way is thrown away and
    begun anew under another name (rule 3). Raises as provisioning does."""
    if side.region.gone_at is not None:
        raise StepFailed("region_unavailable", f"{side.region.name} was given up.", retryable=False)
    steps.writes_allowed(side)
    if _stands(side):
        return
    _find_image(side)
    steps.create_server(side)
    steps.await_login(side)
    provision.secure(side)
    side.adopt()
    side.guard()
    side.runtime.update(side.server.handle, wiring.limits_of(side.server))


def _stands(side: Scratch) -> bool:
    """Whether it is up already. One that was up and is not any more gives its name up."""
    server = side.server
    if server.initialised_at is None:
        return False
    seen = side.adopt()
    if seen.state == domain.ServerState.RUNNING:
        steps.await_login(side)
        return True
    side.say("The throw-away server is gone; another one is made.", level="warning")
    renew(side)
    return False


def renew(side: Scratch) -> None:
    """Give this incarnation up, with its data; the row plans the next one."""
    server = side.server
    side.guard()
    side.runtime.destroy(server.handle, delete_data=False)
    with side.fenced():
        tomb = _entomb(server)
        server.incarnation += 1
        server.runtime_ref, server.initialised_at, server.system_identifier = "", None, ""
        server.tls_enabled = False
        server.admin_secret, server.admin_pending_secret = Sealed.of(random_password()), None
        server.save()
    janitor.delete_now(tomb)


def _find_image(side: Scratch) -> None:
    """The very image of the source if it is still there, else the version's, which is said (rule 12)."""
    server, pinned = side.server, str(side.operation.params.get("image") or "")
    engine = side.engine
    if server.initialised_at is not None:
        return
    found = None
    if pinned:
        try:
            found = side.runtime.resolve_image(engine.name, server.version, engine.official_image, pinned)
        except domain.ImageMissing:
            side.say(f"The source's image {pinned} is not there any more; the version's is used.", level="warning")
    if found is None:
        found = side.runtime.resolve_image(
            engine.name, server.version, engine.official_image,
            catalogue.versions_of(engine).image_of(server.version), pull=True,
        )  # fmt: skip
    server.runtime, server.image, server.image_digest = side.region.runtime, found.name, found.digest
    side.save_server("runtime", "image", "image_digest")


def same_image(side: Scratch) -> bool:
    """Whether it runs on the image that the backup was taken from, as far as that is known."""
    pinned = str(side.operation.params.get("image") or "")
    return not pinned or pinned in {side.server.image, side.server.image_digest}


def make_database(side: Scratch) -> None:
    """An empty database with the source's names; nobody but us gets in, and nothing happens in it by itself."""
    side.guard()
    with wiring.admin_session(side.engine, side.server) as admin:
        admin.drop_tenant(side.names)  # of an attempt before
        admin.create_tenant(side.names, login_password=random_password(), control_password=random_password())
        admin.lock_tenant(side.names, locked=True)
        admin.quiet(side.names, quiet=True)


def size_of(side: Scratch) -> int:
    """What its database takes now, in bytes."""
    with wiring.admin_session(side.engine, side.server, timeout_seconds=2, statement_seconds=5) as admin:
        return admin.stats(side.names.database).size_bytes


def check_growth(side: Scratch, database_bytes: int) -> bool:
    """Ends a copy that grows beyond `most_bytes`, or whose disk is about to be full. False: the server is too busy to
    say its size, and is asked the next time."""
    disk = Region.objects.filter(pk=side.server.region_id).values_list("disk", flat=True).first() or {}
    if disk.get("level") == DiskLevel.FENCED:
        raise StepFailed("capacity_exhausted", f"The disk of {side.region.name} is nearly full: the copy was ended.")
    try:
        size = size_of(side)
    except domain.EngineError:
        return False
    if size > most_bytes(database_bytes):
        raise StepFailed(
            "capacity_exhausted", f"The copy takes {size >> 20} MiB by now, of {database_bytes >> 20} MiB: it was ended.",
            retryable=False,
        )  # fmt: skip
    return True


# --- gone ---------------------------------------------------------------------------------------------------------------
def remove(ctx: Context) -> None:
    """End of an operation, or its undo: server, data and rows go; absent is success. Raises `RuntimeUnreachable`."""
    if ctx.operation.server_uuid is None:
        return
    if not DatabaseServer.objects.filter(pk=ctx.operation.server_uuid, kind=ServerKind.SCRATCH).exists():
        return
    side = ctx.seen_as(Scratch)
    if side.region.gone_at is not None:
        _forget(side.server)
        return
    if never_begun(ctx, side.server):
        with ctx.fenced():
            side.server.delete()
        return
    steps.writes_allowed(side)
    copying.remove_tools(side.runtime, side.runtime, str(ctx.operation.pk))
    side.adopt()
    side.guard()
    side.runtime.destroy(side.server.handle, delete_data=False)
    with side.fenced():
        tomb = _entomb(side.server)
        side.server.delete()
    janitor.delete_now(tomb)


def never_begun(ctx: Context, server: DatabaseServer) -> bool:
    """By the rows alone: no worker ever began to make it, so that there is nothing to look for anywhere."""
    if server.runtime_ref or server.initialised_at is not None or server.incarnation > 1:
        return False
    return not ctx.operation.steps.filter(name=STEP, started_at__isnull=False).exists()


def _entomb(server: DatabaseServer) -> DataTombstone:
    """Due at once: nobody's data is in it but what a backup holds."""
    tomb = steps.entomb(server, project_name="", organization_id=None, reason=janitor.THROWN_AWAY)
    DataTombstone.objects.filter(pk=tomb.pk).update(due_at=now())
    return tomb


@transaction.atomic
def _remove_begin(server: DatabaseServer) -> bool:
    row = DatabaseServer.objects.select_for_update(of=("self",)).filter(pk=server.pk, kind=ServerKind.SCRATCH).first()
    if row is None or not row.reconcile or _named(row.pk):
        return False
    operation = server_operation_create(server=row, kind=REMOVE, created_by_label=LABEL)
    if operation is None:
        return False
    row.desired_state = ServerDesired.ABSENT
    row.save(update_fields=["desired_state", "updated_at"])
    return True


def _named(server_id: UUID) -> bool:
    return Operation.objects.live().filter(server_uuid=server_id).exists()


def sweep() -> int:
    """Begin the removal of scratch servers that no live operation names; returns how many. Without any it costs one query.
    In a region that was given up they are forgotten, and reported."""
    begun = 0
    for server in DatabaseServer.objects.filter(kind=ServerKind.SCRATCH).select_related("region"):
        if _named(server.pk):
            continue
        if server.region.gone_at is not None:
            _forget(server)
        elif server.recover_after is None or server.recover_after <= now():
            begun += _remove_begin(server)
    return begun


@transaction.atomic
def _forget(server: DatabaseServer) -> None:
    Orphan.objects.update_or_create(
        region=server.region, kind="server", name=server.handle.name,
        defaults={"resolved_at": None, "forgotten_at": now(), "note": "A throw-away server in a region that was given up."},
    )  # fmt: skip
    server.delete()


def _remove_server(ctx: Context) -> None:
    emptied.remove_server(ctx, reason=janitor.THROWN_AWAY)
    DataTombstone.objects.filter(server_uuid=ctx.server.pk, deleted_at=None).update(due_at=now())


def _remove_rows(ctx: Context) -> None:
    for tomb in DataTombstone.objects.filter(server_uuid=ctx.operation.server_key, deleted_at=None, forgotten_at=None):
        janitor.delete_now(tomb)
    ctx.guard()
    with ctx.fenced():
        DatabaseServer.objects.filter(pk=ctx.operation.server_key, kind=ServerKind.SCRATCH).delete()


def _not_removed(operation: Operation) -> None:
    """`sweep` asks again later."""
    again = now() + timedelta(seconds=AGAIN_SECONDS)
    DatabaseServer.objects.filter(pk=operation.server_key, kind=ServerKind.SCRATCH).update(recover_after=again)


register(
    Definition(
        kind=REMOVE, title="Remove a throw-away server", on_give_up=OnGiveUp.ROLL_FORWARD, while_running=None,
        on_failure=_not_removed,
        steps=(
            Step("server", "Remove the server", _remove_server, retry=SERVER_RETRY),
            Step("rows", "Forget it", _remove_rows, retry=SERVER_RETRY, deadline_seconds=60),
        ),
    )
)  # fmt: skip
