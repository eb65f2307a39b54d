"""A project's log: the end of it, filtered; polled while somebody looks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.utils.html import conditional_escape, format_html
from django.utils.http import urlencode
from django.utils.safestring import SafeString, mark_safe
from django.views.decorators.http import require_GET

from accounts.permissions import Capability
from novastack.common.errors import Problem
from projects.services.readings import CURSOR_MAX, LOG_LINES_MAX, LogText, logs_read
from projects.views.common import project_for, render_secret
from projects.views.detail import header_context

TAIL = 500
LEVELS = {"all": "All levels", "warn": "Warnings and up", "error": "Errors only"}
_LINE = re.compile(
    r"^(?:\d{4}-\d\d-\d\d[ T](?P<time>\d\d:\d\d:\d\d(?:[.,]\d+)?)\S*\s+(?:UTC|GMT|Z)?\s*)?(?P<rest>.*)$", re.DOTALL
)
_LEVEL = re.compile(
    r"^(?P<before>.{0,80}?)\b(?P<level>LOG|INFO|NOTICE|WARNING|ERROR|FATAL|PANIC|DEBUG\d?|DETAIL|HINT|STATEMENT|CONTEXT):\s+"
)
_WEIGHT = {"WARNING": "warn", "ERROR": "err", "FATAL": "err", "PANIC": "err"}


@dataclass(frozen=True, slots=True)
class Line:
    time: str
    level: str
    css: str
    message: SafeString


def parse(text: str, needle: str = "") -> Line:
    """Time, level and message of a server's line; what isn't recognised stays in the message."""
    match = _LINE.match(text)
    assert match is not None  # noqa: S101 - it matches everything
    rest, level = match["rest"], ""
    if found := _LEVEL.match(rest):
        level, rest = found["level"], rest[found.end() :]
    short = {"WARNING": "WARN", "STATEMENT": "STMT", "CONTEXT": "CTX"}.get(level, level)
    return Line((match["time"] or "").replace(",", "."), short, _WEIGHT.get(level, ""), _marked(rest, needle))


def _marked(text: str, needle: str) -> SafeString:
    if not needle:
        return SafeString(conditional_escape(text))
    pieces = re.split(f"({re.escape(needle)})", text, flags=re.IGNORECASE)
    parts = [format_html("<mark>{}</mark>", p) if i % 2 else conditional_escape(p) for i, p in enumerate(pieces)]
    return mark_safe("".join(parts))  # noqa: S308 - each part is escaped


@login_required
@require_GET
def project_logs(request: HttpRequest, project_id: UUID) -> HttpResponse:
    """The last 500 lines that match; with `cursor`, those after it; `download`: up to 5,000 as text."""
    principal, project = project_for(request, project_id, Capability.PROJECT_LOGS)
    if "download" in request.GET:
        found = logs_read(principal=principal, project=project, tail=LOG_LINES_MAX)
        response = HttpResponse("\n".join([*found.lines, ""]), content_type="text/plain; charset=utf-8")
        response["Content-Disposition"] = f'attachment; filename="{project.slug}.log"'
        response["Cache-Control"] = "no-store, private"
        return response
    if request.htmx and (cursor := request.GET.get("cursor", "")[:CURSOR_MAX]):  # type: ignore[attr-defined]
        context = _read(request, principal, project, cursor)
        if context["cursor"] == cursor and not context["failure"] and "failed" not in request.GET:
            return HttpResponse(status=204)  # nothing new: nothing is swapped, nothing is read out again
        return render_secret(request, "projects/_logs_more.html", context | {"appended": True})
    context = header_context(principal, project) | {"tab": "logs", "levels": LEVELS.items()}
    context |= _read(request, principal, project)
    template = "projects/_logs.html" if request.htmx else "projects/logs.html"  # type: ignore[attr-defined]
    return render_secret(request, template, context)  # a failed statement of the tenant's may hold a password


def _read(request: HttpRequest, principal: Any, project: Any, cursor: str = "") -> dict[str, Any]:
    needle = request.GET.get("search", "").replace("\0", "")[:100]
    level = request.GET.get("level", "all")
    failure, found = "", LogText([], cursor)
    filtered = bool(needle) or level != "all"
    try:
        found = logs_read(
            principal=principal, project=project, tail=LOG_LINES_MAX if filtered or cursor else TAIL, cursor=cursor
        )
    except Problem as problem:
        failure = problem.detail
    lines = [parse(text, needle) for text in found.lines if needle.lower() in text.lower()]
    if level == "warn":
        lines = [line for line in lines if line.css]
    elif level == "error":
        lines = [line for line in lines if line.css == "err"]
    asked = {"search": needle, "level": level, "cursor": found.cursor} | ({"failed": 1} if failure else {})
    return {
        "lines": lines[-TAIL:], "failure": failure, "search": needle, "level": level, "count": len(lines),
        "gap": bool(cursor) and (found.gap or len(lines) > TAIL), "cursor": found.cursor, "again": urlencode(asked),
        "all_again": urlencode({"search": needle, "level": level}),
    }  # fmt: skip
