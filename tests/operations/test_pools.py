"""Pools as servers: prepared, refused, taken up again, started again, and what they promise."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.core.checks import run_checks
from django.db import transaction

from accounts.permissions import OperatorPrincipal
from novastack.common.clock import now
from novastack.common.errors import NotFound
from novastack.common.sizes import parse_size
from projects import domain
from projects.models import (
    DatabaseServer,
    DataTombstone,
    Endpoint,
    Operation,
    OperationLock,
    Plan,
    Region,
)
from projects.operations import pool_sizes, pools, reconciler, runner
from projects.operations.base import StepFailed
from projects.services import operation_cancel
from tests.operations.conftest import create, drive, let_lease_expire, let_time_pass, states


@pytest.fixture(autouse=True)
def _no_grace(settings):
    settings.NOVASTACK_DATA_GRACE_SECONDS = 0


def begin(**fields):
    fields.setdefault("region", Region.objects.get(slug="local"))
    with transaction.atomic():
        return pools.pool_begin(
            **{"engine": "postgresql", "version": "18", "created_by_label": "test", **fields}
        )  # fmt: skip


def work_of(server):
    return Operation.objects.filter(server_uuid=server.pk).order_by("-created_at")[0]


def make(**fields):
    server = begin(**fields)
    operation = drive(work_of(server))
    assert operation.state == "succeeded", (operation.error, states(operation))
    server.refresh_from_db()
    return server


def held(runtime):
    return {h.server_id for h in runtime.managed()}, {h.server_id for h in runtime.managed_data()}


# --- preparing ----------------------------------------------------------------------------------------------------------
def test_a_pool_is_made_ready(runtime, paper):
    server = make()
    assert (server.kind, server.name, server.project_uuid) == ("pool", "pg-18-local-1", None)
    assert (server.max_databases, server.memory_bytes, float(server.cpus)) == (50, 4 << 30, 2.0)
    assert server.pool_ready_at and server.initialised_at and server.system_identifier
    assert server.pool_health == "healthy"
    assert server.admin_pending_secret is None
    assert server.bind_address == server.region.bind_address
    assert server.tls_enabled and server.tls_certificate
    assert held(runtime) == ({str(server.pk)}, {str(server.pk)})
    assert runtime.describe([server.handle])[server.handle].memory_bytes == 4 << 30
    assert list(pools.pools_open()) == [server]
    assert pools.pool_used(server) == 0
    assert not OperationLock.objects.exists()


def test_it_has_connections_for_all_that_it_promises(runtime):
    plan = Plan.objects.get(slug="small")
    server = make(plan=plan)
    assert pool_sizes.connections_of(server) == plan.connection_limit == 20
    assert server.max_connections >= 50 * 20 + 10
    spec = runtime.world.servers[server.handle.name].spec
    told = next(word for word in spec.argv if word.startswith("max_connections="))
    assert int(told.partition("=")[2]) >= server.max_connections
    assert spec.limits.pids > server.max_connections, "a process for each of them"


def test_less_memory_means_fewer_connections_each_and_that_many_for_sure(runtime):
    server = make(memory_bytes=1 << 30)
    each = pool_sizes.connections_of(server)
    assert 3 <= each < 20
    assert 50 * each < server.max_connections
    assert server.max_connections * (3 << 20) <= 0.75 * (1 << 30)


def test_one_at_a_time_of_a_kind(runtime):
    first = begin()
    assert begin() is None
    assert begin(plan=Plan.objects.get(slug="small")) is not None, "another kind"
    drive(work_of(first))
    assert begin().name == "pg-18-local-3"


def test_its_port_is_nobody_elses(runtime, team):
    server = begin()
    other = begin(plan=Plan.objects.get(slug="small"))
    project = create(team, "Shop")
    assert len({server.port, other.port, project.endpoint.port}) == 3


def test_a_taken_port_is_left_and_the_next_one_tried(runtime):
    server = begin()
    runtime.world.foreign_ports.add(server.port)
    before = server.port
    assert drive(work_of(server)).state == "succeeded"
    server.refresh_from_db()
    assert server.port != before
    assert not Endpoint.objects.exists()


@pytest.mark.parametrize(
    ("fields", "code", "words"),
    [
        ({"max_databases": 0}, "pool_settings_invalid", "1 to 1000 databases, not 0"),
        ({"max_databases": 5000}, "pool_settings_invalid", "not 5000"),
        ({"cpus": 0}, "pool_settings_invalid", "cores, not 0"),
        ({"memory_bytes": 64 << 20}, "pool_too_small", "needs at least 128 MiB"),
        ({"memory_bytes": 300 << 20}, "pool_too_small", "too little for 50 databases of PostgreSQL"),
        ({"engine": "ferretdb", "version": "1.24"}, "engine_not_pooled", "can't be shared"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_made(runtime, fields, code, words):
    with pytest.raises(StepFailed) as refused:
        begin(**fields)
    assert refused.value.code == code
    assert words in refused.value.detail
    assert not DatabaseServer.objects.exists()
    assert not Operation.objects.exists()


def test_too_little_memory_says_how_much_would_do(runtime):
    with pytest.raises(StepFailed) as refused:
        begin(memory_bytes=300 << 20)
    needed = int(refused.value.detail.split("they need ")[1].split(" MiB")[0])
    assert make(memory_bytes=needed << 20).pool_ready_at


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("MAX_DATABASES", 0, "1 to 1000 databases, not 0"),
        ("MEMORY", 64 << 20, "needs at least"),
        ("MEMORY", 200 << 20, "too little for 50 databases"),
        ("FILL_PERCENT", 130, "give 0 to 100"),
        ("BLANKS", -1, "NOVASTACK_POOL_BLANKS is -1"),
        ("CPUS", 0.0, "cores"),
    ],
)
def test_settings_that_cannot_work_are_told_by_the_checks(settings, name, value, words):
    assert not [c for c in run_checks() if c.id == "projects.E002"]
    setattr(settings, f"NOVASTACK_POOL_{name}", value)
    told = [c.msg for c in run_checks() if c.id == "projects.E002"]
    assert len(told) == 1
    assert words in told[0]


@pytest.mark.parametrize(
    ("text", "size"), [("4G", 4 << 30), ("512m", 512 << 20), ("1.5 GiB", 3 << 29), ("1024", 1024), ("64 KB", 64 << 10)]
)
def test_sizes_as_people_write_them(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "G", "-4G", "4 giga", "4G!", "4,5G"])
def test_what_is_no_size(text):
    with pytest.raises(ValueError, match="such as 4G"):
        parse_size(text)


# --- that fails ---------------------------------------------------------------------------------------------------------
def fail(server, *, turns=60):
    operation = drive(work_of(server), turns=turns)
    assert operation.state == "failed"
    server.refresh_from_db()
    return operation


def test_a_pool_that_can_not_be_made_leaves_nothing_but_the_reason(runtime, paper):
    server = begin()
    paper.fails["harden"] = [domain.ServerNotReady("it went away")] * 40
    fail(server)
    assert (server.desired_state, server.pool_ready_at, server.pool_health) == ("absent", None, "unhealthy")
    assert "it went away" in server.observed_detail
    assert held(runtime)[0] == set()
    assert DataTombstone.objects.get().incarnation == 1
    assert server.incarnation == 2
    assert server.initialised_at is None
    assert not pools.pools_open().exists()
    assert "A pool could not be made: " in pools.waiting_reason(server.region, "postgresql", "18", None)


def test_it_is_taken_up_again_later_each_time(runtime, paper):
    server = begin()
    paper.fails["harden"] = [domain.ServerNotReady("it went away")] * 40
    fail(server)
    first = (server.recover_after - now()).total_seconds()
    assert 20 < first <= 30
    assert begin() is None, "not yet"
    paper.fails["harden"] = [domain.ServerNotReady("again")] * 40
    again = begin(by_hand=True)
    assert again.pk == server.pk, "its row is used again"
    assert again.name == server.name
    fail(server)
    assert 50 < (server.recover_after - now()).total_seconds() <= 60
    DatabaseServer.objects.update(recover_after=now() - timedelta(seconds=1))
    paper.fails.clear()
    assert begin().pk == server.pk
    assert drive(work_of(server)).state == "succeeded"
    server.refresh_from_db()
    assert (server.recoveries, server.pool_health, server.observed_detail) == (0, "healthy", "")
    assert server.handle.name.endswith("-3"), "no name is used twice"
    assert held(runtime)[0] == {str(server.pk)}


def test_a_missing_image_is_the_reason_that_is_shown(runtime):
    server = begin()
    runtime.world.missing_images.add("postgres:18")
    operation = work_of(server)
    runner.run(operation.pk)
    reason = pools.waiting_reason(server.region, "postgresql", "18", None)
    assert reason.startswith("A pool is being made ready: Find the server's image (")
    fail(server)
    assert server.observed_detail
    assert server.observed_detail in pools.waiting_reason(server.region, "postgresql", "18", None)
    assert server.incarnation == 1, "nothing was begun"


def test_a_full_disk_is_the_reason_that_is_shown(runtime):
    Region.objects.update(disk={"used_percent": 93.0, "level": "closed"})
    server = begin()
    assert fail(server).error["code"] == "capacity_exhausted"
    assert "93 % full" in pools.waiting_reason(server.region, "postgresql", "18", None)
    Region.objects.update(disk={})
    assert begin(by_hand=True).pk == server.pk
    assert drive(work_of(server)).state == "succeeded"


def test_preparing_can_be_cancelled_by_operators_and_leaves_nothing(runtime, team, alice):
    server = begin()
    operation = work_of(server)
    with pytest.raises(NotFound):
        operation_cancel(principal=alice, operation=operation)
    team.adam.is_staff = team.adam.is_superuser = True
    team.adam.save()
    operation_cancel(principal=OperatorPrincipal(user=team.adam), operation=operation)
    assert drive(operation).state == "cancelled"
    assert held(runtime) == (set(), set())
    assert not pools.pools_open().exists()


def test_an_unreachable_runtime_fails_nothing(runtime):
    server = begin()
    runtime.unreachable = True
    for _ in range(6):
        let_time_pass(work_of(server))
        let_lease_expire(work_of(server))
        runner.run(work_of(server).pk)
    assert work_of(server).live
    runtime.unreachable = False
    reconciler.reconcile()
    assert drive(work_of(server)).state == "succeeded"


# --- starting again -----------------------------------------------------------------------------------------------------
def test_a_pool_that_was_seen_down_is_started_again_on_its_data(runtime, paper):
    server = make()
    identifier = server.system_identifier
    runtime.lose_server(server.handle)
    with transaction.atomic():
        operation = pools.recover_begin(server, why="seen absent")
    assert drive(operation).state == "succeeded"
    server.refresh_from_db()
    assert paper.of(server.control_endpoint).system_identifier == identifier
    assert (server.incarnation, server.pool_health, server.recoveries) == (1, "healthy", 1)


def test_a_pool_never_starts_on_data_that_is_not_its_own(runtime):
    server = make()
    runtime.lose_server(server.handle)
    runtime.lose_data(server.handle)
    with transaction.atomic():
        operation = pools.recover_begin(server, why="seen absent")
    assert drive(operation).state == "failed"
    server.refresh_from_db()
    assert operation.error["code"] == "data_missing"
    assert (server.pool_health, server.desired_state) == ("unhealthy", "running")
    assert str(server.pk) not in held(runtime)[1], "no new, empty data"
