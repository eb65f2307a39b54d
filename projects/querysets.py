"""Tenancy lives here: views and API fetch through `for_principal` and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.db import models

from novastack.common.errors import NotFound

if TYPE_CHECKING:
    from accounts.permissions import Principal


class ProjectQuerySet(models.QuerySet[Any]):
    def for_principal(self, principal: Principal) -> ProjectQuerySet:
        """What the principal may see: the projects of their organizations (of the token's, if it is bound to one)."""
        return self.filter(organization_id__in=principal.organization_ids())

    def live(self) -> ProjectQuerySet:
        """Not in the recycle bin."""
        return self.filter(recycled_at=None)

    def in_bin(self) -> ProjectQuerySet:
        return self.filter(recycled_at__isnull=False)

    def get_locked(self, pk: Any) -> Any:
        """The project's row, locked and fresh, with its organization, plan and region; `NotFound` when it is gone. In a
        transaction. Two statements: who has waited for the lock sees the row as it became, but of other tables what they
        were when it began to wait, so that a join loses a project whose plan or region was changed meanwhile."""
        locked = self.select_for_update(of=("self",), no_key=True).filter(pk=pk)
        if not list(locked.order_by().values_list("pk")):
            raise NotFound
        return self.select_related("organization", "plan", "region").get(pk=pk)

    def for_lists(self) -> ProjectQuerySet:
        """With all that a list shows: a constant number of queries."""
        return self.select_related("organization", "region", "plan", "created_by", "endpoint")


class EndpointQuerySet(models.QuerySet[Any]):
    def used_ports(self, region_id: Any) -> set[int]:
        """Of clients' addresses, of pools, and of servers that have none: standbys, and the one that a project moves to or came
        from. In one statement: a standby that is claimed at this moment is in one of the two."""
        from projects.models import DatabaseServer, ServerKind

        kinds = [ServerKind.STANDBY, ServerKind.POOL, ServerKind.SCRATCH]
        nobodys = models.Q(kind__in=kinds) | models.Q(kind=ServerKind.DEDICATED, project_uuid=None)
        standbys = DatabaseServer.objects.order_by().filter(nobodys, region_id=region_id, port__gt=0)
        mine = self.order_by().filter(region_id=region_id).values_list("port", flat=True)
        return set(mine.union(standbys.values_list("port", flat=True)))


class OperationQuerySet(models.QuerySet[Any]):
    def for_principal(self, principal: Principal) -> OperationQuerySet:
        return self.filter(organization_id__in=principal.organization_ids())

    def live(self) -> OperationQuerySet:
        return self.filter(state__in=["queued", "running"])

    def holding(self) -> OperationQuerySet:
        """Without those that only name a project and hold something else of it, such as a backup: they keep nobody from
        working on the project."""
        from projects.models import OperationLock

        locks = OperationLock.objects.filter(operation=models.OuterRef("pk"))
        mine = locks.filter(subject__startswith="project:")
        return self.exclude(models.Exists(locks), ~models.Exists(mine), project_uuid__isnull=False)

    def with_steps(self) -> OperationQuerySet:
        return self.prefetch_related("steps")
