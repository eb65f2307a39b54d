"""`projects/{id}/schedules/`, `schedules/{id}/`: as the contract says, and words for whoever sends something else."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
import time_machine
from rest_framework.test import APIClient

from accounts.models import AuditEvent
from backups.models import Backup, BackupStatus, Schedule, ScheduleRun, StorageTarget
from backups.operations import dispatching
from projects.engines.ferretdb import FerretDB
from projects.models import Project
from tests.backups.keeping import make_backup, make_schedule, utc
from tests.factories import Team, api_client

NOON = utc("2026-11-20T12:00:00")


@pytest.fixture
def api(team: Team) -> APIClient:
    """By token: a frozen clock would be before a session's begin."""
    return api_client(team.alice, scopes=["read", "write"])


@pytest.fixture
def url(idle: Project) -> str:
    return f"/api/v1/projects/{idle.pk}/schedules/"


def field_of(response: Any) -> tuple[int, str]:
    return response.status_code, response.json()["errors"][0]["field"]


def test_make_read_change_remove(api: APIClient, url: str, storage: StorageTarget) -> None:
    with time_machine.travel(NOON, tick=False):
        made = api.post(
            url,
            {"cron": "0  */4 * * *", "time_zone": "Europe/Berlin", "retention": {"keep_last": 12, "keep_daily": 14}},
        )
        body = made.json()
    assert made.status_code == 201 and made["Location"].endswith(f"/api/v1/schedules/{body['id']}/")
    assert body["cron"] == "0 */4 * * *" and body["enabled"] and body["storage"] is None and body["last_run"] is None
    assert body["description"] == "At minute 0 past every fourth hour, Europe/Berlin"
    assert body["next_runs"] == [
        "2026-11-20T15:00:00Z", "2026-11-20T19:00:00Z", "2026-11-20T23:00:00Z", "2026-11-21T03:00:00Z",
        "2026-11-21T07:00:00Z",
    ]  # fmt: skip
    assert body["retention"] == {
        "keep_last": 12, "keep_days": None, "keep_daily": 14, "keep_weekly": None, "keep_monthly": None,
        "max_bytes": None,
    }  # fmt: skip
    assert "2026-11-20T15:00:00Z" <= body["next_run_at"] < "2026-11-20T16:00:00Z"
    one = f"/api/v1/schedules/{body['id']}/"
    assert api.get(one).json()["id"] == body["id"] and api.get(url).json()["count"] == 1
    changed = api.patch(
        one, {"enabled": False, "storage": str(storage.pk), "retention": {"keep_last": None, "max_bytes": 10}}
    )
    assert changed.status_code == 200
    assert changed.json()["retention"]["keep_last"] is None and changed.json()["retention"]["keep_daily"] == 14
    assert changed.json()["next_runs"] == [] and changed.json()["paused_reason"] == "The schedule is paused."
    assert changed.json()["storage"] == str(storage.pk)
    assert api.delete(one).status_code == 204 and api.get(one).status_code == 404
    assert set(AuditEvent.objects.filter(action__startswith="schedule.").values_list("action", flat=True)) == {
        "schedule.created", "schedule.changed", "schedule.deleted"
    }  # fmt: skip


def test_a_change_in_the_hour_after_a_slot_takes_no_backup_away(
    api: APIClient, url: str, idle: Project, storage: StorageTarget
) -> None:
    """Runs are spread over that hour, and the page's form sends all of its fields, whatever was changed."""
    made = api.post(url, {"cron": "0 2 * * *", "retention": {"keep_last": 7}}, format="json").json()
    slot = utc("2026-11-21T02:00:00")
    Schedule.objects.update(next_slot_at=slot, next_run_at=slot + timedelta(minutes=40))
    same = {"cron": "0 2 * * *", "time_zone": "UTC", "enabled": True, "retention": {"keep_last": 9}}
    with time_machine.travel(slot + timedelta(minutes=20), tick=False):
        for change in (same, {"cron": "30 1 * * *"}):
            assert api.patch(f"/api/v1/schedules/{made['id']}/", change, format="json").status_code == 200
        assert dispatching.dispatch_due().started == 0
    with time_machine.travel(slot + timedelta(minutes=40), tick=False):
        assert dispatching.dispatch_due().started == 1
    assert ScheduleRun.objects.get().due_at == slot
    assert Schedule.objects.get().next_slot_at == utc("2026-11-22T01:30:00")


def test_who_pauses_it_in_that_hour_means_that_slot_too(api: APIClient, url: str) -> None:
    made = api.post(url, {"cron": "0 2 * * *"}, format="json").json()
    slot = utc("2026-11-21T02:00:00")
    Schedule.objects.update(next_slot_at=slot, next_run_at=slot + timedelta(minutes=40))
    with time_machine.travel(slot + timedelta(minutes=20), tick=False):
        for enabled in (False, True):
            api.patch(f"/api/v1/schedules/{made['id']}/", {"enabled": enabled}, format="json")
    assert Schedule.objects.get().next_slot_at == utc("2026-11-22T02:00:00")


def test_a_preset_is_enough(api: APIClient, url: str) -> None:
    body = api.post(url, {"preset": "daily"}).json()
    assert body["cron"] == "0 2 * * *" and body["retention"]["keep_daily"] == 7
    own = api.post(url, {"preset": "weekly", "retention": {"keep_last": 2}}).json()
    assert own["retention"]["keep_last"] == 2 and own["retention"]["keep_weekly"] is None


def test_a_dry_run_only_says_what_it_means(api: APIClient, url: str) -> None:
    with time_machine.travel(NOON, tick=False):
        said = api.post(url, {"cron": "30 2 * * 1", "dry_run": True})
    assert said.status_code == 200 and not Schedule.objects.exists()
    assert said.json()["description"] == "At 02:30 on Monday, UTC"
    assert said.json()["next_runs"][0] == "2026-11-23T02:30:00Z" and len(said.json()["next_runs"]) == 5


@pytest.mark.parametrize("dry_run", [True, False])
@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "cron"),
        ({"cron": "61 * * * *"}, "cron"),
        ({"cron": "* * * * * *"}, "cron"),
        ({"cron": "0 0 30 2 *"}, "cron"),
        ({"cron": 5}, "cron"),
        ({"cron": "0 2 * * *", "preset": "daily"}, "cron"),
        ({"preset": "sometimes"}, "preset"),
        ({"cron": "0 2 * * *", "time_zone": "Mars/Base"}, "time_zone"),
        ({"cron": "0 2 * * *", "retention": {"keep_last": -1}}, "retention.keep_last"),
        ({"cron": "0 2 * * *", "retention": {"keep_last": 10**9}}, "retention.keep_last"),
        ({"cron": "0 2 * * *", "retention": {"keep_yearly": 1}}, "retention.keep_yearly"),
        ({"cron": "0 2 * * *", "colour": "red"}, "colour"),
        ({"cron": "0 2 * * *", "storage": "here"}, "storage"),
    ],
)
def test_what_is_wrong_is_named(api: APIClient, url: str, body: dict[str, Any], field: str, dry_run: bool) -> None:
    assert field_of(api.post(url, {**body, "dry_run": dry_run})) == (400, field)
    assert not Schedule.objects.exists()


def test_a_foreign_storage_is_not_found(api: APIClient, url: str, team: Team, storage: StorageTarget) -> None:
    StorageTarget.objects.filter(pk=storage.pk).update(organization=team.elsewhere)
    for key in (storage.pk, uuid4()):
        assert field_of(api.post(url, {"preset": "daily", "storage": str(key)})) == (404, "storage")


def test_the_same_key_makes_one(api: APIClient, url: str) -> None:
    for replayed in (None, "true"):
        answer = api.post(url, {"preset": "daily"}, headers={"Idempotency-Key": "k"})
        assert answer.status_code == 201 and answer.get("Idempotency-Replayed") == replayed
    assert Schedule.objects.count() == 1


def test_a_project_has_ten(api: APIClient, url: str) -> None:
    for _ in range(10):
        assert api.post(url, {"preset": "daily"}).status_code == 201
    refused = api.post(url, {"preset": "daily"})
    assert (refused.status_code, refused.json()["code"]) == (409, "quota_exceeded")


def test_of_a_deleted_project_and_of_an_engine_without(
    api: APIClient, url: str, idle: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FerretDB, "capabilities", frozenset())
    Project.objects.filter(pk=idle.pk).update(engine="ferretdb")
    refused = api.post(url, {"preset": "daily"})
    assert (refused.status_code, refused.json()["code"]) == (409, "backup_not_supported")
    Project.objects.filter(pk=idle.pk).update(engine="postgresql", desired_status="recycled")
    refused = api.post(url, {"preset": "daily"})
    assert (refused.status_code, refused.json()["code"]) == (409, "action_not_allowed")


def test_it_says_why_slots_pass(api: APIClient, idle: Project) -> None:
    schedule = make_schedule(idle)
    ScheduleRun.objects.create(schedule=schedule, due_at=NOON, outcome="skipped", detail="The project is stopped.")
    Project.objects.filter(pk=idle.pk).update(desired_status="stopped")
    body = api.get(f"/api/v1/schedules/{schedule.pk}/").json()
    assert body["paused_reason"] == "The project is stopped."
    assert body["last_run"]["outcome"] == "skipped" and body["last_run"]["detail"] == "The project is stopped."
    assert api.get(f"/api/v1/schedules/{schedule.pk}/runs/").json()["results"][0]["due_at"] == "2026-11-20T12:00:00Z"


def test_a_list_costs_the_same_for_many(
    api: APIClient, url: str, idle: Project, django_assert_max_num_queries: Any
) -> None:
    for _ in range(10):
        ScheduleRun.objects.create(schedule=make_schedule(idle), due_at=NOON, outcome="started")
    with django_assert_max_num_queries(12):
        assert len(api.get(url).json()["results"]) == 10


def test_retention_is_tried_and_applied(api: APIClient, idle: Project, storage: StorageTarget) -> None:
    schedule = make_schedule(idle, keep_last=10)
    rows = [make_backup(idle, storage, days_ago=n, schedule=schedule) for n in range(4)]
    one = f"/api/v1/schedules/{schedule.pk}/retention/"
    said = api.post(one, {"dry_run": True, "retention": {"keep_last": 1}})
    assert said.status_code == 200 and (said.json()["keep"], said.json()["remove"]) == (1, 3)
    assert said.json()["remove_bytes"] == 3000 and said.json()["removed"] == []
    first = said.json()["backups"][0]
    assert first["id"] == str(rows[0].pk) and first["keep"]
    assert first["why"] == ["the last verified one", "the latest one"]
    assert field_of(api.post(one, {"retention": {"keep_last": 1}})) == (400, "retention")
    assert field_of(api.post(one, {"dry_run": True, "retention": {"keep_last": "x"}})) == (400, "retention.keep_last")
    Schedule.objects.update(keep_last=2)
    done = api.post(one, {})
    assert done.status_code == 202 and set(done.json()["removed"]) == {str(row.pk) for row in rows[2:]}
    assert Backup.objects.filter(status=BackupStatus.DELETING).count() == 2
    assert AuditEvent.objects.filter(action="backup.retention_applied").count() == 1


def test_a_viewer_tries_and_does_not_apply(team: Team, idle: Project) -> None:
    vera, one = api_client(team.vera), f"/api/v1/schedules/{make_schedule(idle, keep_last=1).pk}/retention/"
    assert vera.post(one, {"dry_run": True}).status_code == 200
    assert vera.post(one, {}).status_code == 403


def test_retention_goes_on_when_told(api: APIClient, idle: Project) -> None:
    schedule = make_schedule(idle, retention_paused_reason="Half of it was gone.")
    one = f"/api/v1/schedules/{schedule.pk}/"
    assert api.get(one).json()["retention_paused_reason"] == "Half of it was gone."
    assert field_of(api.patch(one, {"retention_paused": True})) == (400, "retention_paused")
    assert api.patch(one, {"retention_paused": False}).json()["retention_paused_reason"] == ""


def test_backups_on_with_a_new_project(api: APIClient, idle: Project, storage: StorageTarget) -> None:
    made = api.post("/api/v1/projects/", {"name": "Books", "backups": True})
    assert made.status_code == 201, made.json()
    schedule = Schedule.objects.get(project=made.json()["id"])
    assert schedule.cron == "0 2 * * *" and schedule.keep_daily == 7 and schedule.next_run_at is not None
    assert api.post("/api/v1/projects/", {"name": "Other"}).status_code == 201
    assert Schedule.objects.count() == 1


def test_backups_on_where_there_is_no_storage(api: APIClient, idle: Project) -> None:
    assert field_of(api.post("/api/v1/projects/", {"name": "Books", "backups": True})) == (400, "backups")
    assert field_of(api.post("/api/v1/projects/", {"name": "Books", "backups": "daily"})) == (400, "backups")
    assert not Project.objects.filter(name="Books").exists()
