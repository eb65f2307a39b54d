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
