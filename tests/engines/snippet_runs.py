"""What **Connect** shows, run as it stands by the clients that are here: each product's own command line (in its image), and
Django, SQLAlchemy's arguments and PyMongo in processes of their own, the CA's file beside them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.engines.journey import Journey

# PyMySQL stands in for mysqlclient, which has to be compiled; it says the same by other words.
_AS_MYSQLCLIENT = """
import pymysql
really = pymysql.connect
def connect(*args, ssl_mode=None, ssl=None, **options):
    assert (ssl_mode, ssl) == ("VERIFY_IDENTITY", {"ca": "novastack-ca.pem"})
    return really(*args, ssl_ca=ssl["ca"], ssl_verify_cert=True, ssl_verify_identity=True, **options)
pymysql.connect = pymysql.Connect = pymysql.Connection = connect
pymysql.install_as_MySQLdb()
"""
_DJANGO = """
from django.conf import settings
settings.configure(DATABASES=DATABASES)
from django.db import connection
with connection.cursor() as cursor:
    cursor.execute("SELECT word FROM orders")
    print(cursor.fetchone()[0])
"""
# SQLAlchemy is not here; these are the arguments that it hands on, by the rules of its URLs.
_SQLALCHEMY = """
import sys, types
from urllib.parse import unquote, urlsplit
def create_engine(address, connect_args=None):
    url = urlsplit(address)
    if url.scheme == "postgresql+psycopg":
        import psycopg
        connection = psycopg.connect(address.replace("+psycopg", "", 1), **(connect_args or {}))
    else:
        import pymysql
        connection = pymysql.connect(host=url.hostname, port=url.port, user=unquote(url.username),
            password=unquote(url.password), database=unquote(url.path[1:]), **(connect_args or {}))
    cursor = connection.cursor()
    cursor.execute("SELECT word FROM orders")
    print(cursor.fetchone()[0])
    sys.exit()
sys.modules["sqlalchemy"] = types.SimpleNamespace(create_engine=create_engine, text=None)
"""
_QUERY = b"SELECT word FROM orders;"


def _python(program: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-"], input=program.encode(), cwd=folder, capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def _client(snippet: str, journey: Journey) -> str:
    server = journey.server
    done = subprocess.run(
        ["docker", "run", "--rm", "-i", "--network", "host", "-v", f"{journey.folder}:/w:ro", "-w", "/w", "--entrypoint",
         "sh", server.image_digest or server.image, "-c", snippet],
        input=_QUERY, capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def try_snippets(journey: Journey, word: str) -> None:
    """With a table whose first word begins so, and `novastack-ca.pem` in the journey's folder."""
    answer = journey.ask("get", f"{journey.url}connection/")
    snippets: Mapping[str, str] = answer["snippets"]
    journey.folder.chmod(0o755)
    name = journey.engine.name
    if "python" in snippets:  # MongoDB's protocol; there is no `mongosh` here
        assert "{'ok': 1.0}" in _python(snippets["python"], journey.folder)
        query = "\nprint([document['word'] for document in MONGODB['orders'].find()])"
        assert word in _python(snippets["django"] + query, journey.folder)
        uri = f"from pymongo import MongoClient\nprint(MongoClient({answer['uri']!r}).admin.command('ping'))"
        assert "{'ok': 1.0}" in _python(uri, journey.folder)
        return
    for kind in ("cli", "verified"):
        assert word in _client(snippets[kind], journey), kind
    prelude = _AS_MYSQLCLIENT if name in {"mysql", "mariadb"} else ""
    assert word in _python(prelude + snippets["django"] + _DJANGO, journey.folder)
    assert word in _python(_SQLALCHEMY + snippets["sqlalchemy"], journey.folder)
