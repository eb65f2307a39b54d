"""Images that are not what an engine needs: one that ends at once, and operators' own (NOVASTACK_IMAGES) that do not keep
the contract. `failed`, with the reason, the end of the log without secrets, and a Retry that works with a mended image."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import replace

import pytest
from django.conf import settings

from projects import domain, registry
from projects.models import DatabaseServer, OperationEvent
from projects.operations import base
from tests.factories import api_client
from tests.faults.conftest import ALL, Site
from tests.faults.test_dockerd import IMAGE
from tests.faults.test_refused import failed, works_after_retry

pytestmark = pytest.mark.docker
OWN = "nvs-faults-own:1"

# what is wrong → (Dockerfile, stable code, what the reason says)
BAD = {
    "ends at once": (
        "",
        "printf '#!/bin/sh\\necho starting with $(cat $POSTGRES_PASSWORD_FILE); echo password=hunter22; "
        "echo FATAL: no licence >&2; exit 3\\n'",
        "server_exited", "FATAL: no licence",
    ),
    "listens elsewhere": (
        "", "printf '#!/bin/sh\\nexec \"$@\" -c port=5999\\n'", "no_answer", "port 5432",
    ),
    "ignores the password": (
        "", "printf '#!/bin/sh\\nrm -rf \"$PGDATA\"; printf other >/tmp/p; initdb -D \"$PGDATA\" -U \"$POSTGRES_USER\" "
        "--pwfile=/tmp/p -A scram-sha-256 >&2; echo host all all all scram-sha-256 >>\"$PGDATA/pg_hba.conf\"; "
        "exec \"$@\"\\n'", "login_refused", "did not set the password",
    ),
    "has no entrypoint": ("", "", "server_exited", "docker-entrypoint.sh"),
    "has no such user": ("user", "", "image_missing", "no user postgres"),
}  # fmt: skip
TRUSTS = (
    'file=$(command -v docker-entrypoint.sh); printf \'#!/bin/sh\\necho host all all all trust >"$PGDATA/pg_hba.conf"; '
    'exec "$@"\\n\' >$file; chmod 755 $file'
)
CHOSEN = tuple(BAD) if ALL else ("ends at once",)


def build(recipe: str) -> None:
    subprocess.run(["docker", "build", "-q", "-t", OWN, "-"], input=recipe.encode(), check=True, capture_output=True)


def recipe_of(what: str) -> str:
    kind, script, *_ = BAD[what]
    where = "$(command -v docker-entrypoint.sh)"
    if kind == "user":
        change = "sed -i /^postgres:/d /etc/passwd"
    elif not script:
        change = f"rm {where}"
    else:
        change = f"file={where}; {script} >$file; chmod 755 $file"
    return f"FROM {IMAGE}\nUSER root\nRUN {change}\n"


@pytest.fixture
def own_image(docker_site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(settings, "NOVASTACK_IMAGES", {"postgresql": OWN})
    monkeypatch.setattr(base, "OPERATION_ATTEMPTS", 1)
    definition = base.latest_definition("provision")
    quick = tuple(replace(s, deadline_seconds=30) if s.name == "ready" else s for s in definition.steps)
    monkeypatch.setitem(base._definitions, ("provision", definition.version), replace(definition, steps=quick))
    yield docker_site
    docker_site.clean_up()
    subprocess.run(["docker", "rmi", "-f", OWN], check=False, capture_output=True)


@pytest.mark.parametrize("what", CHOSEN)
def test_an_image_that_does_not_keep_the_contract(own_image: Site, what: str) -> None:
    site = own_image
    build(recipe_of(what))
    with site.fault("operator's image does not keep the contract", point=what) as run:
        project = site.create()
        server = DatabaseServer.objects.get(project_uuid=project.pk)
        one_time = server.admin_secret.open()
        error = failed(site, project)
        _, _, code, reason = BAD[what]
        assert error["code"] == code, error
        assert reason in error["detail"]
        told = " ".join(OperationEvent.objects.values_list("message", flat=True)) + error["detail"]
        if what == "ends at once":
            assert "FATAL: no licence" in told
            assert "[masked]" in told
        assert one_time not in told
        assert "hunter22" not in told
        build(f"FROM {IMAGE}\nLABEL io.novastack.test=mended\n")
        run.recovering()
        works_after_retry(site, project)
        run.ended()


def test_an_image_that_trusts_its_network_lets_nobody_in(own_image: Site) -> None:
    """Who may log in, and how, is said by NovaStack's own rules, not by what an image brings."""
    site = own_image
    build(f"FROM {IMAGE}\nUSER root\nRUN {TRUSTS}\n")
    with site.fault("operator's image does not keep the contract", point="trusts everybody") as run:
        run.recovering()
        project = site.ready()
        run.ended()
        server = project.databases.get().server
        engine = registry.engine(site.engine)
        with pytest.raises(domain.LoginRefused):
            engine.probe(server.control_endpoint, domain.Credentials(server.admin_username, "wrong"))
        site.check_exactly(project)


@pytest.mark.parametrize(
    ("limits", "field"),
    [
        ({"memory_bytes": 64 << 20}, "limits.memory_bytes"),
        ({"memory_bytes": 1 << 50}, "limits.memory_bytes"),
        ({"cpus": 0.01}, "limits.cpus"),
        ({"cpus": 1000}, "limits.cpus"),
        ({"disk": 1}, "limits.disk"),
    ],
)
@pytest.mark.process
def test_limits_out_of_bounds_are_refused_with_the_field(process_site: Site, limits, field) -> None:
    site = process_site
    client = api_client(site.team.alice)
    with site.fault("limits below the engine's minimum or above the plan's", point=f"{limits}") as run:
        run.recovering()
        answer = client.post(
            "/api/v1/projects/",
            {"name": "Shop", "region": "site", "limits": limits, "organization": site.team.organization.slug},
            format="json",
        )
        assert answer.status_code == 400, answer.content
        assert [each["field"] for each in answer.json()["errors"]] == [field], answer.json()
        run.ended()
        site.check_exactly()
