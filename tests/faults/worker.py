"""Real worker processes that can be told where to die: `python -m tests.faults.worker`.

It reads orders, one JSON object a line, and answers each with one (`workers.py` is the other end). A worker is a fork of
this process, which has only imported things: so it is there at once.

A worker does what worker and beat do (run what is due, reconcile, the janitor) in one loop, through the same functions. The
product knows nothing of this: steps are wrapped here, in this process. A fault is
`<kind>:<step>:<when>` (for projects on pools `<kind>/pool:…`), when = `before`, `after`, `inside:<n>` (before the n-th
statement to the control database within the step) or `later:<seconds>` (in the middle of whatever it does then); a step
`undo <name>` is what takes that one back, with `/<refused>` behind it since the step `refused` fails for good. It dies by
SIGKILL, once.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import threading
import time
import traceback
from dataclasses import replace
from typing import Any

import django


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def install_fault(text: str) -> None:
    from django.db import connection

    from projects.operations import base

    kinds, name, when, *number = text.split(":")
    kind, _, variant = kinds.partition("/")

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

    def refuse(_ctx: Any) -> None:
        raise base.StepFailed("refused", "The test refuses it.", retryable=False)

    name, _, refused = name.partition("/")
    which, name = ("undo", name.removeprefix("undo ")) if name.startswith("undo ") else ("run", name)

    def changed(step: Any) -> Any:
        if step.name == name:
            return replace(step, **{which: dying(getattr(step, which))})
        return replace(step, run=refuse) if step.name == refused else step

    definition = base.latest_definition(kind, variant)
    steps = tuple(map(changed, definition.steps))
    base.register(replace(definition, steps=steps))


def work(fault: str, reconciles: bool, ready: int) -> None:
    from backups.operations import deleting, scratch
    from projects.models import Operation
    from projects.operations import abilities, janitor, queue, reconciler, retiring, runner, standby_upkeep, watch

    if fault:
        install_fault(fault)
    abilities.look = lambda *_: 0  # type: ignore[assignment] # what a region could run is asked of registries: seconds
    due: list[Any] = []
    queue.send_hint = lambda pk, *_: due.append(pk)  # type: ignore[assignment] # this process is the broker, too
    reconciler.send_hint = queue.send_hint
    ticked = tidied = 0.0
    os.write(ready, b".")
    os.close(ready)
    while True:
        if reconciles and time.monotonic() - ticked > 1:
            ticked = time.monotonic()
            reconciler.reconcile()
            janitor.delete_due_data()
            retiring.drop_due()
            watch.check_health()
            standby_upkeep.keep()
        if reconciles and time.monotonic() - tidied > 5:
            tidied = time.monotonic()
            scratch.sweep()
            deleting.go_on()
            deleting.sweep_uploads()
        due += Operation.objects.live().filter(lease_until=None, next_attempt_at=None).values_list("pk", flat=True)
        worked = [runner.run(pk) for pk in dict.fromkeys(due)]
        due.clear()
        if not any(worked):
            time.sleep(0.1)


def begin(fault: str, reconciles: bool) -> int:
    """Fork a worker; returns its pid once it is at work, 0 if it never was."""
    told, ready = os.pipe()
    if pid := os.fork():
        os.close(ready)
        came = os.read(told, 1)
        os.close(told)
        return pid if came else 0
    os.close(told)
    os.setsid()  # Ctrl-C is not for it
    libc = ctypes.CDLL(None)
    libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: it never outlives whoever can end it
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(2, 1)  # the other end reads answers there
    try:
        work(fault, reconciles, ready)
    except BaseException:
        traceback.print_exc()
    os._exit(70)


def code_of(pid: int, seconds: float) -> int | None:
    """How it ended (a signal's number negated), after at most `seconds`; None if it lives."""
    deadline = time.monotonic() + seconds
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= deadline:
            return None
        time.sleep(0.005)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    django.setup()
    from projects import registry  # noqa: F401 - imported before the first fork
    from projects.operations import janitor, queue, reconciler, runner, watch  # noqa: F401
    from projects.runtimes import docker  # noqa: F401

    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            answer = {"code": code_of(order["wait"], order["seconds"])}
        else:
            answer = {"pid": begin(order["fault"], order["reconciles"])}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
