"""Structured logs. The request id travels from the request through the operation row to the worker."""

from __future__ import annotations

import re
import uuid
from typing import Any

import structlog

_PLAIN = re.compile(r"^[A-Za-z0-9._-]{1,64}$")
_SECRET = re.compile(r"password|secret|token|authorization|cookie|api_key|verifier", re.IGNORECASE)
# Paths whose last part is the secret itself (tests/common/test_masking.py walks the routes for others), also
# percent-encoded, as in `?next=`. Ids of invitations are no secrets.
_SLASH = r"(?:/|%(?:25)*2[Ff])"
_SECRET_PATH = re.compile(
    rf"({_SLASH}(?:invitations|password{_SLASH}reset{_SLASH}key|confirm-email){_SLASH})"
    r"(?!(?:accept|[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12})(?![\w-]))"
    r"(?:[^/\s?&#\"'%]|%(?!(?:25)*2[Ff]))+"
)
_SECRET_QUERY = re.compile(
    r"((?:[?&;]|%(?:25)*(?:3F|26))[\w.-]*(?:token|key|secret|password|code|signature|verifier|session)[\w.-]*"
    r"(?:=|%(?:25)*3D))[^&\s#\"']+",
    re.IGNORECASE,
)

# What names places of a host: absolute paths, sockets, addresses with or without a port.
_HOST_PLACE = re.compile(
    r"\b(?:unix|tcp|npipe|ssh|https?)://[^\s\"',;)\]]+"
    r"|(?<![\w/.:@-])/(?:[\w.@+-]+/)*[\w.@+-]+(?:/(?=[\s\"',;:)\]]|$))?"
    r"|(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?::\d+)?(?![\w.])"
)


def without_places(text: str) -> str:
    """What a runtime said, for people who may not see its host: no path, socket or address in it."""
    return _HOST_PLACE.sub("[…]", text)


def mask_paths(text: str) -> str:
    """A line of a log without the secrets of links in it: `/invitations/[masked]/`, `?token=[masked]`."""
    return _SECRET_QUERY.sub(r"\1[masked]", _SECRET_PATH.sub(r"\1[masked]", text))


def clean_request_id(value: str | None) -> str:
    """The caller's id if it is a plain token, else a new one."""
    return value if value and _PLAIN.match(value) else uuid.uuid4().hex


def current_request_id() -> str:
    """The id bound to this request or task; empty outside of both."""
    return str(structlog.contextvars.get_contextvars().get("request_id", ""))


def mask_secrets(_logger: Any, _method: str, event: dict[str, Any]) -> dict[str, Any]:
    """No value under a key that smells of a secret is ever written, and no secret of a link."""
    for key in event:
        if _SECRET.search(key):
            event[key] = "[masked]"
        elif isinstance(event[key], str):  # Django's own lines name the path: "Not Found: /invitations/…/"
            event[key] = mask_paths(event[key])
    return event


def build(*, json: bool, level: str) -> dict[str, Any]:
    """The LOGGING dict; configures structlog on the way."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        mask_secrets,
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.processors.StackInfoRenderer(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if json
        else structlog.dev.ConsoleRenderer(
            colors=False,
            pad_event_to=30,
            exception_formatter=structlog.dev.plain_traceback,  # the pretty one prints local variables, so secrets
        )
    )
    formatter_chain: list[Any] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    if json:
        formatter_chain.append(structlog.processors.format_exc_info)
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "structured": {
                "()": structlog.stdlib.ProcessorFormatter,
                "processors": [*formatter_chain, renderer],
                "foreign_pre_chain": shared,
            }
        },
        "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "structured"}},
        "root": {"handlers": ["console"], "level": level},
        "loggers": {
            "django.server": {"level": "WARNING"},
            "django_structlog": {"level": "WARNING"},
            "celery": {"level": "WARNING"},
            "kombu": {"level": "WARNING"},
            "docker": {"level": "WARNING"},
            "urllib3": {"level": "WARNING"},
        },
    }
