"""The Connect dialog. Snippets are masked; revealing and copying are audited and stored nowhere."""

from __future__ import annotations

import dataclasses
from typing import Any
from uuid import UUID

from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render
from django.utils.html import conditional_escape, format_html
from django.utils.safestring import SafeString, mark_safe
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from accounts.permissions import Capability
from novastack.common.errors import Invalid, Problem
from projects import domain, registry
from projects.services import connection_reveal
from projects.services.connections import connection_masked, render_connection
from projects.views.common import project_for, render_secret
from projects.views.detail import header_context

TABS = (
    ("uri", "URI"), ("cli", "Command line"), ("verified", "Verified TLS"),
    ("env", ".env"), ("python", "Python"), ("django", "Django"), ("sqlalchemy", "SQLAlchemy"),
    ("node", "Node"), ("prisma", "Prisma"), ("go", "Go"), ("jdbc", "JDBC"), ("compose", "Compose"),
    ("parameters", "Parameters"),
)  # fmt: skip
# Survives percent-encoding, JSON and shell quoting alike, so that each snippet can be masked after it was made.
_STAND_IN = "NVSPASSWORDSTANDSHERE"


def texts(info: domain.ConnectionInfo) -> dict[str, str]:
    """What each tab shows, by its name."""
    rendered = render_connection(info)
    parameters = {
        "host": info.host, "port": info.port, "database": info.database, "user": info.username,
        "password": info.password, "tls": "required" if info.tls else "no",
    }  # fmt: skip
    return rendered["snippets"] | {
        "uri": rendered["uri"],
        "parameters": "\n".join(f"{name:<9} {value}" for name, value in parameters.items()),
        "password": info.password,
    }


def _masked(text: str) -> SafeString:
    dots = format_html('<span class="secret" aria-label="hidden password">{}</span>', "•" * 12)
    return mark_safe(str(conditional_escape(text)).replace(_STAND_IN, dots))  # noqa: S308 - escaped first


def _panels(info: domain.ConnectionInfo) -> list[dict[str, Any]]:
    client = registry.engine(info.engine).client_program
    shown = texts(dataclasses.replace(info, password=_STAND_IN))
    return [
        {
            "name": name,
            "label": client if name == "cli" else label,
            "code": _masked(shown[name]),
            "wrap": shown[name].count("\n") < 1,
        }
        for name, label in TABS
        if name in shown
    ]


@login_required
@require_GET
def connect(request: HttpRequest, project_id: UUID) -> HttpResponse:
    """As a dialog with htmx, else as a page."""
    principal, project = project_for(request, project_id, Capability.CONNECT)
    info = connection_masked(project)
    context = header_context(principal, project) | {"info": info, "panels": _panels(info), "tab": "connect"}
    template = "projects/_connect.html" if request.htmx else "projects/connect.html"  # type: ignore[attr-defined]
    return render(request, template, context)


@login_required
@require_http_methods(["GET", "POST"])
def connect_password(request: HttpRequest, project_id: UUID) -> HttpResponse:
    """GET: the masked field. POST: the password, for 30 seconds; audited."""
    principal, project = project_for(request, project_id, Capability.CONNECT)
    info = connection_masked(project)
    revealed = ""
    if request.method == "POST":
        revealed = connection_reveal(principal=principal, project=project, purpose="revealed").password
    context = header_context(principal, project) | {"info": info, "revealed": revealed, "tab": "connect"}
    if request.htmx:  # type: ignore[attr-defined]
        return render_secret(request, "projects/_password.html", context)
    return render_secret(request, "projects/connect.html", context | {"panels": _panels(info)})


@login_required
@require_POST
def connect_secret(request: HttpRequest, project_id: UUID) -> HttpResponse:
    """One text with the password in it, for the clipboard only; audited."""
    try:
        principal, project = project_for(request, project_id, Capability.CONNECT)
        what = request.POST.get("what", "password")
        if what != "password" and (what not in dict(TABS) or what not in texts(connection_masked(project))):
            raise Invalid.field("what", "invalid_choice", "There is no such snippet.")
        found = texts(connection_reveal(principal=principal, project=project, purpose=f"copied {what}"))
    except Problem as problem:
        return JsonResponse({"code": problem.code, "detail": problem.detail}, status=problem.status)
    response = JsonResponse({"text": found[what]})
    response["Cache-Control"] = "no-store, private"
    return response
