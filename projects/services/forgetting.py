"""Forgetting what is in a runtime that will not come back. For operators only; nothing is done to the runtime."""

from __future__ import annotations

from datetime import timedelta

from django.db import transaction

from accounts.permissions import Principal, require_operator
from accounts.services import audit
from novastack.common.clock import now
from novastack.common.errors import ActionNotAllowed
from novastack.common.health import fresh_heartbeats
from novastack.common.models import Install
from projects.models import DesiredStatus, Project, Region
from projects.operations.forgetting import Forgotten, forget_without_runtime
from projects.services.actions import check_confirm, lock_project, refuse_protected

UNREACHABLE_FOR = timedelta(minutes=15)


@transaction.atomic
def project_forget(*, principal: Principal | None, project: Project, confirm: str | None) -> Forgotten:
    """Remove the project's rows without its runtime, and report what may still exist there as orphans.

    For a project that is being deleted, when its region is disabled or has been unreachable for 15 minutes; for any
    project of a region that was declared gone. `principal=None` is the console. Raises `ActionNotAllowed`,
    `ConfirmRequired`, `ConfirmMismatch`, `DeletionProtected`.
    """
    if principal is not None:
        require_operator(principal)
    check_confirm(project, confirm)
    project = lock_project(project)
    refuse_protected(project)
    _may_forget(project)
    operation_before, slug, region = project.desired_status, project.slug, project.region
    forgotten = forget_without_runtime(project)
    audit.record(
        principal, "project.forgotten", organization=project.organization, project_id=project.pk,
        project_name=project.name, target=slug,
        data={
            "region": region.slug,
            "was_wanted": operation_before,
            "data_deleted": False,
            "may_still_exist": [f"{orphan.kind} {orphan.name}" for orphan in forgotten.orphans],
            "operations": [str(operation.pk) for operation in forgotten.operations],
            **({} if principal is not None else {"by": "manage.py forget_server"}),
        },
    )  # fmt: skip
    return forgotten


def _may_forget(project: Project) -> None:
    install = Install.load()
    if install.read_only:
        raise ActionNotAllowed("The install is read-only: decide first whose rows count. See `manage.py read_only`.")
    region = Region.objects.get(pk=project.region_id)
    if region.enabled and region.reachable:
        raise ActionNotAllowed(f"The runtime of {region.name} answers: delete the project in the usual way.")
    if region.gone_at is not None:
        return
    if project.desired_status not in {DesiredStatus.RECYCLED, DesiredStatus.ABSENT}:
        raise ActionNotAllowed(f"The project is not being deleted. Delete it first, or declare {region.name} gone.")
    if project.recycled_at is not None and project.desired_status == DesiredStatus.RECYCLED:
        raise ActionNotAllowed(f"The project is in the recycle bin. Purge it first, or declare {region.name} gone.")
    if region.enabled and not fresh_heartbeats("beat"):
        raise ActionNotAllowed(
            f"Nobody has looked whether {region.name} is back for a minute. Start the monitoring worker and beat first."
        )
    since = region.unreachable_since or region.observed_at
    if region.enabled and (since is None or now() - since < UNREACHABLE_FOR):
        minutes = int(UNREACHABLE_FOR.total_seconds() // 60)
        raise ActionNotAllowed(f"{region.name} has not been away for {minutes} minutes yet; it may come back.")


@transaction.atomic
def region_declare_gone(*, principal: Principal, region: Region, gone: bool) -> Region:
    """Declare that the region's runtime will not come back, or take that back. Nothing else happens by it, but that no
    project is made there any more. A region that answers is refused."""
    require_operator(principal)
    region = Region.objects.select_for_update(no_key=True).get(pk=region.pk)
    if (region.gone_at is not None) == gone:
        raise ActionNotAllowed("It is declared gone already." if gone else "It was not declared gone.")
    if gone and region.enabled and region.reachable:
        raise ActionNotAllowed("Its runtime answers. Disable the region first if that is wrong.")
    region.gone_at = now() if gone else None
    region.save(update_fields=["gone_at", "updated_at"])
    audit.record(principal, "region.declared_gone" if gone else "region.not_gone", target=region.slug)
    return region
