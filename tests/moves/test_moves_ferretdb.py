"""Moves of FerretDB: a lock does not reach its open sessions, so clients are shut out by a restart, and none of their
acknowledged writes is lost."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from pymongo.errors import PyMongoError

from projects import registry
from projects.models import Database, DatabaseServer, DatabaseSlot, Endpoint, Project
from projects.operations import wiring
from tests.engines.test_copies_ferretdb import fill
from tests.faults.clients import CLIENTS
from tests.faults.conftest import Site, make_site, require_docker
from tests.moves.load import Load
from tests.moves.test_moves_docker import begin, done, failed

pytestmark = pytest.mark.docker


@pytest.fixture
def site(_fresh: None) -> Iterator[Site]:
    require_docker("ferretdb", CLIENTS["ferretdb"].versions["docker"])
    yield from make_site("docker", "ferretdb")


class Writes(Load):
    thrown_out = (PyMongoError,)

    def write(self, session: Any, number: int) -> None:
        session["told"].insert_one({"_id": number})


def test_under_load(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    project = site.ready()
    with site.login(project) as database:
        fill(database)
    address = Endpoint.objects.values_list("host", "port").get(project=project)
    old = DatabaseServer.objects.get(project_uuid=project.pk)
    with Writes(site, project) as load:
        while len(load.acknowledged) < 20:
            time.sleep(0.05)
        operation = done(site, begin(project))
    with site.login(project) as database:
        assert {row["_id"] for row in database["told"].find()} >= set(load.acknowledged)
        assert database["many"].index_information()["u_1"]["unique"] is True
    assert Endpoint.objects.values_list("host", "port").get(project=project) == address
    assert DatabaseServer.objects.get(project_uuid=project.pk).pk != old.pk
    assert operation.result["address_changed"] is False
    assert site.rows_of(project) == 1000
    site.check_things(project)


def test_what_would_be_lost_is_refused_by_name(site: Site) -> None:
    """And a session that lets itself in again does not outlive the fence."""
    project = site.ready()
    with site.login(project) as database:
        database.client["elsewhere"]["t"].insert_one({"_id": 1})
    operation = failed(site, begin(project))
    assert operation.error is not None
    assert operation.error["code"] == "not_movable" and "elsewhere" in operation.error["detail"]
    with site.login(project) as database:
        database.client.drop_database("elsewhere")
    assert _locks_again(site, project) == [True, False, True]


def _locks_again(site: Site, project: Project) -> list[Any]:
    """Whether it is locked: after a lock, after a tenant's open session has undone that, and after another lock."""
    row = Database.objects.select_related("server__region").get(project=project, slot=DatabaseSlot.CURRENT)
    names, engine = wiring.tenant_names(row), registry.engine("ferretdb")
    found = []
    with site.login(project) as database, wiring.admin_session(engine, row.server) as admin:
        users = database.client["admin"]["system.users"]
        before = users.find_one({"user": names.login})
        for change in (
            None,
            {"$set": {"credentials": before["credentials"]}, "$unset": {"novastack_locked": ""}},
            None,
        ):
            if change is None:
                admin.lock_tenant(names, locked=True)
            else:
                users.update_one({"user": names.login}, change)
            found.append(admin.is_locked(names))
        admin.lock_tenant(names, locked=False)
    return found
