"""A database is killed (SIGKILL, all its processes) while clients write. What was acknowledged is there afterwards: each
writer puts down a number only after its server has said that the commit is done."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import connection
from pymongo import WriteConcern

from projects.models import DatabaseServer, Project
from projects.runtimes.process_table import ProcessRef, family
from tests.faults.conftest import ALL, Site, make_site
from tests.faults.lanes import require
from tests.faults.stack import wait_for

LANES = (
    [(engine, runtime) for engine in ("postgresql", "mariadb", "ferretdb") for runtime in ("docker", "process")]
    + [("mysql", "docker")]
    if ALL
    else [("postgresql", "docker"), ("mariadb", "process")]
)
KILLS = 4 if ALL else 2
WRITERS = 4


def _postgresql(session: Any, number: int) -> None:
    session.execute("INSERT INTO orders VALUES (%s)", [number])
    session.commit()


def _mysql(session: Any, number: int) -> None:
    with session.cursor() as cursor:
        cursor.execute("INSERT INTO orders VALUES (%s)", [number])
    session.commit()


def _ferretdb(database: Any, number: int) -> None:
    database.get_collection("orders", write_concern=WriteConcern(w=1, j=True)).insert_one({"_id": number})


def _read_postgresql(session: Any) -> set[int]:
    return {n for (n,) in session.execute("SELECT n FROM orders").fetchall()}


def _read_mysql(session: Any) -> set[int]:
    with session.cursor() as cursor:
        cursor.execute("SELECT n FROM orders")
        return {n for (n,) in cursor.fetchall()}


def _read_ferretdb(database: Any) -> set[int]:
    return {row["_id"] for row in database["orders"].find()}


WRITE: dict[str, Callable[[Any, int], None]] = {
    "postgresql": _postgresql, "mariadb": _mysql, "mysql": _mysql, "ferretdb": _ferretdb,
}  # fmt: skip
READ: dict[str, Callable[[Any], set[int]]] = {
    "postgresql": _read_postgresql, "mariadb": _read_mysql, "mysql": _read_mysql, "ferretdb": _read_ferretdb,
}  # fmt: skip


class Writers:
    """Clients that write as fast as they are answered, and come again when they are cut off."""

    def __init__(self, site: Site, project: Project) -> None:
        self.site, self.project = site, project
        self.acknowledged: set[int] = set()
        self.over = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._write, args=(w,), daemon=True) for w in range(WRITERS)]

    def __enter__(self) -> Writers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        for thread in self._threads:
            thread.join(30)

    def _write(self, writer: int) -> None:
        number = 10_000 + writer
        while not self.over.is_set():
            with contextlib.suppress(Exception), self.site.client.login(self.project) as session:
                while not self.over.is_set():
                    number += WRITERS  # never twice: one of unknown fate is left alone
                    WRITE[self.site.engine](session, number)
                    with self._lock:
                        self.acknowledged.add(number)
            time.sleep(0.05)
        connection.close()


def kill(site: Site, project: Project) -> None:
    """All processes of the server at once, as the kernel or a failing host would."""
    server = DatabaseServer.objects.get(project_uuid=project.pk)
    if site.region.runtime == "docker":
        inspected = site.runtime._containers.inspect(server.handle.name)  # type: ignore[attr-defined]
        os.kill(int(inspected["State"]["Pid"]), signal.SIGKILL)  # PID 1 of the container takes the others along
    else:
        ref = ProcessRef.parse(server.runtime_ref)
        assert ref is not None
        for each in family([ref.pid])[ref.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(each.pid, signal.SIGKILL)


@pytest.fixture
def lane(request: pytest.FixtureRequest, _fresh: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    engine, runtime = request.param
    require(engine, runtime, monkeypatch)
    yield from make_site(runtime, engine)


@pytest.mark.parametrize(
    "lane",
    [pytest.param(pair, id="-".join(pair), marks=getattr(pytest.mark, pair[1])) for pair in LANES],
    indirect=True,
)
def test_what_was_acknowledged_is_there(lane: Site) -> None:
    site = lane
    project = site.ready()
    site.worker()
    with Writers(site, project) as writers:
        for number in range(KILLS):
            with site.fault("database SIGKILLed under writes") as run:
                before = len(writers.acknowledged)
                wait_for(lambda before=before: len(writers.acknowledged) > before + 50, 60, "writing")
                time.sleep(0.3 * number)
                # As if it had been well for ten minutes: pauses between recoveries grow, which is another test's matter.
                DatabaseServer.objects.update(recoveries=0, recover_after=None)
                started = DatabaseServer.objects.get(project_uuid=project.pk).runtime_ref
                kill(site, project)
                run.recovering()
                time.sleep(0.5)  # what was on its way at that moment has arrived, or never will
                sure = set(writers.acknowledged)
                wait_for(lambda sure=sure: len(writers.acknowledged) > len(sure) + 20, 90, f"writing again ({started})")
                run.ended()
                with site.client.login(project) as session:
                    lost = sure - READ[site.engine](session)
                run.lost_rows = len(lost)
                assert not lost, f"{len(lost)} of {len(sure)} acknowledged rows are gone"
    site.wait_status(project, "running", 60)
    with site.client.login(project) as session:
        assert writers.acknowledged <= READ[site.engine](session)
    site.check_exactly(project)
