"""TLS on the pages and in the API: the CA to download, the switch, and what is said where there is none."""

from __future__ import annotations

import pytest
from django.test import Client
from django.urls import reverse

from novastack.common import pki
from novastack.common.clock import now
from novastack.common.secrets import Sealed
from projects import domain
from projects.engines.postgresql import PostgreSQL
from projects.models import CertificateAuthority, DatabaseServer, Operation, Project
from projects.operations import certificates
from tests.factories import Team, api_client, make_project

INFO = domain.ConnectionInfo("postgresql", "127.0.0.1", 20001, "shop", "app", "it's $secret", tls=True)


@pytest.fixture
def project(team: Team) -> Project:
    """One whose server speaks TLS."""
    project = make_project(team.bob, team.organization)
    DatabaseServer.objects.filter(project_uuid=project.pk).update(
        tls_enabled=True, tls_not_after=now(), tls_authority=certificates.authority()
    )
    return project


@pytest.fixture
def bob(team: Team) -> Client:
    client = Client()
    client.force_login(team.bob)
    return client


class TestAuthority:
    def test_anybody_may_have_it(self, project: Project) -> None:
        answer = api_client().get("/api/v1/ca/", HTTP_ACCEPT="application/x-pem-file")
        assert answer.status_code == 200 and answer["Content-Type"] == "application/x-pem-file"
        assert 'filename="novastack-ca.pem"' in answer["Content-Disposition"]
        text = answer.content.decode()
        assert text == CertificateAuthority.objects.get().certificate and "PRIVATE" not in text
        assert api_client().get("/api/v1/ca").content == answer.content

    def test_before_there_is_one(self, db: None) -> None:
        answer = api_client().get("/api/v1/ca/")
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
        assert not CertificateAuthority.objects.exists()  # reading makes none

    def test_the_active_one_comes_first_and_ended_ones_are_left_out(self, db: None) -> None:
        old, gone = (pki.make_authority(name, at=now()) for name in ("old", "gone"))
        CertificateAuthority.objects.create(
            certificate=old.certificate, key=Sealed.of(old.key), not_after=old.not_after, active=False
        )
        CertificateAuthority.objects.create(
            certificate=gone.certificate, key=Sealed.of(gone.key), not_after=now(), active=False
        )
        active = certificates.authority().certificate
        assert certificates.trusted() == active + old.certificate


class TestConnecting:
    def test_the_dialog_offers_the_ca(self, bob: Client, project: Project) -> None:
        page = bob.get(reverse("projects:connect", args=[project.pk])).content.decode()
        assert 'href="/api/v1/ca/"' in page and "sslmode=verify-full" in page and "sslmode=require" in page

    def test_without_tls_it_does_not(self, bob: Client, project: Project) -> None:
        DatabaseServer.objects.update(
            tls_enabled=False, tls_reason="the postgres 18 of this machine was built without TLS"
        )
        page = bob.get(reverse("projects:connect", args=[project.pk])).content.decode()
        assert "/api/v1/ca/" not in page and "verify-full" not in page and "sslmode=disable" in page
        overview = bob.get(reverse("projects:detail", args=[project.pk])).content.decode()
        assert "Off: the postgres 18 of this machine was built without TLS" in overview
        answer = bob.post(reverse("projects:connect-secret", args=[project.pk]), {"what": "verified"})
        assert answer.status_code == 400

    def test_the_api_tells_where_the_ca_is(self, team: Team, project: Project) -> None:
        answer = api_client(team.bob).get(f"/api/v1/projects/{project.pk}/connection/").json()
        assert answer["tls"] is True and answer["ca_url"].endswith("/api/v1/ca/")
        assert answer["uri"].endswith("?sslmode=require") and answer["env"]["PGSSLMODE"] == "require"
        assert "sslrootcert=novastack-ca.pem" in answer["snippets"]["verified"]
        status = api_client(team.bob).get(f"/api/v1/projects/{project.pk}/status/").json()["server"]
        assert status["tls"] is True and status["tls_not_after"] and status["tls_reason"] == ""

    def test_node_is_given_the_file(self) -> None:
        text = PostgreSQL().snippets(INFO)["node"]
        assert "sslmode" not in text and 'readFileSync("novastack-ca.pem", "utf8")' in text


class TestTheSwitch:
    def test_it_starts_an_operation(self, bob: Client, project: Project) -> None:
        url = reverse("projects:settings", args=[project.pk])
        assert "Refuse connections without TLS" in bob.get(url).content.decode()
        assert bob.post(url, {"form": "tls", "tls_required": "on"}).status_code == 302
        project.refresh_from_db()
        assert project.tls_required
        assert Operation.objects.live().get(project_uuid=project.pk).kind == "change_tls"

    def test_by_the_api(self, team: Team, project: Project) -> None:
        answer = api_client(team.bob).patch(f"/api/v1/projects/{project.pk}/", {"tls_required": True}, format="json")
        assert answer.status_code == 200 and answer.json()["tls_required"] is True
        assert answer.json()["operation"]["kind"] == "change_tls"

    def test_where_there_is_no_tls_it_says_so(self, bob: Client, team: Team, project: Project) -> None:
        DatabaseServer.objects.update(
            tls_enabled=False, tls_reason="the postgres 18 of this machine was built without TLS"
        )
        url = reverse("projects:settings", args=[project.pk])
        assert "The postgres 18 of this machine was built without TLS." in bob.get(url).content.decode()
        page = bob.post(url, {"form": "tls", "tls_required": "on"})
        assert page.status_code == 400 and "built without TLS" in page.content.decode()
        answer = api_client(team.bob).patch(f"/api/v1/projects/{project.pk}/", {"tls_required": True}, format="json")
        assert answer.status_code == 400
        assert answer.json()["errors"][0] == {
            "field": "tls_required", "code": "not_available",
            "detail": "The postgres 18 of this machine was built without TLS.",
        }  # fmt: skip

    def test_when_creating(self, bob: Client, team: Team, project: Project) -> None:
        answer = api_client(team.bob).post("/api/v1/projects/", {"name": "Strict", "tls_required": True}, format="json")
        assert answer.status_code == 201 and answer.json()["tls_required"] is True
        assert (
            bob.post(
                reverse("projects:new"), {"name": "Form", "engine": "postgresql", "tls_required": "on"}
            ).status_code
            == 302
        )
        assert Project.objects.get(name="Form").tls_required


class TestTlsOnly:
    """An engine that speaks TLS or plain, never both."""

    def test_a_new_one_has_it_and_keeps_it(self, bob: Client, team: Team, project: Project) -> None:
        api = api_client(team.bob)
        body = {"name": "Docs", "engine": "ferretdb"}
        refused = api.post("/api/v1/projects/", body | {"tls_required": False}, format="json")
        assert refused.status_code == 400 and refused.json()["errors"][0]["field"] == "tls_required"
        made = api.post("/api/v1/projects/", body, format="json")
        assert made.status_code == 201 and made.json()["tls_required"] is True
        other = make_project(team.bob, team.organization, "Running", engine="ferretdb")
        url = reverse("projects:settings", args=[other.pk])
        page = bob.get(url).content.decode()
        assert "never both" in page and page.count('name="tls_required" checked disabled') == 1
        answer = bob.post(url, {"form": "tls"})
        assert answer.status_code == 400 and "can’t be turned off" in answer.content.decode()
        changed = api.patch(f"/api/v1/projects/{other.pk}/", {"tls_required": False}, format="json")
        assert (changed.status_code, changed.json()["errors"][0]["code"]) == (400, "not_available")
        other.refresh_from_db()
        assert other.tls_required

    def test_by_the_form_it_needs_no_tick(self, bob: Client, project: Project) -> None:
        assert bob.post(reverse("projects:new"), {"name": "Form", "engine": "ferretdb"}).status_code == 302
        assert Project.objects.get(name="Form").tls_required
        assert "Always so for FerretDB" in bob.get(reverse("projects:new")).content.decode()

    def test_one_from_before_is_told_what_it_costs(self, bob: Client, team: Team) -> None:
        old = make_project(team.bob, team.organization, "Old", engine="ferretdb")
        Project.objects.filter(pk=old.pk).update(tls_required=False)
        assert "Restarts the server" in bob.get(reverse("projects:settings", args=[old.pk])).content.decode()
        body = {"tls_required": True, "limits": {"memory_bytes": 256 << 20}}
        answer = api_client(team.bob).patch(f"/api/v1/projects/{old.pk}/", body, format="json")
        assert answer.status_code == 200 and answer.json()["operation"]["kind"] == "restart"
