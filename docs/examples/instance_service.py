"""A service that starts instances (of a shop, of an Odoo …) and gets the database of each from NovaStack.

Needs novastack-client, Celery and psycopg, and NOVASTACK_URL and NOVASTACK_TOKEN (scopes `write` and `connect`):

    celery -A instance_service worker
    python instance_service.py create shop-4711
    python instance_service.py show shop-4711

Instances are kept in a SQLite file here, where yours are in your own database. Passwords are not kept at all: NovaStack has
them, and whoever starts an instance asks.
"""

from __future__ import annotations

import os
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
from celery import Celery

from novastack_client import Connection, DeadlineExceeded, NovaStack, NovaStackError

BROKER = os.environ.get("INSTANCE_BROKER_URL", "redis://localhost:6379/1")
STORE = Path(os.environ.get("INSTANCE_STORE", "instances.sqlite3"))
TASK_SECONDS = 50  # a task waits no longer than this, then makes room for others and comes back
TRIES_AFTER_FAILURE = 3
PAUSE_AFTER_FAILURE_SECONDS = 300

app = Celery("instance_service", broker=BROKER)
app.conf.task_acks_late = True  # a worker that dies while it waits gives the task to another one: that is safe here
app.conf.task_ignore_result = True
if BROKER.startswith("filesystem://"):  # without a Redis: for trying it out
    folder = os.environ["INSTANCE_BROKER_FOLDER"]
    app.conf.broker_transport_options = {
        "data_folder_in": folder, "data_folder_out": folder, "control_folder": folder, "processed_folder": folder,
    }  # fmt: skip


# --- instances ------------------------------------------------------------------------------------------------------------
def store(sql: str, *values: Any) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(STORE, timeout=10)) as link, link:
        link.execute("CREATE TABLE IF NOT EXISTS instances (id TEXT PRIMARY KEY, status TEXT, detail TEXT)")
        return link.execute(sql, values).fetchall()


def set_status(instance_id: str, status: str, detail: str = "") -> None:
    store("INSERT OR REPLACE INTO instances VALUES (?, ?, ?)", instance_id, status, detail)


def status_of(instance_id: str) -> str:
    rows = store("SELECT status, detail FROM instances WHERE id = ?", instance_id)
    return " ".join(rows[0]).strip() if rows else "unknown"


# --- their databases ------------------------------------------------------------------------------------------------------
def create_instance(instance_id: str) -> str:
    """What the service's own API calls. It answers at once: the rest is a task's when the database is not there yet.

    May be called again for the same instance at any time; it is given the same database.
    """
    set_status(instance_id, "waiting for its database")
    with NovaStack.from_env() as nova:
        database = nova.allocate_database(instance_id, wait=False)
    if database.connection is not None:
        provision_instance(instance_id, database.connection)
    else:
        wait_for_database_and_provision.apply_async((instance_id,), countdown=database.retry_after_seconds or 1)
    return status_of(instance_id)


@app.task(bind=True, max_retries=None)
def wait_for_database_and_provision(task: Any, instance_id: str, failures: int = 0) -> None:
    """Wait for the database, then start the instance. Whatever happens to this task, it can be run again."""
    try:
        with NovaStack.from_env() as nova:
            database = nova.allocate_database(instance_id, deadline_seconds=TASK_SECONDS)
    except DeadlineExceeded as late:
        doing = late.operation.state if late.operation else "asked for"
        set_status(instance_id, "waiting for its database", doing)
        raise task.retry(exc=late, countdown=2) from late
    except NovaStackError as error:
        if error.retryable and failures < TRIES_AFTER_FAILURE:
            # Asking again has NovaStack try it again.
            set_status(instance_id, "waiting for its database", f"after {error.code}")
            raise task.retry(
                exc=error,
                args=(instance_id, failures + 1),
                countdown=error.retry_after_seconds or PAUSE_AFTER_FAILURE_SECONDS,
            ) from error
        set_status(instance_id, "failed", f"{error.code}: {error.detail}")
        return
    if database.connection is not None:
        provision_instance(instance_id, database.connection)


def provision_instance(instance_id: str, connection: Connection) -> None:
    """Start the instance on its database; here that is a table of its own. Done twice, it is done once."""
    with psycopg.connect(connection.uri or "", connect_timeout=10) as link:
        link.execute("CREATE TABLE IF NOT EXISTS instance (id text PRIMARY KEY, started_at timestamptz DEFAULT now())")
        link.execute("INSERT INTO instance (id) VALUES (%s) ON CONFLICT DO NOTHING", (instance_id,))
    set_status(instance_id, "running")


if __name__ == "__main__":
    command, name = sys.argv[1:]
    sys.stdout.write(f"{create_instance(name) if command == 'create' else status_of(name)}\n")
