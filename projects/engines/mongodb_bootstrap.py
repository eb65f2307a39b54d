"""The equivalent of the bootstrap tables for MongoDB and FerretDB: collections, made by the tenant's own login with the
command that makes their indexes. Plain and unique indexes of ascending and descending fields: FerretDB has no others. An
index of ours is what tells a collection of ours from one of the tenant's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from projects.domain import Bootstrapped, Credentials, Endpoint, TenantNames
from projects.engines import bootstrap
from projects.engines.bootstrap import AUDIT_LOGS, MIGRATIONS, SETTINGS, TABLES, Change, Version
from projects.engines.mongodb_session import Document, Session, connect

INDEX_MARK = "novastack_"


def _indexes(collection: str, *indexes: Mapping[str, Any]) -> Document:
    """`createIndexes` makes the collection as well, in one go."""
    named = [{**index, "name": f"{INDEX_MARK}{'_'.join(index['key'])}"} for index in indexes]
    return {"createIndexes": collection, "indexes": named}


VERSIONS: tuple[Version[Document], ...] = (
    Version(
        bootstrap.FIRST,
        bootstrap.DESCRIPTION,
        (
            Change(
                MIGRATIONS,
                (_indexes(MIGRATIONS, {"key": {"version": 1}, "unique": True}, {"key": {"applied_at": 1}}),),
                creates=True,
            ),
            Change(
                SETTINGS,
                (_indexes(SETTINGS, {"key": {"name": 1}, "unique": True}, {"key": {"updated_at": 1}}),),
                creates=True,
            ),
            Change(
                AUDIT_LOGS,
                (
                    _indexes(
                        AUDIT_LOGS,
                        {"key": {"created_at": 1}},
                        {"key": {"actor": 1, "created_at": 1}},
                        {"key": {"action": 1, "created_at": 1}},
                        {"key": {"resource_type": 1, "resource_id": 1, "created_at": 1}},
                    ),
                ),
                creates=True,
            ),
        ),
    ),
)


class _Target:
    def __init__(self, session: Session, database: str) -> None:
        self._session, self._database = session, database

    def present(self) -> Mapping[str, bool]:
        found = self._session.run(self._database, {"listCollections": 1, "filter": {"name": {"$in": list(TABLES)}}})
        rows = found["cursor"]["firstBatch"]
        return {str(row["name"]): row.get("type") != "view" and self._ours(row["name"]) for row in rows}

    def _ours(self, collection: str) -> bool:
        found = self._session.run(self._database, {"listIndexes": collection})
        return any(str(index["name"]).startswith(INDEX_MARK) for index in found["cursor"]["firstBatch"])

    def recorded(self) -> set[str]:
        return {str(row["version"]) for row in self._session.find(self._database, MIGRATIONS, {}) if "version" in row}

    def run(self, statement: Document) -> None:
        self._session.run(self._database, statement)

    def record(self, version: str, description: str) -> None:
        what = {"version": version, "description": description, "applied_at": datetime.now(UTC)}
        self._session.run(self._database, {
            "update": MIGRATIONS,
            "updates": [{"q": {"_id": version}, "u": {"$setOnInsert": what}, "upsert": True}],
        })  # fmt: skip


def run(
    endpoint: Endpoint, names: TenantNames, password: str, versions: Sequence[Version[Document]] = VERSIONS
) -> Bootstrapped:
    """As the tenant."""
    with connect(endpoint, Credentials(names.login, password, names.database), timeout_seconds=10) as session:
        return bootstrap.apply(_Target(session, names.database), versions)
