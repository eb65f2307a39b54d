"""What acts by itself in a copy beside its source is switched off, and said before that (rule 26)."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from backups.operations import restore_sides

PREFIX = "Scheduled events came disabled, since their source may run them too: "


class Server:
    """Its events, of which one more is switched off before the session ends by itself."""

    def __init__(self, awake: list[str], *, refuses_at: int | None = None) -> None:
        self.awake, self.refuses_at = awake, refuses_at

    def events_of(self, _names: Any) -> list[str]:
        return sorted(self.awake)

    def rest_events(self, _names: Any, events: Sequence[str]) -> None:
        for number, event in enumerate(events):
            if number == self.refuses_at:
                raise ConnectionError
            self.awake.remove(event)


class Step:
    """A step's view: what it records stays for the next attempt."""

    def __init__(self) -> None:
        self.row = SimpleNamespace(data={})
        self.said: list[str] = []

    def guard(self) -> None:
        pass

    def say(self, message: str, *, level: str) -> None:
        assert level == "warning" and len(message) <= 500
        self.said.append(message)

    def record(self, **data: Any) -> None:
        self.row.data.update(data)


def rest(monkeypatch: pytest.MonkeyPatch, step: Any, server: Server) -> None:
    monkeypatch.setattr(restore_sides.wiring, "admin_session", lambda *_: contextlib.nullcontext(server))
    restore_sides.rest(step, SimpleNamespace(engine=None, server=None, names=None))  # type: ignore[arg-type]


def test_who_is_cut_short_has_named_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of them rest already when it is done again, which finds only the others."""
    names = [f"event_{number:03}_{'x' * 50}" for number in range(60)]
    server, step = Server(list(names), refuses_at=30), Step()
    with pytest.raises(ConnectionError):
        rest(monkeypatch, step, server)
    assert len(server.awake) == 30
    server.refuses_at = None
    rest(monkeypatch, step, server)
    rest(monkeypatch, step, server)
    assert server.awake == []
    assert step.row.data["resting"] == names
    assert [each for line in step.said for each in line.removeprefix(PREFIX).split(", ")] == names


def test_none_is_switched_off_before_it_was_said(monkeypatch: pytest.MonkeyPatch) -> None:
    server, step = Server(["a", "b"]), Step()

    def gone(_message: str, **_: Any) -> None:
        raise ConnectionError

    with monkeypatch.context() as patched:
        patched.setattr(step, "say", gone)
        with pytest.raises(ConnectionError):
            rest(patched, step, server)
    assert (server.awake, step.row.data) == (["a", "b"], {})
    rest(monkeypatch, step, server)
    assert (server.awake, step.said) == ([], [f"{PREFIX}a, b"])
