"""Error pages. Below `/api/` they are problem documents, elsewhere pages that need neither database nor session."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.template import TemplateDoesNotExist, loader

from novastack.common.api import CODES, TITLES, problem_body

_DETAILS = {
    400: "The request is not valid", 403: "Your role or token does not allow this",
    404: "There is no such thing here", 500: "Something broke on our side",
}  # fmt: skip


def _answer(request: HttpRequest, status: int) -> HttpResponse:
    request_id = getattr(request, "request_id", "")
    if request.path.startswith("/api/"):
        body = problem_body(status_code=status, code=CODES[status], detail=_DETAILS[status], request_id=request_id)
        return JsonResponse(body, status=status, content_type="application/problem+json")
    context = {"status": status, "title": TITLES[status], "detail": _DETAILS[status], "request_id": request_id}
    try:
        # A 500 may come from the database: its page gets no context processors.
        html = loader.get_template(f"{status}.html").render(context, None if status == 500 else request)
    except TemplateDoesNotExist:
        return HttpResponse(f"{status} {TITLES[status]}\n", status=status, content_type="text/plain")
    return HttpResponse(html, status=status)


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    return _answer(request, 400)


def permission_denied(request: HttpRequest, exception: Exception) -> HttpResponse:
    return _answer(request, 403)


def page_not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    return _answer(request, 404)


def server_error(request: HttpRequest) -> HttpResponse:
    return _answer(request, 500)
