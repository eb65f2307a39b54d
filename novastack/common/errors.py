"""Errors that people see. Every one has a stable snake_case `code` and says what to do (RFC 9457 on the API)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FieldProblem:
    field: str
    code: str
    detail: str


class Problem(Exception):
    """A refusal for a reason the caller can act on. Services raise these; API, pages and commands show them."""

    status = 400
    code = "invalid"
    title = "The request is not valid"

    def __init__(
        self,
        detail: str = "",
        *,
        code: str | None = None,
        errors: Sequence[FieldProblem] = (),
        retry_after_seconds: int | None = None,
    ) -> None:
        super().__init__(detail or self.title)
        self.detail = detail or self.title
        self.errors = tuple(errors)
        self.retry_after_seconds = retry_after_seconds
        if code is not None:
            self.code = code


class Invalid(Problem):
    """400; name the field where there is one: `Invalid.field("name", "blank", "Give the project a name.")`."""

    @classmethod
    def field(cls, field: str, code: str, detail: str) -> Invalid:
        return cls(detail, errors=[FieldProblem(field, code, detail)])


class NotAuthenticated(Problem):
    status, code, title = 401, "not_authenticated", "Sign in, or send a valid token"


class PermissionDenied(Problem):
    status, code, title = 403, "permission_denied", "Your role or token does not allow this"


class NotFound(Problem):
    """404, also for what belongs to others. With a field: a foreign id in the body (rule 47)."""

    status, code, title = 404, "not_found", "There is no such thing here"

    @classmethod
    def field(cls, field: str, detail: str) -> NotFound:
        return cls(detail, errors=[FieldProblem(field, "not_found", detail)])


class Conflict(Problem):
    status, code, title = 409, "conflict", "This does not fit the current state"


class OperationInProgress(Conflict):
    code, title = "operation_in_progress", "Another operation is running; wait for it, or cancel it"


class ActionNotAllowed(Conflict):
    code, title = "action_not_allowed", "This action makes no sense in the current state"


class NameTaken(Conflict):
    code, title = "name_taken", "The name is taken; choose another one"


class QuotaExceeded(Conflict):
    code, title = "quota_exceeded", "The organization's quota is used up"


class ConfirmRequired(Conflict):
    code, title = "confirm_required", "Type the slug to confirm"


class ConfirmMismatch(Conflict):
    code, title = "confirm_mismatch", "The typed slug is not this project's"


class IdempotencyKeyReused(Problem):
    status, code, title = 422, "idempotency_key_reused", "This Idempotency-Key came with another body before"


class Throttled(Problem):
    status, code, title = 429, "throttled", "Too many requests; wait and try again"


class RuntimeNotAvailable(Problem):
    """Only for calls that are live by nature, such as logs (rule 4)."""

    status, code, title = 503, "runtime_unavailable", "The runtime can't be reached now"
