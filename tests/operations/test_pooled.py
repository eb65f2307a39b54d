"""Projects on pools: placed, made, stopped, started, deleted, purged, and never more of them on a pool than it may hold."""

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
    MetricSample,
    Operation,
    Orphan,
    Plan,
    Project,
    Region,
)
from projects.operations import base, doctor, forgetting, placing, pools, reconciler, retiring, runner, status, watch
from projects.services import (
    ProjectRequest,
    project_action,
    project_create,
    project_delete,
    project_purge,
    project_update,
)
from projects.services.actions import operation_cancel, operation_retry
from projects.services.connections import connection_reveal
from projects.services.quotas import usage_of
from projects.services.readings import figures_of, logs_read, server_of, status_of
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


@pytest.fixture(autouse=True)
def _small(settings):
    settings.NOVASTACK_POOL_MAX_DATABASES = 3
    settings.NOVASTACK_POOL_FILL_PERCENT = 0
    settings.NOVASTACK_DATA_GRACE_SECONDS = 900


@pytest.fixture(autouse=True)
def _roomy(team):
    team.organization.max_projects = 500
    team.organization.max_storage_bytes = 1 << 50
    team.organization.save()


def ask(team, name="Shop", **fields):
    fields.setdefault("placement", "pool")
    return project_create(
        principal=Principal.of(team.alice), organization=team.organization, request=ProjectRequest(name=name, **fields)
    )


def settle(*, turns=60):
    """Workers until nothing is live."""
    for _ in range(turns):
        live = list(Operation.objects.live().order_by("created_at"))
        if not live:
            return
        for operation in live:
            let_time_pass(operation)
            let_lease_expire(operation)
            runner.run(operation.pk)
    raise AssertionError([(o.kind, states(o), o.error) for o in Operation.objects.live()])


def placed(team, name="Shop", **fields):
    project = ask(team, name, **fields)
    settle()
    project.refresh_from_db()
    assert project.status == "running", (project.status, project.status_detail)
    return project


def act(team, project, action):
    operation = project_action(principal=Principal.of(team.alice), project=project, action=action)
    drive(operation)
    project.refresh_from_db()
    return operation


def pool_of(project):
    return Database.objects.get(project=project, slot="current").server


def all_pools():
    return list(DatabaseServer.objects.filter(kind="pool").order_by("created_at"))


def row_of(project):
    return Database.objects.get(project=project, slot="current")


def paper_of(paper, project):
    return paper.of(pool_of(project).control_endpoint)


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


# --- stop, start, restart, rotate, resize -------------------------------------------------------------------------------
def test_stop_shuts_its_logins_out_and_start_lets_them_in(team, runtime, paper):
    project, neighbour = placed(team), placed(team, "Neighbour")
    login = DatabaseRole.objects.get(database=row_of(project), kind="login").name
    act(team, project, "stop")
    assert project.status == "stopped"
    assert paper_of(paper, project).shut == {login}
    assert row_of(project).locked_at is not None
    neighbour.refresh_from_db()
    assert (neighbour.status, pool_of(project).observed_state) == ("running", "running")
    assert watch.check_health() >= 0
    project.refresh_from_db()
    assert project.status == "stopped"
    act(team, project, "start")
    assert project.status == "running"
    assert paper_of(paper, project).shut == set()


def test_restart_is_refused_with_a_reason(team, runtime, paper):
    project = placed(team)
    with pytest.raises(ActionNotAllowed, match="shares its server"):
        act(team, project, "restart")


def test_rotation_touches_nobody_else(team, runtime, paper):
    project, neighbour = placed(team), placed(team, "Neighbour")
    before = dict(paper_of(paper, project).passwords)
    act(team, project, "rotate_password")
    after = paper_of(paper, project).passwords
    login = DatabaseRole.objects.get(database=row_of(project), kind="login").name
    assert {name for name in after if after[name] != before[name]} == {login}
    assert neighbour.status == "running"


@pytest.mark.parametrize(
    ("changes", "field"), [({"limits": {"memory_bytes": 1 << 28}}, "limits"), ({"tls_required": True}, "tls_required")]
)
def test_what_is_the_pools_can_not_be_changed(team, runtime, paper, changes, field):
    project = placed(team)
    with pytest.raises(Invalid) as refused:
        project_update(principal=Principal.of(team.alice), project=project, changes=changes)
    assert (refused.value.errors[0].field, refused.value.errors[0].code) == (field, "not_available")


def test_a_failed_stop_can_be_tried_again(team, runtime, paper):
    project = placed(team)
    paper.fails["lock"] = [domain.EngineError("no") for _ in range(9)]
    operation = act(team, project, "stop")
    assert (operation.state, project.status) == ("failed", "failed")
    paper.fails.clear()
    act(team, project, "retry")
    assert project.status == "stopped"


def test_stop_waits_for_a_pool_that_is_down(team, runtime, paper):
    project = placed(team)
    DatabaseServer.objects.update(observed_state="stopped")
    operation = project_action(principal=Principal.of(team.alice), project=project, action="stop")
    once(operation)
    assert states(operation)["lock"] == "waiting"
    assert "pool is down" in operation.steps.get(name="lock").detail
    DatabaseServer.objects.update(observed_state="running")
    drive(operation)
    project.refresh_from_db()
    assert project.status == "stopped"


# --- the pool goes down -------------------------------------------------------------------------------------------------
def test_a_pool_that_goes_down_shows_at_its_projects_without_the_runtimes_words(team, runtime, paper):
    project = placed(team)
    runtime.crash(pool_of(project).handle, oom=True)
    reconciler.reconcile()
    project.refresh_from_db()
    assert (project.status, project.status_detail) == ("unhealthy", status.POOL_DOWN)


def test_the_reconciler_puts_right_what_is_not_as_desired(team, runtime, paper):
    project = placed(team)
    Database.objects.update(locked_at=timezone.now())
    reconciler.reconcile()
    assert operation_of(project).kind == "recover"
    settle()
    assert row_of(project).locked_at is None
    Project.objects.update(desired_status="stopped")
    Database.objects.update(recover_after=None)
    reconciler.reconcile()
    assert operation_of(project).kind == "stop"
    settle()
    project.refresh_from_db()
    assert project.status == "stopped"


def test_recoveries_back_off(team, runtime, paper):
    project = placed(team)
    Database.objects.update(locked_at=timezone.now())
    paper.fails["unlock"] = [domain.EngineError("no") for _ in range(9)]
    reconciler.reconcile()
    settle()
    project.refresh_from_db()
    assert project.status == "failed"
    count = Operation.objects.filter(kind="recover").count()
    reconciler.reconcile()
    assert Operation.objects.filter(kind="recover").count() == count
    assert row_of(project).recover_after > timezone.now()


# --- delete, undelete, purge --------------------------------------------------------------------------------------------
def test_deleted_it_keeps_its_place_and_comes_back(team, runtime, paper):
    project = placed(team)
    drive(project_delete(principal=Principal.of(team.alice), project=project))
    project.refresh_from_db()
    assert project.status == "recycled"
    assert row_of(project).locked_at is not None
    assert row_of(project).name in paper_of(paper, project).databases
    act(team, project, "undelete")
    assert project.status == "running"
    assert paper_of(paper, project).shut == set()


def test_purged_its_database_goes_after_the_grace_and_the_server_stays(team, runtime, paper, settings):
    project, neighbour = placed(team), placed(team, "Neighbour")
    pool, name = pool_of(project), row_of(project).name
    operation = project_purge(principal=Principal.of(team.alice), project=project, confirm=project.slug)
    once(operation)
    row = row_of(project)
    assert 800 < (row.drop_due_at - timezone.now()).total_seconds() <= 900
    assert row.locked_at is not None
    assert retiring.drop_due() == 0
    assert name in paper.of(pool.control_endpoint).databases
    assert pools.pool_used(pool) == 2  # the place is taken until it was seen gone
    Database.objects.filter(project=project).update(drop_due_at=timezone.now())
    assert retiring.drop_due() == 1
    drive(operation)
    assert not Project.objects.filter(pk=project.pk).exists()
    assert paper.of(pool.control_endpoint).databases == {row_of(neighbour).name}
    pool.refresh_from_db()
    assert (pool.desired_state, pool.observed_state, pools.pool_used(pool)) == ("running", "running", 1)
    assert {h.server_id for h in runtime.managed_data()} == {str(pool.pk)}


def test_purging_what_never_had_a_place_leaves_nothing(team, runtime, paper):
    project = ask(team)
    once(operation_of(project))
    operation = project_purge(principal=Principal.of(team.alice), project=project, confirm=project.slug)
    settle()
    operation.refresh_from_db()
    assert operation.state == "succeeded"
    assert not Project.objects.exists()
    assert not Endpoint.objects.exists()


def test_deleting_while_it_is_made_ends_in_the_bin_and_can_be_undone(team, runtime, paper):
    project = ask(team)
    once(operation_of(project))
    project_delete(principal=Principal.of(team.alice), project=project)
    settle()
    project.refresh_from_db()
    assert project.status == "recycled"
    act(team, project, "undelete")
    settle()
    project.refresh_from_db()
    assert project.status == "running"


def test_deletion_waits_for_a_pool_that_is_down_rather_than_leave_it_open(team, runtime, paper):
    project = placed(team)
    DatabaseServer.objects.update(observed_state="stopped")
    operation = once(project_delete(principal=Principal.of(team.alice), project=project))
    project.refresh_from_db()
    assert (project.status, states(operation)["lock"]) == ("deleting", "waiting")


# --- readings -----------------------------------------------------------------------------------------------------------
def test_a_tenant_sees_nothing_of_the_server(team, runtime, paper):
    project = placed(team)
    Project.objects.update(health_checked_at=None)
    watch.check_health()
    watch.collect_usage()
    DatabaseServer.objects.update(cpu_percent=93.0, memory_used_bytes=1 << 30, usage_at=timezone.now())
    project.refresh_from_db()
    body = status_of(project)["server"]
    assert {
        body[key] for key in ("name", "image", "started_at", "cpu_percent", "memory_bytes", "memory_limit_bytes")
    } == {None}
    assert body["size_bytes"] == project.size_bytes is not None
    assert figures_of(project, server_of(project)).cpu_percent is None
    sample = MetricSample.objects.get(project=project)
    assert (sample.cpu_percent, sample.memory_bytes, sample.size_bytes) == (None, None, project.size_bytes)
    assert status_of(project, operator=True)["server"]["name"] == pool_of(project).name
    with pytest.raises(ActionNotAllowed, match="operators only"):
        logs_read(principal=Principal.of(team.alice), project=project)


def test_every_project_of_a_pool_is_sampled(team, runtime, paper):
    one, two = placed(team, "One"), placed(team, "Two")
    watch.collect_usage()
    assert set(MetricSample.objects.values_list("project_id", flat=True)) == {one.pk, two.pk}


# --- doctor and forgetting ----------------------------------------------------------------------------------------------
def test_the_doctor_names_what_no_row_knows_and_what_is_missing(team, runtime, paper):
    project = placed(team)
    codes = {finding.code for finding in doctor.examine().findings}
    assert not codes & {"unknown.database", "missing.database", "endpoint.differs"}
    held = paper_of(paper, project)
    held.databases.add("tenant_strange")
    held.databases.discard(row_of(project).name)
    found = {f.code: f for f in doctor.examine().findings}
    assert "tenant_strange" in found["unknown.database"].what
    assert found["missing.database"].project == str(project.pk)
    assert found["unknown.database"].fix == ""
    assert "tenant_strange" in held.databases


def test_forgotten_without_its_runtime_the_database_is_noted(team, runtime, paper):
    project = placed(team)
    name = row_of(project).name
    with transaction.atomic():
        forgetting.forget_without_runtime(project)
    orphan = Orphan.objects.get(kind="database")
    assert orphan.name.endswith(f"/{name}")
    assert len(all_pools()) == 1
    reconciler._looked.clear()
    reconciler.reconcile()
    orphan.refresh_from_db()
    assert orphan.resolved_at is None
    assert any(f.code == "unknown.database" for f in doctor.examine().findings)
