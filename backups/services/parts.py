"""Parts of a backup: what there is to choose from, and having it restored beside what lives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from accounts.permissions import Principal
from backups.models import Backup, Restore
from backups.operations import extracting, restore_sides
from backups.services.preflight import Wanted
from novastack.common.errors import Conflict, Invalid
from projects import registry
from projects.domain import Selection
from projects.engines.base import Engine
from projects.models import Project, TableSnapshot
from projects.services.actions import lock_project

MOST = 200  # names in one request


@dataclass(frozen=True, slots=True)
class Part:
    """`live_bytes`: what the table of that name takes in the live database now, as far as that is known."""

    name: str
    schema: str
    rows: int | None
    live_bytes: int | None


def parts_of(backup: Backup, project: Project | None = None) -> list[Part]:
    """The backup's tables by name, as its manifest has them."""
    tables = dict[str, int | None](restore_sides.tables_of(backup))
    for kind, name, state in (backup.manifest.get("contents") or {}).get("facts") or ():
        if kind == "table" and str(state).startswith("p|"):  # partitioned: its partitions have the rows
            tables.setdefault(str(name), None)
    snapshot = TableSnapshot.objects.filter(project=project).first() if project is not None else None
    sizes = {str(name): size for name, _rows, size in snapshot.tables} if snapshot is not None else {}
    schemas = has_schemas(backup)
    return [
        Part(
            name, schema_of(name) if schemas else "", rows, sizes.get(name.removeprefix("public.") if schemas else name)
        )
        for name, rows in sorted(tables.items())
    ]


def supported(engine: str) -> bool:
    """Whether parts of this engine's backups can be restored by themselves."""
    return type(registry.engine(engine)).set_apart is not Engine.set_apart


def has_schemas(backup: Backup) -> bool:
    return backup.engine == "postgresql"


def schema_of(name: str) -> str:
    """Of a table as PostgreSQL quotes it: `public.orders`, `"My Schema"."a.b"`."""
    if not name.startswith('"'):
        return name.partition(".")[0]
    end = 1
    while end < len(name) and (name[end] != '"' or name[end : end + 2] == '""'):
        end += 2 if name[end] == '"' else 1
    return name[: end + 1]


def schemas_of(backup: Backup) -> list[str]:
    """Those with tables, as PostgreSQL quotes them; empty for products without schemas within a database. A restore of one
    without would have nothing to count and compare."""
    return sorted({part.schema for part in parts_of(backup)}) if has_schemas(backup) else []


def selection(backup: Backup, tables: Sequence[str], schemas: Sequence[str]) -> Selection:
    """What was asked for, as the manifest calls it. Raises `Invalid` with the field."""
    if tables and schemas:
        raise Invalid.field("schemas", "invalid", "Choose tables or schemas, not both.")
    if not supported(backup.engine):
        told = f"Parts of a backup of {registry.engine(backup.engine).title} can't be restored: restore all of it."
        raise Invalid.field("tables" if tables else "schemas", "not_available", told)
    if schemas and not has_schemas(backup):
        raise Invalid.field("schemas", "not_available", "This product has no schemas within a database: choose tables.")
    if max(len(tables), len(schemas)) > MOST:
        raise Invalid.field("tables" if tables else "schemas", "too_many", f"Choose at most {MOST} at a time.")
    parts = parts_of(backup)
    if not parts:
        raise Invalid.field("tables", "unknown", "It is not known which tables this backup has: restore all of it.")
    there = {part.name for part in parts}
    chosen: list[str] = []
    unknown: list[str] = []
    for name in dict.fromkeys(tables):
        found = next((each for each in (name, f"public.{name}") if each in there), None)
        (chosen if found else unknown).append(found or name)
    known = set(schemas_of(backup))
    unknown += [name for name in dict.fromkeys(schemas) if name not in known]
    if unknown:
        names = ", ".join(name[:80] for name in unknown[:5])
        told = f"The backup does not have {names}." if tables else f"The backup has no tables in {names}."
        raise Invalid.field("tables" if tables else "schemas", "unknown", told)
    return Selection(tuple(chosen), tuple(dict.fromkeys(schemas)))


def begin_beside(principal: Principal, backup: Backup, wanted: Wanted, row: Restore) -> Restore:
    """In a transaction; `row` says what. Raises `OperationInProgress`."""
    assert wanted.project is not None  # noqa: S101 - who calls has looked
    project = lock_project(wanted.project)
    operation = extracting.extract_begin(row, backup, project, created_by=principal.user, label=principal.label)
    row.operation_id = operation.pk
    row.save(update_fields=["operation_id", "updated_at"])
    return row


def obstacles(found: Sequence[Conflict]) -> list[Conflict]:
    """What of a preflight stands in the way of a part: nothing that lives is replaced, and the whole need not fit."""
    harmless = {"too_many_copies", "plan_too_small", "version_too_old"}
    return [problem for problem in found if problem.code not in harmless]
