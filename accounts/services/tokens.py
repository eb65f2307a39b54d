"""API tokens: made once in clear, kept as hashes."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from django.db import transaction
from django.db.models import Q, QuerySet

from accounts.models import ApiToken, Invitation, Organization, Scope, User
from accounts.models.tokens import PREFIX_LENGTH, REVOKED_BY_RESTORE, hash_token
from accounts.permissions import Capability, Principal, require, require_scope
from accounts.services.audit import record
from accounts.validation import clean_line
from novastack.common.clock import now
from novastack.common.errors import Conflict, Invalid, NotFound, PermissionDenied

MAX_TOKENS = 100
RESTORE_SHOWN = timedelta(days=30)


@transaction.atomic
def token_create(
    *,
    principal: Principal,
    name: str,
    scopes: Sequence[str],
    organization: Organization | None = None,
    expires_at: datetime | None = None,
) -> tuple[ApiToken, str]:
    """Make a token; returns it with its clear value, this once.

    A token can make only tokens with no more right than itself: needs `admin`, no scope it lacks, its organization,
    no later end. `Invalid` names the field.
    """
    require_scope(principal, Scope.ADMIN)
    name = clean_line("name", name, max_length=80)
    wanted = [scope for scope in Scope.values if scope in scopes]
    if not wanted or set(scopes) - set(wanted):
        raise Invalid.field("scopes", "invalid_choice", f"Name at least one of {', '.join(Scope.values)}.")
    if expires_at is not None and expires_at <= now():
        raise Invalid.field("expires_at", "past", "Choose a time in the future.")
    parent = principal.token
    if parent is not None:
        if set(wanted) - set(parent.scopes):
            raise PermissionDenied("A token can't make one with scopes that it lacks itself.")
        if parent.organization_id and (organization is None or organization.pk != parent.organization_id):
            raise PermissionDenied("This token is limited to one organization; so is what it makes.")
        if parent.expires_at and (expires_at is None or expires_at > parent.expires_at):
            raise PermissionDenied("A token can't make one that outlives it.")
    if organization is not None:
        require(principal, organization, Capability.TOKEN_MANAGE)
    User.objects.select_for_update().get(pk=principal.user.pk)
    if ApiToken.objects.filter(user=principal.user, revoked_at=None).count() >= MAX_TOKENS:
        raise Conflict(f"You have {MAX_TOKENS} tokens; revoke some first.", code="quota_exceeded")
    clear = ApiToken.new_clear()
    token = ApiToken.objects.create(
        user=principal.user, organization=organization, name=name, token_hash=hash_token(clear),
        prefix=clear[:PREFIX_LENGTH], scopes=wanted, expires_at=expires_at,
    )  # fmt: skip
    record(principal, "token.created", organization=organization, target=token.prefix,
           data={"name": name, "scopes": wanted})  # fmt: skip
    return token, clear


@transaction.atomic
def token_revoke(*, principal: Principal, token: ApiToken) -> None:
    """It stops working at once. Only one's own; harmless when done twice."""
    if token.user_id != principal.user.pk:
        raise NotFound
    if principal.token is None or principal.token.pk != token.pk:  # a token may always end itself
        require_scope(principal, Scope.ADMIN)
        if principal.token is not None and principal.token.organization_id not in (None, token.organization_id):
            raise NotFound
    locked = ApiToken.objects.select_for_update(of=("self",)).select_related("organization").get(pk=token.pk)
    if locked.revoked_at is None:
        locked.revoked_at = now()
        locked.save(update_fields=["revoked_at", "updated_at"])
        record(principal, "token.revoked", organization=locked.organization, target=locked.prefix,
               data={"name": locked.name})  # fmt: skip


def revoke_bound_tokens(*, user: User, organization: Organization) -> None:
    """When a membership ends, so do the tokens that were for it."""
    ApiToken.objects.filter(user=user, organization=organization, revoked_at=None).update(revoked_at=now())


def tokens_for_list(user: User) -> QuerySet[ApiToken]:
    """The user's tokens that work; and, for 30 days, those that a restore of the install ended, so that people see why."""
    shown = Q(revoked_at=None) | Q(revoked_reason=REVOKED_BY_RESTORE, revoked_at__gt=now() - RESTORE_SHOWN)
    return ApiToken.objects.filter(shown, user=user).select_related("organization")


@transaction.atomic
def revoke_after_restore() -> tuple[int, int]:
    """End all API tokens and open invitations: which of them were revoked since the backup was made, it can't know.

    Returns how many of each.
    """
    moment = now()
    tokens = ApiToken.objects.filter(revoked_at=None).update(revoked_at=moment, revoked_reason=REVOKED_BY_RESTORE)
    invitations = Invitation.objects.filter(accepted_at=None, revoked_at=None).update(revoked_at=moment)
    return tokens, invitations
