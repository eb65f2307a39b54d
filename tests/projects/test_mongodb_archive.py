"""Archives of `mongodump`, made here: told the same whatever the pieces, and refused unless they are whole."""

from __future__ import annotations

import contextlib
import json
import random
import struct
from collections.abc import Iterator
from typing import Any

import bson
import pytest

from projects.domain import EXPIRES, Command, Credentials, Endpoint, EngineError, Fingerprint, TenantNames
from projects.engines import mongodb_moment, mongodb_reading
from projects.engines.ferretdb import FerretDBAdmin
from projects.engines.mongodb import MongoDB
from projects.engines.mongodb_admin import MongoDBAdmin
from projects.engines.mongodb_archive import MAGIC, ArchiveReader
from projects.engines.mongodb_moment import MongoDBMoment, unspeakable

END = struct.pack("<i", -1)
INDEX = {"v": {"$numberInt": "2"}, "key": {"b": {"$numberInt": "1"}, "a": {"$numberInt": "-1"}}, "name": "b_1_a_-1"}


def head(*collections: tuple[str, dict[str, Any]]) -> bytes:
    told = [
        bson.encode(
            {"db": "d", "collection": name, "metadata": json.dumps(what), "size": 0, "type": what.get("type", "")}
        )
        for name, what in collections
    ]
    return struct.pack("<I", MAGIC) + bson.encode({"tool_version": "100.7.0"}) + b"".join(told) + END


def block(name: str, *documents: Any) -> bytes:
    header = bson.encode({"db": "d", "collection": name, "EOF": False, "CRC": bson.Int64(0)})
    return header + b"".join(bson.encode(document) for document in documents) + END


def end(name: str) -> bytes:
    return bson.encode({"db": "d", "collection": name, "EOF": True, "CRC": bson.Int64(7)}) + END


def read(archive: bytes, size: int = 1 << 20, *, trims_capped: bool = False, expires: bool = False) -> Fingerprint:
    reader = ArchiveReader()
    for first in range(0, len(archive), size):
        reader.feed(archive[first : first + size])
    return reader.contents(trims_capped=trims_capped, expires=expires)


HEAD = head(
    ("a", {"indexes": [INDEX], "uuid": "1"}), ("b", {"options": {"capped": True, "size": 5}}), ("v", {"type": "view"})
)
WHOLE = HEAD + block("a", {"x": 1}, {"x": 2}) + block("b", {"y": 1}) + block("a", {"x": 3}) + end("a") + end("b")


def test_it_is_told_the_same_whatever_the_pieces_and_the_order() -> None:
    first = read(WHOLE)
    for size in (1, 2, 3, 5, 64, 1000):
        assert read(WHOLE, size) == first
    assert {name: table.rows for name, table in first.tables.items()} == {"a": 3, "b": 1}
    other = HEAD + block("b", {"y": 1}) + end("b") + block("a", {"x": 3}, {"x": 1}, {"x": 2}) + end("a")
    assert first.differences(read(other)) == []
    renewed = WHOLE.replace(b'"uuid": "1"', b'"uuid": "2"')
    assert first.differences(read(renewed)) == []
    assert first.differences(read(WHOLE.replace(bson.encode({"x": 2}), bson.encode({"x": 4})))) == [
        "table a has other values"
    ]
    swapped = json.dumps({"a": INDEX["key"]["a"], "b": INDEX["key"]["b"]})  # type: ignore[index]
    assert first.differences(read(WHOLE.replace(json.dumps(INDEX["key"]).encode(), swapped.encode()))) == [
        "index a b_1_a_-1 differs"
    ]


def test_of_what_is_trimmed_the_newest_document_counts() -> None:
    longer = HEAD + end("a") + block("b", {"y": 0}, {"y": 1}) + end("b")
    shorter = HEAD + end("a") + block("b", {"y": 1}) + end("b")
    newer = HEAD + end("a") + block("b", {"y": 1}, {"y": 2}) + end("b")
    assert read(longer, trims_capped=True) == read(shorter, trims_capped=True)
    assert read(longer) != read(shorter)
    assert read(newer, trims_capped=True) != read(shorter, trims_capped=True)


@pytest.mark.parametrize(
    "collection",
    [
        {"options": {"expireAfterSeconds": {"$numberLong": "60"}}},
        {"indexes": [{**INDEX, "expireAfterSeconds": {"$numberInt": "60"}}]},
    ],
)
def test_documents_that_the_server_removes_by_itself_are_not_compared(collection: dict[str, Any]) -> None:
    begins = head(("a", collection))
    before, after = begins + block("a", {"x": 1}, {"x": 2}) + end("a"), begins + block("a", {"x": 2}) + end("a")
    assert read(before).differences(read(after)) == ["table a has 1 rows instead of 2"]
    told = read(before, expires=True)
    assert told.differences(read(after, expires=True)) == told.differences(read(after)) == []
    (remark,) = told.remarks(read(after, expires=True))
    assert remark.startswith("Not compared, since the server removes") and remark.endswith(": a.")
    changed = head(("a", {})) + end("a")
    assert told.differences(read(changed, expires=True))  # what it is, is
    moment = MongoDBMoment(Command(()), (), trims_capped=True, expires=True)
    moment.hear(before)
    moment.heard_all()
    assert [note for note in moment.notes if note.startswith("Of 1 collections with a time to live")]
    assert moment.contents(lambda: None) == told


def test_what_is_not_whole_is_refused() -> None:
    for length in range(len(WHOLE)):
        with pytest.raises(EngineError):
            read(WHOLE[:length])
    for wrong in (
        WHOLE + end("a"), WHOLE + block("a", {}), WHOLE + block("stranger"), WHOLE + END, b"\0" * 100,
        HEAD + end("a") + end("b") + struct.pack("<i", 3), HEAD + end("a") + end("b") + struct.pack("<i", 1 << 30),
        WHOLE.replace(b'{"indexes"', b"{{indexes\""),
    ):  # fmt: skip
        with pytest.raises(EngineError):
            read(wrong)


def test_damage_is_an_error_or_a_difference_never_a_stack_trace() -> None:
    first, chance = read(WHOLE), random.Random(7)
    for _ in range(2000):
        data = bytearray(WHOLE)
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        try:
            assert isinstance(first.differences(read(bytes(data))), list)
        except EngineError:
            continue


def test_a_large_document_is_held_once() -> None:
    archive = HEAD + block("a", {"x": "y" * (1 << 20)}) + end("a") + end("b")
    assert read(archive, 4096).tables["a"] == read(archive).tables["a"]


def test_a_collection_that_a_restore_would_leave_out_is_none_of_a_dump() -> None:
    assert unspeakable(["a", "b\nc", "d e"]) == ["b\nc"]
    moment = MongoDBMoment(Command(()), (), trims_capped=True)
    moment.hear(head(("b\nc", {})) + end("b\nc"))
    with pytest.raises(EngineError, match="line break"):
        moment.contents(lambda: None)


class Answers:
    """In place of a session with MongoDB, which could not be run here: what is asked is kept."""

    def __init__(self, *listed: dict[str, Any]) -> None:
        self.listed, self.asked = list(listed), []  # type: list[dict[str, Any]], list[tuple[str, Any]]

    def run(self, database: str, command: dict[str, Any]) -> dict[str, Any]:
        self.asked.append((database, command))
        return {}

    def whole(self, database: str, _answer: dict[str, Any]) -> list[dict[str, Any]]:
        command = self.asked[-1][1]
        return self.listed if "listCollections" in command else [{"name": "_id_", "key": {"_id": 1}, "v": 2}]

    def raw(self, database: str, name: str, pulse: Any) -> Iterator[bytes]:
        self.asked.append((database, name))
        yield bson.encode({"_id": name})


LISTED = (
    {"name": "a", "type": "collection", "options": {}},
    {"name": "system.js", "type": "collection", "options": {}},
    {"name": "system.views", "type": "collection", "options": {}},
    {"name": "system.other", "type": "collection", "options": {}},
    {"name": "weather", "type": "timeseries", "options": {"timeseries": {"timeField": "t"}}},
    {"name": "system.buckets.weather", "type": "collection", "options": {}},
    {"name": "gone", "type": "collection", "options": {"expireAfterSeconds": 1, "clusteredIndex": True}},
)
NAMES = TenantNames(database="d", owner="o", group="g", login="l", control="c", connection_limit=9)


def test_what_is_read_through_the_driver_is_what_a_dump_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = Answers(*LISTED)
    monkeypatch.setattr(mongodb_reading, "connect", lambda *_, **__: contextlib.nullcontext(answers))
    where, login = Endpoint("127.0.0.1", 1), Credentials("l", "p", "d")
    found = mongodb_reading.read(where, login, lambda: None, trims_capped=False, expires=True)
    assert set(found.tables) == {"a", "system.js", "gone"}
    assert [name for _, name in answers.asked if isinstance(name, str)] == ["a", "system.js"]
    assert found.tables["gone"].digest == EXPIRES
    assert ("collection", "gone") in found.facts


def test_a_time_series_is_left_out_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = Answers(*LISTED)
    monkeypatch.setattr(mongodb_moment, "connect", lambda *_, **__: contextlib.nullcontext(answers))
    where, login = Endpoint("127.0.0.1", 1), Credentials("l", "p", "d")
    with MongoDB().moment(where, where, login) as moment:
        assert [part for part in moment.command.argv if "exclude" in part] == ["--excludeCollection=weather"]
        notes = moment.notes
    obstacles = MongoDBAdmin(answers).obstacles(NAMES)  # type: ignore[arg-type]
    assert [told for told in obstacles if f"Not in the backup: {told}." in notes]
    assert any("weather" in told for told in obstacles)


def test_nothing_expires_on_a_server_of_its_own_while_it_is_copied() -> None:
    answers = Answers()
    for quiet in (True, False):
        MongoDBAdmin(answers).quiet(NAMES, quiet=quiet)  # type: ignore[arg-type]
    assert answers.asked == [("admin", {"setParameter": 1, "ttlMonitorEnabled": on}) for on in (False, True)]
    FerretDBAdmin(answers).quiet(NAMES, quiet=True)  # type: ignore[arg-type]
    assert len(answers.asked) == 2
