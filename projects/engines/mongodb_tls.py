"""TLS of servers that speak MongoDB's protocol: it begins with the first byte, so such a server is asked nothing before."""

from __future__ import annotations

import pymongo
from pymongo import MongoClient
from pymongo.errors import PyMongoError

from projects.domain import Endpoint, ServerNotReady
from projects.engines import trust
from projects.engines.mongodb_session import Document, knock


def peer_certificate(endpoint: Endpoint, *, timeout_seconds: float) -> bytes:
    return trust.shown(endpoint, lambda _: None, timeout_seconds=timeout_seconds)


def accepts_plain(endpoint: Endpoint, *, timeout_seconds: float) -> bool:
    """Whether it answers to a stranger who says hello without TLS. One that does not, and is there, refuses."""
    bare = Endpoint(endpoint.host, endpoint.port)
    knock(bare, timeout_seconds, first_word=False)
    wait = int(min(timeout_seconds, 2) * 1000)
    client: MongoClient[Document] = MongoClient(
        bare.host, bare.port, directConnection=True, serverSelectionTimeoutMS=wait, connectTimeoutMS=wait,
        socketTimeoutMS=wait, appname="novastack",
    )  # fmt: skip
    with client:
        try:
            with pymongo.timeout(timeout_seconds):
                client["admin"].command("hello")
        except PyMongoError:
            if trust.shown(endpoint, lambda _: None, timeout_seconds=timeout_seconds):
                return False
            raise ServerNotReady("the server does not answer") from None
    return True
