"""The tables that a new database begins with (seed 001): which version of them is there, and what makes it so.

`schema_migrations`, `settings` and `audit_logs` belong to the tenant like everything else in its database. Versions only
add: what a version made is changed by a later one, never by another text of the same one. A table is ours if it bears
our mark; any other thing of that name is somebody's own, and nothing is done to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from projects.domain import Bootstrapped

MIGRATIONS, SETTINGS, AUDIT_LOGS = TABLES = ("schema_migrations", "settings", "audit_logs")
# Rails and dbmate, which keep a table of that name and shape, take it for "nothing applied yet": no number, and the least.
FIRST = "novastack-0001"
DESCRIPTION = "schema_migrations, settings and audit_logs"
MARK = "NovaStack: "  # what the comment of a table of ours begins with
COMMENTS: Mapping[str, str] = {
    MIGRATIONS: f"{MARK}which versions of the schema are applied",
    SETTINGS: f"{MARK}configuration of the project",
    AUDIT_LOGS: f"{MARK}who did what in the project",
}

S = TypeVar("S")
S_in = TypeVar("S_in", contravariant=True)


@dataclass(frozen=True, slots=True)
class Change(Generic[S]):
    """What a version does with one table. `creates`: it makes it; then nothing is done where it is already."""

    table: str
    statements: tuple[S, ...]
    creates: bool = False


@dataclass(frozen=True, slots=True)
class Version(Generic[S]):
    """One version. Its statements do no harm when they run twice: where versions can't be recorded, they do."""

    name: str
    description: str
    changes: tuple[Change[S], ...]


class Target(Protocol[S_in]):
    """A database, as its tenant sees it."""

    def present(self) -> Mapping[str, bool]:
        """Of `TABLES` (and whatever else later versions name) those that exist, and whether each is ours."""

    def recorded(self) -> set[str]:
        """The versions in `schema_migrations`, which is there and ours."""

    def run(self, statement: S_in) -> None: ...

    def record(self, version: str, description: str) -> None: ...


def apply(target: Target[S], versions: Sequence[Version[S]]) -> Bootstrapped:
    """Bring the database to the newest version. Idempotent."""
    before = target.present()
    recorded = target.recorded() if before.get(MIGRATIONS) else set()
    present = dict(before)
    for version in versions:
        if version.name in recorded:
            continue
        for change in version.changes:
            if change.creates is (change.table in present) or present.get(change.table) is False:
                continue  # made before; dropped by the tenant; or the tenant's own
            for statement in change.statements:
                target.run(statement)
            present[change.table] = True
        if present.get(MIGRATIONS):
            target.record(version.name, version.description)
    return Bootstrapped(
        version=versions[-1].name,
        created=tuple(name for name in present if name not in before),
        kept=tuple(name for name, ours in present.items() if not ours),
    )
