"""Every call, once. The first parameter of each is the client's; `wait=True` ends when the work has ended."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from datetime import datetime

from novastack_client._allocation_calls import AllocationCalls
from novastack_client._backup_calls import BackupCalls, done
from novastack_client._core import Core, Flow, Request, delete, get, part, patch, post
from novastack_client._endpoints import Endpoint, listing
from novastack_client.errors import Conflict
from novastack_client.models import (
    ApiKey,
    Connection,
    KeyCheck,
    MovePreview,
    Operation,
    Project,
    ProjectStatus,
    Service,
)

DEADLINE_SECONDS = 600.0


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


class Calls(AllocationCalls, BackupCalls):
    """What both clients can do."""

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
