"""The reconciler: makes state true again, and writes only what changed."""

from __future__ import annotations

from collections import namedtuple
from datetime import timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from accounts.models import AuditEvent
from novastack.common.clock import DatabaseNow, now
from novastack.common.models import Install
from projects import domain, registry
from projects.models import DatabaseServer, Operation, Orphan, Project, Region
from projects.operations import converging, fanout, orphans, queue, reconciler, status, watch
from projects.operations.base import Step, Wait
from projects.runtimes.memory import _Volume
from projects.services import project_action
from tests.operations.conftest import begin, create, drive, let_lease_expire, once, operation_of

DiskUsage = namedtuple("DiskUsage", ["total", "used", "free"])


@pytest.fixture
def hints(monkeypatch):
    sent = []
    monkeypatch.setattr(reconciler, "send_hint", sent.append)
    return sent


def server_of(project):
    return DatabaseServer.objects.get(project_uuid=project.pk)


def look_for_orphans_again():
    reconciler._looked.clear()


# --- hints ----------------------------------------------------------------------------------------------------------


def test_a_lost_hint_is_sent_again_but_not_with_every_tick(shop, hints):
    operation = operation_of(shop)
    reconciler.resend_hints()
    assert hints == [], "it was only just sent"
    Operation.objects.filter(pk=operation.pk).update(created_at=now() - timedelta(seconds=5))
    reconciler.resend_hints()
    reconciler.resend_hints()
    assert hints == [operation.pk]


def test_who_is_at_work_or_not_due_gets_no_hint_and_an_expired_lease_does(shop, hints):
    operation = operation_of(shop)
    rows = Operation.objects.filter(pk=operation.pk)
    rows.update(created_at=now() - timedelta(minutes=1), lease_until=DatabaseNow() + timedelta(seconds=9))
    reconciler.resend_hints()
    rows.update(lease_until=None, next_attempt_at=DatabaseNow() + timedelta(seconds=9))
    reconciler.resend_hints()
    assert hints == []
    rows.update(next_attempt_at=DatabaseNow() - timedelta(seconds=1))
    reconciler.resend_hints()
    rows.update(next_attempt_at=None, lease_until=DatabaseNow() - timedelta(seconds=1), hinted_at=None)
    reconciler.resend_hints()
    assert hints == [operation.pk] * 2


def test_a_broker_that_is_away_does_no_harm(shop, monkeypatch, alice, team, django_capture_on_commit_callbacks):
    def broken(*args, **kwargs):
        raise ConnectionError("no broker")

    monkeypatch.setattr(queue.current_app, "send_task", broken)
    with django_capture_on_commit_callbacks(execute=True):
        another = create(team, "Another")
    assert operation_of(another).state == "queued"
    Operation.objects.update(created_at=now() - timedelta(minutes=1))
    assert reconciler.resend_hints() == 2


# --- observing ------------------------------------------------------------------------------------------------------


def writes(queries) -> list[str]:
    return [q["sql"] for q in queries if not q["sql"].startswith("SELECT")]


def test_nothing_changed_means_no_write_and_one_call(ready, runtime):
    reconciler.reconcile()
    calls = runtime.calls["observe"]
    with CaptureQueriesContext(connection, ) as seen:  # fmt: skip
        report = reconciler.reconcile()
    assert writes(seen.captured_queries) == []
    assert runtime.calls["observe"] == calls + 1
    assert (report.observed, report.changed, report.started) == (1, 0, 0)


def test_queries_and_calls_do_not_grow_with_servers(team, ready, runtime):
    for n in range(4):
        drive(operation_of(create(team, f"P{n}")))
    reconciler.reconcile()
    calls = runtime.calls["observe"]
    with CaptureQueriesContext(connection) as seen:
        reconciler.reconcile()
    assert len(seen.captured_queries) <= 6
    assert runtime.calls["observe"] == calls + 1


def test_a_server_that_died_is_seen_and_recovered_with_growing_pauses(ready, runtime):
    handle = server_of(ready).handle
    runtime.crash(handle, oom=True)
    assert reconciler.reconcile().started == 1
    ready.refresh_from_db()
    assert "out of memory" in server_of(ready).observed_detail
    assert ready.status == "starting", "somebody is at it"
    assert reconciler.reconcile().started == 0, "once"
    assert drive(operation_of(ready)).kind == "recover"
    ready.refresh_from_db()
    assert ready.status == "running"
    pauses = []
    for _ in range(7):
        runtime.crash(server_of(ready).handle)
        assert reconciler.reconcile().started == 0, "not sooner than the pause"
        before = server_of(ready).recover_after
        DatabaseServer.objects.update(recover_after=now() - timedelta(seconds=1))
        assert reconciler.reconcile().started == 1
        assert before is not None
        pauses.append(round((server_of(ready).recover_after - now()).total_seconds(), -1))
        drive(operation_of(ready))
    assert pauses == [20, 40, 80, 160, 300, 300, 300]
    assert AuditEvent.objects.filter(action="project.recover").count() == 8


def test_a_stopped_server_that_runs_again_is_stopped(ready, runtime, alice):
    drive(project_action(principal=alice, project=ready, action="stop"))
    runtime.start(server_of(ready).handle)
    assert reconciler.reconcile().started == 1
    assert drive(operation_of(ready)).kind == "stop"
    ready.refresh_from_db()
    assert ready.status == "stopped"


def test_only_what_was_seen_stopped_is_restarted(ready, runtime):
    Project.objects.update(health="unhealthy")
    runtime.unreachable = True
    assert reconciler.reconcile().started == 0
    ready.refresh_from_db()
    assert ready.status == "not_available"
    runtime.unreachable = False
    reconciler.reconcile()
    ready.refresh_from_db()
    assert ready.status == "starting", "until somebody has logged in"
    assert watch.check_health() == 1
    ready.refresh_from_db()
    assert ready.status == "running"
    assert Operation.objects.filter(kind="recover").count() == 0


def test_observations_older_than_what_an_operation_saw_are_dropped(ready, runtime, monkeypatch):
    """It looked while a restart was in the middle; the restart ended before it could write."""
    server = server_of(ready)
    real = runtime.observe

    def slow(handles):
        DatabaseServer.objects.filter(pk=server.pk).update(observed_at=now(), observed_state="running")
        return {h: domain.Observation(domain.ServerState.STOPPED) for h in handles}

    monkeypatch.setattr(runtime, "observe", slow)
    # In this thread, so that the test's transaction is the look's too.
    monkeypatch.setattr(fanout, "ask", lambda what, asked, _: ((pk, question()) for pk, question in asked.items()))
    report = reconciler.reconcile()
    assert (report.changed, report.started) == (0, 0)
    assert server_of(ready).observed_state == "running"
    monkeypatch.setattr(runtime, "observe", real)
    assert reconciler.reconcile().changed == 0


def test_a_failed_project_whose_server_runs_after_all_is_proven_and_recovers(ready, runtime):
    Project.objects.filter(pk=ready.pk).update(failure={"code": "x", "detail": "It broke.", "retryable": True})
    status.refresh([ready.pk])
    ready.refresh_from_db()
    assert ready.status == "failed"
    assert reconciler.reconcile().started == 1
    drive(operation_of(ready))
    ready.refresh_from_db()
    assert (ready.status, ready.failure) == ("running", None)


def test_what_can_not_pass_waits_for_a_person(ready, runtime):
    Project.objects.filter(pk=ready.pk).update(failure={"code": "x", "detail": "It broke.", "retryable": False})
    status.refresh([ready.pk])
    assert reconciler.reconcile().started == 0


def test_somebody_who_acts_while_it_looks_is_not_overruled(ready, runtime, alice, monkeypatch):
    """It saw the server stopped and wanted to start it; meanwhile its owner stopped it on purpose."""
    runtime.crash(server_of(ready).handle)
    real = converging._start_recovery

    def meanwhile(project, server_id, kind):
        drive(project_action(principal=alice, project=project, action="stop"))
        return real(project, server_id, kind)

    monkeypatch.setattr(converging, "_start_recovery", meanwhile)
    assert reconciler.reconcile().started == 0
    ready.refresh_from_db()
    assert ready.status == "stopped"
    assert not Operation.objects.filter(kind="recover").exists()


def test_set_aside_servers_regions_and_installs_are_left_alone(ready, runtime):
    runtime.crash(server_of(ready).handle)
    DatabaseServer.objects.update(reconcile=False)
    assert reconciler.reconcile().started == 0
    DatabaseServer.objects.update(reconcile=True)
    Region.objects.update(reconcile=False)
    assert reconciler.reconcile().started == 0
    Region.objects.update(reconcile=True)
    Install.objects.update(read_only=True)
    assert reconciler.reconcile().started == 0
    Install.objects.update(read_only=False)
    assert reconciler.reconcile().started == 1


def test_one_region_that_breaks_does_not_keep_the_others_waiting(ready, runtime, monkeypatch):
    Region.objects.create(slug="aaa", name="AAA", runtime="nosuch")
    monkeypatch.setattr(reconciler, "connection", type("C", (), {"in_atomic_block": False}))
    report = reconciler.reconcile()
    assert report.broken == ["aaa"]
    assert report.observed == 1


def test_a_project_made_while_the_runtime_is_away_comes_up_with_it(team, runtime):
    runtime.unreachable = True
    reconciler.reconcile()
    project = create(team, "Later")
    operation = once(operation_of(project))
    project.refresh_from_db()
    assert (operation.state, project.status) == ("running", "not_available")
    runtime.unreachable = False
    reconciler.reconcile()
    project.refresh_from_db()
    assert project.status == "provisioning"
    drive(operation)
    project.refresh_from_db()
    assert project.status == "running"


def test_an_unreachable_runtime_met_by_one_operation_shows_on_all_projects(ready, team, runtime):
    other = create(team, "Other")
    runtime.unreachable = True
    once(operation_of(other))
    ready.refresh_from_db()
    assert ready.status == "not_available"
    runtime.unreachable = False
    once(Operation.objects.get(pk=operation_of(other).pk))
    reconciler.reconcile()
    watch.check_health()
    ready.refresh_from_db()
    assert ready.status == "running", "and comes back with it"


@pytest.mark.parametrize("error", [domain.ServerNotReady("connection refused"), domain.LoginRefused("no")])
def test_an_unhealthy_server_is_shown_and_not_restarted(ready, paper, error, monkeypatch):
    def fails(*args, **kwargs):
        raise error

    monkeypatch.setattr(paper, "admin", fails)
    Project.objects.update(health_checked_at=None)
    watch.check_health()
    ready.refresh_from_db()
    assert ready.status == "unhealthy"
    assert reconciler.reconcile().started == 0


# --- orphans and epochs -----------------------------------------------------------------------------------------------


def stray(runtime, number=1):
    for n in range(number):
        handle = domain.Handle(f"stray-{n}", 1)
        runtime.world.volumes[handle.name] = _Volume(runtime.install_id, handle)


def test_an_orphan_is_reported_and_nothing_is_touched(ready, runtime):
    stray(runtime)
    reconciler.reconcile()
    assert Orphan.objects.get().name == "nvs-stray-0-1"
    assert len(runtime.world.volumes) == 2
    assert not Install.load().read_only
    runtime.world.volumes.pop("nvs-stray-0-1")
    look_for_orphans_again()
    reconciler.reconcile()
    assert Orphan.objects.get().resolved_at


def test_a_server_of_a_project_that_was_purged_is_an_orphan(ready, runtime):
    """A worker that slept through the purge made it again."""
    handle = server_of(ready).handle
    from projects.models import DataTombstone

    DataTombstone.objects.create(server_uuid=handle.server_id, incarnation=1, region=ready.region, reason="purged",
                                 due_at=now())  # fmt: skip
    DatabaseServer.objects.filter(project_uuid=ready.pk).update(incarnation=2)
    orphans.find(ready.region, runtime, Install.load())
    assert list(Orphan.objects.values_list("kind", "name")) == [("server", handle.name)]


def test_more_than_three_new_orphans_at_once_stop_everything(ready, runtime):
    stray(runtime, 4)
    reconciler.reconcile()
    assert Install.load().read_only
    assert AuditEvent.objects.filter(action="install.read_only").count() == 1
    runtime.crash(server_of(ready).handle)
    assert reconciler.reconcile().started == 0


def test_what_is_made_or_removed_while_looking_is_no_orphan(team, ready, runtime, monkeypatch):
    region, real = Region.objects.get(pk=ready.region_id), runtime.managed

    def meanwhile():
        for n in range(5):
            drive(operation_of(create(team, f"New {n}")))
        found = list(real())
        DatabaseServer.objects.filter(project_uuid=ready.pk).update(incarnation=7)
        return found

    monkeypatch.setattr(runtime, "managed", meanwhile)
    orphans.find(region, runtime, Install.load())
    strange = [o.name for o in Orphan.objects.all()]
    assert strange == []
    assert not Install.load().read_only


def test_another_epoch_in_the_runtime_makes_the_install_read_only(ready, runtime):
    reconciler.reconcile()
    assert runtime.read_epoch() == str(Install.load().epoch)
    runtime.write_epoch("somebody-elses")
    look_for_orphans_again()
    runtime.crash(server_of(ready).handle)
    report = reconciler.reconcile()
    assert Install.load().read_only
    assert report.observed == 0


# --- poison and waiting stay visible ------------------------------------------------------------------------------------


def test_the_promise_after_a_worker_is_back(idle, kind, runtime, hints):
    """An operation has ended, or is under a live lease, or shows when it goes on."""

    def waits(ctx):
        raise Wait("long", seconds=3600)

    kind("greet", Step("one", "One", waits))
    operation = begin(idle, "greet")
    once(operation)
    assert operation.next_attempt_at
    assert not operation.lease_until
    let_lease_expire(operation)


def test_unknown_runtimes_are_not_built(db):
    with pytest.raises(KeyError):
        registry.runtime("nosuch", install_id="x", config={})
