"""Is the process alive, can it serve, how does the install do. `/healthz`, `/readyz`, `/metrics`."""

from __future__ import annotations

import hmac
import time
from collections.abc import Iterable
from datetime import timedelta
from typing import Any, Protocol

from django.conf import settings
from django.core.cache import cache
from django.db import DatabaseError, connection
from django.db.migrations.executor import MigrationExecutor
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Metric, generate_latest

from novastack.common.api import problem_body
from novastack.common.clock import now
from novastack.common.models import Heartbeat

STARTED = time.monotonic()
HEARTBEAT_STALE = timedelta(seconds=60)
_FORWARDED = ("HTTP_X_FORWARDED_FOR", "HTTP_X_FORWARDED_HOST", "HTTP_X_FORWARDED_PROTO", "HTTP_FORWARDED",
              "HTTP_X_REAL_IP", "HTTP_VIA")  # fmt: skip
_migrated = False


class Collector(Protocol):
    def collect(self) -> Iterable[Metric]: ...


registry = CollectorRegistry(auto_describe=False)


def uptime_seconds() -> int:
    """Of this process."""
    return int(time.monotonic() - STARTED)


def database_ok() -> bool:
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
            return bool(cursor.fetchone())
    except DatabaseError:
        return False


def _migrations_done() -> bool:
    """Whether the schema is the code's; once it is, it is not asked again."""
    global _migrated
    if not _migrated:
        executor = MigrationExecutor(connection)
        _migrated = not executor.migration_plan(executor.loader.graph.leaf_nodes())
    return _migrated


def cache_ok() -> bool:
    """Rate limits and throttles need it."""
    try:
        cache.set("health", "1", 10)
        return bool(cache.get("health") == "1")
    except Exception:  # every backend has errors of its own
        return False


def fresh_heartbeats(prefix: str) -> list[str]:
    """Names of the processes that gave a sign of life within the last minute."""
    return list(
        Heartbeat.objects.filter(name__startswith=prefix, at__gt=now() - HEARTBEAT_STALE).values_list("name", flat=True)
    )


@require_safe
@never_cache
def healthz(request: HttpRequest) -> HttpResponse:
    """The process lives. Touches nothing, so that a broken database restarts no web process."""
    return HttpResponse("ok\n", content_type="text/plain")


@require_safe
@never_cache
def readyz(request: HttpRequest) -> HttpResponse:
    """It can serve: database there and migrated, cache writable. 503 with the names of what is missing."""
    failing = []
    if not database_ok():
        failing.append("database")
    else:
        failing += [] if _migrations_done() else ["migrations"]
        failing += [] if cache_ok() else ["cache"]
    status = "unavailable" if failing else "ready"
    return JsonResponse({"status": status, "failing": failing}, status=503 if failing else 200)


def _may_read_metrics(request: HttpRequest) -> bool:
    """By token; without one, only over loopback and not through a proxy (rule 52)."""
    scheme, _, sent = request.headers.get("Authorization", "").partition(" ")
    if settings.NOVASTACK_METRICS_TOKEN and scheme.lower() == "bearer":
        return hmac.compare_digest(sent.strip().encode(), settings.NOVASTACK_METRICS_TOKEN.encode())
    loopback = request.META.get("REMOTE_ADDR") in {"127.0.0.1", "::1"}
    return loopback and not any(name in request.META for name in _FORWARDED)


@require_safe
@never_cache
def metrics(request: HttpRequest) -> HttpResponse:
    """Prometheus text. Everything is read from the database, so every web process says the same."""
    if not _may_read_metrics(request):
        body = problem_body(
            status_code=401, code="not_authenticated", request_id=getattr(request, "request_id", ""),
            detail="Send the metrics token, or ask over loopback.",
        )  # fmt: skip
        headers = {"WWW-Authenticate": 'Bearer realm="metrics"'}
        return JsonResponse(body, status=401, content_type="application/problem+json", headers=headers)
    return HttpResponse(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)


def check(ok: bool, detail: str = "", **more: Any) -> dict[str, Any]:
    """One entry of the health answer."""
    return {"status": "healthy" if ok else "degraded", "detail": detail, **more}
