"""The pages of the second factor, for somebody whose address nobody could confirm."""

from __future__ import annotations

import pytest
from django.test import Client
from django.urls import reverse

from accounts.models import User

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize("name", ["mfa_add_webauthn", "mfa_activate_totp"])
def test_without_mail_a_second_factor_can_be_added(client: Client, name: str) -> None:
    """There is no SMTP here, so no address is ever confirmed."""
    client.post(reverse("account_signup"), {"email": "ada@example.test", "password1": "a-sentence-that-works"})
    assert not User.objects.get().emailaddress_set.get().verified  # type: ignore[attr-defined]
    asked = client.get(reverse(name))  # a sign-up is no proof of the password
    client.post(asked["Location"], {"password": "a-sentence-that-works"})
    assert client.get(reverse(name)).status_code == 200
