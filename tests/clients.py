"""A database's clients, as its users are: the product's own driver, and what the API said about connecting.

Where the server speaks TLS its certificate is checked, against the CA's file and the address that was told.
"""

from __future__ import annotations

import contextlib
import ssl
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import psycopg
import pymysql
from pymongo import MongoClient
from pymongo.errors import PyMongoError

from projects.domain import ConnectionInfo


@dataclass(frozen=True)
class Access:
    """What a client was told. `ca`: the path of the CA's certificate; empty: there is no TLS, unless `unchecked`: TLS with
    whoever answers."""

    host: str
    port: int
    database: str
    username: str
    password: str = field(repr=False)
    ca: str = ""
    unchecked: bool = False

    @classmethod
    def told(cls, answer: Mapping[str, Any], ca: str = "") -> Access:
        """From the API's `connection` answer."""
        names = ("host", "port", "database", "username", "password")
        return cls(*(answer[name] for name in names), ca=ca if answer["tls"] else "")

    @classmethod
    def of(cls, info: ConnectionInfo, ca: str = "") -> Access:
        return cls(info.host, info.port, info.database, info.username, info.password, ca if info.tls else "")


class Client(ABC):
    """One table, `orders`, of words in the order in which they were written."""

    refused: ClassVar[tuple[type[Exception], str]]  # how a wrong password is answered: the error, and words in it
    gone: ClassVar[type[Exception]]  # nobody answers

    @abstractmethod
    def encrypted(self, access: Access) -> bool:
        """Log in. Whether the session is encrypted, by what its transport says."""

    @abstractmethod
    def make(self, access: Access) -> None:
        """Make the table."""

    @abstractmethod
    def add(self, access: Access, *words: str) -> None:
        """Write words; returns once the server has acknowledged all of them."""

    @abstractmethod
    def words(self, access: Access) -> list[str]: ...


class PostgreSQLClient(Client):
    refused = psycopg.OperationalError, "password authentication failed"
    gone = psycopg.OperationalError

    @contextlib.contextmanager
    def session(self, access: Access, *, autocommit: bool = True) -> Iterator[psycopg.Connection[Any]]:
        trust = {"sslmode": "require" if access.unchecked else "disable"}
        if access.ca:
            trust = {"sslmode": "verify-full", "sslrootcert": access.ca}
        with psycopg.connect(
            host=access.host, port=access.port, dbname=access.database, user=access.username, password=access.password,
            connect_timeout=5, autocommit=autocommit, **trust,
        ) as connection:  # fmt: skip
            yield connection

    def encrypted(self, access: Access) -> bool:
        with self.session(access) as session:
            return bool(session.pgconn.ssl_in_use)

    def make(self, access: Access) -> None:
        with self.session(access) as session:
            session.execute("CREATE TABLE orders (id bigserial PRIMARY KEY, word text NOT NULL)")

    def add(self, access: Access, *words: str) -> None:
        with self.session(access) as session, session.transaction():
            session.cursor().executemany("INSERT INTO orders (word) VALUES (%s)", [(word,) for word in words])

    def words(self, access: Access) -> list[str]:
        with self.session(access) as session:
            return [word for (word,) in session.execute("SELECT word FROM orders ORDER BY id").fetchall()]


class MySQLClient(Client):
    refused = pymysql.OperationalError, "Access denied"
    gone = pymysql.OperationalError

    @contextlib.contextmanager
    def connection(self, access: Access, *, read_timeout: int | None = None) -> Iterator[Any]:
        trust: dict[str, Any] = {"ssl_disabled": True}
        if access.unchecked:
            trust = {"ssl": {"check_hostname": False, "verify_mode": "none"}}
        elif access.ca:
            trust = {"ssl_ca": access.ca, "ssl_verify_cert": True, "ssl_verify_identity": True}
        with pymysql.connect(
            host=access.host, port=access.port, database=access.database or None, user=access.username,
            password=access.password, connect_timeout=5, read_timeout=read_timeout, autocommit=True, charset="utf8mb4",
            **trust,
        ) as connection:  # fmt: skip
            yield connection

    @contextlib.contextmanager
    def session(self, access: Access) -> Iterator[Any]:
        with self.connection(access) as connection, connection.cursor() as cursor:
            yield cursor

    def encrypted(self, access: Access) -> bool:
        with self.session(access) as cursor:
            return isinstance(cursor.connection._sock, ssl.SSLSocket)

    def make(self, access: Access) -> None:
        with self.session(access) as cursor:
            cursor.execute("CREATE TABLE orders (id BIGINT PRIMARY KEY AUTO_INCREMENT, word VARCHAR(200) NOT NULL)")

    def add(self, access: Access, *words: str) -> None:
        with self.session(access) as cursor:
            cursor.executemany("INSERT INTO orders (word) VALUES (%s)", [(word,) for word in words])

    def words(self, access: Access) -> list[str]:
        with self.session(access) as cursor:
            cursor.execute("SELECT word FROM orders ORDER BY id")
            return [word for (word,) in cursor.fetchall()]


class MongoDBClient(Client):
    refused = PyMongoError, "Authentication failed"
    gone = PyMongoError

    @contextlib.contextmanager
    def session(self, access: Access) -> Iterator[Any]:
        trust: dict[str, Any] = {"tls": True, "tlsCAFile": access.ca} if access.ca else {}
        if access.unchecked:
            trust = {"tls": True, "tlsAllowInvalidCertificates": True}
        with MongoClient[dict[str, Any]](
            access.host, access.port, username=access.username, password=access.password, authSource=access.database,
            directConnection=True, serverSelectionTimeoutMS=4000, uuidRepresentation="standard", **trust,
        ) as client:  # fmt: skip
            yield client[access.database]

    def encrypted(self, access: Access) -> bool:
        with self.session(access) as database:
            database.command("ping")
            return bool(access.ca)  # the driver says no more: but with TLS asked for it does without never

    def make(self, access: Access) -> None:
        with self.session(access) as database:
            database["orders"].create_index("word", unique=True)

    def add(self, access: Access, *words: str) -> None:
        with self.session(access) as database:
            first = database["orders"].count_documents({}) + 1
            database["orders"].insert_many([{"_id": first + n, "word": word} for n, word in enumerate(words)])

    def words(self, access: Access) -> list[str]:
        with self.session(access) as database:
            return [document["word"] for document in database["orders"].find().sort("_id")]


CLIENTS: Mapping[str, Client] = {
    "postgresql": PostgreSQLClient(), "mariadb": MySQLClient(), "mysql": MySQLClient(), "ferretdb": MongoDBClient(),
    "mongodb": MongoDBClient(),
}  # fmt: skip
