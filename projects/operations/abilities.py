"""Which engines a region can run at all. Seen by who sees the runtime, kept on the row for those who don't (rule 23)."""

from __future__ import annotations

from projects import registry
from projects.models import Region
from projects.runtimes.base import Runtime


def look(region: Region, runtime: Runtime) -> bool:
    """Put down what the runtime lacks: engine → version → why. True if that is news."""
    found: dict[str, dict[str, str]] = {}
    for engine in registry.engines().values():
        for version in engine.versions:
            if reason := runtime.lacks(engine.name, version.version, engine.official_image):
                found.setdefault(engine.name, {})[version.version] = reason
    if found == region.lacks:
        return False
    region.lacks = found
    Region.objects.filter(pk=region.pk).update(lacks=found)
    return True
