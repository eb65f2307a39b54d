"""Archives of `mongodump`, made here: told the same whatever the pieces, and refused unless they are whole."""

from __future__ import annotations

import json
import random
import struct
from typing import Any

import bson
import pytest

from projects.domain import Command, EngineError, Fingerprint
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


def read(archive: bytes, size: int = 1 << 20, *, trims_capped: bool = False) -> Fingerprint:
    reader = ArchiveReader()
    for first in range(0, len(archive), size):
        reader.feed(archive[first : first + size])
    return reader.contents(trims_capped=trims_capped)


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
