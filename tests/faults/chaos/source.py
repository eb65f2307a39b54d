"""What is backed up while things break: content that stays, and a writer whose every state can be computed.

Transaction `n` sets the counter to `n`, adds row `n`, changes row `n - CHANGED`, and removes row `n - KEPT`. So the content at
any moment is a function of the counter at that moment alone: `expected(k)`. A backup that holds anything else than one of these
states was not of one moment. The writer goes on where the database's counter is, and puts down what was acknowledged.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pymysql

from projects.models import Project
from tests.engines.test_copies_mysql import HOSTILE as MYSQL_HOSTILE
from tests.faults.chaos.content import POSTGRESQL
from tests.faults.clients import CLIENTS
from tests.faults.conftest import Site

CHANGED, KEPT, EXTRA_FOR = 3, 40, 9
BALLAST_ROWS, BALLAST_BYTES = 300, 32_000  # stored, some more than one part of an upload
PAUSE_SECONDS = 0.03

Rows = tuple[tuple[int, str], ...]


def body(n: int, *, changed: bool) -> str:
    return hashlib.md5(f"{n}{' changed' if changed else ''}".encode(), usedforsecurity=False).hexdigest()


def expected(counter: int) -> Rows:
    """The rows of `moving` when the counter is that."""
    return tuple((n, body(n, changed=n <= counter - CHANGED)) for n in range(max(1, counter - KEPT + 1), counter + 1))


@dataclass
class Told:
    """What the writer knows. `rewound`: it found the counter at the second number after the first was acknowledged."""

    acknowledged: int = 0
    attempted: int = 0
    rewound: list[tuple[int, int]] = field(default_factory=list)
    extra: dict[int, str] = field(default_factory=dict)  # transaction → the table that it made


class Source:
    """One project's content, and who writes to it. As the owner, by the engine's own driver."""

    def __init__(self, site: Site, project: Project, *, seed: str) -> None:
        self.site, self.project, self.told = site, project, Told()
        self.changes_schema = False
        self._random, self._stop, self._thread = random.Random(seed), threading.Event(), None
        self._access: Any = None
        self.broke: BaseException | None = None

    # --- content --------------------------------------------------------------------------------------------------------
    def fill(self) -> None:
        ballast = [(n, self._random.randbytes(BALLAST_BYTES)) for n in range(BALLAST_ROWS)]
        with self.site.login(self.project) as session:
            if self.site.engine == "postgresql":
                session.execute(POSTGRESQL)
                session.execute("CREATE TABLE ballast (n int PRIMARY KEY, b bytea)")
                session.cursor().executemany("INSERT INTO ballast VALUES (%s, %s)", ballast)
                session.execute("CREATE TABLE moving_counter (single bool PRIMARY KEY, n bigint NOT NULL)")
                session.execute("INSERT INTO moving_counter VALUES (true, 0)")
                session.execute("CREATE TABLE moving (n bigint PRIMARY KEY, body text NOT NULL)")
                session.commit()
            else:
                with session.cursor() as cursor:
                    for statement in MYSQL_HOSTILE:
                        cursor.execute(statement)
                    cursor.execute("SET SESSION sql_mode = 'STRICT_ALL_TABLES'")
                    cursor.execute("CREATE TABLE ballast (n int PRIMARY KEY, b longblob)")
                    cursor.executemany("INSERT INTO ballast VALUES (%s, %s)", ballast)
                    cursor.execute("CREATE TABLE moving_counter (single int PRIMARY KEY, n bigint NOT NULL)")
                    cursor.execute("INSERT INTO moving_counter VALUES (1, 0)")
                    cursor.execute("CREATE TABLE moving (n bigint PRIMARY KEY, body varchar(40) NOT NULL)")
                session.commit()

    # --- the writer -----------------------------------------------------------------------------------------------------
    def start(self) -> None:
        self._stop.clear()
        self._thread = threading.Thread(target=self._run, args=(self._open(),), daemon=True, name="writer")
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(60)
            assert not self._thread.is_alive(), "the writer hangs"
            self._thread = None
        if self.broke is not None:
            raise self.broke

    def _open(self) -> Any:
        """How to log in, read here: the thread asks no control database."""
        with_login = CLIENTS[self.site.engine]
        from tests.faults.clients import role_of, server_of

        self.project.endpoint.refresh_from_db()
        return with_login._as_owner(self.project, role_of(self.project), tls=server_of(self.project).tls_enabled)

    def _run(self, access: Any) -> None:
        client = CLIENTS[self.site.engine]
        while not self._stop.is_set():
            try:
                with client.session(access) as session:
                    self._write_on(session)
            except (psycopg.Error, pymysql.MySQLError, OSError):
                self._stop.wait(0.2)  # the server is away, or clients are shut out
            except BaseException as error:
                self.broke = error
                return

    def _write_on(self, session: Any) -> None:
        with contextlib.closing(session.cursor()) as cursor:
            cursor.execute("SELECT n FROM moving_counter")
            found = int(cursor.fetchone()[0])
            session.commit()
            if found < self.told.acknowledged:
                self.told.rewound.append((self.told.acknowledged, found))
            # What was sent and not acknowledged may be there nevertheless.
            self.told.acknowledged = found
            while not self._stop.wait(PAUSE_SECONDS):
                self._transaction(session, cursor, self.told.acknowledged + 1)

    def _transaction(self, session: Any, cursor: Any, n: int) -> None:
        self.told.attempted = max(self.told.attempted, n)
        if self.site.engine == "postgresql":
            cursor.execute("SET LOCAL lock_timeout = '20s'")
        else:
            cursor.execute("BEGIN")
        cursor.execute("UPDATE moving_counter SET n = %s", (n,))
        cursor.execute("INSERT INTO moving VALUES (%s, %s)", (n, body(n, changed=False)))
        gone = n - CHANGED
        cursor.execute("UPDATE moving SET body = %s WHERE n = %s", (body(gone, changed=True), gone))
        cursor.execute("DELETE FROM moving WHERE n = %s", (n - KEPT,))
        if self.changes_schema and n % 4 == 0:
            self._change_schema(cursor, n)
        session.commit()
        self.told.acknowledged = n

    def _change_schema(self, cursor: Any, n: int) -> None:
        """In the same transaction: a table comes, one of before gets a column, and one goes."""
        name = f"moving_extra_{n}"
        cursor.execute(f"DROP TABLE IF EXISTS {name}")
        cursor.execute(f"CREATE TABLE {name} AS SELECT {n}::bigint AS n")
        self.told.extra[n] = name
        for other, old in list(self.told.extra.items()):
            if n - EXTRA_FOR <= other < n:
                cursor.execute(f"ALTER TABLE IF EXISTS {old} ADD COLUMN IF NOT EXISTS more int DEFAULT {other}")
            elif other < n - EXTRA_FOR:
                cursor.execute(f"DROP TABLE IF EXISTS {old}")

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        self.start()
        try:
            yield
        finally:
            self.stop()
