"""Moves on real servers: not a row is lost, clients find their database again, the old copy is kept and then removed."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.db import transaction

from novastack.common.clock import now
from novastack.common.errors import OperationInProgress
from projects.domain import Handle
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
from projects.operations import copying, janitor, move_copying, move_steps, moving, watch, wiring
from projects.operations.moving import move_begin
from projects.services import project_action, project_delete, project_purge
from tests.factories import PlanFactory
from tests.faults.conftest import Site
from tests.moves.conftest import kill_while_copying
from tests.moves.load import Load

pytestmark = pytest.mark.docker
PGBENCH = "/usr/lib/postgresql/15/bin/pgbench"


@pytest.fixture
def process_region(docker_site: Site) -> Iterator[Region]:
    root = Path(tempfile.mkdtemp(prefix="nvs-moves-", dir="/tmp"))
    root.chmod(0o711)
    first = 9000 + secrets.randbelow(90) * 10
    region = Region.objects.create(
        slug="far", name="Far", runtime="process", port_start=first, port_end=first + 9,
        config={"root": str(root / "state")},
    )  # fmt: skip
    yield region
    runtime = wiring.runtime_of(region)
    for handle in {*runtime.managed(), *runtime.managed_data()}:
        runtime.destroy(Handle(handle.server_id, handle.incarnation), delete_data=True)
    shutil.rmtree(root, ignore_errors=True)


def begin(project: Project, **target: Any) -> Operation:
    with transaction.atomic():
        return move_begin(project, created_by_label="test", **target)


def done(site: Site, operation: Operation) -> Operation:
    site.finish(operation, 240)
    told = [(s.name, s.state, s.detail) for s in operation.steps.all()]
    assert operation.state == "succeeded", (operation.error, told)
    return operation


class Writes(Load):
    thrown_out = (psycopg.Error,)

    def __init__(self, site: Site, project: Project) -> None:
        with site.login(project) as session:
            session.execute("CREATE TABLE public.told (id int PRIMARY KEY)")
        super().__init__(site, project)

    def session(self) -> contextlib.AbstractContextManager[Any]:
        where = self._where
        return psycopg.connect(
            host=where.host, port=where.port, user=where.username, password=where.password, dbname=where.database,
            autocommit=True, connect_timeout=2,
        )  # fmt: skip

    def write(self, session: Any, number: int) -> None:
        session.execute("INSERT INTO public.told VALUES (%s)", [number])


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
    with Writes(site, project) as load:
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


def test_to_another_region(docker_site: Site, process_region: Region) -> None:
    """Containers to plain processes: the address changes, which is told, and the old one stays reserved."""
    site = docker_site
    project = site.ready()
    with site.login(project) as session:
        session.execute("CREATE TABLE spelled (v varchar(9) CHECK (v IN ('a', 'b')))")
    before = Endpoint.objects.get(project=project)
    old = DatabaseServer.objects.get(project_uuid=project.pk)
    operation = done(site, begin(project, region=process_region))
    (said,) = operation.events.filter(message__startswith="After a restore the server spells otherwise")
    assert said.level == "warning" and "spelled_v_check" in said.message
    project.refresh_from_db()
    assert (project.region, project.status) == (process_region, "running")
    after = Endpoint.objects.get(project=project)
    assert operation.result["address_changed"] is True
    assert operation.result["names_changed"] is False
    assert operation.result["after"]["port"] == after.port != before.port
    assert Endpoint.objects.get(project=None, region=site.region, port=before.port).reserved_until
    assert site.rows_of(project) == 1000
    new = DatabaseServer.objects.get(project_uuid=project.pk)
    assert (new.runtime, new.region) == ("process", process_region)
    remove_old_copy(site, project)
    janitor.delete_due_data()
    assert not site.runtime.data_exists(old.handle)
    assert list(site.runtime.managed()) == []


def assert_as_before(site: Site, project: Project, server: DatabaseServer, address: Endpoint) -> None:
    """The project runs where it ran, with what it held; of the copy nothing is left."""
    project.refresh_from_db()
    assert (project.status, project.failure) == ("running", None), project.status_detail
    server.refresh_from_db()
    assert (server.project_uuid, server.desired_state) == (project.pk, ServerDesired.RUNNING)
    now_ = Endpoint.objects.get(project=project)
    assert (now_.host, now_.port) == (address.host, address.port)
    assert Database.objects.get(project=project).server == server
    assert site.rows_of(project) == 1000
    with site.login(project) as session:
        session.execute("CREATE TABLE public.again (id int); DROP TABLE public.again")
    with site.client.administrator(project) as session:
        left = session.execute("SELECT rolname FROM pg_roles WHERE rolname LIKE '%copy'").fetchall()
        assert left == []
    janitor.delete_due_data()
    site.check_exactly(project)
    assert DatabaseServer.objects.count() == 1


def failed(site: Site, operation: Operation) -> Operation:
    site.finish(operation, 240)
    assert operation.state == "failed", [(s.name, s.state, s.detail) for s in operation.steps.all()]
    return operation


def test_what_can_not_be_copied_stays_where_it_is(docker_site: Site) -> None:
    """One server, several refusals: before clients notice, or with clients let in again."""
    site = docker_site
    project = site.ready()
    server, address = DatabaseServer.objects.get(project_uuid=project.pk), Endpoint.objects.get(project=project)
    small = PlanFactory(slug="tiny", is_default=False, storage_bytes=1 << 20)
    operation = failed(site, begin(project, plan=small))
    assert operation.error is not None
    assert operation.error["code"] == "plan_too_small"
    assert "MiB" in operation.error["detail"]
    assert_as_before(site, project, server, address)

    with site.client.administrator(project) as superuser:
        superuser.execute("SELECT pg_create_physical_replication_slot('ours')")  # of no database: no obstacle
    with site.login(project) as session:
        session.execute(
            "CREATE TABLE public.lookup (k int, v int); INSERT INTO public.lookup VALUES (1, 2);"
            "CREATE FUNCTION public.look(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT v FROM lookup WHERE k = $1';"
            "CREATE TABLE public.used (k int CHECK (public.look(k) > 0)); INSERT INTO public.used VALUES (1)"
        )
    operation = failed(site, begin(project))
    assert operation.error is not None
    assert operation.error["code"] == "restore_failed"
    assert "lookup" in operation.error["detail"]
    assert_as_before(site, project, server, address)


@pytest.mark.parametrize("whom", ["source", "target"])
def test_a_server_that_dies_in_the_middle(docker_site: Site, monkeypatch: pytest.MonkeyPatch, whom: str) -> None:
    """Killed while the copy is made: tried once more, or undone; never half of it."""
    site = docker_site
    project = site.ready()
    with site.login(project) as session:
        session.execute("CREATE TABLE public.big AS SELECT i, repeat('x', 500) AS t FROM generate_series(1, 60000) i")
    server, address = DatabaseServer.objects.get(project_uuid=project.pk), Endpoint.objects.get(project=project)
    killed = kill_while_copying(monkeypatch, whom)
    operation = begin(project)
    site.finish(operation, 240)
    assert killed
    if operation.state == "succeeded":
        assert rows(site, project, "SELECT count(*) FROM public.big") == [(60000,)]
        assert site.rows_of(project) == 1000
        return
    assert operation.error is not None
    assert operation.error["code"] in {
        f"{whom}_lost",
        "dump_failed",
        "restore_failed",
        "copy_interrupted",
        "tool_killed",
    }
    site.finish(Site.operation(project))
    assert_as_before(site, project, server, address)


def test_deletion_cuts_a_move_short(docker_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site = docker_site
    project = site.ready()
    server = DatabaseServer.objects.get(project_uuid=project.pk)
    whole = copying.copy

    def deleted_meanwhile(*args: Any, **options: Any) -> int:
        if not Operation.objects.filter(kind="delete").exists():
            project_delete(principal=site.alice, project=project)
        return whole(*args, **options)

    monkeypatch.setattr(copying, "copy", deleted_meanwhile)
    monkeypatch.setattr(move_copying, "GUARD_SECONDS", 0.0)
    operation = begin(project)
    with pytest.raises(OperationInProgress):
        begin(project)
    site.finish(operation, 120)
    assert (operation.state, (operation.error or {}).get("code")) == ("cancelled", "cancelled")
    site.finish(Operation.objects.get(kind="delete"), 60)
    project.refresh_from_db()
    assert project.status == "recycled"
    site.finish(project_action(principal=site.alice, project=project, action="undelete"))
    project.refresh_from_db()
    assert_as_before(site, project, server, Endpoint.objects.get(project=project))


def test_a_purge_takes_old_copies_along(docker_site: Site) -> None:
    site = docker_site
    project = site.ready()
    done(site, begin(project))
    done(site, begin(project))  # two moves: two old copies
    assert len(moving.kept(project)) == 2
    assert len(list(site.runtime.managed())) == 3
    operation = project_purge(principal=site.alice, project=project, confirm=project.slug)
    deadline = time.monotonic() + 120
    while operation.live and time.monotonic() < deadline:
        site.finish(operation, 0.5)  # in between it waits for the janitor
        janitor.delete_due_data()
    assert operation.state == "succeeded", [(s.name, s.state, s.detail) for s in operation.steps.all()]
    assert not DatabaseServer.objects.exists()
    site.check_exactly()


@pytest.mark.parametrize("meanwhile", [False, True], ids=["before", "meanwhile"])
def test_a_password_that_the_tenant_changed_comes_along(
    docker_site: Site, monkeypatch: pytest.MonkeyPatch, meanwhile: bool
) -> None:
    """Also one that it set after the move had tried the stored one."""
    site = docker_site
    project = site.ready()
    with site.login(project) as session:
        name = session.execute("SELECT session_user::text").fetchone()[0]

    def change(*_: Any) -> None:
        with site.login(project) as session:
            session.execute("SET ROLE NONE")
            session.execute(psycopg.sql.SQL("ALTER ROLE {} PASSWORD 'of-my-own'").format(psycopg.sql.Identifier(name)))

    secure = move_steps.provision.secure
    with monkeypatch.context() as patched:
        if meanwhile:
            patched.setattr(move_steps.provision, "secure", lambda ctx: (change(), secure(ctx)))
        else:
            change()
        done(site, begin(project))
    endpoint = Endpoint.objects.get(project=project)
    database = Database.objects.get(project=project, slot=DatabaseSlot.CURRENT).name
    with psycopg.connect(
        host=endpoint.host, port=endpoint.port, user=name, password="of-my-own", dbname=database
    ) as session:
        assert session.execute("SELECT 1").fetchone() == (1,)
