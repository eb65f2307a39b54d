"""The Django admin of projects: every page answers, nothing secret is on it, nothing is deleted by it."""

from __future__ import annotations

from typing import Any

import pytest
from django.apps import apps
from django.contrib import admin
from django.test import Client
from django.urls import reverse

from accounts.models import AuditEvent, User
from accounts.permissions import Capability, OperatorPrincipal, Principal, require
from novastack.common import pki
from novastack.common.clock import now
from novastack.common.errors import PermissionDenied
from novastack.common.secrets import Sealed
from projects.models import (
    Allocation,
    BlankDatabase,
    BlockedPort,
    CertificateAuthority,
    DatabaseServer,
    DataTombstone,
    EngineRelease,
    MetricRollup,
    MetricSample,
    Operation,
    OperationEvent,
    Orphan,
    Project,
    ProjectService,
    Region,
    ServiceConnector,
    StandbyTarget,
    TableSnapshot,
)
from projects.services import key_create
from tests.factories import Team, UserFactory, make_project

MODELS = [model for model in apps.get_app_config("projects").get_models() if model in admin.site._registry]

CA = pki.make_authority("Test", at=now())


@pytest.fixture
def operator(db: None) -> User:
    return UserFactory(email="root@example.test", is_staff=True, is_superuser=True)


@pytest.fixture
def browser(operator: User) -> Client:
    client = Client()
    client.force_login(operator)
    return client


@pytest.fixture
def project(team: Team) -> Project:
    project = make_project(team.bob, team.organization)
    region = Region.objects.get(slug="local")
    operation = Operation.objects.get(project_uuid=project.pk)
    BlockedPort.objects.create(region=region, port=20001, until=now())
    CertificateAuthority.objects.create(certificate=CA.certificate, key=Sealed.of(CA.key), not_after=CA.not_after)
    Orphan.objects.create(region=region, name="nvs-stranger")
    EngineRelease.objects.create(engine="postgresql", version="17", deprecated=True)
    StandbyTarget.objects.create(region=region, engine="postgresql", version="18", plan=project.plan)
    ServiceConnector.objects.create(
        region=region, service_type="auth", url="https://auth.example/", signing_secret=Sealed.of(CA.key)
    )
    ProjectService.objects.create(project=project, service_type="auth", config={"secret": CA.key})
    key_create(principal=Principal.of(team.bob), project=project, name="web")
    MetricSample.objects.create(project=project, at=now(), cpu_percent=1)
    MetricRollup.objects.create(project=project, at=now(), step=300)
    BlankDatabase.objects.create(server=project.databases.get().server, name="nvs_blank_1")
    Allocation.objects.create(organization=team.organization, instance_id="shop-1", project=project)
    TableSnapshot.objects.create(project=project, tried_at=now(), at=now(), total=1, tables=[["salaries", 1, 1]])
    OperationEvent.objects.create(operation=operation, at=now(), message="hello")
    DataTombstone.objects.create(server_uuid=project.pk, incarnation=1, region=region, reason="purged", due_at=now())
    make_project(team.bob, team.organization, "Waiting", running=False)
    return project


def test_every_model_is_registered() -> None:
    assert set(MODELS) == set(apps.get_app_config("projects").get_models())


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model._meta.model_name)
def test_lists_and_pages_answer_and_hold_no_secret(
    browser: Client, project: Project, model: Any, django_assert_max_num_queries: Any
) -> None:
    name = f"admin:{model._meta.app_label}_{model._meta.model_name}"
    secrets = [
        secret.open()
        for server in DatabaseServer.objects.all()
        for secret in [server.admin_secret, *[role.secret for role in server.roles.all()]]
        if secret is not None
    ] + [CA.key]
    with django_assert_max_num_queries(16):
        page = browser.get(reverse(f"{name}_changelist"), {"q": "shop"} if model is Project else {})
    assert page.status_code == 200
    row = model.objects.first()
    detail = browser.get(reverse(f"{name}_change", args=[row.pk]))
    assert detail.status_code == 200
    for text in (page.content.decode(), detail.content.decode()):
        assert not any(secret in text for secret in secrets)
        assert "v1." not in text and "&lt;Sealed&gt;" not in text


@pytest.mark.parametrize("name", ["project", "databaseserver", "database", "databaserole", "operation"])
def test_nothing_is_deleted_here(browser: Client, project: Project, name: str) -> None:
    model = apps.get_model("projects", name)
    row = model.objects.first()
    assert browser.post(reverse(f"admin:projects_{name}_delete", args=[row.pk]), {"post": "yes"}).status_code == 403
    page = browser.post(
        reverse(f"admin:projects_{name}_changelist"), {"action": "delete_selected", "_selected_action": [row.pk]}
    )
    assert page.status_code in {200, 302, 403} and model.objects.filter(pk=row.pk).exists()


@pytest.mark.parametrize(
    ("action", "kind"), [("stop", "stop"), ("restart", "restart"), ("rotate_password", "rotate_password"),
                         ("delete", "delete")],
)  # fmt: skip
def test_actions_go_through_the_services_and_are_audited(
    browser: Client, operator: User, project: Project, action: str, kind: str
) -> None:
    page = browser.post(
        reverse("admin:projects_project_changelist"),
        {"action": f"project_{action}", "_selected_action": [project.pk]},
        follow=True,
    )
    assert page.status_code == 200
    operation = Operation.objects.live().get(project_uuid=project.pk)
    assert operation.kind == kind and operation.created_by == operator
    assert operation.created_by_label == "root@example.test (operator)"
    assert AuditEvent.objects.filter(action="operator.acted", project_id=project.pk, actor=operator).count() == 1


def test_a_refusal_is_shown(browser: Client, project: Project) -> None:
    page = browser.post(
        reverse("admin:projects_project_changelist"),
        {"action": "project_start", "_selected_action": [project.pk]},
        follow=True,
    )
    assert "Only a stopped project can be started" in page.content.decode()
    assert not Operation.objects.live().filter(project_uuid=project.pk).exists()


def test_forgetting_asks_for_the_slug_and_is_audited(browser: Client, operator: User, project: Project) -> None:
    Region.objects.update(reachable=False, unreachable_since=now())
    regions = {"action": "declare_gone", "_selected_action": [str(Region.objects.get(slug="local").pk)]}
    assert browser.post(reverse("admin:projects_region_changelist"), regions).status_code == 302
    assert Region.objects.get(slug="local").gone_at is not None
    assert AuditEvent.objects.get(action="region.declared_gone").actor == operator

    url = reverse("admin:projects_project_changelist")
    form = {"action": "forget", "_selected_action": [str(project.pk)]}
    asked = browser.post(url, form)
    assert asked.status_code == 200 and f"confirm-{project.pk}" in asked.content.decode()
    browser.post(url, {**form, "confirmed": "yes", f"confirm-{project.pk}": "wrong"})
    assert Project.objects.filter(pk=project.pk).exists()
    browser.post(url, {**form, "confirmed": "yes", f"confirm-{project.pk}": project.slug})
    assert not Project.objects.filter(pk=project.pk).exists()
    assert AuditEvent.objects.get(action="project.forgotten", project_id=project.pk).actor == operator
    assert Orphan.objects.filter(forgotten_at__isnull=False).exists()


def test_a_servers_reconcile_can_be_switched_and_nothing_else(browser: Client, project: Project) -> None:
    server = DatabaseServer.objects.get(project_uuid=project.pk)
    url = reverse("admin:projects_databaseserver_change", args=[server.pk])
    forms = {"databases-TOTAL_FORMS": "0", "databases-INITIAL_FORMS": "0"}
    assert browser.post(url, {"desired_state": "absent", "port": "1", **forms}).status_code == 302
    server.refresh_from_db()
    assert server.reconcile is False and server.desired_state == "running" and server.port != 1


class TestOperatorPrincipal:
    def test_it_runs_projects_and_reads_nothing(self, operator: User, team: Team) -> None:
        who = OperatorPrincipal(user=operator)
        require(who, team.organization, Capability.PROJECT_ACT)
        for capability in (Capability.CONNECT, Capability.PROJECT_PURGE, Capability.MEMBER_MANAGE):
            with pytest.raises(PermissionDenied):
                require(who, team.organization, capability)

    def test_only_operators_get_one(self, team: Team) -> None:
        with pytest.raises(PermissionDenied):
            OperatorPrincipal(user=team.alice)

    def test_outside_of_the_admin_an_operator_is_nobody_special(self, operator: User, team: Team) -> None:
        assert Principal.of(operator).capabilities_in(team.organization.pk) == frozenset()
