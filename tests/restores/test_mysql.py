"""MariaDB and MySQL: round trips through the API. Dumps name no roles there: the copy has its own names at once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from backups.models import StorageTarget
from projects.models import Database, DatabaseServer, DatabaseSlot, Endpoint, Project
from tests.faults.clients import CLIENTS
from tests.faults.conftest import Site, make_site, require_docker
from tests.restores.taken import take
from tests.restores.test_in_place import all_run, begin, undo, unproven
from tests.restores.test_new_projects import Counted, restore, run, told

pytestmark = pytest.mark.docker


@pytest.fixture(params=["mariadb", "mysql"])
def site(request: pytest.FixtureRequest, _fresh: None) -> Iterator[Site]:
    require_docker(request.param, CLIENTS[request.param].versions["docker"])
    yield from make_site("docker", request.param)


def count(site: Site, project: Project) -> int:
    with site.login(project) as session, session.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM more")
        return int(cursor.fetchone()[0])


def test_round_trip(site: Site, target: StorageTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    project = site.ready()
    unproven(project)
    with site.login(project) as session, session.cursor() as cursor:
        cursor.execute("CREATE TABLE more (id int PRIMARY KEY, t text)")
        cursor.execute("INSERT INTO more VALUES (1, 'naïve 🐬'), (2, NULL)")
        cursor.execute("CREATE VIEW seen AS SELECT id FROM more")
        cursor.execute("CREATE TRIGGER told BEFORE INSERT ON more FOR EACH ROW SET NEW.t = upper(NEW.t)")
        cursor.execute("CREATE PROCEDURE noop() SELECT 1")
        session.commit()
    backup = take(project)
    with site.login(project) as session, session.cursor() as cursor:
        cursor.execute("INSERT INTO more VALUES (3, 'after')")
        session.commit()
    with monkeypatch.context() as patched:  # a login that fails runs earlier steps again, but what is proven stays
        counted = Counted(patched)
        made = restore(site, backup, target="new_project", name="Copy")
        operation = run(site, made, 200)
    assert operation.state == "succeeded", told(operation)
    assert (counted.refused, counted.filled, counted.compared) == (1, 1, 1)
    copy = Project.objects.get(pk=made.project_uuid)
    assert (copy.status, count(site, copy), site.rows_of(copy)) == ("running", 2, 1000)

    address = Endpoint.objects.values_list("host", "port").get(project=project)
    old = DatabaseServer.objects.get(project_uuid=project.pk)
    made, operation = begin(site, backup, target="in_place", confirm=project.slug)
    all_run(site, operation)
    assert operation.state == "succeeded", told(operation)
    assert count(site, project) == 2
    assert Endpoint.objects.values_list("host", "port").get(project=project) == address
    made.refresh_from_db()
    back = all_run(site, undo(site, made))
    assert back.state == "succeeded", told(back)
    assert count(site, project) == 3
    assert Database.objects.get(project=project, slot=DatabaseSlot.CURRENT).server_id == old.pk
