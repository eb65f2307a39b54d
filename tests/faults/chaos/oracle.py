"""Who judges: the stored object is taken from the storage's own disk, opened with age and zstd, and restored with the engine's
stock tools into a server that was made by hand. Nothing of NovaStack's code for backups is used, nor its rows believed.

What it opens with is an identity of its own, whose public part was given to the organization as an offline key.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from novastack.embedded.postgres import EmbeddedPostgres
from projects.runtimes.process_binaries import find
from tests.faults.chaos.source import EXTRA_FOR, Told, expected
from tests.faults.conftest import VERSION

NEEDED = ("age", "age-keygen", "zstd")
SECONDS = 120
Facts = Mapping[str, str]


class NotWhole(AssertionError):
    """What is stored does not restore to what was there."""


@dataclass(frozen=True)
class Judged:
    """A backup restored by hand: what it holds is what the source held when its counter was that."""

    counter: int


def run(argv: list[str], folder: Path, **env: str) -> str:
    done = subprocess.run(
        argv, cwd=folder, text=True, errors="replace", capture_output=True, check=False, timeout=SECONDS,
        stdin=subprocess.DEVNULL,
        env={"PATH": os.environ["PATH"], "HOME": str(folder), "LC_ALL": "C.UTF-8", **env},
    )  # fmt: skip
    if done.returncode:
        raise NotWhole(f"{' '.join(argv)[:200]}: {(done.stderr or done.stdout).strip()[-600:]}")
    return done.stdout


class Oracle:
    """`folder` is its own; `close` ends its servers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.identity = folder / "identity"
        run(["age-keygen", "-o", str(self.identity)], folder)
        self.recipient = run(["age-keygen", "-y", str(self.identity)], folder).strip()
        self._postgresql: PostgreSQLByHand | None = None
        self._mariadb: MariaDBByHand | None = None

    def hand(self, engine: str) -> PostgreSQLByHand | MariaDBByHand:
        if engine == "postgresql":
            if self._postgresql is None:
                self._postgresql = PostgreSQLByHand(self.folder)
            return self._postgresql
        if self._mariadb is None:
            self._mariadb = MariaDBByHand(self.folder)
        return self._mariadb

    def close(self) -> None:
        for server in (self._postgresql, self._mariadb):
            if server is not None:
                server.close()

    def manifest(self, file: Path) -> dict[str, Any]:
        command = 'age -d -i "$1" "$2" | zstd -dq | tail -n +2'
        text = run(["bash", "-euo", "pipefail", "-c", command, "-", str(self.identity), str(file)], self.folder)
        found: dict[str, Any] = json.loads(text)
        return found

    def judge(self, engine: str, stored: Path, manifest: Path, wanted: list[Facts], told: Told) -> Judged:
        """Raises `NotWhole`. `wanted`: what stays in the source, as it was read at some moments (one of them is enough)."""
        names = self.manifest(manifest)["names"]
        with self.hand(engine).restored(self.identity, stored, names) as found:
            facts, counter, rows, extra = found
        if facts not in wanted:
            raise NotWhole(f"it differs: {differences(wanted[-1], facts)}")
        if rows != expected(counter):
            raise NotWhole(f"its counter is {counter}, and its rows are not those of then: {rows[:3]} … {rows[-3:]}")
        if engine == "postgresql" and not told.rewound and extra != extras(told, counter):
            raise NotWhole(f"tables that came and went: {extra} at {counter}, not {extras(told, counter)}")
        return Judged(counter)


def extras(told: Told, counter: int) -> set[int]:
    """Those that transactions up to that one have made and not removed."""
    made = [n for n in told.extra if n <= counter]
    return {n for n in made if n >= max(made) - EXTRA_FOR}


def differences(one: Facts, other: Facts) -> str:
    found = [
        f"{name}: {one.get(name, 'absent')[:150]!r} → {other.get(name, 'absent')[:150]!r}"
        for name in sorted({*one, *other}) if one.get(name) != other.get(name)
    ]  # fmt: skip
    return "; ".join(found[:6])


Found = tuple[Facts, int, tuple[tuple[int, str], ...], set[int]]


class PostgreSQLByHand:
    """A new server of somebody's, and a new database in it for each backup."""

    def __init__(self, folder: Path) -> None:
        self._server = EmbeddedPostgres(folder / "by-hand", durable=False, first_port=17600)
        self._server.start()
        self._folder = folder
        found = find("postgres", VERSION)
        assert found is not None
        self._programs = f"{found.place.bin}:{os.environ['PATH']}"
        self._made = 0

    def close(self) -> None:
        self._server.stop()
        shutil.rmtree(self._server.state, ignore_errors=True)

    @contextmanager
    def _login(self, database: str) -> Iterator[psycopg.Connection[Any]]:
        place: dict[str, Any] = {"host": "127.0.0.1", "port": self._server.port, "user": "novastack"}
        with psycopg.connect(**place, password=self._server.password, dbname=database, autocommit=True) as session:
            yield session

    @contextmanager
    def restored(self, identity: Path, stored: Path, names: Mapping[str, str]) -> Iterator[Found]:
        self._made += 1
        database = f"restored{self._made}"
        env = {
            "PATH": self._programs, "PGHOST": "127.0.0.1", "PGPORT": str(self._server.port), "PGUSER": "novastack",
            "PGPASSWORD": self._server.password,
        }  # fmt: skip
        with self._login("postgres") as session:
            for name in {names[kind] for kind in ("owner", "group", "login", "control")}:
                if session.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [name]).fetchone() is None:
                    session.execute(sql.SQL("CREATE ROLE {} NOLOGIN").format(sql.Identifier(name)))
            session.execute(
                sql.SQL("CREATE DATABASE {} TEMPLATE template0 ENCODING 'UTF8' LOCALE 'C.UTF-8' OWNER {}").format(
                    sql.Identifier(database), sql.Identifier(names["owner"])
                )
            )
        try:
            command = 'age -d -i "$1" "$2" | zstd -dq | pg_restore --exit-on-error --dbname "$3"'
            argv = ["bash", "-euo", "pipefail", "-c", command, "-", str(identity), str(stored), database]
            run(argv, self._folder, **env)
            with self._login(database) as session:
                yield self.read(session, {**env, "PGDATABASE": database})
        finally:
            with self._login("postgres") as session:
                session.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(database)))

    def read(self, session: psycopg.Connection[Any], env: Mapping[str, str]) -> Found:
        """`env` names the same database for the tools. As a superuser, whom policies hide nothing from."""
        extra = session.execute(
            "SELECT substr(relname, 14)::bigint FROM pg_class WHERE relname ~ '^moving_extra_[0-9]+$' AND relkind = 'r'"
        )
        found = {int(n) for (n,) in extra.fetchall()}
        (counter,) = session.execute("SELECT n FROM public.moving_counter").fetchone()  # type: ignore[misc]
        rows = tuple((int(n), str(t)) for n, t in session.execute("SELECT n, body FROM public.moving ORDER BY n"))
        return self.facts(session, env), int(counter), rows, found

    def facts(
        self, session: psycopg.Connection[Any], env: Mapping[str, str], *, inside: str = ""
    ) -> dict[str, str]:  # fmt: skip
        """All that stays: every row of every table, sequences, large objects, and the catalogue as pg_dump writes it (the
        one in the container `inside`, where it is named: it speaks TLS, what is bundled does not)."""
        session.execute("SET search_path = pg_catalog")
        session.execute("SET timezone = 'UTC'")
        facts: dict[str, str] = {}
        tables = session.execute(
            "SELECT c.oid::regclass::text, c.relkind::text, c.relispopulated FROM pg_class c"
            " JOIN pg_namespace s ON s.oid = c.relnamespace WHERE c.relkind IN ('r', 'p', 'm', 'S')"
            " AND s.nspname !~ '^pg_' AND s.nspname <> 'information_schema' AND c.relname !~ '^moving'"
        ).fetchall()
        for name, kind, populated in tables:
            if kind == "S":
                query = f"SELECT last_value || ' ' || is_called FROM {name}"
            elif populated:
                query = f"""SELECT count(*) || ' ' ||
                            coalesce(md5(string_agg(t::text, E'\\n' ORDER BY t::text COLLATE "C")), '') FROM {name} t"""
            else:
                query = "SELECT 'without data'"
            facts[name] = session.execute(query).fetchone()[0]  # type: ignore[call-overload,index]
        for oid, content in session.execute("SELECT oid, md5(lo_get(oid)) FROM pg_largeobject_metadata"):
            facts[f"large object {oid}"] = content
        argv = ["pg_dump", "--schema-only", "--no-password", "--exclude-table=public.moving*"]
        if inside:
            told = {**env, "PGHOST": "127.0.0.1", "PGPORT": "5432"}
            schema = run(
                ["docker", "exec", *(f"--env={name}={value}" for name, value in told.items()), inside, *argv],
                self._folder,
            )
        else:
            schema = run(argv, self._folder, **{**env, "PATH": self._programs})
        for line in schema.splitlines():
            if line and not line.startswith(("--", "\\restrict", "\\unrestrict", "SET ")):
                facts[f"schema: {line}"] = str(int(facts.get(f"schema: {line}", 0)) + 1)
        return facts

    def read_source(
        self, host: str, port: int, user: str, password: str, database: str, *, tls: bool, inside: str = ""
    ) -> Facts:  # fmt: skip
        mode = "require" if tls else "disable"
        with psycopg.connect(
            host=host, port=port, user=user, password=password, dbname=database, sslmode=mode, autocommit=True
        ) as session:
            env = {
                "PGHOST": host, "PGPORT": str(port), "PGUSER": user, "PGPASSWORD": password, "PGDATABASE": database,
                "PGSSLMODE": mode,
            }  # fmt: skip
            return self.facts(session, env, inside=inside)


class MariaDBByHand:
    def __init__(self, folder: Path) -> None:
        self._folder, self._data = folder, folder / "mariadb"
        self._socket = folder / "mariadb.sock"
        run(
            ["mariadb-install-db", "--no-defaults", "--user=root", f"--datadir={self._data}",
             "--auth-root-authentication-method=normal", "--skip-test-db"], folder,
        )  # fmt: skip
        program = shutil.which("mariadbd") or "/usr/sbin/mariadbd"
        self._process = subprocess.Popen(
            [program, "--no-defaults", "--user=root", f"--datadir={self._data}", f"--socket={self._socket}",
             "--skip-networking", "--event-scheduler=OFF", "--log-bin-trust-function-creators=1",
             f"--pid-file={folder}/mariadb.pid", f"--log-error={folder}/mariadb.err"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        deadline = time.monotonic() + 60
        while True:
            try:
                self._ask("SELECT 1")
                break
            except NotWhole:
                assert time.monotonic() < deadline and self._process.poll() is None, "no MariaDB by hand"
                time.sleep(0.2)
        self._made = 0

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(60)

    def _argv(self, *more: str) -> list[str]:
        return [
            "mariadb", "--no-defaults", "-uroot", f"--socket={self._socket}", "--default-character-set=utf8mb4",
            "--batch", "--raw", "--skip-column-names", *more,
        ]  # fmt: skip

    def _ask(self, query: str, database: str = "mysql", argv: list[str] | None = None) -> str:
        return run([*(argv or self._argv()), f"--database={database}", f"--execute={query}"], self._folder)

    @contextmanager
    def restored(self, identity: Path, stored: Path, names: Mapping[str, str]) -> Iterator[Found]:
        self._made += 1
        database = f"restored{self._made}"
        self._ask(f"CREATE DATABASE {database}")
        try:
            client = " ".join(
                ["mariadb", "--no-defaults", "-uroot", f"--socket={self._socket}", "--binary-mode",
                 "--default-character-set=utf8mb4", "--local-infile=0", "--comments", database]
            )  # fmt: skip
            command = f'age -d -i "$1" "$2" | zstd -dq | {client}'
            run(["bash", "-euo", "pipefail", "-c", command, "-", str(identity), str(stored)], self._folder)
            counter = int(self._ask("SELECT n FROM moving_counter", database))
            lines = self._ask("SELECT n, body FROM moving ORDER BY n", database).splitlines()
            rows = tuple((int(n), text) for n, text in (line.split("\t") for line in lines))
            yield self.facts(database), counter, rows, set()
        finally:
            self._ask(f"DROP DATABASE {database}")

    def facts(self, database: str, argv: list[str] | None = None) -> dict[str, str]:
        facts: dict[str, str] = {}
        listed = self._ask(
            "SELECT HEX(table_name) FROM information_schema.tables WHERE table_schema = DATABASE()"
            # An event of the source's writes into the latter.
            " AND table_type = 'BASE TABLE' AND table_name NOT LIKE 'moving%' AND table_name <> 'ticks'", database, argv,
        )  # fmt: skip
        for name in (bytes.fromhex(line).decode() for line in listed.splitlines()):
            quoted = "`" + name.replace("`", "``") + "`"
            sums = self._ask(f"SELECT COUNT(*) FROM {quoted}; CHECKSUM TABLE {quoted} EXTENDED", database, argv)
            facts[name] = sums.splitlines()[0] + " " + sums.split("\t")[-1].strip()
            facts[f"create {name}"] = self._ask(f"SHOW CREATE TABLE {quoted}", database, argv)
        for what, query in {
            "routine": "SELECT HEX(CONCAT(routine_type, ' ', routine_name)), MD5(routine_definition), sql_mode,"
            " character_set_client, collation_connection, database_collation"
            " FROM information_schema.routines WHERE routine_schema = DATABASE()",
            "trigger": "SELECT HEX(CONCAT(event_object_table, ' ', trigger_name)), MD5(action_statement),"
            " action_order, sql_mode FROM information_schema.triggers WHERE trigger_schema = DATABASE()",
            "view": "SELECT HEX(table_name), MD5(REPLACE(view_definition, CONCAT('`', DATABASE(), '`.'), ''))"
            " FROM information_schema.views WHERE table_schema = DATABASE()",
            "event": "SELECT HEX(event_name), MD5(event_definition), interval_value, interval_field, sql_mode"
            " FROM information_schema.events WHERE event_schema = DATABASE()",
        }.items():
            for line in self._ask(query, database, argv).splitlines():
                facts[f"{what} {line}"] = "is there"
        return facts

    def read_source(
        self, host: str, port: int, user: str, password: str, database: str, *, tls: bool, inside: str = ""
    ) -> Facts:  # fmt: skip
        argv = [
            "mariadb", "--no-defaults", f"--host={host}", f"--port={port}", "--protocol=tcp", f"--user={user}",
            f"--password={password}", "--default-character-set=utf8mb4", "--batch", "--raw", "--skip-column-names",
            *(["--ssl", "--skip-ssl-verify-server-cert"] if tls else []),
        ]  # fmt: skip
        return self.facts(database, argv)
