"""The suite's parts. A real control database: `DATABASE_URL` if given, else an embedded PostgreSQL that stays up between
runs (fsync off). Real Docker and real processes where a test asks for them."""

from __future__ import annotations

import os
from pathlib import Path

if not os.environ.get("DATABASE_URL"):
    from novastack.embedded.postgres import EmbeddedPostgres

    _home = Path(os.environ.get("NOVASTACK_TEST_HOME", Path(__file__).resolve().parent.parent / ".novastack-test"))
    _server = EmbeddedPostgres(_home, durable=False)
    _server.start()
    os.environ["DATABASE_URL"] = _server.url
