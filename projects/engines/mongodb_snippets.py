"""How to connect to a MongoDB or FerretDB database. Pure text; every value is quoted for the place where it stands.

No JDBC (neither product has a driver for it) and no Prisma (it wants transactions, which single servers have not).
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from urllib.parse import quote

from projects.domain import ConnectionInfo


def _percent(value: str) -> str:
    return quote(value, safe="")


def _host(info: ConnectionInfo) -> str:
    return f"[{info.host}]" if ":" in info.host else info.host


def _uri(info: ConnectionInfo) -> str:
    login = f"{_percent(info.username)}:{_percent(info.password)}"
    # Said explicitly: the login lives in its own database, and a server of ours is one, not a set of replicas.
    options = f"authSource={_percent(info.database)}&directConnection=true" + ("&tls=true" if info.tls else "")
    return f"mongodb://{login}@{_host(info)}:{info.port}/{_percent(info.database)}?{options}"


def urls(info: ConnectionInfo) -> Mapping[str, str]:
    return {"uri": _uri(info)}


def env(info: ConnectionInfo) -> Mapping[str, str]:
    return {
        "DATABASE_URL": _uri(info),
        "MONGODB_URI": _uri(info),
        "MONGODB_HOST": info.host,
        "MONGODB_PORT": str(info.port),
        "MONGODB_DATABASE": info.database,
        "MONGODB_USERNAME": info.username,
        "MONGODB_PASSWORD": info.password,
    }


def _literal(value: str) -> str:
    """A double-quoted literal that Python, JavaScript, Go and YAML read alike."""
    return json.dumps(value)


def _compose(value: str) -> str:
    return _literal(value).replace("$", "$$")


def snippets(info: ConnectionInfo) -> Mapping[str, str]:
    uri = _uri(info)
    return {
        "cli": f"mongosh {shlex.quote(_uri(info))}",
        "env": "\n".join(f"{name}={shlex.quote(value)}" for name, value in env(info).items()),
        "python": f"""# pip install pymongo
from pymongo import MongoClient

client = MongoClient({_literal(uri)})
database = client.get_default_database()
print(database.command("ping"))""",
        "django": f"""# settings.py, with PyMongo beside Django's own database: pip install pymongo
from pymongo import MongoClient

MONGODB = MongoClient({_literal(uri)}, connect=False).get_default_database()""",
        "node": f"""// npm install mongodb
import {{ MongoClient }} from "mongodb";

const client = new MongoClient({_literal(uri)});
console.log(await client.db().command({{ ping: 1 }}));
await client.close();""",
        "go": f"""// go get go.mongodb.org/mongo-driver/v2
package main

import (
	"context"
	"fmt"

	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
)

func main() {{
	ctx := context.Background()
	client, err := mongo.Connect(options.Client().ApplyURI({_literal(uri)}))
	if err != nil {{
		panic(err)
	}}
	defer client.Disconnect(ctx)
	names, err := client.Database({_literal(info.database)}).ListCollectionNames(ctx, map[string]any{{}})
	if err != nil {{
		panic(err)
	}}
	fmt.Println(names)
}}""",
        "compose": f"""services:
  app:
    image: your-app
    environment:
      DATABASE_URL: {_compose(uri)}""",
    }
