"""Rows that a server needs memory for: how much is chosen, and what is said of one that lacks it. On real servers:
tests/restores/test_mysql."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from backups.operations import large_rows, scratch
from backups.operations.proving_steps import server_lost
from projects import domain, registry
from projects.operations.base import StepFailed

MIB = 1 << 20


@pytest.mark.parametrize(
    ("engine", "row", "needed", "chosen"),
    [
        ("mysql", 0, 0, 512), ("mysql", 68, 832, 832), ("mariadb", 68, 768, 768), ("mariadb", 20, 320, 512),
        ("mysql", 1024, 13632, 2048), ("postgresql", 1024, 0, 512),
    ],
)  # fmt: skip
def test_a_throw_away_server_has_memory_for_the_largest_row(engine: str, row: int, needed: int, chosen: int) -> None:
    """Within bounds: nobody gets gigabytes by a row."""
    driver = registry.engine(engine)
    assert driver.memory_for_row(row * MIB) == needed * MIB
    assert scratch.memory_bytes(driver, row * MIB) == chosen * MIB
    said = large_rows.note(driver, row * MIB, 512 * MIB)
    assert bool(said) is (needed > 512) and (not said or f"about {needed} MiB of memory" in said)


def side(*states: tuple[domain.ServerState, bool]) -> Any:
    """Its server is as the first says, and then as the next does; the last stays."""
    left = list(states)

    def observe(handles: list[str]) -> dict[str, domain.Observation]:
        state, killed = left.pop(0) if len(left) > 1 else left[0]
        return {handles[0]: domain.Observation(state, oom_killed=killed)}

    return SimpleNamespace(
        server=SimpleNamespace(handle="h", memory_bytes=512 * MIB), runtime=SimpleNamespace(observe=observe)
    )


WAS_KILLED = (domain.ServerState.RUNNING, True)  # within the hour, and it runs again
UP, DEAD = (domain.ServerState.RUNNING, False), (domain.ServerState.STOPPED, True)


@pytest.mark.parametrize(
    "error",
    [StepFailed("target_lost", "gone"), domain.ServerNotReady("gone"), StepFailed("restore_failed", "killed")],
    ids=str,
)
def test_out_of_memory_is_said_also_when_the_session_ended_first(error: Exception) -> None:
    late = [UP, UP, DEAD] if getattr(error, "code", "") != "restore_failed" else [DEAD]
    with pytest.raises(StepFailed) as failed, server_lost(side(*late)):
        raise error
    assert failed.value.code == "capacity_exhausted" and "of which it has 512 MiB" in failed.value.detail
    backup: Any = SimpleNamespace(engine="mysql", manifest={"dump": {"row_bytes": 68 * MIB}})
    with pytest.raises(StepFailed) as failed, large_rows.memory_told(side(*late), backup):
        raise error
    assert (failed.value.code, failed.value.retryable) == ("plan_too_small", False)
    assert "needs about 832 MiB of memory" in failed.value.detail
    if isinstance(error, StepFailed):
        assert failed.value.detail.endswith(f"It ended with: {error.detail}"), "the tool's own words are kept"


def test_other_ends_stay_what_they_were() -> None:
    wrong = StepFailed("restore_failed", "syntax", retryable=False)
    backup: Any = SimpleNamespace(engine="mysql", manifest={})
    with pytest.raises(StepFailed) as failed, large_rows.memory_told(side(UP), backup):
        raise wrong
    assert failed.value is wrong
    with pytest.raises(StepFailed) as failed, server_lost(side(UP)):
        raise wrong
    assert failed.value is wrong


def test_a_server_that_ran_out_of_memory_before_is_not_blamed_again() -> None:
    """Of one that runs the runtime says so for an hour: of a pool's server by what another tenant did."""
    wrong = StepFailed("restore_failed", "syntax")
    backup: Any = SimpleNamespace(engine="postgresql", manifest={})
    for look in (lambda: server_lost(side(WAS_KILLED)), lambda: large_rows.memory_told(side(WAS_KILLED), backup)):
        with pytest.raises(StepFailed) as failed, look():
            raise wrong
        assert failed.value is wrong
    lost = StepFailed("target_lost", "gone")
    with pytest.raises(StepFailed) as failed, large_rows.memory_told(side(WAS_KILLED, WAS_KILLED, DEAD), backup):
        raise lost
    assert failed.value.code == "plan_too_small"
