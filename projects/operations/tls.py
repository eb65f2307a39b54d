"""Bringing a running server to the certificate and the rules of its rows: renewal, and refusing plain connections."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.db import transaction

from accounts.services import audit
from novastack.common import pki
from novastack.common.clock import now
from novastack.common.errors import Conflict
from novastack.common.models import Install
from projects import domain, registry
from projects.models import (
    DatabaseServer,
    DesiredStatus,
    ObservedState,
    OnGiveUp,
    Operation,
    Project,
    ServerDesired,
    ServerKind,
)
from projects.operations import certificates, lifecycle, pools, steps, wiring
from projects.operations.base import DATABASE_RETRY, SERVER_RETRY, Definition, Step, StepFailed, register
from projects.operations.context import Context
from projects.operations.queue import operation_create, server_operation_create

RESTART_BEFORE = timedelta(days=7)  # for engines without TLS_RELOAD: whoever restarts before that has it renewed
RENEW_BATCH = 20  # per look: a thousand servers made on one day don't reload in one minute a year later
PROVE_SECONDS = 10.0


def issue(ctx: Context) -> None:
    certificates.prepare(ctx)
    server = ctx.server
    ctx.explain(f"Valid until {server.tls_not_after:%Y-%m-%d}" if server.tls_not_after else server.tls_reason)


def install(ctx: Context) -> None:
    """Put the files and have the server take them; no session ends. One that is down gets them with its next start."""
    server = ctx.server
    steps.writes_allowed(ctx)
    if not _speaks_tls(ctx):
        ctx.explain("The server does not run with TLS now; this holds from its next start on.")
        return
    spec = ctx.engine.server_spec(wiring.server_request(server, required=ctx.tls_required))
    ctx.guard()
    ctx.runtime.put_files(server.handle, spec.files)
    ctx.guard()
    with wiring.admin_session(ctx.engine, server) as admin:
        admin.reload_tls(required=ctx.tls_required)
    ctx.explain("Plain connections are refused" if ctx.tls_required else "Plain connections are possible")


def prove(ctx: Context) -> None:
    """The server shows the certificate of its row, and does with plain connections what is wanted."""
    server, wanted = ctx.server, not ctx.tls_required
    if not _speaks_tls(ctx):
        return
    if domain.Capability.TLS_RELOAD not in ctx.engine.capabilities:
        ctx.explain("The server takes it with its next start.")
        return
    shown, later = pki.der_of(server.tls_certificate), wanted and ctx.engine.tls_relaxes_at_start
    until = min(PROVE_SECONDS, ctx.remaining_seconds())
    while True:
        same = ctx.engine.peer_certificate(server.control_endpoint) == shown
        if same and (later or _accepts_plain(ctx) is wanted):
            break
        until -= 0.1
        if until <= 0:
            raise StepFailed("tls_not_applied", "The server has not taken its new certificate or rules yet.")
        ctx.sleep(0.1)
    ctx.explain(f"Shown by the server, valid until {server.tls_not_after:%Y-%m-%d}")
    ctx.say("The server shows its certificate; " + (_words(wanted, later)))


def _words(plain: bool, later: bool) -> str:
    if later:
        return "plain connections work from its next start on."
    return "plain connections work too." if plain else "nothing plain gets in."


def _accepts_plain(ctx: Context) -> bool:
    ctx.guard()  # some products need an account for it, for a moment
    return ctx.engine.accepts_plain(ctx.server.control_endpoint, wiring.admin_credentials(ctx.engine, ctx.server))


def _speaks_tls(ctx: Context) -> bool:
    server = ctx.server
    if not server.tls_enabled or not server.tls_certificate or server.initialised_at is None:
        return False
    return ctx.adopt().state == domain.ServerState.RUNNING


_STEPS = (
    Step("certificate", "Check the certificate", issue, retry=SERVER_RETRY, deadline_seconds=60),
    Step("files", "Give it to the server", install, retry=DATABASE_RETRY, deadline_seconds=60),
    Step("prove", "See that it is shown", prove, retry=DATABASE_RETRY, deadline_seconds=60, back_to="files"),
)
_LIMITS = Step("limits", "Apply the limits", lifecycle.resize, retry=SERVER_RETRY, deadline_seconds=60)


def _kind(kind: str, title: str, *steps: Step, **extra: Any) -> None:
    register(
        Definition(
            kind=kind,
            title=title,
            steps=steps,
            on_give_up=OnGiveUp.ROLL_FORWARD,
            while_running=None,
            yields=True,
            **extra,
        )
    )


_kind("renew_certificate", "Renew certificate", *_STEPS)
_kind("change_tls", "Change TLS", *_STEPS)
_kind("reconfigure", "Change limits and TLS", _LIMITS, *_STEPS, on_failure=lifecycle.not_resized)


# --- in time ----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Renewals:
    renewing: int
    restarting: int


def renew_due() -> Renewals:
    """Record a renewal for each running server whose certificate ends within 30 days and that nobody works on. One that
    has ended already (nobody was there to renew it) needs a restart: our own sessions don't trust it any more either.
    A server that is down gets a new one when it starts."""
    if Install.load().read_only:
        return Renewals(0, 0)
    due = DatabaseServer.objects.filter(
        tls_enabled=True, tls_not_after__lt=now() + certificates.RENEW_BEFORE, reconcile=True,
        kind__in=[ServerKind.DEDICATED, ServerKind.POOL],
        desired_state=ServerDesired.RUNNING, observed_state=ObservedState.RUNNING, initialised_at__isnull=False,
        region__reachable=True, region__reconcile=True,
    ).exclude(
        engine__in=_by_restart(), tls_not_after__gt=now() + RESTART_BEFORE
    ).order_by("tls_not_after")  # fmt: skip
    made = {"renew_certificate": 0, "restart": 0}
    for server in due.only("pk", "kind", "project_uuid", "tls_not_after", "engine")[:RENEW_BATCH]:
        ended = server.tls_not_after is not None and server.tls_not_after < now()
        kind = "restart" if ended or server.engine in _by_restart() else "renew_certificate"
        made[kind] += _record_pool(server, kind) if server.kind == ServerKind.POOL else _record(server, kind)
    return Renewals(made["renew_certificate"], made["restart"])


def _by_restart() -> list[str]:
    """Engines whose servers take a new certificate only when they start."""
    engines = registry.engines().values()
    return [engine.name for engine in engines if domain.Capability.TLS_RELOAD not in engine.capabilities]


def _record_pool(server: DatabaseServer, kind: str) -> bool:
    """All its projects take the new certificate at once; a restart ends their sessions, for a moment."""
    with transaction.atomic():
        reason = f"The certificate ends on {server.tls_not_after:%Y-%m-%d}."
        if kind == "restart":
            made = pools.recover_begin(server, why=reason, kind=pools.RESTART) is not None
        else:
            made = server_operation_create(server=server, kind=kind, created_by_label="certificates") is not None
        if made:
            audit.record(None, f"pool.{kind}", target=str(server), data={"reason": reason})
        return made


def _record(server: DatabaseServer, kind: str) -> bool:
    if (
        server.project_uuid is None
        or Operation.objects.live().holding().filter(project_uuid=server.project_uuid).exists()
    ):
        return False
    try:
        with transaction.atomic():
            project = (
                Project.objects.select_for_update(of=("self",), no_key=True).filter(pk=server.project_uuid).first()
            )
            if project is None or project.desired_status != DesiredStatus.RUNNING or project.purging_at is not None:
                return False
            operation_create(project=project, kind=kind, created_by_label="certificates")
            audit.record(
                None, f"project.{kind}", organization_id=project.organization_id, project_id=project.pk,
                project_name=project.name, data={"reason": f"The certificate ends on {server.tls_not_after:%Y-%m-%d}."},
            )  # fmt: skip
    except Conflict:
        return False
    return True
