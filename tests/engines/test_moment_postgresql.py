"""A moment of a PostgreSQL database: what it says is what the dump holds, while others write; proven by restoring the dump
elsewhere and reading that."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
import zstandard

from projects.domain import Command, EngineError, Fingerprint, SourceChanged
from projects.engines import framing, postgresql_copy, postgresql_fingerprint
from projects.engines.postgresql_archive import Head, sequence_values
from projects.engines.zipping import MAGIC as ZSTD_MAGIC
from projects.engines.zipping import told_bytes
from projects.operations.stages import Stage
from tests.contracts.engine_contract import new_names
from tests.engines.copies import Copier, CopyServer, docker_copy_server
from tests.engines.test_copies_postgresql import ENGINE, HOSTILE, connect

pytestmark = pytest.mark.docker


@pytest.fixture(scope="module", params=["18", "15"])
def servers(request: pytest.FixtureRequest) -> Iterator[tuple[CopyServer, CopyServer]]:
    with docker_copy_server(ENGINE, request.param) as source, docker_copy_server(ENGINE, request.param) as target:
        yield source, target


@pytest.fixture
def copier(servers: tuple[CopyServer, CopyServer]) -> Iterator[Copier]:
    with Copier.between(*servers, new_names()) as copier:
        yield copier


def admit(copier: Copier, server: CopyServer | None = None) -> None:
    server = server or copier.source
    with ENGINE.admin(server.endpoint, server.admin) as admin:
        admin.admit_tool(copier.names, copier.tool.username, copier.tool.password)


def taken(
    copier: Copier, *, compress: bool = True, begun: Callable[[], None] = lambda: None
) -> tuple[bytes, Fingerprint, list[str]]:
    """The stream of the tool, what the moment says, and the tool's last words. `begun` is called between the snapshot and
    the dump."""
    source = copier.source
    side = source.side(copier.tool)
    with ENGINE.moment(source.endpoint, side.place, copier.tool, compress=compress) as moment:
        stage = Stage(
            "dump", source.runtime.run_tool("nvs-tool-moment", side.image, moment.command, beside=side.handle)
        )
        stage.listen()
        snapshot = moment.begin()
        begun()
        with contextlib.closing(stage.tool.stdin) as told:
            told.write(snapshot)
        assert stage.tool.stdout is not None
        stop, pieces = threading.Event(), []

        def pulse() -> None:
            if stop.is_set():
                raise EngineError("stopped")

        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(moment.contents, pulse)
            try:
                while piece := stage.tool.stdout.read(1 << 20):
                    moment.hear(piece)
                    pieces.append(piece)
                ended = stage.tool.wait(120)
                if ended.exit_code:
                    raise stage.failure(ended)
                return b"".join(pieces), reading.result(60), stage.last_lines()
            finally:
                stop.set()
                stage.end()


def plain(stream: bytes) -> bytes:
    return zstandard.ZstdDecompressor().decompressobj().decompress(stream) if stream.startswith(ZSTD_MAGIC) else stream


def restored(copier: Copier, stream: bytes) -> Fingerprint:
    """By hand: another server's empty database, pg_restore, and what is there then."""
    target = copier.target
    target.drop(copier.names)
    target.make(copier.names, copier.password)
    admit(copier, target)
    side = target.side(copier.tool)
    stage = Stage("restore", target.runtime.run_tool(
        "nvs-tool-moment-restore", side.image, ENGINE.restore(side.place, copier.tool), beside=side.handle,
    ))  # fmt: skip
    stage.listen()
    archive = plain(stream)
    with contextlib.closing(stage.tool.stdin) as sink:
        for first in range(0, len(archive), framing.PIECE_BYTES):
            sink.write(framing.frame(archive[first : first + framing.PIECE_BYTES]))
        sink.write(framing.END)
        sink.flush()
    ended = stage.tool.wait(60)
    words = stage.words()
    stage.end()
    assert ended.exit_code == 0, words
    ENGINE.finish_copy(target.endpoint, copier.tool, copier.names)
    return ENGINE.fingerprint(target.endpoint, copier.tool)


def test_a_hostile_database_at_one_moment(copier: Copier) -> None:
    """Rows, sequences and large objects change all the while, by a writer that never stops."""
    with connect(copier.source, copier.login) as tenant:
        tenant.execute(HOSTILE)
        tenant.execute(
            "CREATE TABLE pairs (side text, n bigint); INSERT INTO pairs VALUES ('a', 0), ('b', 0);"
            "CREATE SEQUENCE busy; CREATE TABLE bulk AS SELECT i, md5(i::text) AS t FROM generate_series(1, 200000) i"
        )
    stop, written = threading.Event(), [0]

    def write() -> None:
        with connect(copier.source, copier.login) as tenant:
            while not stop.is_set():
                tenant.execute(
                    "BEGIN; UPDATE pairs SET n = n + 1; SELECT nextval('busy');"
                    "DELETE FROM bulk WHERE i = (SELECT min(i) FROM bulk); SELECT lo_put(4711, 0, 'zz'); COMMIT"
                )
                written[0] += 1

    writer = threading.Thread(target=write)
    writer.start()
    admit(copier)
    try:
        while not written[0]:
            time.sleep(0.05)
        stream, told, words = taken(copier)
        after = written[0]
    finally:
        stop.set()
        writer.join()
    assert stream.startswith(ZSTD_MAGIC)
    assert told_bytes(words) == len(plain(stream))
    assert told.differences(restored(copier, stream)) == []
    assert told.tables["public.secret"].rows == 7
    assert ("content of large object", "4711") in told.facts
    assert 0 < told.tables["public.bulk"].rows < 200000
    assert after > 10
    with connect(copier.target, copier.login) as tenant:
        assert tenant.execute("SELECT count(DISTINCT n) FROM pairs").fetchone() == (1,)
    changed = ENGINE.fingerprint(copier.source.endpoint, copier.tool)
    assert "table public.pairs has other values" in told.differences(changed)


def test_settings_that_end_sessions_do_not_end_it(copier: Copier) -> None:
    with connect(copier.source, copier.login) as tenant:
        tenant.execute("CREATE TABLE t AS SELECT generate_series(1, 1000) AS i; CREATE SEQUENCE s; SELECT nextval('s')")
    with connect(copier.source, copier.source.admin) as admin:
        database = psycopg.sql.Identifier(copier.names.database)
        settings = {
            "statement_timeout": "1ms", "idle_in_transaction_session_timeout": "1ms", "lock_timeout": "1ms",
            "default_transaction_read_only": "on", "default_transaction_isolation": "serializable",
            "search_path": "nowhere", "bytea_output": "escape", "datestyle": "German", "extra_float_digits": "0",
            "standard_conforming_strings": "off", "row_security": "off", "client_encoding": "LATIN1",
        }  # fmt: skip
        if admin.info.server_version >= 170000:
            settings["transaction_timeout"] = "50ms"
        for name, value in settings.items():
            admin.execute(
                psycopg.sql.SQL("ALTER DATABASE {} SET {} = {}").format(
                    database, psycopg.sql.Identifier(name), psycopg.sql.Literal(value)
                )
            )
    admit(copier)
    stream, told, _ = taken(copier, compress=False, begun=lambda: time.sleep(1))
    assert stream.startswith(b"PGDMP")
    assert told.rows == 1000
    assert told.facts["value of sequence", "public.s"] == "(1, True)"
    assert told.differences(restored(copier, stream)) == []


def test_reading_thousands_of_tables_does_not_fill_the_table_of_locks(copier: Copier) -> None:
    """It has room for some thousand, of tables, indexes and sequences alike; reading keeps none of them."""
    with connect(copier.source, copier.login) as tenant:
        for number in range(120):
            tenant.execute(f"CREATE TABLE many_{number} (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, t text)")
    admit(copier)
    with postgresql_copy.inside(copier.source.endpoint, copier.tool) as session:
        postgresql_fingerprint.prepare(session)
        with session.transaction():
            found = postgresql_fingerprint.contents(session, lambda: None)
            held = session.execute(
                "SELECT count(*) FROM pg_locks l JOIN pg_class c ON c.oid = l.relation"
                " WHERE l.pid = pg_backend_pid() AND c.oid >= 16384"
            ).fetchone()
            (most,) = session.execute("SHOW max_locks_per_transaction").fetchone() or ("0",)
    assert len([name for name in found.tables if "many_" in name]) == 120
    assert held == (0,) and int(str(most)) >= 256


def test_tables_that_change_as_it_begins(copier: Copier) -> None:
    """Truncated, rewritten or dropped between the snapshot and the dump: a clear failure that is worth another try."""
    with connect(copier.source, copier.login) as tenant:
        tenant.execute(
            "CREATE TABLE t AS SELECT generate_series(1, 1000) AS i; CREATE TABLE u AS SELECT 1 AS i;"
            "CREATE VIEW v AS SELECT 1 AS i; CREATE FUNCTION f(a int DEFAULT 1) RETURNS int LANGUAGE sql AS 'SELECT 1'"
        )
    admit(copier)

    def change(statement: str) -> Callable[[], None]:
        def act() -> None:
            with connect(copier.source, copier.login) as tenant:
                tenant.execute(statement)

        return act

    another = "CREATE OR REPLACE FUNCTION f(a int DEFAULT 2) RETURNS int LANGUAGE sql AS 'SELECT 1'"
    for statement in (another, "TRUNCATE t", "ALTER TABLE u ALTER i TYPE text USING i::text", "DROP TABLE u"):
        with pytest.raises(Exception) as failed:
            taken(copier, begun=change(statement))
        assert failed.value.code == "source_changed", failed.value  # type: ignore[attr-defined]
        assert failed.value.retryable  # type: ignore[attr-defined]
    with connect(copier.source, copier.login) as tenant:
        tenant.execute("BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE")
        side = copier.source.side(copier.tool)
        with ENGINE.moment(copier.source.endpoint, side.place, copier.tool) as moment:
            moment.begin()
            moment._head.entries = []  # type: ignore[attr-defined]
            moment._known.set()  # type: ignore[attr-defined]
            with pytest.raises(SourceChanged):
                moment.contents(lambda: None)


@pytest.mark.parametrize("failing", ["dump", "zstd"])
def test_each_end_of_the_tool_s_pipe_is_heard(copier: Copier, failing: str) -> None:
    """sh has no pipefail: the failure of either is the tool's."""
    admit(copier)
    side = copier.source.side(copier.tool)
    with ENGINE.moment(copier.source.endpoint, side.place, copier.tool, compress=True) as moment:
        argv, env = list(moment.command.argv), dict(moment.command.env)
        if failing == "dump":
            env["PGPORT"] = "1"
        else:
            argv[2] = argv[2].replace("zstd -3", "zstd --no-such-option -3")
        command = Command(tuple(argv), env, moment.command.secret_files)
        stage = Stage("dump", copier.source.runtime.run_tool("nvs-tool-pipe", side.image, command, beside=side.handle))
        stage.listen()
        stage.begin(moment)
        ended = stage.tool.wait(120)
        failure = stage.failure(ended)
        stage.end()
    assert ended.exit_code not in {0, 141}
    assert failure.code == ("source_lost" if failing == "dump" else "dump_failed"), failure
    assert failing == "zstd" or "connection" in str(failure)


def test_an_image_without_zstd_is_not_compressed(copier: Copier) -> None:
    admit(copier)
    side = copier.source.side(copier.tool)
    with ENGINE.moment(copier.source.endpoint, side.place, copier.tool, compress=True) as moment:
        argv = list(moment.command.argv)
        argv[2] = argv[2].replace("command -v zstd", "command -v no-such-program")
        command = Command(tuple(argv), moment.command.env, moment.command.secret_files)
        stage = Stage("dump", copier.source.runtime.run_tool("nvs-tool-no", side.image, command, beside=side.handle))
        stage.begin(moment)
        assert stage.tool.stdout is not None
        assert stage.tool.stdout.read(5) == b"PGDMP"
        stage.end()


def test_what_is_no_archive_is_refused() -> None:
    for data in (b"-- a plain dump", b"PGDMP\x01\x63\x00\x04\x08\x01" + b"\x00" * 99, ZSTD_MAGIC + b"\xff" * 99):
        with pytest.raises(EngineError):
            Head().feed(data)
    assert sequence_values([]) == {}
