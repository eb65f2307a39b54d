"""A person asks for a database."""

from __future__ import annotations

from collections.abc import Callable, Set
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Any
from uuid import UUID

from django.db import IntegrityError, transaction
from django.db.models import Q, Value
from django.db.models.functions import Lower

from accounts.models import Organization
from accounts.permissions import Capability, Principal, require
from accounts.services import audit
from novastack.common.errors import Invalid, NameTaken, Problem, QuotaExceeded
from novastack.common.ids import slug_from
from novastack.common.secrets import Sealed, random_password
from projects import domain, registry
from projects.engines.base import Engine
from projects.models import (
    ApiKey,
    Database,
    DatabaseRole,
    DatabaseServer,
    Endpoint,
    Exposure,
    Placement,
    Plan,
    Project,
    Region,
    RoleKind,
    ServiceType,
)
from projects.operations import catalogue, locks, provision, steps
from projects.operations.base import PLATFORM_CONNECTIONS, StepFailed
from projects.operations.catalogue import Versions
from projects.operations.queue import operation_create
from projects.operations.registration import new_generation
from projects.services import keys, quotas, validation

MIB = 1 << 20
MIN_CPUS = Decimal("0.1")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectRequest:
    """What `POST projects/` and the page's form ask for; None or empty: the default."""

    name: Any
    engine: str = registry.DEFAULT_ENGINE
    version: str | None = None
    description: str = ""
    region: str | None = None
    plan: str | None = None
    placement: str | None = None  # where projects of the plan live
    database_name: str | None = None
    username: str | None = None
    limits: dict[str, Any] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    exposure: str = Exposure.LOCAL
    tls_required: bool | None = None  # none: as the engine can; `False` is refused where there is only TLS
    deletion_protection: bool = False
    bootstrap_schema: bool = True  # begin with schema_migrations, settings and audit_logs
    services: frozenset[str] = frozenset()  # types to register with
    api_keys: int = 0  # how many to make at once
    api_key_prefix: str | None = None
    backups: bool = False  # daily ones, from its first day on


BackupsOn = Callable[[Principal, Project], None]
BackupsLack = Callable[[Organization, str], str]
_backups_on: list[BackupsOn] = []
_backups_lack: list[BackupsLack] = []


def backups_by(begin: BackupsOn, lack: BackupsLack) -> None:
    """Another app makes a new project's schedule, in the transaction that makes the project, and says what it lacks for
    that; from its `AppConfig.ready()`."""
    _backups_on[:], _backups_lack[:] = [begin], [lack]


def backups_lack(organization: Organization, engine_name: str) -> str:
    """Why a new project of this engine can't have backups from its first day on, for people; empty: it can."""
    return next((reason for lack in _backups_lack if (reason := lack(organization, engine_name))), "")


class PortsUsedUp(Problem):
    status, code, title = 409, "no_free_port", "All ports of the region are in use"


class NoRoom(Problem):
    status, code, title = 409, "capacity_exhausted", "The region's disk is almost full; nothing new is made there"


def slug_preview(organization: Organization, name: str) -> str:
    """The slug that a project of this name would get now."""
    base = slug_from(name, fallback="project")
    taken = set(
        Project.objects.filter(Q(slug=base) | Q(slug__startswith=f"{base}-"), organization=organization)
        .values_list("slug", flat=True)
    )  # fmt: skip
    if base not in taken:
        return base
    return next(f"{base}-{n}" for n in range(2, len(taken) + 3) if f"{base}-{n}" not in taken)


def name_is_free(organization: Organization, name: str, *, besides: UUID | None = None) -> bool:
    """Names are unique among the organization's live projects, whatever their case."""
    # Both sides lowered by the database: its rules for letters beyond ASCII are the unique index's, Python's are not.
    rows = Project.objects.live().annotate(low=Lower("name")).filter(organization=organization, low=Lower(Value(name)))
    return not rows.exclude(pk=besides).exists()


def clean_limits(limits: dict[str, Any], plan: Plan, engine: Engine) -> tuple[int, Decimal]:
    """memory_bytes and cpus within the plan, enough for the engine; the plan's own where not given."""
    unknown = set(limits) - {"memory_bytes", "cpus"}
    if unknown:
        raise Invalid.field(f"limits.{min(unknown)}", "invalid", "Limits are `memory_bytes` and `cpus`.")
    memory, cpus = limits.get("memory_bytes", plan.memory_bytes), limits.get("cpus", plan.cpus)
    if isinstance(memory, bool) or not isinstance(memory, int):
        raise Invalid.field("limits.memory_bytes", "invalid", "Give a whole number of bytes.")
    least = engine.minimum_memory_bytes
    if plan.memory_bytes < least:
        raise Invalid.field("plan", "too_small", f"{engine.title} needs at least {least // 2**20} MiB of memory.")
    if not least <= memory <= plan.memory_bytes:
        bounds = (
            f"Between {least // MIB} MiB ({least} bytes), which {engine.title} needs, and the {plan.memory_bytes // MIB} MiB"
            f" ({plan.memory_bytes} bytes) of the plan {plan.name}."
        )
        raise Invalid.field("limits.memory_bytes", "out_of_range", bounds)
    try:
        cores = Decimal(str(cpus)).quantize(Decimal("0.01"))
    except (InvalidOperation, ValueError):
        raise Invalid.field("limits.cpus", "invalid", "Give a number of cores, such as 0.5.") from None
    if not MIN_CPUS <= cores <= plan.cpus:
        raise Invalid.field(
            "limits.cpus", "out_of_range", f"Between {MIN_CPUS} and the {plan.cpus} cores of the plan {plan.name}."
        )
    return memory, cores


def _engine_and_version(request: ProjectRequest, region: Region) -> tuple[Engine, str]:
    """The version asked for, or the engine's default one, or the newest that the region can run."""
    known = registry.engines()
    if request.engine not in known:
        raise Invalid.field("engine", "unknown", f"Use one of: {', '.join(sorted(known))}.")
    engine = registry.engine(request.engine)
    versions = catalogue.versions_of(engine)
    version = request.version or version_for(versions, region)
    if version not in {v.version for v in versions.offered}:
        raise Invalid.field("version", *_not_offered(versions, version))
    if reason := region.reason_against(engine.name, version):
        raise Invalid.field(
            "version" if request.version else "engine", "not_available", f"{region.name} can't run it: {reason}."
        )
    return engine, version


def _not_offered(versions: Versions, version: str) -> tuple[str, str]:
    """Why a new project can't have it: code and sentence."""
    names = ", ".join(v.version for v in versions.offered)
    use = f"Use one of: {names}." if names else f"No version of {versions.engine.title} is offered."
    known = versions.find(version)
    if known is None:
        return "unknown", use
    if known.end_of_life is not None and known.offer is domain.Offer.UNTIL_END:
        return "ended", f"Its vendor published the last fixes on {known.end_of_life}. {use}"
    return "not_offered", f"It is not offered here. {use}"


def version_for(versions: Versions, region: Region | None) -> str:
    """The engine's default version; where a region can't run that, the first one that it can. Empty if none is offered."""
    names = [versions.default, *(v.version for v in versions.offered if not v.deprecated)]
    engine = versions.engine.name
    return next((n for n in names if region is None or not region.reason_against(engine, n)), names[0])


def _region_and_plan(request: ProjectRequest) -> tuple[Region, Plan]:
    regions = Region.objects.filter(enabled=True, gone_at=None).exclude(runtime="").order_by("created_at")
    possible = list(regions.filter(slug=request.region) if request.region else regions)
    if not possible:
        raise Invalid.field("region", "unknown", "There is no such available region; see `regions/`.")
    region = next((region for region in possible if region.has_room), possible[0])
    plans = Plan.objects.filter(enabled=True).order_by("-is_default", "position")
    plan = plans.filter(slug=request.plan).first() if request.plan else plans.first()
    if plan is None:
        raise Invalid.field("plan", "unknown", "There is no such plan; see `plans/`.")
    if not region.has_room:  # rule 16
        raise NoRoom(
            f"The disk of {region.name} is {region.disk_used_percent:.0f} % full: nothing new is made there until an operator"
            " has freed some."
        )
    return region, plan


@transaction.atomic
def project_create(
    *,
    principal: Principal,
    organization: Organization,
    request: ProjectRequest,
    made_keys: list[tuple[ApiKey, str]] | None = None,
    before: Callable[[Project], None] = lambda _project: None,
    more_steps: Set[str] = frozenset(),
) -> Project:
    """Rows for a project, its address, server, database and roles, and the operation that makes them real. `made_keys`
    gets the API keys that were asked for with their clear values, this once. `before` writes, in the same transaction, what
    the provisioning is to find. `more_steps`: of other apps' optional ones.

    Raises `Invalid` with the field, `NameTaken`, `QuotaExceeded`, `NoRoom`, `PermissionDenied`, `NotFound`.
    """
    require(principal, organization, Capability.PROJECT_CREATE)
    name = validation.clean_name(request.name)
    region, plan = _region_and_plan(request)
    engine, version = _engine_and_version(request, region)
    placement = _placement(request, plan, engine)
    pooled = placement == Placement.POOL
    if request.exposure not in Exposure.values:
        raise Invalid.field("exposure", "invalid", "Use `local` or `public`.")
    if request.exposure == Exposure.PUBLIC and not region.public_address:
        raise Invalid.field("exposure", "not_available", f"{region.name} publishes on its own host only.")
    if pooled:
        _refuse_own_on_pool(request)
    tls_required = _tls_required(request, engine)
    # On a pool nothing of the server is its own; the plan's numbers are what a server of its own would get.
    memory, cpus = (plan.memory_bytes, plan.cpus) if pooled else clean_limits(request.limits, plan, engine)
    description, labels = validation.clean_description(request.description), validation.clean_labels(request.labels)

    # NO KEY: rows that refer to it may be written meanwhile. PostgreSQL checks the reference again (a lock on the
    # organization) when a project's row is updated twice in one transaction: with a full lock that is a deadlock.
    organization = Organization.objects.select_for_update(no_key=True).get(pk=organization.pk)
    slug = slug_preview(organization, name)
    if not pooled:
        database_name = _identifier(engine, request.database_name, slug, field="database_name")
        username = _identifier(engine, request.username, slug, field="username", suffix="_user")
    if not name_is_free(organization, name):
        raise NameTaken(f"A project named “{name}” exists; choose another name.")
    if plan.max_databases < 1:
        raise QuotaExceeded(f"Nothing new is made on the plan {plan.name}; choose another one.")
    quotas.check(organization, projects=1, memory_bytes=0 if pooled else memory, storage_bytes=plan.storage_bytes)
    project = Project.objects.create(
        organization=organization, name=name, slug=slug, description=description, labels=labels,
        engine=engine.name, version=version, region=region, plan=plan, placement=placement,
        memory_bytes=memory, cpus=cpus, storage_bytes=plan.storage_bytes, exposure=request.exposure,
        tls_required=tls_required, deletion_protection=request.deletion_protection, created_by=principal.user,
        bootstrap_schema=request.bootstrap_schema,
    )  # fmt: skip
    if pooled:
        _place_to_come(project)
    else:
        _server_rows(project, engine, database_name=database_name, username=username)
    _services(project, request.services)
    made = keys.keys_for_new_project(
        principal=principal, project=project, count=request.api_keys, prefix=request.api_key_prefix
    )
    before(project)
    operation_create(
        project=project, kind="provision", created_by=principal.user, created_by_label=principal.label,
        optional_steps=provision.steps_for(
            schema=request.bootstrap_schema, services=bool(request.services), api_keys=bool(made)
        ) | more_steps,
        new=True,
    )  # fmt: skip
    if request.backups:
        for begin in _backups_on:
            begin(principal, project)
    if made_keys is not None:
        made_keys += made
    audit.record(
        principal, "project.created", organization=organization, project_id=project.pk, project_name=project.name,
        target=project.slug, data={"engine": engine.name, "version": version, "region": region.slug, "plan": plan.slug,
              "placement": placement},
    )  # fmt: skip
    return project


def _placement(request: ProjectRequest, plan: Plan, engine: Engine) -> str:
    """Where it will live: as asked for, else as the plan says."""
    placement = request.placement or plan.placement
    if placement == Placement.EXTERNAL:
        raise Invalid.field("placement", "not_available", "Databases outside of NovaStack can't be projects yet.")
    if placement not in {Placement.DEDICATED, Placement.POOL}:
        raise Invalid.field("placement", "invalid", "Use `dedicated` or `pool`.")
    if placement == Placement.POOL and domain.Capability.POOL not in engine.capabilities:
        able = ", ".join(e.title for e in registry.engines().values() if domain.Capability.POOL in e.capabilities)
        where = (
            "Choose `dedicated`" if request.placement else f"The plan {plan.name} places on pools: ask for `dedicated`"
        )
        raise Invalid.field(
            "placement", "not_available", f"{engine.title} can't share a server; pools are for {able}. {where}."
        )
    return placement


def _refuse_own_on_pool(request: ProjectRequest) -> None:
    """What only a server of its own can give. Refused with the field, not forgotten."""
    opaque = "On a pool names are made from the project's id, since neighbours may see them. Leave it out."
    for field_name in ("database_name", "username"):
        if getattr(request, field_name) not in (None, ""):
            raise Invalid.field(field_name, "not_available", opaque)
    if request.limits:
        first = min(request.limits)
        raise Invalid.field(
            f"limits.{first}", "not_available", "Memory and CPU are the pool's, for all projects on it. Leave them out."
        )
    if request.exposure == Exposure.PUBLIC:
        raise Invalid.field(
            "exposure", "not_available", "Pools are published on their own host only; choose placement `dedicated`."
        )
    if request.tls_required:
        raise Invalid.field(
            "tls_required", "not_available",
            "Whether plain connections are refused is the pool's, for all projects on it; TLS itself is offered. Leave it"
            " out, or choose placement `dedicated`.",
        )  # fmt: skip


def _place_to_come(project: Project) -> None:
    """Its address, once it has one: that of its pool. Database and roles are made with the place."""
    region = project.region
    Endpoint.objects.create(
        project=project, project_uuid=project.pk, region=region, host=region.client_host, port=0, shared=True,
        control_host=region.control_host, control_port=0, bind_address=region.bind_address,
    )  # fmt: skip


def _identifier(engine: Engine, value: str | None, slug: str, *, field: str, suffix: str = "") -> str:
    if value in (None, ""):
        return validation.suggest_identifier(engine, slug, suffix=suffix)
    return validation.clean_identifier(engine, value, field=field)


def _services(project: Project, wanted: frozenset[str]) -> None:
    unknown = wanted - set(ServiceType.values)
    if unknown:
        raise Invalid.field(f"services.{min(unknown)}", "unknown", f"Services: {', '.join(ServiceType.values)}.")
    if len(wanted) > project.plan.max_services:
        raise Invalid.field(
            "services", "quota_exceeded", f"The plan {project.plan.name} allows {project.plan.max_services} services."
        )
    for name in sorted(wanted):
        new_generation(project, name)


def _tls_required(request: ProjectRequest, engine: Engine) -> bool:
    if request.tls_required and domain.Capability.TLS not in engine.capabilities:
        raise Invalid.field("tls_required", "not_available", f"NovaStack does not set up TLS for {engine.title} yet.")
    if engine.tls_only and request.tls_required is False:
        raise Invalid.field(
            "tls_required", "not_available", f"{engine.title} speaks TLS or plain, never both: here it speaks TLS."
        )
    return bool(request.tls_required) or engine.tls_only


def _server_rows(project: Project, engine: Engine, *, database_name: str, username: str) -> None:
    region, plan = project.region, project.plan
    public = project.exposure == Exposure.PUBLIC
    bind = region.public_address if public else region.bind_address
    locks.lock_subject(locks.subject_of("ports", region.pk))
    try:
        port = steps.free_port(region)
    except StepFailed as error:
        raise PortsUsedUp(error.detail) from None
    Endpoint.objects.create(
        project=project, project_uuid=project.pk, region=region, host=region.client_host, port=port,
        control_host=region.control_host, control_port=port, bind_address=bind,
    )  # fmt: skip
    server = DatabaseServer.objects.create(
        region=region, engine=engine.name, version=project.version, project_uuid=project.pk, bind_address=bind,
        port=port, control_host=region.control_host, memory_bytes=project.memory_bytes, cpus=project.cpus,
        max_connections=plan.connection_limit + PLATFORM_CONNECTIONS, admin_username=engine.bootstrap_username,
        admin_secret=Sealed.of(random_password()), runtime=region.runtime,
    )  # fmt: skip
    database = Database.objects.create(project=project, server=server, name=database_name)
    stem = f"nvs_{project.pk.hex[-12:]}"
    _role(database, RoleKind.OWNER, f"{stem}_owner")
    _role(database, RoleKind.GROUP, f"{stem}_group")
    _role(database, RoleKind.CONTROL, f"{stem}_control", secret=True, limit=3)
    try:
        _role(database, RoleKind.LOGIN, username, secret=True, limit=plan.connection_limit)
    except IntegrityError:
        raise Invalid.field("username", "reserved", "This name is reserved; choose another one.") from None


def _role(database: Database, kind: RoleKind, name: str, *, secret: bool = False, limit: int = 20) -> DatabaseRole:
    return DatabaseRole.objects.create(
        database=database, server=database.server, kind=kind, name=name, connection_limit=limit,
        secret=Sealed.of(random_password()) if secret else None,
    )  # fmt: skip
