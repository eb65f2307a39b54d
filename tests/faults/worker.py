"""A real worker process that can be told where to die: `python -m tests.faults.worker`.

It does what worker and beat do (run what is due, reconcile, the janitor) in one loop, through the same functions. The
product knows nothing of this: steps are wrapped here, in this process. `NOVASTACK_FAULT` is
`<kind>:<step>:<when>`, when = `before`, `after`, `inside:<n>` (before the n-th statement to the control database within
the step) or `later:<seconds>` (in the middle of whatever it does then). It dies by SIGKILL, once.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from dataclasses import replace
from typing import Any

import django


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def install_fault(text: str) -> None:
    from django.db import connection

    from projects.operations import base

    kind, name, when, *number = text.split(":")

    def dying(run: Any) -> Any:
        def step(ctx: Any) -> None:
            if when == "before":
                die()
            if when == "later":
                threading.Timer(float(number[0]), die).start()
                run(ctx)
                die()
            if when == "inside":
                left = [int(number[0])]

                def watch(execute: Any, *rest: Any) -> Any:
                    left[0] -= 1
                    if left[0] == 0:
                        die()
                    return execute(*rest)

                with connection.execute_wrapper(watch):
                    run(ctx)
                die()  # it has fewer statements: this is `after`
            run(ctx)
            die()

        return step

    definition = base.latest_definition(kind)
    steps = tuple(replace(s, run=dying(s.run)) if s.name == name else s for s in definition.steps)
    base.register(replace(definition, steps=steps))


def main() -> None:
    django.setup()
    from projects.models import Operation
    from projects.operations import janitor, queue, reconciler, runner, watch

    if fault := os.environ.get("NOVASTACK_FAULT"):
        install_fault(fault)
    due: list[Any] = []
    queue.send_hint = reconciler.send_hint = due.append  # type: ignore[assignment] # this process is the broker, too
    reconciles = os.environ.get("NOVASTACK_FAULT_RECONCILE", "1") == "1"
    ticked = 0.0
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while True:
        if reconciles and time.monotonic() - ticked > 2:
            ticked = time.monotonic()
            reconciler.reconcile()
            janitor.delete_due_data()
            watch.check_health()
        due += Operation.objects.live().filter(lease_until=None, next_attempt_at=None).values_list("pk", flat=True)
        worked = [runner.run(pk) for pk in dict.fromkeys(due)]
        due.clear()
        if not any(worked):
            time.sleep(0.1)


if __name__ == "__main__":
    main()
