"""The operator refreshes the catalogue of versions: by file, by single entry, or in the admin."""

from __future__ import annotations

from dataclasses import dataclass

from django.db import transaction

from accounts.permissions import Principal
from accounts.services import audit
from projects import registry
from projects.domain import EngineVersion
from projects.engines import catalogue as shape
from projects.engines.catalogue import CatalogueInvalid
from projects.models import EngineRelease
from projects.operations.catalogue import everything


@dataclass(frozen=True, slots=True)
class Imported:
    """`<engine> <version>` of what the import made, changed and removed."""

    added: tuple[str, ...]
    changed: tuple[str, ...]
    removed: tuple[str, ...]

    @property
    def nothing(self) -> bool:
        return not (self.added or self.changed or self.removed)


def catalogue_import(
    *, text: str, replace: bool = False, dry_run: bool = False, principal: Principal | None = None
) -> Imported:
    """Take a catalogue in TOML or JSON: its entries replace what was said about the same versions; with `replace` whatever
    it does not name falls back to what is shipped. All of it or, with `CatalogueInvalid`, nothing. `dry_run`: only say
    what would happen. Servers that exist keep their image (rule 12)."""
    given = shape.parse(text, registry.engines())
    wanted = {(engine, entry.version): entry for engine, entries in given.items() for entry in entries}
    with transaction.atomic():
        rows = {
            (r.engine, r.version): r for r in EngineRelease.objects.select_for_update().order_by("engine", "version")
        }
        gone = [row for key, row in rows.items() if replace and key not in wanted]
        before = {key: row.entry for key, row in rows.items()}
        problems = _defaults(wanted, {key: entry for key, entry in before.items() if not replace})
        if problems:
            raise CatalogueInvalid(problems)
        result = Imported(
            added=tuple(_name(key) for key in wanted if key not in before),
            changed=tuple(_name(key) for key in wanted if key in before and before[key] != wanted[key]),
            removed=tuple(str(row) for row in gone),
        )
        if dry_run or result.nothing:
            return result
        EngineRelease.objects.filter(pk__in=[row.pk for row in gone]).delete()
        # Defaults last: no two at any moment.
        for key, entry in sorted(wanted.items(), key=lambda item: item[1].default):
            EngineRelease.objects.update_or_create(engine=key[0], version=key[1], defaults=_fields(entry))
        audit.record(
            principal, "catalogue.changed",
            data={"added": list(result.added), "changed": list(result.changed), "removed": list(result.removed)},
        )  # fmt: skip
    return result


def catalogue_export(*, own_only: bool = False) -> str:
    """What holds now (or only what the operator said), as `catalogue_import` reads it."""
    if not own_only:
        return shape.dump({name: versions.entries for name, versions in everything().items()})
    found: dict[str, list[EngineVersion]] = {}
    for row in EngineRelease.objects.order_by("engine", "version"):
        found.setdefault(row.engine, []).append(row.entry)
    return shape.dump({name: tuple(entries) for name, entries in found.items()})


def catalogue_reset(*, engine: str, version: str, principal: Principal | None = None) -> bool:
    """Back to what is shipped about that version; a version that is not shipped is known no more. False: nothing was said
    about it."""
    with transaction.atomic():
        done = EngineRelease.objects.filter(engine=engine, version=version).delete()[0] > 0
        if done:
            audit.record(principal, "catalogue.changed", data={"removed": [f"{engine} {version}"]})
    return done


def shipped_versions() -> set[tuple[str, str]]:
    """(engine, version) that this release ships."""
    shipped = shape.shipped(registry.engines())
    return {(engine, entry.version) for engine, entries in shipped.items() for entry in entries}


def _defaults(wanted: dict[tuple[str, str], EngineVersion], kept: dict[tuple[str, str], EngineVersion]) -> list[str]:
    """At most one default for each engine, also with what stays as it is."""
    together = kept | wanted
    problems = []
    for engine in sorted({engine for engine, _ in together}):
        names = sorted(version for (name, version), entry in together.items() if name == engine and entry.default)
        if len(names) > 1:
            problems.append(f"{engine}: only one version can be the default one, not {' and '.join(names)}.")
    return problems


def _name(key: tuple[str, str]) -> str:
    return " ".join(key)


def _fields(entry: EngineVersion) -> dict[str, object]:
    return {
        "image": entry.image, "digest": entry.digest, "default": entry.default, "deprecated": entry.deprecated,
        "end_of_life": entry.end_of_life, "offer": str(entry.offer),
    }  # fmt: skip
