"""A real install, as `make run` starts it, and headless Chromium in front of it. One install for all these tests."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page

CHECKOUT = Path(__file__).resolve().parents[2]
AXE = Path(__file__).parent / "vendor" / "axe-4.14.1.min.js"  # npm axe-core, MPL 2.0 (notice in the file)
CHROMIUM = os.environ.get("NOVASTACK_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
# Set for the suite's own process; an install has its own.
FOREIGN = (
    "DATABASE_URL",
    "BROKER_URL",
    "CACHE_URL",
    "NOVASTACK_MODE",
    "DJANGO_SETTINGS_MODULE",
    "NOVASTACK_TEST_DATABASE",
)


@dataclass(frozen=True)
class Install:
    url: str
    email: str
    password: str


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.e2e)
            item.add_marker(pytest.mark.xdist_group("e2e"))
            if CHROMIUM is None:
                item.add_marker(pytest.mark.skip(reason="no Chromium on this machine: apt-get install chromium"))


@pytest.fixture(scope="session")
def browser_type_launch_args(browser_type_launch_args: dict[str, Any]) -> dict[str, Any]:
    """The system's Chromium; without its sandbox, since the suite may run as root in a container."""
    return {
        **browser_type_launch_args,
        "executable_path": CHROMIUM,
        "args": ["--no-sandbox", "--disable-dev-shm-usage"],
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:  # noqa: S310 - our own http address
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@pytest.fixture(scope="session")
def install(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Install]:
    """Started empty (no first project), on the process runtime; stopped with Ctrl-C."""
    home = tmp_path_factory.mktemp("install")
    port = _free_port()
    found = Install(f"http://localhost:{port}", "operator@example.test", "correct-horse-battery")
    env = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    env |= {
        "NOVASTACK_HOME": str(home), "NOVASTACK_PORT": str(port), "NOVASTACK_RUNTIME": "process",
        "NOVASTACK_ADMIN_EMAIL": found.email, "NOVASTACK_ADMIN_PASSWORD": found.password,
        "NOVASTACK_FIRST_PROJECT": "0", "NOVASTACK_PORT_RANGE": "28200-28299",
    }  # fmt: skip
    log = home / "up.log"
    with log.open("wb") as output:
        up = subprocess.Popen(
            [sys.executable, "-m", "novastack.embedded", "up"],
            cwd=CHECKOUT, env=env, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        until = time.monotonic() + 90
        while not _answers(f"{found.url}/readyz"):
            assert up.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.3)
        yield found
    finally:
        up.send_signal(signal.SIGINT)
        up.wait(timeout=60)


@pytest.fixture
def trouble(page: Page) -> Iterator[list[str]]:
    """What the console complains about; a page that breaks its own CSP is broken."""
    found: list[str] = []
    page.on("console", lambda message: found.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: found.append(str(error)))
    yield found
    assert found == []


@pytest.fixture
def operator(page: Page, install: Install, trouble: list[str]) -> Page:
    """Signed in as the first admin."""
    page.goto(f"{install.url}/accounts/login/")
    page.get_by_label("Email").fill(install.email)
    page.get_by_label("Password").fill(install.password)
    page.get_by_role("button", name="Sign in", exact=True).click()
    page.wait_for_url("**/projects/")
    return page


def check_accessibility(page: Page) -> None:
    """WCAG 2.2 A and AA by axe; the text names each rule and where it is broken."""
    options = {"runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]}}
    page.evaluate(AXE.read_text())
    violations = page.evaluate("options => axe.run(document, options)", options)["violations"]
    found = [f"{v['id']}: {v['help']}: {[n['target'] for n in v['nodes']][:4]}" for v in violations]
    assert found == [], page.url
