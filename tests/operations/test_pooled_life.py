"""Projects on pools: stopped, started, deleted, purged, read; also while their pool is down."""

from __future__ import annotations

import pytest
from django.db import transaction
from django.utils import timezone

from accounts.permissions import Principal
from novastack.common.errors import ActionNotAllowed, Invalid
from projects import domain
from projects.models import (
    Database,
    DatabaseRole,
    DatabaseServer,
    Endpoint,
    MetricSample,
    Operation,
    Orphan,
    Project,
)
from projects.operations import doctor, forgetting, pools, reconciler, retiring, status, watch
from projects.services import (
    project_action,
    project_delete,
    project_purge,
    project_update,
)
from projects.services.readings import figures_of, logs_read, server_of, status_of
from tests.operations.conftest import (
    drive,
    once,
    operation_of,
    states,
)
from tests.operations.pooled_projects import (  # noqa: F401 - fixtures
    _roomy,
    _small,
    act,
    all_pools,
    ask,
    paper_of,
    placed,
    pool_of,
    row_of,
    settle,
)


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
