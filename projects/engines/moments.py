"""A database at one moment: what holds it still while it is dumped, and what hears its dump on the way back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from projects.domain import Command, Credentials, Endpoint, Fingerprint, TenantNames


class Moment(ABC):
    """One moment of a database, held open while its dump is taken, and what the database held at that moment.

    Products that let another session see the same moment (PostgreSQL) read it beside the dump; the others
    (`from_stream`) are told from the dump's own stream. Whoever moves the stream calls `hear` with every piece, as it came.
    """

    command: Command  # of the dump tool: the archive on standard output
    from_stream: bool = False
    notes: tuple[str, ...] = ()  # what is not in the dump, or is not compared; for people
    row_bytes: int = 0  # once all was heard: of a row as the dump has it, where one is so large that it matters
    tool: str = ""  # the dump tool and its version, once the stream has begun

    def begin(self) -> bytes:
        """The tool was started, which may have taken a while: this is the moment. What it is to be told on its standard
        input, for which it waits; empty: it waits for nothing, and has begun by itself. Raises as `contents`."""
        return b""

    def hear(self, piece: bytes) -> None:  # noqa: B027 - some need none of it
        """A piece of the tool's output as it came; every one, in order, whether `from_stream` or not. Raises `EngineError`
        when it is not what the tool writes."""

    def heard_all(self) -> None:  # noqa: B027
        """The tool has ended well, and all of its output was heard."""

    @abstractmethod
    def contents(self, pulse: Callable[[], None]) -> Fingerprint:
        """What the database held. Beside the dump (in another thread, `pulse` ends it by raising), or, `from_stream`, after
        its end. Raises
        `EngineError` when the stream was not what this product's tool writes to its end (cut off, left its database …).
        """


class Restoring(ABC):
    """A dump on its way into a restore tool: hears every piece of it, and does afterwards what the tool does not."""

    def hear(self, piece: bytes) -> None:  # noqa: B027 - most need none of it
        """A piece of the archive, every one, in order. Raises `EngineError` when it is none."""

    @abstractmethod
    def finish(
        self, endpoint: Endpoint, credentials: Credentials, names: TenantNames, *, pulse: Callable[[], None]
    ) -> None:
        """The tool has ended well. `credentials` are its login's. May take as long as making indexes does; `pulse` is called
        between them, and ends it by raising."""
