"""Which engines a region can run at all. Seen by who sees the runtime, kept on the row for those who don't (rule 23)."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from projects.domain import RuntimeUnreachable
from projects.engines.base import Engine
from projects.models import Region
from projects.operations import catalogue
from projects.runtimes.base import Runtime

PARALLEL = 16


def look(region: Region, runtime: Runtime) -> bool:
    """Put down what the runtime lacks: engine → version → why. True if that is news."""
    known = catalogue.everything()
    asked = [(known[name].engine, v.version) for name in known for v in known[name].entries]

    def reason(engine: Engine, version: str) -> str:
        return runtime.lacks(engine.name, version, engine.official_image, known[engine.name].image_of(version))

    try:
        # Each may wait for a registry.
        with ThreadPoolExecutor(min(len(asked), PARALLEL), thread_name_prefix="abilities") as pool:
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
