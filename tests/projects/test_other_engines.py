"""What pages and API make of engines that a region can't run, or that want other names and more memory."""

from __future__ import annotations

from typing import Any

import pytest
from django.test import Client

from novastack.common.clock import now
from projects import registry
from projects.domain import RuntimeUnreachable
from projects.engines.postgresql import PostgreSQL
from projects.models import Plan, Project, Region
from projects.operations import abilities, fences
from projects.runtimes.memory import MemoryRuntime
from tests.factories import Team, api_client, make_catalogue, make_project

pytestmark = pytest.mark.django_db
HTMX: dict[str, Any] = {"headers": {"HX-Request": "true"}}
MISSING = "this machine has no mariadbd 11.8"


class OldMachine(MemoryRuntime):
    """Has one MariaDB and no MySQL."""

    def lacks(self, engine: str, version: str, official: str, override: str = "") -> str:
        if engine == "mysql":
            return f"this machine has no mysqld {version}"
        return MISSING if (engine, version) == ("mariadb", "11.8") else ""


@pytest.fixture
def region() -> Region:
    make_catalogue()
    found = Region.objects.get(slug="local")
    assert abilities.look(found, OldMachine("test"))
    assert not abilities.look(found, OldMachine("test"))
    return found


@pytest.fixture
def bob(team: Team) -> Client:
    client = Client()
    client.force_login(team.bob)
    return client


class TestCatalogue:
    def engines(self, team: Team) -> dict[str, dict[str, Any]]:
        rows = api_client(team.bob).get("/api/v1/engines/").json()["results"]
        return {row["name"]: row for row in rows}

    def test_everything_is_there_where_nothing_lacks(self, team: Team) -> None:
        make_catalogue()
        found = self.engines(team)
        assert set(found) == set(registry.engines())
        assert all(row["available"] and all(v["available"] for v in row["versions"]) for row in found.values())

    def test_what_an_engine_can_not_do_is_said_before_it_is_chosen(self, team: Team, bob: Client) -> None:
        make_catalogue()
        found = self.engines(team)
        assert found["postgresql"]["limitations"] == []
        told = " ".join(found["ferretdb"]["limitations"])
        assert "no rights" in told and "storage limit is not enforced" in told and "not limited" in told
        assert found["ferretdb"]["versions"][0]["end_of_life"] is None
        for engine, says in (("ferretdb", True), ("postgresql", False)):
            part = bob.get(f"/projects/new/preview/?engine={engine}&name=Shop", **HTMX).content.decode()
            assert ("storage limit is not enforced" in part) is says

    def test_a_runtime_that_does_not_answer_changes_nothing(self, region: Region) -> None:
        class Away(OldMachine):
            def lacks(self, engine: str, version: str, official: str, override: str = "") -> str:
                raise RuntimeUnreachable("gone")

        before = region.lacks
        assert not abilities.look(region, Away("test"))
        assert Region.objects.get(pk=region.pk).lacks == before != {}

    def test_what_a_region_lacks_is_said_with_the_reason(self, team: Team, region: Region) -> None:
        found = self.engines(team)
        assert found["postgresql"]["available"]
        assert found["mysql"]["available"] is False
        assert "no mysqld 9.7" in found["mysql"]["reason"]
        assert found["mysql"]["runtimes"] == []
        assert found["mariadb"]["available"]
        versions = {v["version"]: v for v in found["mariadb"]["versions"]}
        assert (versions["11.8"]["available"], versions["11.8"]["reason"]) == (False, MISSING)
        assert versions["10.11"]["available"]


class TestCreating:
    def create(self, team: Team, **sent: Any) -> Any:
        return api_client(team.bob).post("/api/v1/projects/", {"name": "Orders", **sent}, format="json")

    def test_the_version_is_one_that_the_region_can_run(self, team: Team, region: Region) -> None:
        assert self.create(team, engine="mariadb").status_code == 201
        assert Project.objects.get().version == "11.4"

    @pytest.mark.parametrize(
        ("sent", "field"), [({"engine": "mysql"}, "engine"), ({"engine": "mariadb", "version": "11.8"}, "version")]
    )
    def test_what_it_can_not_is_refused_with_the_reason(
        self, team: Team, region: Region, sent: dict[str, str], field: str
    ) -> None:
        answer = self.create(team, **sent)
        assert answer.status_code == 400
        (error,) = answer.json()["errors"]
        assert (error["field"], error["code"]) == (field, "not_available")
        assert "this machine has no" in str(error)
        assert not Project.objects.exists()

    def test_user_names_are_as_long_as_the_engine_takes_them(self, team: Team) -> None:
        make_catalogue()
        assert self.create(team, username="u" * 63).status_code == 201
        answer = self.create(team, name="More", engine="mysql", username="u" * 33)
        assert answer.json()["errors"][0]["field"] == "username"
        long = self.create(team, name="a very long name that goes on and on until the end", engine="mysql")
        assert long.status_code == 201
        names = Project.objects.get(engine="mysql").databases.get().roles.values_list("name", flat=True)
        assert max(map(len, names)) <= 32

    def test_less_memory_than_the_engine_needs_is_refused(self, team: Team) -> None:
        make_catalogue()
        mysql = registry.engine("mysql")
        answer = self.create(team, engine="mysql", limits={"memory_bytes": mysql.minimum_memory_bytes - 1})
        assert answer.json()["errors"][0]["field"] == "limits.memory_bytes"
        Plan.objects.update(memory_bytes=200 << 20)
        answer = self.create(team, engine="mysql")
        assert (answer.status_code, answer.json()["errors"][0]["field"]) == (400, "plan")
        assert self.create(team, engine="mariadb").status_code == 201


class TestEnginesThatCanNot:
    """Nothing is promised that an engine can't keep."""

    @pytest.mark.parametrize(("engine", "version", "fenced"), [("ferretdb", "1.24", 0), ("postgresql", "18", 1)])
    def test_no_fence_on_paper(self, team: Team, engine: str, version: str, fenced: int) -> None:
        project = make_project(team.alice, team.organization, engine=engine, version=version)
        Project.objects.filter(pk=project.pk).update(ready_at=now(), storage_bytes=10, size_bytes=1000)
        assert fences.decide() == fenced
        Region.objects.update(disk={"level": "fenced"})
        assert fences.decide() == fenced
        project.refresh_from_db()
        assert bool(project.write_fence) is bool(fenced)

    @pytest.mark.parametrize(("engine", "version", "can"), [("ferretdb", "1.24", False), ("postgresql", "18", True)])
    def test_sessions_that_can_not_be_ended(
        self, team: Team, bob: Client, engine: str, version: str, can: bool
    ) -> None:
        project = make_project(team.alice, team.organization, engine=engine, version=version)
        Project.objects.filter(pk=project.pk).update(ready_at=now(), status="running", desired_status="running")
        dialog = bob.get(f"/projects/{project.pk}/rotate/", **HTMX).content.decode()
        assert ('name="end_sessions"' in dialog) is can
        assert ("restart the database" in dialog) is not can
        page = bob.get(f"/projects/{project.pk}/").content.decode()
        assert ("not limited for a login" in page) is not can


class TestPages:
    def test_an_engine_that_can_not_run_is_shown_with_the_reason(self, bob: Client, region: Region) -> None:
        page = bob.get("/projects/new/").content.decode()
        assert "Not here: this machine has no mysqld" in page
        assert "Versions 11.4, 10.11" in page

    def test_another_engine_brings_its_versions(self, bob: Client, region: Region) -> None:
        part = bob.get("/projects/new/preview/?engine=mariadb&name=Shop&version=18", **HTMX).content.decode()
        assert 'id="new-version" hx-swap-oob="true"' in part
        assert '<option value="11.4" selected>' in part
        assert '<option value="11.8" disabled>11.8 (not here)' in part
        assert "PostgreSQL" not in part

    def test_the_connect_dialog_speaks_the_engines_language(self, bob: Client, team: Team) -> None:
        project = make_project(team.alice, team.organization, engine="mariadb", version="11.8")
        page = bob.get(f"/projects/{project.pk}/connect/").content.decode()
        assert "mariadb --skip-ssl" in page
        assert "mysql://" in page
        assert "psql" not in page and "postgresql" not in page


def test_an_engine_is_a_class_an_image_and_a_line() -> None:
    """Outside of engines/ only the registry knows which there are."""
    assert registry.engine(registry.DEFAULT_ENGINE).name == PostgreSQL.name
    for engine in registry.engines().values():
        assert engine.client_program and engine.server_program and engine.shrink_words
        assert len(engine.short) == 2
