"""Every call, once. The first parameter of each is the client's; `wait=True` ends when the work has ended."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from novastack_client._backup_calls import BackupCalls, done
from novastack_client._core import Core, Flow, Request, delete, get, parsed, part, patch, post
from novastack_client._endpoints import Endpoint, listing
from novastack_client.errors import Conflict, DeadlineExceeded, OperationFailed, PermissionDenied
from novastack_client.models import (
    Allocation,
    ApiKey,
    Connection,
    KeyCheck,
    MovePreview,
    Operation,
    Pool,
    PoolStatus,
    Project,
    ProjectStatus,
    Service,
)

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


def _accepted(
    core: Core, request: Request, project_id: str, wait: bool, deadline_seconds: float | None
) -> Flow[Project]:
    """A change of a project, and with `wait` the end of the operation it has started."""
    deadline = core.deadline(deadline_seconds if wait else None)
    try:
        project = yield from core.one(Project, request, deadline)
    except Conflict as error:
        # PATCH and DELETE have no key: one that was carried out and not told is refused when it is sent again.
        carried_out = request.method != "POST" and error.after_lost_answer
        if not carried_out or error.code not in {"action_not_allowed", "operation_in_progress"}:
            raise
        project = yield from core.one(Project, get(f"projects/{part(project_id)}/"), deadline)
    if wait and project.operation is not None:
        yield from done(core, project.operation.id, deadline)
        project = yield from core.one(Project, get(f"projects/{part(project_id)}/"), deadline)
    return project


def _drained(core: Core, request: Request) -> Flow[Pool]:
    answer = yield from core.exchange(request)
    body = answer.json()
    return parsed(Pool, answer, body.get("pool") if isinstance(body, dict) else None)


class Calls(BackupCalls):
    """What both clients can do."""

    # ── databases for instances ──

    @Endpoint
    def allocate_database(
        core: Core,
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
        """The database of an instance, made when it is first asked for; the same `instance_id` always gets the same one. With
        `wait` it is ready when this returns, else `DeadlineExceeded` (call again to go on waiting) or `OperationFailed` (call
        again to have it tried again, if `retryable`). `Conflict` with `allocation_mismatch`, `allocation_recycled`,
        `allocation_deleting`, `provisioning_failed`."""
        body = {
            "instance_id": instance_id, "plan": plan, "engine": engine, "version": version, "region": region,
            "organization": organization, "name": name, "bootstrap_schema": bootstrap_schema,
        }  # fmt: skip
        return (yield from _allocated(core, "database/allocate/", body, wait, deadline_seconds))

    @Endpoint
    def provision_dedicated_server(
        core: Core,
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
        """As `allocate_database`, on a server of its own."""
        body = {
            "instance_id": instance_id, "plan": plan, "engine": engine, "version": version, "region": region,
            "organization": organization, "name": name, "bootstrap_schema": bootstrap_schema,
        }  # fmt: skip
        return (yield from _allocated(core, "database/provision-dedicated/", body, wait, deadline_seconds))

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

    # ── projects ──

    @listing(Project)
    def list_projects(
        core: Core,
        *,
        search: str | None = None,
        status: str | None = None,
        engine: str | None = None,
        region: str | None = None,
        placement: str | None = None,
        organization: str | None = None,
        ordering: str = "created_at",
    ) -> Flow[None]:
        """All projects that the token may see, page after page. Without `status` the recycle bin is left out."""
        params = {
            "search": search, "status": status, "engine": engine, "region": region, "placement": placement,
            "organization": organization, "ordering": ordering,
        }  # fmt: skip
        return (yield from core.pages(Project, "projects/", params))

    @Endpoint
    def create_project(
        core: Core,
        name: str,
        *,
        engine: str | None = None,
        version: str | None = None,
        region: str | None = None,
        plan: str | None = None,
        organization: str | None = None,
        placement: str | None = None,
        description: str | None = None,
        database_name: str | None = None,
        username: str | None = None,
        limits: Mapping[str, float] | None = None,
        labels: Mapping[str, str] | None = None,
        tls_required: bool | None = None,
        deletion_protection: bool | None = None,
        services: Collection[str] = (),
        api_keys: int = 0,
        api_key_prefix: str | None = None,
        bootstrap_schema: bool | None = None,
        backups: bool | None = None,
        wait: bool = False,
        deadline_seconds: float | None = DEADLINE_SECONDS,
    ) -> Flow[Project]:
        """Ask for a database. `services`: of auth, realtime, storage. `api_keys`: how many; their values are in this answer
        only (with `wait` as well). `backups`: whether it begins with a schedule; as the server does if not given."""
        keys = {"count": api_keys, "prefix": api_key_prefix}
        body = {
            "name": name, "engine": engine, "version": version, "region": region, "plan": plan,
            "organization": organization, "placement": placement, "description": description,
            "database_name": database_name, "username": username, "limits": limits, "labels": labels,
            "tls_required": tls_required, "deletion_protection": deletion_protection,
            "services": dict.fromkeys(services, True) or None,
            "api_keys": {name: value for name, value in keys.items() if value is not None} if api_keys else None,
            "bootstrap_schema": bootstrap_schema, "backups": backups,
        }  # fmt: skip
        deadline = core.deadline(deadline_seconds if wait else None)
        made = yield from core.one(Project, post("projects/", body), deadline)
        if wait and made.operation is not None:
            yield from done(core, made.operation.id, deadline)
            now = yield from core.one(Project, get(f"projects/{part(made.id)}/"), deadline)
            return replace(now, api_keys=made.api_keys)
        return made

    @Endpoint
    def get_project(core: Core, project_id: str) -> Flow[Project]:
        """One project."""
        return (yield from core.one(Project, get(f"projects/{part(project_id)}/")))

    @Endpoint
    def update_project(
        core: Core,
        project_id: str,
        *,
        name: str | None = None,
        description: str | None = None,
        labels: Mapping[str, str] | None = None,
        limits: Mapping[str, float] | None = None,
        tls_required: bool | None = None,
        deletion_protection: bool | None = None,
        plan: str | None = None,
        wait: bool = False,
        deadline_seconds: float | None = DEADLINE_SECONDS,
    ) -> Flow[Project]:
        """Change what is given; the rest stays. New `limits` and `tls_required` start an operation; so does a `plan` (given
        alone), which may mean a move: `preview_move` says so before."""
        body = {
            "plan": plan,
            "name": name, "description": description, "labels": labels, "limits": limits, "tls_required": tls_required,
            "deletion_protection": deletion_protection,
        }  # fmt: skip
        request = patch(f"projects/{part(project_id)}/", body)
        return (yield from _accepted(core, request, project_id, wait, deadline_seconds))

    @Endpoint
    def project_action(
        core: Core,
        project_id: str,
        action: str,
        *,
        name: str | None = None,
        end_sessions: bool | None = None,
        wait: bool = False,
        deadline_seconds: float | None = DEADLINE_SECONDS,
    ) -> Flow[Project]:
        """`start`, `stop`, `restart`, `rotate_password` (`end_sessions`), `undelete` (`name`), `retry`."""
        body = {"action": action, "name": name, "end_sessions": end_sessions}
        request = post(f"projects/{part(project_id)}/action/", body)
        return (yield from _accepted(core, request, project_id, wait, deadline_seconds))

    @Endpoint
    def preview_move(
        core: Core,
        project_id: str,
        *,
        placement: str | None = None,
        region: str | None = None,
        plan: str | None = None,
    ) -> Flow[MovePreview]:
        """What `move_project` (or a change of plan) would do, without doing it."""
        target = {
            name: value for name, value in (("placement", placement), ("region", region), ("plan", plan)) if value
        }
        request = post(f"projects/{part(project_id)}/move/", {"target": target, "dry_run": True})
        return (yield from core.one(MovePreview, request))

    @Endpoint
    def move_project(
        core: Core,
        project_id: str,
        *,
        placement: str | None = None,
        region: str | None = None,
        plan: str | None = None,
        wait: bool = False,
        deadline_seconds: float | None = DEADLINE_SECONDS,
    ) -> Flow[Project]:
        """To a pool or a server of its own, another region, another plan. Clients are shut out while it is copied; address and
        names may change: ask for the connection afterwards."""
        target = {
            name: value for name, value in (("placement", placement), ("region", region), ("plan", plan)) if value
        }
        request = post(f"projects/{part(project_id)}/move/", {"target": target})
        return (yield from _accepted(core, request, project_id, wait, deadline_seconds))

    @Endpoint
    def delete_project(
        core: Core,
        project_id: str,
        *,
        final_backup: bool | None = None,
        wait: bool = False,
        deadline_seconds: float | None = DEADLINE_SECONDS,
    ) -> Flow[Project]:
        """Into the recycle bin, from which the action `undelete` brings it back. A final backup is taken and proven before,
        unless `final_backup` is False."""
        request = delete(f"projects/{part(project_id)}/", final_backup=final_backup)
        return (yield from _accepted(core, request, project_id, wait, deadline_seconds))

    @Endpoint
    def purge_project(core: Core, project_id: str, *, confirm: str, final_backup: bool | None = None) -> Flow[Project]:
        """Server and data for good. `confirm`: the project's slug. The answer's `operation` ends when the data was seen to be
        gone, about a quarter of an hour later. A final backup is taken and proven before, unless `final_backup` is False."""
        request = delete(f"projects/{part(project_id)}/", purge=True, confirm=confirm, final_backup=final_backup)
        return (yield from _accepted(core, request, project_id, False, None))

    @Endpoint
    def project_connection(core: Core, project_id: str) -> Flow[Connection]:
        """How to connect, with the password. Needs the scope `connect`; is in the project's activity."""
        return (yield from core.one(Connection, get(f"projects/{part(project_id)}/connection/")))

    @Endpoint
    def project_status(core: Core, project_id: str) -> Flow[ProjectStatus]:
        """What was asked for, and what was seen of it."""
        return (yield from core.one(ProjectStatus, get(f"projects/{part(project_id)}/status/")))

    # ── operations ──

    @listing(Operation)
    def list_operations(
        core: Core,
        *,
        project_id: str | None = None,
        state: str | None = None,
        kind: str | None = None,
        ordering: str = "created_at",
    ) -> Flow[None]:
        """Operations of the token's organizations, or of one project; oldest first."""
        path = f"projects/{part(project_id)}/operations/" if project_id is not None else "operations/"
        return (yield from core.pages(Operation, path, {"state": state, "kind": kind, "ordering": ordering}))

    @Endpoint
    def get_operation(core: Core, operation_id: str) -> Flow[Operation]:
        """One operation with its steps."""
        return (yield from core.one(Operation, get(f"operations/{part(operation_id)}/")))

    @Endpoint
    def wait_for_operation(
        core: Core,
        operation_id: str,
        *,
        deadline_seconds: float | None = DEADLINE_SECONDS,
    ) -> Flow[Operation]:
        """The operation once it has succeeded. `OperationFailed` when it has ended otherwise, `DeadlineExceeded`."""
        return (yield from done(core, operation_id, core.deadline(deadline_seconds)))

    @Endpoint
    def cancel_operation(core: Core, operation_id: str) -> Flow[Operation]:
        """Ask it to stop and undo what it did."""
        return (yield from core.one(Operation, post(f"operations/{part(operation_id)}/cancel/")))

    @Endpoint
    def retry_operation(core: Core, operation_id: str) -> Flow[Operation]:
        """A waiting one goes on at once; for a failed one the answer is the new operation."""
        return (yield from core.one(Operation, post(f"operations/{part(operation_id)}/retry/")))

    # ── API keys and services of a project ──

    @listing(ApiKey)
    def list_api_keys(core: Core, project_id: str) -> Flow[None]:
        """A project's keys, revoked ones as well; oldest first, without their values."""
        return (yield from core.pages(ApiKey, f"projects/{part(project_id)}/api-keys/", {"ordering": "created_at"}))

    @Endpoint
    def create_api_key(
        core: Core,
        project_id: str,
        name: str,
        *,
        scopes: Collection[str] | None = None,
        expires_at: datetime | None = None,
        prefix: str | None = None,
    ) -> Flow[ApiKey]:
        """Make a key; its value (`key`) is in this answer only: None, with `already_shown`, if that answer was lost on its way
        (revoke it then). `scopes`: of read, write; both if missing."""
        body = {
            "name": name, "scopes": list(scopes) if scopes is not None else None,
            "expires_at": expires_at.isoformat() if expires_at else None, "prefix": prefix,
        }  # fmt: skip
        return (yield from core.one(ApiKey, post(f"projects/{part(project_id)}/api-keys/", body)))

    @Endpoint
    def revoke_api_key(core: Core, project_id: str, key_id: str) -> Flow[None]:
        """It stops working at once."""
        yield from core.exchange(delete(f"projects/{part(project_id)}/api-keys/{part(key_id)}/"))

    @Endpoint
    def verify_api_key(
        core: Core,
        key: str,
        *,
        project_id: str | None = None,
        scope: str | None = None,
    ) -> Flow[KeyCheck]:
        """For services: whether a key works now, and why not. `project_id` and `scope` are demanded if given."""
        return (
            yield from core.one(KeyCheck, post("api-keys/verify/", {"key": key, "project": project_id, "scope": scope}))
        )

    @listing(Service)
    def list_services(core: Core, project_id: str) -> Flow[None]:
        """Auth, realtime, storage: what each of them knows of the project."""
        return (yield from core.pages(Service, f"projects/{part(project_id)}/services/", {}))

    @Endpoint
    def get_service(core: Core, project_id: str, service: str) -> Flow[Service]:
        """One of them."""
        return (yield from core.one(Service, get(f"projects/{part(project_id)}/services/{part(service)}/")))

    @Endpoint
    def service_action(
        core: Core,
        project_id: str,
        service: str,
        action: str,
        *,
        wait: bool = False,
        deadline_seconds: float | None = DEADLINE_SECONDS,
    ) -> Flow[Service]:
        """`enable`, `disable`, `retry`, `register`."""
        path = f"projects/{part(project_id)}/services/{part(service)}/"
        deadline = core.deadline(deadline_seconds if wait else None)
        found = yield from core.one(Service, post(path, {"action": action}), deadline)
        if wait and found.operation is not None:
            yield from done(core, found.operation.id, deadline)
            found = yield from core.one(Service, get(path), deadline)
        return found
