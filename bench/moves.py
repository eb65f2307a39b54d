"""How long clients are shut out by a move: a small database and one of about 100 MB, PostgreSQL in containers.

Everything that a move does between the last session's end and the first login at the new server counts: dump, restore,
comparing all rows of both, taking over the port.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import psycopg
from django.db import transaction

from accounts.permissions import Principal
from bench.fixtures import person, plan
from projects.models import Database, Endpoint, Operation, Project, Region, RoleKind
from projects.operations import runner, wiring
from projects.operations.moving import move_begin
from projects.services import ProjectRequest, project_create

SIZES = ((0, "small: 1,000 rows"), (900_000, "about 100 MB: 900,000 rows"))


def _done(operation: Operation) -> Operation:
    while operation.live:
        runner.run(operation.pk)
        Operation.objects.filter(pk=operation.pk).update(next_attempt_at=None)
        operation.refresh_from_db()
    if operation.state != "succeeded":
        raise SystemExit(f"{operation.kind}: {operation.error}")
    return operation


def _fill(project: Project, rows: int) -> None:
    database = Database.objects.get(project=project, slot="current")
    login, endpoint = database.roles.get(kind=RoleKind.LOGIN), Endpoint.objects.get(project=project)
    with psycopg.connect(
        host=endpoint.host, port=endpoint.port, dbname=database.name, user=login.name, password=login.secret.open(),
        autocommit=True,
    ) as session:  # fmt: skip
        session.execute(
            "CREATE TABLE public.accounts AS SELECT i AS id, i % 10 AS branch, 0 AS balance, rpad('x', 84) AS filler"
            f" FROM generate_series(1, {rows or 1000}) i"
        )
        session.execute("ALTER TABLE public.accounts ADD PRIMARY KEY (id)")


def run() -> Iterator[str]:
    user, organization = person()
    plan()
    first = 12000 + secrets.randbelow(100) * 10
    region = Region.objects.create(
        slug=f"moves-{first}", name="Moves", runtime="docker", port_start=first, port_end=first + 9
    )
    try:
        for rows, what in SIZES:
            project = project_create(
                principal=Principal.of(user), organization=organization,
                request=ProjectRequest(name=f"moved {rows}", region=region.slug, bootstrap_schema=False),
            )  # fmt: skip
            _done(Operation.objects.get(project_uuid=project.pk))
            _fill(project, rows)
            with transaction.atomic():
                operation = move_begin(project, created_by_label="bench")
            result = _done(operation).result
            parts = ", ".join(
                f"{step.name} {(step.finished_at - step.started_at).total_seconds():.1f}"
                for step in operation.steps.filter(name__in=["fence", "copy", "compare", "address", "switch", "open"])
            )
            yield (
                f"move, {what}: clients shut out for {result['downtime_seconds']:.1f} s"
                f" ({result['bytes'] / 2**20:.0f} MiB dumped; {parts})"
            )
    finally:
        runtime = wiring.runtime_of(region)
        for handle in {*runtime.managed(), *runtime.managed_data()}:
            if handle.server_id in {str(pk) for pk in region.servers.values_list("pk", flat=True)}:
                runtime.destroy(handle, delete_data=True)
