"""What an embedded install is made of before anything runs: its home, its secrets (made once), its children's environment."""

from __future__ import annotations

import base64
import os
import secrets
from pathlib import Path

from novastack.embedded.paths import make_home, state_folder, write_private
from novastack.embedded.postgres import ACCOUNT
from projects.runtimes.process_accounts import ensure_account

CHECKOUT = Path(__file__).resolve().parents[2]


class Home:
    """Paths below one `NOVASTACK_HOME`. Making it makes the folders and, once, the secrets (0600, in `secrets/`)."""

    def __init__(self, path: Path) -> None:
        self.path = make_home(path)
        self.state = state_folder(self.path, ensure_account(ACCOUNT))
        self.servers = self.state / "servers"
        self.secrets = self._folder("secrets")
        self.logs = self._folder("logs")
        self.run = self._folder("run")
        self.lock = self.path / "lock"
        for name, make in (
            ("secret-key", lambda: secrets.token_urlsafe(48)),
            ("secret-keys", lambda: base64.b64encode(secrets.token_bytes(32)).decode()),
        ):
            if not (self.secrets / name).is_file():
                write_private(self.secrets / name, make())

    def _folder(self, name: str) -> Path:
        folder = self.path / name
        folder.mkdir(exist_ok=True)
        folder.chmod(0o700)
        return folder

    def environment(self, *, database_url: str | None, bind: str, port: int) -> dict[str, str]:
        """For children. Secrets go as `NAME_FILE`; what the operator set (`DATABASE_URL`, `BROKER_URL` …) stays."""
        env = dict(os.environ)
        env |= {
            "DJANGO_SETTINGS_MODULE": "novastack.settings", "NOVASTACK_MODE": "embedded", "PYTHONUNBUFFERED": "1",
            "NOVASTACK_HOME": str(self.path), "NOVASTACK_SERVERS_ROOT": str(self.servers),
            "NOVASTACK_BIND": bind, "NOVASTACK_PORT": str(port),
            "PYTHONPATH": os.pathsep.join(filter(None, [str(CHECKOUT), os.environ.get("PYTHONPATH", "")])),
        }  # fmt: skip
        env.setdefault("STATIC_ROOT", str(self._folder("static")))  # stays empty: files are served from where they are
        env.setdefault("BROKER_URL", "filesystem://localhost")
        for name, file in (("SECRET_KEY", "secret-key"), ("NOVASTACK_SECRET_KEYS", "secret-keys")):
            if not env.get(name):
                env[f"{name}_FILE"] = str(self.secrets / file)
        if database_url is not None:
            write_private(self.secrets / "database-url", database_url)
            env["DATABASE_URL_FILE"] = str(self.secrets / "database-url")
            env.pop("DATABASE_URL", None)
            env.setdefault("NOVASTACK_BALLAST_FOLDER", str(self.state / "control-db"))
        return env
