"""Randomized faults: a project with nasty content under a writer is backed up, proven, restored, kept and removed while one to
three things break at random moments. Then everything works again, and within a bounded time it must have settled; and an oracle
that shares no code with NovaStack restores each backup by hand. None may be called verified that does not restore.

The plan of a run comes from `NOVASTACK_FAULTS_SEED` (the day, by default) and its number; `NOVASTACK_FAULTS_RUNS` names which:
`NOVASTACK_FAULTS_SEED=2026-11-22 NOVASTACK_FAULTS_RUNS=17 python -m pytest tests/faults/test_randomized.py` plays one again.
By default CI plays a few of fixed seeds, `make faults` 208.
"""

from __future__ import annotations

import datetime
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.conf import settings
from django.core.cache import cache

from projects import registry
from projects.operations import reconciler
from tests.faults import ledger
from tests.faults.chaos.ground import Ground
from tests.faults.chaos.oracle import NEEDED, Oracle
from tests.faults.chaos.plan import GROUNDS, Plan, plan
from tests.faults.chaos.play import Play
from tests.faults.conftest import ALL
from tests.faults.lanes import require

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.timeout(900),  # what has not settled is told by `Play`, with what is under way
    pytest.mark.skipif(
        any(shutil.which(name) is None for name in NEEDED), reason=f"needs {', '.join(NEEDED)} (Debian's age and zstd)"
    ),
]
SEED = os.environ.get("NOVASTACK_FAULTS_SEED", datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"))
MANY = 208
# What CI plays: always the same, on one ground, so that it costs little.
SAMPLE_SEED, SAMPLE = "ci", (4, 5, 9)


def numbers(text: str) -> list[int]:
    """`17`, `3,17,40-50`."""
    found = list[int]()
    for part in text.split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def chosen() -> list[Plan]:
    if asked := os.environ.get("NOVASTACK_FAULTS_RUNS"):
        found = [plan(SEED, number) for number in numbers(asked)]
    elif ALL:
        found = [plan(SEED, number) for number in range(MANY)]
    else:
        return [plan(SAMPLE_SEED, number) for number in SAMPLE]
    # One ground after the other, since each has to be made.
    return sorted(found, key=lambda p: (GROUNDS.index((p.engine, p.runtime)), p.number))


class Grounds:
    """One at a time; thrown away when a run failed on it, or used it up."""

    def __init__(self, folder: Path) -> None:
        self.oracle = Oracle(folder)
        self._one: Ground | None = None
        self._patch = pytest.MonkeyPatch()

    def on(self, wanted: Plan) -> Ground:
        if self._one is None or (self._one.engine, self._one.runtime_name) != (wanted.engine, wanted.runtime):
            self.throw_away()
            require(wanted.engine, wanted.runtime, self._patch)
            self._one = Ground(wanted.engine, wanted.runtime, self.oracle, wanted.seed, self._patch)
        return self._one

    def throw_away(self) -> None:
        if self._one is not None:
            self._one.close()
        self._one = None

    def close(self) -> None:
        self.throw_away()
        self.oracle.close()
        self._patch.undo()


@pytest.fixture
def _django_db_helper() -> None:
    """pytest-django's own would empty every table after each test."""


@pytest.fixture(scope="module")
def grounds(django_db_setup: None, django_db_blocker) -> Iterator[Grounds]:
    folder = Path(tempfile.mkdtemp(prefix="nvs-oracle-", dir="/tmp"))
    folder.chmod(0o711)
    with django_db_blocker.unblock(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_built", {})
        patch.setattr(reconciler, "_looked", {})
        patch.setattr(settings, "NOVASTACK_DATA_GRACE_SECONDS", 0)
        cache.clear()
        made = Grounds(folder)
        try:
            yield made
        finally:
            made.close()
            shutil.rmtree(folder, ignore_errors=True)


def cases() -> list[object]:
    return [pytest.param(p, id=f"{p.seed}-{p.number}", marks=getattr(pytest.mark, p.runtime)) for p in chosen()]


@pytest.mark.parametrize("wanted", cases())
def test_whatever_breaks_no_backup_is_called_verified_that_does_not_restore(grounds: Grounds, wanted: Plan) -> None:
    with ledger.fault("randomized", engine=wanted.engine, runtime=wanted.runtime, point=str(wanted)) as run:
        try:
            played = Play(grounds.on(wanted), wanted, run)
            played.go()
        except BaseException:
            grounds.throw_away()
            raise
        if played.used_up:
            grounds.throw_away()
