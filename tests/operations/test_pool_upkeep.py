"""Pools are looked after: observed, started again, checked, made ahead of their need, cleaned up."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.conf import settings as conf
from django.db import connection
from django.test.utils import CaptureQueriesContext

from novastack.common.clock import now
from novastack.common.models import Install
from projects import domain, tasks
from projects.models import (
    Database,
    DatabaseServer,
    MetricSample,
    Operation,
    Orphan,
    Plan,
    Region,
)
from projects.operations import pool_upkeep, pools, reconciler, tls, watch
from projects.services import fleet
from tests.factories import make_project
from tests.operations.conftest import drive, operation_of
from tests.operations.pool_with_projects import _fast, _pool, live, settle, settle_in  # noqa: F401 - fixtures
from tests.operations.test_pools import begin, fail, held, make, work_of


# --- observed -------------------------------------------------------------------------------------------------------------
def test_a_pool_that_ends_is_started_again_and_its_projects_say_so_meanwhile(pool, team, runtime, paper):
    shop, blog = settle_in(pool, team, "Shop", paper), settle_in(pool, team, "Blog", paper)
    reconciler.reconcile()
    runtime.crash(pool.handle, oom=True)
    reconciler.reconcile()
    for project in (shop, blog):
        project.refresh_from_db()
        assert project.status == "unhealthy"
        assert "pool is down" in project.status_detail, "why it is, is the operators' to know"
    pool.refresh_from_db()
    assert pools.health_of(pool)[0] == "unhealthy"
    operation = Operation.objects.get(kind="recover_pool")
    assert drive(operation).state == "succeeded"
    for project in (shop, blog):
        project.refresh_from_db()
        assert project.status == "starting", "until each was logged in to"
    watch.check_health()
    for project in (shop, blog):
        project.refresh_from_db()
        assert project.status == "running"
    pool.refresh_from_db()
    assert pools.health_of(pool) == ("healthy", "")


def test_a_pool_that_was_removed_behind_our_back_is_made_again_on_its_data(pool, runtime, paper):
    runtime.lose_server(pool.handle)
    settle()
    pool.refresh_from_db()
    assert pool.observed_state == "running"
    assert paper.of(pool.control_endpoint).system_identifier == pool.system_identifier
    assert Operation.objects.filter(kind="recover_pool", state="succeeded").count() == 1


def test_recovering_slows_down(pool, runtime, paper):
    runtime.lose_data(pool.handle)
    runtime.lose_server(pool.handle)
    reconciler.reconcile()
    drive(Operation.objects.get(kind="recover_pool"))
    reconciler.reconcile()
    assert Operation.objects.filter(kind="recover_pool").count() == 1
    pool.refresh_from_db()
    assert pool.recover_after > now()
    assert "data" in pools.health_of(pool)[1] or pool.pool_health_detail
    DatabaseServer.objects.update(recover_after=now() - timedelta(seconds=1))
    reconciler.reconcile()
    assert Operation.objects.filter(kind="recover_pool").count() == 2


@pytest.mark.parametrize("why", ["aside", "read-only", "region"])
def test_nothing_is_started_where_nothing_may_be_changed(pool, runtime, why):
    if why == "aside":
        DatabaseServer.objects.update(reconcile=False)
    elif why == "read-only":
        Install.load()
        Install.objects.update(read_only=True)
    else:
        Region.objects.update(reconcile=False)
    runtime.crash(pool.handle)
    reconciler.reconcile()
    assert not Operation.objects.filter(kind="recover_pool").exists()


def test_a_region_that_is_away_makes_nobody_unhealthy(pool, team, runtime, paper):
    shop = settle_in(pool, team, "Shop", paper)
    reconciler.reconcile()
    runtime.unreachable = True
    reconciler.reconcile()
    shop.refresh_from_db()
    pool.refresh_from_db()
    assert shop.status == "not_available"
    assert pools.health_of(pool) == ("unknown", "Its region can't be reached.")
    pool_upkeep.check_pools()
    pool.refresh_from_db()
    assert pool.pool_health == "unknown"
    assert not live()


def test_orphans_know_pools(pool):
    reconciler._looked.clear()
    reconciler.reconcile()
    assert not Orphan.objects.exists()


def test_what_a_pool_uses_is_on_its_row_and_is_no_tenants_figure(pool, team, runtime, paper):
    settle_in(pool, team, "Shop", paper)
    settle_in(pool, team, "Blog", paper)
    reconciler.reconcile()
    assert watch.collect_usage() == 2
    pool.refresh_from_db()
    assert pool.cpu_percent is not None
    assert pool.memory_used_bytes
    assert set(MetricSample.objects.values_list("cpu_percent", "memory_bytes")) == {(None, None)}


def test_prometheus_gets_each_pool(pool, team, paper):
    settle_in(pool, team, "Shop", paper)
    found = fleet.figures()["pools"]
    key = ("local", "postgresql", "18", pool.name)
    assert found[key] == {"databases": 1.0, "max_databases": 5.0, "healthy": 1.0, "size_bytes": None}


# --- certificates -----------------------------------------------------------------------------------------------------------
def test_its_certificate_is_renewed_without_a_restart(pool, runtime, paper):
    before = pool.tls_certificate
    DatabaseServer.objects.update(tls_not_after=now() + timedelta(days=9))
    assert tls.renew_due().renewing == 1
    assert tls.renew_due().renewing == 0, "somebody works on it"
    assert drive(Operation.objects.get(kind="renew_certificate")).state == "succeeded"
    pool.refresh_from_db()
    assert pool.tls_certificate != before
    assert "reload_tls" in paper.diary


def test_one_whose_certificate_has_ended_is_restarted(pool):
    DatabaseServer.objects.update(tls_not_after=now() - timedelta(days=1))
    assert tls.renew_due().restarting == 1
    assert drive(Operation.objects.get(kind="restart_pool")).state == "succeeded"
    pool.refresh_from_db()
    assert pool.tls_not_after > now() + timedelta(days=90)
    assert pool.desired_state == "running"


# --- health -----------------------------------------------------------------------------------------------------------------
def test_health_is_a_login_and_the_databases_against_the_rows(pool, team, paper):
    settle_in(pool, team, "Shop", paper)
    assert pool_upkeep.check_pools() == 1
    pool.refresh_from_db()
    assert (pool.pool_health, pool.pool_health_detail) == ("healthy", "")
    assert pool.pool_checked_at
    assert pool.pool_size_bytes == 8 << 20


def test_a_database_that_is_missing_is_unhealthy(pool, team, paper):
    settle_in(pool, team, "Shop")
    assert pool_upkeep.check_pools() == 0
    pool.refresh_from_db()
    assert pool.pool_health == "unhealthy"
    assert pool.pool_health_detail.startswith("1 of its databases are missing: tenant_")


def test_a_database_that_no_row_knows_is_said(pool, paper):
    paper.of(pool.control_endpoint).databases.add("somebody")
    assert pool_upkeep.check_pools() == 1
    pool.refresh_from_db()
    assert pool.pool_health_detail == "1 databases that no row knows: somebody"


def test_one_that_answers_nobody_is_unhealthy(pool, paper):
    paper.refuses_to_answer = True
    assert pool_upkeep.check_pools() == 0
    pool.refresh_from_db()
    assert (pool.pool_health, pool.pool_health_detail) == ("unhealthy", "connection refused")


def test_one_that_refuses_us_is_unhealthy(pool, paper):
    paper.of(pool.control_endpoint).passwords[pool.admin_username] = "changed"
    pool_upkeep.check_pools()
    pool.refresh_from_db()
    assert "refuses NovaStack's own login" in pool.pool_health_detail


def test_only_one_may_be_asked_for(pool):
    other = make(plan=Plan.objects.get(slug="small"), max_databases=3)
    DatabaseServer.objects.update(pool_checked_at=None)
    tasks.check_pool(str(other.pk))
    assert list(DatabaseServer.objects.filter(pool_checked_at=None)) == [pool]


def test_beat_looks_every_five_minutes_and_cleans_up_daily():
    schedule = conf.CELERY_BEAT_SCHEDULE
    assert (schedule["pool-health"]["task"], schedule["pool-health"]["schedule"]) == ("projects.check_pools", 300.0)
    assert schedule["failed-pools"]["task"] == "projects.clean_up_pools"
    queues = {route["queue"] for route in conf.CELERY_TASK_ROUTES.values()}
    assert {"provisioning", "monitoring", "maintenance"} <= queues
    assert {f"pulse-{queue}" for queue in (*queues, "backups")} <= set(schedule)


# --- ahead of its need ----------------------------------------------------------------------------------------------------
def test_the_next_pool_is_made_when_this_one_is_filled_to_the_mark(pool, team, settings):
    settings.NOVASTACK_POOL_MAX_DATABASES = 5
    for name in ("A", "B", "C"):
        settle_in(pool, team, name)
    assert pool_upkeep.keep().begun == 0
    settle_in(pool, team, "D")  # 4 of 5 are 80 %
    assert pool_upkeep.keep().begun == 1
    assert pool_upkeep.keep().begun == 0, "one is under way"
    settle()
    assert [p.name for p in pools.pools_open().order_by("created_at")] == [pool.name, "pg-18-local-2"]
    assert pool_upkeep.keep().begun == 0, "there is room again"


@pytest.mark.parametrize("percent", [0, 100])
def test_without_a_mark_nothing_is_made_ahead(pool, team, settings, percent):
    settings.NOVASTACK_POOL_FILL_PERCENT = percent
    for name in "ABCDE":
        settle_in(pool, team, name)
    assert pool_upkeep.keep().begun == 0


def test_nothing_is_made_ahead_on_a_disk_that_fills_up(pool, team):
    for name in "ABCDE":
        settle_in(pool, team, name)
    Region.objects.update(disk={"used_percent": 85.0, "level": "warn"})
    assert pool_upkeep.keep().begun == 0


def test_a_tick_without_pools_costs_one_query(runtime):
    with CaptureQueriesContext(connection) as queries:
        pool_upkeep.keep()
    assert len(queries) == 1


def test_a_tick_costs_the_same_for_many(pool, team, django_assert_max_num_queries):
    for name in "ABC":
        settle_in(pool, team, name)
    with CaptureQueriesContext(connection) as few:
        pool_upkeep.keep()
    for number in range(4):
        DatabaseServer.objects.create(
            kind="pool", region=pool.region, engine="postgresql", version="17", name=f"x-{number}", runtime="memory",
            memory_bytes=1 << 30, cpus=1, admin_username="novastack", max_databases=9, pool_ready_at=now(),
        )  # fmt: skip
    with django_assert_max_num_queries(len(few)):
        pool_upkeep.keep()


# --- failed ones ------------------------------------------------------------------------------------------------------------
@pytest.fixture
def broken(runtime):
    server = begin()
    Region.objects.update(disk={"used_percent": 93.0, "level": "closed"})
    fail(server)
    Region.objects.update(disk={})
    return server


def a_day_later():
    notes = Install.load().notes
    assert "pools_due_at" in notes
    Install.merge_notes(pools_due_at=(now() - timedelta(hours=21)).isoformat())


def test_what_failed_is_cleaned_up_at_the_second_daily_look(broken, runtime):
    assert pool_upkeep.clean_up_failed() == 0, "seen once"
    assert pool_upkeep.clean_up_failed() == 0, "not twice a day"
    a_day_later()
    assert pool_upkeep.clean_up_failed() == 1
    settle()
    assert not pools.pools().exists()
    assert held(runtime) == (set(), set())


def test_a_pool_that_is_wanted_again_meanwhile_stays(broken):
    pool_upkeep.clean_up_failed()
    a_day_later()
    assert begin(by_hand=True).pk == broken.pk
    assert pool_upkeep.clean_up_failed() == 0
    assert drive(work_of(broken)).state == "succeeded"


def test_more_than_a_few_at_once_are_nobodys_to_remove(broken):
    for number in range(3):
        DatabaseServer.objects.create(
            kind="pool", region=broken.region, engine="postgresql", version="17", name=f"x-{number}", memory_bytes=1,
            cpus=1, admin_username="novastack", desired_state="absent", recoveries=1,
        )  # fmt: skip
    pool_upkeep.clean_up_failed()
    a_day_later()
    assert pool_upkeep.clean_up_failed() == 0
    assert "4 of 4 pools have failed" in Install.load().notes["pools_due_refused"]


def test_one_that_was_down_for_a_day_with_somebody_on_it_is_never_cleaned_up(pool, team, runtime, paper):
    settle_in(pool, team, "Shop", paper)
    DatabaseServer.objects.update(observed_state="stopped", observed_at=now() - timedelta(days=3))
    for _ in range(3):
        assert pool_upkeep.clean_up_failed() == 0
        a_day_later()


def test_one_without_anybody_that_was_down_for_a_day_is_asked_and_goes(pool, runtime, paper):
    Region.objects.update(reconcile=True)
    DatabaseServer.objects.update(
        observed_state="stopped", observed_at=now() - timedelta(days=3), recover_after=now() + timedelta(hours=9)
    )
    runtime.crash(pool.handle)
    pool_upkeep.clean_up_failed()
    a_day_later()
    assert pool_upkeep.clean_up_failed() == 1
    settle()
    assert held(runtime) == (set(), set())


# --- a region that is gone ----------------------------------------------------------------------------------------------------
def test_pools_of_a_region_that_is_gone_are_written_down_and_forgotten(pool, runtime):
    Region.objects.update(gone_at=now(), reachable=False)
    assert pool_upkeep.keep().forgotten == 1
    assert not pools.pools().exists()
    assert {o.kind for o in Orphan.objects.all()} == {"server", "data"}
    assert str(pool.pk) in held(runtime)[1], "nothing was touched"


def test_standbys_and_pools_leave_each_other_alone(pool, team):
    from projects.models import StandbyTarget
    from projects.operations import standby_upkeep

    StandbyTarget.objects.create(
        engine="postgresql", version="18", region=pool.region, plan=Plan.objects.get(slug="small"), count=1
    )
    standby_upkeep._looked.clear()
    standby_upkeep.keep()
    for operation in live():
        drive(operation)
    standby = DatabaseServer.objects.get(kind="standby")
    assert standby.port != pool.port
    pool_upkeep.keep()
    standby_upkeep.keep()
    assert not live()
    assert DatabaseServer.objects.filter(kind="pool").get().pool_ready_at
    shop = make_project(team.alice, team.organization, name="Shop", running=False)
    drive(operation_of(shop))
    assert Database.objects.get(project=shop).server_id == standby.pk
    assert isinstance(pool.handle, domain.Handle)
