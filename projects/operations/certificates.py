"""Certificates: of this install's CA and of each server.

The row holds what a server shows from its next start, or reload, on. Clients trust the CA and no single certificate, so
a new one may be written down before the server has it: there is no state between in which somebody can't connect.
"""

from __future__ import annotations

import ipaddress
from datetime import datetime, timedelta

from django.db import transaction

from novastack.common import pki
from novastack.common.clock import now
from novastack.common.models import Install
from novastack.common.secrets import Sealed
from projects import domain, registry
from projects.models import CertificateAuthority, DatabaseServer, Endpoint, ObservedState
from projects.operations import locks, wiring
from projects.operations.base import StepFailed
from projects.operations.context import Context

RENEW_BEFORE = timedelta(days=30)
AUTHORITY_BEFORE = timedelta(days=pki.SERVER_DAYS + 30)  # so that no server's certificate is cut short by its CA's end
EVERYWHERE = ("localhost", "127.0.0.1", "::1")


def authority() -> CertificateAuthority:
    """The CA that signs; made when it is first wanted."""
    found = CertificateAuthority.objects.filter(active=True).first()
    if found is not None and found.not_after > now() + AUTHORITY_BEFORE:
        return found
    with transaction.atomic():
        locks.lock_subject(locks.subject_of("authority", "install"))
        found = CertificateAuthority.objects.filter(active=True).first()
        if found is not None and found.not_after > now() + AUTHORITY_BEFORE:
            return found
        CertificateAuthority.objects.filter(active=True).update(active=False)
        made = pki.make_authority(f"NovaStack CA {str(Install.load().install_id)[:8]}", at=now())
        return CertificateAuthority.objects.create(
            certificate=made.certificate, key=Sealed.of(made.key), not_after=made.not_after
        )


def trusted() -> str:
    """What a client needs to check any server of this install: every CA that has not ended, the newest first. Empty
    before the first server that speaks TLS."""
    rows = CertificateAuthority.objects.filter(not_after__gt=now()).order_by("-active", "-created_at")
    return "".join(rows.values_list("certificate", flat=True))


def names_of(server: DatabaseServer, endpoint: Endpoint) -> list[str]:
    """What the certificate is for: the server's own name first (our sessions ask for that one, so that nobody else's
    server at the same address passes), then every name and address that clients use."""
    wanted = [endpoint.host, endpoint.tls_name, endpoint.control_host, server.control_host, server.bind_address]
    return list(dict.fromkeys([server.tls_name, *filter(_is_a_name, wanted), *EVERYWHERE]))


def _is_a_name(text: str) -> bool:
    try:
        return not ipaddress.ip_address(text).is_unspecified
    except ValueError:
        return bool(text)


def prepare(ctx: Context) -> None:
    """Before a start, or a reload: the row has a certificate that lasts and fits, or says why there is none."""
    server = ctx.server
    reason = _reason(ctx)
    if reason:
        if ctx.tls_required:
            raise StepFailed("tls_not_available", f"TLS is required, but {reason}.", retryable=False)
        if server.tls_certificate or server.tls_reason != reason:
            server.tls_certificate, server.tls_key, server.tls_reason = "", None, reason[:200]
            server.tls_not_after, server.tls_names, server.tls_authority = None, [], None
            ctx.save_server("tls_certificate", "tls_key", "tls_reason", "tls_not_after", "tls_names", "tls_authority")
        return
    names = names_of(server, ctx.endpoint)
    if server.tls_certificate and server.tls_names == names and not is_due(server.tls_not_after):
        return
    signer = authority()
    if signer.key is None:
        raise StepFailed("internal_error", "The install's CA has no key.", retryable=False)
    try:
        made = pki.make_server_certificate(
            pki.Issued(signer.certificate, signer.key.open(), signer.not_after), names, at=now()
        )
    except ValueError as error:
        raise StepFailed("tls_name_invalid", f"No certificate can be made for this address: {error}.") from error
    server.tls_certificate, server.tls_key, server.tls_reason = made.certificate, Sealed.of(made.key), ""
    server.tls_not_after, server.tls_names, server.tls_authority = made.not_after, names, signer
    ctx.save_server("tls_certificate", "tls_key", "tls_reason", "tls_not_after", "tls_names", "tls_authority")


def is_due(not_after: datetime | None) -> bool:
    return not_after is None or not_after < now() + RENEW_BEFORE


def _reason(ctx: Context) -> str:
    """Why this server can't speak TLS; empty: it can."""
    if domain.Capability.TLS not in ctx.engine.capabilities:
        return f"NovaStack does not set up TLS for {ctx.engine.title} yet"
    if ctx.engine.tls_only and ctx.operation.project_uuid is not None and not ctx.tls_required:
        return f"{ctx.engine.title} speaks TLS or plain, never both, and this database is from before it spoke TLS"
    return ctx.runtime.tls_reason(ctx.engine.server_spec(wiring.server_request(ctx.server, tls=False)))


def unavailable(server: DatabaseServer) -> str:
    """Why `tls_required` can't be turned on for this project now, for people; empty: it can."""
    engine = registry.engine(server.engine)
    if domain.Capability.TLS not in engine.capabilities:
        return f"NovaStack does not set up TLS for {engine.title} yet."
    if engine.tls_only:
        return ""  # the start that makes it so finds out
    if server.tls_reason:
        return f"{server.tls_reason[:1].upper()}{server.tls_reason[1:]}."
    if not server.tls_enabled and server.observed_state == ObservedState.RUNNING:
        return "The server was started before it could speak TLS. Restart the project first."
    return ""
