"""Sessions with servers that speak MongoDB's protocol. They end in time, and their errors are ours."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import bson
import pymongo
from bson import Int64
from bson.binary import UuidRepresentation
from bson.codec_options import CodecOptions
from pymongo import MongoClient
from pymongo.errors import ConnectionFailure, OperationFailure, PyMongoError, WriteError

from projects.domain import Credentials, Endpoint, EngineError, LoginRefused, ServerNotReady, TlsNotTrusted
from projects.engines import trust

Document = dict[str, Any]
_CODEC: CodecOptions[Document] = CodecOptions(uuid_representation=UuidRepresentation.STANDARD)

ADMIN = "admin"
# OP_MSG (2013) with one section: https://www.mongodb.com/docs/manual/reference/mongodb-wire-protocol/
_BODY = struct.pack("<IB", 0, 0) + bson.encode({"hello": 1, "$db": ADMIN})
_HELLO = struct.pack("<iiii", 16 + len(_BODY), 1, 0, 2013) + _BODY
STATEMENT_SECONDS = 15.0

# https://github.com/mongodb/mongo/blob/master/src/mongo/base/error_codes.yml
_REFUSED = {
    11,  # no such user
    18,  # wrong name or password
    334,  # the user has no secret for this way to log in: locked (FerretDB)
    341,  # the user's restrictions forbid it: locked (MongoDB)
}
_AWAY = {6, 7, 89, 91, 189, 9001, 11600, 11602}
NOT_FOUND = 11


class CommandFailed(EngineError):
    """The server answered with an error; `number` is MongoDB's."""

    def __init__(self, text: str, number: int) -> None:
        super().__init__(text)
        self.number = number


def translate(error: PyMongoError) -> EngineError:
    """Our error for a driver's; its text holds the server's message, never a command or a secret."""
    if isinstance(error, OperationFailure):
        # Its own text repeats the whole answer; of a refused write that may be a document.
        text = str((error.details or {}).get("errmsg") or "") if not isinstance(error, WriteError) else "write refused"
        number = error.code or 0
        if number in _AWAY:
            return ServerNotReady(_shortened(text))
        return CommandFailed(_shortened(f"{text or 'the server refused a command'} ({number})"), number)
    if isinstance(error, ConnectionFailure) or error.timeout:
        return ServerNotReady("the server did not answer in time")
    return EngineError(_shortened(f"{type(error).__name__}: the driver gave up"))


def _shortened(text: str) -> str:
    return " ".join(text.split())[:300]


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Driver errors leave as ours."""
    try:
        yield
    except PyMongoError as error:
        raise translate(error) from None


class Session:
    """One client with one connection that has logged in. Raises our errors only."""

    def __init__(self, client: MongoClient[Document]) -> None:
        self._client = client

    def run(self, database: str, command: Mapping[str, Any]) -> Document:
        """One command; its answer."""
        with translated():
            return dict(self._client[database].command(dict(command), codec_options=_CODEC))

    def find(self, database: str, collection: str, query: Mapping[str, Any]) -> list[Document]:
        with translated():
            return list(self._client[database][collection].find(query))

    def whole(self, database: str, answer: Document) -> list[Document]:
        """All rows of a cursor, of which a command answered the first."""
        cursor = answer["cursor"]
        rows = list(cursor["firstBatch"])
        while cursor["id"]:
            name = str(cursor["ns"]).partition(".")[2]
            cursor = self.run(database, {"getMore": Int64(cursor["id"]), "collection": name})["cursor"]
            rows += cursor["nextBatch"]
        return rows

    def raw(self, database: str, collection: str, pulse: Callable[[], None]) -> Iterator[bytes]:
        """Every document, as it came. `pulse` is called with every batch and ends it by raising."""
        with translated():
            batches: Any = self._client[database][collection].find_raw_batches({}, batch_size=1000)
            for batch in batches:
                pulse()
                at = 0
                while at < len(batch):
                    size = int.from_bytes(batch[at : at + 4], "little")
                    yield batch[at : at + size]
                    at += size

    def drop_database(self, database: str) -> None:
        self.run(database, {"dropDatabase": 1})


@contextlib.contextmanager
def connect(
    endpoint: Endpoint,
    credentials: Credentials,
    *,
    timeout_seconds: float,
    statement_seconds: float = STATEMENT_SECONDS,
) -> Iterator[Session]:
    """A session. `timeout_seconds` is for the login; each command may take `statement_seconds`."""
    began = time.monotonic()
    knock(endpoint, timeout_seconds)
    left = max(0.2, timeout_seconds - (time.monotonic() - began))
    database = credentials.database or ADMIN
    secure: dict[str, Any] = {"tls": True, "tlsCAFile": trust.ca_file(endpoint.ca_pem)} if endpoint.ca_pem else {}
    client: MongoClient[Document] = MongoClient(
        endpoint.host, endpoint.port, username=credentials.username, password=credentials.password,
        authSource=database, authMechanism="SCRAM-SHA-256", directConnection=True, maxPoolSize=1, appname="novastack",
        serverSelectionTimeoutMS=int(left * 1000), connectTimeoutMS=int(left * 1000),
        socketTimeoutMS=int(statement_seconds * 1000), retryReads=False, retryWrites=False, uuidRepresentation="standard",
        connect=False, **secure,
    )  # fmt: skip
    try:
        if endpoint.ca_pem:
            _ask_for(client, endpoint)
        _log_in(client, database, left)
        yield Session(client)
    finally:
        with contextlib.suppress(PyMongoError, OSError):
            client.close()


class _ForName(ssl.SSLContext):
    """Trusts one name's certificate, whatever address it was found at."""

    name: str

    def wrap_socket(self, sock: socket.socket, **options: Any) -> ssl.SSLSocket:  # type: ignore[override]
        return super().wrap_socket(sock, **{**options, "server_hostname": self.name})


def _ask_for(client: MongoClient[Document], endpoint: Endpoint) -> None:
    """The driver checks for the address only: here the server has to be the one of that name. It has no setting for it, so
    its context is replaced; should a new release keep it elsewhere, this fails, and no session comes about."""
    context = _ForName(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(cadata=endpoint.ca_pem)
    context.name = endpoint.tls_name or endpoint.host
    pool_options: Any = client.options.pool_options
    pool_options._PoolOptions__ssl_context = context
    if pool_options._ssl_context is not context:
        raise EngineError("the driver does not take whom to trust")


def knock(endpoint: Endpoint, seconds: float, *, first_word: bool = True) -> None:
    """The driver waits for half a second before it asks again; we want to know at once who listens, and why nobody does.
    That somebody accepts says nothing: a container engine's proxy does so before the server is there. So it must say a
    first word (unless that may be refused for want of TLS), or prove itself by TLS."""
    heard = b"-"
    try:
        with socket.create_connection((endpoint.host, endpoint.port), timeout=seconds) as plain:
            if endpoint.ca_pem:
                name = endpoint.tls_name or endpoint.host
                trust.context(endpoint.ca_pem).wrap_socket(plain, server_hostname=name).close()
            elif first_word:
                plain.sendall(_HELLO)
                heard = plain.recv(16)
    except ssl.SSLCertVerificationError:
        raise TlsNotTrusted("the server does not show a valid certificate that this install made for it") from None
    except OSError as error:
        raise ServerNotReady(f"nobody answers: {error.strerror or type(error).__name__}") from None
    if not heard:
        raise ServerNotReady("nobody answers: the connection was closed")


def _log_in(client: MongoClient[Document], database: str, seconds: float) -> None:
    try:
        # `ping` needs no rights, and FerretDB and MongoDB answer it to strangers too: but the driver logs in first.
        with translated(), pymongo.timeout(seconds):
            client[database].command("ping")
    except CommandFailed as error:
        if error.number in _REFUSED:
            raise LoginRefused("the server refused this login") from None
        raise
