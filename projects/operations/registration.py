"""Services around a database: made known when it is provisioned, taken back before it is removed (seed 001).

Calls go out in parallel and hold no transaction; rows are written by the step's own thread. What a service did not confirm is
never `active`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

import structlog
from django.db.models import F

from novastack.common.clock import now
from projects import connectors
from projects.models import (
    OnGiveUp,
    Operation,
    Orphan,
    Project,
    ProjectService,
    ServiceConnector,
    ServiceStatus,
)
from projects.operations.base import Definition, RetryPolicy, Step, StepFailed, register
from projects.operations.context import Context

log = structlog.get_logger(__name__)
SERVICES_RETRY = RetryPolicy(attempts=2, delay_seconds=3)  # design.md, Provisioning
FAREWELL_ATTEMPTS = 3
NOT_CONFIGURED = "No endpoint is configured for it in this region."
MOVED_AWAY = "Left with the region that the project has moved from."
SWITCHED_OFF = "Its endpoint is switched off in this region."
CHECK_PARALLEL = 8

Outcome = connectors.Registration | connectors.ServiceRefused | None


def places(region_id: Any) -> dict[str, connectors.Place | str]:
    """service type → where it answers, or why nowhere."""
    found: dict[str, connectors.Place | str] = {}
    for row in ServiceConnector.objects.filter(region_id=region_id):
        found[row.service_type] = _place(row) if row.enabled else SWITCHED_OFF
    return found


def _place(row: ServiceConnector) -> connectors.Place:
    secret = row.signing_secret.open() if row.signing_secret is not None else ""
    return connectors.Place(row.service_type, row.url, secret, row.timeout_seconds)


def described(ctx: Context) -> dict[str, Any]:
    """What a service is told of a project: names and addresses, no password."""
    project = ctx.project
    return {
        "id": str(project.pk), "name": project.name, "slug": project.slug,
        "organization": str(project.organization_id), "region": project.region.slug, "engine": project.engine,
        "version": project.version, "plan": project.plan.slug,
        "database": {"host": ctx.endpoint.host, "port": ctx.endpoint.port, "name": ctx.database.name},
    }  # fmt: skip


def _wanted(ctx: Context) -> list[ProjectService]:
    """The rows that this operation is about: those it names, else all."""
    rows = ProjectService.objects.filter(project_id=ctx.operation.project_key)
    named = ctx.operation.params.get("services")
    return list(rows.filter(service_type__in=named) if named else rows)


def _all(calls: Mapping[str, Callable[[], Outcome]]) -> dict[str, Outcome]:
    """Each call's result or refusal; at once, none waits for another."""

    def attempt(call: Callable[[], Outcome]) -> Outcome:
        try:
            return call()
        except connectors.ServiceRefused as refused:
            return refused

    if not calls:
        return {}
    with ThreadPoolExecutor(len(calls)) as pool:
        return dict(zip(calls, pool.map(attempt, calls.values()), strict=True))


def register_services(ctx: Context) -> None:
    """Wanted services that are not active are told of the project. Without an endpoint one is `disabled`, with that reason."""
    known, told = places(ctx.project.region_id), described(ctx)
    calls: dict[str, Callable[[], Outcome]] = {}
    rows = {row.service_type: row for row in _wanted(ctx) if row.status != ServiceStatus.ACTIVE}
    for name, row in rows.items():
        place = known.get(name, NOT_CONFIGURED)
        if isinstance(place, str):
            _write(ctx, row, ServiceStatus.DISABLED, place)
        else:
            calls[name] = functools.partial(connectors.register, place, told, row.generation)
    ctx.guard()
    with ctx.fenced():  # before they are told: a worker that dies meanwhile leaves nobody unknown that knows us
        ProjectService.objects.filter(pk__in=[rows[name].pk for name in calls]).update(may_be_known=True)
    refused: list[connectors.ServiceRefused] = []
    for name, outcome in _all(calls).items():
        row = rows[name]
        if isinstance(outcome, connectors.Registration):
            row.service_id, row.endpoint, row.config = outcome.service_id, outcome.endpoint, dict(outcome.config)
            row.registered_at = now()
            _write(ctx, row, ServiceStatus.ACTIVE, "")
        elif outcome is not None:
            refused.append(outcome)
            # It may have registered and failed to say so: the next try carries the same id.
            _write(ctx, row, ServiceStatus.ERROR, outcome.detail)
    tries = ctx.row.data.get("tries", {})
    ctx.record(tries={**tries, **{name: tries.get(name, 0) + 1 for name in calls}})
    _raise(refused)
    ctx.explain(_summary(_wanted(ctx)))


def deregister_services(ctx: Context) -> None:
    """Those that may know the project forget it; then they are `disabled`."""
    refused = _farewell(ctx, _wanted(ctx))
    _raise(refused)


def undo_registration(ctx: Context) -> None:
    """Rollback. The runner tries it several times; what stays behind after that is reported as an orphan."""
    rows = _wanted(ctx)
    refused = _farewell(ctx, rows)
    if refused and int(ctx.row.data.get("_undo_tries", 0)) + 1 >= FAREWELL_ATTEMPTS:
        _leave_behind(ctx, rows)
        return
    _raise(refused)


def farewell(ctx: Context) -> None:
    """Before a project is removed for good. A service that is away for ever does not hold the removal up: after some tries it
    is written down as an orphan."""
    rows = _wanted(ctx)
    refused = _farewell(ctx, rows)
    if refused and ctx.row.attempt < FAREWELL_ATTEMPTS:
        _raise([connectors.ServiceRefused(r.code, r.detail) for r in refused])
    if refused:
        left = _leave_behind(ctx, rows)
        ctx.explain(f"Could not be told: {', '.join(left)}. Reported to the operators.")


def leave_region(ctx: Context, region_id: UUID) -> None:
    """Services of a region from which the project has moved forget it; who does not answer is written down as an orphan."""
    rows = [row for row in _wanted(ctx) if row.may_be_known]
    if _farewell(ctx, rows, region_id):
        _leave_behind(ctx, rows)
    with ctx.fenced():
        ProjectService.objects.filter(pk__in=[row.pk for row in rows]).update(
            status=ServiceStatus.DISABLED, reason=MOVED_AWAY
        )


def _farewell(
    ctx: Context, rows: Iterable[ProjectService], region_id: UUID | None = None
) -> list[connectors.ServiceRefused]:
    known, told = places(region_id or ctx.project.region_id), described(ctx)
    calls: dict[str, Callable[[], Outcome]] = {}
    mine = {row.service_type: row for row in rows if row.may_be_known}
    for name, row in mine.items():
        place = known.get(name, NOT_CONFIGURED)
        if isinstance(place, str):
            calls[name] = functools.partial(_nowhere, place)
        else:
            calls[name] = functools.partial(connectors.deregister, place, told, row.generation, row.service_id)
    ctx.guard()
    refused: list[connectors.ServiceRefused] = []
    for name, outcome in _all(calls).items():
        row = mine[name]
        if isinstance(outcome, connectors.ServiceRefused):
            refused.append(outcome)
            _write(ctx, row, ServiceStatus.ERROR, outcome.detail)
        else:
            row.service_id, row.endpoint, row.config, row.registered_at = "", "", {}, None
            with ctx.fenced():
                ProjectService.objects.filter(pk=row.pk).update(may_be_known=False)
            _write(ctx, row, ServiceStatus.DISABLED, "Deregistered.")
    return refused


def _nowhere(reason: str) -> None:
    """There is nobody to tell any more."""
    raise connectors.ServiceRefused("service_unreachable", reason, retryable=False)


def _leave_behind(ctx: Context, rows: Iterable[ProjectService]) -> list[str]:
    left = []
    for row in rows:
        if row.status == ServiceStatus.ERROR:
            name = f"{row.service_type}:{row.service_id or ctx.project.pk}"
            note = f"The {row.service_type} service may still know project {ctx.project.slug}: {row.reason}"[:500]
            with ctx.fenced():
                Orphan.objects.update_or_create(
                    region_id=ctx.project.region_id, kind="service", name=name[:255],
                    defaults={"note": note, "resolved_at": None},
                )  # fmt: skip
            left.append(row.get_service_type_display())
    return left


def _write(ctx: Context, row: ProjectService, status: str, reason: str) -> None:
    row.status, row.reason = status, reason[:300]
    with ctx.fenced():
        row.save(update_fields=["status", "reason", "service_id", "endpoint", "config", "registered_at", "updated_at"])


def _raise(refused: list[connectors.ServiceRefused]) -> None:
    if refused:
        worst = next((r for r in refused if not r.retryable), refused[0])
        raise StepFailed(worst.code, " ".join(r.detail for r in refused), retryable=worst.retryable)


def _summary(rows: Iterable[ProjectService]) -> str:
    return ", ".join(f"{row.service_type}: {row.status}" for row in rows)


def _once(run: Callable[[Context], None]) -> Callable[[Context], None]:
    """By itself a registration must not hold the project for a quarter of an hour: after its tries it ends, and says why."""

    def step(ctx: Context) -> None:
        try:
            run(ctx)
        except StepFailed as failure:
            last = ctx.row.attempt >= SERVICES_RETRY.attempts
            raise StepFailed(failure.code, failure.detail, retryable=failure.retryable and not last) from None

    return step


def _refused(operation: Operation) -> None:
    """The rows say why already."""
    log.warning("services not registered", project=str(operation.project_uuid), error=operation.error)


def new_generation(project: Project, service_type: str) -> ProjectService:
    """The row of a service that is to be registered anew. In a transaction."""
    row, _ = ProjectService.objects.get_or_create(project=project, service_type=service_type)
    ProjectService.objects.filter(pk=row.pk).update(
        generation=F("generation") + 1, status=ServiceStatus.DISABLED, reason="Waiting to be registered."
    )
    row.refresh_from_db()
    return row


def check_connectors() -> int:
    """Ask each endpoint whether it is there; bounded parallelism, one write each. Returns how many were asked."""
    rows = list(ServiceConnector.objects.filter(enabled=True).select_related("region"))
    asked = [(row, _place(row)) for row in rows]

    def ask(place: connectors.Place) -> str:
        try:
            connectors.check(place)
        except connectors.ServiceRefused as refused:
            return refused.detail
        return ""

    if not asked:
        return 0
    with ThreadPoolExecutor(CHECK_PARALLEL) as pool:
        answers = list(pool.map(ask, [place for _, place in asked]))
    for (row, _), detail in zip(asked, answers, strict=True):
        ServiceConnector.objects.filter(pk=row.pk).update(
            healthy=not detail, health_detail=detail[:300], checked_at=now()
        )
    return len(asked)


register(
    Definition(
        kind="register_services", title="Register services", on_give_up=OnGiveUp.UNDO, while_running=None,
        on_failure=_refused, cancellable=True,
        steps=(Step("services", "Register with the services", _once(register_services), retry=SERVICES_RETRY,
                    deadline_seconds=60),),
    )
)  # fmt: skip
register(
    Definition(
        kind="deregister_services", title="Deregister services", on_give_up=OnGiveUp.UNDO, while_running=None,
        on_failure=_refused,
        steps=(Step("services", "Deregister from the services", _once(deregister_services), retry=SERVICES_RETRY,
                    deadline_seconds=60),),
    )
)  # fmt: skip
