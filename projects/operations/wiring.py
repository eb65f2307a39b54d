"""From rows to what drivers take: specs, names, credentials."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from decimal import Decimal

from django.conf import settings

from novastack.common.models import Install
from projects import domain, registry
from projects.engines.admin import EngineAdmin
from projects.engines.base import Engine
from projects.models import (
    CertificateAuthority,
    Database,
    DatabaseRole,
    DatabaseServer,
    Project,
    Region,
    RoleKind,
    ServerKind,
)
from projects.runtimes.base import Runtime

_install_id: str | None = None


def install_id() -> str:
    """This install's id; it never changes while a process lives (tests run in one database)."""
    global _install_id
    if _install_id is None or settings.TESTING:
        _install_id = str(Install.load().install_id)
    return _install_id


def runtime_of(region: Region) -> Runtime:
    return registry.runtime(
        region.runtime,
        install_id=install_id(),
        config=region.config,
        endpoint=region.endpoint_of(),
        region=str(region.pk),
    )


def tenant_names(database: Database, known: Sequence[DatabaseRole] | None = None) -> domain.TenantNames:
    """`known`: its roles, if they are at hand."""
    found = database.roles.all() if known is None else known
    roles = {role.kind: role for role in sorted(found, key=lambda r: r.created_at, reverse=True)}
    login = roles[RoleKind.LOGIN]
    return domain.TenantNames(
        database=database.name,
        owner=roles[RoleKind.OWNER].name,
        group=roles[RoleKind.GROUP].name,
        login=login.name,
        control=roles[RoleKind.CONTROL].name,
        connection_limit=login.connection_limit,
    )


def limits_of(server: DatabaseServer) -> domain.Limits:
    """With room for a process or thread per connection: of a pool these are more than of any one project."""
    limits = domain.Limits(memory_bytes=server.memory_bytes, cpus=float(Decimal(server.cpus)))
    return replace(limits, pids=max(limits.pids, 256 + server.max_connections))


def server_request(
    server: DatabaseServer, *, burst: bool = False, required: bool = False, tls: bool = True
) -> domain.ServerRequest:
    """What the engine turns into a spec. The image is the pinned one (rule 12). With a certificate on the row the server
    speaks TLS, and with `required` nothing else."""
    key = server.tls_key.open() if tls and server.tls_certificate and server.tls_key is not None else ""
    ca = CertificateAuthority.one(server.tls_authority_id).encode() if server.tls_authority_id else b""
    labels = {"io.novastack.project": str(server.project_uuid)} if server.project_uuid else {}
    return domain.ServerRequest(
        handle=server.handle,
        version=server.version,
        image=server.image_digest or server.image,
        publish=domain.Endpoint(server.bind_address, server.port or 0),
        limits=limits_of(server),
        max_connections=server.max_connections,
        admin=domain.Credentials(server.admin_username, server.admin_secret.open()),
        labels=labels,
        burst=burst,
        tls=domain.Tls(f"{server.tls_certificate}{key}".encode(), required, ca) if key else None,
        isolated=server.kind == ServerKind.SCRATCH,
        pool=server.kind == ServerKind.POOL,
    )


def admin_candidates(server: DatabaseServer) -> list[domain.Credentials]:
    """The pending password first, then the current one: after a crash either may be the right one (rule 20)."""
    secrets = [s.open() for s in (server.admin_pending_secret, server.admin_secret) if s is not None]
    return [domain.Credentials(server.admin_username, secret) for secret in secrets]


def admin_credentials(engine: Engine, server: DatabaseServer, *, timeout_seconds: float = 3) -> domain.Credentials:
    """Our own login with whichever stored password works. Raises as `Engine.probe` does."""
    candidates = admin_candidates(server)
    for credentials in candidates[:-1]:
        try:
            engine.probe(server.control_endpoint, credentials, timeout_seconds=timeout_seconds)
        except domain.LoginRefused:
            continue
        return credentials
    return candidates[-1]


def admin_session(
    engine: Engine, server: DatabaseServer, *, timeout_seconds: float = 5, statement_seconds: float = 15
) -> AbstractContextManager[EngineAdmin]:
    """An admin session with whichever stored password works. Times and errors are those of `Engine.admin`."""
    return engine.admin(
        server.control_endpoint, admin_credentials(engine, server, timeout_seconds=min(3, timeout_seconds)),
        timeout_seconds=timeout_seconds, statement_seconds=statement_seconds,
    )  # fmt: skip


def role_candidates(role: DatabaseRole) -> list[str]:
    return [s.open() for s in (role.pending_secret, role.secret) if s is not None]


def connection_info(project: Project, database: Database) -> domain.ConnectionInfo:
    """What a client needs, with the password in the clear: for an audited answer only."""
    role = database.roles.filter(kind=RoleKind.LOGIN).order_by("created_at").first()
    if role is None or role.secret is None:
        raise LookupError("the project has no login role yet")
    return domain.ConnectionInfo(
        engine=project.engine,
        host=project.endpoint.host,
        port=project.endpoint.port,
        database=database.name,
        username=role.name,
        password=role.secret.open(),
        tls=database.server.tls_enabled,
        tls_required=project.tls_required,
    )
