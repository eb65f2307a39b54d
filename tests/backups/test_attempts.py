"""An attempt at a dump that fails: what it holds of the database, and whether it is begun again at once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from backups.operations import taking_steps
from backups.operations.taking_steps import Taking
from projects.domain import SourceChanged
from projects.operations.base import StepFailed


class Attempts:
    """Of a backup whose storage and tools answer as slowly as is said. Seconds are those of a clock that only this moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *errors: Exception) -> None:
        self.clock, self.seen, self.errors = 0.0, list[str](), list(errors)
        self.seconds = {"prelude": 0.0, "dump": 0.0, "abort": 0.0}
        self.ends_badly = False
        backup = Mock(notes=[], attempt=0, organization_id="o", pk="b", operation_id="x", storage=Mock(encrypt=False))
        self.storage = Mock()
        self.storage.writer.return_value.abort.side_effect = lambda: self.pass_by("abort")
        self.ctx: Any = Mock()
        self.ctx.runtime.remove_tool.side_effect = lambda _: self.pass_by("prelude")
        self.ctx.engine.moment = self.moment
        for name, value in {
            "time": SimpleNamespace(monotonic=lambda: self.clock), "writable": lambda _: self.storage,
            "throw_away": lambda *_: [], "_save": lambda *_, **__: None, "_most_bytes": lambda _: None,
            "admitted": Mock(), "side_of": Mock(), "wiring": Mock(admin_session=lambda *_: contextlib.nullcontext(Mock())),
            "streaming": Mock(take=self.take),
        }.items():  # fmt: skip
            monkeypatch.setattr(taking_steps, name, value)
        self.taking = Taking("backup")
        monkeypatch.setattr(self.taking, "_backup", lambda _: backup)
        monkeypatch.setattr(self.taking, "_ensure_up", lambda _: None)

    def pass_by(self, what: str) -> None:
        self.seen.append(what)
        self.clock += self.seconds[what]

    @contextlib.contextmanager
    def moment(self, *_: Any, **__: Any) -> Iterator[Any]:
        try:
            yield Mock()
        finally:
            self.seen.append("let go")
            if self.ends_badly:
                raise ConnectionError("the session was gone")

    def take(self, *_: Any, **__: Any) -> Any:
        self.pass_by("dump")
        raise self.errors.pop(0)

    def dump(self) -> None:
        self.taking.dump(self.ctx)


@pytest.mark.parametrize("ends_badly", [False, True])
def test_the_database_is_let_go_before_the_storage_throws_away(
    monkeypatch: pytest.MonkeyPatch, ends_badly: bool
) -> None:
    """What a storage may take minutes for. And a session that ends badly does not hide why."""
    attempts = Attempts(monkeypatch, StepFailed("tool_failed", "The tool failed."))
    attempts.ends_badly = ends_badly
    with pytest.raises(StepFailed) as told:
        attempts.dump()
    assert told.value.code == "tool_failed"
    assert attempts.seen == ["prelude", "dump", "let go", "abort"]


@pytest.mark.parametrize(("slow", "again"), [("prelude", True), ("abort", True), ("dump", False)])
def test_begun_again_at_once_says_how_long_the_dump_itself_went(
    monkeypatch: pytest.MonkeyPatch, slow: str, again: bool
) -> None:
    """A storage or a server that answers slowly before and after uses none of its attempts up."""
    attempts = Attempts(
        monkeypatch, SourceChanged("a table was changed"), StepFailed("tool_failed", "The tool failed.")
    )
    attempts.seconds[slow] = 60.0
    with pytest.raises((SourceChanged, StepFailed)) as told:
        attempts.dump()
    assert told.value.code == ("tool_failed" if again else SourceChanged.code)
    assert attempts.seen.count("dump") == (2 if again else 1)
