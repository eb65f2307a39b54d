"""One's own profile and theme, and the door for the invited."""

from __future__ import annotations

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import redirect, render
from django.utils.http import url_has_allowed_host_and_scheme
from django.views.decorators.http import require_http_methods, require_POST

from accounts.page_forms import ProfileForm, add_problem
from accounts.permissions import principal_from
from accounts.services import invitation_accept, invitation_by_token, organization_select, profile_update
from accounts.services.invitations import invitation_remember
from novastack.common.errors import Problem


@login_required
@require_http_methods(["GET", "POST"])
def profile(request: HttpRequest) -> HttpResponse:
    principal = principal_from(request)
    user = principal.user
    initial = {"full_name": user.full_name, "time_zone": user.time_zone, "theme": user.theme}
    form = ProfileForm(request.POST or None, initial=initial)
    if request.method == "POST" and form.is_valid():
        try:
            profile_update(principal=principal, **form.cleaned_data)
        except Problem as problem:
            add_problem(form, problem)
        else:
            messages.info(request, "Saved.")
            return redirect("accounts:profile")
    status = 400 if form.errors else 200
    return render(request, "accounts/profile.html", {"form": form, "zones": ProfileForm.zones()}, status=status)


@login_required
@require_POST
def theme(request: HttpRequest) -> HttpResponse:
    """The three buttons of the sidebar. Scripts get JSON, forms go back to where they were."""
    try:
        profile_update(principal=principal_from(request), theme=request.POST.get("theme", ""))
    except Problem as problem:
        return JsonResponse({"code": problem.code, "detail": problem.detail}, status=problem.status)
    if "application/json" in request.headers.get("Accept", ""):
        return JsonResponse({})
    back = request.headers.get("Referer", "")
    safe = url_has_allowed_host_and_scheme(back, {request.get_host()}, require_https=request.is_secure())
    return redirect(back if safe else "projects:list")


@require_http_methods(["GET", "POST"])
def invitation(request: HttpRequest, token: str) -> HttpResponse:
    """The link of an invitation. A stranger signs in or up first and comes back; the answer names no one else."""
    found = invitation_by_token(token)
    if not request.user.is_authenticated:
        invitation_remember(request, found)
    elif request.method == "POST":
        principal = principal_from(request)
        membership = invitation_accept(principal=principal, clear=token)
        organization_select(principal=principal, organization=membership.organization, request=request)
        messages.info(request, f"Welcome to {membership.organization.name}.")
        return redirect("projects:list")
    mine = request.user.is_authenticated and request.user.email == found.email
    response = render(request, "accounts/invitation.html", {"invitation": found, "mine": mine})
    response["Referrer-Policy"] = "no-referrer"
    response["Cache-Control"] = "no-store, private"
    return response
