"""What operations say in the OpenAPI schema: their problem answers (beyond `schema.add_problems`) and common headers."""

from __future__ import annotations

from typing import Any

from drf_spectacular.utils import OpenApiParameter, OpenApiResponse

PROBLEM_TYPE = "application/problem+json"
TEXTS = {
    400: "`invalid`: what was sent; `errors` names the field",
    401: "`not_authenticated`: no valid token, or none",
    403: "`permission_denied`: role or scopes do not allow it",
    404: "`not_found`: no such thing, or not yours",
    409: "Does not fit the present state: `operation_in_progress`, `action_not_allowed`, `name_taken` …",
    422: "`idempotency_key_reused`: the key came with another body before",
    429: "`throttled`: see `Retry-After`",
    503: "`runtime_unavailable`: the runtime can't be reached now",
}


def problems(*statuses: int) -> dict[Any, OpenApiResponse]:
    """Responses for these statuses, and for 401 and 429, which every call may answer."""
    reference = {"$ref": "#/components/schemas/Problem"}
    return {
        (status, PROBLEM_TYPE): OpenApiResponse(reference, description=TEXTS.get(status, ""))
        for status in sorted({401, 429, *statuses})
    }


IDEMPOTENCY_KEY = OpenApiParameter(
    "Idempotency-Key", str, OpenApiParameter.HEADER, required=False,
    description="Same key and body: the first answer again, with `Idempotency-Replayed: true`. Kept for 24 h.",
)  # fmt: skip
