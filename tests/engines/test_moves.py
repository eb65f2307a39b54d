"""Moves on real servers: not a row is lost, clients find their database again, the old copy is kept and then removed."""

from __future__ import annotations

import secrets
import subprocess
import threading
import time
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from django.db import transaction

from novastack.common.clock import now
from projects.models import (
    Database,
    DatabaseServer,
    DatabaseSlot,
    DataTombstone,
    Endpoint,
    Operation,
    Project,
    Region,
    ServerDesired,
)
from projects.operations import janitor, moving, watch
from projects.operations.moving import move_begin
from tests.faults.conftest import Site, _fresh, docker_site, process_site  # noqa: F401 - fixtures

pytestmark = pytest.mark.docker
PGBENCH = "/usr/lib/postgresql/15/bin/pgbench"


def second_region(runtime: str, **more: Any) -> Region:
    first = 32000 + secrets.randbelow(80) * 10
    return Region.objects.create(
        slug="far", name="Far", runtime=runtime, port_start=first, port_end=first + 9, **more
    )  # fmt: skip


def begin(project: Project, **target: Any) -> Operation:
    with transaction.atomic():
        return move_begin(project, created_by_label="test", **target)


def done(site: Site, operation: Operation) -> Operation:
    site.finish(operation, 240)
    told = [(s.name, s.state, s.detail) for s in operation.steps.all()]
    assert operation.state == "succeeded", (operation.error, told)
    return operation


class Load:
    """A client that writes all the time, and comes again when it is thrown out. `acknowledged` were committed."""

    def __init__(self, site: Site, project: Project) -> None:
        self.site, self.project = site, project
        with site.login(project) as session:
            session.execute("CREATE TABLE public.told (id int PRIMARY KEY)")
        self.acknowledged: list[int] = []
        self._stop = threading.Event()
        self._where = self._address()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def _address(self) -> dict[str, Any]:
        from tests.faults.clients import password_of, role_of

        role = role_of(self.project)
        endpoint = Endpoint.objects.get(project=self.project)
        return {
            "host": endpoint.host, "port": endpoint.port, "user": role.name, "password": password_of(role),
            "dbname": role.database.name,
        }  # fmt: skip

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(20)

    def follow(self) -> None:
        """What a user does who reads the new address."""
        self._where = self._address()

    def _work(self) -> None:
        number = 0
        while not self._stop.is_set():
            try:
                with psycopg.connect(**self._where, autocommit=True, connect_timeout=2) as session:
                    while not self._stop.is_set():
                        number += 1
                        session.execute("INSERT INTO public.told VALUES (%s)", [number])
                        self.acknowledged.append(number)
                        time.sleep(0.01)
            except psycopg.Error:
                time.sleep(0.05)


def rows(site: Site, project: Project, query: str) -> Any:
    with site.login(project) as session:
        return session.execute(query).fetchall()


def pgbench(site: Site, project: Project, scale: int) -> None:
    from tests.faults.clients import password_of, role_of

    role, endpoint = role_of(project), Endpoint.objects.get(project=project)
    subprocess.run(
        [PGBENCH, "-i", "-q", "-s", str(scale), "-h", endpoint.host, "-p", str(endpoint.port), "-U", role.name,
         role.database.name],
        env={"PGPASSWORD": password_of(role)}, check=True, capture_output=True, timeout=120,
    )  # fmt: skip


def remove_old_copy(site: Site, project: Project) -> None:
    """What two daily looks do, once its time is over."""
    assert moving.copies_due([]).databases == []
    Database.objects.filter(project=project, slot=DatabaseSlot.PREVIOUS).update(keep_until=now() - timedelta(hours=1))
    watch.check_health()
    first = moving.copies_due([])
    assert (first.databases, len(first.seen)) == ([], 1)
    due = moving.copies_due(first.seen)
    assert len(due.databases) == 1, Project.objects.values("status", "health")
    with transaction.atomic():
        operation = moving.discard_begin(due.databases[0], created_by_label="test")
    assert operation is not None
    done(site, operation)
    assert not Database.objects.filter(project=project, slot=DatabaseSlot.PREVIOUS).exists()


def test_to_another_server_under_load(docker_site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    """Shown 3: the address stays, nothing that was acknowledged is lost, and the downtime is told."""
    site = docker_site
    project = site.ready()
    pgbench(site, project, 3)
    old = DatabaseServer.objects.get(project_uuid=project.pk)
    address = Endpoint.objects.values_list("host", "port").get(project=project)
    before = rows(site, project, "SELECT sum(hashtext(a::text)::bigint) FROM pgbench_accounts a")
    with Load(site, project) as load:
        time.sleep(0.5)
        operation = done(site, begin(project))
        time.sleep(1)
    project.refresh_from_db()
    assert project.status == "running"
    assert Endpoint.objects.values_list("host", "port").get(project=project) == address
    assert {r[0] for r in rows(site, project, "SELECT id FROM public.told")} >= set(load.acknowledged)
    assert len(load.acknowledged) > 20
    assert rows(site, project, "SELECT sum(hashtext(a::text)::bigint) FROM pgbench_accounts a") == before
    assert operation.result["rows"] > 300_000
    assert operation.result["address_changed"] is False
    assert 0 < operation.result["downtime_seconds"] < 120
    with capsys.disabled():
        print(f"\ndowntime {operation.result['downtime_seconds']} s, {operation.result['bytes'] / 2**20:.0f} MiB")
    new = DatabaseServer.objects.get(project_uuid=project.pk)
    assert new.pk != old.pk
    old.refresh_from_db()
    assert (old.desired_state, old.project_uuid) == (ServerDesired.STOPPED, None)
    seen = site.runtime.observe([old.handle])[old.handle]
    assert seen.state == "stopped"
    assert site.runtime.data_exists(old.handle)  # kept
    remove_old_copy(site, project)
    assert DataTombstone.objects.filter(server_uuid=old.pk, project_uuid=project.pk).exists()
    janitor.delete_due_data()
    assert not site.runtime.data_exists(old.handle)
    site.check_exactly(project)
    assert site.rows_of(project) == 1000
