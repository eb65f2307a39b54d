"""Read-only: an install that changes nothing in runtimes or databases until an operator decides (rule 11).

Lifting it writes a new epoch into every runtime. Another copy of this control plane that still runs (the one that was
backed up, say) finds an epoch that is not its own and becomes read-only by itself, within a minute.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field

from accounts.services import audit
from novastack.common.models import Install
from projects import domain
from projects.models import DataTombstone, Operation, Orphan, Project, Region
from projects.models.servers import NOTED_KINDS
from projects.operations import wiring


class RuntimesAway(Exception):
    """Some runtimes could not be told the new epoch; the install stays read-only."""


@dataclass(slots=True)
class State:
    read_only: bool
    reason: str
    epoch: str
    epochs: dict[str, str] = field(default_factory=dict)  # region slug → the runtime's epoch, or why it is not known
    waiting: dict[str, int] = field(default_factory=dict)


def state() -> State:
    """How things are, and what an operator should know before lifting it."""
    install = Install.load()
    found = State(install.read_only, install.read_only_reason, str(install.epoch))
    for region in _regions():
        try:
            found.epochs[region.slug] = wiring.runtime_of(region).read_epoch() or "(none yet)"
        except domain.NovaStackRuntimeError as error:
            found.epochs[region.slug] = f"(not reachable: {error})"
    found.waiting = {
        "live operations": Operation.objects.live().count(),
        "projects in the recycle bin": Project.objects.in_bin().count(),
        "data waiting for deletion": DataTombstone.objects.filter(deleted_at=None, forgotten_at=None).count(),
        "unknown servers and volumes": Orphan.objects.filter(resolved_at=None).exclude(kind__in=NOTED_KINDS).count(),
    }
    return found


def read_only_on(*, reason: str) -> None:
    """Stop every write. What runs now finishes its present call and then waits."""
    Install.load()
    Install.objects.update(read_only=True, read_only_reason=reason[:500])
    audit.record(None, "install.read_only", data={"reason": reason[:500], "by": "operator"})


def read_only_off(*, without: frozenset[str] = frozenset()) -> str:
    """Write a new epoch to our rows and to every runtime, then allow writes. Returns the epoch.

    `RuntimesAway` when a runtime does not take it: the install stays read-only. Regions named in `without` are left out;
    they make it read-only again when they come back with the old epoch.
    """
    old = Install.load().epoch
    runtimes = {region.slug: wiring.runtime_of(region) for region in _regions() if region.slug not in without}
    away = []
    for slug, runtime in runtimes.items():
        try:
            runtime.ping()
        except domain.NovaStackRuntimeError as error:
            away.append(f"{slug}: {error}")
    if away:
        raise RuntimesAway("; ".join(away))
    new = uuid.uuid4()
    # First our rows, still read-only; then the runtimes; writes last: nobody of ours acts under half an epoch.
    Install.objects.update(epoch=new, read_only=True)
    for slug, runtime in runtimes.items():
        try:
            runtime.write_epoch(str(new))
            kept = runtime.read_epoch()
        except domain.NovaStackRuntimeError as error:
            raise RuntimesAway(f"{slug}: {error}") from error
        if kept != str(new):
            raise RuntimesAway(f"{slug}: it did not keep the new epoch")
    Install.objects.update(read_only=False, read_only_reason="")
    audit.record(None, "install.read_write", data={"epoch": str(new), "epoch_before": str(old)})
    return str(new)


def _regions() -> list[Region]:
    return list(Region.objects.filter(enabled=True).exclude(runtime=""))
