"""The Django admin of backups: every page answers, nothing secret is on it, nothing is changed by it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.apps import apps
from django.contrib import admin
from django.test import Client
from django.urls import reverse

from accounts.models import AuditEvent, User
from backups.models import (
    Backup,
    BackupKey,
    BackupPolicy,
    BackupStatus,
    Drill,
    OfflineKey,
    Restore,
    RunOutcome,
    ScheduleRun,
    SigningKey,
)
from novastack.common.clock import now
from novastack.common.secrets import Sealed
from projects.models import Operation, Project
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


class TestActions:
    """Through the services of everybody: audited, refused in words, once however often somebody clicks."""

    def act(self, browser: Client, model: str, action: str, *rows: Any) -> str:
        app = "projects" if model == "project" else "backups"
        answer = browser.post(
            reverse(f"admin:{app}_{model}_changelist"),
            {"action": action, "_selected_action": [str(row.pk) for row in rows]}, follow=True,
        )  # fmt: skip
        assert answer.status_code == 200
        return answer.content.decode()

    def audited(self, operator: User, action: str) -> int:
        return AuditEvent.objects.filter(action=action, actor=operator).count()

    def test_verify_now_twice_is_once(self, browser: Client, operator: User, project: Project) -> None:
        backup = Backup.objects.get()
        assert "Verification begun: 1" in self.act(browser, "backup", "verify", backup)
        again = self.act(browser, "backup", "verify", backup)
        assert "Verification begun" not in again.split("messagelist")[1].split("</ul>")[0]
        operation = Operation.objects.get(kind="verify", params__backup=str(backup.pk))
        assert operation.created_by == operator
        assert self.audited(operator, "backup.verify") == 1

    def test_back_up_now_twice_is_once(self, browser: Client, operator: User, project: Project) -> None:
        assert "Backup begun: 1" in self.act(browser, "project", "project_back_up", project)
        self.act(browser, "project", "project_back_up", project)
        self.act(browser, "backup", "back_up_again", *Backup.objects.all())
        assert Operation.objects.live().filter(kind="backup").count() == 1
        assert Backup.objects.filter(status=BackupStatus.QUEUED).count() == 1
        assert self.audited(operator, "backup.started") == 1

    def test_what_works_on_a_backup_is_cancelled_and_retried(
        self, browser: Client, operator: User, project: Project
    ) -> None:
        self.act(browser, "project", "project_back_up", project)
        backup = Backup.objects.get(status=BackupStatus.QUEUED)
        Operation.objects.filter(pk=backup.operation_id).update(next_attempt_at=now() + timedelta(hours=1), attempt=2)
        assert "Retried: 1" in self.act(browser, "backup", "go_on", backup)
        waits = Operation.objects.get(pk=backup.operation_id)
        assert waits.next_attempt_at is None or waits.next_attempt_at <= now()
        assert "Asked to cancel: 1" in self.act(browser, "backup", "cancel", backup)
        assert Operation.objects.get(pk=backup.operation_id).cancel_requested_at is not None
        assert self.audited(operator, "operation.cancelled") == 1

    def test_a_proof_is_cancelled_from_its_backup(self, browser: Client, project: Project) -> None:
        backup = Backup.objects.get()
        self.act(browser, "backup", "verify", backup)
        assert "Asked to cancel: 1" in self.act(browser, "backup", "cancel", backup)
        assert Operation.objects.get(kind="verify").cancel_requested_at is not None

    def test_what_has_ended_is_neither_retried_nor_cancelled(self, browser: Client, project: Project) -> None:
        restore = Restore.objects.get()
        assert "no longer kept" in self.act(browser, "restore", "cancel", restore)
        done = Operation.objects.create(
            project_uuid=project.pk, organization_id=project.organization_id, kind="restore", state="failed",
            finished_at=now(),
        )  # fmt: skip
        Restore.objects.update(operation_id=done.pk)
        before = Operation.objects.count()
        assert "begin a new one" in self.act(browser, "restore", "go_on", restore)
        assert "The operation has failed" in self.act(browser, "restore", "cancel", restore)
        assert Operation.objects.count() == before

    def test_a_storage_is_tested_and_a_drill_is_run(self, browser: Client, operator: User, project: Project) -> None:
        mine = make_storage(None, "cellar", config={"path": "cellar"})
        said = self.act(browser, "storagetarget", "test", mine)
        mine.refresh_from_db()
        assert mine.tested_at is not None and ("Works: 1" in said) is bool(mine.test_ok)
        assert "Drill begun: 1" in self.act(browser, "drill", "run", Drill.objects.get())
        assert self.audited(operator, "drill.run") == 1

    @pytest.mark.parametrize("staff", [False, True])
    def test_only_operators_act_here(self, project: Project, staff: bool) -> None:
        """Neither members nor staff whom nobody has given the pages."""
        person = UserFactory(email="somebody@example.test", is_staff=staff)
        client = Client()
        client.force_login(person)
        for model, action in (("backup", "verify"), ("backup", "cancel"), ("restore", "cancel"), ("schedule", "run")):
            row = apps.get_model("backups", model).objects.first()
            answer = client.post(
                reverse(f"admin:backups_{model}_changelist"), {"action": action, "_selected_action": [str(row.pk)]}
            )
            assert answer.status_code in {302, 403}
        assert not Operation.objects.live().exists()


def test_rows_lead_to_each_other(browser: Client, project: Project) -> None:
    backup, restore = Backup.objects.get(), Restore.objects.get()
    done = Operation.objects.create(project_uuid=project.pk, organization_id=project.organization_id, kind="backup")
    Backup.objects.update(operation_id=done.pk)
    page = browser.get(reverse("admin:backups_backup_change", args=[backup.pk])).content.decode()
    for name, row in (
        ("projects_project", project), ("projects_operation", done), ("backups_storagetarget", backup.storage),
        ("backups_schedule", backup.schedule),
    ):  # fmt: skip
        assert reverse(f"admin:{name}_change", args=[row.pk]) in page
    page = browser.get(reverse("admin:backups_restore_change", args=[restore.pk])).content.decode()
    assert reverse("admin:backups_backup_change", args=[backup.pk]) in page
    Project.objects.filter(pk=project.pk).update(name="<b>gone</b>")
    Restore.objects.update(project_uuid=uuid4(), project_name="<b>gone</b>")
    page = browser.get(reverse("admin:backups_restore_change", args=[restore.pk])).content.decode()
    assert "&lt;b&gt;gone&lt;/b&gt; (gone)" in page and "<b>gone</b>" not in page
