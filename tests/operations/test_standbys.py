"""Warm standbys: prepared ahead, replaced, removed, and never anybody's before."""

from __future__ import annotations

from datetime import timedelta
from io import StringIO

import pytest
from django.core.management import CommandError, call_command
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext

from accounts.models import AuditEvent
from novastack.common.clock import now
from novastack.common.models import Install
from projects import domain
from projects.models import (
    DatabaseServer,
    DataTombstone,
    Endpoint,
    Operation,
    OperationLock,
    Orphan,
    Plan,
    Region,
    StandbyTarget,
)
from projects.operations import janitor, reconciler, runner, standby_upkeep, watch
from projects.operations.queue import server_operation_create
from projects.services import operation_cancel
from tests.factories import api_client
from tests.operations.conftest import create, drive, let_time_pass
from tests.operations.standby_targets import _looks_again, _standby, _target, held, live, settle, spare  # noqa: F401 - fixtures


# --- preparing ----------------------------------------------------------------------------------------------------------
def test_none_by_default_and_a_tick_costs_two_queries(runtime):
    with CaptureQueriesContext(connection) as queries:
        done = standby_upkeep.keep()
    assert (done.preparing, done.removing) == (0, 0)
    assert len(queries) == 2


def test_the_number_that_is_wanted_is_made_one_at_a_time(target, runtime, paper):
    StandbyTarget.objects.update(count=2)
    assert standby_upkeep.keep().preparing == 1
    assert standby_upkeep.keep().preparing == 0, "one at a time"
    settle()
    settle()
    rows = list(DatabaseServer.objects.filter(kind="standby"))
    assert len(rows) == 2 == len({row.port for row in rows})
    for row in rows:
        assert row.standby_ready_at and row.initialised_at and row.system_identifier
        assert row.admin_pending_secret is None
        assert paper.of(row.control_endpoint).passwords[row.admin_username] == row.admin_secret.open()
        assert paper.of(row.control_endpoint).databases == set()
    assert held(runtime) == ({str(r.pk) for r in rows}, {str(r.pk) for r in rows})
    assert not OperationLock.objects.exists()
    operations = Operation.objects.filter(kind="prepare_standby")
    assert {o.state for o in operations} == {"succeeded"}
    assert {(o.organization_id, o.project_uuid) for o in operations} == {(None, None)}
    assert standby_upkeep.keep().preparing == 0


def test_nobody_but_operators_sees_them(standby, team):
    operation = Operation.objects.get(kind="prepare_standby")
    client = api_client(team.alice)
    assert client.get(f"/api/v1/operations/{operation.pk}/").status_code == 404
    assert client.get("/api/v1/operations/").json()["count"] == 0
    assert str(operation.pk) not in client.get("/api/v1/stats/overview/").content.decode()


def test_its_port_is_nobody_elses(standby, team):
    project = create(team, "Shop")
    assert project.endpoint.port != standby.port


def test_orphans_and_usage_know_them(standby, runtime):
    reconciler._looked.clear()
    reconciler.reconcile()
    assert not Orphan.objects.exists()
    assert watch.collect_usage() == 0
    standby.refresh_from_db()
    assert standby.usage_at is None


# --- what keeps them from being made ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"disk": {"used_percent": 83.0}}, "83 % full"),
        ({"enabled": False}, "is off"),
        ({"reachable": False}, "can't be reached"),
        ({"reconcile": False}, "by itself"),
        ({"lacks": {"postgresql": {"18": "no binary"}}}, "can't run it"),
    ],
)
def test_none_is_made_where_none_should(target, changes, words):
    Region.objects.update(**changes)
    assert standby_upkeep.keep().preparing == 0
    target.refresh_from_db()
    assert words in target.problem


def test_a_read_only_install_makes_and_removes_none(standby):
    Install.load()
    Install.objects.update(read_only=True, read_only_reason="test")
    StandbyTarget.objects.update(count=3)
    done = standby_upkeep.keep()
    assert (done.preparing, done.removing) == (0, 0)
    assert "read-only" in StandbyTarget.objects.get().problem
    StandbyTarget.objects.update(count=0)
    assert standby_upkeep.keep().removing == 0


def test_a_runtime_that_is_away_uses_up_nothing(target, runtime):
    standby_upkeep.keep()
    for method in ("ensure", "ping"):
        runtime.fail(method, domain.RuntimeUnreachable("away"))
    operation = live()[0]
    runner.run(operation.pk)
    operation.refresh_from_db()
    assert operation.live
    assert operation.next_attempt_at is not None
    assert operation.attempt == 1
    assert not Region.objects.get().reachable
    assert standby_upkeep.keep().removing == 0
    reconciler.reconcile()
    settle()
    assert spare().standby_ready_at


def test_a_failure_is_said_and_waited_for_and_leaves_nothing(target, runtime, paper):
    broken = domain.EngineError("nothing works")
    broken.retryable = False
    paper.fails["harden"] = [broken]
    standby_upkeep.keep()
    operation = drive(live()[0])
    assert operation.state == "failed"
    assert not DatabaseServer.objects.exists()
    assert held(runtime)[0] == set()
    target.refresh_from_db()
    assert target.failures == 1
    assert "nothing works" in target.problem
    assert standby_upkeep.keep().preparing == 0, "not at once"
    janitor.delete_due_data()
    assert held(runtime) == (set(), set())
    StandbyTarget.objects.update(retry_after=now() - timedelta(seconds=1))
    settle()
    target.refresh_from_db()
    assert (target.failures, target.problem, target.retry_after) == (0, "", None)
    assert spare().standby_ready_at


# --- removing and replacing ---------------------------------------------------------------------------------------------
def test_fewer_wanted(standby, runtime):
    StandbyTarget.objects.update(count=0)
    settle()
    assert not DatabaseServer.objects.exists()
    assert held(runtime) == (set(), set())
    tomb = DataTombstone.objects.get()
    assert (tomb.reason, tomb.organization_id, tomb.project_uuid) == ("standby removed", None, None)
    assert Operation.objects.get(kind="remove_standby").state == "succeeded"


def test_a_target_that_was_deleted(standby, runtime):
    StandbyTarget.objects.all().delete()
    settle()
    assert not DatabaseServer.objects.exists()
    assert held(runtime) == (set(), set())


@pytest.mark.parametrize("what", ["plan", "image", "certificate", "stopped", "gone", "address"])
def test_what_is_not_as_wanted_any_more_is_replaced(standby, runtime, what, monkeypatch):
    if what == "plan":
        Plan.objects.update(memory_bytes=1 << 30)
    elif what == "address":
        Region.objects.update(client_host="db.example.com")
    elif what == "image":
        monkeypatch.setattr(runtime, "resolve_image", lambda *a, **k: domain.ImageRef("new", "sha256:new"))
    elif what == "certificate":
        DatabaseServer.objects.update(tls_not_after=now() + timedelta(days=3))
    elif what == "stopped":
        runtime.stop(standby.handle, grace_seconds=0)
        reconciler.reconcile()
    else:
        runtime.destroy(standby.handle, delete_data=True)
        reconciler.reconcile()
    standby_upkeep._looked.clear()
    assert standby_upkeep.keep().removing == 1
    settle()
    settle()
    assert spare().pk != standby.pk
    assert spare().standby_ready_at
    assert held(runtime) == ({str(spare().pk)}, {str(spare().pk)})


def test_one_that_does_not_answer_twice_is_replaced(standby, paper):
    def look():
        standby_upkeep._looked.clear()
        return standby_upkeep.keep().removing

    paper.refuses_to_answer = True
    assert look() == 0
    paper.refuses_to_answer = False
    assert look() == 0, "one silence may be a busy host"
    paper.refuses_to_answer = True
    assert [look(), look()] == [0, 1]
    paper.refuses_to_answer = False
    settle()


def test_one_that_can_not_be_asked_keeps_its_data(standby, runtime, paper):
    """What can't be read is not empty (rule 8)."""
    StandbyTarget.objects.update(count=0)
    standby_upkeep.keep()
    operation = live()[0]
    paper.fails["contents"] = [domain.ServerNotReady("no")] * 50
    for _ in range(5):
        let_time_pass(operation)
        runner.run(operation.pk)
    operation.refresh_from_db()
    assert operation.live
    assert operation.next_attempt_at is not None
    assert str(standby.pk) in held(runtime)[1]
    assert not DataTombstone.objects.exists()
    paper.fails.clear()
    settle()
    assert held(runtime) == (set(), set())


def test_an_operator_may_cancel_and_nobody_else(target, team, alice):
    from accounts.permissions import OperatorPrincipal
    from novastack.common.errors import NotFound

    standby_upkeep.keep()
    operation = live()[0]
    with pytest.raises(NotFound):
        operation_cancel(principal=alice, operation=operation)
    team.adam.is_staff = team.adam.is_superuser = True
    team.adam.save()
    operation_cancel(principal=OperatorPrincipal(user=team.adam), operation=operation)
    assert drive(operation).state == "cancelled"
    assert not DatabaseServer.objects.exists()
    target.refresh_from_db()
    assert target.failures == 0


def test_a_region_that_is_gone_is_forgotten_with_its_standbys(standby, runtime):
    with transaction.atomic():
        operation = server_operation_create(server=standby, kind="remove_standby", created_by_label="test")
    Region.objects.update(gone_at=now())
    assert standby_upkeep.keep().forgotten == 1
    operation.refresh_from_db()
    assert operation.state == "failed"
    assert not DatabaseServer.objects.exists()
    assert set(Orphan.objects.values_list("kind", "name")) == {
        ("server", standby.handle.name),
        ("data", standby.handle.name),
    }


def test_endpoints_of_standbys_are_none(standby):
    assert not Endpoint.objects.exists()


# --- what operators see -------------------------------------------------------------------------------------------------
def test_operators_see_how_many_are_ready_and_why_not(standby, team, client):
    team.adam.is_staff = team.adam.is_superuser = True
    team.adam.save()
    client.force_login(team.adam)
    page = client.get("/operator/").content.decode()
    assert "Warm standbys" in page
    assert "1 of 1" in page
    Region.objects.update(disk={"used_percent": 85.0, "free_bytes": 1 << 30})
    StandbyTarget.objects.update(count=2)
    standby_upkeep.keep()
    page = client.get("/operator/").content.decode()
    assert "1 of 2" in page
    assert "85 % full" in page
    assert client.get("/admin/projects/standbytarget/").status_code == 200


def test_the_number_is_bounded_and_of_something_that_exists(target):
    from django.core.exceptions import ValidationError

    for field, value in (("count", 21), ("engine", "oracle")):
        row = StandbyTarget.objects.get()
        setattr(row, field, value)
        with pytest.raises(ValidationError) as told:
            row.full_clean()
        assert field in told.value.message_dict
    StandbyTarget.objects.update(version="9.1")
    assert standby_upkeep.keep().preparing == 0
    assert "not offered" in StandbyTarget.objects.get().problem


def test_operators_set_the_number_on_record(target, team, client):
    team.adam.is_staff = team.adam.is_superuser = True
    team.adam.save()
    client.force_login(team.adam)
    url = f"/admin/projects/standbytarget/{target.pk}/change/"
    values = {"region": target.region_id, "engine": "postgresql", "version": "9.1", "plan": target.plan_id, "count": 3}
    assert "Use one of" in client.post(url, values).content.decode()
    assert client.post(url, {**values, "version": "18"}).status_code == 302
    target.refresh_from_db()
    assert target.count == 3
    assert AuditEvent.objects.get(action="standbys.changed").data == {"count": 3}


def test_the_console_sets_and_shows_the_number(runtime):
    def said(*words):
        out = StringIO()
        call_command("standbys", *words, stdout=out)
        return out.getvalue()

    assert "None are kept" in said()
    assert "0 of 2 ready" in said("set", "local", "postgresql", "18", "small", "2")
    standby_upkeep.keep()
    settle()
    settle()
    assert "2 of 2 ready" in said("show")
    for words in (("nowhere", "postgresql", "18", "small", "1"), ("local", "postgresql", "7", "small", "1"),
                  ("local", "postgresql", "18", "small", "99"), ("local", "postgresql", "18", "huge", "1")):  # fmt: skip
        with pytest.raises(CommandError):
            said("set", *words)
    assert "None are kept" in said("set", "local", "postgresql", "18", "small", "0")
    settle()
    assert not DatabaseServer.objects.exists()
