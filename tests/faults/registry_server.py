"""A registry on 127.0.0.1 that serves one image of this machine's daemon, or misbehaves as a registry can."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import tarfile
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"


class RegistryServer:
    """`mode`: `ok`, `500` and `404` (for the manifest), `hangs` (at the manifest), `stalls` (in the middle of a layer: the
    connection stays open), `cuts` (it ends there)."""

    def __init__(self, image: str, mode: str) -> None:
        self.image, self.mode = image, mode
        self.over = threading.Event()
        self._folder = tempfile.TemporaryDirectory(prefix="nvs-registry-")
        self._blobs: dict[str, Path] = {}
        self._manifest = b""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                outer.answer(self)

            do_GET = do_HEAD

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def name(self) -> str:
        """What to write into NOVASTACK_IMAGES."""
        return f"127.0.0.1:{self._server.server_port}/novastack-test:1"

    def close(self) -> None:
        self.over.set()
        self._server.shutdown()
        self._server.server_close()
        subprocess.run(["docker", "rmi", self.name], capture_output=True, check=False)
        self._folder.cleanup()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = request.path
        if path == "/v2/":
            self._send(request, 200, b"{}")
        elif "/manifests/" in path:
            if self.mode in {"500", "404"}:
                self._send(request, int(self.mode), b'{"errors": [{"code": "UNKNOWN", "message": "out of order"}]}')
            elif self.mode == "hangs":
                self.over.wait(120)
            else:
                self._send(request, 200, self._packed(), MANIFEST)
        elif "/blobs/" in path:
            self._blob(request, path.rpartition("/")[2])
        else:
            self._send(request, 404, b"")

    def _blob(self, request: BaseHTTPRequestHandler, digest: str) -> None:
        self._packed()
        content = self._blobs[digest].read_bytes()
        if self.mode in {"stalls", "cuts"} and len(content) > 100_000:
            request.send_response(200)
            request.send_header("Content-Length", str(len(content)))
            request.end_headers()
            request.wfile.write(content[: len(content) // 2])
            if self.mode == "stalls":
                self.over.wait(120)
            request.close_connection = True
            return
        self._send(request, 200, content, "application/octet-stream")

    @staticmethod
    def _send(request: BaseHTTPRequestHandler, status: int, body: bytes, kind: str = "application/json") -> None:
        request.send_response(status)
        request.send_header("Docker-Distribution-Api-Version", "registry/2.0")
        request.send_header("Content-Type", kind)
        request.send_header("Content-Length", str(len(body)))
        if kind == MANIFEST:
            request.send_header("Docker-Content-Digest", "sha256:" + hashlib.sha256(body).hexdigest())
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(body)

    _lock = threading.Lock()

    def _packed(self) -> bytes:
        with self._lock:
            if not self._manifest:
                self._pack()
        return self._manifest

    def _own_image(self, folder: Path) -> str:
        """The image with a layer that no engine has seen: one that it has it would not download."""
        (folder / "layer").write_bytes(os.urandom(400_000))
        name = f"novastack-test-{os.urandom(4).hex()}:1"
        made = subprocess.run(
            ["docker", "create", self.image], check=True, capture_output=True, text=True
        ).stdout.strip()
        subprocess.run(["docker", "cp", str(folder / "layer"), f"{made}:/novastack-layer"], check=True)
        subprocess.run(["docker", "commit", made, name], check=True, capture_output=True)
        subprocess.run(["docker", "rm", "-v", made], check=True, capture_output=True)
        return name

    def _pack(self) -> None:
        folder = Path(self._folder.name)
        own = self._own_image(folder)
        subprocess.run(["docker", "save", "-o", str(folder / "image.tar"), own], check=True)
        subprocess.run(["docker", "rmi", own], check=True, capture_output=True)
        with tarfile.open(folder / "image.tar") as tar:
            tar.extractall(folder, filter="tar")
        known = json.loads((folder / "manifest.json").read_text())[0]

        def described(file: str, kind: str) -> dict[str, Any]:
            path = folder / file
            with path.open("rb") as stream:
                digest = "sha256:" + hashlib.file_digest(stream, "sha256").hexdigest()
            self._blobs[digest] = path
            return {"mediaType": kind, "size": path.stat().st_size, "digest": digest}

        self._manifest = json.dumps({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": described(known["Config"], "application/vnd.docker.container.image.v1+json"),
            "layers": [described(f, "application/vnd.docker.image.rootfs.diff.tar.gzip") for f in known["Layers"]],
        }).encode()  # fmt: skip
