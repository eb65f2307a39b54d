"""How to connect to a MongoDB or FerretDB database. Pure text; every value is quoted for the place where it stands.

With TLS, what works at once (URI, .env) encrypts and believes whoever answers; the programs check the server, by the
file of the install's CA beside them.

No JDBC (neither product has a driver for it) and no Prisma (it wants transactions, which single servers have not).
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from projects.domain import CA_FILE, ConnectionInfo
from projects.engines.snippet_words import CA_FROM, compose, env_lines, host, literal, percent


def _uri(info: ConnectionInfo, *, ca: str = "") -> str:
    """`ca`: with TLS the server is checked, by that file."""
    login = f"{percent(info.username)}:{percent(info.password)}"
    # Said explicitly: the login lives in its own database, and a server of ours is one, not a set of replicas.
    trust = (f"&tls=true&tlsCAFile={ca}" if ca else "&tls=true&tlsInsecure=true") if info.tls else ""
    options = f"authSource={percent(info.database)}&directConnection=true{trust}"
    return f"mongodb://{login}@{host(info)}:{info.port}/{percent(info.database)}?{options}"


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


def snippets(info: ConnectionInfo) -> Mapping[str, str]:
    uri = _uri(info, ca=CA_FILE)
    note = f"{CA_FROM}\n" if info.tls else ""
    verified = {"verified": f"# {CA_FROM}\nmongosh {shlex.quote(uri)}"} if info.tls else {}
    return verified | {
        "cli": f"mongosh {shlex.quote(_uri(info))}",
        "env": env_lines(env(info)),
        "python": f"""# pip install pymongo
{note and "# " + note}from pymongo import MongoClient

client = MongoClient({literal(uri)})
database = client.get_default_database()
print(database.command("ping"))""",
        "django": f"""# settings.py, with PyMongo beside Django's own database: pip install pymongo
{note and "# " + note}from pymongo import MongoClient

MONGODB = MongoClient({literal(uri)}, connect=False).get_default_database()""",
        "node": f"""// npm install mongodb
{note and "// " + note}import {{ MongoClient }} from "mongodb";

const client = new MongoClient({literal(uri)});
console.log(await client.db().command({{ ping: 1 }}));
await client.close();""",
        "go": f"""// go get go.mongodb.org/mongo-driver/v2
{note and "// " + note}package main

import (
	"context"
	"fmt"

	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
)

func main() {{
	ctx := context.Background()
	client, err := mongo.Connect(options.Client().ApplyURI({literal(uri)}))
	if err != nil {{
		panic(err)
	}}
	defer client.Disconnect(ctx)
	names, err := client.Database({literal(info.database)}).ListCollectionNames(ctx, map[string]any{{}})
	if err != nil {{
		panic(err)
	}}
	fmt.Println(names)
}}""",
        "compose": compose(info, {"DATABASE_URL": _uri(info, ca="{ca}")}),
    }
