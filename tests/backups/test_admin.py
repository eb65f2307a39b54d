"""The Django admin of backups: every page answers, nothing secret is on it, nothing is changed by it."""

from __future__ import annotations

from typing import Any

import pytest
from django.apps import apps
from django.contrib import admin
from django.test import Client
from django.urls import reverse

from accounts.models import User
from backups.models import BackupKey, BackupPolicy, Drill, OfflineKey, RunOutcome, ScheduleRun, SigningKey
from novastack.common.clock import now
from novastack.common.secrets import Sealed
from projects.models import Project
from tests.backups.rows import make_backup, make_proof, make_restore, make_schedule, make_storage
from tests.factories import UserFactory, make_project, make_team

MODELS = [model for model in apps.get_app_config("backups").get_models() if model in admin.site._registry]
SECRET = "AGE-SECRET-KEY-1QQQQTESTONLY"
QUIET = "https://beats.example/ping/4f1c"
PRINT = "a1b2-c3d4-fingerprint"
TENANTS = "salaries_2026"


@pytest.fixture
def operator(db: None) -> User:
    return UserFactory(email="root@example.test", is_staff=True, is_superuser=True)


@pytest.fixture
def browser(operator: User) -> Client:
    client = Client()
    client.force_login(operator)
    return client


@pytest.fixture
def project(db: None) -> Project:
    team = make_team()
    project = make_project(team.bob, team.organization)
    organization = team.organization
    storage = make_storage(organization, secret=Sealed.of(SECRET))
    schedule = make_schedule(project, storage=storage)
    backup = make_backup(project, storage, schedule=schedule, manifest={"contents": {"tables": {TENANTS: 1}}})
    drill = Drill.objects.create(
        project=project, organization_id=organization.pk, name="monthly",
        assertions=[{"name": "some", "sql": f"select count(*) > 0 from {TENANTS}"}],
    )  # fmt: skip
    make_proof(backup, drill=drill, differences=[f"{TENANTS}: 3 rows short"])
    make_restore(backup, project, preflight={"tables": [[TENANTS, 1, 2]]})
    ScheduleRun.objects.create(schedule=schedule, due_at=now(), outcome=RunOutcome.STARTED, backup_uuid=backup.pk)
    BackupPolicy.objects.create(project=project, organization_id=organization.pk, heartbeat_url=QUIET)
    BackupKey.objects.filter(organization=organization).delete()
    BackupKey.objects.create(organization=organization, recipient="age1current", identity=Sealed.of(SECRET))
    OfflineKey.objects.create(organization=organization, recipient="age1offline", fingerprint=PRINT)
    if not SigningKey.objects.filter(retired_at=None).exists():
        SigningKey.objects.create(public_key="cHVibGlj", private_key=Sealed.of(SECRET))
    return project


def test_every_model_is_registered() -> None:
    assert set(MODELS) == set(apps.get_app_config("backups").get_models())


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model._meta.model_name)
def test_lists_and_pages_answer_and_hold_no_secret(
    browser: Client, project: Project, model: Any, django_assert_max_num_queries: Any
) -> None:
    name = f"admin:backups_{model._meta.model_name}"
    with django_assert_max_num_queries(14):
        page = browser.get(reverse(f"{name}_changelist"), {"q": "a"})
        assert page.status_code == 200
    detail = browser.get(reverse(f"{name}_change", args=[model.objects.first().pk]))
    assert detail.status_code == 200
    for text in (page.content.decode(), detail.content.decode()):
        for hidden in (SECRET, QUIET, PRINT, TENANTS, "&lt;Sealed&gt;", "v1."):
            assert hidden not in text


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model._meta.model_name)
def test_nothing_is_added_changed_or_deleted_here(browser: Client, project: Project, model: Any) -> None:
    name = f"admin:backups_{model._meta.model_name}"
    row = model.objects.first()
    assert browser.post(reverse(f"{name}_add"), {}).status_code == 403
    assert browser.post(reverse(f"{name}_change", args=[row.pk]), {"status": "verified"}).status_code == 403
    assert browser.post(reverse(f"{name}_delete", args=[row.pk]), {"post": "yes"}).status_code == 403
    assert model.objects.filter(pk=row.pk).exists()
