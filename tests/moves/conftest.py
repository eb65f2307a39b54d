"""Fixtures of the fault tests, by import: the same sites; and what moves of every engine are tested by."""

from __future__ import annotations

import subprocess
import time
from typing import Any

import pytest
from django.db import transaction

from projects.models import Database, Operation, Project
from projects.operations import copying, pool_removal, pools, reconciler, runner
from tests.faults.conftest import Site, _fresh, docker_site, process_site  # noqa: F401


def drained(site: Site, project: Project) -> Operation:
    """The pool of the project is drained: workers and ticks, until the project is elsewhere. The move, which may have steps
    to go; there is one other pool then."""
    pool = Database.objects.get(project=project).server
    with transaction.atomic():
        pool_removal.drain_begin(pool, created_by_label="test")
    deadline = time.monotonic() + 240
    while Project.objects.get(pk=project.pk).databases.filter(slot="current", server=pool).exists():
        assert time.monotonic() < deadline, list(
            Operation.objects.values_list("kind", "state", "error", "steps__name", "steps__state", "steps__detail")
        )
        for pk in Operation.objects.live().order_by("created_at").values_list("pk", flat=True):
            Operation.objects.filter(pk=pk).update(next_attempt_at=None)
            runner.run(pk)
        reconciler.reconcile()
    assert pools.pools().exclude(pk=pool.pk).count() == 1
    return Operation.objects.get(kind="move")


def kill_while_copying(monkeypatch: pytest.MonkeyPatch, whom: str) -> list[str]:
    """The container of the `source` or `target` is killed once something was copied; its name is put on the list then."""
    killed: list[str] = []
    whole = copying.copy

    def interrupted(*args: Any, **options: Any) -> int:
        pulse, end = options["pulse"], args[1] if whom == "source" else args[2]

        def pulsing(moved: int) -> None:
            if not killed and moved:
                killed.append(end.handle.name)
                subprocess.run(["docker", "kill", end.handle.name], check=True, capture_output=True)
            pulse(moved)

        return whole(*args, **{**options, "pulse": pulsing})

    monkeypatch.setattr(copying, "copy", interrupted)
    return killed
