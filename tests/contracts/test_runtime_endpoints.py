"""Engines on other machines: by TCP with TLS and by SSH, real ones; and what is wrong with an address is said."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from novastack.common import pki
from projects.domain import Command, DataPolicy, RuntimeEndpoint, RuntimeUnreachable, ServerState
from projects.engines import framing
from projects.runtimes.docker import DockerRuntime
from projects.runtimes.endpoints import BadEndpoint, check, parse
from tests.contracts.runtime_contract import ENGINE, free_port, spec_maker
from tests.dockerd import Daemon, own_daemon
from tests.sshd import Sshd, own_sshd

NOW = datetime.now(UTC).replace(microsecond=0)
IMAGE = "novastack-postgresql:17"


# --- what is refused before anything is contacted -------------------------------------------------------------------------
@dataclass(frozen=True)
class Papers:
    authority: pki.Issued
    server: pki.Issued
    client: pki.Issued


@pytest.fixture(scope="module")
def papers() -> Papers:
    authority = pki.make_authority("Engines", at=NOW)
    return Papers(
        authority,
        pki.make_server_certificate(authority, ["127.0.0.1"], at=NOW),
        pki.make_client_certificate(authority, "novastack", at=NOW),
    )


def tls(papers: Papers, url: str, **changes: str) -> RuntimeEndpoint:
    endpoint = RuntimeEndpoint(url, papers.authority.certificate, papers.client.certificate, papers.client.key)
    return replace(endpoint, **changes)


@pytest.mark.parametrize(
    ("url", "kind", "netloc"),
    [
        ("", "here", ":0"),
        ("unix:///run/docker.sock", "unix", ":0"),
        ("tcp://10.0.0.1", "tcp", "10.0.0.1:2376"),
        ("tcp://[::1]:2376", "tcp", "[::1]:2376"),
        ("ssh://deploy@db.example.org", "ssh", "db.example.org:22"),
        ("ssh://deploy@db.example.org:2222/run/user/1000/docker.sock", "ssh", "db.example.org:2222"),
    ],
)
def test_addresses(url: str, kind: str, netloc: str) -> None:
    assert (parse(url).kind, parse(url).netloc) == (kind, netloc)


@pytest.mark.parametrize(
    "url",
    [
        "docker.sock", "unix://docker.sock", "unix:///tmp/a b", "http://10.0.0.1", "tcp://", "tcp://host:0",
        "tcp://host:99999", "tcp://host/path", "tcp://user@host", "tcp://host?x=1", "ssh://host", "ssh://a:b@host",
        "ssh://-oProxyCommand=x@host", "ssh://u@-oProxyCommand=x", "ssh://u@host;id", "ssh://u@host/a b", "ssh://u@h/$(id)",
    ],
)  # fmt: skip
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(BadEndpoint) as refused:
        parse(url)
    assert refused.value.field == "url"


def test_tcp_without_tls_is_for_this_machine_only() -> None:
    for url in ("tcp://10.0.0.1:2375", "tcp://engine.example.org", "tcp://0.0.0.0:2375"):
        with pytest.raises(BadEndpoint, match="Without TLS"):
            check(RuntimeEndpoint(url))
        with pytest.raises(RuntimeUnreachable, match="Without TLS"):
            DockerRuntime("x", base_url=url).ping()
    assert check(RuntimeEndpoint("tcp://127.0.0.1:2375")).loopback
    assert not check(RuntimeEndpoint("tcp://docker-proxy:2375", plain=True)).loopback


def test_what_is_wrong_with_certificates_is_said(papers: Papers) -> None:
    url, late = "tcp://10.0.0.1:2376", NOW + timedelta(days=400)
    other = pki.make_client_certificate(papers.authority, "other", at=NOW)
    locked = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"x")
    )
    assert check(tls(papers, url)).kind == "tcp"
    for field, match, changes in (
        ("key", "all three", {"key": ""}),
        ("ca", "all three", {"ca": ""}),
        ("ca", "no certificate", {"ca": "-----BEGIN"}),
        ("certificate", "no certificate", {"certificate": papers.client.key}),
        ("key", "no private key", {"key": papers.client.certificate}),
        ("key", "does not belong", {"key": other.key}),
        ("key", "passphrase", {"key": locked.decode()}),
    ):
        with pytest.raises(BadEndpoint, match=match) as refused:
            check(tls(papers, url, **changes))
        assert refused.value.field == field
    with pytest.raises(BadEndpoint, match="ended on"):
        check(tls(papers, url), at=late)


def test_the_key_is_in_no_repr_and_on_no_disk(papers: Papers, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = tls(papers, "tcp://127.0.0.1:1")
    assert "PRIVATE" not in repr(endpoint)
    opened: list[str] = []
    sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
    runtime = DockerRuntime("x", endpoint=endpoint)
    assert "PRIVATE" not in repr(vars(runtime._clients))
    assert not [path for path in opened if path.startswith(("/tmp", "/var", "/dev/shm"))]


# --- one engine, three ways to it ---------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def engine(papers: Papers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, str]]:
    folder = tmp_path_factory.mktemp("papers")
    files = {"ca": papers.authority.certificate, "cert": papers.server.certificate, "key": papers.server.key}
    for name, text in files.items():
        (folder / name).write_text(text)
    url = f"tcp://127.0.0.1:{free_port()}"
    argv = ["-H", url, "--tlsverify", *(f"--tls{name if name != 'ca' else 'cacert'}={folder}/{name}" for name in files)]
    with own_daemon(IMAGE, bridge="nvstest7", argv=argv) as daemon:
        yield daemon, url


@pytest.fixture(scope="module")
def sshd() -> Iterator[Sshd]:
    with own_sshd() as found:
        yield found


def by_ssh(sshd: Sshd, daemon: Daemon, **changes: str) -> RuntimeEndpoint:
    url = f"ssh://{sshd.user}@127.0.0.1:{sshd.port}{daemon.folder}/docker.sock"
    return replace(RuntimeEndpoint(url, key=sshd.text("client"), host_keys=sshd.text("host.pub")), **changes)


def reason(endpoint: RuntimeEndpoint) -> str:
    began = time.monotonic()
    runtime = DockerRuntime("x", endpoint=endpoint)
    with pytest.raises(RuntimeUnreachable) as refused:
        runtime.facts()
    runtime.close()
    assert time.monotonic() - began < 60
    return str(refused.value)


@pytest.mark.docker
@pytest.mark.parametrize("way", ["tls", "ssh"])
def test_a_server_lives_over_the_network(papers, engine, sshd, way):
    daemon, url = engine
    endpoint = tls(papers, url) if way == "tls" else by_ssh(sshd, daemon)
    runtime = DockerRuntime(f"test{uuid.uuid4().hex[:10]}", endpoint=endpoint)
    try:
        assert runtime.facts().version
        assert runtime.facts().identity
        assert runtime.data_root() == "", "its disk is not this machine's"
        spec = spec_maker("17", runtime.resolve_image(ENGINE.name, "17", "postgres"), "secret")()
        handle = runtime.ensure(spec, data=DataPolicy.CREATE)
        assert runtime.observe([handle])[handle].state is ServerState.RUNNING
        used = runtime.usage([handle])[handle]
        assert used.memory_bytes
        assert used.cpu_percent is not None
        assert used.memory_limit_bytes == spec.limits.memory_bytes
        deadline = time.monotonic() + 30
        while not any(b"ready to accept" in line for line in runtime.logs(handle)):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        cursor = runtime.read_log(handle, tail=0).cursor
        # Far more than fits into the buffers between: it is read and written at the same time.
        sent = random.Random(6).randbytes(2 * framing.PIECE_BYTES)
        tool = runtime.run_tool(f"{handle.name}-tool", spec.image, Command(framing.unframed("cat")), beside=handle)
        with ThreadPoolExecutor(1) as reader:
            read = reader.submit(tool.stdout.read)
            for first in range(0, len(sent), framing.PIECE_BYTES):
                tool.stdin.write(framing.frame(sent[first : first + framing.PIECE_BYTES]))
            tool.stdin.write(framing.END)
            tool.stdin.close()
            assert read.result(60) == sent
        assert tool.wait(20).exit_code == 0
        tool.kill()
        runtime.stop(handle)
        part = runtime.read_log(handle, cursor=cursor)
        assert any(b"shut down" in line for line in part.lines)
        runtime.destroy(handle, delete_data=True)
        assert not list(runtime.managed_data())
    finally:
        runtime.remove_install()
        runtime.close()


@pytest.mark.docker
def test_why_tls_is_refused_is_said(papers, engine):
    _, url = engine
    stranger = pki.make_authority("Somebody else", at=NOW)
    client = pki.make_client_certificate(stranger, "novastack", at=NOW)
    server = pki.make_server_certificate(papers.authority, ["127.0.0.1"], at=NOW)
    assert "not of the CA given" in reason(tls(papers, url, ca=stranger.certificate))
    assert "not made for this address" in reason(tls(papers, url.replace("127.0.0.1", "localhost")))
    assert "refuses our client certificate" in reason(tls(papers, url, certificate=client.certificate, key=client.key))
    assert "refuses our client certificate" in reason(tls(papers, url, certificate=server.certificate, key=server.key))
    assert "wants TLS" in reason(RuntimeEndpoint(url)) or "nothing" in reason(RuntimeEndpoint(url))
    assert "nothing listens" in reason(tls(papers, f"tcp://127.0.0.1:{free_port()}"))


def test_an_engine_that_accepts_and_says_nothing_is_no_hang(papers):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        assert "no answer in time" in reason(tls(papers, url))


@pytest.mark.docker
def test_why_ssh_is_refused_is_said(papers, engine, sshd):
    daemon, _ = engine
    good = by_ssh(sshd, daemon)
    assert "another host key" in reason(replace(good, host_keys=sshd.text("other.pub")))
    assert "refuses the user or the private key" in reason(replace(good, key=sshd.text("stranger")))
    assert "refuses the user" in reason(replace(good, url=good.url.replace(f"{sshd.user}@", "nosuchuser@")))
    assert "no engine listens" in reason(replace(good, url=good.url.replace("docker.sock", "nothing.sock")))
    closed = good.url.replace(str(sshd.port), str(free_port()))
    assert "nothing listens" in reason(replace(good, url=closed))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = good.url.replace(str(sshd.port), str(silent.getsockname()[1]))
        assert "no SSH connection" in reason(replace(good, url=url))
    for field, match, changes in (
        ("key", "private key", {"key": ""}),
        ("key", "no private key", {"key": sshd.text("client.pub")}),
        ("host_keys", "host's key", {"host_keys": "# nothing\n"}),
        ("host_keys", "no host key", {"host_keys": "*.example.org ssh-ed25519 short"}),
    ):
        with pytest.raises(BadEndpoint, match=match) as refused:
            check(replace(good, **changes))
        assert refused.value.field == field


def ssh_children(folder: Path) -> list[str]:
    """Of this process, those of one tunnel."""
    argv = ["ps", "-ww", "-o", "args=", "--ppid", str(os.getpid())]
    said = subprocess.run(argv, capture_output=True, text=True, check=False).stdout
    return [line for line in said.splitlines() if str(folder) in line]


@pytest.mark.docker
def test_ssh_comes_back_and_leaves_no_key_and_no_process(engine, sshd):
    daemon, _ = engine
    runtime = DockerRuntime("x", endpoint=by_ssh(sshd, daemon))
    runtime.ping()
    tunnel = runtime._clients._tunnel
    assert sorted(path.name for path in tunnel._folder.iterdir()) == ["engine.sock", "known_hosts"]
    assert tunnel._folder.stat().st_mode & 0o777 == 0o700
    argv = ssh_children(tunnel._folder)
    assert len(argv) == 1
    assert "PRIVATE" not in " ".join(argv)
    threads = [threading.Thread(target=runtime.ping) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ssh_children(tunnel._folder)) == 1, "one for all threads"
    sshd.stop()
    deadline = time.monotonic() + 90
    with pytest.raises(RuntimeUnreachable):
        while time.monotonic() < deadline:
            runtime.ping()
            time.sleep(0.2)
    sshd.start()
    while True:
        with contextlib.suppress(RuntimeUnreachable):
            runtime.ping()
            break
        assert time.monotonic() < deadline + 10
        time.sleep(0.2)
    runtime.close()
    assert not ssh_children(tunnel._folder)


@pytest.mark.docker
def test_ssh_ends_with_a_killed_worker(engine, sshd, tmp_path):
    daemon, _ = engine
    endpoint = by_ssh(sshd, daemon)
    program = (
        "import sys, threading\n"
        "from projects.domain import RuntimeEndpoint\n"
        "from projects.runtimes.docker import DockerRuntime\n"
        "url, key, hosts = sys.argv[1], open(sys.argv[2]).read(), open(sys.argv[3]).read()\n"
        "runtime = DockerRuntime('x', endpoint=RuntimeEndpoint(url, key=key, host_keys=hosts))\n"
        "thread = threading.Thread(target=runtime.ping); thread.start(); thread.join()\n"
        "runtime.ping()\n"
        "print(runtime._clients._tunnel._process.pid, flush=True)\n"
        "threading.Event().wait()\n"
    )
    argv = [sys.executable, "-c", program, endpoint.url, str(sshd.folder / "client"), str(sshd.folder / "host.pub")]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) as worker:
        assert worker.stdout is not None
        ssh = int(worker.stdout.readline())
        assert "engine.sock" in Path(f"/proc/{ssh}/cmdline").read_text()
        worker.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 90
    while Path(f"/proc/{ssh}").exists() and not re.search(r"State:\s+Z", Path(f"/proc/{ssh}/status").read_text()):
        assert time.monotonic() < deadline, "ssh outlived its worker"
        time.sleep(0.05)
    DockerRuntime("x", endpoint=endpoint).ping()  # the next one clears away what it left
    assert not list(Path("/tmp").glob(f"nvs-ssh-{worker.pid}-*"))
