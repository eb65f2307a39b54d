"""Secrets of links (invitations, password resets, confirmations) do not reach a log."""

from __future__ import annotations

import http.client
import io
import json
import logging
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from django.conf import settings
from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver

from novastack.common.logs import mask_paths, without_places

ROOT = Path(__file__).resolve().parents[2]
SECRET = "S3cretS3cretS3cretS3cretS3cretS3cretS3cr"
CONFIRM = f"MQ:1tYxAb:{SECRET}"
LINKS = [
    f"/invitations/accept-{SECRET}/", f"/invitations/acceptance{SECRET}/",
    f"/invitations/01980000-0000-7000-8000-0000000000aa-{SECRET}/",
    f"/invitations/{SECRET}/", f"/accounts/password/reset/key/1a-cqz7-{SECRET}/", f"/accounts/confirm-email/{CONFIRM}/",
    f"/accounts/confirm-email/{quote(CONFIRM, safe='')}/", f"/x?token={SECRET}", f"/x?a=1&reset_key={SECRET}&b=2",
]  # fmt: skip


@pytest.mark.parametrize("link", LINKS)
def test_no_link_keeps_its_secret(link: str) -> None:
    once = quote(link, safe="")
    for text in (link, link.rstrip("/"), f"Not Found: {link}", f'"GET {link} HTTP/1.1" 404 0 "http://h{link}" "curl"',
                 f"/accounts/login/?next={once}", f"/a/?next={quote(f'/b/?next={once}', safe='')}"):  # fmt: skip
        masked = mask_paths(text)
        assert SECRET not in masked and "[masked]" in masked, masked


def test_what_is_no_secret_stays() -> None:
    pk = "01980000-0000-7000-8000-0000000000aa"
    for line in (f"DELETE /api/v1/organizations/acme/invitations/{pk}/", "POST /api/v1/invitations/accept/",
                 f"POST /members/invitations/{pk}/withdraw/", "/projects/?search=orders&page=2",
                 "/accounts/password/reset/"):  # fmt: skip
        assert mask_paths(line) == line
    assert mask_paths('"GET /invitations/abc/ HTTP/1.1" 200') == '"GET /invitations/[masked]/ HTTP/1.1" 200'
    assert mask_paths("/x?a=1&token=abc&b=2") == "/x?a=1&token=[masked]&b=2"


# Parts of paths that name things. Any other part is taken for a secret, so that a new route is not forgotten.
NAMES = {
    "action", "app_label", "backup_id", "content_type_id", "drill_id", "id", "invitation_id", "key_id", "object_id",
    "operation_id", "pk", "pool_id", "project_id", "recipient_id", "ref", "region", "restore_id", "schedule_id",
    "service", "slug", "storage_id", "token_id", "url", "user_id",
}  # fmt: skip


def routes(found: URLResolver, prefix: str = "") -> Iterator[tuple[str, set[str]]]:
    for entry in found.url_patterns:
        path = prefix + str(entry.pattern)
        if isinstance(entry, URLResolver):
            yield from routes(entry, path)
        elif isinstance(entry, URLPattern):
            named = re.findall(r"<(?:\w+:)?(\w+)>", path)
            yield path, set(named)


def test_every_route_with_a_secret_in_it_is_masked() -> None:
    secret = [path for path, parts in routes(get_resolver()) if parts - NAMES]
    assert len(secret) >= 3
    for path in secret:
        filled = (
            re.sub(r"\(\?P<\w+>(?:\[[^\]]*\]|\.)\+\)|<(?:\w+:)?\w+>", SECRET, path).replace("^", "").replace("$", "")
        )
        assert SECRET in filled
        assert SECRET not in mask_paths(f"/{filled}"), path


@pytest.mark.django_db
def test_django_s_own_lines(client: Client) -> None:
    """The handler of LOGGING, on a page that is not there and one that refuses."""
    written = io.StringIO()
    formatter = settings.LOGGING["formatters"]["structured"]
    handler = logging.StreamHandler(written)
    handler.setFormatter(formatter["()"](processors=formatter["processors"],
                                         foreign_pre_chain=formatter["foreign_pre_chain"]))  # fmt: skip
    logger = logging.getLogger("django.request")
    logger.addHandler(handler)
    try:
        assert client.get(f"/invitations/{SECRET}/").status_code == 404
    finally:
        logger.removeHandler(handler)
    assert "Not Found: /invitations/[masked]/" in written.getvalue()
    assert SECRET not in written.getvalue()


def production_command(port: int) -> list[str]:
    """gunicorn as the image starts it, in front of the standard library's demo application."""
    text = (ROOT / "Dockerfile").read_text()
    command: list[str] = json.loads(re.sub(r"\\\n", "", text[text.rindex("CMD [") + 4 :]))
    swapped = {
        "novastack.wsgi:application": "wsgiref.simple_server:demo_app",
        "--bind=0.0.0.0:8000": f"--bind=127.0.0.1:{port}",
    }
    assert swapped.keys() <= set(command)
    return [sys.executable, "-m", *(swapped.get(part, part) for part in command)]


def get(port: int, path: str, referer: str) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path, headers={"Referer": referer})
        return connection.getresponse().status
    finally:
        connection.close()


def test_gunicorn_s_access_log() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = {**os.environ, "WEB_CONCURRENCY": "1", "NOVASTACK_MODE": "test"}
    server = subprocess.Popen(
        production_command(port), cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        until = time.monotonic() + 60
        while True:
            try:
                assert get(port, "/here", "-") == 200
                break
            except OSError:
                assert server.poll() is None and time.monotonic() < until
                time.sleep(0.2)
        for link in LINKS:
            assert get(port, link, f"http://localhost{link}") == 200
    finally:
        server.terminate()
        written, _ = server.communicate(timeout=40)
    assert '"GET /here HTTP/1.1" 200' in written
    assert '"GET /invitations/[masked]/ HTTP/1.1" 200' in written
    assert '"http://localhost/invitations/[masked]/"' in written
    assert len(re.findall(r'"GET /\S+ HTTP', written)) == 1 + len(LINKS)
    assert SECRET not in written


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("dial unix:///var/run/docker.sock: no such file", "dial […] no such file"),
        ("open /var/lib/docker/overlay2/ab12/merged: permission denied", "open […]: permission denied"),
        ("listen tcp4 10.0.0.5:20001: bind: address in use", "listen tcp4 […]: bind: address in use"),
        ("postgres:18 could not be pulled: not found", "postgres:18 could not be pulled: not found"),
        ("novastack-mysql:9.7, registry/db/mysql:9 of 15/17", "novastack-mysql:9.7, registry/db/mysql:9 of 15/17"),
        ("needs 3/4 of 1.5 GiB, version 17.2.1", "needs 3/4 of 1.5 GiB, version 17.2.1"),
        ("this machine refused: '/srv/x y/z'", "this machine refused: '[…] y/z'"),
    ],
)  # fmt: skip
def test_a_hosts_places_are_not_for_tenants(said: str, shown: str) -> None:
    assert without_places(said) == shown
