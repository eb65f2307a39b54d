"""A project's and an operation's words, icons and colours. A badge is icon, text and colour; a good state is quiet."""

from __future__ import annotations

from typing import Any

from django import template
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from novastack.common.templatetags.ui import duration_text, icon
from projects import registry
from projects.domain import Capability
from projects.engines.base import Engine
from projects.models import Operation, OperationState, OperationStep, Project, ProjectStatus, StepState
from projects.operations import base

register = template.Library()

S = ProjectStatus
_RUN = ("run", "")
_LOOKS: dict[str, tuple[str, str]] = {
    S.QUEUED: ("", "clock"),
    S.RUNNING: ("ok", "circle-check"),
    S.STOPPED: ("", "circle-pause"),
    S.UNHEALTHY: ("warn", "triangle-alert"),
    S.NOT_AVAILABLE: ("warn", "unplug"),
    S.FAILED: ("bad", "circle-x"),
    S.RECYCLED: ("", "trash-2"),
}


def badge(text: str, look: str, symbol: str, title: str = "") -> SafeString:
    mark = icon(symbol) if symbol else SafeString('<span class="spin" aria-hidden="true"></span>')
    css = f"badge badge-{look}" if look else "badge"
    return format_html('<span class="{}" title="{}">{}{}</span>', css, title, mark, text)


@register.simple_tag
def status_badge(project: Any) -> SafeString:
    """The stored status; its detail in `title`."""
    look, symbol = _LOOKS.get(project.status, _RUN)
    return badge(project.get_status_display(), look, symbol, project.status_detail)


_OPERATION_LOOKS = {
    OperationState.QUEUED: ("", "clock"),
    OperationState.RUNNING: _RUN,
    OperationState.SUCCEEDED: ("", "circle-check"),
    OperationState.FAILED: ("bad", "circle-x"),
    OperationState.CANCELLED: ("", "ban"),
}


@register.simple_tag
def operation_badge(operation: Operation) -> SafeString:
    look, symbol = _OPERATION_LOOKS.get(OperationState(operation.state), _RUN)
    text = "Done" if operation.state == OperationState.SUCCEEDED else operation.get_state_display()
    return badge(text, look, symbol)


_KIND_ICONS = {
    "provision": "database", "start": "play", "stop": "circle-stop", "restart": "refresh-cw",
    "rotate_password": "rotate-cw", "resize": "layers", "delete": "trash-2", "undelete": "undo-2", "purge": "trash-2",
}  # fmt: skip


@register.filter
def operation_icon(operation: Operation) -> str:
    return _KIND_ICONS.get(operation.kind, "activity")


@register.filter
def operation_title(operation: Operation) -> str:
    """What the operation does, in words: `Rotate the password`."""
    return base.titles().get(operation.kind, operation.kind.replace("_", " ").capitalize())


_DONE = {
    "provision": "Created", "start": "Started", "stop": "Stopped", "restart": "Restarted", "resize": "Limits changed",
    "rotate_password": "Password rotated", "delete": "Moved to the recycle bin", "undelete": "Restored from the bin",
}  # fmt: skip


@register.filter
def operation_done(operation: Operation) -> str:
    """What has happened, once it has: `Password rotated`; until then what it is about to do."""
    done = _DONE.get(operation.kind) if operation.state == OperationState.SUCCEEDED else None
    return done or operation_title(operation)


@register.filter
def engine_short(name: str) -> str:
    """The two letters of an engine's tile."""
    engine = registry.engines().get(name)
    return (engine.short if engine else name[:2]).capitalize()


@register.filter
def engine_of(name: str) -> Engine | None:
    """The engine itself, for what it says of itself."""
    return registry.engines().get(name)


@register.filter
def engine_title(name: str) -> str:
    engine = registry.engines().get(name)
    return engine.title if engine else name.capitalize()


_STEPS: dict[str, tuple[str, str, str]] = {  # css, icon (empty: spinner, "-": nothing), what a screen reader hears
    StepState.PENDING: ("wait", "-", "Waiting: "),
    StepState.RUNNING: ("run", "", "In progress: "),
    StepState.RETRYING: ("retry", "", "Retrying: "),
    StepState.WAITING: ("retry", "", "Waiting for the runtime: "),
    StepState.SUCCEEDED: ("done", "check", "Done: "),
    StepState.FAILED: ("fail", "x", "Failed: "),
    StepState.SKIPPED: ("wait", "-", "Skipped: "),
    StepState.UNDOING: ("run", "", "Being undone: "),
    StepState.UNDONE: ("undone", "undo-2", "Undone: "),
}


@register.inclusion_tag("_partials/_steps.html")
def steps(operation: Operation) -> dict[str, Any]:
    """An operation as named steps with their time."""
    return {"steps": [_step(step) for step in operation.steps.all()]}


def _step(step: OperationStep) -> dict[str, Any]:
    css, symbol, spoken = _STEPS[step.state]
    elapsed = ""
    if step.started_at and step.finished_at:
        elapsed = duration_text((step.finished_at - step.started_at).total_seconds())
    running = step.started_at if css in {"run", "retry"} and not step.finished_at else None
    return {
        "css": css, "symbol": symbol, "spoken": spoken, "title": step.title, "elapsed": elapsed, "since": running,
        "detail": step.detail, "attempt": step.attempt if step.attempt > 1 else 0, "code": step.error_code,
        "failed": css == "fail",
    }  # fmt: skip


@register.filter
def took(operation: Operation) -> str:
    """From its beginning to its end; empty before."""
    if not operation.started_at or not operation.finished_at:
        return ""
    return duration_text((operation.finished_at - operation.started_at).total_seconds())


@register.filter
def whole(number: int | None) -> str:
    """12 345; a dash for what is not known."""
    return "–" if number is None else f"{number:,}".replace(",", "\u202f")


@register.filter
def rate(value: float | None) -> str:
    """Per second, with as many digits as say something."""
    if value is None:
        return "–"
    return f"{value:.1f}" if value < 10 else f"{value:,.0f}".replace(",", "\u202f")


@register.filter
def axis(value: float) -> str:
    """A figure of a chart: whole where that says enough, so that a small rate's axis is not 0, 0, 0."""
    if value >= 10 or value == int(value):
        return rate(round(value)) if value >= 10 else str(int(value))
    return f"{value:.1f}" if value >= 1 else f"{value:.2f}"


@register.filter
def with_code(text: str) -> SafeString:
    """What stands between backticks as `<code>`: for texts that are also read at a console."""
    parts = str(text).split("`")
    if len(parts) % 2 == 0:
        return format_html("{}", text)
    return format_html_join("", "{}{}{}", (
        (SafeString("<code>"), part, SafeString("</code>")) if i % 2 else ("", part, "") for i, part in enumerate(parts)
    ))  # fmt: skip


@register.filter
def can(project: Project, capability: str) -> bool:
    """Whether the project's engine has that capability."""
    engine = registry.engines().get(project.engine)
    return engine is not None and Capability(capability) in engine.capabilities
