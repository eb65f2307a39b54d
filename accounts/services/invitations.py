"""Asking people in. The link is shown once to who made it; with SMTP it is mailed as well."""

from __future__ import annotations

from datetime import timedelta

from django.conf import settings
from django.core.mail import send_mail
from django.db import transaction
from django.http import HttpRequest

from accounts.models import Invitation, Membership, Organization, Role, User
from accounts.models.tokens import hash_token
from accounts.permissions import MANAGEABLE_ROLES, Capability, Principal, require
from accounts.services.audit import record
from accounts.validation import clean_email
from novastack.common.clock import now
from novastack.common.errors import Conflict, Invalid, NotFound, PermissionDenied
from novastack.common.secrets import random_password

INVITATION_LIFE = timedelta(days=7)
MAX_OPEN_INVITATIONS = 100
SESSION_KEY = "invitation"


@transaction.atomic
def member_invite(
    *, principal: Principal, organization: Organization, email: str, role: str = Role.MEMBER, base_url: str = ""
) -> tuple[Invitation, str]:
    """Make an invitation; returns it with the clear token for the link `/invitations/<token>/`, this once.

    A new one for the same address replaces the open one. `base_url` (`https://host`) mails the link when there is SMTP.
    """
    require(principal, organization, Capability.MEMBER_MANAGE)
    email = clean_email("email", email)
    if role not in Role.values:
        raise Invalid.field("role", "invalid_choice", f"Use one of {', '.join(Role.values)}.")
    if role not in MANAGEABLE_ROLES.get(principal.role_in(organization.pk) or "", frozenset()):
        raise PermissionDenied(f"Your role here can't give the role {role}.")
    Organization.objects.select_for_update().get(pk=organization.pk)
    if Membership.objects.filter(organization=organization, user__email=email).exists():
        raise Conflict("This person is a member already.", code="already_member")
    still_open = Invitation.objects.filter(organization=organization, accepted_at=None, revoked_at=None)
    still_open.filter(email=email).update(revoked_at=now())
    if still_open.filter(expires_at__gt=now()).count() >= MAX_OPEN_INVITATIONS:
        raise Conflict(
            f"There are {MAX_OPEN_INVITATIONS} open invitations; withdraw some first.", code="quota_exceeded"
        )
    clear = random_password(40)
    invitation = Invitation.objects.create(
        organization=organization, email=email, role=role, token_hash=hash_token(clear),
        invited_by=principal.user, expires_at=now() + INVITATION_LIFE,
    )  # fmt: skip
    record(principal, "member.invited", organization=organization, target=email, data={"role": role})
    if settings.NOVASTACK_HAS_SMTP and base_url:
        _mail_on_commit(invitation, f"{base_url}/invitations/{clear}/", principal)
    return invitation, clear


def _mail_on_commit(invitation: Invitation, link: str, principal: Principal) -> None:
    name = invitation.organization.name
    body = (
        f"{principal.user.get_full_name()} invites you to {name} on NovaStack.\n\n{link}\n\n"
        "The link works for 7 days. If you don't know why you got this, ignore it."
    )
    transaction.on_commit(
        lambda: send_mail(f"NovaStack: join {name}", body, None, [invitation.email], fail_silently=True), robust=True
    )


@transaction.atomic
def invitation_revoke(*, principal: Principal, invitation: Invitation) -> None:
    """Withdraw it; the link stops working. Harmless when it is no longer open."""
    require(principal, invitation.organization_id, Capability.MEMBER_MANAGE)
    if invitation.accepted_at is None and invitation.revoked_at is None:
        invitation.revoked_at = now()
        invitation.save(update_fields=["revoked_at", "updated_at"])
        record(principal, "member.invitation_withdrawn", organization=invitation.organization, target=invitation.email)


def invitation_by_token(clear: str) -> Invitation:
    """The open invitation of a link; `NotFound` for unknown, used, withdrawn and expired ones alike."""
    invitation = (
        Invitation.objects.select_related("organization", "invited_by").filter(token_hash=hash_token(clear)).first()
        if clear.isascii()
        else None
    )
    if invitation is None or not invitation.is_open:
        raise NotFound("This invitation is not valid any more; ask for a new one.")
    return invitation


def invitation_remember(request: HttpRequest, invitation: Invitation) -> None:
    """Keep it in the browser's session until the person has signed up or in."""
    request.session[SESSION_KEY] = str(invitation.pk)


def invitation_remembered(request: HttpRequest) -> Invitation | None:
    """The still open invitation that this browser came with."""
    pk = request.session.get(SESSION_KEY) if hasattr(request, "session") else None
    invitation = Invitation.objects.select_related("organization").filter(pk=pk).first() if pk else None
    return invitation if invitation is not None and invitation.is_open else None


@transaction.atomic
def invitation_accept(*, principal: Principal, clear: str) -> Membership:
    """Join. The link was sent to one address: only the user with that address may use it (`PermissionDenied`)."""
    if principal.token is not None:
        raise PermissionDenied("Accept invitations as a person, not with an API token.")
    invitation = invitation_by_token(clear)
    locked = Invitation.objects.select_for_update().select_related("organization").get(pk=invitation.pk)
    if not locked.is_open:
        raise NotFound("This invitation is not valid any more; ask for a new one.")
    if locked.email != principal.user.email:
        raise PermissionDenied(f"This invitation is for {locked.email}; sign in with that address.")
    return accept_for(user=principal.user, invitation=locked, principal=principal)


def accept_for(*, user: User, invitation: Invitation, principal: Principal) -> Membership:
    """Rows of the acceptance; the caller holds the lock and has checked the address."""
    membership, made = Membership.objects.get_or_create(
        organization=invitation.organization, user=user, defaults={"role": invitation.role}
    )
    invitation.accepted_at = now()
    invitation.save(update_fields=["accepted_at", "updated_at"])
    principal.forget_memberships()
    if made:
        record(principal, "member.joined", organization=invitation.organization, target=user.email,
               data={"role": membership.role})  # fmt: skip
    return membership
