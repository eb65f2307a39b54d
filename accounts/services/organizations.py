"""Organizations and who belongs to them. The last owner stays, also under concurrent calls."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any
from uuid import UUID

from django.db import IntegrityError, transaction
from django.db.models import ProtectedError
from django.http import HttpRequest

from accounts.models import Membership, Organization, Role, User
from accounts.permissions import MANAGEABLE_ROLES, Capability, Principal, require, require_scope
from accounts.services.audit import record
from accounts.validation import clean_line
from novastack.common.errors import Conflict, Invalid, NameTaken, NotFound, PermissionDenied
from novastack.common.ids import slug_from

# Other apps add to it in their ready(): each gets the locked organization and raises `Conflict` when it is in the way.
organization_delete_guards: list[Callable[[Organization], None]] = []

SESSION_KEY = "organization"


def organization_for(
    principal: Principal, ref: str | UUID | None = None, *, capability: Capability, session: Any = None
) -> Organization:
    """The organization a call means: `ref` (slug or id), else the token's, the browser's chosen one, the user's default.

    A foreign or unknown `ref`: `NotFound` naming the field `organization`. Without `capability` there: `PermissionDenied`.
    """
    visible = Organization.objects.for_principal(principal)
    if ref:
        organization = visible.by_ref(str(ref)).first()
        if organization is None:
            raise NotFound.field("organization", "There is no such organization here.")
    else:
        organization = default_organization(principal, visible, session)
        if organization is None:
            raise Invalid.field("organization", "required", "You belong to no organization; make one, or name one.")
    require(principal, organization, capability)
    return organization


def default_organization(principal: Principal, visible: Any, session: Any) -> Organization | None:
    return pick_organization(principal, list(visible.order_by("created_at", "id")), session)


def pick_organization(principal: Principal, visible: list[Organization], session: Any) -> Organization | None:
    """Of these, oldest first: the token's, the browser's chosen one, the user's default, the oldest; None of none."""
    found = {organization.pk: organization for organization in visible}
    if principal.token is not None and principal.token.organization_id:
        return found.get(principal.token.organization_id)
    chosen = session.get(SESSION_KEY) if session is not None else None
    for candidate in (_uuid(chosen), principal.user.default_organization_id):
        if candidate in found:
            return found[candidate]
    return next(iter(found.values()), None)


def _uuid(value: Any) -> UUID | None:
    try:
        return UUID(str(value)) if value else None
    except ValueError:
        return None


def make_organization(*, name: str, owner: User, personal: bool = False, slug: str = "") -> Organization:
    """Rows only: the organization with its owner. A slug made from the name gets a suffix when it is taken."""
    wanted = slug or slug_from(name, fallback="organization")
    candidates = [wanted] if slug else [wanted, *(f"{wanted}-{secrets.token_hex(3)}" for _ in range(5))]
    for candidate in candidates:
        try:
            with transaction.atomic():
                organization = Organization.objects.create(name=name, slug=candidate, personal=personal)
        except IntegrityError:
            continue
        Membership.objects.create(organization=organization, user=owner, role=Role.OWNER)
        return organization
    raise NameTaken(f"The slug {wanted} is taken; choose another one.")


@transaction.atomic
def organization_create(*, principal: Principal, name: str, slug: str = "") -> Organization:
    """A new organization; its maker is the owner. `NameTaken` when the wished slug is taken."""
    require_scope(principal, "admin")
    if principal.token is not None and principal.token.organization_id:
        raise PermissionDenied("This token is limited to one organization.")
    name = clean_line("name", name, max_length=80)
    if slug and slug != slug_from(slug, fallback="", max_length=63):
        raise Invalid.field("slug", "invalid", "Use lower-case letters, digits and single hyphens.")
    organization = make_organization(name=name, owner=principal.user, slug=slug)
    principal.forget_memberships()
    record(principal, "organization.created", organization=organization, target=organization.slug)
    return organization


@transaction.atomic
def organization_update(*, principal: Principal, organization: Organization, name: str) -> Organization:
    """Rename it. The slug stays."""
    require(principal, organization, Capability.ORG_CHANGE)
    before = organization.name
    organization.name = clean_line("name", name, max_length=80)
    organization.save(update_fields=["name", "updated_at"])
    record(
        principal, "organization.renamed", organization=organization, target=organization.slug,
        data={"before": before, "after": organization.name},
    )  # fmt: skip
    return organization


@transaction.atomic
def organization_delete(*, principal: Principal, organization: Organization) -> None:
    """`Conflict` while it has projects (also recycled ones) or backups, or when it is the personal one."""
    require(principal, organization, Capability.ORG_DELETE)
    locked = Organization.objects.select_for_update().get(pk=organization.pk)
    if locked.personal:
        raise Conflict("This is a personal organization; it stays as long as the account.")
    for guard in organization_delete_guards:
        guard(locked)
    record(principal, "organization.deleted", organization=locked, target=locked.slug)
    try:
        locked.delete()
    except ProtectedError as error:
        raise Conflict("It still has projects, perhaps in the recycle bin; remove them first.") from error
    principal.forget_memberships()


def organization_select(
    *, principal: Principal, organization: Organization, request: HttpRequest | None = None
) -> None:
    """The switcher: from now on this organization is meant, here and by default."""
    require(principal, organization, Capability.ORG_VIEW)
    if request is not None:
        request.session[SESSION_KEY] = str(organization.pk)
    if principal.user.default_organization_id != organization.pk:
        principal.user.default_organization = organization
        principal.user.save(update_fields=["default_organization", "updated_at"])


def lock_memberships(organization: Organization) -> dict[UUID, Membership]:
    """All memberships, by user id, under a lock on the organization: two owners can't demote each other at once."""
    Organization.objects.select_for_update().get(pk=organization.pk)
    rows = Membership.objects.filter(organization=organization).select_related("user")
    return {membership.user_id: membership for membership in rows}


def _require_manageable(actor_role: str, role: str) -> None:
    if role not in MANAGEABLE_ROLES.get(actor_role, frozenset()):
        raise PermissionDenied(f"Your role here ({actor_role}) can't give or take the role {role}.")


def _keep_an_owner(members: dict[UUID, Membership], leaving: Membership) -> None:
    if leaving.role == Role.OWNER and sum(m.role == Role.OWNER for m in members.values()) == 1:
        raise Conflict("This is the last owner; make somebody else an owner first.", code="last_owner")


@transaction.atomic
def member_change_role(*, principal: Principal, organization: Organization, user_id: UUID, role: str) -> Membership:
    """`NotFound` for no member, `Conflict` (`last_owner`) when nobody would be left to own it."""
    require(principal, organization, Capability.MEMBER_MANAGE)
    if role not in Role.values:
        raise Invalid.field("role", "invalid_choice", f"Use one of {', '.join(Role.values)}.")
    members = lock_memberships(organization)
    membership = members.get(user_id)
    if membership is None:
        raise NotFound("There is no such member.")
    actor_role = members[principal.user.pk].role if principal.user.pk in members else ""
    _require_manageable(actor_role, membership.role)
    _require_manageable(actor_role, role)
    if membership.role == role:
        return membership
    _keep_an_owner(members, membership)
    before, membership.role = membership.role, role
    membership.save(update_fields=["role", "updated_at"])
    principal.forget_memberships()
    record(
        principal, "member.role_changed", organization=organization, target=membership.user.email,
        data={"before": before, "after": role},
    )  # fmt: skip
    return membership


@transaction.atomic
def member_remove(*, principal: Principal, organization: Organization, user_id: UUID) -> None:
    """Remove a member, or leave (everybody may). The last owner can't; a personal organization's owner can't either.

    Tokens of theirs that are bound to this organization end too.
    """
    leaving = user_id == principal.user.pk
    require(principal, organization, Capability.ORG_VIEW if leaving else Capability.MEMBER_MANAGE)
    if leaving:
        require_scope(principal, "admin")
    members = lock_memberships(organization)
    membership = members.get(user_id)
    if membership is None:
        raise NotFound("There is no such member.")
    if not leaving:
        actor_role = members[principal.user.pk].role if principal.user.pk in members else ""
        _require_manageable(actor_role, membership.role)
    _keep_an_owner(members, membership)
    from accounts.services.tokens import revoke_bound_tokens

    revoke_bound_tokens(user=membership.user, organization=organization)
    if membership.user.default_organization_id == organization.pk:
        User.objects.filter(pk=membership.user_id).update(default_organization=None)
    record(principal, "member.left" if leaving else "member.removed", organization=organization,
           target=membership.user.email, data={"role": membership.role})  # fmt: skip
    membership.delete()
    principal.forget_memberships()
