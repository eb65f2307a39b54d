"""MariaDB and MySQL: round trips through the API. Dumps name no roles there: the copy has its own names at once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from django.db import transaction

from backups.models import ProofKind, StorageTarget
from backups.operations.proving import verify_begin
from projects.models import Database, DatabaseServer, DatabaseSlot, Endpoint, Project
from tests.faults.clients import CLIENTS, role_of
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


def events(site: Site, project: Project) -> list[tuple[str, bool]]:
    """Each, and whether it acts; all are the tenant's own."""
    with site.login(project) as session, session.cursor() as cursor:
        cursor.execute("SELECT event_name, status, definer FROM information_schema.events ORDER BY 1")
        rows = cursor.fetchall()
    assert {row[2] for row in rows} == {f"{role_of(project).name}@%"}
    return [(str(row[0]), row[1] == "ENABLED") for row in rows]


def test_a_row_that_takes_more_memory_than_the_plan_has(_fresh: None, target: StorageTarget) -> None:
    """It is proven by a larger throw-away server; the note says what a restore needs, and one that lacks it says so."""
    require_docker("mysql", "9.7")
    with contextlib.contextmanager(make_site)("docker", "mysql") as site:
        project = site.ready()
        unproven(project)
        with site.login(project) as session, session.cursor() as cursor:
            cursor.execute("CREATE TABLE large (id int PRIMARY KEY, b longblob)")
            cursor.execute("INSERT INTO large VALUES (1, repeat(0xff00, 17 * 1024 * 1024))")
            session.commit()
        backup = take(project)
        (note,) = [note for note in backup.notes if note.startswith("Its largest row has 68 MiB in the dump")]
        with transaction.atomic():
            proof = verify_begin(backup, kind=ProofKind.MANUAL, created_by_label="test")
        assert Site.finish(proof, 200).state == "succeeded", told(proof)
        backup.refresh_from_db()
        assert backup.status == "verified"
        made = restore(site, backup, target="new_project", name="Copy")
        operation = run(site, made, 200)
        assert operation.state == "failed" and operation.error is not None
        assert operation.error["code"] == "plan_too_small" and note in operation.error["detail"], told(operation)


def test_round_trip(site: Site, target: StorageTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    project = site.ready()
    unproven(project)
    with site.login(project) as session, session.cursor() as cursor:
        cursor.execute("CREATE TABLE more (id int PRIMARY KEY, t text)")
        cursor.execute("INSERT INTO more VALUES (1, 'naïve 🐬'), (2, NULL)")
        cursor.execute("CREATE VIEW seen AS SELECT id FROM more")
        cursor.execute("CREATE TRIGGER told BEFORE INSERT ON more FOR EACH ROW SET NEW.t = upper(NEW.t)")
        cursor.execute("CREATE TABLE large (id int PRIMARY KEY, b longblob)")
        if project.engine == "mariadb":  # as hexadecimal digits it is a statement larger than what a server takes
            cursor.execute("INSERT INTO large VALUES (1, repeat(0xff00, 17 * 1024 * 1024))")
        cursor.execute("SELECT database()")
        own = cursor.fetchone()[0]
        cursor.execute(f"CREATE PROCEDURE names_its_own() SELECT count(*) FROM {own}.more")
        cursor.execute(
            "CREATE EVENT `a``n 100%s` ON SCHEDULE EVERY 1 HOUR STARTS '2037-01-01' DO INSERT INTO more VALUES (9, 'x')"
        )
        cursor.execute("CREATE EVENT rests ON SCHEDULE EVERY 1 HOUR DISABLE DO SELECT 1")
        session.commit()
    backup = take(project)
    assert any("in the text of procedure names_its_own: leave" in note for note in backup.notes)
    said = any("in large (68 MiB): they can be restored" in note for note in backup.notes)
    assert said is (project.engine == "mariadb"), backup.notes
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
    with site.login(copy) as session, session.cursor() as cursor:
        cursor.execute("SELECT @@max_allowed_packet, (SELECT length(b) FROM large)")
        assert tuple(cursor.fetchone()) == (64 << 20, (34 << 20) if project.engine == "mariadb" else None)
    # Beside its source nothing acts by itself before somebody wants it to, and that is said (rule 26).
    assert events(site, project) == [("a`n 100%s", True), ("rests", False)]
    assert events(site, copy) == [("a`n 100%s", False), ("rests", False)]
    (told_so,) = operation.events.filter(message__startswith="Scheduled events came disabled")
    assert told_so.level == "warning" and told_so.message.endswith(": a`n 100%s")

    address = Endpoint.objects.values_list("host", "port").get(project=project)
    old = DatabaseServer.objects.get(project_uuid=project.pk)
    made, operation = begin(site, backup, target="in_place", confirm=project.slug)
    all_run(site, operation)
    assert operation.state == "succeeded", told(operation)
    assert count(site, project) == 2
    assert events(site, project) == [("a`n 100%s", True), ("rests", False)], "it takes its source's place"
    assert Endpoint.objects.values_list("host", "port").get(project=project) == address
    made.refresh_from_db()
    back = all_run(site, undo(site, made))
    assert back.state == "succeeded", told(back)
    assert count(site, project) == 3
    assert Database.objects.get(project=project, slot=DatabaseSlot.CURRENT).server_id == old.pk

    if project.engine != "mariadb":  # once is enough
        return
    unproven(copy)
    with site.login(copy) as session, session.cursor() as cursor:
        cursor.execute("ALTER EVENT rests ENABLE")
        session.commit()
    made, operation = begin(site, backup, target="project", project=str(copy.pk), confirm=copy.slug)
    all_run(site, operation)
    assert operation.state == "succeeded", told(operation)
    assert events(site, copy) == [("a`n 100%s", False), ("rests", False)]
    made.refresh_from_db()
    back = all_run(site, undo(site, made))
    assert back.state == "succeeded", told(back)
    assert events(site, copy) == [("a`n 100%s", False), ("rests", True)], "what comes back is as it was"
