"""The main job on FerretDB: the same operations, a real server, PyMongo as the client."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.errors import OperationFailure, PyMongoError

from novastack.common.errors import Invalid
from projects import registry
from projects.models import DatabaseServer, Project, WriteFence
from projects.operations import abilities, fences, janitor, watch, wiring
from projects.services import ProjectRequest, project_action, project_create, project_delete, project_purge
from projects.services.connections import render_connection
from tests.engines.test_main_path import act, docker_site, finished
from tests.faults.conftest import Site, _fresh, make_site  # noqa: F401 - a fixture

BINARY = Path(__file__).parents[2] / "images/ferretdb/binary"


@contextlib.contextmanager
def things(project: Project, uri: str = "") -> Iterator[Any]:
    """A collection, by the very URI that users get."""
    if not uri:
        project.endpoint.refresh_from_db()
        uri = render_connection(wiring.connection_info(project, project.databases.get()))["uri"]
    with MongoClient[dict[str, Any]](uri, serverSelectionTimeoutMS=3000) as client:
        yield client.get_default_database()["things"]


def words(project: Project, uri: str = "") -> list[str]:
    with things(project, uri) as collection:
        return [document["word"] for document in collection.find().sort("_id")]


def main_path(site: Site) -> None:
    project = project_create(
        principal=site.alice, organization=site.team.organization,
        request=ProjectRequest(name="Shop", engine="ferretdb", region="site"),
    )  # fmt: skip
    finished(site, project, site.operation(project))
    assert (project.status, project.version) == ("running", "1.24")
    server = DatabaseServer.objects.get(project_uuid=project.pk)
    assert server.system_identifier
    old = render_connection(wiring.connection_info(project, project.databases.get()))

    with things(project) as collection:
        collection.insert_many([{"_id": 1, "word": "kept 🐬"}, {"_id": 2, "word": "too"}])
        collection.create_index("word", unique=True)
    act(site, project, "restart")
    assert words(project) == ["kept 🐬", "too"]

    with pytest.raises(Invalid, match="end sessions"):
        project_action(principal=site.alice, project=project, action="rotate_password", end_sessions=True)
    act(site, project, "rotate_password")
    assert words(project) == ["kept 🐬", "too"]
    with pytest.raises(OperationFailure, match="Authentication failed"):
        words(project, old["uri"])

    Project.objects.filter(pk=project.pk).update(health_checked_at=None)
    watch.check_health()
    project.refresh_from_db()
    assert (project.health, project.connections, project.connections_limit) == ("healthy", None, None)
    assert project.size_bytes
    Project.objects.filter(pk=project.pk).update(storage_bytes=1)
    assert fences.decide() == 0  # no storage limit is promised where none can be kept
    project.refresh_from_db()
    assert project.write_fence == "" != WriteFence.STORAGE

    act(site, project, "stop")
    with pytest.raises(PyMongoError):
        words(project)
    act(site, project, "start")
    site.check_exactly(project)

    finished(site, project, project_delete(principal=site.alice, project=project))
    with pytest.raises(PyMongoError):
        words(project)
    act(site, project, "undelete")
    assert words(project) == ["kept 🐬", "too"]
    server.refresh_from_db()
    log = b"\n".join(site.runtime.logs(server.handle, tail=5000)).decode()
    for secret in (old["password"], wiring.connection_info(project, project.databases.get()).password):
        assert secret not in log

    finished(site, project, project_delete(principal=site.alice, project=project))
    operation = project_purge(principal=site.alice, project=project, confirm=project.slug)
    for _ in range(100):
        site.finish(operation, 0.01)
        janitor.delete_due_data()
        if not operation.live:
            break
    assert operation.state == "succeeded", operation.error
    assert not Project.objects.filter(pk=project.pk).exists()
    assert list(site.runtime.managed()) == []


@pytest.mark.docker
@pytest.mark.usefixtures("_fresh")
def test_the_main_job_in_a_container() -> None:
    with docker_site("ferretdb", "1.24") as site:
        main_path(site)


@pytest.mark.process
@pytest.mark.usefixtures("_fresh")
def test_the_main_job_as_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    built = subprocess.run([BINARY], capture_output=True, text=True, timeout=500, check=False)
    if built.returncode:
        pytest.skip(built.stderr.strip()[-300:])
    with contextlib.contextmanager(make_site)("process") as site:
        monkeypatch.setenv("PATH", "/usr/bin:/bin")
        abilities.look(site.region, site.runtime)
        assert "this machine has no ferretdb 1.24" in site.region.reason_against("ferretdb", "1.24")
        assert "this machine has no mongod 8" in site.region.reason_against("mongodb", "8")
        monkeypatch.setenv("PATH", f"{Path(built.stdout.strip()).parent}:{os.environ['PATH']}")
        abilities.look(site.region, site.runtime)
        assert site.region.reason_against("ferretdb", "1.24") == ""
        assert registry.engine("ferretdb").limitations
        main_path(site)
