"""Whether a region works as it was set up: looked at by a worker, kept on its row for those who don't see runtimes."""

from __future__ import annotations

import socket
from typing import Any
from uuid import UUID

from django.db.models import F

from novastack.common.clock import now
from projects import domain
from projects.models import Region
from projects.operations import abilities, fanout, status, wiring

CHECK_SECONDS = 14.0  # above the time limit of one call, so that its own reason is heard
NO_RUNTIME = "No runtime is chosen: nothing can be made there."
OTHER_ENGINE = "Another engine answers than the one that the region's servers are on."


def check(region_id: UUID) -> None:
    """Ask the region's runtime who it is and what it lacks, and put that down. Nothing there is changed."""
    region = Region.objects.filter(pk=region_id).first()
    if region is None:
        return
    asked_at = region.check_wanted_at
    found = _look(region)
    Region.objects.filter(pk=region.pk).update(checked={"at": now().isoformat(), **found})
    # Asked again meanwhile, perhaps after a change: that look is still to come.
    Region.objects.filter(pk=region.pk, check_wanted_at=asked_at).update(check_wanted_at=None)


def _look(region: Region) -> dict[str, Any]:
    if not region.runtime:
        return {"ok": False, "reason": NO_RUNTIME, "version": "", "problems": []}
    try:
        runtime = wiring.runtime_of(region)
        facts = fanout.ask_one("check", region, runtime.facts, seconds=CHECK_SECONDS, patient=True)
    except KeyError:
        reason = f"There is no runtime “{region.runtime}” in this release."
        return {"ok": False, "reason": reason, "version": "", "problems": []}
    except domain.NovaStackRuntimeError as error:
        status.set_reachable(region, False, str(error))
        return {"ok": False, "reason": str(error), "version": "", "problems": []}
    problems = list(facts.problems)
    if facts.identity and facts.identity != region.engine_identity:
        if region.engine_identity and region.servers.exists():
            # Whether the region is away is the reconciler's to say, who also asks for the servers themselves.
            return {"ok": False, "reason": OTHER_ENGINE, "version": facts.version, "problems": problems}
        region.engine_identity = facts.identity
        Region.objects.filter(pk=region.pk).update(engine_identity=facts.identity)
    problems += [
        f"{other.name} gives out ports {other.port_start}–{other.port_end} on the same machine"
        for other in region.sharing_ports()
    ]
    problems += _names(region)
    status.set_reachable(region, True, "")
    abilities.look(region, runtime)
    return {"ok": True, "reason": "", "version": facts.version, "problems": problems}


def _names(region: Region) -> list[str]:
    try:
        socket.getaddrinfo(region.control_host, None)
    except OSError:
        return [f"workers do not know the name {region.control_host}, at which they would reach its databases"]
    return []


def want(region: Region) -> None:
    """The row says that somebody waits for a look."""
    region.check_wanted_at = now()
    Region.objects.filter(pk=region.pk).update(check_wanted_at=region.check_wanted_at, updated_at=F("updated_at"))
