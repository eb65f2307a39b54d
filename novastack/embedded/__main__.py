"""`python -m novastack.embedded up | demo | postgres`: what the Makefile calls."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from novastack.embedded.install import CHECKOUT
from novastack.embedded.paths import default_home


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m novastack.embedded", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("up", help="start everything, and stop it with Ctrl-C")
    demo = commands.add_parser("demo", help="do the main job once against a throw-away install")
    demo.add_argument("--keep", action="store_true", help="leave the install's folder there for a look")
    postgres = commands.add_parser("postgres", help="only the embedded PostgreSQL")
    postgres.add_argument("action", choices=["start", "stop", "url"])
    postgres.add_argument("--home", type=Path, default=None)
    postgres.add_argument("--not-durable", action="store_true", help="fsync off: for tests")
    options = parser.parse_args()
    read_env_file()
    if options.command == "up":
        return up()
    if options.command == "demo":
        from novastack.embedded.demo import demo as run_demo

        return int(run_demo(keep=options.keep))
    return one_postgres(options.action, options.home or default_home(), durable=not options.not_durable)


def up() -> int:
    from novastack.embedded.postgres import EmbeddedPostgresError
    from novastack.embedded.supervisor import StartRefused, Supervisor

    if not Path("/proc/self/stat").is_file():
        print(
            "`make run` needs Linux (its processes are known by /proc); elsewhere use `docker compose up`.",
            file=sys.stderr,
        )
        return 1
    try:
        port = int(os.environ.get("NOVASTACK_PORT") or 8000)
        bind = os.environ.get("NOVASTACK_BIND") or "127.0.0.1"
        return Supervisor(default_home(), bind=bind, port=port).run()
    except (StartRefused, EmbeddedPostgresError) as error:
        print(error, file=sys.stderr)
        return 1


def one_postgres(action: str, home: Path, *, durable: bool) -> int:
    from novastack.embedded.postgres import EmbeddedPostgres

    server = EmbeddedPostgres(home, durable=durable)
    if action == "stop":
        server.stop()
    elif action == "start":
        server.start()
    if action != "stop":
        print(server.url)
    return 0


def read_env_file() -> None:
    """`.env` in the checkout counts here as it does in the settings; what is in the environment wins."""
    import environ

    environ.Env.read_env(os.environ.get("NOVASTACK_ENV_FILE", CHECKOUT / ".env"))


if __name__ == "__main__":
    sys.exit(main())
