"""Organizations: the switcher, a new one, its name, its members and invitations."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.views.decorators.http import require_http_methods, require_POST

from accounts.context import current_organization
from accounts.models import Invitation, Membership, Organization, Role
from accounts.page_forms import InviteForm, OrganizationForm, add_problem
from accounts.permissions import MANAGEABLE_ROLES, Capability, Principal, allows, principal_from, require
from accounts.services import (
    invitation_revoke,
    member_change_role,
    member_invite,
    member_remove,
    organization_create,
    organization_delete,
    organization_select,
    organization_update,
)
from novastack.common.clock import now
from novastack.common.errors import NotFound, PermissionDenied, Problem

# What each role may do, for people. `accounts.permissions` is the truth; a test compares the two.
CAPABILITY_ROWS: tuple[tuple[str, tuple[Capability, ...]], ...] = (
    ("See projects and their status", (Capability.PROJECT_VIEW,)),
    ("Read logs", (Capability.PROJECT_LOGS,)),
    (
        "Create, change, start, stop, rotate",
        (Capability.PROJECT_CREATE, Capability.PROJECT_CHANGE, Capability.PROJECT_ACT),
    ),
    ("See passwords", (Capability.CONNECT,)),
    ("Delete into the recycle bin, restore from it", (Capability.PROJECT_DELETE,)),
    ("See the activity", (Capability.AUDIT_VIEW,)),
    ("Remove for good", (Capability.PROJECT_PURGE,)),
    ("Members, the organization’s name", (Capability.MEMBER_MANAGE, Capability.ORG_CHANGE)),
    ("Delete the organization, make owners", (Capability.ORG_DELETE,)),
)


def _organization(request: HttpRequest, capability: Capability) -> tuple[Principal, Organization]:
    principal = principal_from(request)
    organization = current_organization(request)
    if organization is None:
        raise NotFound
    require(principal, organization, capability)
    return principal, organization


@login_required
@require_POST
def organization_choose(request: HttpRequest, slug: str) -> HttpResponse:
    """The switcher: back to the projects, of that organization."""
    principal = principal_from(request)
    organization = Organization.objects.for_principal(principal).filter(slug=slug).first()
    if organization is None:
        raise NotFound
    organization_select(principal=principal, organization=organization, request=request)
    return redirect("projects:list")


@login_required
@require_http_methods(["GET", "POST"])
def organization_new(request: HttpRequest) -> HttpResponse:
    principal = principal_from(request)
    form = OrganizationForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        try:
            organization = organization_create(principal=principal, name=form.cleaned_data["name"])
        except Problem as problem:
            add_problem(form, problem, field="name")
        else:
            organization_select(principal=principal, organization=organization, request=request)
            messages.info(request, f"{organization.name} is yours. Invite others under Members.")
            return redirect("projects:list")
    return render(request, "accounts/organization_new.html", {"form": form}, status=400 if form.errors else 200)


@login_required
@require_http_methods(["GET", "POST"])
def organization_settings(request: HttpRequest) -> HttpResponse:
    """Its name, and its end. The slug stays."""
    principal, organization = _organization(request, Capability.ORG_CHANGE)
    form = OrganizationForm(request.POST or None, initial={"name": organization.name})
    if request.method == "POST" and form.is_valid():
        try:
            organization_update(principal=principal, organization=organization, name=form.cleaned_data["name"])
        except Problem as problem:
            add_problem(form, problem, field="name")
        else:
            messages.info(request, "Saved.")
            return redirect("accounts:organization")
    context = {
        "form": form, "organization": organization,
        "may_delete": allows(principal, organization, Capability.ORG_DELETE) and not organization.personal,
    }  # fmt: skip
    return render(request, "accounts/organization.html", context, status=400 if form.errors else 200)


@login_required
@require_POST
def organization_remove(request: HttpRequest) -> HttpResponse:
    """Needs the typed slug; refused while it has projects."""
    principal, organization = _organization(request, Capability.ORG_DELETE)
    if request.POST.get("confirm") != organization.slug:
        messages.error(request, f"Type {organization.slug} to delete the organization.")
        return redirect("accounts:organization")
    try:
        organization_delete(principal=principal, organization=organization)
    except PermissionDenied:
        raise
    except Problem as problem:
        messages.error(request, problem.detail)
        return redirect("accounts:organization")
    messages.info(request, f"{organization.name} is deleted.")
    return redirect("projects:list")


@login_required
@require_http_methods(["GET", "POST"])
def members(request: HttpRequest) -> HttpResponse:
    """Who belongs to it, who was asked to; POST invites. The link is in that one answer only."""
    needed = Capability.MEMBER_MANAGE if request.method == "POST" else Capability.MEMBER_VIEW
    principal, organization = _organization(request, needed)
    form = InviteForm(request.POST or None)
    link, invited = "", None
    if request.method == "POST" and form.is_valid():
        base = f"{request.scheme}://{request.get_host()}"
        try:
            invited, clear = member_invite(
                principal=principal, organization=organization, email=form.cleaned_data["email"],
                role=form.cleaned_data["role"], base_url=base,
            )  # fmt: skip
        except PermissionDenied:
            raise
        except Problem as problem:
            add_problem(form, problem, field="email")
        else:
            link = base + reverse("accounts:invitation", args=[clear])
            form = InviteForm()
    context = _members_context(principal, organization) | {"form": form, "link": link, "invited": invited}
    response = render(request, "accounts/members.html", context, status=400 if form.errors else 200)
    if link:
        response["Cache-Control"] = "no-store, private"
    return response


def _members_context(principal: Principal, organization: Organization) -> dict[str, Any]:
    role = principal.role_in(organization.pk) or ""
    manageable = MANAGEABLE_ROLES.get(role, frozenset())
    may_manage = allows(principal, organization, Capability.MEMBER_MANAGE)
    rows = Membership.objects.filter(organization=organization).select_related("user").order_by("created_at", "id")
    rows = rows.prefetch_related("user__authenticator_set")
    people = list(rows)
    for person in people:
        kinds = {a.type for a in person.user.authenticator_set.all()}  # type: ignore[attr-defined]
        person.factor = (  # type: ignore[attr-defined]
            "Passkey or security key" if "webauthn" in kinds else "Authenticator app" if "totp" in kinds else ""
        )
        person.mine = person.user_id == principal.user.pk  # type: ignore[attr-defined]
        person.changeable = may_manage and person.role in manageable and not person.mine  # type: ignore[attr-defined]
    invitations = Invitation.objects.filter(
        organization=organization, accepted_at=None, revoked_at=None, expires_at__gt=now()
    )
    return {
        "section": "members",
        "organization": organization,
        "people": people,
        "may_manage": may_manage,
        "roles": [(r.value, r.label) for r in (Role.MEMBER, Role.VIEWER, Role.ADMIN, Role.OWNER) if r in manageable],
        "invitations": list(invitations) if may_manage else [],
        "capabilities": _capability_table(),
        "role_names": [r.label for r in Role],
    }


def _capability_table() -> list[tuple[str, list[bool]]]:
    from accounts.permissions import ROLE_CAPABILITIES

    return [
        (label, [all(capability in ROLE_CAPABILITIES[role] for capability in needed) for role in Role])
        for label, needed in CAPABILITY_ROWS
    ]


@login_required
@require_POST
def member_change(request: HttpRequest, user_id: UUID) -> HttpResponse:
    principal, organization = _organization(request, Capability.MEMBER_MANAGE)
    try:
        membership = member_change_role(
            principal=principal, organization=organization, user_id=user_id, role=request.POST.get("role", "")
        )
    except (PermissionDenied, NotFound):
        raise
    except Problem as problem:
        messages.error(request, problem.detail)
    else:
        messages.info(request, f"{membership.user.email} is {membership.get_role_display().lower()} now.")
    return redirect("accounts:members")


@login_required
@require_http_methods(["GET", "POST"])
def member_end(request: HttpRequest, user_id: UUID) -> HttpResponse:
    """Remove a member, or leave. Asks first."""
    principal, organization = _organization(request, Capability.ORG_VIEW)
    membership = Membership.objects.filter(organization=organization, user_id=user_id).select_related("user").first()
    if membership is None:
        raise NotFound
    leaving = user_id == principal.user.pk
    if not leaving:
        require(principal, organization, Capability.MEMBER_MANAGE)
    if request.method == "POST":
        try:
            member_remove(principal=principal, organization=organization, user_id=user_id)
        except (PermissionDenied, NotFound):
            raise
        except Problem as problem:
            messages.error(request, problem.detail)
            return redirect("accounts:members")
        principal.forget_memberships()
        if leaving:
            messages.info(request, f"You have left {organization.name}.")
            return redirect("projects:list")
        messages.info(request, f"{membership.user.email} is no longer a member.")
        return redirect("accounts:members")
    context = {"membership": membership, "organization": organization, "leaving": leaving, "section": "members"}
    if request.htmx:  # type: ignore[attr-defined]
        return render(request, "accounts/_member_remove.html", context)
    return render(request, "accounts/question.html", context | {"question": "accounts/_member_remove.html"})


@login_required
@require_POST
def invitation_end(request: HttpRequest, invitation_id: UUID) -> HttpResponse:
    principal, organization = _organization(request, Capability.MEMBER_MANAGE)
    invitation = Invitation.objects.filter(organization=organization, pk=invitation_id).first()
    if invitation is None:
        raise NotFound
    invitation_revoke(principal=principal, invitation=invitation)
    messages.info(request, f"The invitation of {invitation.email} is withdrawn.")
    return redirect("accounts:members")
