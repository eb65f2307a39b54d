"""Middleware of the kernel."""

from __future__ import annotations

from collections.abc import Callable

import structlog
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import render

from novastack.common.errors import NotFound, PermissionDenied, Problem
from novastack.common.health import healthz, readyz
from novastack.common.logs import clean_request_id

GetResponse = Callable[[HttpRequest], HttpResponseBase]


class RequestIdMiddleware:
    """Takes `X-Request-ID` (if it is a plain token) or makes one; binds it to every log line; returns it."""

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        request_id = clean_request_id(request.headers.get("X-Request-ID"))
        request.request_id = request_id  # type: ignore[attr-defined]
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        response = self.get_response(request)
        response["X-Request-ID"] = request_id
        return response


class ProbeMiddleware:
    """`/healthz` and `/readyz` for whoever asks, whatever the Host: load balancers and container checks use addresses.

    Stands before everything that looks at the Host; nothing in these answers depends on it. GET and HEAD only.
    """

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        view = {"/healthz": healthz, "/readyz": readyz}.get(request.path_info)
        return view(request) if view else self.get_response(request)


class ApiSlashMiddleware:
    """Under `/api/` a path without its last slash means the same: no redirect that loses a POST body (rule 49)."""

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        path = request.path_info
        if path.startswith("/api/") and not path.endswith("/"):
            request.path_info = path + "/"
            request.path += "/"
        return self.get_response(request)


class ProblemMiddleware:
    """A `Problem` that a page's view lets through becomes a page with its text and status (the API has its own handler)."""

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        return self.get_response(request)

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponse | None:
        if not isinstance(exception, Problem):
            return None
        template = {NotFound.status: "404.html", PermissionDenied.status: "403.html", 503: "503.html"}.get(
            exception.status, "400.html"
        )
        return render(request, template, {"problem": exception}, status=exception.status)
