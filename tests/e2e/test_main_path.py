"""The main job in a browser: sign up, create a database, use it, stop, start, rotate, delete, restore, remove."""

from __future__ import annotations

import re

import psycopg
import pytest
from playwright.sync_api import BrowserContext, Page, expect

from tests.e2e.conftest import Install, check_accessibility

SLOW = 240_000


def create(page: Page, install: Install, name: str) -> None:
    page.goto(f"{install.url}/projects/new/")
    page.get_by_label("Name", exact=True).fill(name)
    expect(page.locator("#name-hint")).to_contain_text("free")
    expect(page.locator("#new-summary")).to_contain_text(name.lower())
    page.get_by_role("button", name="Create project").click()
    page.wait_for_url(re.compile(r"/projects/[0-9a-f-]{36}/$"))


def is_running(page: Page) -> None:
    expect(page.locator(".project-head .badge").first).to_have_text("Running", timeout=SLOW)


def copied_uri(page: Page) -> str:
    """Through the dialog's Copy button: the secret never stands on the page."""
    page.evaluate("navigator.clipboard.writeText = async (text) => { window.copied = text }")
    page.locator(".project-head").get_by_text("Connect").click()
    dialog = page.locator("#modal")
    expect(dialog.get_by_role("tab", name="URI")).to_be_visible()
    dialog.get_by_role("tabpanel").get_by_role("button", name="Copy").click()
    expect(page.get_by_text("password included")).to_be_visible()
    uri = page.evaluate("window.copied")
    assert uri.split(":")[2].split("@")[0] not in page.content()
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    return str(uri)


def test_from_sign_up_to_the_end_of_a_database(page: Page, install: Install, trouble: list[str]) -> None:
    page.goto(install.url)
    page.get_by_role("link", name="Create one").click()
    page.get_by_label("Email").fill("ada@example.test")
    page.get_by_label("Password").fill("a-sentence-that-works")
    page.get_by_label("Organization").fill("Analytical Engines")
    page.get_by_role("button", name="Create account").click()
    expect(page.get_by_role("heading", name="Create your first database")).to_be_visible()

    create(page, install, "orders-e2e")
    is_running(page)
    project = page.url
    uri = copied_uri(page)
    with psycopg.connect(uri, autocommit=True) as connection:
        connection.execute("create table notes (text text)")
        connection.execute("insert into notes values ('kept')")

    page.get_by_label("More actions for orders-e2e").click()
    page.get_by_role("button", name="Stop", exact=True).click()
    expect(page.locator(".project-head .badge").first).to_have_text("Stopped", timeout=SLOW)
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(uri, connect_timeout=3)
    page.locator(".alert").get_by_role("button", name="Start").click()
    is_running(page)

    page.get_by_label("More actions for orders-e2e").click()
    page.get_by_text("Rotate password…").click()
    page.locator("#modal").get_by_role("button", name="Rotate password").click()
    expect(page.get_by_text("Password rotated").first).to_be_visible(timeout=SLOW)
    is_running(page)
    fresh = copied_uri(page)
    assert fresh != uri
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(uri, connect_timeout=3)
    with psycopg.connect(fresh) as connection:
        assert connection.execute("select text from notes").fetchone() == ("kept",)

    page.goto(f"{project}settings/")
    page.locator(".card-danger").get_by_text("Delete…").click()
    modal = page.locator("#modal")
    expect(modal.get_by_role("button", name="Delete")).to_be_disabled()
    modal.get_by_label("Type orders-e2e").fill("orders-e2e")
    modal.get_by_role("button", name="Delete").click()
    page.wait_for_url("**/recycle-bin/")
    page.get_by_role("button", name="Restore").click(timeout=SLOW)
    page.wait_for_url(project)
    is_running(page)
    with psycopg.connect(fresh) as connection:
        assert connection.execute("select text from notes").fetchone() == ("kept",)

    page.goto(f"{project}delete/")
    page.get_by_label("Type orders-e2e").fill("orders-e2e")
    page.get_by_role("button", name="Delete").click()
    page.get_by_text("Delete now…").click(timeout=SLOW)
    modal.get_by_label("Type orders-e2e").fill("orders-e2e")
    modal.get_by_role("button", name="Remove for good").click()
    # The server goes at once; its data stays for the grace of rule 3, and the row says so until then.
    expect(page.get_by_role("cell", name="being removed")).to_be_visible(timeout=SLOW)
    expect(page.get_by_text("Delete now…")).to_have_count(0)


def test_a_revealed_password_is_masked_again(operator: Page, install: Install) -> None:
    create(operator, install, "reveal-e2e")
    is_running(operator)
    operator.clock.install()
    operator.locator(".project-head").get_by_text("Connect").click()
    field = operator.locator("#c-pw")
    expect(field).to_have_attribute("type", "password")
    operator.get_by_label("Reveal for 30 seconds").click()
    expect(field).to_have_attribute("type", "text")
    assert len(field.input_value()) > 20
    operator.clock.run_for(31_000)
    expect(field).to_have_attribute("type", "password")


def test_a_poll_takes_the_focus_from_nobody(operator: Page, install: Install) -> None:
    create(operator, install, "focus-e2e")
    is_running(operator)
    for place in (
        operator.locator(".project-head").get_by_text("Connect"),
        operator.get_by_role("link", name="Activity", exact=True).last,
    ):
        place.focus()
        operator.evaluate("document.querySelector('#live').dataset.before = ''")
        operator.evaluate("htmx.trigger('#live', 'poll')")
        expect(operator.locator("#live[data-before]")).to_have_count(0)
        expect(place).to_be_focused()


def test_keys_open_search_and_help(operator: Page, install: Install) -> None:
    operator.goto(f"{install.url}/tokens/")
    operator.locator("h1").click()
    operator.keyboard.press("?")
    expect(operator.locator("#help")).to_be_visible()
    operator.keyboard.press("Escape")
    operator.keyboard.press("/")
    expect(operator.locator("#palette-q")).to_be_focused()
    operator.keyboard.type("recyc")
    operator.keyboard.press("Enter")  # at once: it means what was typed, not what is still shown
    operator.wait_for_url("**/recycle-bin/")


def test_the_theme_is_there_before_paint_and_stays(operator: Page, install: Install) -> None:
    operator.get_by_role("button", name="Dark").click()
    expect(operator.locator("html")).to_have_attribute("data-theme", "dark")
    operator.reload()
    expect(operator.locator("html")).to_have_attribute("data-theme", "dark")
    operator.get_by_role("button", name="As the system").click()
    expect(operator.locator("html")).not_to_have_attribute("data-theme", "dark")


PAGES = [
    "/projects/", "/projects/new/", "/recycle-bin/", "/activity/", "/members/", "/tokens/", "/profile/", "/operator/",
    "/accounts/2fa/", "/accounts/sessions/", "/accounts/email/", "/accounts/password/change/", "/search/",
]  # fmt: skip


@pytest.mark.parametrize("width", [1440, 390])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_pages_are_accessible_and_fit_the_screen(operator: Page, install: Install, width: int, theme: str) -> None:
    operator.set_viewport_size({"width": width, "height": 900})
    operator.emulate_media(color_scheme=theme, reduced_motion="reduce")  # type: ignore[arg-type]
    for path in PAGES:
        operator.goto(install.url + path)
        check_accessibility(operator)
        assert not operator.evaluate("document.documentElement.scrollWidth > innerWidth"), path


@pytest.mark.parametrize("width", [1440, 390])
def test_a_projects_pages_are_accessible(operator: Page, install: Install, width: int) -> None:
    operator.set_viewport_size({"width": width, "height": 900})
    operator.emulate_media(reduced_motion="reduce")
    create(operator, install, f"look-{width}")
    check_accessibility(operator)
    is_running(operator)
    project = operator.url
    for part in ("", "logs/", "activity/", "settings/", "connect/", "delete/", "rotate/"):
        operator.goto(project + part)
        check_accessibility(operator)
        assert not operator.evaluate("document.documentElement.scrollWidth > innerWidth"), part
    operator.goto(project)
    operator.locator(".project-head").get_by_text("Connect").click()
    expect(operator.locator("#modal")).to_be_visible()
    check_accessibility(operator)


@pytest.mark.parametrize("path", ["/accounts/login/", "/accounts/signup/", "/accounts/password/reset/"])
def test_the_doors_are_accessible(page: Page, install: Install, path: str, trouble: list[str]) -> None:
    page.goto(install.url + path)
    check_accessibility(page)


def test_everything_works_without_javascript(browser: object, install: Install) -> None:
    context: BrowserContext = browser.new_context(java_script_enabled=False)  # type: ignore[attr-defined]
    page = context.new_page()
    page.goto(f"{install.url}/accounts/login/")
    page.get_by_label("Email").fill(install.email)
    page.get_by_label("Password").fill(install.password)
    page.get_by_role("button", name="Sign in", exact=True).click()
    page.goto(f"{install.url}/projects/new/")
    page.get_by_label("Name", exact=True).fill("plain-e2e")
    page.get_by_role("button", name="Create project").click()
    project = page.url
    for _ in range(60):
        page.goto(project)
        if page.locator(".project-head").get_by_text("Connect").count():
            break
        page.wait_for_timeout(500)
    page.locator(".project-head").get_by_text("Connect").click()
    page.get_by_label("Reveal for 30 seconds").click()
    assert len(page.locator("#c-pw").input_value()) > 20
    page.goto(f"{project}delete/")
    page.get_by_label("Type plain-e2e").fill("plain-e2e")
    page.get_by_role("button", name="Delete").click()
    expect(page.get_by_text("plain-e2e").first).to_be_visible()
    context.close()
