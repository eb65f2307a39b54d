"""Calls about databases for instances, and the pools that operators keep for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from novastack_client._core import Core, Flow, Request, delete, get, parsed, part, post
from novastack_client._endpoints import Endpoint, at, listing
from novastack_client.errors import DeadlineExceeded, OperationFailed, PermissionDenied
from novastack_client.models import Allocation, Pool, PoolStatus

DEADLINE_SECONDS = 600.0


def _allocated(
    core: Core, path: str, body: Mapping[str, Any], wait: bool, deadline_seconds: float | None
) -> Flow[Allocation]:
    deadline = core.deadline(deadline_seconds if wait else None)
    last: Allocation | None = None
    try:
        while True:
            last = yield from core.one(Allocation, post(path, body), deadline)
            if last.ready or not wait or last.operation is None:
                return last
            operation = yield from core.operation_end(last.operation.id, deadline)
            if not operation.succeeded:
                raise OperationFailed.of(operation)
    except DeadlineExceeded as error:
        error.allocation = last
        raise


def _allocation(
    core: Core,
    path: str,
    instance_id: str,
    *,
    plan: str | None = None,
    engine: str | None = None,
    version: str | None = None,
    region: str | None = None,
    organization: str | None = None,
    name: str | None = None,
    bootstrap_schema: bool | None = None,
    wait: bool = True,
    deadline_seconds: float | None = DEADLINE_SECONDS,
) -> Flow[Allocation]:
    body = {
        "instance_id": instance_id, "plan": plan, "engine": engine, "version": version, "region": region,
        "organization": organization, "name": name, "bootstrap_schema": bootstrap_schema,
    }  # fmt: skip
    return (yield from _allocated(core, path, body, wait, deadline_seconds))


def _drained(core: Core, request: Request) -> Flow[Pool]:
    answer = yield from core.exchange(request)
    body = answer.json()
    return parsed(Pool, answer, body.get("pool") if isinstance(body, dict) else None)


class AllocationCalls:
    """Part of what both clients can do."""

    # ── databases for instances ──

    @at("database/allocate/", _allocation)
    def allocate_database() -> None:
        """The database of an instance, made when it is first asked for; the same `instance_id` always gets the same one. With
        `wait` it is ready when this returns, else `DeadlineExceeded` (call again to go on waiting) or `OperationFailed` (call
        again to have it tried again, if `retryable`). `Conflict` with `allocation_mismatch`, `allocation_recycled`,
        `allocation_deleting`, `provisioning_failed`."""

    @at("database/provision-dedicated/", _allocation)
    def provision_dedicated_server() -> None:
        """As `allocate_database`, on a server of its own."""

    @Endpoint
    def get_pool_status(core: Core) -> Flow[PoolStatus]:
        """How the allocation service does, and where there is room in pools. For operators: `PermissionDenied` else."""
        answer = yield from core.exchange(get("database/health/"))
        body = answer.json()
        if isinstance(body, dict) and "status" in body and "pools" not in body:
            raise PermissionDenied("Only operators see the pools.", code="permission_denied", status=403)
        return parsed(PoolStatus, answer)

    @listing(Pool)
    def list_pools(
        core: Core,
        *,
        search: str | None = None,
        engine: str | None = None,
        version: str | None = None,
        region: str | None = None,
        plan: str | None = None,
        health: str | None = None,
        draining: bool | None = None,
        ordering: str = "created_at",
    ) -> Flow[None]:
        """All shared servers. For operators, as all calls about pools are."""
        params = {
            "search": search, "engine": engine, "version": version, "region": region, "plan": plan, "health": health,
            "draining": draining, "ordering": ordering,
        }  # fmt: skip
        return (yield from core.pages(Pool, "database/admin/pools/", params))

    @Endpoint
    def get_pool(core: Core, pool_id: str) -> Flow[Pool]:
        """One of them, with the databases on it."""
        return (yield from core.one(Pool, get(f"database/admin/pools/{part(pool_id)}/")))

    @Endpoint
    def create_pool(
        core: Core,
        *,
        engine: str | None = None,
        version: str | None = None,
        region: str | None = None,
        plan: str | None = None,
        name: str | None = None,
        max_databases: int | None = None,
        memory_bytes: int | None = None,
        cpus: float | None = None,
    ) -> Flow[Pool]:
        """One more; what is not given is as the operator's settings say. It is being made when this returns."""
        body = {
            "engine": engine, "version": version, "region": region, "plan": plan, "name": name,
            "max_databases": max_databases, "memory_bytes": memory_bytes, "cpus": cpus,
        }  # fmt: skip
        return (yield from core.one(Pool, post("database/admin/pools/", body)))

    @Endpoint
    def check_pool(core: Core, pool_id: str) -> Flow[Pool]:
        """Have a worker look at it now; `checked_at` says when it has."""
        return (yield from core.one(Pool, post(f"database/admin/pools/{part(pool_id)}/health-check/")))

    @Endpoint
    def drain_pool(core: Core, pool_id: str) -> Flow[Pool]:
        """Nothing new is placed on it, all move out, then it is removed."""
        return (yield from _drained(core, post(f"database/admin/pools/{part(pool_id)}/drain/")))

    @Endpoint
    def stop_draining_pool(core: Core, pool_id: str) -> Flow[Pool]:
        """It takes projects again. Who has moved stays where they are."""
        return (yield from _drained(core, delete(f"database/admin/pools/{part(pool_id)}/drain/")))
