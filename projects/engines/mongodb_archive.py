"""Archives of `mongodump`, told while they pass: what is in a collection, how many documents and what they hash to.

The form (mongo-tools, `common/archive`): a magic number; BSON documents up to a terminator: one about the tool, then one for
each collection with its options and indexes as extended JSON; then blocks, each a header that names its collection, the
collection's own documents as they are in the server, and a terminator. A header with `EOF` says that a collection has come
to its end; the blocks of several may be mixed.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import bson
from bson.errors import BSONError

from projects.domain import EXPIRES, EngineError, Fingerprint, TableContent

MAGIC = 0x8199E26D
_TERMINATOR = -1
_MOST_BYTES = 64 << 20  # of a document; servers take 16 MiB, and what is of their own a little more
_SIZE = struct.Struct("<i")
_SUM = 1 << 128
_BUCKETS = "system.buckets."  # where the documents of a time series are
_HEAD_MOST = 256 << 20
Spec = dict[str, Any]


@dataclass(slots=True)
class Documents:
    """Of one collection. Their hashes are added up, so that their order does not count."""

    count: int = 0
    total: int = 0
    last: bytes = b""
    ended: bool = False

    def add(self, document: bytes | memoryview) -> None:
        digest = hashlib.blake2b(document, digest_size=16).digest()
        self.count += 1
        self.total = (self.total + int.from_bytes(digest, "big")) % _SUM
        self.last = digest

    def take(self, view: memoryview, at: int) -> int:
        """As many whole documents as there are from `at` on; where the next thing begins. Called for every byte of a dump."""
        end, unpack, blake2b, digest = len(view), _SIZE.unpack_from, hashlib.blake2b, self.last
        count = total = 0
        while end - at >= 4:
            size = unpack(view, at)[0]
            if not 5 <= size <= _MOST_BYTES or end - at < size:
                break
            digest = blake2b(view[at : at + size], digest_size=16).digest()
            total += int.from_bytes(digest, "big")
            count += 1
            at += size
        self.count, self.total, self.last = self.count + count, (self.total + total) % _SUM, digest
        return at

    def content(self, *, trimmed: bool) -> TableContent:
        """`trimmed`: the server removes the oldest documents by itself, so that only the newest one says anything."""
        if trimmed:
            return TableContent(1 if self.count else 0, self.last.hex())
        return TableContent(self.count, f"{self.total:032x}")


@dataclass(slots=True)
class Collection:
    """What an archive's head, or a server, says of one."""

    name: str
    kind: str = "collection"
    options: Spec = field(default_factory=dict)
    indexes: list[Spec] = field(default_factory=list)

    @classmethod
    def told(cls, name: str, kind: str, metadata: str) -> Collection:
        """From extended JSON as the tool writes it."""
        try:
            found = json.loads(metadata) if metadata else {}
            return cls(
                name, str(found.get("type") or kind or "collection"), dict(found.get("options") or {}),
                [dict(index) for index in found.get("indexes") or []],
            )  # fmt: skip
        except (ValueError, TypeError, AttributeError) as error:
            raise EngineError(f"the dump says of {name[:64]} what can't be read") from error

    @property
    def capped(self) -> bool:
        return bool(self.options.get("capped"))

    @property
    def expires(self) -> bool:
        """The server removes documents by itself, when their time has come."""
        return any("expireAfterSeconds" in spec for spec in (self.options, *self.indexes))

    def facts(self) -> dict[tuple[str, str], str]:
        """Its form, and each index with all of its options. In what order a server tells options says nothing; the order of
        an index's keys does."""
        facts = {("collection", self.name): f"{self.kind} {_sorted(self.options)}"}
        for index in self.indexes:
            facts["index", f"{self.name} {index.get('name')}"] = _sorted(
                {key: value for key, value in index.items() if key not in {"ns", "v"}}
            )
        return facts


def _sorted(spec: Mapping[str, Any]) -> str:
    return json.dumps({key: spec[key] for key in sorted(spec)}, ensure_ascii=False)


def contents(
    collections: Mapping[str, Collection],
    documents: Mapping[str, Documents],
    *,
    trims_capped: bool,
    expires: bool = False,
) -> Fingerprint:
    """`trims_capped`, `expires`: the server removes documents of such collections by itself, some time after a write; so
    that of the one the newest document is told, of the other none."""
    facts: dict[tuple[str, str], str] = {}
    tables = {}
    for name, collection in collections.items():
        facts.update(collection.facts())
        if expires and collection.expires:
            tables[name] = TableContent(0, EXPIRES)
        elif collection.kind != "view":
            tables[name] = documents.get(name, Documents()).content(trimmed=trims_capped and collection.capped)
    return Fingerprint(tables, facts)


class ArchiveReader:
    """Fed with an archive in pieces of any size; holds at most one document of it. `only_head`: documents pass unseen.

    Raises `EngineError` for what is no archive.
    """

    def __init__(self, *, only_head: bool = False) -> None:
        self.made_by = ""
        self.server_version = ""
        self.collections: dict[str, Collection] = {}
        self.documents: dict[str, Documents] = {}
        self.head_read = False
        self._only_head = only_head
        self._held = bytearray()
        self._begun = False
        self._head_bytes = 0
        self._current: Documents | None = None  # whose documents come; None: a header comes
        self._ending = False  # an EOF header: its terminator comes

    def feed(self, piece: bytes) -> None:
        if self._only_head and self.head_read:
            return
        if not self._held:
            with memoryview(piece) as view:
                self._held += view[self._taken(view) :]
            return
        self._held += piece
        with memoryview(self._held) as view:
            at = self._taken(view)
        del self._held[:at]

    def _taken(self, view: memoryview) -> int:
        """How many bytes of it were whole, and are done with."""
        at, end = 0, len(view)
        while end - at >= _SIZE.size:
            if not self._begun:
                if struct.unpack_from("<I", view, at)[0] != MAGIC:
                    raise EngineError("this is no archive of mongodump")
                self._begun, at = True, at + 4
                continue
            if self._current is not None:
                at = self._current.take(view, at)
                if end - at < _SIZE.size:
                    break
            size = _SIZE.unpack_from(view, at)[0]
            if size == _TERMINATOR:
                at += _SIZE.size
                self._terminated()
                if self._only_head:
                    return end
                continue
            if not 5 <= size <= _MOST_BYTES:
                raise EngineError("the archive holds something else than documents")
            if end - at < size:
                break
            self._document(view[at : at + size])
            at += size
        return at

    def contents(self, *, trims_capped: bool, expires: bool = False) -> Fingerprint:
        """Of all that was fed. `EngineError` when it did not end where an archive ends."""
        whole = self.head_read and not self._held and self._current is None and not self._ending
        open_ones = [
            name
            for name, collection in self.collections.items()
            if collection.kind != "view" and not self.documents.get(name, Documents()).ended
        ]
        if not whole or open_ones:
            raise EngineError("the dump did not come to its end")
        return contents(self.collections, self.documents, trims_capped=trims_capped, expires=expires)

    # --- parts ------------------------------------------------------------------------------------------------------------
    def _terminated(self) -> None:
        if not self.head_read:
            self.head_read = True
        elif self._ending:
            self._ending = False
        elif self._current is not None:
            self._current = None
        else:
            raise EngineError("the archive has an end without a beginning")

    def _document(self, document: memoryview) -> None:
        try:
            found = bson.decode(bytes(document))
        except (BSONError, ValueError, OverflowError) as error:
            raise EngineError("the archive has a header that can't be read") from error
        if not self.head_read:
            self._head(found, len(document))
        elif self._ending:
            raise EngineError("the archive goes on where a collection has ended")
        else:
            self._header(found)

    def _head(self, found: dict[str, Any], size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > _HEAD_MOST:
            raise EngineError("the archive's head is larger than any can be")
        if not self.made_by:
            self.made_by = f"mongodump {found.get('tool_version', '')}"[:60]
            self.server_version = str(found.get("server_version", ""))[:40]
            return
        name = str(found.get("collection", ""))
        self.collections[name] = Collection.told(name, str(found.get("type", "")), str(found.get("metadata", "")))

    def _header(self, found: dict[str, Any]) -> None:
        name = str(found.get("collection", ""))
        if name not in self.collections and name.startswith(_BUCKETS):
            name = name.removeprefix(_BUCKETS)
        if name not in self.collections:
            raise EngineError("the archive holds documents of a collection that its head does not name")
        documents = self.documents.setdefault(name, Documents())
        if documents.ended:
            raise EngineError("the archive goes on where a collection has ended")
        if found.get("EOF"):
            documents.ended, self._ending = True, True
        else:
            self._current = documents
