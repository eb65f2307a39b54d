"""Storage targets: an organization's own, and those of the install, which operators keep."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.db.models import Count, Sum
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils.dateparse import parse_datetime
from django.views.decorators.http import require_http_methods, require_POST

from accounts.context import current_organization, show_organization
from accounts.models import Organization
from accounts.permissions import Capability, Principal, principal_from, require, require_operator
from backups.forms import DeleteForm, StorageForm
from backups.models import BackupStatus, StorageTarget
from backups.services import readings
from backups.services.storages import (
    StorageOwned,
    StorageTestFailed,
    storage_create,
    storage_delete,
    storage_make_default,
    storage_owner,
    storage_take_over,
    storage_test,
    storage_update,
)
from backups.views.common import question
from novastack.common.errors import NotFound, PermissionDenied, Problem
from projects.views.common import add_problem

CHECKS = {  # in the order in which they are tried
    "reach": "It can be reached", "write": "A test object is written", "list": "It is found in the list",
    "read": "It is read back and the same", "range": "A part of it is read", "abort": "A broken upload leaves nothing",
    "delete": "It is removed", "owner": "It is this target’s", "object_lock": "It keeps objects from being removed",
}  # fmt: skip


@login_required
@require_http_methods(["GET", "POST"])
def storage_list(request: HttpRequest) -> HttpResponse:
    """The organization's targets and the install's; a POST adds one of its own."""
    principal = principal_from(request)
    organization = current_organization(request)
    if organization is None:
        raise NotFound
    require(principal, organization, Capability.ORG_VIEW if request.method == "GET" else Capability.ORG_CHANGE)
    return _page(request, principal, organization)


@login_required
@require_http_methods(["GET", "POST"])
def install_list(request: HttpRequest) -> HttpResponse:
    """For operators: targets for everybody."""
    principal = principal_from(request)
    require_operator(principal)
    return _page(request, principal, None)


@login_required
@require_http_methods(["GET", "POST"])
def storage_edit(request: HttpRequest, storage_id: UUID) -> HttpResponse:
    """Other settings; they are tried before they are saved."""
    principal, target = _target_for(request, storage_id)
    form = StorageForm(request.POST if request.method == "POST" else None, initial=StorageForm.values_of(target))
    checks: list[tuple[bool, str, str]] = []
    if request.method == "POST" and form.is_valid():
        changes = _fields(form)
        del changes["kind"], changes["take_over"]
        if changes["secret"] is None:
            changes.pop("secret")  # nothing was typed: the stored one stays
        try:
            storage_update(principal=principal, storage=target, changes=changes)
        except PermissionDenied:
            raise
        except Problem as problem:
            add_problem(form, _renamed(problem, target.kind))
            checks = _tried(problem)
        else:
            messages.info(request, f"{target.name} is saved; it was tried first.")
            return _back(target)
    context = _shell(target.organization) | {
        "form": form, "target": target, "kind": target.kind, "checks": checks, "held": _held(target),
    }  # fmt: skip
    return render(request, "backups/storage.html", context, status=400 if form.errors else 200)


@login_required
@require_POST
def storage_act(request: HttpRequest, storage_id: UUID, action: str) -> HttpResponse:
    """`test` or `default`."""
    principal, target = _target_for(request, storage_id)
    if action not in {"test", "default"}:
        raise NotFound
    try:
        if action == "test":
            checks = storage_test(principal=principal, storage=target)
            told = [(check.passed, CHECKS.get(check.name, check.name), check.detail) for check in checks]
            return question(request, "storage_checks", _shell(target.organization) | {"target": target, "checks": told})
        storage_make_default(principal=principal, storage=target)
        messages.info(request, f"New backups go to {target.name} from now on.")
    except PermissionDenied:
        raise
    except Problem as problem:
        messages.error(request, problem.detail)
    return _back(target)


@login_required
@require_http_methods(["GET", "POST"])
def storage_claim(request: HttpRequest, storage_id: UUID) -> HttpResponse:
    """Whose place it is, and “take it over”: whoever else writes there finds itself read-only."""
    principal, target = _target_for(request, storage_id)
    form = DeleteForm(request.POST if request.method == "POST" else None)
    if request.method == "POST" and form.is_valid():
        try:
            storage_take_over(principal=principal, storage=target)
        except PermissionDenied:
            raise
        except Problem as problem:
            form.add_error(None, problem.detail)
        else:
            messages.info(request, f"{target.name} is this installation’s again. Backups go there from now on.")
            return _back(target)
    context: dict[str, Any] = {"target": target, "form": form, "owner": None, "unknown": ""}
    try:
        context["owner"] = owner = storage_owner(principal=principal, storage=target)
        context["claimed_at"] = parse_datetime(owner.claimed_at) if owner else None
        if owner is not None and owner.here and not owner.ours:
            other = StorageTarget.objects.for_principal(principal).filter(pk=_uuid(owner.target)).first()
            context["other"] = other
    except PermissionDenied:
        raise
    except (Problem, ValueError) as problem:  # the place says anything
        context["unknown"] = problem.detail if isinstance(problem, Problem) else ""
    return question(request, "storage_claim", _shell(target.organization) | context)


def _uuid(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None


@login_required
@require_http_methods(["GET", "POST"])
def storage_remove(request: HttpRequest, storage_id: UUID) -> HttpResponse:
    """Asks first. What lies there is not removed; one that holds backups stays."""
    principal, target = _target_for(request, storage_id)
    form = DeleteForm(request.POST if request.method == "POST" else None)
    if request.method == "POST" and form.is_valid():
        try:
            storage_delete(principal=principal, storage=target)
        except PermissionDenied:
            raise
        except Problem as problem:
            add_problem(form, problem)
        else:
            messages.info(request, f"{target.name} is removed.")
            return _back(target)
    held = target.backups.count()
    return question(
        request, "storage_remove", _shell(target.organization) | {"target": target, "form": form, "held": held}
    )


def _held(target: StorageTarget) -> dict[str, Any]:
    """`backups` that lie there and their `size_bytes`; `schedules` that store there."""
    counted = target.backups.exclude(status=BackupStatus.FAILED).aggregate(
        backups=Count("id"), size_bytes=Sum("size_bytes", default=0)
    )
    return counted | {"schedules": target.schedules.count()}


def _page(request: HttpRequest, principal: Principal, organization: Organization | None) -> HttpResponse:
    form = StorageForm(request.POST if request.method == "POST" else None)
    checks: list[tuple[bool, str, str]] = []
    if request.method == "POST" and form.is_valid():
        fields = _fields(form)
        try:
            target = storage_create(principal=principal, organization=organization, **fields)
        except PermissionDenied:
            raise
        except Problem as problem:
            add_problem(form, _renamed(problem, fields["kind"]))
            checks = _tried(problem)
            if isinstance(problem, StorageOwned):
                form.owned = True
        else:
            messages.info(request, f"{target.name} works and is added.")
            return _back(target)
    rows = readings.storages_of(organization) if organization else readings.install_storages()
    manages = principal.is_operator if organization is None else _manages(principal, organization)
    for row in rows:
        row["manages"] = manages and (organization is None or row["own"])
    context = _shell(organization) | {
        "rows": rows, "form": form, "manages": manages, "checks": checks,
        "kind": str(form["kind"].value()),
        "kit_confirmed": organization is None or readings.kit_confirmed(organization.pk) or not any(r["backups"] for r in rows),
    }  # fmt: skip
    return render(request, "backups/storages.html", context, status=400 if form.errors else 200)


def _tried(problem: Problem) -> list[tuple[bool, str, str]]:
    """What was tried in its order, up to what failed: (passed, what, words)."""
    failed = next((e for e in problem.errors if e.code in CHECKS), None)
    if not isinstance(problem, StorageTestFailed) or failed is None:
        return []
    names = list(CHECKS)
    before = names[: names.index(failed.code)]
    return [*((True, CHECKS[name], "") for name in before), (False, CHECKS[failed.code], failed.detail)]


def _shell(organization: Organization | None) -> dict[str, Any]:
    return {"section": "storages" if organization else "install-storages", "organization": organization}


def _manages(principal: Principal, organization: Organization) -> bool:
    return Capability.ORG_CHANGE in principal.capabilities_in(organization.pk)


def _target_for(request: HttpRequest, storage_id: UUID) -> tuple[Principal, StorageTarget]:
    """One that the caller keeps: their organization's, or as an operator the install's."""
    principal = principal_from(request)
    target = StorageTarget.objects.for_principal(principal).select_related("organization").filter(pk=storage_id).first()
    if target is None:
        raise NotFound
    if target.organization is None:
        require_operator(principal)
    else:
        require(principal, target.organization, Capability.ORG_CHANGE)
        show_organization(request, target.organization)
    return principal, target


def _back(target: StorageTarget) -> HttpResponse:
    return redirect("backups:storages" if target.organization_id else "backups:install-storages")


def _fields(form: StorageForm) -> dict[str, Any]:
    values = form.cleaned_data
    return {
        "name": values["name"], "kind": values["kind"], "config": form.config(), "secret": form.secret(),
        "encrypt": values["encrypt"], "capacity_bytes": values["capacity"], "take_over": values["take_over"],
    }  # fmt: skip


def _renamed(problem: Problem, kind: str) -> Problem:
    """The service's names as this form calls them."""
    names = {
        "config.prefix": "folder", "config": "path" if kind == "filesystem" else "endpoint", "secret": "secret_key",
        "capacity_bytes": "capacity", "prefix": "folder",
    }  # fmt: skip
    errors = [
        type(e)(names.get(e.field) or e.field.removeprefix("config.").removeprefix("secret."), e.code, e.detail)
        for e in problem.errors
    ]
    return Problem(problem.detail, code=problem.code, errors=errors)
