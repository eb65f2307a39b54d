"""Servers and volumes that carry our label and that no row knows: reported, never touched (rule 11). Many at once mean that
the rows are not of this state of the install: then it only reads."""

from __future__ import annotations

from typing import Any

import structlog

from accounts.services import audit
from novastack.common.clock import now
from novastack.common.models import Install
from projects import domain
from projects.models import DatabaseServer, DataTombstone, Orphan, Region
from projects.models.servers import NOTED_KINDS
from projects.runtimes.base import Runtime

log = structlog.get_logger(__name__)
MAX_NEW_ORPHANS = 3


def find(region: Region, runtime: Runtime, install: Install) -> int:
    """Report servers and volumes that carry our label and that no row knows. Nothing is touched (rule 11)."""
    known = known_in(region)
    try:
        return report(region, known, inventory(runtime), install)
    except domain.NovaStackRuntimeError as error:
        return report(region, known, error, install)


def inventory(runtime: Runtime) -> list[tuple[str, domain.Handle]]:
    """Runs in a thread: no ORM here."""
    return [("server", h) for h in runtime.managed()] + [("data", h) for h in runtime.managed_data()]


def report(
    region: Region, known: set[tuple[str, str, int]], found: list[tuple[str, domain.Handle]] | Exception, install: Install
) -> int:  # fmt: skip
    """`known`: read before looking. Rows are read again: what is made or removed meanwhile is no orphan."""
    if isinstance(found, domain.NovaStackRuntimeError):
        log.warning("orphans not looked for", region=region.slug, error=str(found))
        return 0
    if isinstance(found, Exception):
        raise found
    known = known | known_in(region)
    strange = {(kind, h.name) for kind, h in found if (kind, h.server_id, h.incarnation) not in known}
    noted = Orphan.objects.filter(region=region, resolved_at=None).exclude(kind__in=NOTED_KINDS)  # no runtime's
    open_rows: dict[Any, Orphan] = {(o.kind, o.name): o for o in noted}
    new = strange - set(open_rows)
    for kind, name in sorted(new):
        Orphan.objects.update_or_create(region=region, kind=kind, name=name, defaults={"resolved_at": None})
        log.warning("orphan found", region=region.slug, kind=kind, name=name)
    gone = [row.pk for key, row in open_rows.items() if key not in strange]
    if gone:
        Orphan.objects.filter(pk__in=gone).update(resolved_at=now())
    if len(new) > MAX_NEW_ORPHANS and not install.read_only:
        make_read_only(install, f"{len(new)} unknown servers or volumes appeared at once in {region.name}.")
    return len(new)


def known_in(region: Region) -> set[tuple[str, str, int]]:
    """(kind, server, incarnation) of what may exist. Given-up data may until it was seen deleted; its server may not."""
    rows = list(DatabaseServer.objects.filter(region=region).values_list("pk", "incarnation"))
    tombs = DataTombstone.objects.filter(region=region, deleted_at=None, forgotten_at=None).values_list(
        "server_uuid", "incarnation"
    )
    known = {(kind, str(pk), number) for pk, number in rows for kind in ("server", "data")}
    return known | {("data", str(pk), number) for pk, number in tombs}


def make_read_only(install: Install, reason: str) -> None:
    """Stop every write to runtimes until an operator decides. Recorded once. What was seen under an older epoch does not
    count: an operator has decided since (`read_only off`)."""
    mine = Install.objects.filter(pk=install.pk, epoch=install.epoch, read_only=False)
    if mine.update(read_only=True, read_only_reason=reason[:500]):
        audit.record(None, "install.read_only", data={"reason": reason})
        log.error("install is read-only now", reason=reason)
    install.read_only, install.read_only_reason = True, reason
