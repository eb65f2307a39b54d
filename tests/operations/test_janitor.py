"""The one place that deletes data, and the recycle bin's clock (rules 3 and 8)."""

from __future__ import annotations

from datetime import timedelta

import pytest

from accounts.models import AuditEvent
from novastack.common.clock import now
from novastack.common.models import Install
from projects import domain, tasks
from projects.models import DatabaseServer, DataTombstone, Operation, Project
from projects.operations import janitor
from projects.services import project_delete
from tests.factories import make_project
from tests.operations.conftest import drive


def tombstone(project, *, due=timedelta(0)):
    server = DatabaseServer.objects.get(project_uuid=project.pk)
    return DataTombstone.objects.create(
        server_uuid=server.pk, incarnation=server.incarnation, region=server.region, project_uuid=project.pk,
        reason="test", due_at=now() + due,
    )  # fmt: skip


def give_up(project):
    DatabaseServer.objects.filter(project_uuid=project.pk).update(desired_state="absent")


def test_data_of_a_live_server_is_never_deleted(ready, runtime):
    tomb = tombstone(ready, due=timedelta(days=-9))
    assert janitor.delete_due_data() == 0
    assert len(runtime.world.volumes) == len(runtime.world.servers) == 1
    tomb.refresh_from_db()
    assert "still uses" in tomb.last_error
    assert tomb.due_at > now()


def test_nothing_is_deleted_before_its_time(ready, runtime):
    give_up(ready)
    tomb = tombstone(ready, due=timedelta(seconds=60))
    assert janitor.delete_due_data() == 0
    DataTombstone.objects.filter(pk=tomb.pk).update(due_at=now())
    assert janitor.delete_due_data() == 1
    assert not runtime.world.volumes
    assert AuditEvent.objects.filter(action="data.deleted").count() == 1
    assert janitor.delete_due_data() == 0


def test_unreachable_is_not_gone(ready, runtime):
    give_up(ready)
    tomb = tombstone(ready)
    runtime.unreachable = True
    assert janitor.delete_due_data() == 0
    tomb.refresh_from_db()
    assert tomb.deleted_at is None
    assert tomb.last_error
    assert tomb.due_at > now()


def test_a_deletion_that_was_not_seen_is_not_recorded(ready, runtime, monkeypatch):
    give_up(ready)
    tomb = tombstone(ready)
    monkeypatch.setattr(runtime, "destroy", lambda *a, **k: None)
    assert janitor.delete_due_data() == 0
    tomb.refresh_from_db()
    assert tomb.deleted_at is None


def test_one_that_fails_does_not_keep_others_waiting(team, ready, runtime):
    give_up(ready)
    tombstone(ready)
    DataTombstone.objects.create(server_uuid=ready.pk, incarnation=1, region=ready.region, reason="x", due_at=now())
    runtime.fail("destroy", domain.StaleHandle("no"))
    assert janitor.delete_due_data() == 1


def test_a_read_only_install_deletes_nothing(ready, runtime):
    give_up(ready)
    tombstone(ready)
    Install.load()
    Install.objects.update(read_only=True)
    assert janitor.delete_due_data() == 0


# --- the recycle bin --------------------------------------------------------------------------------------------------


@pytest.fixture
def binned(team, runtime, alice):
    def make(number: int, *, others: int = 0) -> list[Project]:
        team.organization.max_projects = 500
        team.organization.max_memory_bytes = team.organization.max_storage_bytes = 10**15
        team.organization.save()
        made = [make_project(team.alice, team.organization, name=f"Old {n}") for n in range(number)]
        for n in range(others):
            make_project(team.alice, team.organization, name=f"Other {n}")
        for project in made:
            drive(project_delete(principal=alice, project=project))
        Project.objects.filter(pk__in=[p.pk for p in made]).update(recycle_until=now() - timedelta(hours=1))
        return made

    return make


def tick():
    """The daily look; a day later each time."""
    notes = Install.load().notes
    Install.objects.update(notes={**notes, "purge_due_at": ""})
    tasks.purge_due()


def purges() -> int:
    return Operation.objects.filter(kind="purge").count()


def test_a_project_must_be_due_at_two_daily_looks(binned):
    binned(2)
    tick()
    assert purges() == 0, "a clock that jumped shows at the next look"
    tick()
    assert purges() == 2


def test_a_clock_that_jumps_and_comes_back_deletes_nothing(binned):
    binned(2)
    tick()
    Project.objects.update(recycle_until=now() + timedelta(days=5))
    tick()
    tick()
    assert purges() == 0


def test_it_looks_once_a_day_however_often_it_is_asked(binned):
    binned(1)
    for _ in range(5):
        tasks.purge_due()
    assert purges() == 0


def test_too_many_at_once_stop_and_ask(binned):
    binned(4)
    for _ in range(3):
        tick()
    assert purges() == 0
    assert "at most 3" in Install.load().notes["purge_due_refused"]


def test_protected_projects_stay(binned):
    (project,) = binned(1)
    Project.objects.filter(pk=project.pk).update(deletion_protection=True)
    for _ in range(3):
        tick()
    assert purges() == 0


def test_a_read_only_install_purges_nothing(binned):
    binned(1)
    tick()
    Install.objects.update(read_only=True)
    tick()
    assert purges() == 0


def test_restored_from_the_bin_is_safe(binned):
    (project,) = binned(1)
    tick()
    Project.objects.filter(pk=project.pk).update(recycled_at=None, recycle_until=None, desired_status="running")
    tick()
    assert purges() == 0
