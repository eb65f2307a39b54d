"""Rows for tests. People are personas: Alice owns, Bob is a member, Vera views, Charlie belongs to somebody else."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import factory
from allauth.account.models import EmailAddress
from rest_framework.test import APIClient

from accounts.models import ApiToken, Membership, Organization, Role, User
from accounts.models.tokens import PREFIX_LENGTH, hash_token
from accounts.permissions import Principal
from novastack.common.clock import now
from projects.models import DatabaseServer, Operation, OperationLock, OperationStep, Plan, Project, Region
from projects.operations import status
from projects.services import ProjectRequest, project_create

PASSWORD = "correct-horse-battery"


class UserFactory(factory.django.DjangoModelFactory):
    class Meta:
        model = User
        skip_postgeneration_save = True

    email = factory.Sequence(lambda n: f"person{n}@example.test")
    full_name = factory.Sequence(lambda n: f"Person {n}")
    password = factory.django.Password(PASSWORD)

    @factory.post_generation
    def verified_address(self: Any, create: bool, extracted: Any, **_: Any) -> None:
        if create:
            EmailAddress.objects.create(user=self, email=self.email, primary=True, verified=extracted is not False)


class OrganizationFactory(factory.django.DjangoModelFactory):
    class Meta:
        model = Organization

    name = factory.Sequence(lambda n: f"Organization {n}")
    slug = factory.Sequence(lambda n: f"organization-{n}")


class MembershipFactory(factory.django.DjangoModelFactory):
    class Meta:
        model = Membership

    organization = factory.SubFactory(OrganizationFactory)
    user = factory.SubFactory(UserFactory)
    role = Role.MEMBER


@dataclass(frozen=True)
class Team:
    """One organization with its people, and an outsider with an organization of his own."""

    organization: Organization
    alice: User  # owner
    adam: User  # admin
    bob: User  # member
    vera: User  # viewer
    charlie: User  # owner of another organization
    elsewhere: Organization


def make_person(name: str, organization: Organization, role: str) -> User:
    user = UserFactory(email=f"{name}@example.test", full_name=name.title(), default_organization=organization)
    MembershipFactory(organization=organization, user=user, role=role)
    return user


def make_team() -> Team:
    acme = OrganizationFactory(name="Acme", slug="acme")
    elsewhere = OrganizationFactory(name="Elsewhere", slug="elsewhere")
    return Team(
        organization=acme, elsewhere=elsewhere,
        alice=make_person("alice", acme, Role.OWNER), adam=make_person("adam", acme, Role.ADMIN),
        bob=make_person("bob", acme, Role.MEMBER), vera=make_person("vera", acme, Role.VIEWER),
        charlie=make_person("charlie", elsewhere, Role.OWNER),
    )  # fmt: skip


def make_token(
    user: User, *, scopes: Iterable[str] = ("read", "write", "connect", "admin"), **fields: Any
) -> tuple[ApiToken, str]:
    """A real token and its clear value."""
    clear = ApiToken.new_clear()
    token = ApiToken.objects.create(
        user=user, name=fields.pop("name", "test"), scopes=list(scopes), token_hash=hash_token(clear),
        prefix=clear[:PREFIX_LENGTH], **fields,
    )  # fmt: skip
    return token, clear


def api_client(user: User | None = None, *, scopes: Iterable[str] | None = None, **token_fields: Any) -> APIClient:
    """An API client: anonymous, a person (JWT), or with `scopes` a real API token."""
    from accounts.services import session_start

    client = APIClient()
    if user is not None and (scopes is not None or token_fields):
        _, clear = make_token(user, **({"scopes": scopes} if scopes is not None else {}), **token_fields)
        client.credentials(HTTP_AUTHORIZATION=f"Bearer {clear}")
    elif user is not None:
        client.credentials(HTTP_AUTHORIZATION=f"Bearer {session_start(user=user).access}")
    return client


class RegionFactory(factory.django.DjangoModelFactory):
    """A region of the memory runtime. Ports differ per region, so that parallel tests do not meet."""

    class Meta:
        model = Region
        django_get_or_create = ("slug",)

    slug = "local"
    name = "This machine"
    runtime = "memory"
    port_start = 20000
    port_end = 29999


class PlanFactory(factory.django.DjangoModelFactory):
    class Meta:
        model = Plan
        django_get_or_create = ("slug",)

    slug = "small"
    name = "Small"
    is_default = True


def make_catalogue() -> tuple[Region, Plan]:
    """What a project needs to exist: a region and the default plan."""
    return RegionFactory(), PlanFactory()


def make_project(
    user: User, organization: Organization, name: str = "Shop", *, running: bool = True, **request: Any
) -> Project:
    """A project with its rows as the service makes them. `running`: as if provisioning had ended well."""
    make_catalogue()
    project = project_create(
        principal=Principal.of(user), organization=organization, request=ProjectRequest(name=name, **request)
    )
    return finish_provisioning(project) if running else project


def finish_provisioning(project: Project) -> Project:
    """What the provisioning's steps and its end write, without any server."""
    Operation.objects.live().filter(project_uuid=project.pk).update(
        state="succeeded", started_at=now(), finished_at=now()
    )
    OperationStep.objects.filter(operation__project_uuid=project.pk).update(state="succeeded", finished_at=now())
    OperationLock.objects.filter(operation__project_uuid=project.pk).delete()
    Project.objects.filter(pk=project.pk).update(ready_at=now(), health="healthy", health_checked_at=now())
    DatabaseServer.objects.filter(project_uuid=project.pk).update(
        observed_state="running", observed_at=now(), initialised_at=now(), started_at=now(), image="postgres:17"
    )
    status.refresh([project.pk])
    project.refresh_from_db()
    return project


def set_observed(project: Project, observed: str, *, desired: str | None = None) -> Project:
    """The server was seen like this; the status follows."""
    if desired:
        Project.objects.filter(pk=project.pk).update(desired_status=desired)
    DatabaseServer.objects.filter(project_uuid=project.pk).update(observed_state=observed, observed_at=now())
    status.refresh([project.pk])
    project.refresh_from_db()
    return project
