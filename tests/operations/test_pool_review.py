"""Pools: what must not be lost or hidden when a backup of the control database is brought back, or something ends half-way."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import transaction

from accounts.permissions import Principal
from novastack.common.clock import now
from novastack.common.errors import ActionNotAllowed
from novastack.common.models import Install
from projects.models import Database, DatabaseServer, DataTombstone, Operation, OperationStep, Project, Region
from projects.operations import janitor, pool_removal, pool_upkeep, pools, reconciler, retiring
from projects.operations.queue import operation_create
from projects.services import control_restore, project_purge
from projects.services.actions import operation_retry
from tests.operations.conftest import drive, once
from tests.operations.pooled_projects import act, ask, paper_of, placed, pool_of, row_of, settle


@pytest.fixture(autouse=True)
def _no_grace(settings, team):
    settings.NOVASTACK_POOL_MAX_DATABASES = 3
    settings.NOVASTACK_POOL_FILL_PERCENT = 0
    settings.NOVASTACK_DATA_GRACE_SECONDS = 0
    team.organization.max_projects = 500
    team.organization.max_storage_bytes = 1 << 50
    team.organization.save()


def restored():
    """What the restore does with the rows of the backup; then an operator allows writes."""
    control_restore._settle(control_restore.Restored({"made_at": now().isoformat()}, {}), keep_tokens=True)
    Install.objects.update(read_only=False)


def begin():
    with transaction.atomic():
        return pools.pool_begin(
            region=Region.objects.get(slug="local"), engine="postgresql", version="18", created_by_label="test"
        )


def made_and_rows_of_before(state):
    """A pool that is ready, and rows that were read back from before it was: `state` says how far it was then."""
    server = begin()
    operation = Operation.objects.get(server_uuid=server.pk)
    before = {name: getattr(server, name) for name in ("runtime_ref", "system_identifier")}
    secret = server.admin_secret.open()
    drive(operation)
    server.refresh_from_db()
    assert server.pool_ready_at
    for name, value in before.items():
        setattr(server, name, value)
    server.pool_ready_at = server.initialised_at = None
    server.admin_secret = type(server.admin_secret).of(secret)
    if state == "failed":
        server.desired_state, server.recoveries, server.recover_after = "absent", 1, None
    server.save()
    if state == "live":
        Operation.objects.filter(pk=operation.pk).update(state="queued", finished_at=None, started_at=None)
        OperationStep.objects.filter(operation=operation).update(state="pending", started_at=None, finished_at=None)
    return server, operation


@pytest.mark.parametrize("state", ["live", "failed"])
def test_a_pool_that_was_filled_since_the_backup_is_not_destroyed(runtime, paper, state):
    server, operation = made_and_rows_of_before(state)
    there = next(h for h in runtime.managed_data() if h.server_id == str(server.pk))
    restored()
    if state == "live":
        drive(operation)
    else:
        Install.merge_notes(pools_due_seen=[str(server.pk)], pools_due_at="")
        pool_upkeep.clean_up_failed()
        settle()
    DataTombstone.objects.update(due_at=now() - timedelta(seconds=1))
    janitor.delete_due_data()
    assert there.name in {h.name for h in runtime.managed_data()}, "what was on it is lost"
    assert there.name in {h.name for h in runtime.managed()}, "it was stopped under whoever is on it"


def test_a_move_that_was_under_way_at_the_backup_goes_no_further(team, runtime, paper):
    project = placed(team)
    with transaction.atomic():
        operation = operation_create(project=project, kind="move", params={})
    restored()
    operation.refresh_from_db()
    project.refresh_from_db()
    assert (operation.state, operation.error["code"]) == ("failed", "control_restored")
    assert "newer" in project.failure["detail"]
    assert not operation.locks.exists()


def test_who_was_stopped_at_the_backup_is_shut_out_again(team, runtime, paper):
    project = placed(team)
    act(team, project, "stop")
    restored()
    assert row_of(project).locked_at is None
    reconciler.reconcile()
    settle()
    assert row_of(project).locked_at is not None
    project.refresh_from_db()
    assert project.status == "stopped"


def test_a_restart_of_a_pool_that_goes_no_further_is_seen_on_its_projects(team, runtime, paper):
    project = placed(team)
    pool = pool_of(project)
    with transaction.atomic():
        operation = pools.recover_begin(pool, why="test", kind=pools.RESTART)
    once(operation)  # so that only the failure is new
    project.refresh_from_db()
    DatabaseServer.objects.filter(pk=pool.pk).update(observed_state="stopped", observed_detail="")
    with transaction.atomic():
        pools._not_recovered(operation)
    project.refresh_from_db()
    assert project.status == "unhealthy", project.status


def test_what_is_not_given_up_any_more_is_not_dropped(team, runtime, paper, monkeypatch):
    one, two = placed(team, "One"), placed(team, "Two")
    Database.objects.filter(project__in=[one, two]).update(drop_due_at=now() - timedelta(seconds=5))
    dropped = []

    def drop(row):
        dropped.append(row.project_id)
        Database.objects.update(drop_due_at=None)  # somebody wants them back

    monkeypatch.setattr(retiring, "_drop", drop)
    retiring.drop_due()
    assert len(dropped) == 1


def test_a_purge_is_not_done_while_a_database_was_not_given_up(team, runtime, paper, monkeypatch):
    project = placed(team)
    monkeypatch.setattr(retiring, "retire_all", lambda project: 0)
    operation = project_purge(principal=Principal.of(team.alice), project=project, confirm=project.slug)
    for _ in range(3):
        Operation.objects.filter(pk=operation.pk).update(next_attempt_at=None)
        once(operation)
    assert Project.objects.filter(pk=project.pk).exists(), "its rows are gone, and its database is there"
    assert operation.steps.get(name="data").error_code == "not_given_up"


@pytest.mark.parametrize("kind", ["resize", "change_tls", "reconfigure", "renew_certificate", "restart"])
def test_an_old_operation_on_its_own_server_is_not_done_to_a_pool(team, runtime, paper, kind):
    project = placed(team)
    memory = pool_of(project).memory_bytes
    old = Operation.objects.create(
        kind=kind, definition_version=1, on_give_up="roll_forward", state="failed", project_uuid=project.pk,
        organization_id=project.organization_id, error={"code": "x", "detail": "x", "retryable": True},
    )  # fmt: skip
    with pytest.raises(ActionNotAllowed):
        operation_retry(principal=Principal.of(team.alice), operation=old)
    assert not Operation.objects.live().exists()
    assert pool_of(project).memory_bytes == memory


def test_who_waits_is_not_told_what_a_pool_that_goes_holds(team, runtime, paper):
    pool = pool_of(placed(team))
    DatabaseServer.objects.filter(pk=pool.pk).update(
        desired_state="absent",
        pool_ready_at=None,
        recoveries=1,
        observed_detail="It holds tenant_x, which no row knows.",
    )
    assert pools.waiting_reason(pool.region, pool.engine, pool.version, pool.plan) == ""


def test_who_waits_for_a_place_is_not_told_addresses(team, runtime, paper):
    server = begin()
    DatabaseServer.objects.filter(pk=server.pk).update(
        desired_state="absent", recoveries=1, observed_detail="Nothing answers at 10.1.2.3:20001, see /var/lib/x."
    )
    Operation.objects.update(state="failed")
    told = pools.waiting_reason(server.region, server.engine, server.version, server.plan)
    assert "Nothing answers" in told
    assert "10.1.2.3" not in told
    assert "/var/lib" not in told


def test_who_waited_for_a_place_at_the_backup_is_not_given_another_one(team, runtime, paper):
    project = ask(team, "Waits")
    assert not Database.objects.filter(project=project).exists()
    restored()
    operation = Operation.objects.get(project_uuid=project.pk)
    project.refresh_from_db()
    assert (operation.state, operation.error["code"]) == ("failed", "control_restored")
    assert not operation.error["retryable"]
    assert "doctor" in project.failure["detail"]
    settle()
    assert not Database.objects.filter(project=project).exists()


def test_a_pool_that_is_wanted_again_is_not_removed(team, runtime, paper):
    server = begin()
    drive(Operation.objects.get(server_uuid=server.pk))
    seen = DatabaseServer.objects.get(pk=server.pk)
    seen.draining_at = now()
    assert pool_removal.remove_begin(seen, "drained") is None
    assert DatabaseServer.objects.get(pk=server.pk).pool_ready_at


@pytest.mark.parametrize(("wanted", "status"), [("stopped", "stopped"), ("running", "running")])
def test_a_login_that_is_not_as_wanted_is_seen_and_put_right(team, runtime, paper, wanted, status):
    """A worker that was late, or somebody by hand, has let in who is to be out, or the other way round."""
    project = placed(team)
    other = placed(team, "Other")
    if wanted == "stopped":
        act(team, project, "stop")
    database = row_of(project)
    login = database.roles.get(kind="login").name
    held = paper_of(paper, project)
    (held.shut.discard if wanted == "stopped" else held.shut.add)(login)
    pool_upkeep.check_pools()
    reconciler.reconcile()
    settle()
    project.refresh_from_db()
    assert (login in held.shut) == (wanted == "stopped")
    assert project.status == status
    assert row_of(other).locked_at is None
    assert not Operation.objects.filter(project_uuid=other.pk).exclude(kind="provision").exists()
