"""A passkey in a real browser, with an authenticator of Chromium's own: added, signed in with, asked for as second factor."""

from __future__ import annotations

import re
from typing import Any

import pytest
from playwright.sync_api import CDPSession, Page, expect

from tests.e2e.conftest import Install, check_accessibility

PASSWORD = "a-sentence-that-works"


@pytest.fixture
def authenticator(page: Page) -> tuple[CDPSession, str]:
    """CTAP 2 with resident keys, whose owner is there and verified. Returns the DevTools session and its id."""
    devtools = page.context.new_cdp_session(page)
    devtools.send("WebAuthn.enable")
    options = {
        "protocol": "ctap2", "transport": "internal", "hasResidentKey": True, "hasUserVerification": True,
        "isUserVerified": True, "automaticPresenceSimulation": True,
    }  # fmt: skip
    made = devtools.send("WebAuthn.addVirtualAuthenticator", {"options": options})
    return devtools, str(made["authenticatorId"])


def credentials(authenticator: tuple[CDPSession, str]) -> list[dict[str, Any]]:
    """What the authenticator holds."""
    devtools, pk = authenticator
    found: list[dict[str, Any]] = devtools.send("WebAuthn.getCredentials", {"authenticatorId": pk})["credentials"]
    return found


def sign_up(page: Page, install: Install, email: str) -> None:
    page.goto(f"{install.url}/accounts/signup/")
    page.get_by_label("Email").fill(email)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Create account").click()
    expect(page.get_by_role("heading", name="Create your first database")).to_be_visible()


def sign_out(page: Page, install: Install) -> None:
    page.goto(f"{install.url}/accounts/logout/")
    page.get_by_role("main").get_by_role("button", name="Sign out").click()
    page.wait_for_url("**/accounts/login/")


def add_key(page: Page, install: Install, name: str, *, passwordless: bool) -> None:
    """From the page of the second factors to the recovery codes that the first one brings."""
    page.goto(f"{install.url}/accounts/2fa/")
    page.get_by_role("region", name="Passkeys and security keys").get_by_role("link", name="Add").click()
    expect(page.get_by_role("heading", name="Confirm that it is you")).to_be_visible()
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Confirm").click()
    page.get_by_label("Name").fill(name)
    page.get_by_label("Sign in with it alone").set_checked(passwordless)
    check_accessibility(page)
    page.get_by_role("button", name="Add", exact=True).click()
    page.wait_for_url(re.compile("/accounts/2fa/(?!webauthn/add)"))
    page.goto(f"{install.url}/accounts/2fa/webauthn/")
    expect(page.get_by_role("row", name=name)).to_contain_text("Passkey" if passwordless else "Security key")


def test_a_passkey_is_added_and_signs_in_alone(
    page: Page, install: Install, trouble: list[str], authenticator: tuple[CDPSession, str]
) -> None:
    sign_up(page, install, "grace@example.test")
    add_key(page, install, "Laptop", passwordless=True)
    (key,) = credentials(authenticator)
    assert (key["isResidentCredential"], key["rpId"], key["signCount"]) == (True, "localhost", 1)

    sign_out(page, install)
    page.get_by_role("button", name="Sign in with a passkey").click()
    page.wait_for_url("**/projects/")
    assert credentials(authenticator)[0]["signCount"] == 2
    page.goto(f"{install.url}/profile/")
    expect(page.get_by_text("grace@example.test").first).to_be_visible()

    # Without the key nothing opens, and the page says so.
    sign_out(page, install)
    devtools, pk = authenticator
    devtools.send("WebAuthn.clearCredentials", {"authenticatorId": pk})
    page.get_by_role("button", name="Sign in with a passkey").click()
    expect(page.get_by_role("alert")).to_contain_text("No passkey or security key was used")
    assert page.url.endswith("/accounts/login/")


def test_a_security_key_is_the_second_factor(
    page: Page, install: Install, trouble: list[str], authenticator: tuple[CDPSession, str]
) -> None:
    sign_up(page, install, "edsger@example.test")
    add_key(page, install, "Blue key", passwordless=False)

    sign_out(page, install)
    page.get_by_label("Email").fill("edsger@example.test")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in", exact=True).click()
    page.wait_for_url("**/accounts/2fa/authenticate/**")
    page.goto(f"{install.url}/projects/")
    expect(page.get_by_role("heading", name="One more step")).to_be_visible()  # the password alone opens nothing
    check_accessibility(page)
    page.get_by_role("button", name="Use a passkey or security key").click()
    page.wait_for_url("**/projects/")
    assert credentials(authenticator)[0]["signCount"] == 2
