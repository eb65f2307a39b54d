"""How large a pool is, and whether that can work: from the operator's settings, or as asked for by hand.

The promise (rule 22): every database of a pool has its own number of connections, and `max_connections` of the server is at
least the sum of them. Where the memory does not bear the plan's number for each, each has fewer, and that many for sure;
where it bears fewer than `LEAST_CONNECTIONS`, there is no such pool. See ADR 0021.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING

from django.conf import settings

from projects import domain, registry
from projects.engines.base import Engine
from projects.models import Plan
from projects.operations.base import PLATFORM_CONNECTIONS, StepFailed

if TYPE_CHECKING:
    from projects.models import DatabaseServer

MOST_DATABASES = 1000
LEAST_CONNECTIONS = 3  # of one database
LEAST_CPUS = Decimal("0.1")
MOST_CPUS = 512
CONNECTIONS_SHARE = 0.75  # of the memory; the rest is the server's own caches
OURS = 2 * PLATFORM_CONNECTIONS  # looks at several databases of a pool go on side by side
SIZES_INVALID, TOO_SMALL, NOT_POOLED = "pool_settings_invalid", "pool_too_small", "engine_not_pooled"


@dataclass(frozen=True, slots=True)
class PoolSize:
    """`connections`: of one database, guaranteed; `max_connections` is the server's, ours included."""

    max_databases: int
    memory_bytes: int
    cpus: Decimal
    connections: int

    @property
    def max_connections(self) -> int:
        return self.max_databases * self.connections + OURS


def size_of(
    engine: Engine, plan: Plan | None, *, max_databases: int | None = None, memory_bytes: int | None = None,
    cpus: Decimal | float | None = None,
) -> PoolSize:  # fmt: skip
    """The size of a new pool; what is not given is the setting's. Raises `StepFailed` that names what can't work."""
    if domain.Capability.POOL not in engine.capabilities:
        raise StepFailed(NOT_POOLED, f"{engine.title} can't be shared by several projects.", retryable=False)
    databases = settings.NOVASTACK_POOL_MAX_DATABASES if max_databases is None else max_databases
    memory = settings.NOVASTACK_POOL_MEMORY if memory_bytes is None else memory_bytes
    cores = Decimal(str(settings.NOVASTACK_POOL_CPUS if cpus is None else cpus)).quantize(Decimal("0.01"))
    if not 1 <= databases <= MOST_DATABASES:
        raise StepFailed(SIZES_INVALID, f"A pool has room for 1 to {MOST_DATABASES} databases, not {databases}.")
    if not LEAST_CPUS <= cores <= MOST_CPUS:
        raise StepFailed(SIZES_INVALID, f"A pool has {LEAST_CPUS} to {MOST_CPUS} cores, not {cores}.")
    if memory < engine.minimum_memory_bytes:
        raise StepFailed(
            TOO_SMALL,
            f"A pool of {memory >> 20} MiB can't run {engine.title}, which needs at least"
            f" {engine.minimum_memory_bytes >> 20} MiB.",
        )
    affordable = int(memory * CONNECTIONS_SHARE) // engine.connection_bytes - OURS
    each = min(_promised(plan), affordable // databases)
    if each < LEAST_CONNECTIONS:
        least = (databases * LEAST_CONNECTIONS + OURS) * engine.connection_bytes / CONNECTIONS_SHARE
        raise StepFailed(
            TOO_SMALL,
            f"{memory >> 20} MiB are too little for {databases} databases of {engine.title}: with {LEAST_CONNECTIONS}"
            f" connections each they need {int(least / 2**20) + 1} MiB. Promise fewer databases, or give more memory.",
        )
    return PoolSize(databases, memory, cores, each)


def _promised(plan: Plan | None) -> int:
    """Connections that the plan gives; of a pool for every plan: the most that any gives."""
    if plan is not None:
        return plan.connection_limit
    return max([20, *Plan.objects.filter(enabled=True).values_list("connection_limit", flat=True)])


def connections_of(server: DatabaseServer) -> int:
    """What each database of this pool has for sure, and at most: a login's limit is the smaller one of this and its plan's."""
    return max(1, (server.max_connections - OURS) // max(1, server.max_databases))


def problems() -> list[str]:
    """What the settings say that can't work for any engine, in sentences; empty: nothing."""
    found = []
    percent, blanks = settings.NOVASTACK_POOL_FILL_PERCENT, settings.NOVASTACK_POOL_BLANKS
    if not 0 <= percent <= 100:
        found.append(f"NOVASTACK_POOL_FILL_PERCENT is {percent}: give 0 to 100 (0 and 100: no pool is made ahead).")
    if not 0 <= blanks <= MOST_DATABASES:
        found.append(f"NOVASTACK_POOL_BLANKS is {blanks}: give 0 to {MOST_DATABASES}.")
    pooled = [e for e in registry.engines().values() if domain.Capability.POOL in e.capabilities]
    reasons = []
    for engine in pooled:
        try:
            size_of(engine, Plan(connection_limit=20))
        except StepFailed as error:
            reasons.append(error.detail)
    if pooled and len(reasons) == len(pooled):
        found.append(f"No pool can be made with these NOVASTACK_POOL_ settings: {reasons[0]}")
    return found
