"""API tokens: made once in clear, listed, revoked."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_http_methods, require_POST

from accounts.context import current_organization
from accounts.models import ApiToken, Scope
from accounts.page_forms import SCOPE_HINTS, TokenForm, add_problem
from accounts.permissions import principal_from
from accounts.services import token_create, token_revoke, tokens_for_list
from novastack.common.errors import NotFound, PermissionDenied, Problem


@login_required
@require_http_methods(["GET", "POST"])
def tokens(request: HttpRequest) -> HttpResponse:
    """The list and the form; after a POST the new token's value, in that one answer only."""
    principal = principal_from(request)
    organization = current_organization(request)
    form = TokenForm(request.POST or None)
    made: ApiToken | None = None
    clear = ""
    if request.method == "POST" and form.is_valid():
        try:
            made, clear = token_create(
                principal=principal, name=form.cleaned_data["name"], scopes=form.cleaned_data["scopes"],
                organization=organization, expires_at=form.expires_at(),
            )  # fmt: skip
        except PermissionDenied:
            raise
        except Problem as problem:
            add_problem(form, problem)
        else:
            form = TokenForm()
    rows = tokens_for_list(principal.user)
    context: dict[str, Any] = {
        "section": "tokens", "form": form, "tokens": list(rows), "made": made, "clear": clear,
        "scopes": [(s.value, SCOPE_HINTS[s]) for s in Scope],
        "chosen": form.data.getlist("scopes") if form.is_bound else [Scope.READ.value],  # type: ignore[attr-defined]
    }  # fmt: skip
    response = render(request, "accounts/tokens.html", context, status=400 if form.errors else 200)
    if clear:
        response["Cache-Control"] = "no-store, private"
    return response


@login_required
@require_POST
def token_end(request: HttpRequest, token_id: UUID) -> HttpResponse:
    principal = principal_from(request)
    token = ApiToken.objects.filter(user=principal.user, pk=token_id).first()
    if token is None:
        raise NotFound
    token_revoke(principal=principal, token=token)
    messages.info(request, f"Token “{token.name}” is revoked. It stopped working at once.")
    return redirect("accounts:tokens")
