"""Moves to a pool, from it, and out of one that is drained; on real servers."""

from __future__ import annotations

import time

import pytest

from projects.models import Database, DatabaseServer, DatabaseSlot, Endpoint, Operation, Placement, ServerKind
from projects.operations import reconciler, runner
from tests.faults.conftest import Site
from tests.moves.conftest import drained
from tests.moves.test_moves_docker import begin, rows

pytestmark = pytest.mark.docker


def all_done(site: Site, operation: Operation, seconds: float = 200) -> Operation:
    """Every operation is worked on: a move may wait for a pool that is made meanwhile."""
    deadline = time.monotonic() + seconds
    while operation.live and time.monotonic() < deadline:
        for pk in Operation.objects.live().order_by("created_at").values_list("pk", flat=True):
            Operation.objects.filter(pk=pk).update(next_attempt_at=None)
            runner.run(pk)
        reconciler.reconcile()
        operation.refresh_from_db()
    told = [(s.name, s.state, s.detail) for s in operation.steps.all()]
    assert operation.state == "succeeded", (operation.error, told)
    return operation


def test_to_a_pool_and_back(docker_site: Site) -> None:
    site = docker_site
    project = site.ready(username="shop_app", database_name="shop")
    with site.login(project) as session:
        session.execute("CREATE TABLE public.rights (id int); GRANT SELECT ON public.rights TO shop_app")
        session.execute("SET ROLE NONE; CREATE SCHEMA AUTHORIZATION shop_app; CREATE TABLE shop_app.own (id int)")
    address = Endpoint.objects.get(project=project)
    operation = all_done(site, begin(project, placement=Placement.POOL))
    project.refresh_from_db()
    assert (project.status, project.placement) == ("running", "pool")
    current = Database.objects.select_related("server").get(project=project, slot=DatabaseSlot.CURRENT)
    assert current.server.kind == ServerKind.POOL
    assert current.name.startswith("tenant_")
    assert operation.result["names_changed"] is True
    assert operation.result["after"]["username"].startswith("tenant_")
    endpoint = Endpoint.objects.get(project=project)
    assert (endpoint.shared, endpoint.port) == (True, current.server.port)
    assert Endpoint.objects.filter(project=None, port=address.port).exists()
    with site.login(project) as session:
        session.execute("SET ROLE NONE")
        assert session.execute("SELECT count(*) FROM shop_app.own").fetchone() == (0,)
        owner = "SELECT pg_get_userbyid(relowner)::text FROM pg_class WHERE oid = 'shop_app.own'::regclass"
        assert session.execute(owner).fetchone() == (operation.result["after"]["username"],)
        names = session.execute("SELECT rolname FROM pg_roles WHERE rolname IN ('shop_app', 'shop')").fetchall()
        assert names == []  # neighbours see nothing of what the user chose
        session.execute("RESET ROLE")
        session.execute("CREATE TABLE public.on_pool (id int); INSERT INTO public.on_pool VALUES (7)")

    all_done(site, begin(project, placement=Placement.DEDICATED))
    project.refresh_from_db()
    assert (project.status, project.placement) == ("running", "dedicated")
    assert rows(site, project, "SELECT id FROM public.on_pool") == [(7,)]
    assert site.rows_of(project) == 1000
    assert DatabaseServer.objects.get(project_uuid=project.pk).kind == ServerKind.DEDICATED
    assert Database.objects.filter(project=project, slot=DatabaseSlot.PREVIOUS).count() == 2


def test_a_drained_pool_is_left_by_all(docker_site: Site) -> None:
    site = docker_site
    project = site.create(placement="pool")
    all_done(site, Site.operation(project))
    project.refresh_from_db()
    site.client.fill(project)
    all_done(site, drained(site, project))
    project.refresh_from_db()
    assert project.status == "running"
    assert site.rows_of(project) == 1000
