"""Quotas as data: whose numbers count, where they are seen, and what a lowered one does to what there is."""

from __future__ import annotations

from typing import Any

import pytest
from django.test import Client
from rest_framework.test import APIClient

from accounts.models import AuditEvent, Organization, QuotaDefaults
from accounts.permissions import Principal
from novastack.common.errors import Problem, QuotaExceeded
from projects.models import ApiKey, Plan, Project, ProjectService
from projects.services import key_create, project_action, project_delete, quotas
from projects.services.quotas import project_usage, usage_of
from tests.factories import Team, UserFactory, api_client, make_catalogue, make_project

GIB = 1 << 30


@pytest.fixture
def shop(team: Team) -> Project:
    return make_project(team.alice, team.organization)


@pytest.fixture
def bob(team: Team) -> APIClient:
    make_catalogue()
    return api_client(team.bob)


def test_the_installs_numbers_count_until_it_has_its_own(team: Team) -> None:
    assert team.organization.quotas() == {
        "max_projects": 40, "max_memory_bytes": 16 * GIB, "max_storage_bytes": 200 * GIB, "max_backups": 500,
        "max_backup_bytes": 500 * GIB,
    }  # fmt: skip
    QuotaDefaults.objects.update_or_create(id=1, defaults={"max_projects": 7, "max_backups": 9})
    Organization.objects.filter(pk=team.organization.pk).update(max_projects=0)
    team.organization.refresh_from_db()
    assert team.organization.quotas()["max_projects"] == 0, "none at all is a number"
    assert team.elsewhere.quotas()["max_projects"] == 7
    assert team.organization.quotas()["max_backups"] == 9


def test_usage_over_the_api(team: Team, shop: Project, bob: APIClient) -> None:
    body = bob.get("/api/v1/organizations/acme/usage/").json()
    assert body == {
        "projects": {"limit": 40, "used": 1},
        "memory_bytes": {"limit": 16 * GIB, "used": shop.memory_bytes},
        "storage_bytes": {"limit": 200 * GIB, "used": shop.storage_bytes},
        "backups": {"limit": 500, "used": 0},
        "backup_bytes": {"limit": 500 * GIB, "used": 0},
    }
    body = bob.get("/api/v1/organizations/acme/").json()
    assert (body["max_projects"], body["max_backup_bytes"]) == (40, 500 * GIB)
    plan = bob.get("/api/v1/plans/").json()["results"][0]
    assert (plan["max_databases"], plan["max_api_keys"], plan["max_services"]) == (1, 10, 3)


def test_what_another_app_counts_is_counted(team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quotas, "_counters", [])
    asked = []

    def count(organization: Organization) -> dict[str, int]:
        asked.append(organization)
        return {"backups": 3, "backup_bytes": 5 if organization == team.organization else 0}

    quotas.count_also(("backups", "backup_bytes"), count)
    quotas.check(team.organization, projects=1)
    assert not asked, "of what is not asked for nothing is counted"
    assert usage_of(team.organization)["backups"] == {"limit": 500, "used": 3}
    quotas.check(team.organization, backups=497)
    with pytest.raises(QuotaExceeded, match="backups is 500, 3 are used"):
        quotas.check(team.organization, backups=498)
    with pytest.raises(QuotaExceeded, match="storage of backups is 500 GiB"):
        quotas.check(team.organization, backup_bytes=500 * GIB)


@pytest.mark.parametrize("field", ["max_projects", "max_memory_bytes", "max_storage_bytes"])
def test_a_quota_below_use_refuses_more_and_breaks_nothing(
    team: Team, shop: Project, bob: APIClient, field: str
) -> None:
    Organization.objects.update(**{field: 0})
    refused = bob.post("/api/v1/projects/", {"name": "More"})
    assert (refused.status_code, refused.json()["code"]) == (409, "quota_exceeded")
    assert "is 0" in refused.json()["detail"]
    assert Project.objects.count() == 1
    alice = Principal.of(team.alice)
    operation = project_action(principal=alice, project=shop, action="restart")
    assert operation.kind == "restart"
    shop.refresh_from_db()
    usage = usage_of(Organization.objects.get(pk=team.organization.pk))
    assert usage[field.removeprefix("max_")]["used"] > usage[field.removeprefix("max_")]["limit"] == 0
    assert project_delete(principal=alice, project=shop).kind == "delete"


def test_less_memory_is_always_allowed(team: Team, shop: Project, bob: APIClient) -> None:
    Organization.objects.update(max_memory_bytes=1)
    url = f"/api/v1/projects/{shop.pk}/"
    assert bob.patch(url, {"limits": {"memory_bytes": 256 << 20}}).status_code == 200
    Project.objects.update(memory_bytes=256 << 20)


def test_a_plans_numbers(team: Team, shop: Project, bob: APIClient) -> None:
    alice = Principal.of(team.alice)
    made = [key_create(principal=alice, project=shop, name=f"k{n}")[0] for n in range(3)]
    ProjectService.objects.create(project=shop, service_type="auth", status="active")
    ProjectService.objects.create(project=shop, service_type="storage", status="disabled")
    ApiKey.objects.filter(pk=made[0].pk).update(revoked_at=made[0].created_at)
    Plan.objects.update(max_api_keys=2, max_services=0)
    shop = Project.objects.get(pk=shop.pk)
    assert project_usage(shop) == {
        "databases": {"limit": 1, "used": 1}, "api_keys": {"limit": 2, "used": 2}, "services": {"limit": 0, "used": 1},
    }  # fmt: skip
    assert bob.get(f"/api/v1/projects/{shop.pk}/resources/").json()["quotas"] == project_usage(shop)
    for body, url in (
        ({"name": "k"}, f"/api/v1/projects/{shop.pk}/api-keys/"),
        ({"action": "enable"}, f"/api/v1/projects/{shop.pk}/services/storage/"),
    ):  # fmt: skip
        refused = bob.post(url, body)
        assert (refused.status_code, refused.json()["code"]) == (409, "quota_exceeded"), refused.content
    assert made[1].state == "active", "what there is goes on"


def test_a_plan_of_no_databases_makes_none(team: Team, bob: APIClient) -> None:
    Plan.objects.update(max_databases=0)
    refused = bob.post("/api/v1/projects/", {"name": "Shop"})
    assert (refused.status_code, refused.json()["code"]) == (409, "quota_exceeded")
    assert "choose another" in refused.json()["detail"]


class TestPages:
    def test_everybody_of_it_sees_what_is_used(self, team: Team, shop: Project) -> None:
        QuotaDefaults.objects.update_or_create(id=1, defaults={"max_projects": 1})
        browser = Client()
        browser.force_login(team.vera)
        page = browser.get("/usage/").content.decode()
        assert "1 of 1" in page and "Used up" in page and "Storage of backups" in page
        assert "/usage/" in browser.get("/projects/").content.decode()
        outsider = Client()
        outsider.force_login(team.charlie)
        assert "0 of 1" in outsider.get("/usage/").content.decode()

    def test_operators_change_them(self, team: Team, shop: Project) -> None:
        browser = Client()
        browser.force_login(UserFactory(is_staff=True, is_superuser=True))
        page = browser.get(f"/admin/accounts/organization/{team.organization.pk}/change/").content.decode()
        assert "Projects: 1 of 40" in page
        assert browser.get("/admin/accounts/quotadefaults/").status_code == 200
        assert browser.get("/admin/accounts/quotadefaults/add/").status_code == 403
        sent: dict[str, Any] = dict.fromkeys(team.organization.quotas(), 5)
        assert browser.post("/admin/accounts/quotadefaults/1/change/", sent).status_code == 302
        assert QuotaDefaults.load().max_backups == 5
        assert AuditEvent.objects.filter(action="quota_defaults.changed").exists()
        with pytest.raises(Problem):
            quotas.check(team.organization, projects=5)
