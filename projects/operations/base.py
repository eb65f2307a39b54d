"""What an operation is made of: definitions, steps, policies, and how a step says what happened."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from projects.models.choices import OnGiveUp, ProjectStatus

if TYPE_CHECKING:
    from projects.models import Operation, Region
    from projects.operations.context import Context

# Rule 2. The database's clock decides.
LEASE_SECONDS = 20
HEARTBEAT_SECONDS = 5
MAX_CRASHES = 5
OPERATION_ATTEMPTS = 3
OPERATION_RETRY_SECONDS = 300
UNDO_ATTEMPTS = 6
PLATFORM_CONNECTIONS = 10  # ours, the superuser's reserve and parallel workers, above what is promised to tenants


class Wait(Exception):
    """Not now: give the worker back and come again. Uses up no attempt (rule 4)."""

    def __init__(self, reason: str, *, seconds: float = 10) -> None:
        super().__init__(reason)
        self.reason, self.seconds = reason, seconds


class StepFailed(Exception):
    """The step failed. `code` is stable; `detail` is for people and holds no secret. `raw`: what is for operators only,
    where that says more."""

    def __init__(self, code: str, detail: str, *, retryable: bool = True, raw: str = "") -> None:
        super().__init__(detail)
        self.code, self.detail, self.retryable, self.raw = code, detail, retryable, raw


class CancelRequested(Exception):
    """Somebody asked to cancel, and this operation may be undone."""


class LeaseLost(Exception):
    """Another worker has the operation now: do nothing more, write nothing more."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """`attempts` tries in all; before the n-th retry `delay_seconds × factor^(n-1)`, at most `cap_seconds`."""

    attempts: int = 3
    delay_seconds: float = 5
    factor: float = 2
    cap_seconds: float = 300

    def delay(self, attempt: int) -> float:
        """Seconds to wait after the given failed attempt (1, 2 …)."""
        return min(self.cap_seconds, self.delay_seconds * self.factor ** min(attempt - 1, 16))


# design.md, Provisioning
DATABASE_RETRY = RetryPolicy(attempts=3, delay_seconds=10)
SERVER_RETRY = RetryPolicy(attempts=3, delay_seconds=5)
SCHEMA_RETRY = RetryPolicy(attempts=3, delay_seconds=5)
KEYS_RETRY = RetryPolicy(attempts=2, delay_seconds=2)

StepFunction = Callable[["Context"], None]


@dataclass(frozen=True, slots=True)
class Step:
    """A named, idempotent step. `run` may be called again at any point; `undo` takes back what `run` left behind. An
    `optional` one is part of an operation only if that was asked for when it was recorded."""

    name: str
    title: str
    run: StepFunction
    undo: StepFunction | None = None
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    deadline_seconds: float = 120
    back_to: str = ""  # when the server is gone under this step, this earlier one starts it again
    optional: bool = False


def _nothing(_operation: Operation) -> None:
    return None


@dataclass(frozen=True, slots=True)
class Definition:
    """A kind of operation. `while_running` is the project's status meanwhile; the hooks run inside the transaction that
    ends the operation and touch rows only."""

    kind: str
    title: str
    steps: tuple[Step, ...]
    on_give_up: OnGiveUp
    while_running: ProjectStatus | None
    version: int = 1
    variant: str = ""  # "pool": how the same kind is done for a project on a pool
    cancellable: bool = False
    yields: bool = False  # a deletion that queues behind may cut it short between side effects
    once: bool = False  # a failure ends it: the whole is not begun again after five minutes
    queue: str = "provisioning"  # whose workers run it
    # Where an operation of this kind works, when that is neither its project's region nor its server's; None: nowhere, as
    # far as is known yet.
    region: Callable[[Operation], Region | None] | None = None
    # Its steps are short: rows that one has loaded still serve the next one, and that one has begun need not be on the disk
    # before it works. Should the control database crash meanwhile, the step is begun again, from rows that are there.
    carries: bool = False
    insists: bool = False  # never gives up, whatever the error: tried again at the longest back-off (rule 1)
    on_success: Callable[[Operation], None] = _nothing
    on_failure: Callable[[Operation], None] = _nothing


_definitions: dict[tuple[str, int], Definition] = {}
_latest: dict[str, Definition] = {}
_variants: dict[tuple[str, int, str], Definition] = {}
_latest_variants: dict[tuple[str, str], Definition] = {}


def register(definition: Definition) -> None:
    """Make a kind, or a variant of it, known. Older versions may stay registered, so that what was begun under them can
    end."""
    if definition.variant:
        _variants[definition.kind, definition.version, definition.variant] = definition
        latest = _latest_variants.get((definition.kind, definition.variant))
        if latest is None or latest.version <= definition.version:
            _latest_variants[definition.kind, definition.variant] = definition
        return
    _definitions[definition.kind, definition.version] = definition
    known = _latest.get(definition.kind)
    if known is None or known.version <= definition.version:
        _latest[definition.kind] = definition


def prepend_steps(kind: str, steps: tuple[Step, ...]) -> None:
    """Another app puts steps in front of a kind and its variants, from its `AppConfig.ready()` (rule 6): a purge's final
    backup."""
    for current in (_latest[kind], *(each for (name, _), each in _latest_variants.items() if name == kind)):
        register(replace(current, steps=(*steps, *current.steps), version=current.version))


def insert_steps(kind: str, before: str, steps: tuple[Step, ...], variant: str = "") -> None:
    """Another app puts (optional) steps in front of the named one of a kind, from its `AppConfig.ready()`."""
    current = latest_definition(kind, variant)
    names = [step.name for step in current.steps]
    at = names.index(before)
    register(replace(current, steps=(*current.steps[:at], *steps, *current.steps[at:]), version=current.version))


def definition_of(kind: str, version: int, variant: str = "") -> Definition | None:
    """What an operation was recorded under."""
    return _variants.get((kind, version, variant)) if variant else _definitions.get((kind, version))


def latest_definition(kind: str, variant: str = "") -> Definition:
    """What a new operation is recorded under: the variant's, or the kind's own where it has none of that name."""
    return _latest_variants.get((kind, variant)) or _latest[kind]


def latest_of(kind: str, variant: str = "") -> Definition | None:
    return _latest_variants.get((kind, variant)) if variant else _latest.get(kind)


def queue_of(kind: str) -> str:
    """Whose workers run operations of this kind."""
    known = _latest.get(kind)
    return known.queue if known is not None else "provisioning"


def titles() -> dict[str, str]:
    """kind → title, for people."""
    return {kind: definition.title for kind, definition in _latest.items()}
