"""One process of an install: `python -m novastack.embedded.child <role>`.

Everything is imported first; then the child waits at its gate (a pipe that the supervisor closes when the control
database is ready), so that a start on few cores overlaps loading code with making databases.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from typing import Any

WORKERS = {
    # role: (queues, threads)
    "worker": ("provisioning,maintenance,backups", 8),
    "worker-monitoring": ("monitoring", 2),
}


def main() -> None:
    role = sys.argv[1]
    os.environ["NOVASTACK_PROCESS"] = f"novastack-{role}"
    import django

    django.setup()
    if role == "prepare":
        prepare()
    elif role == "web":
        web()
    elif role == "beat":
        celery(["beat", "--loglevel=WARNING", "--pidfile=", f"--schedule={os.environ['NOVASTACK_HOME']}/run/beat"])
    else:
        queues, threads = WORKERS[role]
        celery([
            "worker", f"--queues={queues}", "--pool=threads", f"--concurrency={threads}", f"--hostname={role}@novastack",
            "--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel=INFO",
        ])  # fmt: skip


def gate() -> None:
    """Wait until the supervisor opens the gate, or is gone."""
    number = os.environ.pop("NOVASTACK_GATE_FD", "")
    if number:
        with os.fdopen(int(number), "rb") as pipe:
            pipe.read()


def celery(arguments: list[str]) -> None:
    import celery.apps.beat
    import celery.apps.worker
    import celery.concurrency.thread  # noqa: F401 - loaded before the gate, not after

    from novastack.celery import app

    app.loader.import_default_modules()
    gate()
    app.start(arguments)


def web() -> None:
    """gunicorn on a socket that the supervisor holds: a restart loses no connection, and nobody can take the port."""
    import gunicorn.workers.gthread  # noqa: F401 - loaded before the gate, not after
    from gunicorn.app.wsgiapp import run

    import novastack.wsgi  # noqa: F401 - loaded before the gate, and before gunicorn forks

    gate()
    sys.argv = [
        "gunicorn", "novastack.wsgi:application", f"--bind=fd://{os.environ['NOVASTACK_WEB_FD']}", "--workers=1",
        "--worker-class=gthread", f"--threads={os.environ.get('NOVASTACK_WEB_THREADS', '8')}", "--timeout=120",
        "--graceful-timeout=5", "--keep-alive=5", "--log-level=warning", "--no-control-socket",
    ]  # fmt: skip
    run()


def prepare() -> None:
    """Migrations, cache table, first-start data; one line of JSON. Then, for a first project, one more when it runs."""
    from django.core.management import call_command
    from django.db import connection
    from django.db.migrations.executor import MigrationExecutor

    from projects.management.commands.setup_install import prepare as setup_install

    gate()
    executor = MigrationExecutor(connection)
    if executor.migration_plan(executor.loader.graph.leaf_nodes()):
        call_command("migrate", interactive=False, verbosity=0)
    call_command("createcachetable", verbosity=0)
    answer = setup_install()
    _say(answer)
    if project := answer.get("project_id"):
        _say(_wait_for(project, seconds=180))


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
        time.sleep(0.1)


def _say(value: dict[str, Any]) -> None:
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.write(json.dumps(value) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
