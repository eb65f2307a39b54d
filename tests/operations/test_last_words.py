"""What a failure says of a server's log and of the engine's answers: no secret, no folder of the host."""

from __future__ import annotations

import docker.errors
import pytest

from projects import domain
from projects.operations.logs import masked
from projects.runtimes.docker_client import translate


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("login with s3cr3t-value", "login with [masked]"),
        ("POSTGRES_PASSWORD=abc def", "POSTGRES_PASSWORD=[masked] def"),
        ('{"password": "abc"}', '{"password": "[masked]"}'),
        ("connecting to postgresql://app:abc@db:5432/x", "connecting to postgresql://[masked]@db:5432/x"),
        ("api_key: abc", "api_key: [masked]"),
        ("FATAL:  role does not exist", "FATAL:  role does not exist"),
        ('password authentication failed for user "novastack"', 'password authentication failed for user "novastack"'),
    ],
)
def test_secrets_are_masked(line, shown):
    assert masked(line, ["s3cr3t-value"]) == shown


@pytest.mark.parametrize(
    ("answer", "kind", "shown"),
    [
        (
            "error creating overlay mount to /var/lib/docker/overlay2/1f/merged: no space left on device",
            domain.CapacityExhausted,
            "error creating overlay mount to …/merged: no space left on device",
        ),
        (
            'exec: "/usr/local/bin/docker-entrypoint.sh": stat /usr/local/bin/docker-entrypoint.sh: no such file',
            domain.NovaStackRuntimeError,
            'exec: "…/docker-entrypoint.sh": stat …/docker-entrypoint.sh: no such file',
        ),
        (
            "could not find an available, non-overlapping IPv4 address pool among the defaults to assign to the network",
            domain.CapacityExhausted,
            "could not find an available, non-overlapping IPv4 address pool among the defaults to assign to the network",
        ),
        (
            "Get http://127.0.0.1:5000/v2/a/b/manifests/1: manifest unknown",
            domain.ImageMissing,
            "Get http://127.0.0.1:5000/v2/a/b/manifests/1: manifest unknown",
        ),
    ],
)
def test_what_the_engine_says_names_no_folder(answer, kind, shown):
    found = translate(docker.errors.APIError("x", explanation=answer))
    assert type(found) is kind
    assert str(found) == shown
