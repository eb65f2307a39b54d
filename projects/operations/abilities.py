"""Which engines a region can run at all. Seen by who sees the runtime, kept on the row for those who don't (rule 23)."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from projects import registry
from projects.domain import RuntimeUnreachable
from projects.engines.base import Engine
from projects.models import Region
from projects.runtimes.base import Runtime


def look(region: Region, runtime: Runtime) -> bool:
    """Put down what the runtime lacks: engine → version → why. True if that is news."""
    asked = [(engine, v.version) for engine in registry.engines().values() for v in engine.versions]

    def reason(engine: Engine, version: str) -> str:
        override = registry.image_override(engine.name, version)
        return runtime.lacks(engine.name, version, engine.official_image, override)

    try:
        with ThreadPoolExecutor(len(asked), thread_name_prefix="abilities") as pool:  # each may wait for a registry
            reasons = list(pool.map(lambda pair: reason(*pair), asked))
    except RuntimeUnreachable:
        return False  # nobody knows: what was seen before stays
    found: dict[str, dict[str, str]] = {}
    for (engine, version), why in zip(asked, reasons, strict=True):
        if why:
            found.setdefault(engine.name, {})[version] = why
    if found == region.lacks:
        return False
    region.lacks = found
    Region.objects.filter(pk=region.pk).update(lacks=found)
    return True
