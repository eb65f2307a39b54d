"""The allow-list in front of the Docker socket: what a worker needs passes, what gives it the host does not."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.images.conftest import docker, eventually, need_image

pytestmark = pytest.mark.docker
IMAGE = "novastack-postgresql:17"


@pytest.fixture(scope="module")
def proxy(shared_folder: Path) -> Iterator[Path]:
    """The folder that holds `full/docker.sock` and `read/docker.sock`."""
    need_image("novastack-socket-proxy:1")
    need_image(IMAGE)
    container = f"novastack-test-{secrets.token_hex(6)}"
    for kind in ("full", "read"):
        shared_folder.joinpath(kind).mkdir()
    docker(
        "run", "--detach", "--name", container, "--network", "none", "--read-only", "--cap-drop", "ALL",
        "--security-opt", "no-new-privileges", "-v", "/var/run/docker.sock:/var/run/docker.sock",
        "-v", f"{shared_folder}/full:/run/docker-full", "-v", f"{shared_folder}/read:/run/docker-read",
        "novastack-socket-proxy:1",
    )  # fmt: skip
    assert eventually(lambda: all(shared_folder.joinpath(kind, "docker.sock").exists() for kind in ("full", "read")))
    yield shared_folder
    docker("rm", "--force", container)


def full(proxy: Path) -> str:
    return f"unix://{proxy}/full/docker.sock"


def post(proxy: Path, path: str, body: str, *headers: str) -> tuple[int, str]:
    """Send a body as it is. Returns status and answer."""
    found = subprocess.run(
        ["curl", "-sS", "--path-as-is", "--unix-socket", f"{proxy}/full/docker.sock", "-X", "POST",
         "-H", "Content-Type: application/json", *[part for header in headers for part in ("-H", header)],
         "--data-binary", "@-", "-w", "\n%{http_code}", f"http://docker{path}"],
        check=True, input=body, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    answer, _, status = found.stdout.rpartition("\n")
    return int(status), answer


def test_a_worker_can_run_a_database(proxy: Path, name: str) -> None:
    host = full(proxy)
    docker(
        "run", "--detach", "--name", name, "--user", "postgres", "--cap-drop", "ALL", "--read-only", "--tmpfs", "/tmp",
        "--tmpfs", "/run/postgresql", "-v", f"{name}:/var/lib/postgresql/data", "-p", "127.0.0.1::5432",
        "--security-opt", "no-new-privileges", "--memory", "300m", "--pids-limit", "200",
        "-e", "POSTGRES_PASSWORD=x", IMAGE, host=host,
    )  # fmt: skip
    assert docker("inspect", "-f", "{{.State.Running}}", name, host=host).stdout.strip() == "true"
    docker("update", "--memory", "400m", "--memory-swap", "400m", name, host=host)
    docker("restart", "--time", "20", name, host=host)
    assert "entrypoint" in docker("logs", name, host=host).stderr
    docker("rm", "--force", name, host=host)
    docker("volume", "rm", name, host=host)


def test_a_tools_input_and_output_pass_whole(proxy: Path) -> None:
    """A half-closed standard input must arrive as the end of the file: a restore depends on it."""
    data = os.urandom(8_000_000)
    found = subprocess.run(
        ["docker", "--host", full(proxy), "run", "--rm", "-i", "--network", "none", "--log-driver", "none",
         IMAGE, "sha256sum"],
        check=True, input=data, capture_output=True, timeout=60,
    )  # fmt: skip
    assert found.stdout.decode().split()[0] == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["-v", "/:/host"], "host-folder"),
        (["-v", "novastack-test-none:/data", "-v", "/etc:/host:ro"], "host-folder"),
        (["--mount", "type=bind,src=/,dst=/host"], "host-mount"),
        (["--privileged"], "privileged"),
        (["--network", "host"], "host-namespace"),
        (["--pid", "host"], "host-namespace"),
        (["--ipc", "host"], "host-namespace"),
        (["--cap-add", "ALL"], "capability"),
        (["--cap-add", "SYS_ADMIN"], "capability"),
        (["--device", "/dev/kmsg"], "devices"),
        (["--security-opt", "seccomp=unconfined"], "unconfined"),
        (["--mount", "type=volume,dst=/h,volume-opt=o=bind,volume-opt=type=none,volume-opt=device=/"],
         "driver-options"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_container_that_could_take_the_host_is_refused(proxy: Path, arguments: list[str], reason: str) -> None:
    found = docker("run", "--rm", *arguments, IMAGE, "true", check=False, host=full(proxy))
    assert found.returncode != 0
    assert f"refused by the socket proxy: {reason}" in found.stderr


def test_no_spelling_gets_around_the_bodys_rules(proxy: Path) -> None:
    create = "/v1.41/containers/create"
    plain = json.dumps({"Image": IMAGE, "HostConfig": {"privileged": True}})
    assert post(proxy, create, plain)[0] == 403
    assert post(proxy, create, plain.replace("l", "\\u006c").replace("fa\\u006cse", "false"))[0] == 403
    assert post(proxy, create, plain, "Transfer-Encoding: chunked")[0] == 403
    padded = json.dumps({"Image": IMAGE, "Labels": {"x": "a" * 300_000}, "HostConfig": {"Privileged": True}})
    assert post(proxy, create, padded)[0] == 403
    assert post(proxy, "/v1.41/containers%2fcreate", "{}")[0] == 403
    assert post(proxy, "/v1.41/volumes/../build", "{}")[0] == 403


@pytest.mark.parametrize("path", ["/build", "/commit?container=x", "/swarm/init", "/images/load", "/plugins/pull",
                                  "/images/create?fromSrc=-", "/containers/x/export"])  # fmt: skip
def test_the_rest_of_the_engines_interface_is_closed(proxy: Path, path: str) -> None:
    assert post(proxy, path, "{}")[0] == 403


def test_monitoring_only_reads(proxy: Path, name: str) -> None:
    host = f"unix://{proxy}/read/docker.sock"
    docker("create", "--name", name, IMAGE)
    assert name in docker("ps", "-a", "--format", "{{.Names}}", host=host).stdout
    assert docker("inspect", name, host=host).stdout
    for arguments in (["start", name], ["rm", name], ["cp", f"{name}:/etc/passwd", "-"], ["volume", "create", name]):
        found = docker(*arguments, check=False, host=host)
        assert "refused by the read-only socket proxy" in found.stderr, arguments
