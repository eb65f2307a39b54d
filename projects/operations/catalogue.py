"""Which versions there are: what this release ships, and what the operator said since. One query."""

from __future__ import annotations

from dataclasses import dataclass

from django.utils import timezone

from projects import registry
from projects.domain import EngineVersion
from projects.engines import catalogue as shape
from projects.engines.base import Engine
from projects.models import EngineRelease


@dataclass(frozen=True, slots=True)
class Versions:
    """The versions of one engine, newest first; exactly one is the default, if any is offered."""

    engine: Engine
    entries: tuple[EngineVersion, ...]

    @property
    def default(self) -> str:
        """Empty if none is offered."""
        return next((entry.version for entry in self.entries if entry.default), "")

    @property
    def offered(self) -> tuple[EngineVersion, ...]:
        """What new projects may have."""
        today = timezone.now().date()
        return tuple(entry for entry in self.entries if entry.offered(today))

    def find(self, version: str) -> EngineVersion | None:
        return next((entry for entry in self.entries if entry.version == version), None)

    def image_of(self, version: str) -> str:
        """What must be used for that version: NOVASTACK_IMAGES, else image and digest of the catalogue; empty: the usual
        order."""
        entry = self.find(version)
        return registry.image_override(self.engine.name, version) or (_reference(self.engine, entry) if entry else "")


def versions_of(engine: Engine) -> Versions:
    """Of one engine."""
    return Versions(engine, _merged(engine, EngineRelease.objects.filter(engine=engine.name)))


def everything() -> dict[str, Versions]:
    """Engine's name → its versions, in the registry's order."""
    own = list(EngineRelease.objects.all())
    return {
        engine.name: Versions(engine, _merged(engine, [row for row in own if row.engine == engine.name]))
        for engine in registry.engines().values()
    }


def _merged(engine: Engine, own: object) -> tuple[EngineVersion, ...]:
    shipped = shape.shipped(registry.engines()).get(engine.name, ())
    return shape.merged(shipped, [row.entry for row in own], timezone.now().date())  # type: ignore[attr-defined]


def _reference(engine: Engine, entry: EngineVersion) -> str:
    if not entry.digest:
        return entry.image
    name = entry.image or engine.official_image
    folder, slash, last = name.rpartition("/")
    return f"{folder}{slash}{last.partition(':')[0]}@{entry.digest}"
