"""The recovery kit: what opens an organization's backups when this installation is gone (rule 30)."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from allauth.account.decorators import reauthentication_required
from allauth.core.exceptions import ReauthenticationRequired
from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from accounts.context import current_organization
from accounts.models import Organization
from accounts.permissions import Capability, Principal, principal_from, require
from backups.forms import DeleteForm, FingerprintForm, RecipientForm
from backups.models import BackupKey, OfflineKey
from backups.services import readings
from backups.services.kits import key_rotate, kit_confirm, kit_export, recipient_add, recipient_remove
from backups.views.common import question
from novastack.common.errors import NotFound, PermissionDenied, Problem
from projects.views.common import add_problem


@login_required
@require_http_methods(["GET", "POST"])
def kit(request: HttpRequest) -> HttpResponse:
    """Whether somebody holds it; a POST carries the fingerprint that was typed back."""
    principal, organization = _owner(request)
    form = FingerprintForm(request.POST if request.method == "POST" else None)
    if request.method == "POST" and form.is_valid():
        try:
            kit_confirm(principal=principal, organization=organization, fingerprint=form.cleaned_data["fingerprint"])
        except PermissionDenied:
            raise
        except Problem as problem:
            add_problem(form, problem, field="fingerprint")
        else:
            messages.info(request, "The recovery kit is confirmed. Keep it away from this installation.")
            return redirect("backups:kit")
    context = _context(organization, form) | {"ready": request.GET.get("ready") == "1"}
    return render(request, "backups/kit.html", context, status=400 if form.errors else 200)


@login_required
@require_POST
def recipient_new(request: HttpRequest) -> HttpResponse:
    """One more age recipient: whose identity it is, NovaStack never sees."""
    principal, organization = _owner(request)
    form = RecipientForm(request.POST)
    if form.is_valid():
        try:
            recipient_add(principal=principal, organization=organization, recipient=form.cleaned_data["recipient"])
        except PermissionDenied:
            raise
        except Problem as problem:
            add_problem(form, problem, field="recipient")
        else:
            messages.info(request, "New backups are sealed for it as well.")
            return redirect("backups:kit")
    return render(request, "backups/kit.html", _context(organization, FingerprintForm(), form), status=400)


@login_required
@require_POST
def recipient_drop(request: HttpRequest, recipient_id: UUID) -> HttpResponse:
    """New backups are no longer sealed for it; what was, stays so."""
    principal, organization = _owner(request)
    row = OfflineKey.objects.filter(pk=recipient_id, organization=organization, fingerprint="", retired_at=None).first()
    if row is None:
        raise NotFound
    try:
        recipient_remove(principal=principal, organization=organization, recipient=row)
    except PermissionDenied:
        raise
    except Problem as problem:
        messages.error(request, problem.detail)
    else:
        messages.info(request, "New backups are no longer sealed for it.")
    return redirect("backups:kit")


@login_required
@require_http_methods(["GET", "POST"])
def rotate(request: HttpRequest) -> HttpResponse:
    """Asks, then makes a new key for new backups. The older ones stay, and open what they sealed."""
    principal, organization = _owner(request)
    form = DeleteForm(request.POST if request.method == "POST" else None)
    if request.method == "POST" and form.is_valid():
        try:
            key_rotate(principal=principal, organization=organization)
        except PermissionDenied:
            raise
        except Problem as problem:
            add_problem(form, problem)
        else:
            messages.info(
                request, "New backups are sealed for a new key. Save a new recovery kit: it holds that one too."
            )
            return redirect("backups:kit")
    return question(request, "key_rotate", {"section": "kit", "organization": organization, "form": form})


@login_required
@require_POST
def kit_download(request: HttpRequest) -> HttpResponse:
    """A new kit as a file, in this one answer, for somebody who has just proven who they are."""
    _owner(request)  # before the password is asked for
    try:
        return _download(request)
    except ReauthenticationRequired:
        # Else the file would be the answer of the password's page, which then stays, and its form is spent.
        return redirect("backups:kit-prove")


@login_required
@require_GET
def kit_prove(request: HttpRequest) -> HttpResponse:
    """Asks who it is, and comes back to the page that has the kit."""
    _owner(request)
    return _proven(request)


@reauthentication_required
def _proven(request: HttpRequest) -> HttpResponse:
    return redirect(reverse("backups:kit") + "?ready=1")


@reauthentication_required
def _download(request: HttpRequest) -> HttpResponse:
    principal, organization = _owner(request)
    made = kit_export(principal=principal, organization=organization)
    response = HttpResponse(made.text, content_type="text/plain; charset=utf-8")
    response["Content-Disposition"] = f'attachment; filename="novastack-recovery-kit-{organization.slug}.txt"'
    response["Cache-Control"] = "no-store, private"
    response["Pragma"] = "no-cache"
    return response


def _owner(request: HttpRequest) -> tuple[Principal, Organization]:
    principal = principal_from(request)
    organization = current_organization(request)
    if organization is None:
        raise NotFound
    require(principal, organization, Capability.ORG_CHANGE)
    return principal, organization


def _context(
    organization: Organization, form: FingerprintForm, recipient: RecipientForm | None = None
) -> dict[str, Any]:
    rows = list(OfflineKey.objects.filter(organization=organization))
    kits = [row for row in rows if row.fingerprint]
    return {
        "section": "kit", "organization": organization, "form": form, "kits": kits,
        "held": next((row for row in kits if row.confirmed_at and not row.retired_at), None),
        "waiting": next((row for row in kits if not row.confirmed_at and not row.retired_at), None),
        "keys": list(BackupKey.objects.filter(organization=organization).defer("identity")),
        "opens": readings.opened_by(organization.pk),
        "own": [row for row in rows if not row.fingerprint], "recipient": recipient or RecipientForm(),
    }  # fmt: skip
