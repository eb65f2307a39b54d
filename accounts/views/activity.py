"""The organization's activity."""

from __future__ import annotations

from django.contrib.auth.decorators import login_required
from django.db.models import Q
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils.http import urlencode
from django.views.decorators.http import require_GET

from accounts.activity import KINDS, feed
from accounts.context import current_organization
from accounts.models import AuditEvent
from accounts.permissions import Capability, principal_from, require
from novastack.common.errors import NotFound


@require_GET
@login_required
def activity(request: HttpRequest) -> HttpResponse:
    """Who did what, from where. Newest first, by cursor."""
    principal = principal_from(request)
    organization = current_organization(request)
    if organization is None:
        raise NotFound
    require(principal, organization, Capability.AUDIT_VIEW)
    events = AuditEvent.objects.for_principal(principal).filter(organization_id=organization.pk)
    chosen = {name: request.GET.get(name, "").replace("\0", "")[:100] for name in ("search", "actor", "kind")}
    if chosen["search"]:
        text = chosen["search"]
        events = events.filter(
            Q(project_name__icontains=text)
            | Q(target__icontains=text)
            | Q(actor_label__icontains=text)
            | Q(ip__icontains=text)
        )
    if chosen["actor"] == "people":
        events = events.filter(token_prefix="").exclude(actor_label="system")
    elif chosen["actor"] == "tokens":
        events = events.exclude(token_prefix="")
    elif chosen["actor"] == "system":
        events = events.filter(actor_label="system")
    if chosen["kind"] in KINDS:
        wanted = Q()
        for start in KINDS[chosen["kind"]][1]:
            wanted |= Q(action__startswith=start)
        events = events.filter(wanted)
    kept = {name: value for name, value in chosen.items() if value}
    context = {
        "section": "activity", "organization": organization, "chosen": chosen,
        "kinds": [(key, label) for key, (label, _) in KINDS.items()],
        "query": urlencode(kept) + "&" if kept else "",
        **feed(events, before=request.GET.get("before", "")),
    }  # fmt: skip
    if request.htmx:  # type: ignore[attr-defined]
        older = "before" in request.GET
        return render(request, "accounts/_activity_rows.html" if older else "accounts/_activity_table.html", context)
    return render(request, "accounts/activity.html", context)
