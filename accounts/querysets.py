"""Tenancy lives here: what a principal may see of the accounts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from django.db import models
from django.db.models import Count, OuterRef, Q, Subquery

if TYPE_CHECKING:
    from accounts.permissions import Principal


class OrganizationQuerySet(models.QuerySet[Any]):
    def for_principal(self, principal: Principal) -> OrganizationQuerySet:
        """The organizations the principal is a member of; of a bound token, that one only."""
        return self.filter(pk__in=principal.organization_ids())

    def for_lists(self, principal: Principal) -> OrganizationQuerySet:
        """With the caller's `role` and `member_count`, in one query."""
        from accounts.models import Membership

        role = Membership.objects.filter(organization=OuterRef("pk"), user=principal.user).values("role")
        rows = self.annotate(role=Subquery(role[:1]), member_count=Count("memberships", distinct=True))
        return rows.order_by("name", "id")  # a grouped query forgets the model's ordering

    def by_ref(self, ref: str) -> OrganizationQuerySet:
        """By slug or id."""
        import uuid

        try:
            return self.filter(Q(pk=uuid.UUID(ref)) | Q(slug=ref))
        except ValueError:
            return self.filter(slug=ref) if ref.isprintable() else self.none()  # PostgreSQL takes no NUL


class AuditEventQuerySet(models.QuerySet[Any]):
    def for_organization(self, organization_id: Any) -> AuditEventQuerySet:
        return self.filter(organization_id=organization_id)

    def for_principal(self, principal: Principal) -> AuditEventQuerySet:
        """Of the organizations where the principal may read the log."""
        from accounts.permissions import Capability

        return self.filter(organization_id__in=principal.organization_ids(Capability.AUDIT_VIEW))

    def update(self, **_: Any) -> NoReturn:
        self._refuse()

    def delete(self) -> NoReturn:
        self._refuse()

    def bulk_update(self, *_: Any, **__: Any) -> NoReturn:
        self._refuse()

    def _refuse(self) -> NoReturn:
        from accounts.models.audit import AuditEventsAreImmutable

        raise AuditEventsAreImmutable("audit events are never changed or deleted")
