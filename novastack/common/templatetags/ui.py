"""What every page needs to say things: icons, sizes, times. Exact values stand in `title` and `datetime`."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django import template
from django.conf import settings
from django.forms import Textarea
from django.templatetags.static import static
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString

from novastack.common.clock import isoformat, now

register = template.Library()

KIB = 1024
_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")
MINUTE, HOUR, DAY = 60, 3600, 86_400


@register.simple_tag
def icon(name: str, css: str = "") -> SafeString:
    """One symbol of the sprite; decorative, so text must stand beside it."""
    classes = name if name == "mark" else "icon"
    return format_html(
        '<svg class="{}{}" aria-hidden="true"><use href="{}#{}"/></svg>',
        classes, f" {css}" if css else "", static("icons.svg"), name,
    )  # fmt: skip


def size_text(value: int | float | None) -> str:
    """Bytes for people, in steps of 1024: `18.4 GB`; a dash for what was not measured."""
    if value is None:
        return "–"
    size, unit = float(value), 0
    while size >= KIB and unit < len(_UNITS) - 1:
        size, unit = size / KIB, unit + 1
    decimals = 0 if unit == 0 or size >= 100 or abs(size - round(size)) < 0.05 else 1
    return f"{size:,.{decimals}f} {_UNITS[unit]}"


@register.filter(name="bytes")
def bytes_filter(value: int | float | None) -> SafeString | str:
    """A size with its exact number of bytes in `title`."""
    if value is None:
        return "–"
    return format_html('<span title="{} bytes">{}</span>', f"{int(value):,}", size_text(value))


@register.filter
def bytes_text(value: int | float | None) -> str:
    """The same without markup, for labels."""
    return size_text(value)


def duration_text(seconds: float | None) -> str:
    """`0.3 s`, `14 s`, `3:31`, `2 h 05 min`, `3 d 4 h`; empty for nothing."""
    if seconds is None:
        return ""
    if seconds < 10:
        return f"{max(0.0, seconds):.1f} s"
    whole = int(seconds)
    if whole < MINUTE:
        return f"{whole} s"
    if whole < HOUR:
        return f"{whole // MINUTE}:{whole % MINUTE:02d}"
    if whole < DAY:
        return f"{whole // HOUR} h {whole % HOUR // MINUTE:02d} min"
    return f"{whole // DAY} d {whole % DAY // HOUR} h"


@register.filter
def duration(seconds: float | None) -> str:
    """Seconds for people."""
    return duration_text(seconds)


def ago_text(value: datetime, at: datetime) -> str:
    """`now`, `5 min ago`, `in 3 days`; a date when it is more than a week off."""
    seconds = (at - value).total_seconds()
    past, distance = seconds >= 0, abs(seconds)
    if distance < 10:
        return "now"
    if distance < MINUTE:
        text = f"{int(distance)} s"
    elif distance < HOUR:
        text = f"{int(distance // MINUTE)} min"
    elif distance < 48 * HOUR:
        text = f"{int(distance // HOUR)} h"
    elif (distance < 60 * DAY and not past) or distance < 8 * DAY:
        text = f"{int(distance // DAY)} days"
    else:
        local = timezone.localtime(value)
        return f"{local:%-d %b}" if local.year == at.year else f"{local:%-d %b %Y}"
    return f"{text} ago" if past else f"in {text}"


def _time(value: datetime, text: str) -> SafeString:
    local = timezone.localtime(value)
    return format_html(
        '<time datetime="{}" title="{}">{}</time>',
        isoformat(value),
        f"{local:%-d %b %Y, %H:%M:%S} {local.tzname()}",
        text,
    )


@register.filter
def ago(value: datetime | None) -> SafeString | str:
    """How long ago or ahead, with the exact time in the reader's zone in `title`."""
    return _time(value, ago_text(value, now())) if value else "–"


@register.filter
def clock(value: datetime | None, pattern: str = "%-d %b %Y, %H:%M") -> SafeString | str:
    """A moment in the reader's zone: `{{ at|clock:"%H:%M" }}`."""
    return _time(value, f"{timezone.localtime(value):{pattern}}") if value else "–"


@register.filter
def initial(value: Any) -> str:
    """The letter of an avatar."""
    return (str(value).strip()[:1] or "?").upper()


_BROWSERS = (("Edg/", "Edge"), ("OPR/", "Opera"), ("Firefox/", "Firefox"), ("Chrome/", "Chrome"), ("Safari/", "Safari"))
_SYSTEMS = (("Android", "Android"), ("iPhone", "iPhone"), ("iPad", "iPad"), ("Windows", "Windows"), ("Mac OS", "macOS"),
            ("Linux", "Linux"))  # fmt: skip


@register.filter
def browser(user_agent: str) -> str:
    """`Firefox on Windows` for the usual ones, else the beginning of what it says."""
    name = next((label for mark, label in _BROWSERS if mark in user_agent), "")
    system = next((label for mark, label in _SYSTEMS if mark in user_agent), "")
    return f"{name} on {system}" if name and system else user_agent[:60] or "Unknown"


@register.simple_tag
def mail_is_sent() -> bool:
    """Whether this install can send mail to people; without it a password is reset by an operator."""
    return bool(settings.NOVASTACK_HAS_SMTP)


@register.filter
def get(mapping: Any, key: Any) -> Any:
    """`mapping[key]`, or None."""
    return mapping.get(key) if hasattr(mapping, "get") else None


@register.inclusion_tag("_partials/_field.html")
def field(bound: Any, **extra: Any) -> dict[str, Any]:
    """A form field in the house's hand: label, control, hint, errors. `label`, `hint`, `css`, `aside` may be given."""
    widget = bound.field.widget
    kind = getattr(widget, "input_type", "") or widget.__class__.__name__.lower()
    if kind in {"checkbox", "radio"} and not hasattr(widget, "choices"):
        css = ""
    elif "select" in kind:
        css = "select"
    else:
        css = "textarea" if isinstance(widget, Textarea) else "input"
    described = []
    if extra.get("hint") or bound.help_text:
        described.append(f"{bound.id_for_label}-hint")
    if bound.errors:
        described.append(f"{bound.id_for_label}-error")
    attrs: dict[str, Any] = {"class": f"{css} {extra.get('css', '')}".strip()}
    if described:
        attrs["aria-describedby"] = " ".join(described)
    if bound.errors:
        attrs["aria-invalid"] = "true"
    for name in ("placeholder", "autocomplete"):
        if name in extra:
            attrs[name] = extra[name]
    return {
        "field": bound,
        "control": bound.as_widget(attrs={k: v for k, v in attrs.items() if v}),
        "kind": kind,
        "label": extra.get("label") or bound.label,
        "hint": extra.get("hint") or bound.help_text,
        "aside": extra.get("aside"),
    }
