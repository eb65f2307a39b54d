"""Helpers for tests that drive images with the `docker` command, without any of our code in between."""

from __future__ import annotations

import os
import secrets
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

REQUIRED = os.environ.get("NOVASTACK_REQUIRE_DOCKER") == "1"


def docker(*arguments: str, check: bool = True, host: str = "") -> subprocess.CompletedProcess[str]:
    """Run the docker command. `host`: another socket than the default one."""
    before = ["docker", "--host", host] if host else ["docker"]
    done = subprocess.run([*before, *arguments], check=False, capture_output=True, text=True, timeout=120)
    if check and done.returncode:
        pytest.fail(f"docker {' '.join(arguments)}: {done.returncode}\n{done.stderr}")
    return done


def need_image(name: str) -> None:
    """Skip, or fail where Docker is required, when the engine or the image is missing."""
    try:
        found = docker("image", "inspect", name, check=False).returncode == 0
    except FileNotFoundError:
        found = False
    if not found:
        (pytest.fail if REQUIRED else pytest.skip)(f"no Docker engine with the image {name}: make images")


def eventually(ask: Callable[[], bool], *, seconds: float = 60.0) -> bool:
    """Ask again until the answer is yes or the time is over."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if ask():
            return True
        time.sleep(0.2)
    return False


@pytest.fixture
def name() -> Iterator[str]:
    """A name for a container and a volume; both are removed afterwards."""
    value = f"novastack-test-{secrets.token_hex(6)}"
    yield value
    docker("rm", "--force", "--volumes", value, check=False)
    docker("volume", "rm", "--force", value, check=False)


@pytest.fixture(scope="module")
def shared_folder() -> Iterator[Path]:
    """A folder that containers of any user can read: pytest's own is closed to them."""
    folder = Path("/var/tmp") / f"novastack-test-{secrets.token_hex(6)}"
    folder.mkdir(mode=0o755)
    yield folder
    subprocess.run(["rm", "-rf", "--", str(folder)], check=False)
