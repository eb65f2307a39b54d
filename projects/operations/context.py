"""What a step works with: its rows, its engine and runtime, and the guard before each side effect."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, TypeVar

import structlog
from django.db import transaction

from novastack.common.clock import now
from projects import domain, registry
from projects.engines.base import Engine
from projects.models import (
    Database,
    DatabaseRole,
    DatabaseServer,
    DatabaseSlot,
    Endpoint,
    Operation,
    OperationStep,
    Project,
    Region,
    RoleKind,
)
from projects.operations import leases, wiring
from projects.operations.base import CancelRequested, LeaseLost, StepFailed, Wait
from projects.runtimes.base import Runtime

log = structlog.get_logger(__name__)
View = TypeVar("View", bound="Context")
ROWS = ("project", "database", "server", "names", "_roles")
COMMITTED = "_committed"  # in the data of the step after which there is no way back


class Context:
    """One step's view of the world. Rows are loaded fresh for every step, unless its kind says that they last longer."""

    def __init__(
        self, *, operation: Operation, row: OperationStep, lease: leases.Lease, heartbeat: leases.Heartbeat,
        cancellable: bool, deadline_seconds: float, seen: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """`seen`: rows that need not be loaded again (`rows_seen`)."""
        self.operation, self.row, self.lease = operation, row, lease
        self._heartbeat, self._cancellable = heartbeat, cancellable
        self._deadline = time.monotonic() + deadline_seconds
        self.skipped: set[str] = set()  # later steps that this one has put down as not needed
        self.__dict__.update(seen or {})

    def seen_as(self, kind: type[View]) -> View:
        """The same step and its promises, with other rows in sight."""
        other = kind(
            operation=self.operation, row=self.row, lease=self.lease, heartbeat=self._heartbeat,
            cancellable=self._cancellable, deadline_seconds=self.remaining_seconds(),
        )  # fmt: skip
        other.skipped = self.skipped
        return other

    def pulse(self) -> None:
        """Within what takes long, from any thread: raises when this worker must stop. Costs no query."""
        self.sleep(0)

    # --- rows -------------------------------------------------------------------------------------------------
    @cached_property
    def project(self) -> Project:
        return Project.objects.select_related("region", "plan", "organization").get(pk=self.operation.project_key)

    @cached_property
    def database(self) -> Database:
        return Database.objects.select_related("server", "server__region").get(
            project_id=self.operation.project_key, slot=DatabaseSlot.CURRENT
        )

    @cached_property
    def server(self) -> DatabaseServer:
        """The project's; of an operation about no project (a standby's) the one that it names."""
        if self.operation.project_uuid is None:
            return DatabaseServer.objects.select_related("region").get(pk=self.operation.server_key)
        return self.database.server

    @cached_property
    def endpoint(self) -> Endpoint:
        """The project's address. A standby has none: then what a project's would be, on no row."""
        if self.operation.project_uuid is None:
            region, port = self.region, self.server.port or 0
            return Endpoint(
                region=region, host=region.client_host, port=port, control_host=region.control_host, control_port=port,
                bind_address=self.server.bind_address,
            )  # fmt: skip
        return Endpoint.objects.get(project_id=self.operation.project_key)

    @property
    def region(self) -> Region:
        return self.server.region if self.operation.project_uuid is None else self.project.region

    @property
    def tls_required(self) -> bool:
        return self.operation.project_uuid is not None and self.project.tls_required

    def forget_rows(self) -> None:
        """Load database, server and address anew: others stand there now."""
        for name in ("database", "server", "endpoint", "names", "_roles"):
            self.__dict__.pop(name, None)

    def lives_in(self, database: Database) -> None:
        """It was just placed there: `database` and its server need not be loaded again."""
        database.server.region = self.project.region
        self.database = database

    def rows_seen(self) -> dict[str, Any]:
        """What was loaded of the project and of where it lives."""
        return {name: self.__dict__[name] for name in ROWS if name in self.__dict__}

    @cached_property
    def _roles(self) -> list[DatabaseRole]:
        return list(self.database.roles.order_by("created_at"))

    def role(self, kind: RoleKind) -> DatabaseRole:
        return [role for role in self._roles if role.kind == kind][0]  # noqa: RUF015 - its error is one that steps may raise

    @cached_property
    def names(self) -> domain.TenantNames:
        return wiring.tenant_names(self.database, self._roles)

    # --- drivers ----------------------------------------------------------------------------------------------
    @cached_property
    def engine(self) -> Engine:
        return registry.engine(self.server.engine if self.operation.project_uuid is None else self.project.engine)

    @cached_property
    def runtime(self) -> Runtime:
        return wiring.runtime_of(self.region)

    # --- promises ---------------------------------------------------------------------------------------------
    def guard(self, standing: leases.Standing | None = None) -> None:
        """Call right before each side effect: only who holds the live lease may go on (rule 3), and a read-only
        install changes nothing (rule 11). `standing`: how it stands, as of this moment."""
        standing = standing or leases.standing(self.lease)
        if self._heartbeat.lost.is_set() or not standing.held:
            raise LeaseLost
        if time.monotonic() > self._deadline:
            raise StepFailed("deadline_exceeded", f"“{self.row.title}” took longer than it may.")
        if self._cancellable and standing.cancel_requested:
            raise CancelRequested
        if standing.read_only:
            raise Wait(f"The install is read-only: {standing.read_only_reason or 'set by an operator'}.", seconds=30)

    @contextlib.contextmanager
    def fenced(self, *, awaited: bool = True) -> Iterator[None]:
        """A transaction for what a side effect led to: it writes nothing if another worker took over meanwhile. Not
        `awaited`: what the step, run again, would find out anew may reach the disk a moment later."""
        with transaction.atomic():
            leases.fenced(self.lease, awaited=awaited)
            yield

    def adopt(self) -> domain.Observation:
        """Look at the server, and put down which process or container it is. A worker that was killed between making it
        and writing that down leaves an older one on the row, which stop and destroy would refuse. Who holds the lease
        may do this: the name is this incarnation's alone, and nobody else acts on it."""
        self.guard()
        seen = self.runtime.observe([self.server.handle])[self.server.handle]
        if seen.state == domain.ServerState.UNREACHABLE:
            raise domain.RuntimeUnreachable(seen.detail or "The runtime can't be reached.")
        if seen.ref and seen.ref != self.server.runtime_ref:
            self.server.runtime_ref = seen.ref
            self.save_server("runtime_ref")
        return seen

    def save_server(self, *fields: str) -> None:
        with self.fenced():
            self.server.save(update_fields=[*fields, "updated_at"])

    def remaining_seconds(self) -> float:
        return self._deadline - time.monotonic()

    def sleep(self, seconds: float) -> None:
        """A short pause inside a polling step; checks flags that cost no query."""
        if self._heartbeat.lost.is_set():
            raise LeaseLost
        if time.monotonic() > self._deadline:
            raise StepFailed("deadline_exceeded", f"“{self.row.title}” took longer than it may.")
        time.sleep(seconds)

    def record(self, **data: Any) -> None:
        """Keep facts for later steps and for a resume after a crash. Never secrets."""
        self.row.data = {**self.row.data, **data}
        with self.fenced():
            OperationStep.objects.filter(pk=self.row.pk).update(data=self.row.data)

    def commit(self, **data: Any) -> None:
        """The point of no return, in the transaction that makes it one: from here on the operation is not undone, nor cut
        short; its later steps are tried until they succeed."""
        self.record(**{**data, COMMITTED: True})

    def say(self, message: str, *, level: str = "info") -> None:
        """A line for the operation's live log and for ours. Never secrets."""
        leases.say(self.lease, now(), level, message[:500])

    def explain(self, detail: str) -> None:
        """What the step did, in a phrase; shown under its name."""
        self.row.detail = detail[:500]
