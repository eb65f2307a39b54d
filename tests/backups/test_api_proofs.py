"""Proofs, drills and promises over the API: shapes, rights, and what a bad input sees."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import time_machine
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext
from rest_framework.test import APIClient

from accounts import activity
from accounts.models import AuditEvent
from backups.models import Backup, BackupPolicy, Drill, Proof, Schedule, ScheduleRun, StorageTarget
from backups.operations import drills, proving, stalls
from backups.services import figures, readings
from novastack.common.clock import now
from projects.engines.ferretdb import FerretDB
from projects.models import Operation, OperationStep, Project
from tests.factories import Team, api_client, make_project, make_team

pytestmark = pytest.mark.django_db
QUESTION = {"name": "some", "sql": "SELECT count(*) > 0 FROM orders", "expect": "true"}


@pytest.fixture
def team() -> Team:
    return make_team()


@pytest.fixture
def shop(team: Team) -> Project:
    return make_project(team.alice, team.organization)


@pytest.fixture
def bob(team: Team) -> APIClient:
    return api_client(team.bob)


def stored(project: Project, **fields: Any) -> Backup:
    target, _ = StorageTarget.objects.get_or_create(name="here", kind="filesystem", defaults={"config": {"path": "x"}})
    values = {"status": "stored", "started_at": now(), "finished_at": now(), **fields}
    return Backup.objects.create(
        organization_id=project.organization_id, project_uuid=project.pk, project_name=project.name,
        project_slug=project.slug, engine=project.engine, version=project.version, storage=target, **values,
    )  # fmt: skip


def path(project: Project, what: str) -> str:
    return f"/api/v1/projects/{project.pk}/{what}/"


def test_a_backup_is_verified_by_hand(bob: APIClient, team: Team, shop: Project) -> None:
    backup = stored(shop)
    answer = bob.post(f"/api/v1/backups/{backup.pk}/verify/", {}, format="json", HTTP_IDEMPOTENCY_KEY="k1")
    assert answer.status_code == 202, answer.content
    found = answer.json()
    operation = Operation.objects.get(pk=found["operation"]["id"])
    assert (operation.kind, operation.project_uuid, operation.created_by_label) == ("verify", shop.pk, team.bob.email)
    assert (found["state"], found["kind"], found["backup"]) == ("queued", "manual", str(backup.pk))
    again = bob.post(f"/api/v1/backups/{backup.pk}/verify/", {}, format="json", HTTP_IDEMPOTENCY_KEY="k1")
    assert (again.status_code, again.json()["id"]) == (202, found["id"])
    second = bob.post(f"/api/v1/backups/{backup.pk}/verify/", {}, format="json")
    assert (second.status_code, second.json()["code"]) == (409, "operation_in_progress")
    listed = bob.get(f"/api/v1/backups/{backup.pk}/proofs/").json()["results"]
    assert [row["id"] for row in listed] == [found["id"]]
    # It names the project and holds only the backup: the project is free for everything else.
    assert bob.post(path(shop, "action"), {"action": "restart"}, format="json").status_code == 202
    assert api_client(team.vera).post(f"/api/v1/backups/{backup.pk}/verify/", {}, format="json").status_code == 403
    assert api_client(team.charlie).get(f"/api/v1/backups/{backup.pk}/proofs/").status_code == 404


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"status": "dumping"}, "action_not_allowed"),
        ({"status": "failed"}, "action_not_allowed"),
        ({"delete_requested_at": now()}, "action_not_allowed"),
        ({"trusted": False}, "backup_not_supported"),
        ({"engine": "ferretdb", "version": "1.24"}, "backup_not_supported"),
        ({"engine": "nosuch"}, "backup_not_supported"),
    ],
)
def test_what_can_not_be_verified_says_so(
    bob: APIClient, shop: Project, fields: dict[str, Any], code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FerretDB, "capabilities", frozenset())
    made = stored(shop)
    Backup.objects.filter(pk=made.pk).update(**fields)
    answer = bob.post(f"/api/v1/backups/{made.pk}/verify/", {}, format="json")
    assert (answer.status_code, answer.json()["code"]) == (409, code)
    assert not Operation.objects.filter(kind="verify").exists()


def test_the_objective_is_figures_and_reasons(bob: APIClient, shop: Project) -> None:
    found = bob.get(path(shop, "backup-policy")).json()
    assert (found["broken"], found["rpo_seconds"], found["verify_after_backup"]) == (False, None, True)
    assert found["last_verified"] is None and found["reverify_days"] == 30
    answer = bob.patch(path(shop, "backup-policy"), {"rpo_seconds": 3600, "rto_seconds": 60}, format="json")
    assert answer.status_code == 200 and answer.json()["reasons"] == ["There is no verified backup."]
    old = now() - timedelta(hours=5)
    stored(shop, status="verified", started_at=old, verified_at=now(), rto_seconds=600)
    stored(shop)
    found = bob.get(path(shop, "backup-policy")).json()
    assert found["broken"] and found["rto_measured_seconds"] == 600
    assert 18000 <= found["last_verified_age_seconds"] < 18100
    assert found["reasons"] == [
        "The last verified backup is 5 hours old; at most 60 minutes are promised.",
        "The last restore took 10 minutes; at most 60 seconds are promised.",
    ]
    assert found["last_backup"]["status"] == "stored" and found["last_verified"]["status"] == "verified"
    BackupPolicy.objects.update(rpo_seconds=None, rto_seconds=None)
    assert bob.get(path(shop, "backup-policy")).json()["broken"] is False
    stored(shop, status="corrupt")
    schedule = Schedule.objects.create(project=shop, organization_id=shop.organization_id, cron="0 2 * * *")
    for number, outcome in enumerate(("started", "skipped", "failed")):
        ScheduleRun.objects.create(schedule=schedule, due_at=now() - timedelta(hours=number), outcome=outcome)
    found = bob.get(path(shop, "backup-policy")).json()
    assert found["reasons"] == ["1 backup is newer than the last verified one, and corrupt."]
    assert (found["missed_runs"], found["corrupt"]) == (2, 1)


def test_a_backup_that_a_wrong_clock_has_dated_in_the_future_keeps_no_promise(bob: APIClient, shop: Project) -> None:
    bob.patch(path(shop, "backup-policy"), {"rpo_seconds": 3600}, format="json")
    year = now() + timedelta(days=365)
    wrong = stored(shop, status="verified", started_at=year, verified_at=year)
    Backup.objects.update(created_at=year)
    found = bob.get(path(shop, "backup-policy")).json()
    assert found["broken"] and found["last_verified"] is None
    assert readings.last_good(shop) is None and readings.figures_of(shop)["verified"] == 0
    assert readings.last_good_of([shop]) == {shop.pk: {"at": None, "late": True}}
    told = figures.figures()
    assert (told.projects_verified, told.projects_unverified, told.ages_seconds) == (0, 1, 0)
    assert figures.overview_of([shop.organization_id])["last_verified_at"] is None
    right = stored(shop, status="verified", verified_at=now())
    found = bob.get(path(shop, "backup-policy")).json()
    assert not found["broken"] and found["last_verified"]["id"] == str(right.pk)
    assert drills.newest(shop.pk) == readings.last_good(shop) == right != wrong
    assert readings.last_good_of([shop])[shop.pk] == {"at": right.started_at, "late": False}
    assert figures.figures().projects_verified == 1


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"rpo_seconds": 0}, "rpo_seconds"), ({"rpo_seconds": -1}, "rpo_seconds"), ({"rpo_seconds": "1"}, "rpo_seconds"),
        ({"rto_seconds": 10**12}, "rto_seconds"), ({"reverify_days": None}, "reverify_days"),
        ({"reverify_days": 40000}, "reverify_days"), ({"heartbeat_url": "ftp://x"}, "heartbeat_url"),
        ({"heartbeat_url": "https://a b/"}, "heartbeat_url"), ({"heartbeat_url": "https://u:p@x/"}, "heartbeat_url"),
        ({"heartbeat_url": "https://:p@x/"}, "heartbeat_url"),
        ({"heartbeat_url": "x" * 600}, "heartbeat_url"), ({"verify_after_backup": 1}, "verify_after_backup"),
        ({"nope": 1}, "nope"),
    ],
)  # fmt: skip
def test_bad_promises_name_their_field(bob: APIClient, shop: Project, change: dict[str, Any], field: str) -> None:
    answer = bob.patch(path(shop, "backup-policy"), change, format="json")
    assert answer.status_code == 400 and answer.json()["errors"][0]["field"] == field, answer.content
    assert not BackupPolicy.objects.exists()


def test_the_audit_log_does_not_say_a_heartbeat_s_address(bob: APIClient, shop: Project) -> None:
    """Who has it can call it."""
    url = "https://watchdog.example/ping/0c1d-secret"
    answer = bob.patch(path(shop, "backup-policy"), {"heartbeat_url": url, "rpo_seconds": 60}, format="json")
    assert answer.json()["heartbeat_url"] == url
    data = AuditEvent.objects.get(action="backup_policy.changed").data
    assert data["heartbeat_url"] == "watchdog.example" and data["rpo_seconds"] == 60
    bob.patch(path(shop, "backup-policy"), {"heartbeat_url": ""}, format="json")
    assert AuditEvent.objects.filter(action="backup_policy.changed").count() == 2


def test_fewer_days_count_from_the_last_proof(bob: APIClient, shop: Project) -> None:
    backup = stored(shop, status="verified", verified_at=now())
    bob.patch(path(shop, "backup-policy"), {"reverify_days": 7}, format="json")
    backup.refresh_from_db()
    assert backup.reverify_at - backup.verified_at == timedelta(days=7)
    bob.patch(path(shop, "backup-policy"), {"reverify_days": 0}, format="json")
    backup.refresh_from_db()
    assert backup.reverify_at is None


def test_a_drill_from_its_making_to_its_end(bob: APIClient, team: Team, shop: Project) -> None:
    made = bob.post(
        path(shop, "drills"),
        {"name": " Orders  are there ", "cron": "0  4 * * 1", "time_zone": "Europe/Berlin", "assertions": [QUESTION]},
        format="json",
    )  # fmt: skip
    assert made.status_code == 201, made.content
    drill = made.json()
    assert (drill["name"], drill["cron"], drill["enabled"]) == ("Orders are there", "0 4 * * 1", True)
    assert drill["next_run_at"] and "Monday" in drill["description"] and drill["last_run"] is None
    assert made["Location"].endswith(f"/api/v1/drills/{drill['id']}/")
    one = f"/api/v1/drills/{drill['id']}/"
    nothing = bob.post(f"{one}run/", {}, format="json")
    assert (nothing.status_code, nothing.json()["code"]) == (409, "no_backup")
    stored(shop, started_at=now() - timedelta(hours=2), status="verified", verified_at=now())
    stored(shop)
    ran = bob.post(f"{one}run/", {}, format="json")
    assert ran.status_code == 202 and ran.json()["kind"] == "drill"
    assert Proof.objects.get().backup.status == "verified"  # rather than a newer one that nobody has proven
    assert Operation.objects.get(pk=ran.json()["operation"]["id"]).kind == "drill"
    shown = bob.get(one).json()
    assert shown["last_run"]["id"] == ran.json()["id"]
    assert [row["id"] for row in bob.get(f"{one}runs/").json()["results"]] == [ran.json()["id"]]
    assert bob.get(path(shop, "drills")).json()["results"] == [shown]
    changed = bob.patch(
        one, {"enabled": False, "assertions": [{"sql": "SELECT 1", "expect": "1"}]}, format="json"
    ).json()
    assert changed["next_run_at"] is None and changed["assertions"][0]["name"] == "Check 1"
    vera = api_client(team.vera)
    assert vera.get(one).status_code == 200
    for method, url in (("post", f"{one}run/"), ("patch", one), ("delete", one), ("post", path(shop, "drills"))):
        assert getattr(vera, method)(url, {}, format="json").status_code == 403
    assert bob.delete(one).status_code == 204
    assert bob.get(one).status_code == 404 and Proof.objects.get().drill is None


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"name": ""}, "name"), ({"name": "x" * 64}, "name"), ({"name": "a\u0000b"}, "name"), ({"cron": "nope"}, "cron"),
        ({"cron": "0 0 31 2 *"}, "cron"), ({"time_zone": "Mars"}, "time_zone"), ({"assertions": []}, "assertions"),
        ({"assertions": [{"sql": ""}]}, "assertions.0.sql"), ({"assertions": [QUESTION] * 21}, "assertions"),
        ({"assertions": [{"name": "x"}]}, "assertions.0.sql"), ({"assertions": "SELECT 1"}, "assertions"),
        ({"assertions": [{"sql": "SELECT 1", "expect": 1}]}, "assertions.0.expect"),
        ({"assertions": [{"sql": "SELECT 1", "more": 1}]}, "assertions.0.more"),
    ],
)  # fmt: skip
def test_bad_drills_name_their_field(bob: APIClient, shop: Project, change: dict[str, Any], field: str) -> None:
    answer = bob.post(path(shop, "drills"), {"name": "d", "assertions": [QUESTION], **change}, format="json")
    assert answer.status_code == 400, answer.content
    assert field.split(".")[0] in {error["field"].split(".")[0] for error in answer.json()["errors"]}
    assert not Drill.objects.exists()


def test_two_drills_have_two_names(bob: APIClient, shop: Project) -> None:
    body = {"name": "d", "assertions": [QUESTION]}
    assert bob.post(path(shop, "drills"), body, format="json").status_code == 201
    answer = bob.post(path(shop, "drills"), body, format="json")
    assert (answer.status_code, answer.json()["code"]) == (409, "name_taken")


class TestByTheClock:
    def drill(self, shop: Project, **fields: Any) -> Drill:
        values = {"name": "d", "cron": "0 4 * * *", "assertions": [QUESTION], "next_run_at": now(), **fields}
        return Drill.objects.create(project=shop, organization_id=shop.organization_id, **values)

    def test_a_slot_is_run_once(self, shop: Project) -> None:
        backup, drill = stored(shop), self.drill(shop)
        assert drills.dispatch_due() == 1 and drills.dispatch_due() == 0
        drill.refresh_from_db()
        assert drill.next_run_at > now() and drill.last_slot_at is not None
        assert Proof.objects.get().backup == backup

    def test_after_long_downtime_it_waits_for_the_next(self, shop: Project) -> None:
        stored(shop)
        drill = self.drill(shop, next_run_at=now() - timedelta(days=3))
        assert drills.dispatch_due() == 0
        drill.refresh_from_db()
        assert drill.next_run_at > now()

    def test_one_whose_backup_is_busy_comes_a_little_later(self, shop: Project) -> None:
        backup = stored(shop)
        Proof.objects.create(backup=backup, kind="manual")
        drill = self.drill(shop)
        assert drills.dispatch_due() == 0
        drill.refresh_from_db()
        assert timedelta(0) < drill.next_run_at - now() <= timedelta(minutes=10)

    def due(self, drill: Drill, *, ago: timedelta = timedelta(0)) -> Drill:
        """Its next slot comes, and is looked at."""
        Drill.objects.filter(pk=drill.pk).update(next_run_at=now() - ago)
        drills.dispatch_due()
        drill.refresh_from_db()
        return drill

    def test_one_that_can_not_begin_is_told_where_protection_is_shown(self, shop: Project, bob: APIClient) -> None:
        drill, slot = self.drill(shop), now() - timedelta(hours=1)
        BackupPolicy.objects.create(project=shop, organization_id=shop.organization_id)
        told = "Take a backup first: there is none that could be restored."
        self.due(drill, ago=timedelta(hours=1))
        assert drill.next_run_at and drill.next_run_at > now() and not Proof.objects.exists()
        assert drill.stalled_since is not None and abs(drill.stalled_since - slot) < timedelta(minutes=1)
        since = drill.stalled_since
        self.due(drill)
        assert drill.stalled_since == since, "it still can't"
        event = AuditEvent.objects.get(action="drill.not_run")  # once, however many slots
        assert (event.project_id, event.organization_id, event.actor_label) == (shop.pk, shop.organization_id, "system")
        assert activity.detail(event) == f"d: {told}"
        shown = bob.get(f"/api/v1/drills/{drill.pk}/").json()
        assert shown["stalled_since"] and shown["stalled_error"]["code"] == "no_backup"
        assert shown["stalled_error"]["detail"] == told
        promise = bob.get(path(shop, "backup-policy")).json()
        assert promise["broken"] is True
        assert promise["reasons"] == [f"The drill “d” could not run since {since:%-d %b %Y, %H:%M} UTC: {told}"]

    def test_another_reason_is_told_as_well_and_one_that_came_back(self, shop: Project) -> None:
        drill = self.due(self.drill(shop))
        since = drill.stalled_since
        stored(shop)
        self.due(drill)
        assert drill.stalled_since == since, "begun is not done"
        proof = Proof.objects.get()
        operation = Operation.objects.get(pk=proof.operation_id)
        for _ in range(2):
            operation.error = {"code": "storage_unavailable", "detail": "It does not answer.", "retryable": True}
            proving.ended(operation)
            Proof.objects.filter(pk=proof.pk).update(state="running")
        drill.refresh_from_db()
        assert (drill.stalled_since, drill.stalled_error["code"]) == (since, "storage_unavailable")
        assert [event.data["code"] for event in AuditEvent.objects.filter(action="drill.not_run").order_by("pk")] == [
            "no_backup", "storage_unavailable",
        ]  # fmt: skip
        operation.error = {"code": "cancelled", "detail": "Cancelled on request."}
        proving.ended(operation)
        drill.refresh_from_db()
        assert drill.stalled_since == since, "who cancels it proves nothing"
        with transaction.atomic():
            stalls.clear(drill.pk)
        Backup.objects.all().delete()
        self.due(drill)
        assert drill.stalled_since is not None and drill.stalled_since > since
        assert AuditEvent.objects.filter(action="drill.not_run").count() == 3

    def test_what_is_damaged_was_tried(self, shop: Project) -> None:
        drill = self.due(self.drill(shop))
        stored(shop)
        self.due(drill)
        operation = Operation.objects.get(kind="drill")
        operation.error = {"code": "hash_mismatch", "detail": "It is not what was stored."}
        proving.ended(operation)
        drill.refresh_from_db()
        assert drill.stalled_since is None and drill.stalled_error is None

    def test_a_slot_that_nobody_was_there_for_is_told(self, shop: Project) -> None:
        stored(shop)
        drill = self.due(self.drill(shop), ago=timedelta(days=3))
        assert drill.stalled_error["code"] == "slot_missed" and not Proof.objects.exists()
        assert abs(now() - timedelta(days=3) - drill.stalled_since) < timedelta(minutes=1)

    def test_one_that_is_put_off_for_hours_is_told(self, shop: Project) -> None:
        proof = Proof.objects.create(backup=stored(shop), kind="manual")
        drill = self.due(self.drill(shop))
        assert drill.stalled_since is None
        Proof.objects.filter(pk=proof.pk).update(created_at=now() - timedelta(hours=7))
        assert self.due(drill).stalled_error["code"] == "operation_in_progress"

    def test_one_that_was_begun_and_waits_for_hours_is_told(self, shop: Project) -> None:
        stored(shop)
        drill = self.due(self.drill(shop))
        step = OperationStep.objects.get(operation__kind="drill", name="server")
        OperationStep.objects.filter(pk=step.pk).update(state="waiting", detail="The region can't be reached.")
        assert stalls.look_at_waiting() == 0
        begun = now() - timedelta(hours=7)
        Proof.objects.update(created_at=begun)
        assert stalls.look_at_waiting() == 1 and stalls.look_at_waiting() == 1
        drill.refresh_from_db()
        assert (drill.stalled_since, drill.stalled_error["code"]) == (begun, "waiting")
        assert "The region can't be reached." in drill.stalled_error["detail"]
        assert AuditEvent.objects.filter(action="drill.not_run").count() == 1
        Proof.objects.update(state="passed")
        assert stalls.look_at_waiting() == 0

    def test_nobody_expects_a_paused_one_to_run(self, shop: Project, bob: APIClient) -> None:
        drill = self.due(self.drill(shop))
        one = f"/api/v1/drills/{drill.pk}/"
        assert bob.patch(one, {"name": "e"}, format="json").json()["stalled_since"]
        paused = bob.patch(one, {"enabled": False}, format="json").json()
        assert paused["stalled_since"] is None and paused["stalled_error"] is None
        assert bob.get(path(shop, "backup-policy")).json()["broken"] is False

    def test_its_project_is_locked_before_it(self, shop: Project) -> None:
        """As at the end of its run: the other way round the two would wait for each other."""
        stored(shop)
        self.drill(shop)
        with CaptureQueriesContext(connection) as seen:
            assert drills.dispatch_due() == 1
        locked = [query["sql"] for query in seen if "FOR NO KEY UPDATE" in query["sql"]]
        assert '"projects_project"' in locked[0] and '"backups_drill"' in locked[1], locked[:2]

    def test_what_a_clock_that_was_ahead_has_planned_does_not_wait_a_year(self, shop: Project) -> None:
        year = timedelta(days=365)
        backup, drill = stored(shop, status="verified"), self.drill(shop)
        Drill.objects.update(next_run_at=now() + year, updated_at=now() + year)
        Backup.objects.update(verified_at=now() + year, reverify_at=now() + year)
        assert drills.dispatch_due() == 0
        drill.refresh_from_db()
        assert timedelta(0) < drill.next_run_at - now() <= timedelta(days=1)
        backup.refresh_from_db()
        assert backup.verified_at and backup.verified_at > now() + timedelta(days=364), "nobody knows when it was"
        assert drills.reverify_due() == 1 and Proof.objects.get().backup == backup

    def test_a_worker_whose_clock_is_behind_changes_no_plan(self, shop: Project) -> None:
        self.drill(shop, next_run_at=now() + timedelta(hours=30))
        stored(shop, status="verified", verified_at=now(), reverify_at=now() + timedelta(days=30))
        before = Drill.objects.values_list("next_run_at").get(), Backup.objects.values_list("reverify_at").get()
        with time_machine.travel(now() - timedelta(hours=8)):
            assert drills.dispatch_due() == 0
        assert before == (
            Drill.objects.values_list("next_run_at").get(),
            Backup.objects.values_list("reverify_at").get(),
        )

    def test_one_that_is_paused_while_it_waits_is_not_told(self, shop: Project, bob: APIClient) -> None:
        BackupPolicy.objects.create(project=shop, organization_id=shop.organization_id)
        stored(shop)
        drill = self.due(self.drill(shop))
        step = OperationStep.objects.filter(operation__kind="drill", name="server")
        step.update(state="waiting", detail="The region can't be reached.")
        Proof.objects.update(created_at=now() - timedelta(hours=7))
        assert stalls.look_at_waiting() == 1
        first = Drill.objects.get().updated_at
        step.update(detail="The region still can't be reached.")
        stalls.look_at_waiting()
        assert Drill.objects.get().updated_at == first, "its reason is the same"
        paused = bob.patch(f"/api/v1/drills/{drill.pk}/", {"enabled": False}, format="json").json()
        assert paused["stalled_since"] is None
        stalls.look_at_waiting()
        operation = Operation.objects.get(kind="drill")
        operation.error = {"code": "storage_unavailable", "detail": "It does not answer.", "retryable": True}
        proving.ended(operation)
        assert Drill.objects.get().stalled_since is None
        assert bob.get(path(shop, "backup-policy")).json()["broken"] is False
        Drill.objects.update(stalled_since=now(), stalled_error={"code": "x", "detail": "From before."})
        assert bob.get(path(shop, "backup-policy")).json()["broken"] is False
        bob.patch(f"/api/v1/drills/{drill.pk}/", {"cron": ""}, format="json")
        assert Drill.objects.get().stalled_since is None

    def test_old_backups_are_proven_again_a_few_at_a_time(self, shop: Project, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(drills, "REVERIFIED_AT_ONCE", 2)
        due = [stored(shop, status="verified", reverify_at=now() - timedelta(hours=n)) for n in range(4)]
        later = stored(shop, reverify_at=now() + timedelta(hours=1))
        assert drills.reverify_due() == 2
        assert {p.backup_id for p in Proof.objects.all()} == {due[3].pk, due[2].pk}
        assert drills.reverify_due() == 0  # those are at work
        Operation.objects.update(state="succeeded")
        Proof.objects.update(state="passed")
        assert drills.reverify_due() == 2
        assert Proof.objects.filter(kind="scheduled").count() == 4
        assert not later.proofs.exists()


def test_prometheus_is_told_in_four_queries_and_no_name(shop: Project, django_assert_num_queries: Any) -> None:
    from backups.api import metrics
    from backups.services import figures

    old = now() - timedelta(hours=2)
    backup = stored(shop, status="verified", started_at=old, verified_at=now(), size_bytes=100)
    stored(shop, status="corrupt", size_bytes=11)
    Proof.objects.create(backup=backup, kind="manual", state="passed", restore_seconds=2, compare_seconds=1)
    Proof.objects.create(backup=backup, kind="drill", state="failed")
    with django_assert_num_queries(4):
        told = {
            (sample.name, *sorted(sample.labels.items())): sample.value
            for metric in metrics.collect() for sample in metric.samples
        }  # fmt: skip
    assert told["novastack_backups", ("engine", shop.engine), ("status", "verified")] == 1
    assert told["novastack_backup_stored_bytes", ("engine", shop.engine)] == 111
    assert 7190 <= told["novastack_backup_last_verified_age_max_seconds",] < 7300
    assert told["novastack_backup_last_verified_age_seconds_bucket", ("le", "3600.0")] == 0
    assert told["novastack_backup_last_verified_age_seconds_bucket", ("le", "14400.0")] == 1
    assert told["novastack_backup_projects_unverified",] == 0
    assert told["novastack_backup_proofs_total", ("kind", "drill"), ("state", "failed")] == 1
    assert told["novastack_backup_verify_duration_seconds_sum", ("kind", "manual")] == 3
    assert told["novastack_backup_verify_duration_seconds_bucket", ("kind", "manual"), ("le", "5.0")] == 1
    assert not [key for key in told if shop.slug in str(key)]
    Backup.objects.filter(pk=backup.pk).update(verify_error={"code": "target_full"})
    assert figures.figures().projects_unverified == 0
    Backup.objects.filter(pk=backup.pk).update(verify_error={"code": "object_missing"})
    assert figures.figures().projects_unverified == 1, "nothing is there to restore from"
