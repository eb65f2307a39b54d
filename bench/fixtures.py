"""Rows for the benchmarks, made in bulk."""

from __future__ import annotations

from time import time

from accounts.models import Organization, User
from accounts.services import user_create
from novastack.common.clock import now
from projects.models import (
    Database,
    DatabaseServer,
    Endpoint,
    ObservedState,
    Plan,
    Project,
    Region,
)


def person() -> tuple[User, Organization]:
    user = user_create(email=f"bench{time()}@example.com", password="x" * 20)
    return user, Organization.objects.get(memberships__user=user)


def plan() -> Plan:
    return Plan.objects.get_or_create(slug="bench", defaults={"name": "Bench"})[0]


def region(slug: str = "bench", runtime: str = "memory") -> Region:
    return Region.objects.get_or_create(
        slug=slug, defaults={"name": slug, "runtime": runtime, "port_start": 1024, "port_end": 65535}
    )[0]


def many_projects(
    organization: Organization, count: int, *, where: Region | None = None, ready: bool = True
) -> list[Project]:
    """Projects with address, server and database, as services make them, but in bulk."""
    where, size = where or region(), plan()
    moment = now()
    projects = Project.objects.bulk_create(
        [
            Project(
                organization=organization, name=f"orders-{n}", slug=f"orders-{n}", engine="postgresql", version="18",
                region=where, plan=size, memory_bytes=size.memory_bytes, cpus=size.cpus,
                storage_bytes=size.storage_bytes, status="running", ready_at=moment if ready else None,
            )
            for n in range(count)
        ],
        batch_size=1000,
    )  # fmt: skip
    Endpoint.objects.bulk_create(
        [
            Endpoint(
                project=p, project_uuid=p.pk, region=where, host="127.0.0.1", port=1024 + n,
                control_host="127.0.0.1", control_port=1024 + n,
            )
            for n, p in enumerate(projects)
        ],
        batch_size=1000,
    )  # fmt: skip
    servers = DatabaseServer.objects.bulk_create(
        [
            DatabaseServer(
                region=where, engine="postgresql", version="18", project_uuid=p.pk, memory_bytes=size.memory_bytes,
                cpus=size.cpus, admin_username="novastack", runtime="memory", port=1024 + n, initialised_at=moment,
                observed_state=ObservedState.RUNNING, image="bench",
            )
            for n, p in enumerate(projects)
        ],
        batch_size=1000,
    )  # fmt: skip
    Database.objects.bulk_create(
        [Database(project=p, server=s, name="orders") for p, s in zip(projects, servers, strict=True)], batch_size=1000
    )
    return projects
