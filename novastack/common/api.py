"""The API's manners: problem+json, pagination, throttling, idempotency."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import structlog
from django.core.cache import caches
from django.core.exceptions import PermissionDenied as DjangoPermissionDenied
from django.core.exceptions import RequestDataTooBig
from django.db import IntegrityError, transaction
from django.http import Http404
from django.utils.connection import ConnectionProxy
from rest_framework import exceptions, pagination, parsers, status, throttling
from rest_framework.request import Request
from rest_framework.response import Response

from novastack.common.clock import now
from novastack.common.errors import Conflict, FieldProblem, IdempotencyKeyReused, Invalid, Problem
from novastack.common.models import IdempotencyRecord

log = structlog.get_logger(__name__)

TITLES = {
    400: "The request is not valid", 401: "Sign in, or send a valid token", 403: "Not allowed", 404: "Not found",
    405: "This method is not possible here", 406: "This format is not offered", 409: "Conflict",
    413: "The request is too large", 415: "Send application/json", 422: "Cannot be processed",
    423: "Locked", 429: "Too many requests", 500: "Something broke on our side", 503: "Not available now",
}  # fmt: skip
CODES = {
    400: "invalid", 401: "not_authenticated", 403: "permission_denied", 404: "not_found", 405: "method_not_allowed",
    406: "not_acceptable", 409: "conflict", 413: "too_large", 415: "unsupported_media_type", 429: "throttled",
    500: "internal_error", 503: "unavailable",
}  # fmt: skip


def problem_body(
    *, status_code: int, code: str, detail: str, request_id: str, errors: list[dict[str, str]] | None = None
) -> dict[str, Any]:
    """One problem document (RFC 9457): `type, title, status, detail, code, request_id, errors[]`."""
    return {
        "type": f"urn:novastack:problem:{code}",
        "title": TITLES.get(status_code, "Error"),
        "status": status_code,
        "detail": detail,
        "code": code,
        "request_id": request_id,
        "errors": errors or [],
    }


def _field_errors(detail: Any, prefix: str = "") -> list[FieldProblem]:
    if isinstance(detail, dict):
        found: list[FieldProblem] = []
        for key, value in detail.items():
            name = prefix if key == "non_field_errors" else f"{prefix}.{key}".lstrip(".")
            found += _field_errors(value, name)
        return found
    if isinstance(detail, list):
        return [problem for item in detail for problem in _field_errors(item, prefix)]
    return [FieldProblem(prefix, getattr(detail, "code", "invalid") or "invalid", str(detail))]


def problem_handler(exc: Exception, context: dict[str, Any]) -> Response | None:
    """DRF's exception handler: every error is `application/problem+json`; the unknown ones are logged whole, shown not."""
    from rest_framework.views import set_rollback  # its APIView takes its defaults from this very module

    request = context["request"]
    request_id = getattr(request._request, "request_id", "")
    headers: dict[str, str] = {}
    errors: list[FieldProblem] = []
    if isinstance(exc, Problem):
        code, status_code, detail, errors = exc.code, exc.status, exc.detail, list(exc.errors)
        if exc.retry_after_seconds is not None:
            headers["Retry-After"] = str(exc.retry_after_seconds)
    elif isinstance(exc, exceptions.ValidationError):
        errors = _field_errors(exc.detail)
        code, status_code = "invalid", 400
        first = errors[0] if errors else None
        detail = f"{first.field}: {first.detail}" if first and first.field else first.detail if first else TITLES[400]
    elif isinstance(exc, exceptions.APIException):
        status_code = exc.status_code
        code = CODES.get(status_code, str(exc.default_code))
        if isinstance(exc, exceptions.ParseError):
            code = "invalid"
        detail = str(exc.detail)
        if isinstance(exc, exceptions.AuthenticationFailed):
            code = str(getattr(exc.detail, "code", None) or "not_authenticated")
            code = "not_authenticated" if code == "authentication_failed" else code
        if isinstance(exc, exceptions.Throttled):
            headers["Retry-After"] = str(int(getattr(exc, "wait", None) or 1) + 1)
        if header := getattr(exc, "auth_header", None):
            headers["WWW-Authenticate"] = header
    elif isinstance(exc, Http404):
        code, status_code, detail = "not_found", 404, "There is no such thing here"
    elif isinstance(exc, DjangoPermissionDenied):
        code, status_code, detail = "permission_denied", 403, "Your role or token does not allow this"
    elif isinstance(exc, RequestDataTooBig):
        code, status_code, detail = "too_large", 413, "The request body is too large"
    else:
        log.error("unhandled error in the API", error=type(exc).__name__, exc_info=exc)
        code, status_code, detail = (
            "internal_error",
            500,
            f"Something broke on our side; the request id is {request_id}",
        )
    set_rollback()
    body = problem_body(
        status_code=status_code, code=code, detail=detail, request_id=request_id,
        errors=[{"field": e.field, "code": e.code, "detail": e.detail} for e in errors],
    )  # fmt: skip
    return Response(body, status=status_code, headers=headers, content_type="application/problem+json")


class JSONParser(parsers.JSONParser):
    """Reads the whole body first: its size is limited there, and `idempotent` can hash it afterwards."""

    def parse(self, stream: Any, media_type: Any = None, parser_context: Any = None) -> Any:
        body = stream.body if hasattr(stream, "body") else stream.read()
        try:
            data = super().parse(io.BytesIO(body), media_type, parser_context)
            field = _half_character(data) if b"\\ud" in body.lower() else None
        except RecursionError:
            raise exceptions.ParseError("The JSON is nested too deeply.") from None
        if field is not None:
            raise Invalid.field(field, "invalid", "Half of a surrogate pair is no character.")
        return data


def _half_character(data: Any, path: str = "") -> str | None:
    """Where a text holds a lone surrogate, which neither a database nor an answer can carry; None if nowhere."""
    if isinstance(data, str):
        return path if any("\ud800" <= character <= "\udfff" for character in data) else None
    if isinstance(data, dict):
        if any(_half_character(str(key), path) is not None for key in data):
            return path
        pairs = [(f"{path}.{key}".lstrip("."), value) for key, value in data.items()]
    elif isinstance(data, list):
        pairs = [(path, value) for value in data]
    else:
        return None
    return next((found for at, value in pairs if (found := _half_character(value, at)) is not None), None)


class PageNumberPagination(pagination.PageNumberPagination):
    """`{"count", "next", "previous", "results"}`, 25 a page, at most 100."""

    page_size = 25
    page_size_query_param = "page_size"
    max_page_size = 100


class CursorPagination(pagination.CursorPagination):
    """For feeds that grow without end: `{"next", "previous", "results"}`, newest first."""

    page_size = 50
    page_size_query_param = "page_size"
    max_page_size = 100
    ordering = "-id"

    def decode_cursor(self, request: Request) -> Any:
        """404 for one that nobody was given: the feeds go by number, and DRF would hand any text to the database."""
        cursor = super().decode_cursor(request)
        position: Any = cursor.position if cursor is not None else None  # a text, whatever the stubs say
        if position is not None and not (position.isascii() and position.isdigit() and len(position) < 19):
            raise exceptions.NotFound(self.invalid_cursor_message)
        return cursor


def principal_of(request: Request) -> str:
    """Who acts: `token:<id>` or `user:<id>`; empty for anonymous."""
    token = getattr(request, "auth", None)
    if token is not None and hasattr(token, "prefix"):
        return f"token:{token.pk}"
    return f"user:{request.user.pk}" if request.user.is_authenticated else ""


_counts: Any = ConnectionProxy(caches, "throttle")


class AnonThrottle(throttling.AnonRateThrottle):
    cache = _counts
    scope = "anon"


class PrincipalThrottle(throttling.SimpleRateThrottle):
    """Per token, else per user."""

    cache = _counts
    scope = "principal"

    def get_cache_key(self, request: Request, view: Any) -> str | None:
        principal = principal_of(request)
        return self.cache_format % {"scope": self.scope, "ident": principal} if principal else None


class AuthThrottle(throttling.AnonRateThrottle):
    """For sign-in and registration, per address."""

    cache = _counts
    scope = "auth"

    def get_cache_key(self, request: Request, view: Any) -> str | None:
        return self.cache_format % {"scope": self.scope, "ident": self.get_ident(request)}


IDEMPOTENCY_TAKEOVER = timedelta(seconds=60)
IDEMPOTENCY_LIFE = timedelta(hours=24)


def idempotent(
    request: Request,
    *,
    organization_id: Any,
    effect: Callable[[], tuple[int, dict[str, str]]],
    rebuild: Callable[[int, dict[str, str]], Response],
    body_hash: str | None = None,
) -> Response:
    """Run `effect` once per `Idempotency-Key` (rule 44).

    `effect` makes rows and returns (status, resource ids); row and effect are one transaction. `rebuild` turns that
    into the answer, for the first call and for every replay (which is authorised again by the caller's scoped fetch, and
    holds no secret). Same key with another body: 422. The first one still in flight: 409.
    """
    key = request.headers.get("Idempotency-Key", "")
    if not key:
        with transaction.atomic():
            made = effect()
        return rebuild(*made)
    if len(key) > 255 or not key.isprintable():
        raise Invalid.field("Idempotency-Key", "invalid", "Use at most 255 printable characters.")
    if body_hash is None:
        body_hash = hashlib.sha256(request._request.body).hexdigest()
    where = {
        "principal": principal_of(request),
        "organization_id": organization_id,
        "route": f"{request.method} {request._request.path}"[:200],
        "key": key,
    }
    record = _claim(where, body_hash)
    if record.status_code is not None:
        response = rebuild(record.status_code, dict(record.resource or {}))
        response["Idempotency-Replayed"] = "true"
        return response
    try:
        with transaction.atomic():
            # Two that took over at the same time: the second waits here and then finds the answer.
            locked = IdempotencyRecord.objects.select_for_update().get(pk=record.pk)
            if locked.status_code is None:
                made = effect()
                locked.status_code, locked.resource = made
                locked.save(update_fields=["status_code", "resource", "updated_at"])
                replayed = False
            else:
                made, replayed = (locked.status_code, dict(locked.resource or {})), True
    except Exception:
        # Nothing was made: the key is free for a corrected or repeated call.
        IdempotencyRecord.objects.filter(pk=record.pk, status_code=None).delete()
        raise
    response = rebuild(*made)
    if replayed:
        response["Idempotency-Replayed"] = "true"
    return response


def _claim(where: dict[str, Any], body_hash: str) -> IdempotencyRecord:
    IdempotencyRecord.objects.filter(**where, created_at__lt=now() - IDEMPOTENCY_LIFE).delete()
    try:
        with transaction.atomic():
            return IdempotencyRecord.objects.create(**where, body_hash=body_hash)
    except IntegrityError:
        record = IdempotencyRecord.objects.filter(**where).first()
    if record is None:
        return _claim(where, body_hash)  # it failed and freed the key in between
    if record.body_hash != body_hash:
        raise IdempotencyKeyReused
    if record.status_code is None:
        taken = IdempotencyRecord.objects.filter(
            pk=record.pk, status_code=None, claimed_at__lt=now() - IDEMPOTENCY_TAKEOVER
        ).update(claimed_at=now())
        if not taken:
            raise Conflict("The first call with this Idempotency-Key is still running; ask again in a moment.",
                           retry_after_seconds=1)  # fmt: skip
    return record


class SecretResponse(Response):
    """An answer that holds a secret: never stored by anybody on the way (rule 44)."""

    def __init__(self, data: Any = None, status: int = status.HTTP_200_OK, **kwargs: Any) -> None:
        super().__init__(data, status=status, **kwargs)
        self["Cache-Control"] = "no-store"
        self["Pragma"] = "no-cache"
