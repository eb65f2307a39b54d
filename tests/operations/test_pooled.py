"""Projects on pools: placed, made, and never more of them on a pool than it may hold."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import transaction
from django.utils import timezone

from accounts.permissions import Principal
from novastack.common.errors import ActionNotAllowed, Invalid
from projects import domain
from projects.models import (
    BlankDatabase,
    Database,
    DatabaseRole,
    DatabaseServer,
    Endpoint,
    Operation,
    Plan,
    Project,
    Region,
)
from projects.operations import base, placing, retiring, runner, status
from projects.services import (
    project_action,
)
from projects.services.actions import operation_cancel, operation_retry
from projects.services.connections import connection_reveal
from projects.services.quotas import usage_of
from projects.services.readings import status_of
from tests.operations.conftest import (
    Killed,
    drive,
    killed_at,
    let_lease_expire,
    let_time_pass,
    once,
    operation_of,
    states,
)
from tests.operations.pooled_projects import _roomy, _small, all_pools, ask, paper_of, placed, pool_of, row_of, settle  # noqa: F401 - fixtures


# --- creation and placement ---------------------------------------------------------------------------------------------
def test_a_project_gets_a_database_on_a_pool_that_is_made_for_it(team, runtime, paper):
    project = placed(team)
    pool, row = pool_of(project), row_of(project)
    assert (pool.kind, pool.project_uuid, pool.max_databases) == ("pool", None, 3)
    assert row.name == f"tenant_{str(project.pk).replace('-', '_')}"
    names = dict(DatabaseRole.objects.filter(database=row).values_list("kind", "name"))
    short = project.pk.hex[-12:]
    assert names == {
        "login": f"tenant_{short}", "owner": f"nvs_{short}_owner", "group": f"nvs_{short}_group",
        "control": f"nvs_{short}_control",
    }  # fmt: skip
    endpoint = Endpoint.objects.get(project=project)
    assert (endpoint.shared, endpoint.port, endpoint.host) == (True, pool.port, pool.region.client_host)
    info = connection_reveal(principal=Principal.of(team.alice), project=project)
    assert (info.port, info.database, info.username) == (pool.port, row.name, f"tenant_{short}")
    assert not DatabaseServer.objects.filter(kind="dedicated").exists()
    assert row.created_in_engine_at


def test_a_second_project_shares_the_server_and_its_port(team, runtime, paper):
    one, two = placed(team, "One"), placed(team, "Two")
    assert pool_of(one) == pool_of(two)
    assert Endpoint.objects.get(project=one).port == Endpoint.objects.get(project=two).port
    assert len(all_pools()) == 1
    assert paper_of(paper, one).databases == {row_of(one).name, row_of(two).name}


def test_the_plan_says_where_and_the_request_wins(team, runtime, paper):
    Plan.objects.update(placement="pool")
    project = ask(team, "By plan", placement=None)
    assert project.placement == "pool"
    settle()
    dedicated = ask(team, "Own", placement="dedicated")
    assert dedicated.placement == "dedicated"


def test_a_pool_of_one_plan_takes_no_other(team, runtime, paper):
    other = Plan.objects.create(slug="other", name="Other", placement="pool")
    first = placed(team, "First", plan="other", placement=None)
    second = placed(team, "Second")
    assert pool_of(first).plan == other
    assert pool_of(second).plan == second.plan


def test_a_pool_for_all_plans_takes_every_project(team, runtime, paper):
    other = Plan.objects.create(slug="other", name="Other")
    first = placed(team, "First")
    DatabaseServer.objects.filter(pk=pool_of(first).pk).update(plan=None)
    assert pool_of(placed(team, "Second", plan=other.slug)) == pool_of(first)


@pytest.mark.parametrize(
    ("fields", "field", "code"),
    [
        ({"engine": "ferretdb"}, "placement", "not_available"),
        ({"placement": "external"}, "placement", "not_available"),
        ({"placement": "cloud"}, "placement", "invalid"),
        ({"database_name": "mine"}, "database_name", "not_available"),
        ({"username": "me"}, "username", "not_available"),
        ({"limits": {"memory_bytes": 1 << 29}}, "limits.memory_bytes", "not_available"),
        ({"tls_required": True}, "tls_required", "not_available"),
    ],
)
def test_what_a_pool_can_not_give_is_refused_with_its_field(team, runtime, fields, field, code):
    with pytest.raises(Invalid) as refused:
        ask(team, **fields)
    assert (refused.value.errors[0].field, refused.value.errors[0].code) == (field, code)
    assert not Project.objects.exists()


def test_exposure_that_a_pool_does_not_have_is_refused(team, runtime):
    Region.objects.update(public_address="198.51.100.7")
    with pytest.raises(Invalid) as refused:
        ask(team, exposure="public")
    assert refused.value.errors[0].field == "exposure"


def test_pooled_projects_use_up_no_memory_of_the_quota(team, runtime):
    before = usage_of(team.organization)
    project = ask(team)
    after = usage_of(team.organization)
    assert after["memory_bytes"]["used"] == before["memory_bytes"]["used"]
    assert after["storage_bytes"]["used"] == before["storage_bytes"]["used"] + project.storage_bytes
    assert after["projects"]["used"] == before["projects"]["used"] + 1


def test_while_it_waits_it_says_why_and_shows_no_connection(team, runtime, paper):
    project = ask(team)
    operation = once(operation_of(project))
    project.refresh_from_db()
    assert (project.status, operation.state) == ("provisioning", "running")
    assert "A pool is being made ready" in project.status_detail
    assert states(operation)["place"] == "waiting"
    with pytest.raises(ActionNotAllowed, match="not ready yet"):
        connection_reveal(principal=Principal.of(team.alice), project=project)
    assert status_of(project)["server"] is None


def test_the_fullest_pool_that_has_room_is_taken(team, runtime, paper):
    for number in range(4):
        placed(team, f"P{number}")
    first, second = all_pools()
    DatabaseServer.objects.filter(pk=second.pk).update(max_databases=9)
    for project in Project.objects.filter(databases__server=first)[:1]:
        Database.objects.filter(project=project).delete()
    assert pool_of(placed(team, "Next")) == first


@pytest.mark.parametrize(
    "change",
    [
        {"draining_at": timezone.now()},
        {"reconcile": False},
        {"pool_health": "unhealthy"},
        {"max_databases": 1},
        {"desired_state": "absent"},
        {"version": "17"},
    ],
)
def test_a_pool_that_does_not_take_it_is_passed_by(team, runtime, paper, change):
    first = pool_of(placed(team, "One"))
    DatabaseServer.objects.filter(pk=first.pk).update(**change)
    assert pool_of(placed(team, "Two")) != first


def test_a_pool_that_is_coming_back_is_waited_for(team, runtime, paper):
    first = pool_of(placed(team, "One"))
    DatabaseServer.objects.filter(pk=first.pk).update(observed_state="stopped")
    project = ask(team, "Two")
    operation = once(operation_of(project))
    assert states(operation)["place"] == "waiting"
    assert len(all_pools()) == 1
    DatabaseServer.objects.filter(pk=first.pk).update(observed_state="running")
    settle()
    assert pool_of(project) == first


# --- demand -------------------------------------------------------------------------------------------------------------
def test_many_that_wait_fill_as_many_pools_as_they_need_and_no_more(team, runtime, paper):
    projects = [ask(team, f"P{number}") for number in range(12)]
    settle()
    counts = sorted(Database.objects.filter(server=pool).count() for pool in all_pools())
    assert counts == [3, 3, 3, 3]
    assert Operation.objects.filter(kind="prepare_pool").count() == 4
    assert {p.status for p in Project.objects.all()} == {"running"}
    assert len({row_of(p).name for p in projects}) == 12


def test_one_pool_is_prepared_for_those_who_fit_into_it(team, runtime, paper):
    for number in range(3):
        once(operation_of(ask(team, f"P{number}")))
    assert Operation.objects.filter(kind="prepare_pool").count() == 1
    settle()
    assert len(all_pools()) == 1


def test_those_who_wait_are_told_when_the_pool_is_ready(team, runtime, paper, django_capture_on_commit_callbacks):
    operation = operation_of(ask(team))
    once(operation)
    operation.refresh_from_db()
    assert operation.next_attempt_at is not None
    drive(Operation.objects.get(kind="prepare_pool"))
    operation.refresh_from_db()
    assert operation.next_attempt_at is None


def test_a_place_that_gets_free_wakes_who_waits(team, runtime, paper):
    first = placed(team, "One")
    DatabaseServer.objects.update(max_databases=1)
    operation = once(operation_of(ask(team, "Two")))
    assert operation.next_attempt_at is not None
    Operation.objects.filter(kind="prepare_pool").update(next_attempt_at=timezone.now() + timedelta(hours=1))
    with transaction.atomic():
        Database.objects.filter(project=first).delete()
        assert placing.wake(all_pools()[0]) == 1
    operation.refresh_from_db()
    assert operation.next_attempt_at is None


def test_all_busy_is_not_full(team, runtime, paper, monkeypatch):
    """Rows that others hold are passed over, and no pool is begun for it."""
    placed(team, "One")
    monkeypatch.setattr(placing, "TRY_SECONDS", 0.05)
    real = placing.take

    def busy(*args, **options):
        raise placing.AllBusy

    monkeypatch.setattr(placing, "take", busy)
    operation = once(operation_of(ask(team, "Two")))
    assert (states(operation)["place"], len(all_pools())) == ("waiting", 1)
    assert "being placed" in operation.steps.get(name="place").detail
    monkeypatch.setattr(placing, "take", real)
    settle()
    assert len(all_pools()) == 1


# --- failures -----------------------------------------------------------------------------------------------------------
def test_a_pool_that_can_not_be_made_is_the_projects_reason_and_in_the_end_its_failure(team, runtime, paper):
    project = ask(team)
    runtime.fail("resolve_image", domain.ImageMissing("no image for it"), times=1000)
    operation = operation_of(project)
    seen = []
    for _ in range(80):
        DatabaseServer.objects.filter(kind="pool").update(recover_after=None)
        for each in Operation.objects.live().order_by("created_at"):
            let_time_pass(each)
            let_lease_expire(each)
            runner.run(each.pk)
        project.refresh_from_db()
        seen.append(project.status_detail)
        operation.refresh_from_db()
        if not operation.live:
            break
    assert operation.state == "failed", (operation.error, states(operation))
    assert operation.error["code"] == "image_missing"
    assert "pool" in operation.error["detail"] and "no image for it" in operation.error["detail"]
    assert operation.attempt == base.OPERATION_ATTEMPTS
    assert any("no image for it" in text for text in seen)
    assert project.status == "failed"
    assert not Database.objects.exists()


def test_a_provisioning_that_is_given_up_leaves_nothing_and_frees_its_place(team, runtime, paper):
    project = ask(team)
    paper.fails["verify_tenant"] = [domain.LoginRefused("no") for _ in range(20)]
    settle(turns=100)
    project.refresh_from_db()
    assert project.status == "failed"
    assert not Database.objects.exists()
    assert not DatabaseRole.objects.exists()
    pool = all_pools()[0]
    assert paper.of(pool.control_endpoint).databases == set()
    assert Endpoint.objects.get(project=project).port == 0
    paper.fails.clear()
    operation_retry(principal=Principal.of(team.alice), operation=operation_of(project))
    settle()
    project.refresh_from_db()
    assert project.status == "running"
    assert row_of(project).name.endswith("_2")  # names are never used twice


def test_cancelling_while_it_waits_ends_it(team, runtime, paper):
    project = ask(team)
    operation = once(operation_of(project))
    operation_cancel(principal=Principal.of(team.alice), operation=operation)
    drive(operation)
    operation.refresh_from_db()
    assert operation.state == "cancelled"


def test_undo_on_a_pool_that_is_silent_leaves_the_database_to_the_janitor(team, runtime, paper):
    project = ask(team)
    settle()
    Project.objects.filter(pk=project.pk).update(ready_at=None, credentials_shown_at=None)
    operation = Operation.objects.get(pk=operation_of(project).pk)
    pool = pool_of(project)
    again = project_action_retry(team, project)
    paper.refuses_to_answer = True
    operation_cancel(principal=Principal.of(team.alice), operation=again)
    drive(again)
    row = Database.objects.get(project=project)
    assert (row.slot, row.server) == ("previous", pool)
    assert row.drop_due_at is not None
    assert retiring.drop_due() == 0
    paper.refuses_to_answer = False
    Database.objects.update(drop_due_at=timezone.now() - timedelta(seconds=1))
    assert retiring.drop_due() == 1
    assert paper.of(pool.control_endpoint).databases == set()
    assert not Database.objects.exists()
    assert operation.state == "succeeded"


def project_action_retry(team, project):
    Project.objects.filter(pk=project.pk).update(failure={"code": "x", "detail": "y", "retryable": True})
    status.refresh([project.pk])
    project.refresh_from_db()
    return project_action(principal=Principal.of(team.alice), project=project, action="retry")


def test_credentials_that_were_shown_are_never_undone(team, runtime, paper):
    project = placed(team)
    Project.objects.filter(pk=project.pk).update(ready_at=None, credentials_shown_at=timezone.now())
    again = project_action_retry(team, project)
    operation_cancel(principal=Principal.of(team.alice), operation=again)
    drive(again)
    assert row_of(project).name in paper_of(paper, project).databases


@pytest.mark.django_db(transaction=True)
def test_a_worker_killed_at_any_statement_leaves_one_database_and_its_row(team, runtime, paper):
    """Whatever is cut, the next worker ends it: no database without a row, no row without a database, one slot taken."""
    placed(team, "First")
    number = 0
    while True:
        number += 1
        project = ask(team, f"K{number}")
        DatabaseServer.objects.update(max_databases=500)
        operation = operation_of(project)
        with killed_at(number) as seen:
            try:
                runner.run(operation.pk)
                died = False
            except Killed:
                died = True
        if not died and seen.count < number:
            break
        drive(operation)
        rows = Database.objects.filter(project=project)
        assert rows.count() == 1, seen.statement
        operation.refresh_from_db()
        assert operation.state == "succeeded", (seen.statement, operation.error)
    known = set(Database.objects.values_list("name", flat=True))
    assert paper.of(all_pools()[0].control_endpoint).databases == known
    assert number > 20


# --- blanks -------------------------------------------------------------------------------------------------------------
def test_a_blank_is_used_up_with_the_place(team, runtime, paper):
    pool = pool_of(placed(team, "One"))
    BlankDatabase.objects.create(server=pool, name="nvs_blank_1", ready_at=timezone.now())
    BlankDatabase.objects.create(server=pool, name="nvs_blank_2")
    project = ask(team, "Two")
    with transaction.atomic():
        row = placing.take(project)
    assert row is not None and row.made_of == "nvs_blank_1"
    assert list(BlankDatabase.objects.values_list("name", flat=True)) == ["nvs_blank_2"]
