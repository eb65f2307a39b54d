"""Provisioning: from rows to a database that its owner can log in to."""

from __future__ import annotations

from collections.abc import Callable, Collection

from django.db import DataError, IntegrityError, ProgrammingError
from django.db.models import F

from novastack.common.clock import now
from novastack.common.secrets import Sealed, random_password
from projects import domain
from projects.models import (
    ApiKey,
    Database,
    DatabaseServer,
    Health,
    OnGiveUp,
    Operation,
    OperationStep,
    Project,
    ProjectService,
    ProjectStatus,
    RoleKind,
    StepState,
)
from projects.operations import claiming, registration, steps, tls, wiring
from projects.operations.base import (
    DATABASE_RETRY,
    KEYS_RETRY,
    SCHEMA_RETRY,
    SERVER_RETRY,
    Definition,
    RetryPolicy,
    Step,
    StepFailed,
    register,
)
from projects.operations.context import Context

SCHEMA = "schema"  # the step that makes the tables which a database begins with


def wanted_steps(project: Project) -> set[str]:
    """Which of the optional steps a project's provisioning has: of what was asked for with it. In a transaction."""
    return steps_for(
        schema=project.bootstrap_schema,
        services=ProjectService.objects.filter(project=project).exists(),
        api_keys=ApiKey.objects.filter(project=project, activated_at=None, revoked_at=None).exists(),
    ) | {name for more in _also_wanted for name in more(project)}


def steps_for(*, schema: bool, services: bool, api_keys: bool) -> set[str]:
    """The optional steps, of what a project is to have."""
    asked = {SCHEMA: schema, "services": services, "api_keys": api_keys}
    return {name for name, yes in asked.items() if yes}


def also_wanted(more: Callable[[Project], Collection[str]]) -> None:
    """Another app says, from its `AppConfig.ready()`, which of its own optional steps a project's provisioning has."""
    _also_wanted.append(more)


_also_wanted: list[Callable[[Project], Collection[str]]] = []


def verify(ctx: Context) -> None:
    """The request still stands."""
    if ctx.project.purging_at is not None:
        raise StepFailed("project_gone", "The project is being removed.", retryable=False)
    ctx.explain(f"{ctx.engine.title} {ctx.project.version} in {ctx.project.region.name}")


def get_server(ctx: Context) -> None:
    """One that is ready, if the operator keeps any and it fits; else a new one."""
    if not claiming.take(ctx):
        steps.create_server(ctx)


def secure(ctx: Context) -> None:
    """Replace the one-time bootstrap password right after the first readiness, close what is open by default, and
    remember what names this data (rules 9, 17, 20)."""
    server = ctx.server
    if server.initialised_at is not None and server.admin_pending_secret is None and claiming.claimed(ctx):
        if ctx.tls_required and not ctx.engine.tls_only:
            tls.install(ctx)
            tls.prove(ctx)
        ctx.explain("It was closed when it was made")
        return
    if server.admin_pending_secret is None and server.initialised_at is None:
        server.admin_pending_secret = Sealed.of(random_password())
        ctx.save_server("admin_pending_secret")
    with wiring.admin_session(ctx.engine, server) as admin:
        ctx.guard()
        if server.admin_pending_secret is not None:
            admin.set_password(server.admin_username, server.admin_pending_secret.open())
        admin.harden()
        server.system_identifier = admin.system_identifier()
    if server.admin_pending_secret is not None:
        server.admin_secret = Sealed.of(server.admin_pending_secret.open())
        server.admin_pending_secret = None
    server.initialised_at = server.initialised_at or now()
    ctx.save_server("admin_secret", "admin_pending_secret", "system_identifier", "initialised_at")
    ctx.explain("One-time password replaced; everybody else shut out")


def create_database(ctx: Context) -> None:
    login, control = ctx.role(RoleKind.LOGIN), ctx.role(RoleKind.CONTROL)
    if login.secret is None or control.secret is None:
        raise StepFailed("internal_error", "The roles have no passwords.", retryable=False)
    passwords = {"login_password": login.secret.open(), "control_password": control.secret.open()}
    ctx.guard()
    with steps.refused_as("database_creation_failed"), wiring.admin_session(ctx.engine, ctx.server) as admin:
        tables = admin.place_tenant(
            ctx.names, **passwords, blank=ctx.database.made_of, tables=ctx.project.bootstrap_schema
        )
    with ctx.fenced(awaited=False):  # the end's commit is
        if tables is not None:
            _has_schema(ctx, tables)
        Database.objects.filter(pk=ctx.database.pk, created_in_engine_at=None).update(
            created_in_engine_at=now(),
            made_of="",  # the blank, if it was one, is nobody's any more
        )
    ctx.explain(f"{ctx.names.database}, closed to everybody else before any credential could reach it")
    ctx.say(f"Database {ctx.names.database}, user {ctx.names.login}, {ctx.names.connection_limit} connections.")


def _has_schema(ctx: Context, done: domain.Bootstrapped) -> None:
    """The tables came with the database. In the transaction that puts that down."""
    OperationStep.objects.filter(operation=ctx.operation, name=SCHEMA).update(
        state=StepState.SKIPPED, detail=f"{', '.join(done.created)} made with the database ({done.version})",
        data=_told(done),
    )  # fmt: skip
    ctx.skipped.add(SCHEMA)


def _told(done: domain.Bootstrapped) -> dict[str, object]:
    return {"version": done.version, "created": list(done.created), "kept": list(done.kept)}


def create_schema(ctx: Context) -> None:
    """The tables that a database begins with, made as the tenant: they are the tenant's, and it may drop them."""
    login = ctx.role(RoleKind.LOGIN)
    if login.secret is None:
        raise StepFailed("internal_error", "The login has no password.", retryable=False)
    ctx.guard()
    with steps.refused_as("schema_creation_failed"):
        done = ctx.engine.bootstrap(ctx.server.control_endpoint, ctx.names, login.secret.open())
    ctx.record(**_told(done))
    told = f"{', '.join(done.created)} made" if done.created else "All are there already"
    if done.kept:
        left = f"{', '.join(done.kept)} left alone: something of yours has that name."
        ctx.say(left, level="warning")
        told = f"{told}; {left}"
    ctx.explain(f"{told} ({done.version})")


def apply_limits(ctx: Context) -> None:
    """Initialising was allowed to burst; from here on the plan holds."""
    server = ctx.server
    limits = wiring.limits_of(server)
    if ctx.operation.project_uuid is not None and claiming.claimed(ctx):
        wanted = ctx.project.memory_bytes, ctx.project.cpus
        if wanted == (server.memory_bytes, server.cpus):
            ctx.explain(f"{limits.memory_bytes // 2**20} MiB, {limits.cpus:g} CPU")
            return
        server.memory_bytes, server.cpus = wanted
        ctx.save_server("memory_bytes", "cpus")
        limits = wiring.limits_of(server)
    ctx.adopt()
    ctx.guard()
    ctx.runtime.update(ctx.server.handle, limits)
    ctx.explain(f"{limits.memory_bytes // 2**20} MiB, {limits.cpus:g} CPU")


def activate_keys(ctx: Context) -> None:
    """Keys were made, and shown, with the project's row: from now on they work (rule 45)."""
    try:
        with ctx.fenced():
            number = ApiKey.objects.filter(project=ctx.project, activated_at=None, revoked_at=None).update(
                activated_at=now()
            )
    except (IntegrityError, DataError, ProgrammingError) as error:  # not: a database that is away
        raise StepFailed(
            "api_key_generation_failed", f"The keys could not be stored ({type(error).__name__})."
        ) from error
    ctx.explain(f"{number} key{'' if number == 1 else 's'}")


def succeeded(operation: Operation) -> None:
    ready(operation)
    DatabaseServer.objects.filter(project_uuid=operation.project_uuid).update(recoveries=0, recover_after=None)


def ready(operation: Operation) -> None:
    """A login has proven it. In the transaction that ends the operation."""
    Project.objects.filter(pk=operation.project_key).update(
        ready_at=now(), failure=None, health=Health.HEALTHY, health_detail="", health_checked_at=now(),
        generation=F("generation") + 1,
    )  # fmt: skip


def failed(operation: Operation) -> None:
    Project.objects.filter(pk=operation.project_key).update(failure=operation.error)


PROVISION = Definition(
    kind="provision",
    title="Provision",
    on_give_up=OnGiveUp.UNDO,
    while_running=ProjectStatus.PROVISIONING,
    cancellable=True,
    on_success=succeeded,
    on_failure=failed,
    steps=(
        Step("verify", "Verify the request", verify, retry=RetryPolicy(attempts=1)),
        # A pull may take minutes; an image that can't be had is asked for again by the whole operation.
        Step("image", "Find the server's image", steps.find_image, retry=RetryPolicy(attempts=1), deadline_seconds=900),
        Step(claiming.STEP, "Start the server", get_server, steps.discard_server, SERVER_RETRY, 120),
        Step("ready", "Wait for the first login", steps.await_login, None, RetryPolicy(attempts=1), 180, "server"),
        Step("secure", "Close the server", secure, None, DATABASE_RETRY, 60, "server"),
        Step("database", "Create database and user", create_database, None, DATABASE_RETRY, 60, "server"),
        Step(SCHEMA, "Create the bootstrap tables", create_schema, None, SCHEMA_RETRY, 60, "server", optional=True),
        Step("limits", "Apply the plan's limits", apply_limits, None, SERVER_RETRY, 60, "server"),
        Step(
            "services",
            "Register with the services",
            registration.register_services,
            registration.undo_registration,
            registration.SERVICES_RETRY,
            60,
            optional=True,
        ),
        Step("api_keys", "Activate the API keys", activate_keys, retry=KEYS_RETRY, deadline_seconds=30, optional=True),
        Step("login", "Verify by a real login", steps.verify_tenant, None, DATABASE_RETRY, 60, "server"),
    ),
)
register(PROVISION)
