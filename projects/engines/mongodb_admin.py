"""What NovaStack does on a MongoDB server: logins by roles, their lock by address, fences by rights.

MongoDB can't close a connection of somebody else's, so there is no `end_sessions`; but what a login may do is looked up
anew for each command, so locks and fences hold for open sessions at once.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from typing import Any, ClassVar

from projects.domain import Counters, EngineError, ServerStats, TableCount, TableCounts, TenantNames
from projects.engines.admin import TABLES_MOST, TABLES_SECONDS, EngineAdmin
from projects.engines.mongodb_moment import unspeakable
from projects.engines.mongodb_reading import collections_of, some, time_series, told_series
from projects.engines.mongodb_session import ADMIN, NOT_FOUND, CommandFailed, Session

PLATFORM = "novastack"
IDENTITY = "identity"
MONITOR = "novastack_monitor"  # role of control logins, on the server
CONTROL = "nvs_control"  # the same, in the tenant's database
FENCED = "nvs_fenced"  # what a fenced tenant may still do
_NOWHERE = ["240.0.0.1"]  # an address that no client has
_ROLE_NOT_FOUND = 31
_TAKEN_ALONG = frozenset({"system.js"})
_OPERATIONS = ("insert", "query", "update", "delete", "getmore", "command")


def tenant_roles(database: str, *, fenced: bool) -> list[dict[str, str]]:
    """Whole rights on the one database, none elsewhere."""
    roles = [FENCED] if fenced else ["readWrite", "dbAdmin"]
    return [{"role": role, "db": database} for role in roles]


class MongoDBAdmin(EngineAdmin):
    bootstrap_username: ClassVar[str] = "novastack"

    def __init__(self, session: Session) -> None:
        self._session = session

    def ping(self) -> None:
        self._session.run(ADMIN, {"ping": 1})

    def system_identifier(self) -> str:
        found = self._session.find(PLATFORM, IDENTITY, {"_id": 1})
        if not found:
            raise EngineError("the server's data carries no identity")
        return str(found[0]["id"])

    def contents(self) -> list[str]:
        found = set(self.databases())
        return sorted(found | {name for name in self._logins_of_all() if name != self.bootstrap_username})

    def databases(self) -> list[str]:
        """One that nothing was written to does not exist yet."""
        found = self._session.run(ADMIN, {"listDatabases": 1, "nameOnly": True})["databases"]
        return sorted({str(each["name"]) for each in found} - {ADMIN, "config", "local", PLATFORM})

    def database_sizes(self) -> dict[str, int]:
        """A database without a collection does not exist to the product, unless a login is at home there."""
        listed = self._session.run(ADMIN, {"listDatabases": 1})["databases"]
        found = {str(each["name"]): int(each.get("sizeOnDisk") or 0) for each in listed}
        users = self._session.run(ADMIN, {"usersInfo": {"forAllDBs": True}})["users"]
        homes = {str(user["db"]): 0 for user in users}
        return {
            name: size for name, size in (homes | found).items() if name not in {ADMIN, "config", "local", PLATFORM}
        }

    def _logins_of_all(self) -> set[str]:
        users = self._session.run(ADMIN, {"usersInfo": {"forAllDBs": True}})["users"]
        return {str(user["user"]) for user in users}

    def harden(self) -> None:
        self._role(ADMIN, MONITOR, [{"resource": {"cluster": True}, "actions": ["serverStatus", "inprog"]}])
        # Its folder is the sign that the image's own beginning came to its end (`ServerSpec.completed_file`).
        self._session.run(PLATFORM, {
            "update": IDENTITY, "writeConcern": {"w": 1, "j": True},
            "updates": [{"q": {"_id": 1}, "u": {"$setOnInsert": {"id": str(uuid.uuid4())}}, "upsert": True}],
        })  # fmt: skip

    def reload_tls(self, *, required: bool) -> None:
        self._session.run(ADMIN, {"rotateCertificates": 1})
        if required:
            self._session.run(ADMIN, {"setParameter": 1, "tlsMode": "requireTLS"})

    def set_password(self, username: str, password: str, *, keep_old: bool = False) -> None:
        """The product takes the clear text (SCRAM-SHA-256 has no other way) and masks it in its log."""
        for database in self._homes(username):
            self._session.run(database, {"updateUser": username, "pwd": password, "mechanisms": ["SCRAM-SHA-256"]})

    def create_tenant(self, names: TenantNames, *, login_password: str, control_password: str, blank: str = "") -> None:
        database = names.database
        self._role(database, CONTROL, [
            {"resource": {"db": database, "collection": ""}, "actions": [
                "dbStats", "collStats", "viewUser", "listCollections",
            ]},
        ])  # fmt: skip
        self._role(database, FENCED, [
            {"resource": {"db": database, "collection": ""}, "actions": [
                "find", "remove", "dropCollection", "dropIndex", "dropDatabase", "compact", "listCollections",
                "listIndexes", "collStats", "dbStats", "killCursors",
            ]},
        ])  # fmt: skip
        fenced = self._is_fenced(names)
        self._user(database, names.login, login_password, tenant_roles(database, fenced=fenced))
        self._user(database, names.control, control_password, [
            {"role": CONTROL, "db": database}, {"role": MONITOR, "db": ADMIN},
        ])  # fmt: skip

    def drop_tenant(self, names: TenantNames) -> None:
        for command in ({"dropAllUsersFromDatabase": 1}, {"dropAllRolesFromDatabase": 1}, {"dropDatabase": 1}):
            self._session.run(names.database, command)

    def lock_tenant(self, names: TenantNames, *, locked: bool) -> None:
        """By an address that nobody comes from; the password stays. Open sessions lose their login with it."""
        restrictions = [{"clientSource": _NOWHERE}] if locked else []
        self._session.run(names.database, {"updateUser": names.login, "authenticationRestrictions": restrictions})

    def fence_writers(self, names: TenantNames, *, fenced: bool) -> int:
        """By rights: a fenced tenant reads, deletes and drops. Holds for open sessions at once: none has to be ended."""
        roles = tenant_roles(names.database, fenced=fenced)
        self._session.run(names.database, {"updateUser": names.login, "roles": roles})
        return 0

    def hold_fence(self, names: TenantNames, *, hard: bool) -> int:
        """Nobody gets around it: no tenant can give itself a right."""
        return 0

    def end_sessions(self, username: str) -> int:
        raise EngineError("this product can't end sessions of others; restart the server")

    def stats(self, database: str) -> ServerStats:
        sizes = self._session.run(database, {"dbStats": 1})
        server = self._session.run(ADMIN, {"serverStatus": 1, "repl": 0, "metrics": 0, "locks": 0})
        connections = server["connections"]
        users = self._session.run(database, {"usersInfo": 1})["users"]
        logins = {f"{user['user']}": user for user in users if CONTROL not in _role_names(user)}
        return ServerStats(
            size_bytes=int(sizes.get("totalSize") or sizes["storageSize"] + sizes["indexSize"]),
            connections=self._connections(database, set(logins)),
            connections_limit=int(connections["current"]) + int(connections["available"]),
            version=str(server["version"]),
            fenced=bool(logins) and all(FENCED in _role_names(user) for user in logins.values()),
            counters=_counters(server),
        )

    def table_counts(self, database: str, *, limit: int = TABLES_MOST) -> TableCounts:
        """From the collections' own figures, which cost no reading. In the order of their names, as far as two seconds go:
        the product does not sort by size. A control login of before these figures may not list: then it raises."""
        until = time.monotonic() + TABLES_SECONDS
        names = self._collections(database)
        found = []
        for name in names[:limit]:
            if time.monotonic() > until:
                break
            found.append(self._count(database, name))
        return TableCounts(tuple(sorted(found, key=lambda t: t.size_bytes or 0, reverse=True)), len(names))

    def _collections(self, database: str) -> list[str]:
        answer = self._session.run(
            database, {"listCollections": 1, "nameOnly": True, "cursor": {"batchSize": 10_000}, "maxTimeMS": 1000}
        )
        rows = answer["cursor"]["firstBatch"]
        return sorted(str(row["name"]) for row in rows if row.get("type", "collection") != "view")

    def _count(self, database: str, name: str) -> TableCount:
        figures = self._session.run(database, {"collStats": name, "maxTimeMS": 1000})
        return TableCount(name, int(figures["count"]), int(figures["storageSize"]) + int(figures["totalIndexSize"]))

    # --- copies -------------------------------------------------------------------------------------------------------
    def obstacles(self, names: TenantNames, *, renamed: bool = False) -> list[str]:
        """Collections that the tools pass over."""
        found = []
        rows = collections_of(self._session, names.database)
        listed = [str(row["name"]) for row in rows]
        if own := [name for name in listed if name.startswith("system.") and name not in _TAKEN_ALONG]:
            found.append(f"collections with a name of the server's own, {some(own)}: rename them")
        if broken := unspeakable(listed):
            found.append(f"collections with a line break in their name, {some(broken)}: rename them")
        if series := time_series(rows):
            found.append(told_series(series))
        return found

    def quiet(self, names: TenantNames, *, quiet: bool) -> None:
        """Documents with a time to live stay, of all databases. A restart lifts it."""
        self._session.run(ADMIN, {"setParameter": 1, "ttlMonitorEnabled": not quiet})

    def admit_tool(self, names: TenantNames, username: str, password: str) -> None:
        self._user(names.database, username, password, [{"role": "read", "db": names.database}])

    def admit_restorer(self, names: TenantNames, username: str, password: str) -> str:
        self._user(names.database, username, password, tenant_roles(names.database, fenced=False))
        return username

    def dismiss_tool(self, names: TenantNames, username: str) -> None:
        try:
            self._session.run(names.database, {"dropUser": username})
        except CommandFailed as error:
            if error.number != NOT_FOUND:
                raise

    def around(self, names: TenantNames) -> dict[str, Any]:
        """Nothing: what is said of a database stands with its collections, which are in a dump."""
        return {}

    def put_around(self, names: TenantNames, around: dict[str, Any]) -> None:
        """There is nothing to put."""

    def password_hashes(self, names: TenantNames) -> dict[str, str]:
        """None: the product gives them to nobody, and a tenant can't change its password by itself."""
        return {}

    def put_password_hashes(self, names: TenantNames, hashes: Mapping[str, str]) -> None:
        if hashes:
            raise EngineError("this product takes no password but in clear text")

    # --- parts --------------------------------------------------------------------------------------------------------
    def _connections(self, database: str, logins: set[str]) -> int:
        """Those that have logged in as one of `logins`."""
        answer = self._session.run(ADMIN, {
            "aggregate": 1, "cursor": {"batchSize": 10_000},
            "pipeline": [
                {"$currentOp": {"allUsers": True, "idleConnections": True}},
                {"$match": {"effectiveUsers": {"$elemMatch": {"db": database, "user": {"$in": sorted(logins)}}}}},
                {"$count": "count"},
            ],
        })  # fmt: skip
        batch = answer["cursor"]["firstBatch"]
        return int(batch[0]["count"]) if batch else 0

    def _is_fenced(self, names: TenantNames) -> bool:
        users = self._session.run(names.database, {"usersInfo": names.login})["users"]
        return bool(users) and FENCED in _role_names(users[0])

    def _homes(self, username: str) -> list[str]:
        """The databases in which a login of that name lives."""
        if username == self.bootstrap_username:
            return [ADMIN]
        users = self._session.run(ADMIN, {"usersInfo": {"forAllDBs": True}})["users"]
        found = sorted({str(user["db"]) for user in users if user["user"] == username})
        if not found:
            raise EngineError("the login does not exist")
        return found

    def _user(self, database: str, username: str, password: str, roles: list[dict[str, str]]) -> None:
        what = {"pwd": password, "roles": roles, "mechanisms": ["SCRAM-SHA-256"]}
        try:
            self._session.run(database, {"updateUser": username, **what})
        except CommandFailed as error:
            if error.number != NOT_FOUND:
                raise
            self._session.run(database, {"createUser": username, **what})

    def _role(self, database: str, name: str, privileges: list[dict[str, Any]]) -> None:
        try:
            self._session.run(database, {"updateRole": name, "privileges": privileges, "roles": []})
        except CommandFailed as error:
            if error.number != _ROLE_NOT_FOUND:
                raise
            self._session.run(database, {"createRole": name, "privileges": privileges, "roles": []})


def _counters(server: dict[str, Any]) -> Counters:
    """The server's. Operations of clients; pages of WiredTiger's cache."""
    cache = server.get("wiredTiger", {}).get("cache", {})
    asked, missed = cache.get("pages requested from the cache"), cache.get("pages read into cache")
    return Counters(
        queries=sum(int(server["opcounters"].get(kind, 0)) for kind in _OPERATIONS) if "opcounters" in server else None,
        cache_hits=None if asked is None or missed is None else max(0, int(asked) - int(missed)),
        cache_misses=None if missed is None else int(missed), uptime_seconds=server.get("uptime"), server_wide=True,
    )  # fmt: skip


def _role_names(user: dict[str, Any]) -> set[str]:
    return {str(role["role"]) for role in user["roles"]}
