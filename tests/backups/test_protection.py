"""What is not protected: judged as each project's own page does, the worst first, in a fixed number of queries."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import time_machine
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from backups.models import (
    Backup,
    BackupPolicy,
    BackupStatus,
    Drill,
    OfflineKey,
    RunOutcome,
    Schedule,
    ScheduleRun,
    StorageTarget,
)
from backups.operations.objectives import objective_of
from backups.services import readings
from backups.services.protection import Level, Protection, judged, overview
from novastack.common.clock import now
from projects.models import Project
from tests.backups.keeping import utc
from tests.backups.rows import make_backup, make_proof, make_schedule, make_storage
from tests.factories import Team, make_project, make_team

pytestmark = pytest.mark.django_db


@pytest.fixture
def team() -> Team:
    return make_team()


@pytest.fixture
def project(team: Team) -> Project:
    """Protected: a verified backup, a schedule, an objective that holds."""
    return protected(team, "Shop")


def protected(team: Team, name: str) -> Project:
    project = make_project(team.alice, team.organization, name)
    storage = StorageTarget.objects.filter(organization=team.organization).first() or make_storage(team.organization)
    schedule = make_schedule(project)
    make_proof(make_backup(project, storage, schedule=schedule))
    BackupPolicy.objects.create(
        project=project, organization_id=team.organization.pk, rpo_seconds=4 * 3600, rto_seconds=1800
    )
    return project


def judge(project: Project) -> Protection:
    return judged(Project.objects.filter(pk=project.pk))[0]


def browser(user: Any) -> Client:
    client = Client()
    client.force_login(user)
    return client


def break_nothing(project: Project) -> None:
    pass


def never_backed_up(project: Project) -> None:
    Backup.objects.all().delete()


def only_stored(project: Project) -> None:
    Backup.objects.update(status=BackupStatus.STORED, verified_at=None)


def too_old(project: Project) -> None:
    BackupPolicy.objects.update(rpo_seconds=3600)


def too_slow(project: Project) -> None:
    BackupPolicy.objects.update(rto_seconds=60)


def newer_is_corrupt(project: Project) -> None:
    make_backup(project, StorageTarget.objects.get(), hours=1, status="corrupt", verified_at=None)


def drill_failed(project: Project) -> None:
    drill = Drill.objects.create(project=project, organization_id=project.organization_id, name="sums")
    make_proof(Backup.objects.get(), kind="drill", drill=drill, state="failed")


def no_schedule(project: Project) -> None:
    Schedule.objects.all().delete()


def schedule_paused(project: Project) -> None:
    Schedule.objects.update(enabled=False, next_run_at=None)


def last_failed(project: Project) -> None:
    error = {"code": "storage_refused", "detail": "The storage refused it (403)."}
    make_backup(project, StorageTarget.objects.get(), hours=1, status="failed", verified_at=None, error=error)


def last_not_verified(project: Project) -> None:
    Backup.objects.update(verify_error={"code": "no_room", "detail": "There is no room for a server."})


def run_missed(project: Project) -> None:
    ScheduleRun.objects.create(
        schedule=Schedule.objects.get(), due_at=now() - timedelta(days=1), outcome=RunOutcome.SKIPPED
    )


def run_failed(project: Project) -> None:
    """It was begun, and made no backup."""
    error = {"code": "storage_refused", "detail": "The storage refused it (403)."}
    failed = make_backup(project, StorageTarget.objects.get(), hours=5, status="failed", verified_at=None, error=error)
    ScheduleRun.objects.create(
        schedule=Schedule.objects.get(), due_at=failed.created_at, outcome=RunOutcome.STARTED, backup_uuid=failed.pk
    )


def nobody_was_there(project: Project) -> None:
    made = Backup.objects.get()
    for backup_uuid, missed in ((made.pk, 4), (None, 2)):
        ScheduleRun.objects.create(
            schedule=Schedule.objects.get(), due_at=now() - timedelta(hours=missed), outcome=RunOutcome.STARTED,
            backup_uuid=backup_uuid, missed=missed,
        )  # fmt: skip


def object_gone(project: Project) -> None:
    BackupPolicy.objects.update(rpo_seconds=None)
    Backup.objects.update(verify_error={"code": "object_missing", "detail": "The storage has no such object."})


def object_of_the_newer_one_gone(project: Project) -> None:
    gone = {"code": "object_missing", "detail": "The storage has no such object."}
    make_backup(project, StorageTarget.objects.get(), hours=1, verify_error=gone)


def one_of_two_drills_failed(project: Project) -> None:
    for name, state in (("sums", "failed"), ("other", "failed"), ("other", "passed")):
        drill, _ = Drill.objects.get_or_create(
            project=project, name=name, defaults={"organization_id": project.organization_id}
        )
        make_proof(Backup.objects.get(), kind="drill", drill=drill, state=state)


def drill_could_not_run(project: Project) -> None:
    """Neither that another one passed, nor that this one once did, says anything about now."""
    for name in ("sums", "other"):
        drill = Drill.objects.create(project=project, organization_id=project.organization_id, name=name)
        make_proof(Backup.objects.get(), kind="drill", drill=drill, state="passed")
    Drill.objects.filter(name="sums").update(
        stalled_since=utc("2026-11-20T04:00:00"),
        stalled_error={"code": "x", "detail": "No region can run it now."},
        next_run_at=now() + timedelta(hours=1),
    )


def not_verified(project: Project) -> None:
    BackupPolicy.objects.update(verify_after_backup=False)


def retention_stopped(project: Project) -> None:
    Schedule.objects.update(retention_paused_reason="9 of 10 are due at once")


def stale_without_objective(project: Project) -> None:
    BackupPolicy.objects.all().delete()
    Backup.objects.update(started_at=now() - timedelta(days=8))


CASES = [
    (break_nothing, Level.PROTECTED, ""), (never_backed_up, Level.BROKEN, "no verified backup"),
    (only_stored, Level.BROKEN, "no verified backup"), (too_old, Level.BROKEN, "at most 60 minutes are promised"),
    (too_slow, Level.BROKEN, "The last restore took 3 minutes"), (newer_is_corrupt, Level.BROKEN, "and corrupt"),
    (drill_failed, Level.BROKEN, "The last drill failed"), (no_schedule, Level.AT_RISK, "no schedule"),
    (schedule_paused, Level.AT_RISK, "schedule is paused"), (last_failed, Level.AT_RISK, "refused it (403)"),
    (last_not_verified, Level.AT_RISK, "no room for a server"), (run_missed, Level.AT_RISK, "1 run missed"),
    (not_verified, Level.AT_RISK, "not verified after"), (retention_stopped, Level.AT_RISK, "Retention has stopped"),
    (stale_without_objective, Level.AT_RISK, "more than 7 days old"), (run_failed, Level.AT_RISK, "1 run missed"),
    (nobody_was_there, Level.AT_RISK, "6 runs missed"), (object_gone, Level.BROKEN, "no verified backup"),
    (object_of_the_newer_one_gone, Level.BROKEN, "1 backup is newer than the last verified one, and missing in its storage."),
    (drill_could_not_run, Level.BROKEN, "“sums” could not run since 20 Nov 2026, 04:00 UTC: No region can run it now."),
    (one_of_two_drills_failed, Level.BROKEN, "The last drill failed: sums."),
]  # fmt: skip


@pytest.mark.parametrize(("do", "level", "words"), CASES, ids=[case[0].__name__ for case in CASES])
def test_a_project_is_judged(project: Project, do: Any, level: Level, words: str) -> None:
    do(project)
    found = judge(project)
    assert found.level is level
    assert (words in " ".join(found.reasons)) if words else found.reasons == ()
    promise = objective_of(project)
    assert promise.broken is found.objective.broken, "the project's own page says the same"
    assert promise.reasons == found.objective.reasons
    assert level is Level.BROKEN or not promise.broken, "what its page calls broken is not called less here"


def test_an_engine_that_cannot_be_backed_up_says_so(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    from projects import domain, registry

    monkeypatch.setattr(
        type(registry.engine(project.engine)), "capabilities",
        frozenset(registry.engine(project.engine).capabilities) - {domain.Capability.COPY}, raising=False,
    )  # fmt: skip
    found = judge(project)
    assert found.level is Level.UNSUPPORTED and "not supported" in found.reasons[0]


def test_only_the_last_week_s_missed_slots_are_counted(project: Project) -> None:
    """A run of six days ago stands for the week before it: of that one day is within the last seven."""
    daily, other, weekly = (make_schedule(project, cron=cron) for cron in ("0 2 * * *", "0 2 * * *", "0 2 * * 0"))
    with time_machine.travel(utc("2026-11-20T12:00:00"), tick=False):
        for schedule, due_at, outcome, missed in (
            (daily, "2026-11-15T02:00:00", RunOutcome.STARTED, 7),  # the 14th
            (other, "2026-11-15T02:00:00", RunOutcome.STARTED, 7),  # the 14th
            (daily, "2026-11-19T02:00:00", RunOutcome.STARTED, 3),  # the 16th to the 18th
            (weekly, "2026-11-15T02:00:00", RunOutcome.SKIPPED, 1),  # the 15th itself
        ):
            ScheduleRun.objects.create(schedule=schedule, due_at=utc(due_at), outcome=outcome, missed=missed)
        assert objective_of(project).missed_runs == 1 + 1 + 3 + 1


class TestPage:
    def test_the_worst_comes_first_and_others_are_not_there(self, team: Team, project: Project) -> None:
        make_project(team.alice, team.organization, "Zebra")  # no backup at all
        risky = protected(team, "Mole")
        Schedule.objects.filter(project=risky).delete()
        make_project(team.charlie, team.elsewhere, "Foreign")
        page = browser(team.vera).get("/backups/protection/").content.decode()
        assert page.index("Zebra") < page.index("Mole") < page.index("Shop")
        assert "Foreign" not in page and "everything" in page and "It has no schedule" in page
        assert "badge-proven" in page and "badge-bad" in page and "badge-warn" in page
        only = browser(team.vera).get("/backups/protection/?level=risk").content.decode()
        assert "Mole" in only and "Zebra" not in only
        assert browser(team.vera).get("/backups/protection/?level=%00&page=99").status_code == 200

    def test_who_may_look(self, team: Team, project: Project) -> None:
        assert Client().get("/backups/protection/").status_code == 302
        assert browser(team.alice).get("/operator/protection/").status_code == 403
        team.alice.is_staff = True
        team.alice.save()
        make_project(team.charlie, team.elsewhere, "Foreign")
        page = browser(team.alice).get("/operator/protection/").content.decode()
        assert "Foreign" in page and "Shop" in page and team.elsewhere.name in page

    def test_storages_that_fail_and_kits_that_nobody_holds(self, team: Team, project: Project) -> None:
        client = browser(team.alice)
        assert "All work" in client.get("/backups/protection/").content.decode()
        assert "so are the keys of your backups" in client.get("/backups/protection/").content.decode()
        OfflineKey.objects.create(
            organization=team.organization, recipient="age1x", fingerprint="f", confirmed_at=now()
        )
        StorageTarget.objects.update(test_ok=False, test_detail="write: No room is left.")
        make_storage(team.elsewhere, "theirs", test_ok=False, test_detail="a secret of theirs")
        page = client.get("/backups/protection/").content.decode()
        assert "write: No room is left." in page and "1 failing" in page
        assert "a secret of theirs" not in page and "so are the keys" not in page

    def test_what_is_deleted_or_not_there_yet_is_left_out(self, team: Team, project: Project) -> None:
        make_project(team.alice, team.organization, "Making", running=False)
        gone = make_project(team.alice, team.organization, "Gone")
        Project.objects.filter(pk=gone.pk).update(desired_status="recycled", recycled_at=now())
        assert [each.project.name for each in overview(team.organization).projects] == ["Shop"]

    def test_the_number_of_queries_does_not_grow(self, team: Team, project: Project) -> None:
        team.alice.is_staff = True
        team.alice.save()
        client = browser(team.alice)
        for path in ("/backups/protection/", "/operator/protection/"):
            client.get(path)
            with CaptureQueriesContext(connection) as few:
                client.get(path)
            for n in range(3):
                other = protected(team, f"{path[1]}-{n}")
                Drill.objects.create(project=other, organization_id=other.organization_id, name="sums")
                make_backup(other, StorageTarget.objects.get(), hours=1, status="corrupt", verified_at=None)
            with CaptureQueriesContext(connection) as many:
                assert client.get(path).status_code == 200
            assert len(many) == len(few), path
            assert len(many) <= 25, path


def test_the_last_good_one_is_there(project: Project) -> None:
    """On the project's page and in lists: not one that was proven once, and whose object is missing now."""
    good = Backup.objects.get()
    newer = make_backup(project, good.storage, hours=1)
    assert readings.last_good(project) == newer
    Backup.objects.filter(pk=newer.pk).update(verify_error={"code": "target_full", "detail": "…"})
    assert readings.last_good(project) == newer
    Backup.objects.filter(pk=newer.pk).update(verify_error={"code": "object_missing", "detail": "…"})
    assert readings.last_good(project) == good
    assert readings.last_good_of([project])[project.pk]["at"] in {good.started_at, good.created_at}
    assert readings.figures_of(project)["verified"] == 1
