"""The catalogue of versions: shipped, and refreshed by the operator."""

from __future__ import annotations

import io
import json
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.core.management import CommandError, call_command
from django.test import Client
from django.utils import timezone
from rest_framework.test import APIClient

from accounts.models import AuditEvent, User
from accounts.permissions import Principal
from novastack.common.errors import Invalid
from projects import registry
from projects.domain import EngineVersion, ImageMissing, ImageRef
from projects.engines import catalogue as shape
from projects.engines.catalogue import CatalogueInvalid
from projects.models import DatabaseServer, EngineRelease, Operation
from projects.operations import runner, wiring
from projects.operations.catalogue import everything, versions_of
from projects.runtimes.memory import MemoryRuntime
from projects.services import ProjectRequest, project_create
from projects.services.catalogue import catalogue_export, catalogue_import, catalogue_reset
from tests.factories import Team, make_catalogue, make_project

DIGEST = f"sha256:{'a1' * 32}"
YESTERDAY = timezone.now().date() - timedelta(days=1)


def toml(**fields: Any) -> str:
    return "\n".join(["[[postgresql]]", *(f"{key} = {value}" for key, value in fields.items())])


def test_what_is_shipped_is_valid_for_every_engine() -> None:
    shipped = shape.shipped(registry.engines())
    assert set(shipped) == set(registry.engines())
    for name, entries in shipped.items():
        assert sum(entry.default for entry in entries) == 1, name
        found = shape.merged(entries, [], date(2026, 11, 21))
        assert [entry.sort_key for entry in found] == sorted((entry.sort_key for entry in found), reverse=True)
    assert shape.parse(shape.dump(shipped), registry.engines()) == shipped


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[[postgres]]\nversion = '18'", "'postgres' is no engine; use one of: ferretdb, mariadb"),
        (toml(version='"eighteen"'), "1 to 2 numbers with dots between"),
        (toml(version='"18.1.2"'), "1 to 2 numbers"),
        (toml(version='"018"'), "1 to 2 numbers"),
        (toml(version='"14"'), "from 15 on"),
        (toml(version='"٣٠"'), "1 to 2 numbers"),
        ("[[ferretdb]]\nversion = '2.1'", "below 2.0 only"),
        (toml(version='"18"', digest='"sha256:abc"'), "`sha256:` and 64 digits"),
        (toml(version='"18"', digest='"md5:' + "a" * 64 + '"'), "`sha256:` and 64 digits"),
        (toml(version='"18"', image='"Postgres; rm -rf"'), "Give an image as"),
        (toml(version='"18"', image=f'"postgres@{DIGEST}"'), "without a digest"),
        (toml(version='"18"', end_of_life='"soon"'), "a date such as"),
        (toml(version='"18"', end_of_life="1999-01-01"), "between 2000-01-01"),
        (toml(version='"18"', end_of_life="2026-11-12T00:00:00Z"), "a date such as"),
        (toml(version='"18"', default="true", deprecated="true"), "deprecated version can't be the default"),
        (toml(version='"18"', default='"yes"'), "`default` must be true or false"),
        (toml(version="18"), "`version` must be a text"),
        (toml(image='"postgres:18"'), "`version` is missing"),
        (toml(version='"18"', offer='["never"]'), "`offer` must be a text"),
        (toml(version='"18"', offer='"maybe"'), "`offer` is one of until_end, always, never"),
        (toml(version='"18"', colour='"red"'), "'colour' is no field"),
        (toml(version='"18"') + "\n" + toml(version='"18"'), "18 is there twice"),
        (toml(version='"18"', default="true") + "\n" + toml(version='"17"', default="true"), "only one version"),
        ("[postgresql]\nversion = '18'", "give a list of entries"),
        ("postgresql = [18]", "give a list of entries"),
        ("{", "Neither TOML nor JSON"),
        ("not a = catalogue at all", "Neither TOML nor JSON"),
        ("", "There is no entry"),
    ],
)
def test_a_bad_catalogue_is_refused_with_a_reason(text: str, says: str) -> None:
    with pytest.raises(CatalogueInvalid) as error:
        shape.parse(text, registry.engines())
    assert says in str(error.value)


@pytest.mark.django_db
class TestImport:
    def test_all_or_nothing_and_every_problem_is_named(self) -> None:
        given = {"postgresql": [{"version": "19"}, {"version": "x"}], "mysql": [{"version": "9.9", "digest": "d"}]}
        with pytest.raises(CatalogueInvalid) as error:
            catalogue_import(text=json.dumps(given))
        assert len(error.value.problems) == 2
        assert "postgresql, entry 2" in error.value.problems[0]
        assert not EngineRelease.objects.exists()

    def test_a_new_version_a_pin_a_deprecation_and_an_end_need_no_release(self) -> None:
        found = catalogue_import(
            text=f"""
            [[postgresql]]
            version = "19"
            image = "registry.example:5000/db/postgres:19.1"
            digest = "{DIGEST}"
            default = true
            end_of_life = 2031-11-13
            [[postgresql]]
            version = "17"
            deprecated = true
            [[postgresql]]
            version = "16"
            end_of_life = {YESTERDAY}
            [[mariadb]]
            version = "11.8"
            digest = "{DIGEST}"
            """
        )
        assert found.added == ("postgresql 19", "postgresql 17", "postgresql 16", "mariadb 11.8")
        versions = versions_of(registry.engine("postgresql"))
        assert [entry.version for entry in versions.entries] == ["19", "18", "17", "16", "15"]
        assert versions.default == "19"
        assert [entry.version for entry in versions.offered] == ["19", "18", "17", "15"]
        assert versions.image_of("19") == f"registry.example:5000/db/postgres@{DIGEST}"
        mariadb = everything()["mariadb"]
        assert mariadb.default == "11.8", "the shipped default stays, though the entry says nothing about it"
        assert mariadb.image_of("11.8") == f"mariadb@{DIGEST}"
        assert mariadb.image_of("11.4") == ""
        assert AuditEvent.objects.get(action="catalogue.changed").data["added"][0] == "postgresql 19"

    def test_the_same_again_changes_nothing(self) -> None:
        catalogue_import(text=toml(version='"17"', deprecated="true"))
        assert catalogue_import(text=toml(version='"17"', deprecated="true")).nothing
        assert AuditEvent.objects.filter(action="catalogue.changed").count() == 1

    def test_a_second_default_is_refused_also_with_what_was_there(self) -> None:
        catalogue_import(text=toml(version='"17"', default="true"))
        with pytest.raises(CatalogueInvalid, match="not 16 and 17"):
            catalogue_import(text=toml(version='"16"', default="true"))
        moved = toml(version='"16"', default="true") + "\n" + toml(version='"17"')
        assert catalogue_import(text=moved).changed == ("postgresql 17",)
        assert versions_of(registry.engine("postgresql")).default == "16"

    def test_replace_and_reset_fall_back_to_what_is_shipped(self) -> None:
        catalogue_import(text=toml(version='"19"', default="true"))
        assert catalogue_import(text=toml(version='"20"'), replace=True).removed == ("postgresql 19",)
        assert catalogue_reset(engine="postgresql", version="20")
        assert not catalogue_reset(engine="postgresql", version="20")
        assert versions_of(registry.engine("postgresql")).default == "18"

    def test_what_is_exported_can_be_imported(self) -> None:
        catalogue_import(text=toml(version='"19.1"', offer='"always"', digest=f'"{DIGEST}"'))
        before = everything()
        catalogue_import(text=catalogue_export(), replace=True)
        assert everything() == before
        assert 'version = "19.1"' in catalogue_export(own_only=True)

    def test_a_default_at_its_end_is_followed_by_the_newest_that_is_not_deprecated(self) -> None:
        catalogue_import(text=toml(version='"18"', end_of_life=str(YESTERDAY)))
        assert versions_of(registry.engine("postgresql")).default == "17"
        catalogue_import(text=toml(version='"18"', end_of_life=str(YESTERDAY), offer='"always"'))
        assert versions_of(registry.engine("postgresql")).default == "18", "the operator says so"

    def test_by_command(self, tmp_path: Path) -> None:
        file = tmp_path / "versions.toml"
        file.write_text(toml(version='"19"'))
        out = io.StringIO()
        call_command("catalogue", "check", str(file), stdout=out)
        assert "postgresql 19: new" in out.getvalue()
        assert not EngineRelease.objects.exists()
        call_command("catalogue", "import", str(file), stdout=out)
        call_command("catalogue", stdout=out)
        assert "  19 " in out.getvalue()
        file.write_text(toml(version='"nineteen"'))
        with pytest.raises(CommandError, match="Nothing was imported"):
            call_command("catalogue", "import", str(file))
        with pytest.raises(CommandError, match="can't be read"):
            call_command("catalogue", "import", str(tmp_path / "missing"))
        call_command("catalogue", "export", stdout=out)
        call_command("catalogue", "reset", "postgresql", "19", stdout=out)
        with pytest.raises(CommandError, match="Nothing was said"):
            call_command("catalogue", "reset", "postgresql", "19")

    def test_a_row_is_held_to_the_same_rules(self) -> None:
        with pytest.raises(ValidationError) as error:
            EngineRelease(engine="postgresql", version="14", digest="x").full_clean()
        assert set(error.value.message_dict) == {"version", "digest"}
        with pytest.raises(ValidationError):
            EngineRelease(engine="oracle", version="23").full_clean()
        EngineRelease.objects.create(engine="postgresql", version="18", default=True)
        with pytest.raises(ValidationError):
            EngineRelease(engine="postgresql", version="17", default=True).full_clean()


@pytest.mark.django_db
class TestNewProjects:
    def make(self, team: Team, **request: Any) -> Any:
        make_catalogue()
        principal = Principal.of(team.alice)
        return project_create(
            principal=principal, organization=team.organization, request=ProjectRequest(name="Shop", **request)
        )

    def test_a_version_at_its_end_is_not_offered(self, team: Team) -> None:
        catalogue_import(text=toml(version='"16"', end_of_life=str(YESTERDAY)))
        with pytest.raises(Invalid) as error:
            self.make(team, version="16")
        assert (error.value.errors[0].field, error.value.errors[0].code) == ("version", "ended")
        assert str(YESTERDAY) in error.value.errors[0].detail

    def test_nor_one_that_is_withdrawn_nor_an_engine_without_any(self, team: Team) -> None:
        catalogue_import(text='[[ferretdb]]\nversion = "1.24"\noffer = "never"')
        for request in ({"engine": "ferretdb", "version": "1.24"}, {"engine": "ferretdb"}):
            with pytest.raises(Invalid) as error:
                self.make(team, **request)
            assert "No version of FerretDB is offered" in error.value.errors[0].detail

    def test_the_operators_default_is_taken(self, team: Team) -> None:
        catalogue_import(text=toml(version='"17"', default="true"))
        assert self.make(team).version == "17"

    def test_the_api_and_the_pages_show_it(self, team: Team, client: Client) -> None:
        make_catalogue()
        soon = timezone.now().date() + timedelta(days=20)
        catalogue_import(
            text="\n".join([
                toml(version='"16"', end_of_life=str(YESTERDAY)),
                toml(version='"15"', deprecated="true", end_of_life=str(soon)),
                toml(version='"18"', digest=f'"{DIGEST}"', end_of_life="2030-11-14"),
            ])
        )  # fmt: skip
        api = APIClient()
        api.force_authenticate(team.alice)
        rows = {row["name"]: row for row in api.get("/api/v1/engines/").json()["results"]}
        versions = {row["version"]: row for row in rows["postgresql"]["versions"]}
        assert versions["16"]["ended"] is True
        assert versions["16"]["offered"] is versions["16"]["available"] is False
        assert str(YESTERDAY) in versions["16"]["reason"]
        assert (versions["15"]["deprecated"], versions["15"]["end_of_life"]) == (True, str(soon))
        assert versions["18"]["image"] == f"postgres@{DIGEST}"
        client.force_login(team.alice)
        page = client.get("/projects/new/").content.decode()
        assert f"15 (deprecated, ends {soon:%-d %b %Y})" in page
        assert "18 (recommended)" in page
        assert ">16" not in page

    def test_operators_see_and_change_it(self, team: Team, client: Client, admin_user: User) -> None:
        project = make_project(team.alice, team.organization)
        client.force_login(team.alice)
        assert client.get("/operator/versions/").status_code in {403, 404}
        client.force_login(admin_user)
        page = client.get("/operator/versions/").content.decode()
        assert "PostgreSQL 18" in page
        assert "As shipped" in page
        fields = {"engine": "postgresql", "version": "19", "image": "", "digest": "nope", "offer": "until_end"}
        refused = client.post("/admin/projects/enginerelease/add/", fields)
        assert "64 digits" in refused.content.decode()
        made = client.post("/admin/projects/enginerelease/add/", fields | {"digest": DIGEST})
        assert made.status_code == 302
        assert EngineRelease.objects.get().version == "19"
        assert AuditEvent.objects.filter(action="catalogue.changed", actor=admin_user).exists()
        DatabaseServer.objects.filter(project_uuid=project.pk).update(version="13")
        page = client.get("/operator/versions/").content.decode()
        assert "Added here" in page
        assert "PostgreSQL 13: 1" in page


@pytest.mark.django_db
class TestImages:
    def test_servers_keep_their_image_whatever_the_catalogue_says(self, team: Team) -> None:
        """Rule 12: pinned at provisioning."""
        project = make_project(team.alice, team.organization, running=False)
        memory = wiring.runtime_of(project.region)
        assert isinstance(memory, MemoryRuntime)
        catalogue_import(text=toml(version='"18"', image='"mirror.example/postgres:18.1"', end_of_life="2030-11-14"))
        asked: list[str] = []

        def resolve(engine: str, version: str, official: str, override: str = "", *, pull: bool = False) -> ImageRef:
            asked.append(override)
            raise ImageMissing("none")

        memory.resolve_image = resolve  # type: ignore[method-assign]
        runner.run(Operation.objects.get(project_uuid=project.pk).pk)
        assert asked == ["mirror.example/postgres:18.1"]
        DatabaseServer.objects.filter(project_uuid=project.pk).update(image="postgres:18", image_digest="sha256:old")
        catalogue_import(text=toml(version='"18"', offer='"never"'))
        server = DatabaseServer.objects.get(project_uuid=project.pk)
        assert wiring.server_request(server).image == "sha256:old"

    def test_the_setting_wins_over_the_catalogue(self, settings: Any) -> None:
        catalogue_import(text=toml(version='"18"', image='"mirror.example/postgres:18.1"'))
        settings.NOVASTACK_IMAGES = {"postgresql:18": "special:1"}
        assert versions_of(registry.engine("postgresql")).image_of("18") == "special:1"


def test_merging_by_version() -> None:
    found = shape.merged([EngineVersion("9", default=True), EngineVersion("10")], [EngineVersion("11")], YESTERDAY)
    assert [(entry.version, entry.default) for entry in found] == [("11", False), ("10", False), ("9", True)]
