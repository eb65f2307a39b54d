"""Which engines a region can run at all. Seen by who sees the runtime, kept on the row for those who don't (rule 23)."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from projects.domain import RuntimeUnreachable
from projects.engines.base import Engine
from projects.models import Region
from projects.operations import catalogue
from projects.runtimes.base import Runtime

PARALLEL = 16


@dataclass(frozen=True, slots=True)
class Asked:
    """One version that a runtime is asked about."""

    engine: Engine
    version: str
    image: str


def asked() -> list[Asked]:
    known = catalogue.everything()
    return [
        Asked(known[name].engine, v.version, known[name].image_of(v.version))
        for name in known
        for v in known[name].entries
    ]


def reasons(runtime: Runtime, what: list[Asked]) -> dict[str, dict[str, str]]:
    """Engine → version → why it can't run there; under `tools`, why it can't be dumped and restored there. Runs in any
    thread: no ORM here. Raises `RuntimeUnreachable`."""

    def reason(one: Asked) -> str:
        return runtime.lacks(one.engine.name, one.version, one.engine.official_image, one.image)

    # Each may wait for a registry.
    with ThreadPoolExecutor(max(1, min(len(what), PARALLEL)), thread_name_prefix="abilities") as pool:
        found: dict[str, dict[str, str]] = {}
        for one, why in zip(what, pool.map(reason, what), strict=True):
            if why:
                found.setdefault(one.engine.name, {})[one.version] = why
        for engine in {one.engine.name: one.engine for one in what}.values():
            if engine.tool_programs and (why := runtime.lacks_programs(engine.tool_programs)):
                found.setdefault(engine.name, {})["tools"] = why
        return found


def keep(region: Region, found: dict[str, dict[str, str]]) -> bool:
    """True if that is news."""
    if found == region.lacks:
        return False
    region.lacks = found
    Region.objects.filter(pk=region.pk).update(lacks=found)
    return True


def look(region: Region, runtime: Runtime) -> bool:
    """Put down what the runtime lacks. True if that is news."""
    try:
        return keep(region, reasons(runtime, asked()))
    except RuntimeUnreachable:
        return False  # nobody knows: what was seen before stays
