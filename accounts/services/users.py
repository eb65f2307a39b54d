"""People: registering, the first password, changing it, the profile."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from allauth.account.models import EmailAddress
from allauth.usersessions.models import UserSession
from django.conf import settings
from django.contrib.auth import password_validation
from django.contrib.sessions.models import Session
from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction
from django.http import HttpRequest

from accounts.models import Invitation, Membership, Organization, RefreshFamily, Theme, User
from accounts.models.users import time_zone_names
from accounts.permissions import Principal, require_scope
from accounts.services.audit import record
from accounts.services.invitations import accept_for, invitation_by_token
from accounts.services.organizations import make_organization
from accounts.validation import clean_email, clean_line
from novastack.common.clock import now
from novastack.common.errors import FieldProblem, Invalid, PermissionDenied

MAX_PASSWORD = 256


def registration_open(invitation: Invitation | None = None) -> bool:
    """Whether a stranger may register: `open` always, `invite` with an open invitation, `closed` never."""
    mode = settings.NOVASTACK_REGISTRATION
    return mode == "open" or (mode == "invite" and invitation is not None and invitation.is_open)


def check_password_strength(field: str, password: object, user: User | None = None) -> str:
    """The password, if the validators of the settings accept it; else `Invalid` naming the field, with each reason."""
    if not isinstance(password, str):
        raise Invalid.field(field, "invalid", "Send text.")
    if "\0" in password or any("\ud800" <= c <= "\udfff" for c in password):
        raise Invalid.field(field, "invalid", "This holds characters that can't be stored.")
    if len(password) > MAX_PASSWORD:
        raise Invalid.field(field, "max_length", f"Use at most {MAX_PASSWORD} characters.")
    try:
        password_validation.validate_password(password, user)
    except ValidationError as error:
        problems = [FieldProblem(field, str(e.code or "invalid"), str(e.messages[0])) for e in error.error_list]
        raise Invalid(problems[0].detail, errors=problems) from error
    return password


def personal_organization_ensure(*, user: User, name: str = "") -> Organization:
    """The user's own organization; made when there is none. It becomes the default one if none is set."""
    found = Organization.objects.filter(personal=True, memberships__user=user, memberships__role="owner").first()
    if found is None:
        wanted = name or user.full_name or user.email.split("@")[0]
        found = make_organization(name=wanted[:80], owner=user, personal=True)
    if user.default_organization_id is None:
        user.default_organization = found
        user.save(update_fields=["default_organization", "updated_at"])
    return found


def membership_ensure(user: User) -> None:
    """Nobody signs in to nothing: who belongs to no organization (`createsuperuser`, or left all) gets a personal one."""
    if not Membership.objects.filter(user=user).exists():
        personal_organization_ensure(user=user)


@transaction.atomic
def user_create(
    *,
    email: str,
    password: str | None,
    full_name: str = "",
    is_staff: bool = False,
    is_superuser: bool = False,
    organization_name: str = "",
    principal: Principal | None = None,
) -> User:
    """Make a person whose address counts as verified: the first admin, or one made by an operator (rule 40).

    The password's strength is the caller's business. `Invalid` (`email_taken`) for a known address.
    """
    email = clean_email("email", email)
    full_name = clean_line("full_name", full_name, max_length=120, required=False)
    user = _insert(email=email, password=password, full_name=full_name, is_staff=is_staff, is_superuser=is_superuser)
    EmailAddress.objects.create(user=user, email=email, primary=True, verified=True)
    organization = personal_organization_ensure(user=user, name=organization_name)
    record(principal, "user.created", organization=organization, target=email, data={"operator": is_staff})
    return user


def _insert(*, email: str, password: str | None, **fields: Any) -> User:
    try:
        with transaction.atomic():
            return User.objects.create_user(email, password, **fields)
    except IntegrityError as error:
        raise Invalid("This address is taken.", code="email_taken",
                      errors=[FieldProblem("email", "email_taken", "This address is taken.")]) from error  # fmt: skip


@transaction.atomic
def user_register(
    *,
    email: str,
    password: str,
    full_name: str = "",
    organization_name: str = "",
    invitation: str = "",
    request: HttpRequest | None = None,
) -> tuple[User, Organization]:
    """A stranger registers: user, personal organization, owner's membership; an invitation's organization besides.

    `PermissionDenied` (`registration_closed`) by `NOVASTACK_REGISTRATION`; `Invalid` (`email_taken`) for a known address.
    The confirmation mail, when verification is on, is the caller's next step (`EmailAddress.send_confirmation`).
    """
    found = invitation_by_token(invitation) if invitation else None
    if not registration_open(found):
        raise PermissionDenied("Registration is by invitation here; ask an administrator.", code="registration_closed")
    email = clean_email("email", email)
    if settings.NOVASTACK_REGISTRATION == "invite" and found is not None and found.email != email:
        raise Invalid.field("email", "invitation_mismatch", "The invitation is for another address.")
    full_name = clean_line("full_name", full_name, max_length=120, required=False)
    organization_name = clean_line("organization_name", organization_name, max_length=80, required=False)
    check_password_strength("password", password, User(email=email, full_name=full_name))
    user = _insert(email=email, password=password, full_name=full_name)
    EmailAddress.objects.create(user=user, email=email, primary=True, verified=False)
    return user, welcome(user=user, organization_name=organization_name, invitation=found, request=request)


def welcome(
    *, user: User, organization_name: str = "", invitation: Invitation | None = None, request: HttpRequest | None = None
) -> Organization:
    """What every registration gets besides the user row; called by the page's signup as well."""
    from accounts.permissions import client_ip

    organization = personal_organization_ensure(user=user, name=organization_name)
    principal = Principal(
        user=user, ip=client_ip(request) if request else None, request_id=getattr(request, "request_id", "")
    )
    record(principal, "user.registered", organization=organization, target=user.email)
    if invitation is not None and invitation.email == user.email:
        locked = Invitation.objects.select_for_update(of=("self",)).select_related("organization").get(pk=invitation.pk)
        if locked.is_open:
            accept_for(user=user, invitation=locked, principal=principal)
    return organization


@transaction.atomic
def profile_update(*, principal: Principal, **changes: Any) -> User:
    """Change `full_name`, `time_zone`, `theme`; others are refused. The address is changed where it is verified."""
    require_scope(principal, "admin")
    user = principal.user
    unknown = set(changes) - {"full_name", "time_zone", "theme"}
    if unknown:
        raise Invalid.field(sorted(unknown)[0], "read_only", "This can't be changed here.")
    if "full_name" in changes:
        user.full_name = clean_line("full_name", changes["full_name"], max_length=120, required=False)
    if "time_zone" in changes:
        if changes["time_zone"] not in time_zone_names():
            raise Invalid.field("time_zone", "invalid_time_zone", "This is no IANA time zone, such as Europe/Zurich.")
        user.time_zone = changes["time_zone"]
    if "theme" in changes:
        if changes["theme"] not in Theme.values:
            raise Invalid.field("theme", "invalid_choice", f"Use one of {', '.join(Theme.values)}.")
        user.theme = changes["theme"]
    if changes:
        user.save(update_fields=[*changes, "updated_at"])
        record(principal, "profile.updated", target=user.email, data={"fields": sorted(changes)})
    return user


@transaction.atomic
def password_change(
    *, principal: Principal, current_password: str, new_password: str, keep_session_key: str | None = None
) -> None:
    """Set a new password. All other sessions, refresh and access tokens end (rule 48); API tokens stay.

    Only for people. `Invalid` (`current_password`) when the current one is wrong. A browser's caller passes its
    session key and refreshes the session's hash (`update_session_auth_hash`) afterwards.
    """
    if principal.token is not None:
        raise PermissionDenied("Change the password as a person, not with an API token.")
    user = User.objects.select_for_update().get(pk=principal.user.pk)
    if not user.check_password(current_password):
        raise Invalid.field("current_password", "incorrect", "This is not the current password.")
    check_password_strength("new_password", new_password, user)
    user.set_password(new_password)
    user.save(update_fields=["password", "updated_at"])
    principal.user.password = user.password
    user_sign_out_everywhere(user=user, keep_session_key=keep_session_key, reason="password_changed")
    record(principal, "auth.password_changed", target=user.email)


def clean_up() -> dict[str, int]:
    """Rows that time has made worthless; the janitor calls it. Returns how many of each."""
    moment = now()
    ended = Session.objects.filter(expire_date__lt=moment)
    orphans = UserSession.objects.exclude(session_key__in=Session.objects.values("session_key"))
    return {
        "refresh_families": RefreshFamily.objects.filter(expires_at__lt=moment).delete()[0],
        "invitations": Invitation.objects.filter(expires_at__lt=moment - timedelta(days=30)).delete()[0],
        "sessions": ended.delete()[0],
        "user_sessions": orphans.filter(created_at__lt=moment - timedelta(hours=1)).delete()[0],
    }


@transaction.atomic
def user_sign_out_everywhere(*, user: User, keep_session_key: str | None = None, reason: str = "signed_out") -> None:
    """End the browser sessions (but one) and refresh families, and with them the access tokens."""
    for session in UserSession.objects.filter(user=user):
        if session.session_key != keep_session_key:
            session.end()
    RefreshFamily.objects.filter(user=user, revoked_at=None).update(revoked_at=now(), revoked_reason=reason)
