"""What the doctor may do: adopt, apply, hint, set aside. Each under the project's lock, after a fresh look, and on record.

Data is removed in one place only, and only what was named: a volume of this install that no row knows.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from uuid import UUID

from django.core.cache import cache
from django.db import transaction

from accounts.permissions import Principal, require_operator
from accounts.services import audit
from novastack.common.errors import ActionNotAllowed, ConfirmMismatch, ConfirmRequired, NotFound, Problem
from novastack.common.models import Install
from projects import domain, tasks
from projects.models import DatabaseServer, Operation, Orphan, Project, Region
from projects.operations import doctor, locks, orphans, wiring
from projects.operations.doctor_findings import Finding, Report
from projects.operations.queue import operation_create, send_hint


def examine() -> Report:
    """Look now, from here; also what the operators' page shows from then on."""
    report = doctor.examine()
    doctor_remember(report)
    return report


def doctor_remember(report: Report) -> None:
    cache.set(doctor.CACHE_KEY, report.as_json(), doctor.KEPT_SECONDS)


def last_report() -> dict[str, Any] | None:
    """The last look of anybody, as `Report.as_json`; None if there was none lately."""
    found: dict[str, Any] | None = cache.get(doctor.CACHE_KEY)
    return found


def look_again(*, principal: Principal) -> None:
    """Have a worker look, which sees runtimes where the web does not (rule 23)."""
    require_operator(principal)
    try:
        tasks.examine.apply_async(expires=60, retry=False)
    except Exception as error:  # every broker has errors of its own
        raise ActionNotAllowed("No worker can be asked now.") from error


def fix(report: Report) -> list[tuple[Finding, str]]:
    """Do what each finding says can be done; (finding, what was done or why not). Never raises for one of them."""
    install = Install.load()
    strange = {f.region for f in report.findings if f.code == "region.epoch"}
    done = []
    for finding in report.findings:
        if not finding.fix:
            continue
        if install.read_only or finding.region in strange:
            done.append((finding, "not done: the install is read-only, or the region is another state's"))
            continue
        try:
            done.append((finding, _FIXES[finding.fix](finding)))
        except (Problem, domain.NovaStackRuntimeError, LookupError) as error:
            done.append((finding, f"not done: {getattr(error, 'detail', '') or error}"))
    return done


def _free(server_id: UUID) -> DatabaseServer:
    """The server's row, locked, with its project locked before it (project → subject → row). In a transaction. Raises
    `ActionNotAllowed` when an operation works on the project."""
    owner = DatabaseServer.objects.values_list("project_uuid", flat=True).get(pk=server_id)
    if owner is not None:
        list(Project.objects.select_for_update(of=("self",), no_key=True).filter(pk=owner).values_list("pk"))
        subject = locks.subject_of("project", owner)
        locks.lock_subject(subject)
        if locks.conflicting(subject, "exclusive") or locks.queued(subject):
            raise ActionNotAllowed("an operation works on it; look again when it has ended")
    return DatabaseServer.objects.select_for_update(of=("self",), no_key=True).get(pk=server_id)


def _record(server: DatabaseServer, action: str, **data: Any) -> None:
    project = Project.objects.filter(pk=server.project_uuid).first() if server.project_uuid else None
    audit.record(
        None, action, organization_id=project.organization_id if project else None, project_id=server.project_uuid,
        project_name=project.name if project else "", target=server.handle.name, data={"by": "manage.py doctor", **data},
    )  # fmt: skip


def _adopt(finding: Finding) -> str:
    """Record the container or process that is really behind the server's name."""
    server_id = UUID(finding.key)
    before = DatabaseServer.objects.select_related("region").get(pk=server_id)
    seen = wiring.runtime_of(before.region).describe([before.handle]).get(before.handle)
    if seen is None:
        return "not done: it is gone again"
    with transaction.atomic():
        server = _free(server_id)
        if (server.runtime_ref, server.incarnation) != (before.runtime_ref, before.incarnation):
            return "not done: somebody has recorded another one since"
        server.runtime_ref = seen.ref
        server.save(update_fields=["runtime_ref", "updated_at"])
        _record(server, "server.adopted", ref_before=before.runtime_ref, ref=seen.ref)
    return f"recorded {seen.ref[:24]}"


def _limits(finding: Finding) -> str:
    """The project's limits on its server, by an operation as if they had been changed."""
    with transaction.atomic():
        owner = DatabaseServer.objects.get(pk=finding.key).project_uuid
        if owner is None:
            return "not done: it is no project's"
        project = Project.objects.get(pk=owner)
        operation = operation_create(project=project, kind="resize", created_by_label="doctor")
        audit.record(
            None, "project.updated", organization_id=project.organization_id, project_id=project.pk,
            project_name=project.name, data={"fields": ["limits"], "by": "manage.py doctor"},
        )  # fmt: skip
    return f"operation {operation.pk}"


def _hint(finding: Finding) -> str:
    operation_id = UUID(finding.key)
    if not doctor.stuck().filter(pk=operation_id).exists():
        return "not needed: somebody has taken it"
    Operation.objects.filter(pk=operation_id).update(hinted_at=None)
    send_hint(operation_id)
    return "workers were told again"


def _quarantine(finding: Finding) -> str:
    """Nothing is done with it by itself until an operator sets `reconcile` again."""
    before = DatabaseServer.objects.select_related("region").get(pk=finding.key)
    if finding.code == "missing.data" and wiring.runtime_of(before.region).data_exists(before.handle):
        return "not needed: its data is there"
    with transaction.atomic():
        server = _free(before.pk)
        if not server.reconcile:
            return "set aside already"
        server.reconcile = False
        server.save(update_fields=["reconcile", "updated_at"])
        _record(server, "server.quarantined")
    return "set aside: nothing is done with it by itself"


_FIXES = {"adopt": _adopt, "limits": _limits, "hint": _hint, "quarantine": _quarantine}


def orphan_data_find(name: str) -> tuple[Region, domain.Handle]:
    """The volume of that name, if it is one that nobody knows, by a look of now. Raises `NotFound`, `ActionNotAllowed`."""
    if Install.load().read_only:
        raise ActionNotAllowed("The install is read-only: decide first whose rows count. See `manage.py read_only`.")
    found = []
    for region in Region.objects.filter(enabled=True).exclude(runtime=""):
        try:
            handle = _orphan_in(region, name)
        except domain.NovaStackRuntimeError:
            continue
        if handle is not None:
            found.append((region, handle))
    if not found:
        raise NotFound(f"No region that answers has data of this install named {name}.")
    if len(found) > 1:
        raise ActionNotAllowed(f"Several regions have it: {', '.join(r.slug for r, _ in found)}. Remove it by hand.")
    return found[0]


def _orphan_in(region: Region, name: str) -> domain.Handle | None:
    runtime = wiring.runtime_of(region)
    known = orphans.known_in(region)
    handle = next((h for h in runtime.managed_data() if h.name == name), None)
    if handle is None:
        return None
    if runtime.read_epoch() != str(Install.load().epoch):
        raise ActionNotAllowed(
            f"{region.name} was last used by another state of this install: its data may be known there."
        )
    known |= orphans.known_in(region)
    # By the server's id, whatever the incarnation: of a server that lives nothing is an orphan to remove.
    if any(server_id == handle.server_id for _, server_id, _ in known) or _has_rows(handle):
        raise ActionNotAllowed("A row knows this data: it is no orphan. Deleting and purging projects removes theirs.")
    if any(h.name == name for h in runtime.managed()):
        raise ActionNotAllowed("A server of this name exists: look whose it is, stop it and remove it by hand first.")
    return replace(handle, ref="")


def _has_rows(handle: domain.Handle) -> bool:
    return DatabaseServer.objects.filter(pk=handle.server_id).exists()


def orphan_data_remove(*, name: str, confirm: str | None) -> None:
    """Delete one volume that nobody knows. `confirm` is its name, typed again. Raises as `orphan_data_find`, and
    `ConfirmRequired`, `ConfirmMismatch`; what the runtime refuses as `NovaStackRuntimeError`."""
    if not confirm:
        raise ConfirmRequired(f"Type the name again: {name}")
    if confirm != name:
        raise ConfirmMismatch("That is another name.")
    region, handle = orphan_data_find(name)
    runtime = wiring.runtime_of(region)
    runtime.destroy(handle, delete_data=True)
    if runtime.data_exists(handle):
        raise domain.NovaStackRuntimeError("the data is still there")
    with transaction.atomic():
        audit.record(None, "data.deleted", target=name, data={"reason": "orphan", "by": "manage.py doctor"})
        Orphan.objects.filter(region=region, kind="data", name=name).delete()
