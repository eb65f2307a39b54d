"""Writers that are fenced: who, when it is lifted, and how the engine's side is kept the same as the rows."""

from __future__ import annotations

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from accounts import activity
from accounts.models import AuditEvent
from novastack.common.clock import now
from novastack.common.models import Install
from projects import domain
from projects.models import Database, DatabaseServer, Project, Region
from projects.operations import fences, parallel, watch
from tests.factories import api_client, set_observed
from tests.operations.conftest import begin, create, drive, operation_of

GIB = 2**30


@pytest.fixture(autouse=True)
def _forget(monkeypatch):
    monkeypatch.setattr(fences, "_acted", {})


def size(project, of_limit):
    """The size that was measured, as a part of the storage limit."""
    Project.objects.filter(pk=project.pk).update(size_bytes=round(project.storage_bytes * of_limit))


def disk(level):
    Region.objects.update(disk={"used_percent": 96.0, "level": level})


def row(project):
    project.refresh_from_db()
    return project.write_fence, project.write_fence_applied


def look(project):
    """A health check that is due."""
    Project.objects.filter(pk=project.pk).update(health_checked_at=None)
    assert watch.check_health() == 1


def later():
    """Another tick, when held fences are looked after again."""
    fences._acted.clear()
    fences.keep()


def fenced_in(paper):
    return set().union(*(held.fenced for held in paper.data.values()))


# --- who ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "used", "limit", "full", "after"),
    [
        ("", 100, 100, False, ""), ("", 101, 100, False, "storage"), ("storage", 96, 100, False, "storage"),
        ("storage", 95, 100, False, ""), ("", 96, 100, False, ""), ("", 500, 0, False, ""),
        ("storage", 500, 0, False, ""), ("", None, 100, False, ""), ("storage", None, 100, False, "storage"),
        ("", 1, 100, True, "disk"), ("storage", 101, 100, True, "disk"), ("disk", 101, 100, False, "storage"),
        ("disk", 97, 100, False, ""), ("disk", None, 100, False, ""),
    ],
)  # fmt: skip
def test_the_fence_that_a_project_must_have(before, used, limit, full, after):
    assert fences.fence_for(before, size_bytes=used, limit_bytes=limit, disk_full=full) == after


@pytest.mark.parametrize("before", ["", "storage", "disk"])
@pytest.mark.parametrize("full", [False, True])
def test_the_query_finds_what_the_function_would_change(ready, before, full):
    for limit in (0, 1, 100, 10**15):
        for used in (None, 0, 94, 95, 96, 100, 101, 10**15 + 1):
            Project.objects.update(storage_bytes=limit, size_bytes=used, write_fence=before)
            wanted = fences.fence_for(before, size_bytes=used, limit_bytes=limit, disk_full=full)
            found = fences._to_change({ready.region_id} if full else set()).exists()
            assert found == (wanted != before), (before, used, limit, full)


def test_above_the_limit_writers_are_fenced_until_it_is_well_below(ready, paper):
    size(ready, 1)
    fences.keep()
    assert row(ready) == ("", False)
    size(ready, 1.01)
    fences.keep()
    assert row(ready) == ("storage", True)
    assert ready.write_fenced_at
    assert fenced_in(paper) == {Database.objects.get(project=ready).name}
    size(ready, 0.97)
    later()
    assert row(ready) == ("storage", True)
    size(ready, 0.95)
    fences.keep()
    assert row(ready) == ("", False)
    assert ready.write_fenced_at is None
    assert fenced_in(paper) == set()
    assert paper.diary.count("fence") == paper.diary.count("lift") == 1
    told = AuditEvent.objects.filter(action__startswith="project.writes_").order_by("id")
    assert [(e.action, e.data["reason"], e.actor_label) for e in told] == [
        ("project.writes_fenced", "storage", "system"), ("project.writes_allowed", "storage", "system"),
    ]  # fmt: skip
    assert activity.words(told[0].action) == "Paused writing"
    assert [activity.detail(event) for event in told] == [
        "Larger than its storage limit", "Below its storage limit again",
    ]  # fmt: skip


def test_a_full_disk_fences_all_of_its_region_and_leaves_who_is_too_large(team, ready, paper):
    other = create(team, "Other")
    drive(operation_of(other))
    size(other, 1.5)
    fences.keep()
    assert row(other) == ("storage", True)
    disk("fenced")
    fences.keep()
    assert row(ready) == row(other) == ("disk", True)
    assert paper.diary.count("fence") == 2  # the one that was fenced already was not told again, nor its sessions ended
    disk("warn")
    fences.keep()
    assert row(ready) == ("", False)
    assert row(other) == ("storage", True)


def test_a_project_that_was_never_ready_or_is_in_the_bin_is_left_alone(ready, paper):
    Project.objects.filter(pk=ready.pk).update(ready_at=None)
    disk("fenced")
    fences.keep()
    assert row(ready) == ("", False)


# --- the engine's side --------------------------------------------------------------------------------------------------


def test_the_fence_is_held_softly_then_hard(ready, paper):
    size(ready, 1.1)
    for _ in range(4):  # held at the next tick, and then every 20 s
        fences.keep()
    assert paper.diary.count("hold") == 1
    later()
    assert paper.diary.count("hold") == 2
    size(ready, 2.1)  # that is no accident any more
    later()
    disk("fenced")
    size(ready, 0.1)
    later()
    assert paper.diary.count("hold hard") == 2
    assert paper.diary.count("fence") == 1


def test_holding_writes_nothing_and_asks_little_however_many_there_are(team, ready, paper):
    others = [create(team, f"More {n}") for n in range(3)]
    for other in others:
        drive(operation_of(other))
    disk("fenced")
    DatabaseServer.objects.exclude(project_uuid=ready.pk).update(reconcile=False)
    fences.keep()
    with CaptureQueriesContext(connection) as one:
        later()
    DatabaseServer.objects.update(reconcile=True)
    later()
    with CaptureQueriesContext(connection) as four:
        later()
    assert len(one) == len(four)
    assert {q["sql"].split()[0] for q in four} == {"SELECT"}
    assert paper.diary.count("hold hard") == 1 + 1 + 4


def test_a_server_that_is_away_is_told_when_it_is_back(ready, paper):
    size(ready, 1.1)
    paper.refuses_to_answer = True
    fences.keep()
    assert row(ready) == ("storage", False)
    paper.refuses_to_answer = False
    later()
    assert row(ready) == ("storage", True)


def test_a_stopped_server_is_told_when_it_runs(ready, paper):
    disk("fenced")
    set_observed(ready, "stopped", desired="stopped")
    fences.keep()
    assert row(ready) == ("disk", False)
    set_observed(ready, "running", desired="running")
    fences.keep()
    assert row(ready) == ("disk", True)
    set_observed(ready, "stopped", desired="stopped")
    disk("ok")
    fences.keep()
    assert row(ready) == ("", True)
    set_observed(ready, "running", desired="running")
    fences.keep()
    assert row(ready) == ("", False)


def test_a_read_only_install_and_what_an_operator_set_aside_are_not_touched(ready, paper):
    size(ready, 1.1)
    Install.objects.update(read_only=True)
    fences.keep()
    Install.objects.update(read_only=False)
    DatabaseServer.objects.update(reconcile=False)
    later()
    DatabaseServer.objects.update(reconcile=True)
    Region.objects.update(reconcile=False)
    later()
    assert row(ready) == ("storage", False)
    assert "fence" not in paper.diary
    Region.objects.update(reconcile=True)
    later()
    assert row(ready) == ("storage", True)


def test_a_worker_that_dies_between_the_engine_and_the_row_is_made_good(ready, paper):
    size(ready, 1.1)
    fences.decide()
    assert [fences._act(target) for target in fences._targets()] == [""]  # and then it died: the row does not know
    assert row(ready) == ("storage", False)
    later()
    assert row(ready) == ("storage", True)
    assert paper.diary.count("fence") == 2


def test_what_a_health_check_sees_is_made_right(ready, paper):
    """A restored control database, a late worker: the engine is fenced and the row does not know, or the reverse."""
    name = Database.objects.get(project=ready).name
    held = next(iter(paper.data.values()))
    held.fenced.add(name)
    look(ready)
    assert row(ready) == ("", True)
    fences.keep()
    assert row(ready) == ("", False)
    assert fenced_in(paper) == set()
    size(ready, 1.1)
    paper.size_bytes = round(ready.storage_bytes * 1.1)
    fences.keep()
    held.fenced.discard(name)
    look(ready)
    assert row(ready) == ("storage", False)
    later()
    assert row(ready) == ("storage", True)
    assert fenced_in(paper) == {name}


def test_a_look_that_began_before_the_fence_does_not_undo_it(ready, paper, monkeypatch):
    real, name = watch._look, Database.objects.get(project=ready).name

    def slow(target):
        seen = real(target)
        Project.objects.filter(pk=ready.pk).update(write_fence="storage", write_fence_applied=True)
        return seen

    class Here:
        """In this thread, so that the test's transaction is the look's too."""

        def __init__(self, items):
            self.done = [(item, slow(item)) for item in items]

        def collect(self):
            return self.done

    monkeypatch.setattr(parallel, "start", lambda name, call, broken, items, **_: Here(items))
    look(ready)
    assert row(ready) == ("storage", True)
    assert name not in fenced_in(paper)


def test_measured_by_the_health_check_at_most_a_minute_late(ready, paper):
    paper.size_bytes = ready.storage_bytes + 1
    look(ready)
    fences.keep()
    assert row(ready) == ("storage", True)
    assert watch.HEALTH_EVERY_SECONDS + 5 + 5 <= 60


@pytest.mark.parametrize("kind", ["restart", "rotate_password"])
def test_operations_work_on_a_fenced_project(ready, paper, kind):
    size(ready, 1.1)
    fences.keep()
    assert drive(begin(ready, kind)).state == "succeeded"
    assert row(ready) == ("storage", True)
    assert fenced_in(paper)


def test_undelete_of_a_fenced_project(ready, paper):
    size(ready, 1.1)
    fences.keep()
    Project.objects.filter(pk=ready.pk).update(desired_status="recycled")
    assert drive(begin(ready, "delete")).state == "succeeded"
    size(ready, 0.5)
    fences.keep()
    assert row(ready) == ("storage", True)  # in the bin nothing is touched
    Project.objects.filter(pk=ready.pk).update(
        recycled_at=None, recycle_until=None, desired_status="running", size_bytes=round(ready.storage_bytes / 2)
    )
    assert drive(begin(ready, "undelete")).state == "succeeded"
    fences.keep()
    assert row(ready) == ("", False)
    assert fenced_in(paper) == set()


def test_one_engine_that_fails_keeps_nobody_else_waiting(team, ready, paper):
    other = create(team, "Other")
    drive(operation_of(other))
    disk("fenced")
    paper.fails["fence"] = [domain.EngineError("out of order")]
    fences.keep()
    assert sorted([row(ready), row(other)]) == [("disk", False), ("disk", True)]
    later()
    assert row(ready) == row(other) == ("disk", True)


# --- how it is shown ----------------------------------------------------------------------------------------------------


def test_the_api_and_the_page_say_why_and_what_to_do(client, team, ready, paper):
    api, url = api_client(team.alice), f"/api/v1/projects/{ready.pk}/"
    assert api.get(url).json()["write_fence"] is None
    size(ready, 1.1)
    fences.keep()
    shown = api.get(url).json()["write_fence"]
    assert shown.keys() == {"reason", "since", "detail"}
    assert (shown["reason"], shown["since"][-1]) == ("storage", "Z")
    assert api.get(f"{url}status/").json()["write_fence"] == shown
    client.force_login(team.alice)
    page = client.get(f"/projects/{ready.pk}/").content.decode()
    assert "SET default_transaction_read_only = off" in page
    disk("fenced")
    fences.keep()
    assert api.get(url).json()["write_fence"]["reason"] == "disk"
    page = client.get(f"/projects/{ready.pk}/live/").content.decode()
    assert "the disk of This machine is almost full" in page
    assert "SET default_transaction_read_only" not in page


def test_far_above_the_limit_the_banner_says_what_works(ready, team):
    """A long DELETE, or VACUUM FULL, would be ended in the middle of it every 20 s."""
    browser = Client()
    browser.force_login(team.alice)
    for times, words in ((1.5, "DELETE followed by VACUUM FULL"), (2.5, "DELETE in batches of a few seconds")):
        Project.objects.filter(pk=ready.pk).update(
            size_bytes=int(times * ready.storage_bytes), write_fence="storage", write_fenced_at=now()
        )
        page = browser.get(f"/projects/{ready.pk}/").content.decode()
        assert words in page
        assert ("every 20 seconds" in page) == (times > 2)
