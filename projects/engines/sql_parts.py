"""What scripts of some tables of a backup share, whatever the product."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from projects.domain import EngineError

WAIT_BYTES = 64 << 20  # passed over, until a line says so: whoever waits for bytes sees that some come


class Gone(EngineError):
    """The archive does not hold what was chosen. `field`: of which `Selection`'s it is."""

    retryable = False

    def __init__(self, said: str, *, field: str = "tables") -> None:
        super().__init__(said)
        self.field = field


class TooLarge(EngineError):
    """The archive may be good: a part of it that has to be in memory is larger than is taken there."""

    retryable = False


class Unclear(EngineError):
    """The archive may be good: to which table a part of it belongs can't be told."""

    retryable = False


@dataclass(frozen=True, slots=True)
class Title:
    """`about`: what the script is of, for a comment. `mark`: what no row of it holds; the last line says it."""

    about: str
    mark: str

    @property
    def end(self) -> str:
        return f"-- End of {self.mark}."


def remarks(title: Title, told: Iterable[str], command: str) -> bytes:
    about, whole = title.about, f"The file is whole only if its last line is `{title.end}`: look before you load it."
    lines = [about, whole, *told, f"Nothing is dropped: load it where these are not. {command}"]
    return "".join(f"-- {_printable(line)}\n" for line in lines).encode() + b"\n"


def waiting(skipped: int, size: int) -> tuple[int, bytes]:
    """How much was passed over, and a comment when that is much again, else nothing."""
    after = skipped + size
    return after, b"-- \n" if after // WAIT_BYTES > skipped // WAIT_BYTES else b""


def _printable(line: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in line)[:500]
