"""FerretDB: round trips through the API. Every kind of value and collection that it takes, proven, into a new project, in
place and back; in containers and as processes."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from backups.models import Backup, StorageTarget
from projects.engines.ferretdb import FerretDB, FerretDBAdmin
from projects.models import Database, DatabaseServer, DatabaseSlot, Endpoint, Operation, Project
from projects.services import project_action
from tests.engines.test_copies_ferretdb import NAMES, VALUES
from tests.engines.test_copies_ferretdb import fill as fill_nastily
from tests.factories import api_client
from tests.faults import lanes
from tests.faults.clients import CLIENTS
from tests.faults.conftest import Site, make_site, require_docker
from tests.restores.taken import take
from tests.restores.test_in_place import all_run, begin, undo, unproven
from tests.restores.test_new_projects import restore, run, told

pytestmark = pytest.mark.docker
TOOLS = Path(__file__).resolve().parents[2] / "images/ferretdb/tools"
NOT_WHOLE = "line\nbreak"


def with_tools(patch: pytest.MonkeyPatch) -> None:
    """As an operator of processes has them: on PATH."""
    found = subprocess.run([TOOLS], capture_output=True, text=True, timeout=300, check=False)
    if found.returncode:
        pytest.skip(found.stderr.strip()[-300:])
    patch.setenv("PATH", f"{os.environ['PATH']}:{found.stdout.strip()}")


@pytest.fixture(params=["docker", "process"])
def site(request: pytest.FixtureRequest, _fresh: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    if request.param == "docker":
        require_docker("ferretdb", CLIENTS["ferretdb"].versions["docker"])
    else:
        lanes.require("ferretdb", "process", monkeypatch)
        with_tools(monkeypatch)
    yield from make_site(request.param, "ferretdb")


def words(site: Site, project: Project) -> int:
    with site.login(project) as database:
        return int(database["more"].count_documents({}))


def test_round_trip(site: Site, target: StorageTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    project = site.ready()
    with site.login(project) as database:
        fill_nastily(database)
        database[NOT_WHOLE].insert_one({"_id": 1})
        database["more"].insert_many([{"_id": 1}, {"_id": 2}])
    asked = api_client(site.team.alice).post(f"/api/v1/projects/{project.pk}/backups/", {}, format="json")
    assert asked.status_code == 202, asked.content
    backup = Backup.objects.get(pk=asked.json()["id"])
    all_run(site, Operation.objects.get(pk=backup.operation_id))
    for proof in Operation.objects.filter(kind="verify"):
        all_run(site, proof)
    backup.refresh_from_db()
    assert backup.status == "verified", (backup.status, backup.error, backup.verify_error)
    tables = backup.manifest["contents"]["tables"]
    assert {"every", "empty", "capped", "large", "many", "more", "orders", *NAMES} <= set(tables)
    assert NOT_WHOLE not in tables
    notes = " ".join(backup.notes)
    assert "line break" in notes and "one moment" in notes and "capped" in notes and "Logins" in notes, notes
    unproven(project)
    with site.login(project) as database:
        database.drop_collection(NOT_WHOLE)
        database["more"].insert_one({"_id": 3})

    made = restore(site, backup, target="new_project", name="Copy")
    operation = run(site, made, 200)
    assert operation.state == "succeeded", told(operation)
    copy = Project.objects.get(pk=made.project_uuid)
    assert (copy.status, words(site, copy), site.rows_of(copy)) == ("running", 2, 1000)
    with site.login(copy) as database:
        assert database["every"].find_one({"_id": "all"})["i64"] == VALUES["i64"]
        assert set(database["many"].index_information()) == {"_id_", "two of them", "u_1", "x.y_1"}
    site.check_things(copy)
    if site.region.runtime == "process":  # the rest is nothing of the runtime's
        return

    address = Endpoint.objects.values_list("host", "port").get(project=project)
    old = DatabaseServer.objects.get(project_uuid=project.pk)
    made, operation = begin(site, backup, target="in_place", confirm=project.slug)
    all_run(site, operation)
    assert operation.state == "succeeded", told(operation)
    assert words(site, project) == 2
    assert Endpoint.objects.values_list("host", "port").get(project=project) == address
    made.refresh_from_db()
    rotation = project_action(principal=site.alice, project=project, action="rotate_password")
    assert site.finish(rotation).state == "succeeded"
    with monkeypatch.context() as patched:  # as MongoDB, which gives hashes to nobody
        patched.setattr(FerretDBAdmin, "password_hashes", lambda *_: {})
        back = all_run(site, undo(site, made))
    assert back.state == "succeeded", told(back)
    assert words(site, project) == 3  # logged in with the password of today
    assert Database.objects.get(project=project, slot=DatabaseSlot.CURRENT).server_id == old.pk


def test_without_the_tools_it_says_what_is_missing(
    _fresh: None, target: StorageTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    lanes.require("ferretdb", "process", monkeypatch)
    for site in make_site("process", "ferretdb"):
        project = site.ready()
        monkeypatch.setattr(FerretDB, "dump_program", "no-such-mongodump")
        with pytest.raises(AssertionError, match=r"tools_missing.*no-such-mongodump"):
            take(project)
        assert Backup.objects.get().status == "failed"
