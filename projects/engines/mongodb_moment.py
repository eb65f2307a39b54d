"""A dump of a MongoDB or FerretDB database, and what it held: told from the archive's own documents (rule 28).

It is not one moment: neither product gives a single server's client a snapshot of several collections. Each collection is as
it was when the tool came to it, and the manifest says what the tool wrote, not what the live database said.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence

from bson import json_util

from projects.domain import Command, Credentials, Endpoint, EngineError, Fingerprint, TenantNames
from projects.engines import mongodb_copy
from projects.engines.moments import Moment, Restoring
from projects.engines.mongodb_archive import ArchiveReader
from projects.engines.mongodb_reading import collections_of, time_series, told_series
from projects.engines.mongodb_session import connect

NOT_ONE = (
    "Not of one moment: each collection is as it was when the dump came to it; the product gives no snapshot of several,"
    " and there is no going back to a point in time."
)
USERS = "Logins and their passwords are not in it: a restored database has its project's own."
EXPIRING = (
    "Of {} collections with a time to live no document is counted or compared: the server removes them by itself."
)
TRIMMED = "Of {} capped collections only the newest document is counted and compared: the server removes the oldest by itself."


def unspeakable(names: Sequence[str]) -> list[str]:
    """Collections that a restore would leave out without a word: its patterns match no line break."""
    return [name for name in names if "\n" in name]


class MongoDBMoment(Moment):
    from_stream = True

    def __init__(self, command: Command, notes: tuple[str, ...], *, trims_capped: bool, expires: bool = False) -> None:
        self.command, self.notes = command, notes
        self._reader = ArchiveReader()
        self._trims_capped, self._expires = trims_capped, expires

    def hear(self, piece: bytes) -> None:
        self._reader.feed(piece)
        self.tool = self._reader.made_by

    def heard_all(self) -> None:
        found = self._reader.collections.values()
        capped = sum(collection.capped for collection in found)
        expiring = sum(collection.expires for collection in found) if self._expires else 0
        if capped and self._trims_capped:
            self.notes = (*self.notes, TRIMMED.format(capped))
        if expiring:
            self.notes = (*self.notes, EXPIRING.format(expiring))

    def contents(self, pulse: Callable[[], None]) -> Fingerprint:
        if found := unspeakable(list(self._reader.collections)):
            raise EngineError(f"{len(found)} collections with a line break in their name came about meanwhile")
        return self._reader.contents(trims_capped=self._trims_capped, expires=self._expires)


@contextlib.contextmanager
def held(
    endpoint: Endpoint, place: Endpoint, credentials: Credentials, *, program: str, trims_capped: bool, expires: bool
) -> Iterator[MongoDBMoment]:
    """The moments are the tool's own."""
    with connect(endpoint, credentials, timeout_seconds=10) as session:
        listed = collections_of(session, credentials.database)
    series = time_series(listed)
    left_out = [*unspeakable([str(row["name"]) for row in listed]), *series]
    command = mongodb_copy.dump(place, credentials, program, left_out=left_out)
    notes = (f"Not in the backup: {told_series(series)}.",) if series else ()
    yield MongoDBMoment(command, (NOT_ONE, USERS, *notes), trims_capped=trims_capped, expires=expires)


class IndexedAfterwards(Restoring):
    """The tool restores no index (it sends an option that this product refuses): they are made by the driver, as the
    archive's head tells them."""

    def __init__(self) -> None:
        self._reader = ArchiveReader(only_head=True)

    def hear(self, piece: bytes) -> None:
        self._reader.feed(piece)

    def finish(
        self, endpoint: Endpoint, credentials: Credentials, names: TenantNames, *, pulse: Callable[[], None]
    ) -> None:
        with connect(endpoint, credentials, timeout_seconds=10, statement_seconds=3600) as session:
            for name, collection in self._reader.collections.items():
                wanted = [
                    {key: value for key, value in json_util.loads(json.dumps(index)).items() if key not in {"ns", "v"}}
                    for index in collection.indexes
                    if index.get("name") != "_id_"
                ]
                if wanted:
                    pulse()
                    session.run(names.database, {"createIndexes": name, "indexes": wanted})
