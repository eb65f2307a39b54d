"""Dumps taken by the tools that people have, and sent through the API as people do."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

from backups.models import Backup
from projects.models import DatabaseServer, Operation, Project
from projects.runtimes.process_binaries import find
from tests.factories import api_client
from tests.faults.conftest import VERSION, Site


def pg_dump(project: Project, *arguments: str) -> bytes:
    """By a superuser's pg_dump of the server's own version, as whoever runs it elsewhere has one."""
    server = DatabaseServer.objects.get(project_uuid=project.pk)
    place = server.control_endpoint
    found = find("postgres", VERSION)
    program = found.program("pg_dump") if found else Path("/usr/bin/pg_dump")
    assert server.admin_secret is not None
    env = {
        **os.environ, "PGPASSWORD": server.admin_secret.open(), "PGHOST": place.host, "PGPORT": str(place.port),
        "PGUSER": server.admin_username, "PGSSLMODE": "prefer",
    }  # fmt: skip
    name = project.databases.get(slot="current").name
    done = subprocess.run([str(program), *arguments, name], env=env, capture_output=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def pg_dump_of_image(project: Project, *arguments: str) -> bytes:
    """By the image's pg_dump: the bundled one compresses with gzip only."""
    server = DatabaseServer.objects.get(project_uuid=project.pk)
    place = server.control_endpoint
    assert server.admin_secret is not None
    name = project.databases.get(slot="current").name
    done = subprocess.run(
        [
            "docker", "run", "--rm", "--network=host", "--env=PGPASSWORD", "--entrypoint=pg_dump",
            server.image, f"--host={place.host}", f"--port={place.port}", f"--username={server.admin_username}",
            *arguments, name,
        ],
        env={**os.environ, "PGPASSWORD": server.admin_secret.open()}, capture_output=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def sql_of(site: Site, backup: Backup, *tables: str, schemas: tuple[str, ...] = ()) -> bytes:
    """Some tables of it, or schemas, downloaded as SQL."""
    answer = api_client(site.team.alice).get(
        f"/api/v1/backups/{backup.pk}/download/", {"as": "sql", "tables": list(tables), "schemas": list(schemas)}
    )
    assert answer.status_code == 200, answer.content
    found: bytes = b"".join(answer.streaming_content)  # type: ignore[attr-defined]
    assert found.endswith(f"\n-- End of {backup.sha256[:16]}.\n".encode())
    return found


def send(site: Site, project: Project, data: bytes, *, filename: str = "dump", **headers: str) -> Any:
    return api_client(site.team.alice).post(
        f"/api/v1/projects/{project.pk}/uploads/?filename={filename}", data, content_type="application/octet-stream",
        headers=headers,
    )  # fmt: skip


def taken(
    site: Site, project: Project, data: bytes, *, seconds: float = 180, **options: Any
) -> tuple[Backup, Operation]:
    """Sent, accepted, and its operation run to its end here."""
    answer = send(site, project, data, **options)
    assert answer.status_code == 202, answer.content
    backup = Backup.objects.get(pk=answer.json()["id"])
    assert backup.operation_id is not None
    operation = site.finish(Operation.objects.get(pk=backup.operation_id), seconds)
    backup.refresh_from_db()
    return backup, operation


def told(operation: Operation) -> Any:
    return operation.error, [(s.name, s.state, s.detail) for s in operation.steps.all()]
