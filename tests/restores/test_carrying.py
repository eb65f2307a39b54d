"""A login's password on the copy that takes over, where a product gives no hashes (MongoDB, which was never run here)."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from backups.operations import restore_steps


@pytest.mark.parametrize("hashes", [{}, {"mine": "hash"}])
def test_the_known_password_where_there_are_no_hashes(monkeypatch: pytest.MonkeyPatch, hashes: dict[str, str]) -> None:
    admin = Mock()
    admin.password_hashes.return_value = hashes
    monkeypatch.setattr(restore_steps.wiring, "admin_session", lambda *_: contextlib.nullcontext(admin))
    secret = SimpleNamespace(open=lambda: "of today")
    ctx: Any = Mock(names=SimpleNamespace(login="mine"), role=lambda _: SimpleNamespace(secret=secret))
    side: Any = Mock(names=SimpleNamespace(login="theirs"))
    restore_steps.carry_password(ctx, side)
    if hashes:
        admin.put_password_hashes.assert_called_once_with(side.names, {"theirs": "hash"})
        admin.set_password.assert_not_called()
    else:
        admin.set_password.assert_called_once_with("theirs", "of today")
