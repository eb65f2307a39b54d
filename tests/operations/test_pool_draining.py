"""Pools are drained: everybody moves out, and then the pool is removed."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import transaction

from novastack.common.clock import now
from projects.models import (
    Database,
    DatabaseRole,
    DatabaseServer,
    DataTombstone,
    Endpoint,
    Operation,
    Plan,
)
from projects.operations import pool_removal, pool_upkeep, pools, reconciler, runner, watch
from tests.operations.conftest import drive, let_time_pass
from tests.operations.paper import PaperAdmin
from tests.operations.pool_with_projects import _fast, _pool, drain, settle, settle_in  # noqa: F401 - fixtures
from tests.operations.test_pools import held, make


def test_draining_moves_everybody_out_and_then_removes_the_pool(pool, team, runtime, paper):
    shop, blog = settle_in(pool, team, "Shop", paper), settle_in(pool, team, "Blog", paper)
    other = make(plan=Plan.objects.get(slug="small"), max_databases=3)
    asked = []

    @pool_removal.mover
    def move(project, server):
        """What a move leaves behind, at once."""
        asked.append(project.name)
        paper.of(server.control_endpoint).databases.clear()
        DatabaseRole.objects.filter(database__project=project).update(server=other)
        Database.objects.filter(project=project).update(server=other)
        return ""

    operation = drain(pool)
    assert drain(pool) is None, "it is being drained"
    pool.refresh_from_db()
    assert pool.draining_at
    assert pool not in pools.pools_open(), "nothing new is placed on it"
    runner.run(operation.pk)
    assert "2 left: Shop, Blog" in operation.steps.get().detail
    settle()
    assert asked == ["Shop", "Blog"]
    assert not DatabaseServer.objects.filter(pk=pool.pk).exists()
    assert held(runtime) == ({str(other.pk)}, {str(other.pk)}), "nothing is left"
    assert DataTombstone.objects.get(server_uuid=pool.pk).deleted_at
    reserved = Endpoint.objects.get(port=pool.port, shared=False)
    assert reserved.reserved_until > now() + timedelta(days=6)
    assert {shop.pk, blog.pk} == set(Database.objects.filter(server=other).values_list("project_id", flat=True))


def test_draining_says_who_is_left_and_why(pool, team, paper):
    settle_in(pool, team, "Shop", paper)

    @pool_removal.mover
    def move(project, server):
        return "no room elsewhere"

    operation = drain(pool)
    runner.run(operation.pk)
    step = operation.steps.get()
    assert (step.state, step.detail) == ("waiting", "1 left: Shop. Shop: no room elsewhere")
    pool.refresh_from_db()
    assert pool_upkeep.keep().removing == 0
    assert pool.desired_state == "running"


def test_a_move_that_failed_is_not_tried_again_at_once(pool, team, paper):
    shop = settle_in(pool, team, "Shop", paper)
    tries = []

    @pool_removal.mover
    def move(project, server):
        """Begun, and failed at once."""
        tries.append(project.name)
        Operation.objects.create(
            kind="move", on_give_up="undo", project_uuid=project.pk, state="failed", finished_at=now(),
            error={"code": "copy_differs", "detail": "Rows differ.", "retryable": False},
        )  # fmt: skip
        return ""

    operation = drain(pool)
    for _ in range(4):
        let_time_pass(operation)
        runner.run(operation.pk)
    assert tries == ["Shop"]
    assert operation.steps.get().detail.startswith("1 left: Shop. Shop: Rows differ. Next try at ")
    Operation.objects.filter(project_uuid=shop.pk, kind="move").update(finished_at=now() - timedelta(seconds=601))
    let_time_pass(operation)
    runner.run(operation.pk)
    assert tries == ["Shop", "Shop"]
    Operation.objects.filter(project_uuid=shop.pk, kind="move").update(finished_at=now() - timedelta(seconds=601))
    let_time_pass(operation)
    runner.run(operation.pk)
    assert len(tries) == 2, "twice as long after the second one"


def test_old_copies_are_waited_for_and_said(pool, team, runtime, paper):
    settle_in(pool, team, "Shop", paper)
    Database.objects.filter(server=pool).update(slot="previous")
    operation = drain(pool)
    runner.run(operation.pk)
    assert operation.steps.get().detail == "1 old or given-up database kept for their time."
    assert pool_upkeep.keep().removing == 0


def test_a_pool_that_fails_while_it_is_drained_is_started_again(pool, team, runtime, paper):
    settle_in(pool, team, "Shop", paper)
    drain(pool)
    runtime.crash(pool.handle)
    reconciler.reconcile()
    assert drive(Operation.objects.get(kind="recover_pool")).state == "succeeded"


def test_draining_can_be_taken_back(pool, team, paper):
    from accounts.permissions import OperatorPrincipal
    from projects.services import operation_cancel

    settle_in(pool, team, "Shop", paper)
    operation = drain(pool)
    runner.run(operation.pk)
    team.adam.is_staff = team.adam.is_superuser = True
    team.adam.save()
    operation_cancel(principal=OperatorPrincipal(user=team.adam), operation=operation)
    assert drive(operation).state == "cancelled"
    pool.refresh_from_db()
    assert pool.draining_at is None
    assert pool in pools.pools_open()


def test_an_empty_pool_is_removed_at_once(pool, runtime):
    drain(pool)
    settle()
    assert held(runtime) == (set(), set())
    assert not pools.pools().exists()


def test_one_that_holds_what_no_row_knows_is_set_aside(pool, runtime, paper):
    paper.of(pool.control_endpoint).databases.add("tenant_of_a_lost_row")
    drain(pool)
    settle()
    pool.refresh_from_db()
    assert not pool.reconcile
    assert "tenant_of_a_lost_row" in pool.observed_detail
    assert held(runtime) == ({str(pool.pk)}, {str(pool.pk)})
    assert not DataTombstone.objects.exists()


@pytest.mark.parametrize("held_", ["somebody's", "another password", "nothing"])
def test_rows_that_say_it_was_never_finished_are_not_believed_while_it_runs(pool, runtime, paper, held_):
    """They may be a backup's, older than what is true."""
    paper_ = paper.of(pool.control_endpoint)
    if held_ == "somebody's":
        paper_.databases.add("tenant_of_somebody")
    elif held_ == "another password":
        paper_.passwords[pool.admin_username] = "another"
    DatabaseServer.objects.filter(pk=pool.pk).update(initialised_at=None)
    drain(pool)
    settle()
    row = DatabaseServer.objects.filter(pk=pool.pk).first()
    if held_ == "nothing":
        assert row is None
        assert not list(runtime.managed_data())
        return
    assert row is not None and not row.reconcile
    assert "which no row knows: set aside." in row.observed_detail
    assert held(runtime) == ({str(pool.pk)}, {str(pool.pk)})


def test_what_a_restart_does_is_seen_on_its_projects_at_once(pool, team, runtime, paper, monkeypatch):
    """Not only at the next look at all servers."""
    shop = settle_in(pool, team, "Shop", paper)
    reconciler.reconcile()
    watch.check_health()
    seen = []

    def looked(real):
        def look(*args, **options):
            shop.refresh_from_db()
            seen.append(shop.status)
            return real(*args, **options)

        return look

    monkeypatch.setattr(runtime, "ensure", looked(runtime.ensure))
    monkeypatch.setattr(PaperAdmin, "system_identifier", looked(PaperAdmin.system_identifier))
    shop.refresh_from_db()
    assert shop.status == "running"
    with transaction.atomic():
        operation = pools.recover_begin(pool, why="its certificate ends", kind=pools.RESTART)
    assert drive(operation).state == "succeeded"
    assert seen == ["unhealthy", "running"], "it is stopped; it is up again, and nobody knows of anything wrong"
    shop.refresh_from_db()
    assert shop.status == "starting", "until each was logged in to"


@pytest.mark.parametrize("finished", [True, False])
def test_one_that_can_not_be_asked_keeps_its_data(pool, runtime, paper, finished):
    """Whatever its row says: it runs."""
    if not finished:
        DatabaseServer.objects.filter(pk=pool.pk).update(initialised_at=None)
    drive(drain(pool))
    pool_upkeep.keep()
    paper.refuses_to_answer = True
    removal = Operation.objects.get(kind="remove_pool")
    for _ in range(4):
        let_time_pass(removal)
        runner.run(removal.pk)
    assert str(pool.pk) in held(runtime)[1]
    assert not DataTombstone.objects.exists()
    runtime.unreachable = True
    let_time_pass(removal)
    runner.run(removal.pk)
    removal.refresh_from_db()
    assert removal.live
    runtime.unreachable = False
    paper.refuses_to_answer = False
    settle()
    assert held(runtime) == (set(), set())


def test_nobody_removes_a_pool_with_somebody_on_it(pool, team, paper):
    settle_in(pool, team, "Shop", paper)
    assert pool_removal.remove_begin(pool, "by mistake") is None
    pool.refresh_from_db()
    assert pool.pool_ready_at
