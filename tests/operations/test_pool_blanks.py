"""Blanks: as many as wanted on each open pool, completed after a kill, gone with the wish, never somebody's."""

from __future__ import annotations

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from novastack.common.clock import now
from novastack.common.models import Install
from projects import domain
from projects.models import BlankDatabase, Database, DatabaseServer
from projects.operations import pool_blanks, pool_upkeep, pools
from tests.operations.test_pool_upkeep import drain, settle_in
from tests.operations.test_pools import make


@pytest.fixture(autouse=True)
def _fast(monkeypatch, settings):
    settings.NOVASTACK_DATA_GRACE_SECONDS = 0
    settings.NOVASTACK_POOL_BLANKS = 2
    monkeypatch.setattr(pool_blanks, "_later", {})
    monkeypatch.setattr(pool_blanks, "_swept", {})


@pytest.fixture
def pool(runtime):
    return make(max_databases=5, memory_bytes=1 << 30)


def there(paper, pool):
    return set(paper.of(pool.control_endpoint).blanks)


def names(pool):
    return set(BlankDatabase.objects.filter(server=pool).values_list("name", flat=True))


def test_each_open_pool_has_as_many_as_are_wanted(pool, paper):
    assert pool_blanks.keep().made == 2
    assert len(there(paper, pool)) == 2
    assert there(paper, pool) == names(pool)
    assert not BlankDatabase.objects.filter(ready_at=None).exists()
    assert pool_blanks.keep().made == 0
    assert pools.pool_used(pool) == 0, "they take no place"


def test_one_that_was_claimed_is_replaced(pool, paper):
    pool_blanks.keep()
    BlankDatabase.objects.first().delete()
    assert pool_blanks.keep().made == 1
    assert len(names(pool)) == 2


def test_no_more_than_there_are_places(pool, team, paper):
    for name in "ABCD":
        settle_in(pool, team, name)
    assert pool_blanks.keep().made == 1
    settle_in(pool, team, "E")
    assert pool_blanks.keep().dropped == 1
    assert there(paper, pool) == set()


def test_what_a_kill_left_is_completed(pool, paper):
    paper.fails["make_blank"] = [KeyboardInterrupt()]
    with pytest.raises(KeyboardInterrupt):
        pool_blanks.keep()
    row = BlankDatabase.objects.get()
    assert row.ready_at is None
    assert pool_blanks.keep().made == 2
    assert BlankDatabase.objects.get(pk=row.pk).ready_at
    assert there(paper, pool) == names(pool)


def test_fewer_wanted_are_dropped(pool, paper, settings):
    pool_blanks.keep()
    settings.NOVASTACK_POOL_BLANKS = 0
    assert pool_blanks.keep().dropped == 2
    assert there(paper, pool) == names(pool) == set()
    with CaptureQueriesContext(connection) as queries:
        pool_blanks.keep()
    assert len(queries) == 1


def test_a_drained_pool_has_none(pool, team, paper):
    settle_in(pool, team, "Shop", paper)
    pool_blanks.keep()
    drain(pool)
    assert pool_blanks.keep().dropped == 2
    assert there(paper, pool) == set()


def test_those_that_nobody_knows_go_and_those_about_to_be_used_stay(pool, team, paper):
    paper.of(pool.control_endpoint).blanks |= {"nvs_blank_lost", "nvs_blank_claimed"}
    shop = settle_in(pool, team, "Shop", paper)
    Database.objects.filter(project=shop).update(made_of="nvs_blank_claimed")
    assert pool_blanks.keep().dropped == 1
    assert there(paper, pool) == names(pool) | {"nvs_blank_claimed"}


def test_a_pool_that_refuses_is_left_alone_for_a_minute(pool, paper):
    paper.fails["make_blank"] = [domain.EngineError("no room")]
    assert pool_blanks.keep().made == 0
    paper.diary.clear()
    assert pool_blanks.keep().made == 0
    assert paper.diary == [], "not asked again yet"
    pool_blanks._later.clear()
    assert pool_blanks.keep().made == 2


@pytest.mark.parametrize("why", ["aside", "down", "read-only", "region"])
def test_none_where_nothing_may_be_changed(pool, why):
    if why == "aside":
        DatabaseServer.objects.update(reconcile=False)
    elif why == "down":
        DatabaseServer.objects.update(observed_state="stopped")
    elif why == "read-only":
        Install.load()
        Install.objects.update(read_only=True)
    else:
        pool.region.reconcile = False
        pool.region.save()
    assert pool_blanks.keep().made == 0
    assert not BlankDatabase.objects.exists()


def test_health_knows_them(pool, paper):
    pool_blanks.keep()
    pool_upkeep.check_pools()
    pool.refresh_from_db()
    assert (pool.pool_health, pool.pool_health_detail) == ("healthy", "")
    assert pool.pool_checked_at <= now()
