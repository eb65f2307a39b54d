"""A project's tab “Backups”: figures, schedules, the objective, drills, and the list, which polls while something works."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils.http import urlencode
from django.views.decorators.http import require_GET, require_http_methods

from accounts.permissions import Capability, Principal
from backups.forms import BackupForm
from backups.models import BackupStatus, BackupTrigger
from backups.services import readings
from backups.services.backups import backup_create, why_not_now
from backups.views.common import acts_of, question, rights
from backups.views.objectives import objective_card
from backups.views.schedules import schedule_cards
from novastack.common.errors import PermissionDenied, Problem
from projects import registry
from projects.models import Project
from projects.views.common import add_problem, page_of, project_for
from projects.views.detail import header_context

PAGE_SIZE = 25


@login_required
@require_GET
def project_backups(request: HttpRequest, project_id: UUID) -> HttpResponse:
    """The whole tab; with htmx figures and list alone."""
    principal, project = project_for(request, project_id)
    if request.htmx and request.GET.get("part") == "cards":  # type: ignore[attr-defined]
        cards = header_context(principal, project) | objective_card(principal, project)
        return render(request, "backups/_cards.html", cards)
    chosen = {name: request.GET.get(name, "") for name in ("status", "trigger")}
    rows = readings.backups_of(project).select_related("storage", "schedule")
    if chosen["status"] in BackupStatus.values:
        rows = rows.filter(status=chosen["status"])
    if chosen["trigger"] in BackupTrigger.values:
        rows = rows.filter(trigger=chosen["trigger"])
    page, numbers = page_of(request, rows, PAGE_SIZE)
    figures = readings.figures_of(project)
    context = header_context(principal, project) | {
        "tab": "backups", "page": page, "pages": numbers, "chosen": chosen, "narrowed": any(chosen.values()),
        "query": _query(chosen), "here": request.get_full_path(), "figures": figures, "busy": figures["busy"],
        "can_back_up": _can_back_up(principal, project), "can_upload": _can_upload(principal, project), "next": _here(request),
    }  # fmt: skip
    decorate(page.object_list, context["may"])
    if request.htmx and not request.htmx.boosted:  # type: ignore[attr-defined]
        return render(request, "backups/_list.html", context)
    context |= {
        "statuses": BackupStatus.choices, "triggers": BackupTrigger.choices, "schedules": schedule_cards(project),
        "can_schedule": context["may"]["project_change"] and project.recycled_at is None,
        "kit_confirmed": readings.kit_confirmed(project.organization_id) or not figures["count"],
        **objective_card(principal, project),
    }  # fmt: skip
    return render(request, "backups/tab.html", context)


def decorate(rows: Any, may: dict[str, bool]) -> None:
    """What a row shows besides its columns."""
    for backup in rows:
        backup.acts = acts_of(backup, may)


@login_required
@require_http_methods(["GET", "POST"])
def backup_new(request: HttpRequest, project_id: UUID) -> HttpResponse:
    """“Back up now”: a label and where to."""
    principal, project = project_for(request, project_id, Capability.PROJECT_ACT)
    form = BackupForm(request.POST if request.method == "POST" else None, organization=project.organization)
    if request.method == "POST" and form.is_valid():
        try:
            backup = backup_create(
                principal, project, label=form.cleaned_data["label"], storage=form.cleaned_data["storage"]
            )
        except PermissionDenied:
            raise
        except Problem as problem:
            add_problem(form, problem)
        else:
            messages.info(request, f"{project.name} is being backed up to {backup.storage.name}.")
            return redirect("backups:tab", project.pk)
    return question(request, "new", header_context(principal, project) | {"form": form, "storages": form.storages})


def _can_back_up(principal: Principal, project: Project) -> bool:
    return rights(principal, project.organization_id)["project_act"] and not why_not_now(project)


def _can_upload(principal: Principal, project: Project) -> bool:
    """A stopped database is no obstacle: the file is run elsewhere."""
    may = rights(principal, project.organization_id)["project_act"]
    return may and project.ready_at is not None and bool(registry.engine(project.engine).upload_formats)


def _here(request: HttpRequest) -> str:
    return request.get_full_path()


def _query(chosen: dict[str, str]) -> str:
    kept = {name: value for name, value in chosen.items() if value}
    return urlencode(kept) + "&" if kept else ""
