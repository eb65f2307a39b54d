"""The first start: regions, plans, the first admin, the first project. Idempotent; every start calls it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.db import transaction

from accounts.models import Organization, User
from accounts.permissions import Principal
from accounts.services import user_create
from novastack.common.models import Install
from novastack.common.secrets import random_password
from projects import domain, registry
from projects.models import Plan, Project, Region
from projects.models.catalogue import ALL_ADDRESSES_RUNTIMES
from projects.operations import abilities, catalogue, wiring
from projects.services.creation import ProjectRequest, project_create

# Other apps add to it in their ready(): what a new install has of theirs before its first project. Each is idempotent.
also_prepare: list[Callable[[], object]] = []

GIB = 1024**3
MIB = 1024**2
PLANS = (
    # slug, name, memory, CPU, storage
    ("small", "Small", 512 * MIB, "0.5", 5 * GIB, True),
    ("standard", "Standard", 2 * GIB, "1", 20 * GIB, False),
    ("large", "Large", 4 * GIB, "2", 50 * GIB, False),
)
# Examples of the customer's (seed 001): without a runtime they are shown as not available.
EXAMPLE_REGIONS = (
    ("us-east-1", "US East"),
    ("us-west-2", "US West"),
    ("eu-west-1", "Europe West"),
    ("ap-southeast-1", "Asia Pacific"),
)


@dataclass(frozen=True, slots=True)
class RuntimeChoice:
    runtime: str
    reason: str


def choose_runtime(setting: str, config: dict[str, Any]) -> RuntimeChoice:
    """`auto`: Docker when its daemon answers and an image for the first database can be had, else processes.

    Nothing is pulled (rule 40); the registry is only asked whether it has the image. Says why.
    """
    if setting != "auto":
        return RuntimeChoice(setting, f"NOVASTACK_RUNTIME is {setting}")
    engine = registry.engine(registry.DEFAULT_ENGINE)
    versions = catalogue.versions_of(engine)
    version, override = versions.default, versions.image_of(versions.default)
    try:
        docker = registry.runtime("docker", install_id=wiring.install_id(), config=config)
        docker.ping()
        docker.resolve_image(engine.name, version, engine.official_image, override, pull=False)
    except domain.ImageMissing as error:
        if docker.can_pull(engine.official_image, version, override):
            return RuntimeChoice("docker", f"Docker answers; the first database pulls its image ({version})")
        return RuntimeChoice("process", f"Docker answers, but has no {engine.title} image and can't pull one: {error}")
    except domain.NovaStackRuntimeError as error:
        return RuntimeChoice("process", f"No Docker: {error}")
    return RuntimeChoice("docker", f"Docker answers and a {engine.title} image is there")


@transaction.atomic
def catalogue_prepare() -> Region:
    """Plans and example regions, of a new install only: what an operator deletes stays deleted. And this machine's region;
    its runtime is chosen once, then kept: servers live there. While it holds no project, a better choice replaces it."""
    install = Install.objects.select_for_update().get(pk=Install.load().pk)  # two may start at once
    new = not (install.notes.get("catalogue_made") or Plan.objects.exists() or Region.objects.exists())
    for position, (slug, name, memory, cpus, storage, default) in enumerate(PLANS if new else ()):
        Plan.objects.get_or_create(
            slug=slug,
            defaults={
                "name": name, "position": position, "memory_bytes": memory, "cpus": cpus, "storage_bytes": storage,
                "is_default": default, "recycle_days": settings.NOVASTACK_RECYCLE_DAYS,
            },
        )  # fmt: skip
    start, end = (int(part) for part in settings.NOVASTACK_PORT_RANGE.split("-"))
    public = settings.NOVASTACK_PUBLIC_HOST
    region, _ = Region.objects.get_or_create(
        slug="local",
        defaults={
            "name": "This machine", "runtime": "", "port_start": start, "port_end": end,
            "client_host": public or "127.0.0.1",
            "bind_address": "0.0.0.0" if public else "127.0.0.1",  # noqa: S104 - the operator named an address
        },
    )  # fmt: skip
    for slug, name in EXAMPLE_REGIONS if new else ():
        Region.objects.get_or_create(slug=slug, defaults={"name": name, "runtime": ""})
    Install.merge_notes(catalogue_made=True)
    return region


def runtime_settle(region: Region) -> RuntimeChoice:
    """Choose the region's runtime if it has none yet, or no project that would mind."""
    install = Install.load()
    if region.runtime and (
        region.projects.exists()
        or (settings.NOVASTACK_RUNTIME in {"auto", region.runtime} and install.notes.get("runtime_reason"))
    ):
        wanted = settings.NOVASTACK_RUNTIME
        if wanted not in {"auto", region.runtime}:
            return RuntimeChoice(
                region.runtime, f"NOVASTACK_RUNTIME is {wanted}, but databases live on {region.runtime}: kept"
            )
        return RuntimeChoice(region.runtime, str(install.notes.get("runtime_reason", "chosen before")))
    choice = choose_runtime(settings.NOVASTACK_RUNTIME, region.config)
    region.runtime = choice.runtime
    if choice.runtime == "process":
        region.config = {**region.config, "root": str(settings.NOVASTACK_SERVERS_ROOT)}
        region.config["data_root"] = region.config["root"]
    elif choice.runtime in ALL_ADDRESSES_RUNTIMES:
        region.bind_address = "0.0.0.0"  # noqa: S104 - it is so, whatever the row says
    region.save(update_fields=["runtime", "config", "bind_address", "updated_at"])
    with contextlib.suppress(domain.NovaStackRuntimeError):  # then the reconciler looks
        abilities.look(region, wiring.runtime_of(region))
    Install.merge_notes(runtime_reason=choice.reason, runtime=choice.runtime)
    return choice


@transaction.atomic
def first_admin() -> tuple[User | None, str | None]:
    """Make the first operator of an empty install. Returns (user or None, the one-time password if one was made)."""
    if User.objects.exists():
        return None, None
    given = settings.NOVASTACK_ADMIN_PASSWORD
    password = given or random_password(20)
    user = user_create(
        email=settings.NOVASTACK_ADMIN_EMAIL or "admin@novastack.local", password=password,
        full_name="Administrator", organization_name="My organization", is_staff=True, is_superuser=True,
    )  # fmt: skip
    return user, None if given else password


def first_project(user: User) -> Project:
    organization = Organization.objects.filter(memberships__user=user).order_by("created_at")[0]
    return project_create(
        principal=Principal.of(user),
        organization=organization,
        request=ProjectRequest(name="First database", description="Made at the first start, to look at."),
    )
