"""A backup of MariaDB goes into a server of a newer line, with all that was in it, and into none of an older one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from backups.models import StorageTarget
from projects import registry
from projects.domain import Credentials, Fingerprint
from projects.models import Database, Project
from tests.engines.test_copies_mysql import HOSTILE, MARIADB
from tests.faults.clients import password_of, role_of
from tests.faults.conftest import Site, make_site, require_docker
from tests.restores.taken import take
from tests.restores.test_in_place import ask, unproven
from tests.restores.test_new_projects import restore, run, told

pytestmark = pytest.mark.docker
OLDER, NEWER = "10.11", "11.8"


@pytest.fixture
def site(_fresh: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    for version in (OLDER, NEWER):
        require_docker("mariadb", version)
    monkeypatch.setattr(Site, "version", OLDER)
    yield from make_site("docker", "mariadb")


def content(project: Project) -> Fingerprint:
    """Asked of the server itself, and not told from a dump."""
    database = Database.objects.get(project=project)
    role = role_of(project)
    login = Credentials(role.name, password_of(role), database.name)
    return registry.engine("mariadb").fingerprint(database.server.control_endpoint, login)


def ask_it(site: Site, project: Project, *statements: str) -> list[tuple[Any, ...]]:
    with site.login(project) as session, session.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)
        session.commit()
        return list(cursor.fetchall())


def test_it_goes_into_a_newer_line_and_not_back(site: Site, target: StorageTarget) -> None:
    source = site.ready()
    unproven(source)
    ask_it(site, source, *HOSTILE, *MARIADB, "SET SESSION sql_mode = ''", "ALTER EVENT soon DISABLE")
    backup = take(source)
    assert backup.version == OLDER
    made = restore(site, backup, target="new_project", name="Newer", version=NEWER)
    operation = run(site, made, 200)
    assert operation.state == "succeeded", told(operation)
    copy = Project.objects.get(pk=made.project_uuid)
    assert (copy.status, copy.version, site.rows_of(copy)) == ("running", NEWER, 1000)
    assert ask_it(site, copy, "SELECT VERSION()")[0][0].startswith(f"{NEWER}.")
    mine, theirs = content(source), content(copy)
    # The newer one spells one definition in other words. Routines, triggers, events, views and sequences are as they were.
    assert mine.differences(theirs) == ["definition of table hidden differs"]
    assert {kind for kind, _ in theirs.facts} >= {
        "view", "function", "procedure", "trigger", "event", "package body", "sequence", "value of sequence"
    }  # fmt: skip
    said = {event.message for event in operation.events.filter(level="warning")}
    assert "After the upgrade: definition of table hidden differs" in said
    # And what acts in it acts.
    assert ask_it(
        site, copy, "INSERT INTO twins VALUES (2, 'y')", "SELECT what FROM log",
    ) == [('DELIMITER ;;"',), ("a\\\\';;",)]  # fmt: skip

    unproven(copy)
    later = take(copy)
    assert later.version == NEWER
    for body in (
        {"target": "new_project", "name": "Older", "version": OLDER},
        {"target": "project", "project": str(source.pk), "confirm": source.slug},
    ):
        answer = ask(site, later, **body)
        assert (answer.status_code, answer.json()["code"]) == (409, "version_too_old")
    assert Project.objects.count() == 2 and site.rows_of(source) == 1000
