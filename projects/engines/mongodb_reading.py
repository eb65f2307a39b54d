"""A database read through the driver, collection by collection: the same as `mongodb_archive` tells of a dump."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

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


def time_series(listed: Sequence[Document]) -> list[str]:
    """By name. Their documents lie in buckets (`system.buckets.…`), which a login with a database's common rights may not
    read: they are in no dump."""
    return [str(row["name"]) for row in listed if row.get("type") == "timeseries"]


def told_series(names: Sequence[str]) -> str:
    return f"time series, {some(names)}: their buckets can't be read by the dump's login"


def some(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name)[1:-1][:60] for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def read(
    endpoint: Endpoint, credentials: Credentials, pulse: Callable[[], None], *, trims_capped: bool, expires: bool
) -> Fingerprint:
    """Errors as `connect` raises them. What no archive would hold (`system.…`, time series) is left out here as well."""
    database = credentials.database
    with connect(endpoint, credentials, timeout_seconds=10, statement_seconds=600) as session:
        collections, documents = {}, {}
        for row in collections_of(session, database):
            name, kind = str(row["name"]), str(row.get("type", "collection"))
            if (name.startswith("system.") and name != "system.js") or kind == "timeseries":
                continue
            collection = Collection(name, kind, _plain(row.get("options", {})))
            collections[name] = collection
            if kind == "view":
                continue
            answer = session.run(database, {"listIndexes": name, "cursor": {"batchSize": _LISTED}})
            collection.indexes = [_plain(index) for index in session.whole(database, answer)]
            told = documents[name] = Documents()
            if expires and collection.expires:
                continue  # not read, since it is not compared
            for document in session.raw(database, name, pulse):
                told.add(document)
    return contents(collections, documents, trims_capped=trims_capped, expires=expires)


def _plain(spec: Document) -> Document:
    """As the tool's extended JSON spells it."""
    found: Document = json.loads(json_util.dumps(spec, json_options=_CANONICAL))
    return found
