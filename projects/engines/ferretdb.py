"""FerretDB 1.24 on SQLite: a free server that speaks MongoDB's protocol.

It knows logins and no rights: whoever logs in may do everything on the server, to every database and login, ours too.
So a server is one project's only (no POOL), and there is nothing by which writers could be fenced. It neither lists nor
ends nor limits sessions: those that are open stay until the server stops, also when their login is locked or removed.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import threading
import time
import uuid
from collections.abc import Mapping
from typing import Any, ClassVar

from projects.domain import (
    Capability,
    Command,
    Counters,
    Credentials,
    Endpoint,
    EngineError,
    ProcessProgram,
    ServerRequest,
    ServerSpec,
    ServerStats,
    TableCount,
    TableCounts,
    TenantNames,
)
from projects.engines import mongodb_copy, trust
from projects.engines.admin import TABLES_MOST, TABLES_SECONDS
from projects.engines.moments import Restoring
from projects.engines.mongodb import DATA, MIB, SECRET, MongoDB
from projects.engines.mongodb_admin import MongoDBAdmin
from projects.engines.mongodb_moment import IndexedAfterwards
from projects.engines.mongodb_reading import names_of, some
from projects.engines.mongodb_session import ADMIN, Session

MOUNT = "/var/lib/ferretdb"
USERS = "system.users"
ITERATIONS = 15_000
MECHANISM = "SCRAM-SHA-256"
_SIZE_EVERY = 20  # times as long as measuring took
_LOCKED = "novastack_locked"
COUNTED_BYTES = 32 << 20  # a fifth of a second
_HANDSHAKE = {"hello", "ismaster", "isMaster", "saslStart", "saslContinue", "ping", "endSessions", "buildInfo", "buildinfo",
              "connectionStatus", "serverStatus", "listDatabases", "whatsmyuri", "getParameter"}  # fmt: skip

# What a plain process does before its first real start: the same as the image's entrypoint. The password is in the
# environment of that one process, of the server's own account, and is replaced right after.
_FIRST_START = """set -eu
cd "$1"
FERRETDB_SETUP_PASSWORD=$(cat "$2"); export FERRETDB_SETUP_PASSWORD
shift 2
"$@" --listen-addr= --listen-unix=first.sock &
server=$!
tries=0
while ! [ -S first.sock ]; do
  kill -0 $server 2>/dev/null || { echo "the server of the first start ended" >&2; exit 1; }
  tries=$((tries + 1)); [ $tries -lt 600 ] || { kill $server; exit 1; }
  sleep 0.05
done
kill -TERM $server
wait $server
"""


def scram_sha_256(password: str, salt: bytes) -> dict[str, Any]:
    """What a server keeps of a password (RFC 5802, 7677): it can check it with that, and not get it back. The password
    must be ASCII: those are their own SASLprep."""
    if not password.isascii() or not password.isprintable():
        raise ValueError("only printable ASCII")
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, ITERATIONS)
    client = hmac.digest(salted, b"Client Key", "sha256")
    keys = {"storedKey": hashlib.sha256(client).digest(), "serverKey": hmac.digest(salted, b"Server Key", "sha256")}
    return {
        "iterationCount": ITERATIONS,
        "salt": base64.b64encode(salt).decode(),
        **{name: base64.b64encode(key).decode() for name, key in keys.items()},
    }


class FerretDBAdmin(MongoDBAdmin):
    """Logins are documents here, which are written as such: so the clear text of no password ever reaches the server."""

    # Every measuring reads the whole file: per (server's process, database) when, how long it took, and what it said.
    _sizes: ClassVar[dict[tuple[str, str], tuple[float, float, int]]] = {}
    _sizes_lock: ClassVar[threading.Lock] = threading.Lock()

    def system_identifier(self) -> str:
        """The id that the first login got when the data was made. There is no place that a tenant could not write to."""
        users = self._session.run(ADMIN, {"usersInfo": self.bootstrap_username})["users"]
        if not users:
            raise EngineError("NovaStack's own login is gone")
        return str(users[0]["userId"])

    def _logins_of_all(self) -> set[str]:
        return {str(user["user"]) for user in self._session.find(ADMIN, USERS, {})}

    def reload_tls(self, *, required: bool) -> None:
        """It reads its certificate when it starts, and never again."""

    def harden(self) -> None:
        """Nothing is open without a login; what a login may do can't be limited."""

    def set_password(self, username: str, password: str, *, keep_old: bool = False) -> None:
        query = {"user": username}
        if username == self.bootstrap_username:
            query["db"] = ADMIN
        found = self._session.find(ADMIN, USERS, query)
        if not found:
            raise EngineError("the login does not exist")
        for user in found:
            self._write(user["_id"], {_LOCKED if user.get(_LOCKED) else "credentials": _verifier(password)})

    def create_tenant(self, names: TenantNames, *, login_password: str, control_password: str, blank: str = "") -> None:
        for username, password in ((names.login, login_password), (names.control, control_password)):
            self._put(names, username, password)

    def _put(self, names: TenantNames, username: str, password: str) -> None:
        """A login, at home in the tenant's database; one that is there gets this password, and is not locked."""
        self._session.run(ADMIN, {"update": USERS, "updates": [{
            "q": {"_id": f"{names.database}.{username}"}, "upsert": True,
            "u": {
                "$set": {"credentials": _verifier(password), "user": username, "db": names.database, "roles": []},
                "$unset": {_LOCKED: ""},
                "$setOnInsert": {"userId": uuid.uuid4()},
            },
        }]})  # fmt: skip

    def drop_tenant(self, names: TenantNames) -> None:
        self._session.run(names.database, {"dropDatabase": 1})
        ids = [f"{names.database}.{username}" for username in (names.login, names.control)]
        self._session.run(ADMIN, {"delete": USERS, "deletes": [{"q": {"_id": {"$in": ids}}, "limit": 0}]})

    def lock_tenant(self, names: TenantNames, *, locked: bool) -> None:
        """The verifier is put aside, so that no password logs in. Sessions that are open go on."""
        ours = {f"{names.database}.{names.control}", f"{ADMIN}.{self.bootstrap_username}"}
        for user in self._session.find(ADMIN, USERS, {}):  # those that the tenant made, wherever, as well
            if user["_id"] in ours:
                continue
            if locked and not user.get(_LOCKED):
                self._write(user["_id"], {_LOCKED: user["credentials"], "credentials": {}})
            elif not locked and user.get(_LOCKED):
                self._write(user["_id"], {"credentials": user[_LOCKED], _LOCKED: {}})

    def is_locked(self, names: TenantNames) -> bool:
        ours = {f"{names.database}.{names.control}", f"{ADMIN}.{self.bootstrap_username}"}
        users = self._session.find(ADMIN, USERS, {})
        return all(user["_id"] in ours or (user.get(_LOCKED) and not user["credentials"]) for user in users)

    # --- copies -------------------------------------------------------------------------------------------------------
    def obstacles(self, names: TenantNames, *, renamed: bool = False) -> list[str]:
        """Also what a tenant made beside its database: nothing on this product keeps it from doing so."""
        found = super().obstacles(names, renamed=renamed)
        if others := [name for name in self.databases() if name != names.database]:
            found.append(f"other databases on the server, {some(others)}: only {names.database} is taken")
        if strays := [name for name in names_of(self._session, ADMIN) if name != USERS]:
            found.append(f"collections in the database admin, {some(strays)}")
        ours = {names.login, names.control, names.tool, self.bootstrap_username}
        if logins := sorted(self._logins_of_all() - ours):
            found.append(f"logins besides {names.login}, {some(logins)}")
        return found

    def quiet(self, names: TenantNames, *, quiet: bool) -> None:
        """It does nothing by itself that could be stopped."""

    def admit_tool(self, names: TenantNames, username: str, password: str) -> None:
        self._put(names, username, password)

    def admit_restorer(self, names: TenantNames, username: str, password: str) -> str:
        self._put(names, username, password)
        return username

    def dismiss_tool(self, names: TenantNames, username: str) -> None:
        """A session of it would go on; but the tool is gone."""
        self._session.run(
            ADMIN, {"delete": USERS, "deletes": [{"q": {"_id": f"{names.database}.{username}"}, "limit": 0}]}
        )

    def password_hashes(self, names: TenantNames) -> dict[str, str]:
        found = self._session.find(ADMIN, USERS, {"_id": f"{names.database}.{names.login}"})
        return {str(user["user"]): json.dumps(user.get(_LOCKED) or user["credentials"]) for user in found}

    def put_password_hashes(self, names: TenantNames, hashes: Mapping[str, str]) -> None:
        for username, kept in hashes.items():
            found = self._session.find(ADMIN, USERS, {"_id": f"{names.database}.{username}"})
            if not found:
                raise EngineError("the login does not exist")
            self._write(found[0]["_id"], {_LOCKED if found[0].get(_LOCKED) else "credentials": json.loads(kept)})

    def fence_writers(self, names: TenantNames, *, fenced: bool) -> int:
        raise EngineError("this product can't forbid writing")

    def hold_fence(self, names: TenantNames, *, hard: bool) -> int:
        raise EngineError("this product can't forbid writing")

    def stats(self, database: str) -> ServerStats:
        status = self._session.run(ADMIN, {"serverStatus": 1})
        return ServerStats(
            size_bytes=self._size(f"{status['host']}/{status['pid']}", database),
            connections=None, connections_limit=None, version=version_of(status), counters=_counters(status),
        )  # fmt: skip

    def table_counts(self, database: str, *, limit: int = TABLES_MOST) -> TableCounts:
        """Counting analyses the whole database, under a lock: done for small ones, of larger ones only names are known."""
        counted = self._size(self._server(), database) <= COUNTED_BYTES
        names = self._collections(database)
        until, found = time.monotonic() + TABLES_SECONDS, []
        for name in names[:limit]:
            counted = counted and time.monotonic() < until
            found.append(self._count(database, name) if counted else TableCount(name, None, None))
        return TableCounts(tuple(sorted(found, key=lambda t: t.size_bytes or 0, reverse=True)), len(names))

    def _server(self) -> str:
        status = self._session.run(ADMIN, {"serverStatus": 1})
        return f"{status['host']}/{status['pid']}"

    def _size(self, server: str, database: str) -> int:
        """Of the file. Not `dbStats`, which analyses every table anew, under a lock."""
        key = (server, database)
        with self._sizes_lock:
            at, cost, size = self._sizes.get(key, (0.0, 0.0, -1))
        began = time.monotonic()
        if size >= 0 and began - at < cost * _SIZE_EVERY:
            return size
        found = self._session.run(ADMIN, {"listDatabases": 1, "filter": {"name": database}})["databases"]
        size = int(found[0]["sizeOnDisk"]) if found else 0
        with self._sizes_lock:
            if len(self._sizes) > 10_000:
                self._sizes.clear()
            self._sizes[key] = (time.monotonic(), time.monotonic() - began, size)
        return size

    def _write(self, user_id: str, values: Mapping[str, Any]) -> None:
        self._session.run(ADMIN, {"update": USERS, "updates": [{"q": {"_id": user_id}, "u": {"$set": dict(values)}}]})


def _verifier(password: str) -> dict[str, Any]:
    return {MECHANISM: scram_sha_256(password, secrets.token_bytes(28))}


def _counters(status: Mapping[str, Any]) -> Counters:
    """Commands that did something; not those by which drivers say hello. It does not tell about its cache."""
    commands = status.get("metrics", {}).get("commands", {})
    done = sum(int(each["total"]) for name, each in commands.items() if name not in _HANDSHAKE)
    return Counters(queries=done, uptime_seconds=status.get("uptime"), server_wide=True)


def version_of(status: Mapping[str, Any]) -> str:
    return str(status["ferretdbVersion"]).removeprefix("v")


class FerretDB(MongoDB):
    name: ClassVar[str] = "ferretdb"
    title: ClassVar[str] = "FerretDB"
    short: ClassVar[str] = "FE"
    oldest_version: ClassVar[str] = "1.24"
    below_version: ClassVar[str] = "2.0"  # from there on it needs a PostgreSQL with extensions of its own
    version_parts: ClassVar[tuple[int, int]] = (2, 3)
    capabilities: ClassVar[frozenset[Capability]] = frozenset({Capability.TLS, Capability.COPY})
    tls_relaxes_at_start: ClassVar[bool] = False
    official_image: ClassVar[str] = "novastack-ferretdb"
    server_program: ClassVar[str] = "ferretdb"
    minimum_memory_bytes: ClassVar[int] = 128 << 20
    resize_words: ClassVar[str] = "How much memory its garbage collector allows itself changes at the next restart."
    warnings: ClassVar[tuple[str, ...]] = (
        "It has no rights: whoever logs in may do everything on this server, to NovaStack's own login and all databases.",
        "It speaks TLS only, and is restarted once a year for a new certificate, unless it was within the weeks before.",
    )
    admin_class: ClassVar[type[MongoDBAdmin]] = FerretDBAdmin
    trims_capped: ClassVar[bool] = True
    expires: ClassVar[bool] = False
    lock_ends_sessions: ClassVar[bool] = False
    tool_programs: ClassVar[tuple[str, ...]] = (mongodb_copy.DUMP, mongodb_copy.RESTORE)

    def restore(self, place: Endpoint, credentials: Credentials) -> Command:
        return mongodb_copy.restore(place, credentials, arguments=("--noIndexRestore",))

    def restoring(self) -> Restoring:
        return IndexedAfterwards()

    def server_spec(self, request: ServerRequest) -> ServerSpec:
        data = f"{MOUNT}/{DATA}"
        return self.spec(
            request,
            mount_path=MOUNT,
            data_subdir=DATA,
            # The image's entrypoint makes the data elsewhere and moves it here whole.
            initialised_file="admin.sqlite",
            entrypoint=("docker-entrypoint.sh",),
            argv=("ferretdb", *_options(data), *_listen(request, ":27017", f"{MOUNT}/.novastack/files/{trust.PAIR}")),
            env={
                "FERRETDB_DATA": data,
                "FERRETDB_SETUP_USERNAME": request.admin.username,
                "FERRETDB_SETUP_PASSWORD_FILE": f"{MOUNT}/.novastack/{SECRET}",
                # Sorting goes to the volume, and the collector of garbage knows how much there is.
                "SQLITE_TMPDIR": data,
                "GOMEMLIMIT": f"{request.limits.memory_bytes // MIB * 8 // 10}MiB",
            },
            secret_files={SECRET: request.admin.password.encode()},
            files={trust.PAIR: request.tls.pem} if request.tls else {},
            user="ferretdb",
            tmpfs={"/tmp": "mode=1777,size=64m"},  # noqa: S108 - the container's
            process=ProcessProgram(
                binary="ferretdb",
                init=(
                    "/bin/sh", "-c", _FIRST_START, "first-start", "{data}", f"{{secret:{SECRET}}}", "ferretdb",
                    *_options("{data}"), f"--setup-database={ADMIN}", f"--setup-username={request.admin.username}",
                ),
                run=("ferretdb", *_options("{data}"), *_listen(request, "{host}:{port}", f"{{file:{trust.PAIR}}}")),
                reserved_bytes=256 * MIB,
            ),
        )  # fmt: skip

    def fixed_memory_bytes(self, memory_bytes: int) -> int:
        """Its collector begins late, and gives back."""
        return 0

    def check_rights(self, session: Session, names: TenantNames) -> bool:
        """There are no rights here. The login must be the tenant's own."""
        users = session.run(names.database, {"connectionStatus": 1})["authInfo"]["authenticatedUsers"]
        if users != [{"user": names.login, "db": names.database}]:
            raise EngineError("the session is not the tenant's")
        return True

    def server_version(self, session: Session) -> str:
        return version_of(session.run(ADMIN, {"serverStatus": 1}))


def _listen(request: ServerRequest, address: str, pair: str) -> tuple[str, ...]:
    """One port speaks TLS or does not. A CA's file would have it ask clients for certificates."""
    if request.tls is None:
        return (f"--listen-addr={address}",)
    return (
        "--listen-addr=", f"--listen-tls={address}", f"--listen-tls-cert-file={pair}", f"--listen-tls-key-file={pair}",
    )  # fmt: skip


def _options(folder: str) -> tuple[str, ...]:
    return (
        "--handler=sqlite",
        f"--sqlite-url=file:{folder}/?_pragma=synchronous(full)",
        f"--state-dir={folder}",
        "--debug-addr=-",
        "--telemetry=disable",
        "--log-level=ERROR",  # at WARN every command that a client gets wrong, and every end of a session, fills a page
        "--test-enable-new-auth",
    )
