"""What can go wrong, as exceptions. All are `NovaStackError`; the classes say what to do about it, `code` says exactly what.

None of them holds what was sent: no token, no password gets into a log with them. They can be pickled (Celery, processes).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from novastack_client.models import Allocation, Operation, OperationError


@dataclass(frozen=True, slots=True)
class FieldError:
    """What is wrong with one field of the request (or, for `operation`, with what it started)."""

    field: str
    code: str
    detail: str


class NovaStackError(Exception):
    """`code` is stable, `detail` is for people. `status` is the HTTP status, 0 if there was none.

    `retryable`: the same call may succeed later. `after_lost_answer`: an attempt before this one had no answer, and may
    have been carried out.
    """

    def __init__(
        self,
        detail: str,
        *,
        code: str,
        status: int = 0,
        errors: Sequence[FieldError] = (),
        request_id: str = "",
        retryable: bool = False,
        retry_after_seconds: float | None = None,
        after_lost_answer: bool = False,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.code = code
        self.status = status
        self.errors = tuple(errors)
        self.request_id = request_id
        self.retryable = retryable
        self.retry_after_seconds = retry_after_seconds
        self.after_lost_answer = after_lost_answer

    def __str__(self) -> str:
        told = f" (request {self.request_id})" if self.request_id else ""
        return f"{self.code}: {self.detail}{told}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.code!r}, status={self.status}, request_id={self.request_id!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (type(self), self.detail, self._values())

    def _values(self) -> dict[str, Any]:
        return {
            "code": self.code, "status": self.status, "errors": self.errors, "request_id": self.request_id,
            "retryable": self.retryable, "retry_after_seconds": self.retry_after_seconds,
            "after_lost_answer": self.after_lost_answer,
        }  # fmt: skip


def _again(kind: type[NovaStackError], detail: str, values: Mapping[str, Any]) -> NovaStackError:
    return kind(detail, **values)


class Invalid(NovaStackError):
    """400, 413, 415, 422: what was sent; `errors` names the fields."""


class NotAuthenticated(NovaStackError):
    """401: no valid token."""


class PermissionDenied(NovaStackError):
    """403: the token's scopes or its owner's role do not allow it."""


class NotFound(NovaStackError):
    """404: no such thing, or somebody else's."""


class Conflict(NovaStackError):
    """409: it does not fit the present state; `code` says why."""


class QuotaExceeded(Conflict):
    """409 `quota_exceeded`."""


class Throttled(NovaStackError):
    """429, also after waiting and trying again."""


class Unavailable(NovaStackError):
    """502, 503, 504, or no answer at all, also after trying again."""


class DeadlineExceeded(NovaStackError, TimeoutError):
    """`deadline_seconds` are over. What was begun goes on: call again to go on waiting. `allocation` and `operation`: as they
    were last seen; None if they never were."""

    def __init__(
        self, detail: str, *, allocation: Allocation | None = None, operation: Operation | None = None, **values: Any
    ) -> None:
        super().__init__(detail, **{"code": "deadline_exceeded", "retryable": True, **values})
        self.allocation = allocation
        self.operation = operation

    def _values(self) -> dict[str, Any]:
        return {**super()._values(), "allocation": self.allocation, "operation": self.operation}


class OperationFailed(NovaStackError):
    """The operation has ended otherwise than well. `code`, `detail`, `retryable` are its error's."""

    def __init__(self, detail: str, *, operation: Operation, **values: Any) -> None:
        super().__init__(detail, **values)
        self.operation = operation

    @classmethod
    def of(cls, operation: Operation) -> OperationFailed:
        error = operation.error or OperationError(operation.state, f"The operation has {operation.state}.", False)
        return cls(error.detail, operation=operation, code=error.code, retryable=error.retryable)

    def _values(self) -> dict[str, Any]:
        return {**super()._values(), "operation": self.operation}


_BY_STATUS: dict[int, type[NovaStackError]] = {
    400: Invalid, 401: NotAuthenticated, 403: PermissionDenied, 404: NotFound, 409: Conflict, 413: Invalid,
    415: Invalid, 422: Invalid, 429: Throttled, 502: Unavailable, 503: Unavailable, 504: Unavailable,
}  # fmt: skip
RETRIED = frozenset({429, 502, 503, 504})


def error_of(
    status: int, body: Any, *, request_id: str = "", retry_after_seconds: float | None = None,
    after_lost_answer: bool = False,
) -> NovaStackError:  # fmt: skip
    """The exception for an answer: by its problem document, or by its status if it has none (a proxy's page)."""
    body = body if isinstance(body, dict) else {}
    code = str(body.get("code") or f"http_{status}")
    kind = QuotaExceeded if code == "quota_exceeded" else _BY_STATUS.get(status, NovaStackError)
    fields = [each for each in body.get("errors") or [] if isinstance(each, dict)]
    return kind(
        str(body.get("detail") or f"The server answered {status}."),
        code=code,
        status=status,
        errors=[FieldError(*(str(each.get(name, "")) for name in ("field", "code", "detail"))) for each in fields],
        request_id=str(body.get("request_id") or request_id),
        retryable=status in RETRIED or retry_after_seconds is not None,
        retry_after_seconds=retry_after_seconds,
        after_lost_answer=after_lost_answer,
    )
