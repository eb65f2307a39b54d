"""Each engine as a client sees it: the raw way to a database of one's own, and the first query as its owner."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import psycopg
import pymongo
import pymysql
from pymongo.errors import PyMongoError

PASSWORD = "bench-password-1234567890"
POLL_SECONDS = 0.02
GIVE_UP_SECONDS = 120
T = TypeVar("T")


@dataclass(frozen=True)
class Raw:
    """`docker run` of the image, and what follows by hand: `make` returns when the owner's first query was answered."""

    engine: str
    version: str
    images: tuple[str, ...]  # the official one, ours
    port: int
    env: Mapping[str, str]
    make: Callable[[int], None]
    query: Callable[[Mapping[str, Any]], None]  # of an answer of `connection/`


def until(attempt: Callable[[], T], errors: tuple[type[Exception], ...]) -> T:
    """What the first attempt that works returns."""
    deadline = time.monotonic() + GIVE_UP_SECONDS
    while True:
        try:
            return attempt()
        except errors:
            if time.monotonic() > deadline:
                raise
            time.sleep(POLL_SECONDS)


# --- PostgreSQL ---------------------------------------------------------------------------------------------------------
def _postgresql(port: int) -> None:
    where = f"postgresql://postgres:{PASSWORD}@127.0.0.1:{port}/postgres?connect_timeout=2"
    with until(lambda: psycopg.connect(where, autocommit=True), (psycopg.OperationalError,)) as session:
        session.execute(f"CREATE ROLE tenant LOGIN PASSWORD '{PASSWORD}'")
        session.execute("CREATE DATABASE tenant OWNER tenant")
    with psycopg.connect(f"postgresql://tenant:{PASSWORD}@127.0.0.1:{port}/tenant") as tenant:
        tenant.execute("SELECT 1")


def _query_postgresql(info: Mapping[str, Any]) -> None:
    with psycopg.connect(info["uri"]) as session:
        session.execute("SELECT 1")


# --- MariaDB, MySQL -----------------------------------------------------------------------------------------------------
def _mysql_login(
    port: int, user: str, database: str | None = None, host: str = "127.0.0.1", password: str = PASSWORD
) -> Any:
    return pymysql.connect(
        host=host, port=port, user=user, password=password, database=database, connect_timeout=2, read_timeout=10,
        autocommit=True,
    )  # fmt: skip


def _mysql(port: int) -> None:
    errors = (pymysql.MySQLError, OSError)
    with until(lambda: _mysql_login(port, "root"), errors) as session, session.cursor() as cursor:
        cursor.execute(f"CREATE USER 'tenant'@'%' IDENTIFIED BY '{PASSWORD}'")
        cursor.execute("CREATE DATABASE tenant")
        cursor.execute("GRANT ALL ON tenant.* TO 'tenant'@'%'")
    with _mysql_login(port, "tenant", "tenant") as tenant, tenant.cursor() as cursor:
        cursor.execute("SELECT 1")


def _query_mysql(info: Mapping[str, Any]) -> None:
    with (
        _mysql_login(info["port"], info["username"], info["database"], info["host"], info["password"]) as session,
        session.cursor() as cursor,
    ):
        cursor.execute("SELECT 1")


# --- MongoDB's protocol -------------------------------------------------------------------------------------------------
def _ferretdb(port: int) -> None:
    with pymongo.MongoClient[dict[str, Any]](
        "127.0.0.1", port, username="root", password=PASSWORD, authSource="admin", authMechanism="SCRAM-SHA-256",
        directConnection=True, serverSelectionTimeoutMS=500, connectTimeoutMS=500,
    ) as session:  # fmt: skip
        # By hand, since the driver waits for half a second between its own attempts.
        until(lambda: _knock(port), (OSError,))
        until(lambda: session.admin.command("ping"), (PyMongoError,))
        session.tenant.command({"createUser": "tenant", "pwd": PASSWORD, "roles": [], "mechanisms": ["SCRAM-SHA-256"]})
    _query_mongodb({"uri": f"mongodb://tenant:{PASSWORD}@127.0.0.1:{port}/tenant?authMechanism=SCRAM-SHA-256"})


def _knock(port: int) -> None:
    socket.create_connection(("127.0.0.1", port), timeout=1).close()


def _query_mongodb(info: Mapping[str, Any]) -> None:
    with pymongo.MongoClient[dict[str, Any]](info["uri"], serverSelectionTimeoutMS=5000) as session:
        session.get_default_database().list_collection_names()


RAW = {
    raw.engine: raw
    for raw in (
        Raw("postgresql", "18", ("postgres:18", "novastack-postgresql:18"), 5432,
            {"POSTGRES_PASSWORD": PASSWORD}, _postgresql, _query_postgresql),
        Raw("mariadb", "11.8", ("mariadb:11.8", "novastack-mariadb:11.8"), 3306,
            {"MARIADB_ROOT_PASSWORD": PASSWORD}, _mysql, _query_mysql),
        Raw("mysql", "9.7", ("mysql:9.7", "novastack-mysql:9.7"), 3306,
            {"MYSQL_ROOT_PASSWORD": PASSWORD}, _mysql, _query_mysql),
        Raw("ferretdb", "1.24", ("novastack-ferretdb:1.24",), 27017,
            {"FERRETDB_SETUP_USERNAME": "root", "FERRETDB_SETUP_PASSWORD": PASSWORD}, _ferretdb, _query_mongodb),
    )
}  # fmt: skip
