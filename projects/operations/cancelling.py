"""Whether an operation can still be cancelled: what pages, API and the service that asks it to stop go by."""

from __future__ import annotations

from projects.models import Operation
from projects.operations import base
from projects.operations.context import COMMITTED


def of_a_cancellable_kind(operation: Operation) -> bool:
    definition = base.definition_of(operation.kind, operation.definition_version, operation.variant)
    return definition is not None and definition.cancellable


def is_committed(operation: Operation) -> bool:
    """It has passed its point of no return, after which a worker finishes it whatever it is asked. Reads its steps."""
    return any(step.data.get(COMMITTED) for step in operation.steps.all())


def may_be_cancelled(operation: Operation) -> bool:
    """Somebody may ask it to stop, and nobody has yet. Fetch with `with_steps()`."""
    return (
        operation.live
        and operation.cancel_requested_at is None
        and of_a_cancellable_kind(operation)
        and not is_committed(operation)
    )
