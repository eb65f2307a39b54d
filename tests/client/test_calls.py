"""Every call of the client, both kinds, against the real server with a worker at work."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pytest

from accounts.models import AuditEvent, Organization
from novastack_client import (
    Conflict,
    DeadlineExceeded,
    Invalid,
    NotAuthenticated,
    NotFound,
    NovaStack,
    OperationFailed,
    PermissionDenied,
    QuotaExceeded,
)
from projects.models import Allocation, ApiKey, Operation, Project
from tests.client.proxy import Proxy
from tests.factories import PlanFactory, Team, make_project, make_token


def test_a_database_for_an_instance(nova: Any, worker: threading.Event) -> None:
    made = nova.allocate_database("odoo-1", deadline_seconds=60)
    assert made.ready and made.status == "allocated" and made.project.status == "running"
    assert made.connection.password and made.connection.password in made.connection.uri
    again = nova.allocate_database("odoo-1", engine="postgresql", deadline_seconds=60)
    assert again.project.id == made.project.id and again.connection == made.connection
    assert Project.objects.count() == 1
    with pytest.raises(Conflict) as caught:
        nova.allocate_database("odoo-1", engine="mariadb")
    assert caught.value.code == "allocation_mismatch" and caught.value.errors[0].field == "engine"
    assert not caught.value.retryable and caught.value.request_id


def test_without_waiting_it_says_what_is_at_work(nova: Any, worker: threading.Event) -> None:
    worker.clear()
    asked = nova.provision_dedicated_server("odoo-1", wait=False)
    assert not asked.ready and asked.connection is None and asked.retry_after_seconds > 0
    assert asked.operation.kind == "provision" and asked.project.placement == "dedicated"
    worker.set()
    assert nova.wait_for_operation(asked.operation.id, deadline_seconds=60).succeeded
    assert nova.provision_dedicated_server("odoo-1", wait=False).ready


def test_a_deadline_ends_the_waiting_and_nothing_else(nova: Any, worker: threading.Event) -> None:
    worker.clear()
    began = datetime.now(UTC)
    with pytest.raises(DeadlineExceeded) as caught:
        nova.allocate_database("odoo-1", deadline_seconds=4)
    assert 1 < (datetime.now(UTC) - began).total_seconds() < 25
    error = caught.value
    assert isinstance(error, TimeoutError) and error.retryable and error.code == "deadline_exceeded"
    assert error.allocation.instance_id == "odoo-1" and error.operation.state == "queued"
    worker.set()
    assert nova.allocate_database("odoo-1", deadline_seconds=60).project.id == error.allocation.project.id


def test_what_ended_badly_is_an_exception_with_the_operation_s_error(nova: Any, worker: threading.Event) -> None:
    worker.clear()
    asked = nova.allocate_database("odoo-1", wait=False)
    assert nova.cancel_operation(asked.operation.id).cancel_requested_at is not None
    worker.set()
    with pytest.raises(OperationFailed) as caught:
        nova.wait_for_operation(asked.operation.id, deadline_seconds=60)
    assert caught.value.code == "cancelled" and caught.value.operation.state == "cancelled"
    with pytest.raises(Conflict) as refused:
        nova.allocate_database("odoo-1", deadline_seconds=60)
    assert refused.value.code == "provisioning_failed" and refused.value.errors[0].code == "cancelled"
    retried = nova.retry_operation(asked.operation.id)
    assert retried.kind == "provision" and retried.id != asked.operation.id
    assert nova.allocate_database("odoo-1", deadline_seconds=60).ready


def test_the_life_of_a_project(nova: Any, worker: threading.Event, team: Team) -> None:
    made = nova.create_project(
        "Shop", labels={"team": "web"}, limits={"memory_bytes": 2**28}, api_keys=2, api_key_prefix="shop", wait=True,
        deadline_seconds=60,
    )  # fmt: skip
    assert (made.status, made.labels, made.limits.memory_bytes) == ("running", {"team": "web"}, 2**28)
    assert len(made.api_keys) == 2 and all(key.key.startswith("shop_") for key in made.api_keys)
    assert made.created_at.tzinfo is not None and made.created_by == "alice@example.test"
    assert nova.get_project(made.id) == nova.get_project(made.id)
    assert nova.update_project(made.id, name="Store", description="Orders").description == "Orders"
    assert nova.update_project(made.id, limits={"memory_bytes": 2**29}, wait=True).limits.memory_bytes == 2**29
    assert nova.project_action(made.id, "stop", wait=True, deadline_seconds=60).status == "stopped"
    accepted = nova.project_action(made.id, "start")
    assert accepted.operation.kind == "start"
    nova.wait_for_operation(accepted.operation.id, deadline_seconds=60)
    status = nova.project_status(made.id)
    assert (status.status, status.health, status.server.restart_pending) == ("running", "healthy", False)
    before = nova.project_connection(made.id)
    nova.project_action(made.id, "rotate_password", wait=True, deadline_seconds=60)
    after = nova.project_connection(made.id)
    assert before.password != after.password and before.port == after.port
    assert nova.delete_project(made.id, wait=True, deadline_seconds=60).status == "recycled"
    assert [p.id for p in nova.list_projects()] == []
    assert [p.id for p in nova.list_projects(status="recycled")] == [made.id]
    assert nova.project_action(made.id, "undelete", wait=True, deadline_seconds=60).status == "running"
    with pytest.raises(Conflict) as caught:
        nova.purge_project(made.id, confirm="wrong")
    assert caught.value.code == "confirm_mismatch"
    assert nova.purge_project(made.id, confirm=made.slug).operation.kind == "purge"
    kinds = [operation.kind for operation in nova.list_operations(project_id=made.id)]
    assert kinds == ["provision", "resize", "stop", "start", "rotate_password", "delete", "undelete", "purge"]


def test_a_move_is_seen_before_it_is_made(nova: Any, team: Team) -> None:
    PlanFactory(slug="shared", name="Shared", is_default=False, placement="pool")
    project = make_project(team.alice, team.organization)
    seen = nova.preview_move(str(project.pk), placement="pool")
    assert (seen.kind, seen.placement, seen.address_changes, seen.problems) == ("move", "pool", True, ())
    assert nova.preview_move(str(project.pk), plan="shared").plan == "shared"
    with pytest.raises(Invalid):
        nova.preview_move(str(project.pk), placement="moon")
    assert not Operation.objects.filter(kind="move").exists()
    assert nova.move_project(str(project.pk), placement="pool").operation.kind == "move"
    with pytest.raises(Conflict) as second:
        nova.update_project(str(project.pk), plan="shared")
    assert second.value.code in {"operation_in_progress", "action_not_allowed"}


def test_lists_go_on_by_themselves(nova: Any, team: Team, proxy: Proxy) -> None:
    for number in range(105):
        make_project(team.alice, team.organization, f"p{number}", running=False)
    found = list(nova.list_projects())
    assert [p.name for p in found] == [f"p{n}" for n in range(105)]
    assert len([s for s in proxy.seen if s.path.startswith("/api/v1/projects/?")]) == 2
    assert len(list(nova.list_operations(state="queued"))) == 105
    assert [p.name for p in nova.list_projects(search="p104")] == ["p104"]
    assert nova.get_operation(next(iter(nova.list_operations(kind="provision"))).id).steps[0].state == "pending"


def test_keys_and_services_of_a_project(nova: Any, worker: threading.Event, team: Team) -> None:
    project = make_project(team.alice, team.organization)
    ends = datetime(2099, 1, 1, tzinfo=UTC)
    key = nova.create_api_key(str(project.pk), "web", scopes=["read"], expires_at=ends, prefix="shop")
    assert key.key.startswith("shop_") and key.expires_at == ends and key.scopes == ("read",)
    assert key.key not in repr(key)
    listed = list(nova.list_api_keys(str(project.pk)))
    assert [k.id for k in listed] == [key.id] and listed[0].key is None
    assert nova.verify_api_key(key.key, project_id=str(project.pk), scope="read").valid
    assert nova.verify_api_key(key.key, scope="write").code == "scope_missing"
    assert nova.revoke_api_key(str(project.pk), key.id) is None
    assert nova.verify_api_key(key.key).code == "revoked"
    assert ApiKey.objects.count() == 1
    services = list(nova.list_services(str(project.pk)))
    assert [s.service for s in services] == ["auth", "realtime", "storage"]
    assert {s.status for s in services} == {"disabled"}
    asked = nova.service_action(str(project.pk), "auth", "enable", wait=True, deadline_seconds=60)
    assert asked.status == "disabled" and asked.reason == nova.get_service(str(project.pk), "auth").reason != ""


def test_operators_see_where_there_is_room(nova: Any, connect: Callable[..., Any], proxy: Proxy, team: Team) -> None:
    with pytest.raises(PermissionDenied):
        nova.get_pool_status()
    team.alice.is_staff = True
    team.alice.save()
    found = nova.get_pool_status()
    assert found.status in {"healthy", "degraded"} and found.pools == ()


def test_operators_make_look_at_and_drain_pools(nova: Any, team: Team, worker: threading.Event) -> None:
    with pytest.raises(PermissionDenied):
        nova.create_pool()
    team.alice.is_staff = True
    team.alice.save()
    with pytest.raises(Conflict) as refused:
        nova.create_pool(engine="ferretdb")
    assert refused.value.code == "engine_not_pooled"
    made = nova.create_pool(name="one", max_databases=3, memory_bytes=2**30)
    assert (made.name, made.max_databases, made.limits.memory_bytes) == ("one", 3, 2**30)
    assert made.operation.kind == "prepare_pool"
    until = time.monotonic() + 60
    while nova.get_pool(made.id).ready_at is None:
        assert time.monotonic() < until, nova.get_pool(made.id)
        time.sleep(0.1)
    assert [(p.databases, p.room) for p in nova.get_pool_status().pools] == [(0, True)]
    project = nova.allocate_database("odoo-1", deadline_seconds=60).project
    pool = nova.get_pool(made.id)
    assert (pool.databases, [m.project for m in pool.members]) == (1, [project.id])
    assert [p.id for p in nova.list_pools(engine="postgresql", draining=False)] == [made.id]
    assert list(nova.list_pools(engine="mariadb")) == []
    assert nova.check_pool(made.id).id == made.id
    worker.clear()
    assert nova.drain_pool(made.id).draining_at is not None
    assert nova.stop_draining_pool(made.id).id == made.id


def test_refusals_are_exceptions_by_what_they_mean(
    nova: Any, connect: Callable[..., Any], proxy: Proxy, team: Team
) -> None:
    missing = "01980000-0000-7000-8000-0000000000aa"
    with pytest.raises(NotFound) as not_found:
        nova.get_project(missing)
    assert (not_found.value.status, not_found.value.code) == (404, "not_found")
    assert str(not_found.value).startswith("not_found: ") and not_found.value.request_id in str(not_found.value)
    with pytest.raises(Invalid) as invalid:
        nova.create_project("", engine="oracle")
    assert {e.field for e in invalid.value.errors} & {"name", "engine"} and not invalid.value.retryable
    with pytest.raises(Invalid):
        nova.allocate_database("a b")
    make_project(team.alice, team.organization, "Shop")
    with pytest.raises(Conflict) as taken:
        nova.create_project("shop")
    assert taken.value.code == "name_taken"
    Organization.objects.update(max_projects=1)
    with pytest.raises(QuotaExceeded):
        nova.allocate_database("odoo-1")
    reader = connect(proxy.url, make_token(team.alice, scopes=["read"])[1])
    with pytest.raises(PermissionDenied):
        reader.allocate_database("odoo-1")
    with pytest.raises(PermissionDenied):
        reader.project_connection(str(Project.objects.get().pk))
    with pytest.raises(NotAuthenticated):
        connect(proxy.url, "nvs_nobody").get_project(missing)
    with pytest.raises(ValueError, match="id"):
        nova.get_project("")
    assert [p.name for p in reader.list_projects()] == ["Shop"]


def test_who_may_not_connect_gets_no_password(
    connect: Callable[..., Any], proxy: Proxy, worker: threading.Event, team: Team
) -> None:
    nova = connect(proxy.url, make_token(team.alice, scopes=["write"])[1])
    made = nova.allocate_database("odoo-1", deadline_seconds=60)
    assert made.ready and made.connection.port and made.connection.password is None and made.connection.uri is None
    assert not AuditEvent.objects.filter(action="credentials.revealed").exists()


def test_fifty_threads_with_one_client(proxy: Proxy, token: str, worker: threading.Event) -> None:
    with NovaStack(proxy.url, token) as nova, ThreadPoolExecutor(50) as pool:
        made = list(pool.map(lambda _: nova.allocate_database("odoo-1", deadline_seconds=120), range(50)))
    assert len({m.project.id for m in made}) == len({m.connection.uri for m in made if m.connection}) == 1
    assert Project.objects.count() == Allocation.objects.count() == 1
    assert Operation.objects.filter(kind="provision").count() == 1
