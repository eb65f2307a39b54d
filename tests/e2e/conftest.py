"""A real install, as `make run` starts it, and headless Chromium in front of it. One install for all these tests."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import ConsoleMessage, Page, expect

from tests.install import Install, running_install

AXE = Path(__file__).parent / "vendor" / "axe-4.14.1.min.js"  # npm axe-core, MPL 2.0 (notice in the file)
expect.set_options(timeout=30_000)  # the browser and three other processes share two cores with another test
CHROMIUM = os.environ.get("NOVASTACK_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.e2e)
            item.add_marker(pytest.mark.timeout(900))
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


@pytest.fixture(scope="session")
def base_url() -> None:
    """The tests name the install's address. Instead of the plugin's own, which pytest 10 will refuse."""


@pytest.fixture(scope="package")
def install(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Install]:
    with running_install(tmp_path_factory.mktemp("install"), ports="28200-28299") as found:
        yield found


@pytest.fixture
def page(page: Page) -> Page:
    """Patient, like `expect` above."""
    page.set_default_timeout(60_000)
    return page


def _is_trouble(message: ConsoleMessage) -> bool:
    """Chromium drops what it loads when the machine's networks change: other tests make and remove those of Docker."""
    return message.type == "error" and "ERR_NETWORK_CHANGED" not in message.text


@pytest.fixture
def trouble(page: Page) -> Iterator[list[str]]:
    """What the console complains about; a page that breaks its own CSP is broken."""
    found: list[str] = []
    page.on("console", lambda message: found.append(message.text) if _is_trouble(message) else None)
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
