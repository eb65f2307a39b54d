"""A real install, as `make run` starts it: control database, web, workers, beat; databases are processes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from novastack.embedded.paths import remove_state

CHECKOUT = Path(__file__).resolve().parents[1]
# Set for the suite's own process; an install has its own.
FOREIGN = (
    "DATABASE_URL",
    "BROKER_URL",
    "CACHE_URL",
    "NOVASTACK_MODE",
    "DJANGO_SETTINGS_MODULE",
    "NOVASTACK_TEST_DATABASE",
)
# Above 80 % it says that it is degraded, above 90 % nothing is made: how full this machine's disk is is not what these
# tests are about, so another file system is measured.
_A_DISK_WITH_ROOM = (
    "from projects.models import Region\n"
    "for region in Region.objects.filter(runtime='process'):\n"
    "    region.config['data_root'] = '/dev'\n"
    "    region.disk = {}\n"
    "    region.save(update_fields=['config', 'disk'])\n"
)


@dataclass(frozen=True)
class Install:
    url: str
    email: str
    password: str
    home: Path
    env: dict[str, str]

    def manage(self, *arguments: str) -> str:
        """A management command on it; returns what it said."""
        done = subprocess.run(
            [sys.executable, "-m", "novastack.embedded.manage", *arguments],
            cwd=CHECKOUT, env=self.env, text=True, capture_output=True, timeout=240, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout


@contextmanager
def running_install(home: Path, *, ports: str, **settings: str) -> Iterator[Install]:
    """Started empty (no first project), on the process runtime; stopped with Ctrl-C."""
    port = free_port()
    env = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    email, password = "operator@example.test", "correct-horse-battery"
    env |= {
        "NOVASTACK_HOME": str(home), "NOVASTACK_PORT": str(port), "NOVASTACK_RUNTIME": "process",
        "NOVASTACK_ADMIN_EMAIL": email, "NOVASTACK_ADMIN_PASSWORD": password,
        "NOVASTACK_FIRST_PROJECT": "0", "NOVASTACK_PORT_RANGE": ports, "NOVASTACK_BALLAST_FOLDER": "", **settings,
    }  # fmt: skip
    found = Install(f"http://localhost:{port}", email, password, home, env)
    log = home / "up.log"
    with log.open("wb") as output:
        up = subprocess.Popen(
            [sys.executable, "-m", "novastack.embedded", "up"],
            cwd=CHECKOUT, env=env, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        until = time.monotonic() + 240
        while not _answers(f"{found.url}/readyz"):
            assert up.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.3)
        found.manage("shell", "-c", _A_DISK_WITH_ROOM)
        yield found
    finally:
        up.send_signal(signal.SIGINT)
        up.wait(timeout=240)
        remove_state(home)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:  # noqa: S310 - our own http address
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
