"""What a schedule's rules keep and remove: first in words, backup by backup, then for good."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_http_methods

from accounts.permissions import Capability
from backups.forms import ScheduleForm, targets_of
from backups.models import Schedule
from backups.operations.retaining import Look
from backups.services.schedules import retention_apply, retention_preview
from backups.views.common import question
from backups.views.schedules import card_of
from novastack.common.errors import NotFound, PermissionDenied, Problem
from projects.views.common import project_for
from projects.views.detail import header_context

SHOWN = 50  # of those that go, and of those that stay


@login_required
@require_http_methods(["GET", "POST"])
def retention(request: HttpRequest, project_id: UUID, schedule_id: UUID) -> HttpResponse:
    """A dry run: of the schedule's rules, or (POST) of those that are typed into its form. `apply` removes what was shown,
    and nothing else: who was shown something else meanwhile is shown it again."""
    applies = request.method == "POST" and "apply" in request.POST
    tries = request.method == "POST" and not applies
    needed = Capability.PROJECT_CHANGE if tries else Capability.PROJECT_VIEW  # who may not change rules tries none
    principal, project = project_for(request, project_id, Capability.PROJECT_DELETE if applies else needed)
    schedule = Schedule.objects.filter(pk=schedule_id, project=project).select_related("storage", "project").first()
    if schedule is None:
        raise NotFound
    context = header_context(principal, project) | {
        "schedule": schedule,
        "tab": "backups",
        "typed": False,
        "changed": "",
    }
    if applies:
        try:
            look = retention_apply(principal=principal, schedule=schedule, seen=request.POST.get("seen", "")[:64])
        except PermissionDenied:
            raise
        except Problem as problem:
            context["changed"] = problem.detail
        else:
            count = len(look.removed)
            messages.info(request, f"{count} backup{'' if count == 1 else 's'} will be removed from storage.")
            return redirect("backups:tab", project.pk)
    rules = None
    if tries:
        form = ScheduleForm(request.POST, targets=targets_of(project.organization), schedule=schedule)
        if not form.is_valid():
            if not request.htmx:  # type: ignore[attr-defined]
                context |= {"card": card_of(schedule, form), "can_schedule": context["may"]["project_change"]}
                return render(request, "backups/schedule.html", context | {"form": form}, status=400)
            return question(request, "retention_wrong", context | {"form": form})
        rules = form.as_fields()["retention"]
        context["typed"] = rules != {name: getattr(schedule, name) for name in rules}
    try:
        look = retention_preview(principal=principal, schedule=schedule, retention=rules)
    except PermissionDenied:
        raise
    except Problem as problem:
        context["changed"] = " ".join(error.detail for error in problem.errors) or problem.detail
        look = retention_preview(principal=principal, schedule=schedule)
    return question(request, "retention", context | shown(look))


def shown(look: Look) -> dict[str, Any]:
    """`going` and `staying` as (backup, why), newest first, the first `SHOWN` of each; how many there are of each, bytes."""
    going = [(look.rows[v.item.id], v.why) for v in look.verdicts if not v.keep]
    staying = [(look.rows[v.item.id], v.why) for v in look.verdicts if v.keep]
    return {
        "going": going[:SHOWN], "going_count": len(going), "going_more": max(0, len(going) - SHOWN),
        "going_bytes": sum(row.size_bytes or 0 for row, _ in going),
        "staying": staying[:SHOWN], "staying_count": len(staying), "staying_more": max(0, len(staying) - SHOWN),
        "seen": look.digest,
    }  # fmt: skip
