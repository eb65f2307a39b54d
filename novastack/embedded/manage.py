"""`python -m novastack.embedded.manage <command> ...`: a manage.py command on the install of `make run`.

It has the environment that the supervisor's children have. The control database is started when it does not run, and
then stopped again afterwards.
"""

from __future__ import annotations

import os
import subprocess
import sys

from novastack.embedded.__main__ import read_env_file
from novastack.embedded.install import CHECKOUT, Home
from novastack.embedded.paths import default_home
from novastack.embedded.postgres import EmbeddedPostgres, EmbeddedPostgresError


def main() -> int:
    read_env_file()
    home = Home(default_home())
    server = None if os.environ.get("DATABASE_URL") else EmbeddedPostgres(home.path)
    was_running = server is not None and server.ref() is not None
    try:
        url = server.start() if server else None
    except EmbeddedPostgresError as error:
        print(error, file=sys.stderr)
        return 1
    env = home.environment(
        database_url=url,
        bind=os.environ.get("NOVASTACK_BIND") or "127.0.0.1",
        port=int(os.environ.get("NOVASTACK_PORT") or 8000),
    )
    try:
        return subprocess.run(
            [sys.executable, str(CHECKOUT / "manage.py"), *sys.argv[1:]], env=env, check=False
        ).returncode
    except KeyboardInterrupt:
        return 130
    finally:
        if server is not None and not was_running:
            server.stop()


if __name__ == "__main__":
    sys.exit(main())
