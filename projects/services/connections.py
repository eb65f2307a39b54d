"""Showing how to connect: audited, since it shows a password."""

from __future__ import annotations

import dataclasses
from typing import Any

from django.db import transaction

from accounts.permissions import Capability, Principal, require
from accounts.services import audit
from novastack.common.clock import now
from novastack.common.errors import ActionNotAllowed
from projects import domain, registry
from projects.models import Database, DatabaseSlot, DesiredStatus, Project
from projects.operations import certificates, wiring

CA_FILE = domain.CA_FILE
MASK = "•" * 12


def _database(project: Project) -> Database:
    if project.ready_at is None:
        raise ActionNotAllowed("The database is not ready yet; credentials are shown once a real login has proven it.")
    if project.desired_status in {DesiredStatus.RECYCLED, DesiredStatus.ABSENT}:
        raise ActionNotAllowed("The project is deleted; undelete it first.")
    return Database.objects.select_related("server").get(project=project, slot=DatabaseSlot.CURRENT)


def ca_certificates() -> str:
    """What clients trust when they check a database's certificate (PEM); empty before there is any."""
    return certificates.trusted()


@transaction.atomic
def connection_reveal(*, principal: Principal, project: Project, purpose: str = "shown") -> domain.ConnectionInfo:
    """Everything that a client needs, with the password. Needs `connect`; writes an audit event."""
    require(principal, project.organization_id, Capability.CONNECT)
    info = wiring.connection_info(project, _database(project))
    if project.credentials_shown_at is None:
        Project.objects.filter(pk=project.pk, credentials_shown_at=None).update(credentials_shown_at=now())
    audit.record(
        principal, "credentials.revealed", organization=project.organization, project_id=project.pk,
        project_name=project.name, target=info.username, data={"purpose": purpose[:40]},
    )  # fmt: skip
    return info


def connection_masked(project: Project) -> domain.ConnectionInfo:
    """The same with a mask instead of the password: for pages, at no risk."""
    info = wiring.connection_info(project, _database(project))
    return dataclasses.replace(info, password=MASK)


def render_connection(info: domain.ConnectionInfo) -> dict[str, Any]:
    """The `connection` answer of api.md."""
    engine = registry.engine(info.engine)
    urls = engine.urls(info)
    return {
        "host": info.host,
        "port": info.port,
        "database": info.database,
        "username": info.username,
        "password": info.password,
        "tls": info.tls,
        "uri": urls["uri"],
        "jdbc_url": urls.get("jdbc_url", ""),
        "env": dict(engine.env(info)),
        "snippets": dict(engine.snippets(info)),
    }
