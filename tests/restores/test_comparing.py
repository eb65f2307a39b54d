"""What a restore must be equal in, before it is anybody's database."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from backups.operations import restore_sides
from projects.domain import Fingerprint, TableContent
from projects.operations.base import StepFailed

WANTED = Fingerprint(
    {"public.t": TableContent(2, "ab")},
    {
        ("view", "public.v"): "v|x", ("value of sequence", "public.s"): "(5, True)",
        ("content of large object", "4711"): "3:abc",
    },
)  # fmt: skip


def prove(monkeypatch: pytest.MonkeyPatch, found: Fingerprint, version: str, dumped: str = "15") -> list[str]:
    """What is said of a copy on a server of that version."""
    manifest = SimpleNamespace(contents=WANTED, version=dumped)
    monkeypatch.setattr(restore_sides.restoring_data, "read_manifest", lambda _: manifest)
    monkeypatch.setattr(restore_sides.comparing, "contents", lambda *_, **__: found)
    monkeypatch.setattr(restore_sides.comparing, "around_differences", lambda *_: [])
    said: list[str] = []
    ctx: Any = SimpleNamespace(
        operation=SimpleNamespace(pk="x"), say=lambda text, **_: said.append(text), record=lambda **_: None,
        explain=lambda _: None,
    )  # fmt: skip
    restore_sides.prove(ctx, SimpleNamespace(server=SimpleNamespace(version=version)), None)  # type: ignore[arg-type]
    return said


def changed(*key: str, state: str | None) -> Fingerprint:
    facts = {name: value for name, value in WANTED.facts.items() if name != key}
    return Fingerprint(WANTED.tables, facts if state is None else {**facts, (key[0], key[1]): state})


@pytest.mark.parametrize("version", ["15", "18"])
@pytest.mark.parametrize(
    ("found", "told"),
    [
        (changed("value of sequence", "public.s", state="(1, False)"), "value of sequence public.s differs"),
        (changed("content of large object", "4711", state="0:"), "content of large object 4711 differs"),
        (changed("content of large object", "4711", state=None), "content of large object 4711 is missing"),
        (Fingerprint({"public.t": TableContent(1, "ab")}, WANTED.facts), "table public.t has 1 rows instead of 2"),
    ],
)
def test_data_is_equal_on_every_version(
    monkeypatch: pytest.MonkeyPatch, found: Fingerprint, told: str, version: str
) -> None:
    with pytest.raises(StepFailed) as failed:
        prove(monkeypatch, found, version)
    assert failed.value.code == "restore_differs" and told in failed.value.detail


def test_a_newer_server_may_spell_definitions_otherwise_and_that_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    found = changed("view", "public.v", state="v|y")
    assert prove(monkeypatch, found, "18") == ["After the upgrade: view public.v differs"]
    # MariaDB's and MySQL's lines have two numbers.
    assert prove(monkeypatch, found, "11.8", dumped="11.4") == ["After the upgrade: view public.v differs"]
    with pytest.raises(StepFailed):
        prove(monkeypatch, found, "15")
    assert prove(monkeypatch, WANTED, "15") == prove(monkeypatch, WANTED, "18") == []
