"""The processes of an install: `python -m novastack.embedded.child nursery | web | worker | worker-monitoring | beat`.

At a start the nursery loads all code once, while the control database is being made, and forks every role from that, so
that a start on few cores takes seconds. Nothing is connected to anything before the fork. Each child then waits at its
gate (a pipe that the supervisor writes to) until the nursery has migrated the database; a gate that is closed without a
word means that the supervisor is gone, or was told to stop, and ends the child: also one that nobody heard of yet. A child
that ended later is started afresh, alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from projects.runtimes.process_table import ProcessRef

_PR_SET_NAME = 15
WORKERS = {
    # role: (queues, threads, seconds between looks at empty queues)
    "worker": ("provisioning,maintenance,backups", 8, 0.02),
    "worker-monitoring": ("monitoring", 2, 0.1),
}


def main() -> None:
    role = sys.argv[1]
    load(role)
    if role == "nursery":
        nursery()
    else:
        become(role)


def load(role: str) -> None:
    """Import what the role runs (the nursery: what all of them run)."""
    import django

    django.setup()
    if role in {"nursery", "web"}:
        import gunicorn.app.wsgiapp
        import gunicorn.workers.gthread  # noqa: F401
        from django.urls import get_resolver

        import novastack.common.access_log
        import novastack.wsgi  # noqa: F401

        _ = get_resolver().url_patterns  # views and serializers
    if role != "web":
        import celery.apps.beat
        import celery.apps.worker
        import celery.bin.celery
        import celery.concurrency.thread  # noqa: F401

        from novastack.celery import app

        app.loader.import_default_modules()
        app.finalize()


def become(role: str) -> None:
    """Run the role in this process until it ends."""
    from django.conf import settings

    settings.DATABASES["default"]["OPTIONS"]["application_name"] = f"novastack-{role}"
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(_PR_SET_NAME, f"nvs-{role}"[:15].encode(), 0, 0, 0)
    if role == "web":
        _web()
    elif role == "beat":
        _celery(["beat", "--loglevel=WARNING", "--pidfile=", f"--schedule={os.environ['NOVASTACK_HOME']}/run/beat"])
    else:
        queues, threads, poll_seconds = WORKERS[role]
        if "polling_interval" in settings.CELERY_BROKER_TRANSPORT_OPTIONS:
            settings.CELERY_BROKER_TRANSPORT_OPTIONS["polling_interval"] = poll_seconds
        _celery([
            "worker", f"--queues={queues}", "--pool=threads", f"--concurrency={threads}", f"--hostname={role}@novastack",
            "--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel=INFO",
        ])  # fmt: skip


def _celery(arguments: list[str]) -> None:
    from novastack.celery import app

    app.start(arguments)


def _web() -> None:
    """gunicorn on a socket that the supervisor holds: a restart loses no connection, and nobody can take the port."""
    from gunicorn.app.wsgiapp import run

    sys.argv = [
        "gunicorn", "novastack.wsgi:application", f"--bind=fd://{os.environ['NOVASTACK_WEB_FD']}", "--workers=1",
        "--worker-class=gthread", f"--threads={os.environ.get('NOVASTACK_WEB_THREADS', '8')}", "--timeout=120",
        "--graceful-timeout=5", "--keep-alive=5", "--log-level=warning", "--no-control-socket",
        "--logger-class=novastack.common.access_log.MaskingLogger",
    ]  # fmt: skip
    run()


# --- the nursery --------------------------------------------------------------------------------------------------


def nursery() -> None:
    """Fork the roles, then: migrations, cache table, first-start data. Says what it did as lines of JSON: the children;
    the first start; and, for a first project, how that went."""
    roles = os.environ["NOVASTACK_ROLES"].split(",")
    go = int(os.environ.pop("NOVASTACK_GO_FD"))
    database = int(os.environ.pop("NOVASTACK_GATE_FD"))
    gc.freeze()
    _say({"children": {role: _fork(role, go, database) for role in roles}})
    os.close(go)
    if _wait_at(database):
        _prepare()


def _fork(role: str, go: int, database: int) -> str:
    """A child of its own session that nobody here has to wait for; returns its `pid:start:boot`."""
    reader, writer = os.pipe()
    middle = os.fork()
    if middle == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        _run_forked(role, go, writer, [reader, database])
    os.close(writer)
    os.waitpid(middle, 0)
    with os.fdopen(reader, "rb") as pipe:
        return pipe.read().decode()


def _run_forked(role: str, go: int, tell: int, close: list[int]) -> None:
    code = 1
    try:
        for number in close:
            os.close(number)
        os.setsid()
        log = os.open(
            Path(os.environ["NOVASTACK_HOME"]) / "logs" / f"{role}.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600
        )
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.write(tell, str(ProcessRef.of(os.getpid())).encode())
        os.close(tell)
        if _wait_at(go):
            become(role)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _wait_at(gate: int) -> bool:
    """Until the supervisor opens the gate (True) or is gone."""
    try:
        return os.read(gate, 1) != b""
    finally:
        os.close(gate)


def _prepare() -> None:
    from django.core.management import call_command
    from django.db import connection
    from django.db.migrations.executor import MigrationExecutor

    from projects.management.commands.setup_install import prepare as setup_install
    from projects.operations import wiring

    executor = MigrationExecutor(connection)
    if executor.migration_plan(executor.loader.graph.leaf_nodes()):
        call_command("migrate", interactive=False, verbosity=0)
    call_command("createcachetable", verbosity=0)
    answer = {**setup_install(), "install_id": str(wiring.install_id())}
    _say(answer)
    if project := answer.get("project_id"):
        _say(_wait_for(str(project), seconds=180))


def _wait_for(project: str, *, seconds: float) -> dict[str, Any]:
    """The first project's state once it is ready, has failed, or the time is over."""
    import io

    from django.core.management import call_command

    deadline = time.monotonic() + seconds
    while True:
        text = io.StringIO()
        call_command("first_project_status", project, stdout=text)
        found: dict[str, Any] = json.loads(text.getvalue())
        if found.get("uri") or found.get("status") in {"failed", "not_available"} or time.monotonic() > deadline:
            return found
        time.sleep(0.2)


def _say(value: dict[str, Any]) -> None:
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.write(json.dumps(value) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
