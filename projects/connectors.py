"""Registering projects with services over HTTP: signed JSON, idempotent, bounded (docs/services.md). Knows no rows.

Signed as Standard Webhooks are (https://www.standardwebhooks.com): `webhook-id`, `webhook-timestamp`, `webhook-signature`.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from novastack.common import outbound

SECRET_MARK = "whsec_"  # noqa: S105 - what every secret starts with
MOST_ID, MOST_URL, MOST_CONFIG = 200, 500, 16 * 1024


class ServiceRefused(Exception):
    """The service did not do it. `code`: `service_unreachable`, `service_failed` (it says so), `service_refused` (it will
    not, whenever), `service_answer_invalid`. The text is for people."""

    def __init__(self, code: str, detail: str, *, retryable: bool = True) -> None:
        super().__init__(detail)
        self.code, self.detail, self.retryable = code, detail, retryable


@dataclass(frozen=True, slots=True)
class Place:
    """An endpoint of a service."""

    service_type: str
    url: str
    secret: str = field(repr=False)
    timeout_seconds: float = 5


@dataclass(frozen=True, slots=True)
class Registration:
    """What a service answered: its own id for the project, where clients find it, and what else they need."""

    service_id: str
    endpoint: str
    config: Mapping[str, Any]


def new_secret() -> str:
    return SECRET_MARK + base64.b64encode(secrets.token_bytes(32)).decode()


def signature(secret: str, message_id: str, timestamp: int, body: bytes) -> str:
    key = base64.b64decode(secret.removeprefix(SECRET_MARK))
    signed = b".".join((message_id.encode(), str(timestamp).encode(), body))
    return "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()


def register(place: Place, project: Mapping[str, Any], generation: int) -> Registration:
    """Make the project known; known already is success. The message id names project, service and generation: the same
    for every try of one registration. Raises `ServiceRefused`."""
    answer = _send(place, "project.register", project, generation=generation)
    return _registration(place, answer)


def deregister(place: Place, project: Mapping[str, Any], generation: int, service_id: str) -> None:
    """Make it unknown; unknown already (404, 410) is success. Raises `ServiceRefused`."""
    _send(place, "project.deregister", project, generation=generation, service_id=service_id, gone_is_fine=True)


def check(place: Place) -> None:
    """Ask whether it is there. Raises `ServiceRefused`."""
    _send(place, "health", None)


def _send(
    place: Place,
    event: str,
    project: Mapping[str, Any] | None,
    *,
    generation: int = 0,
    service_id: str = "",
    gone_is_fine: bool = False,
) -> outbound.Answer:
    payload: dict[str, Any] = {"event": event, "service": place.service_type}
    if project is not None:
        payload["project"] = dict(project)
    if service_id:
        payload["service_id"] = service_id
    body = json.dumps(payload, separators=(",", ":"), sort_keys=True).encode()
    name = (
        f"{project['id']}.{place.service_type}.{generation}"
        if project is not None
        else f"health.{secrets.token_hex(8)}"
    )
    message_id, timestamp = f"{event}.{name}", int(time.time())
    headers = {
        "Content-Type": "application/json", "Accept": "application/json", "User-Agent": "NovaStack",
        "Idempotency-Key": message_id, "webhook-id": message_id, "webhook-timestamp": str(timestamp),
        "webhook-signature": signature(place.secret, message_id, timestamp, body),
    }  # fmt: skip
    try:
        answer = outbound.post(place.url, body, headers=headers, timeout_seconds=place.timeout_seconds)
    except outbound.OutboundError as error:
        retryable = error.code not in {"bad_url", "address_refused"}
        raise ServiceRefused("service_unreachable", f"{_title(place)}: {error.detail}", retryable=retryable) from None
    if 200 <= answer.status < 300 or (gone_is_fine and answer.status in {404, 410}):
        return answer
    if answer.status >= 500 or answer.status in {408, 425, 429}:
        raise ServiceRefused("service_failed", f"{_title(place)} answered {answer.status}.")
    raise ServiceRefused("service_refused", f"{_title(place)} refused: {answer.status}.", retryable=False)


def _registration(place: Place, answer: outbound.Answer) -> Registration:
    """What it says, believed only in the agreed shape."""
    try:
        found = answer.json()
    except ValueError:
        raise ServiceRefused("service_answer_invalid", f"{_title(place)} did not answer with JSON.") from None
    found = found if isinstance(found, dict) else {}
    service_id, endpoint, config = found.get("service_id"), found.get("endpoint", ""), found.get("config", {})
    if not (isinstance(service_id, str) and 0 < len(service_id) <= MOST_ID and service_id.isprintable()):
        raise ServiceRefused("service_answer_invalid", f"{_title(place)} named no `service_id`.")
    if not isinstance(endpoint, str) or len(endpoint) > MOST_URL or (endpoint and not _is_url(endpoint)):
        raise ServiceRefused("service_answer_invalid", f"{_title(place)} named an `endpoint` that is no URL.")
    if not isinstance(config, dict) or len(json.dumps(config)) > MOST_CONFIG or "\\u0000" in json.dumps(config):
        raise ServiceRefused("service_answer_invalid", f"{_title(place)} sent a `config` that can't be kept.")
    return Registration(service_id, endpoint, config)


def _is_url(text: str) -> bool:
    try:
        outbound.check_url(text.replace("wss://", "https://", 1).replace("ws://", "http://", 1))
    except outbound.OutboundError:
        return False
    return True


def _title(place: Place) -> str:
    return f"The {place.service_type} service"
