"""What the snippets of all engines share: quoting for the place where a value stands, and where the CA's file comes from."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from urllib.parse import quote

from projects.domain import CA_FILE, ConnectionInfo

CA_FROM = f"{CA_FILE}: this install's certification authority; download it here, or by GET /api/v1/ca/"
_CA_IN_COMPOSE = f"/run/{CA_FILE}"


def percent(value: str) -> str:
    return quote(value, safe="")


def host(info: ConnectionInfo) -> str:
    """As it stands in a URL."""
    return f"[{info.host}]" if ":" in info.host else info.host


def literal(value: str) -> str:
    """A double-quoted literal that JavaScript, Go, Java, Python and YAML read alike."""
    return json.dumps(value)


def env_lines(variables: Mapping[str, str]) -> str:
    return "\n".join(f"{name}={shlex.quote(value)}" for name, value in variables.items())


def compose(info: ConnectionInfo, variables: Mapping[str, str]) -> str:
    """A service with these variables and, with TLS, the CA's file; `{ca}` in a value is where it lies in there."""
    lines = ["services:", "  app:", "    image: your-app", "    environment:"]
    for name, value in variables.items():
        text = value.replace("{ca}", _CA_IN_COMPOSE)
        lines.append(f"      {name}: " + literal(text).replace("$", "$$"))
    if info.tls:
        lines += ["    volumes:", f"      - ./{CA_FILE}:{_CA_IN_COMPOSE}:ro  # {CA_FROM.partition(': ')[2]}"]
    return "\n".join(lines)


def prisma(info: ConnectionInfo, *, provider: str, url: str, adapter: str, name: str, options: str) -> str:
    """Prisma 7: the schema names the product only, its tools read the URL, and programs connect by a driver's adapter.
    `options`: of the adapter, in JavaScript."""
    reads = f'// {CA_FROM}\nimport {{ readFileSync }} from "node:fs";\n' if info.tls else ""
    return f"""# .env
DATABASE_URL={literal(url)}

// prisma/schema.prisma
generator client {{
  provider = "prisma-client"
  output   = "../generated/prisma"
}}

datasource db {{
  provider = "{provider}"
}}

// prisma.config.ts
import "dotenv/config";
import {{ defineConfig, env }} from "prisma/config";

export default defineConfig({{
  schema: "prisma/schema.prisma",
  datasource: {{ url: env("DATABASE_URL") }},
}});

// npm install prisma @prisma/client {adapter} dotenv && npx prisma generate
{reads}import {{ {name} }} from "{adapter}";
import {{ PrismaClient }} from "./generated/prisma/client";

const prisma = new PrismaClient({{ adapter: new {name}({options}) }});
console.log(await prisma.$queryRawUnsafe("select version() as version"));
await prisma.$disconnect();"""
