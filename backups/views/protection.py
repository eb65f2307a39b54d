"""What is not protected, of an organization or of the whole install: the worst first."""

from __future__ import annotations

from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils.http import urlencode
from django.views.decorators.http import require_GET

from accounts.context import current_organization
from accounts.models import Organization
from accounts.permissions import Capability, principal_from, require, require_operator
from backups.services.protection import Level, overview
from projects.views.common import page_of

PAGE_SIZE = 50
LEVELS = {
    "broken": (Level.BROKEN, "Not protected"), "risk": (Level.AT_RISK, "At risk"),
    "protected": (Level.PROTECTED, "Protected"), "unsupported": (Level.UNSUPPORTED, "Not supported"),
}  # fmt: skip


@login_required
@require_GET
def protection(request: HttpRequest) -> HttpResponse:
    """Of the organization."""
    principal = principal_from(request)
    organization = current_organization(request)
    if organization is None:
        return render(request, "projects/no_organization.html", {"section": "protection"})
    require(principal, organization, Capability.PROJECT_VIEW)
    return _page(request, organization)


@login_required
@require_GET
def install_protection(request: HttpRequest) -> HttpResponse:
    """For operators: of every organization."""
    require_operator(principal_from(request))
    return _page(request, None)


def _page(request: HttpRequest, organization: Organization | None) -> HttpResponse:
    found = overview(organization)
    chosen = request.GET.get("level", "")
    wanted = LEVELS[chosen][0] if chosen in LEVELS else None
    rows = [each for each in found.projects if wanted is None or each.level == wanted]
    page, numbers = page_of(request, rows, PAGE_SIZE)
    context = {
        "section": "protection" if organization else "install-protection", "organization": organization,
        "overview": found, "page": page, "pages": numbers, "chosen": chosen if wanted is not None else "",
        "query": urlencode({"level": chosen}) + "&" if wanted is not None else "",
        "levels": [(name, label, found.count(level)) for name, (level, label) in LEVELS.items()],
        "all": len(found.projects), "broken": found.count(Level.BROKEN), "risky": found.count(Level.AT_RISK),
        "protected": found.count(Level.PROTECTED), "unsupported": found.count(Level.UNSUPPORTED),
    }  # fmt: skip
    return render(request, "backups/protection.html", context)
