"""FerretDB's dumps, restores and what is told of them, on real servers in containers: every kind of value and of collection
that it takes, and what its tools leave out without a word."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from bson import Binary, Int64, ObjectId, Regex, Timestamp
from pymongo import MongoClient

from projects.domain import Credentials, Endpoint, EngineError, Fingerprint
from projects.engines import framing
from projects.engines.ferretdb import FerretDB
from projects.operations.stages import Stage
from tests.contracts.engine_contract import new_names
from tests.engines.copies import Copier, CopyServer, docker_copy_server

pytestmark = pytest.mark.docker
ENGINE = FerretDB()
VALUES: dict[str, Any] = {
    "double": 1.5, "tiny": 5e-324, "string": "naïve 🐬 ' \" \\ \0 end", "object": {"a": {"b": [1, {"c": None}]}}, "empty": {},
    "array": [1, "two", None, []][:3], "binary": b"\x00\xff", "uuid": uuid.UUID(int=7), "md5": Binary(b"x" * 16, 5),
    "own": Binary(b"x", 0x80), "id": ObjectId(b"0123456789ab"), "yes": True, "date": datetime(1, 1, 2, tzinfo=UTC),
    "null": None, "regex": Regex("^a.*", "im"), "i32": -5, "timestamp": Timestamp(4, 5), "i64": Int64(2**62), "": "no name",
    " sp ace ": 1, "ключ": 1,
}  # fmt: skip
NAMES = ["dotted.x.y", "sp ace", "naïve 🐬", "sl/ash\\b", "-lead", "%41", "A", "a", "0", "prelude", "admin", "Failed: x",
         "st*r", "n" * 200]  # fmt: skip
INDEXES = [
    {"key": {"a": 1, "b": -1}, "name": "two of them"}, {"key": {"u": 1}, "name": "u_1", "unique": True},
    {"key": {"x.y": 1}, "name": "x.y_1"},
]  # fmt: skip


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[CopyServer, CopyServer]]:
    with docker_copy_server(ENGINE, "1.24") as source, docker_copy_server(ENGINE, "1.24") as target:
        yield source, target


@pytest.fixture
def copier(servers: tuple[CopyServer, CopyServer]) -> Iterator[Copier]:
    copied = new_names()
    with Copier.between(*servers, new_names(), copied) as copier:
        yield copier


@contextlib.contextmanager
def session(endpoint: Endpoint, login: Credentials) -> Iterator[Any]:
    with MongoClient(
        endpoint.host, endpoint.port, username=login.username, password=login.password, authSource=login.database,
        directConnection=True, uuidRepresentation="standard", serverSelectionTimeoutMS=20_000,
    ) as client:  # type: ignore[var-annotated]  # fmt: skip
        yield client[login.database]


def taken(copier: Copier, server: CopyServer, login: Credentials) -> tuple[bytes, Fingerprint, tuple[str, ...]]:
    """The dump of one server's database, what its moment says of it, and the notes."""
    engine = server.engine
    with engine.admin(server.endpoint, server.admin) as admin:
        admin.admit_tool(replace(copier.names, database=login.database), login.username, login.password)
    side = server.side(login)
    with engine.moment(server.endpoint, side.place, login, compress=True) as moment:
        stage = Stage("dump", server.runtime.run_tool("nvs-tool-fe", side.image, moment.command, beside=side.handle))
        stage.listen()
        assert stage.tool.stdout is not None
        pieces = []
        try:
            while piece := stage.tool.stdout.read(70_001):
                moment.hear(piece)
                pieces.append(piece)
            assert stage.tool.wait(20).exit_code == 0, stage.words()
        finally:
            stage.end()
        moment.heard_all()
        return b"".join(pieces), moment.contents(lambda: None), (*moment.notes, moment.tool)


def fill(database: Any) -> None:
    database["every"].insert_many([{"_id": n, name: value} for n, (name, value) in enumerate(VALUES.items())])
    database["every"].insert_one({"_id": "all", **VALUES})
    database["ids"].insert_many([{"_id": i} for i in ("x", 1.5, None, ObjectId(), {"a": 1, "b": 2}, True, b"\0")])
    for name in NAMES:
        database[name].insert_one({"here": name})
    database.create_collection("empty")
    database.create_collection("capped", capped=True, size=1 << 20, max=1000)
    database["capped"].insert_many([{"_id": n} for n in range(25)])
    database["large"].insert_one({"_id": 1, "x": "y" * (16 * 1024 * 1024 - 60)})
    database["many"].insert_many([{"_id": n, "a": n, "u": n, "x": {"y": n % 7}} for n in range(2500)])
    database.command({"createIndexes": "many", "indexes": INDEXES})
    database.command({"createIndexes": "empty", "indexes": INDEXES[:1]})


def test_all_that_it_takes_goes_round(copier: Copier) -> None:
    with session(copier.source.endpoint, copier.login) as database:
        fill(database)
    copier.run()
    mine, theirs = copier.fingerprints()
    assert mine.differences(theirs) == []
    told, notes = taken(copier, copier.source, copier.tool)[1:]
    assert told.differences(mine) == []  # the archive says what the driver reads
    assert told.differences(taken(copier, copier.target, copier.copied_tool)[1]) == []
    assert set(told.tables) == {"every", "ids", "empty", "capped", "large", "many", *NAMES}
    assert (told.tables["many"].rows, told.tables["every"].rows, told.tables["empty"].rows) == (
        2500,
        len(VALUES) + 1,
        0,
    )
    assert told.facts["index", "many u_1"].count("unique") == 1
    assert any("one moment" in note for note in notes) and any("capped" in note for note in notes), notes
    assert notes[-1].startswith("mongodump 100.")
    with session(copier.target.endpoint, copier.copied_login) as database:
        found = database["every"].find_one({"_id": "all"})
        assert {name: value for name, value in found.items() if name not in {"_id", "date", "md5"}} == {
            name: value for name, value in VALUES.items() if name not in {"date", "md5"}
        }
        assert list(found)[1:] == list(VALUES)
        assert [row["_id"] for row in database["capped"].find()] == list(range(25))
        with pytest.raises(Exception, match="E11000"):
            database["many"].insert_one({"u": 7})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda d: d["t"].update_one({"_id": 1}, {"$set": {"v": 2}}), "table t has other values"),
        (lambda d: d["t"].delete_one({"_id": 1}), "table t has 2 rows instead of 3"),
        (lambda d: d.drop_collection("u"), "table u is missing"),
        (lambda d: d["t"].drop_index("v_1"), "index t v_1 is missing"),
        (lambda d: d["u"].create_index("w", name="v_1"), "index u v_1 differs"),
        (lambda d: d["c"].insert_one({"_id": 9}), "table c has other values"),
    ],
)
def test_every_difference_is_told(copier: Copier, change: Any, told: str) -> None:
    with session(copier.source.endpoint, copier.login) as database:
        database["t"].insert_many([{"_id": n, "v": 1} for n in range(3)])
        database["t"].create_index("v")
        database["u"].create_index("v") if told != "index u v_1 differs" else database["u"].create_index(
            "x", name="v_1"
        )
        database.create_collection("c", capped=True, size=10_000)
        database["c"].insert_one({"_id": 1})
        before = taken(copier, copier.source, copier.tool)[1]
        if told == "index u v_1 differs":
            database["u"].drop_index("v_1")
        change(database)
    assert told in before.differences(taken(copier, copier.source, copier.tool)[1])


def test_what_the_tools_leave_out_is_said(copier: Copier) -> None:
    """And a capped collection that was trimmed between dump and comparison is no other one."""
    with session(copier.source.endpoint, copier.login) as database:
        database["kept"].insert_one({"_id": 1})
        database["line\nbreak"].insert_one({"_id": 1})
        database["system.mine"].insert_one({"_id": 1})
        database.create_collection("c", capped=True, size=10_000)
        database["c"].insert_many([{"_id": n} for n in range(9)])
        database.client["elsewhere"]["t"].insert_one({"_id": 1})
        database.client["admin"]["mine"].insert_one({"_id": 1})
        database.command({"createUser": "colleague", "pwd": "p" * 12, "roles": []})
        try:
            with ENGINE.admin(copier.source.endpoint, copier.source.admin) as admin:
                admin.admit_tool(copier.names, copier.tool.username, copier.tool.password)
                found = "; ".join(admin.obstacles(copier.names))
        finally:
            database.client.drop_database("elsewhere")
            database.client["admin"].drop_collection("mine")
            database.command({"dropUser": "colleague"})
        told = taken(copier, copier.source, copier.tool)[1]
        database["c"].delete_one({"_id": 0})
        assert told.differences(taken(copier, copier.source, copier.tool)[1]) == []
    for word in (r"line\nbreak", "system.mine", "elsewhere", "mine", "colleague"):
        assert word in found, found
    assert copier.names.tool not in found
    assert set(told.tables) == {"kept", "c"}


def test_a_collection_that_can_t_be_read_any_more_fails_the_dump_by_name(copier: Copier) -> None:
    with session(copier.source.endpoint, copier.login) as database:
        database["orders"].insert_one({"_id": 1})
        database["broken"].insert_one({"a\nb": 1})
    with ENGINE.admin(copier.source.endpoint, copier.source.admin) as admin:
        admin.admit_tool(copier.names, copier.tool.username, copier.tool.password)
    side = copier.source.side(copier.tool)
    with ENGINE.moment(copier.source.endpoint, side.place, copier.tool) as moment:
        ended, failure, _ = run_tool(copier.source, moment.command)
    assert ended != 0
    assert failure.code == "dump_failed"
    assert f"{copier.names.database}.broken" in failure.detail and "line break" in failure.detail


def run_tool(server: CopyServer, command: Any, frames: bytes = b"") -> tuple[int, Any, bytes]:
    """Its exit code, the failure that it would be, and what it wrote."""
    side = server.side(Credentials("", "", ""))
    tool = server.runtime.run_tool("nvs-tool-fe-r", side.image, command, beside=side.handle)
    stage = Stage("restore" if frames else "dump", tool)
    stage.listen()
    try:
        with contextlib.suppress(OSError), contextlib.closing(tool.stdin) as sink:
            sink.write(frames)
            sink.flush()
        assert tool.stdout is not None
        written = tool.stdout.read()
        ended = tool.wait(60)
        return ended.exit_code, stage.failure(ended), written
    finally:
        stage.end()


@pytest.mark.parametrize("wrong", ["there already", "cut off", "broken off", "no archive"])
def test_a_restore_that_is_not_whole_fails(copier: Copier, wrong: str) -> None:
    with session(copier.source.endpoint, copier.login) as database:
        database["t"].insert_many([{"_id": n} for n in range(500)])
        database["u"].insert_many([{"_id": n} for n in range(500)])
    dump = taken(copier, copier.source, copier.tool)[0]
    names, login = copier.copied, copier.copied_tool
    copier.target.drop(names)
    copier.target.make(names, copier.password)
    with ENGINE.admin(copier.target.endpoint, copier.target.admin) as admin:
        admin.admit_restorer(names, login.username, login.password)
    if wrong == "there already":
        with session(copier.target.endpoint, copier.copied_login) as database:
            database["u"].insert_one({"_id": 7, "mine": True})
    pieces = {"cut off": dump[:-900], "broken off": dump[:-900], "no archive": b"\0" * 5000}.get(wrong, dump)
    frames = framing.frame(pieces) + (b"" if wrong == "cut off" else framing.END)
    command = ENGINE.restore(copier.target.side(login).place, login)
    code, failure, _ = run_tool(copier.target, command, frames)
    assert code != 0, wrong
    assert failure.code == "restore_failed", failure
    assert '"mine"' not in failure.detail
    code, failure, _ = run_tool(copier.target, replace(command, argv=tuple(
        "nosuch" if part == "mongorestore" else part for part in command.argv)), frames)  # fmt: skip
    assert failure.code == "tools_missing"


def test_indexes_that_can_t_be_made_are_an_error(copier: Copier) -> None:
    with session(copier.source.endpoint, copier.login) as database:
        database["t"].create_index("u", unique=True)
    dump = taken(copier, copier.source, copier.tool)[0]
    with session(copier.target.endpoint, Credentials("novastack", copier.target.admin.password, "admin")) as admin_db:
        own = admin_db.client[copier.copied.database]
        own["t"].insert_many([{"u": 1}, {"u": 1}])
    restoring = ENGINE.restoring()
    for first in range(0, len(dump), 11):
        restoring.hear(dump[first : first + 11])
    with ENGINE.admin(copier.target.endpoint, copier.target.admin) as admin:
        admin.admit_restorer(copier.copied, copier.copied_tool.username, copier.copied_tool.password)
    pulsed: list[int] = []
    with pytest.raises(EngineError, match=r"UNIQUE|E11000"):
        restoring.finish(copier.target.endpoint, copier.copied_tool, copier.copied, pulse=lambda: pulsed.append(1))
    assert pulsed == [1]
