"""Makes operations and prints, per line, the seconds from commit to the first step's begin."""

from __future__ import annotations

import os
import sys
import time
from datetime import UTC, datetime

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "novastack.settings")

from django.db import transaction

from bench import worker  # sets Django up and registers the kind
from bench.fixtures import many_projects, person, region
from bench.hints import pause
from novastack.common.ids import uuid7
from projects.models import OperationStep
from projects.operations.queue import operation_create


def main(rounds: int) -> None:
    assert worker.NOTHING
    _, organization = person()
    project = many_projects(organization, 1, where=region(f"bench-{uuid7().hex}"))[0]
    for number in range(rounds + 3):  # the first three wake the worker up
        pause()
        committed: list[datetime] = []
        with transaction.atomic():
            # Registered first, so that sending the hint is inside the figure.
            transaction.on_commit(lambda seen=committed: seen.append(datetime.now(UTC)))
            operation = operation_create(project=project, kind="bench_nothing")
        step = _await(operation.pk)
        if number >= 3 and step.started_at is not None:
            print((step.started_at - committed[0]).total_seconds())


def _await(operation_id: object) -> OperationStep:
    end = time.monotonic() + 30
    while time.monotonic() < end:
        step = OperationStep.objects.select_related("operation").get(operation_id=operation_id)
        if step.operation.finished_at is not None:
            return step
        time.sleep(0.02)
    raise SystemExit("the worker did not take the hint within 30 s")


if __name__ == "__main__":
    main(int(sys.argv[1]))
