"""A project's log: the end of it, filtered; polled while somebody looks."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
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
    r"^(?:(?P<day>\d{4}-\d\d-\d\d)[ T](?P<time>\d\d:\d\d:\d\d)(?P<part>[.,]\d+)?(?P<zone>Z|[+-]\d\d:?\d\d)?"
    r"\s+(?P<utc>UTC\b|GMT\b)?\s*)?(?P<rest>.*)$",
    re.DOTALL,
)
# What stands before a line's message: MySQL's and MariaDB's `0 [Warning] `, FerretDB's `WARN<tab>file.go:1<tab>`,
# PostgreSQL's `[77] ERROR:  `. Of MongoDB's JSON only its severity and its message are shown.
_LEVELS = (
    re.compile(r"^\d{1,20} \[(?P<level>Note|System|Warning|ERROR)\] "),
    re.compile(r"^(?P<level>DEBUG|INFO|WARN|ERROR|DPANIC|PANIC|FATAL)\t(?:\S+\.go:\d+\t)?"),
    re.compile(
        r"^.{0,80}?\b(?P<level>LOG|INFO|NOTICE|WARNING|ERROR|FATAL|PANIC|DEBUG\d?|DETAIL|HINT|STATEMENT|CONTEXT):\s+"
    ),
)
_SHORT = {"WARNING": "WARN", "STATEMENT": "STMT", "CONTEXT": "CTX", "SYSTEM": "SYS", "DPANIC": "PANIC"}
_MONGO = {"F": "FATAL", "E": "ERROR", "W": "WARN", "I": "INFO"}
_WEIGHT = {"WARN": "warn", "ERROR": "err", "FATAL": "err", "PANIC": "err"}


@dataclass(frozen=True, slots=True)
class Line:
    """`time` is in the reader's zone where the line says its own one, and `stamp` is as the server wrote it."""

    time: str
    stamp: str
    level: str
    css: str
    message: SafeString


def parse(text: str, needle: str = "") -> Line:
    """Time, level and message of a server's line; what isn't recognised stays in the message."""
    if text.startswith('{"t":') and (found := _parse_json(text, needle)) is not None:
        return found
    match = _LINE.match(text)
    assert match is not None  # noqa: S101 - it matches everything
    rest, level = match["rest"], ""
    for pattern in _LEVELS:
        if said := pattern.match(rest):
            level, rest = said["level"].upper(), rest[said.end() :]
            break
    return _line(match, level, rest, needle)


def _parse_json(text: str, needle: str) -> Line | None:
    """A line of MongoDB's; None where it is not one."""
    try:
        said = json.loads(text)
        words, more = str(said["msg"]), said.get("attr")
        match = _LINE.match(f"{said['t']['$date']} ")
    except (ValueError, KeyError, TypeError):
        return None
    assert match is not None  # noqa: S101 - it matches everything
    rest = f"{words} {json.dumps(more, ensure_ascii=False)}" if more else words
    return _line(match, _MONGO.get(str(said.get("s")), "DEBUG"), rest, needle)


def _line(match: re.Match[str], level: str, rest: str, needle: str) -> Line:
    short = _SHORT.get(level, level)
    return Line(
        _clock(match), match[0][: match.start("rest")].strip(), short, _WEIGHT.get(short, ""), _marked(rest, needle)
    )


def _clock(match: re.Match[str]) -> str:
    """The time of day; in the reader's zone if the line says in which one it is."""
    zone, part = match["zone"] or ("Z" if match["utc"] else ""), (match["part"] or "").replace(",", ".")
    if not match["time"] or not zone:
        return f"{match['time'] or ''}{part}"
    try:
        at = datetime.fromisoformat(f"{match['day']}T{match['time']}{zone}")
    except ValueError:  # such as hour 25
        return f"{match['time']}{part}"
    return f"{timezone.localtime(at):%H:%M:%S}{part[:4]}"


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
