"""A database read through the driver, collection by collection: the same as `mongodb_archive` tells of a dump."""

from __future__ import annotations

import json
from collections.abc import Callable

from bson import json_util

from projects.domain import Credentials, Endpoint, Fingerprint
from projects.engines.mongodb_archive import Collection, Documents, contents
from projects.engines.mongodb_session import Document, Session, connect

_LISTED = 10_000
_CANONICAL = json_util.CANONICAL_JSON_OPTIONS
_OWN = frozenset({"system.views", "system.profile"})  # of the server itself
BUCKETS = "system.buckets."


def collections_of(session: Session, database: str) -> list[Document]:
    """What the server lists, by name; less what is its own."""
    answer = session.run(database, {"listCollections": 1, "cursor": {"batchSize": _LISTED}})
    found = session.whole(database, answer)
    return sorted(
        (row for row in found if row["name"] not in _OWN and not str(row["name"]).startswith(BUCKETS)),
        key=lambda row: str(row["name"]),
    )


def names_of(session: Session, database: str) -> list[str]:
    return [str(row["name"]) for row in collections_of(session, database)]


def read(endpoint: Endpoint, credentials: Credentials, pulse: Callable[[], None], *, trims_capped: bool) -> Fingerprint:
    """Errors as `connect` raises them. What no archive would hold (`system.…`) is left out here as well."""
    database = credentials.database
    with connect(endpoint, credentials, timeout_seconds=10, statement_seconds=600) as session:
        collections, documents = {}, {}
        for row in collections_of(session, database):
            name, kind = str(row["name"]), str(row.get("type", "collection"))
            if name.startswith("system."):
                continue
            collection = Collection(name, kind, _plain(row.get("options", {})))
            collections[name] = collection
            if kind == "view":
                continue
            answer = session.run(database, {"listIndexes": name, "cursor": {"batchSize": _LISTED}})
            collection.indexes = [_plain(index) for index in session.whole(database, answer)]
            told = documents[name] = Documents()
            source = f"{BUCKETS}{name}" if kind == "timeseries" else name
            for document in session.raw(database, source, pulse):
                told.add(document)
    return contents(collections, documents, trims_capped=trims_capped)


def _plain(spec: Document) -> Document:
    """As the tool's extended JSON spells it."""
    found: Document = json.loads(json_util.dumps(spec, json_options=_CANONICAL))
    return found
