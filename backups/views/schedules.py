"""Schedules: presets, cron with its words and next runs while somebody types, what is kept."""

from __future__ import annotations

import re
from typing import Any
from uuid import UUID

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from accounts.permissions import Capability
from backups.forms import PRESETS, ScheduleForm, kept_words, preset_of, targets_of
from backups.models import Schedule
from backups.services.schedules import (
    describe,
    next_runs,
    schedule_create,
    schedule_delete,
    schedule_run,
    schedule_update,
)
from novastack.common.errors import NotFound, PermissionDenied, Problem
from projects.models import Project
from projects.views.common import add_problem, project_for
from projects.views.detail import header_context

RUNS = 5
CARD = re.compile(r"new|[0-9a-f-]{36}")


def timing(cron: str, zone: str) -> dict[str, Any]:
    """`words`, `runs` (moments), `wrong` (why it can't be), `presets` as (name, label, pressed)."""
    pressed = preset_of(cron)
    told: dict[str, Any] = {
        "words": "", "runs": [], "wrong": "",
        "presets": [(name, label, name == pressed) for name, (label, _) in PRESETS.items()],
    }  # fmt: skip
    try:
        told |= {"words": describe(cron, zone), "runs": next_runs(cron, zone, count=RUNS)}
    except Problem as problem:
        told["wrong"] = " ".join(error.detail for error in problem.errors) or problem.detail
    return told


def card_of(schedule: Schedule | None, form: ScheduleForm) -> Any:
    """What `_schedule.html` shows."""
    key = str(schedule.pk) if schedule else "new"
    form.auto_id = f"s-{key}-%s"
    cron, shown = str(form["cron"].value() or ""), str(form["time_zone"].value() or "UTC")
    paused = schedule is not None and schedule.enabled and schedule.next_run_at is None
    return {
        "key": key, "schedule": schedule, "form": form, "paused": paused, **timing(cron, shown),
        "kept": kept_words(schedule) if schedule is not None else "",
    }  # fmt: skip


def schedule_cards(project: Project) -> list[Any]:
    rows = Schedule.objects.filter(project=project).select_related("storage").order_by("created_at", "id")
    targets = targets_of(project.organization)
    return [card_of(schedule, ScheduleForm(targets=targets, schedule=schedule)) for schedule in rows]


@login_required
@require_GET
def schedule_preview(request: HttpRequest, project_id: UUID) -> HttpResponse:
    """While somebody types: the words, the next runs, and which preset it is; a pressed preset fills in the field."""
    _, project = project_for(request, project_id)
    key = request.GET.get("card", "new")
    if not CARD.fullmatch(key):
        raise NotFound
    preset = PRESETS.get(request.GET.get("preset", ""), ("", ""))[1]
    cron = preset or request.GET.get("cron", "").replace("\0", "")[:200]
    told = timing(cron, request.GET.get("time_zone", "UTC").replace("\0", "")[:64] or "UTC")
    context = {
        "project": project, "card": {"key": key, **told}, "cron": cron, "filled": bool(preset), "swap": True,
        "can_schedule": True,
    }  # fmt: skip
    return render(request, "backups/_schedule_preview.html", context)


@login_required
@require_http_methods(["GET", "POST"])
def schedule_new(request: HttpRequest, project_id: UUID) -> HttpResponse:
    principal, project = project_for(request, project_id, Capability.PROJECT_CHANGE)
    zone = getattr(request.user, "time_zone", "") or "UTC"
    form = ScheduleForm(
        request.POST if request.method == "POST" else None, targets=targets_of(project.organization), zone=zone
    )
    if request.method == "POST" and form.is_valid():
        try:
            schedule_create(principal=principal, project=project, **form.as_fields())
        except PermissionDenied:
            raise
        except Problem as problem:
            add_problem(form, problem, field="cron")
        else:
            messages.info(request, f"{project.name} is backed up on this schedule from now on.")
            return redirect("backups:tab", project.pk)
    if request.method == "GET" and request.GET.get("preset") in PRESETS:  # without JavaScript
        form.initial["cron"] = PRESETS[request.GET["preset"]][1] or form.fields["cron"].initial
    return _page(request, principal, project, card_of(None, form), form)


@login_required
@require_POST
def schedule_act(request: HttpRequest, project_id: UUID, schedule_id: UUID, action: str) -> HttpResponse:
    """`save`, `pause`, `resume`, `run`, `delete`; `unhold`: retention, which was stopped, goes on."""
    needed = Capability.PROJECT_ACT if action == "run" else Capability.PROJECT_CHANGE
    principal, project = project_for(request, project_id, needed)
    schedule = Schedule.objects.filter(pk=schedule_id, project=project).select_related("storage").first()
    if schedule is None or action not in {"save", "pause", "resume", "run", "delete", "unhold"}:
        raise NotFound
    form = ScheduleForm(
        request.POST if action == "save" else None, targets=targets_of(project.organization), schedule=schedule
    )
    if action == "save" and not form.is_valid():
        return _page(request, principal, project, card_of(schedule, form), form)
    try:
        if action == "save":
            schedule_update(principal=principal, schedule=schedule, changes=form.as_fields())
            messages.info(request, "Saved.")
        elif action in {"pause", "resume"}:
            schedule_update(principal=principal, schedule=schedule, changes={"enabled": action == "resume"})
            messages.info(request, "It is paused: no backup is taken on it." if action == "pause" else "It goes on.")
        elif action == "unhold":
            schedule_update(principal=principal, schedule=schedule, changes={"retention_paused": False})
            messages.info(request, "Retention goes on at its next look.")
        elif action == "run":
            schedule_run(principal=principal, schedule=schedule)
            messages.info(request, f"{project.name} is being backed up.")
        else:
            schedule_delete(principal=principal, schedule=schedule)
            messages.info(request, "The schedule is removed. What it has made stays.")
    except PermissionDenied:
        raise
    except Problem as problem:
        if action == "save":
            add_problem(form, problem, field="cron")
            return _page(request, principal, project, card_of(schedule, form), form)
        messages.error(request, problem.detail)
    return redirect("backups:tab", project.pk)


def _page(request: HttpRequest, principal: Any, project: Project, card: Any, form: ScheduleForm) -> HttpResponse:
    context = header_context(principal, project) | {"tab": "backups", "card": card, "can_schedule": True}
    return render(request, "backups/schedule.html", context, status=400 if form.errors else 200)
