"""Blanks: as many as wanted on each open pool, completed after a kill, gone with the wish, never somebody's."""

from __future__ import annotations

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext

from accounts.permissions import Principal
from novastack.common.clock import now
from novastack.common.models import Install
from novastack.common.secrets import Sealed
from projects import domain
from projects.models import BlankDatabase, Database, DatabaseServer
from projects.operations import placing, pool_blanks, pool_upkeep, pools
from projects.services import ProjectRequest, project_create
from tests.operations.conftest import drive, operation_of
from tests.operations.pool_with_projects import drain, settle_in
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


def test_each_fourth_is_without_tables_and_given_to_who_wants_none(pool, team, paper, settings):
    settings.NOVASTACK_POOL_BLANKS = 4
    DatabaseServer.objects.update(max_databases=9)
    usual, opted_out = (
        project_create(
            principal=Principal.of(team.alice), organization=team.organization,
            request=ProjectRequest(name=name, placement="pool", bootstrap_schema=tables),
        )
        for name, tables in (("Usual", True), ("Opted out", False))
    )  # fmt: skip
    taken = []
    for project, slot, wanted in (
        (usual, "current", True), (opted_out, "current", False),
        (usual, "incoming", False),  # a copy brings its own tables
    ):  # fmt: skip
        pool_blanks.keep()
        (plain,) = BlankDatabase.objects.filter(tables=False).values_list("name", flat=True)
        assert BlankDatabase.objects.filter(tables=True).count() == 3
        assert plain in paper.of(pool.control_endpoint).plain_blanks
        with transaction.atomic():
            row = placing.take(project, slot=slot, number=len(taken) + 1)
        assert (row.made_of == plain) is not wanted
        taken.append(row.made_of)
    assert len(set(taken)) == 3
    BlankDatabase.objects.filter(tables=False).delete()
    with transaction.atomic():
        assert placing.take(opted_out, slot="incoming", number=9).made_of, "of the other kind rather than none"


def test_what_is_given_without_tables_gets_them_from_its_own_step(pool, team, paper):
    BlankDatabase.objects.create(
        server=pool,
        name="nvs_blank_1",
        ready_at=now(),
        tables=False,
        login_secret=Sealed.of("l"),
        control_secret=Sealed.of("c"),
    )
    paper.of(pool.control_endpoint).blanks.add("nvs_blank_1")
    paper.of(pool.control_endpoint).plain_blanks.add("nvs_blank_1")
    project = project_create(
        principal=Principal.of(team.alice), organization=team.organization,
        request=ProjectRequest(name="Usual", placement="pool"),
    )  # fmt: skip
    operation = drive(operation_of(project))
    assert operation.state == "succeeded"
    assert operation.steps.get(name="schema").state == "succeeded", "not skipped: the blank brought none"


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
