"""Pages of backups in states that a run rarely shows: nothing sticks out of the screen or is cut off, on a desk and on a
phone, and everything can be read, in light and in dark. `NOVASTACK_PICTURES=FOLDER` keeps a picture of each."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.test import Client
from playwright.sync_api import Browser, Page, expect

from backups.models import Backup, Restore
from tests.e2e.conftest import check_accessibility
from tests.e2e.states import World

pytestmark = pytest.mark.django_db(transaction=True)
PICTURES = os.environ.get("NOVASTACK_PICTURES")
ONLY = os.environ.get("NOVASTACK_PICTURES_ONLY", "").split()
PARTS = 4  # of the states: each takes some seconds
LOOKS = [(1440, "light"), (390, "dark"), *([(1440, "dark"), (390, "light")] if PICTURES else [])]
# Wider than the screen where nothing scrolls; cut off where no dots say so.
STICKS_OUT = """() => {
  const flow = (part) => getComputedStyle(part).overflowX;
  const held = (part) => {
    for (let up = part.parentElement; up !== document.body; up = up.parentElement) if (flow(up) !== "visible") return true;
    return false;
  };
  const seen = [...document.querySelectorAll("body *")].filter(
    (part) => part.checkVisibility() && !part.closest(".sr-only, svg, .skip, .spin") && part.getBoundingClientRect().width > 1);
  const wide = seen.filter((part) => part.getBoundingClientRect().right > innerWidth + 1 && !held(part));
  const cut = seen.filter((part) => /hidden|clip/.test(flow(part)) && part.scrollWidth > part.clientWidth + 1
    && getComputedStyle(part).textOverflow !== "ellipsis" && !part.matches("dialog, input, select, progress, meter"));
  const over = seen.filter((part) => part.matches("th, td, dd, dt, .badge, .btn, p, label") && flow(part) === "visible"
    && part.scrollWidth > part.clientWidth + 1 && getComputedStyle(part).display !== "inline");
  return [...wide, ...cut, ...over].map((part) => `${part.tagName}.${part.className}: ${part.textContent.trim().slice(0, 60)}`);
}"""


@pytest.fixture
def world(transactional_db: None) -> World:
    return World()


@pytest.fixture
def alice(world: World, live_server: Any, browser: Browser) -> Iterator[Page]:
    client = Client()
    client.force_login(world.team.alice)
    session = client.cookies[settings.SESSION_COOKIE_NAME].value
    context = browser.new_context()
    context.add_cookies([{"name": settings.SESSION_COOKIE_NAME, "value": session, "url": live_server.url}])
    yield context.new_page()
    context.close()


@pytest.mark.parametrize("part", range(PARTS))
def test_every_state_can_be_read(world: World, alice: Page, live_server: Any, part: int) -> None:
    wrong = []
    for name, (path, dialog) in list(world.paths.items())[part::PARTS]:
        if ONLY and name not in ONLY:
            continue
        for width, theme in LOOKS:
            alice.set_viewport_size({"width": width, "height": 900})
            alice.emulate_media(color_scheme=theme, reduced_motion="reduce")  # type: ignore[arg-type]
            alice.goto(live_server.url + ("/backups/protection/" if dialog else path))
            if dialog:
                alice.evaluate("path => htmx.ajax('GET', path, {target: '#modal'})", path)
                expect(alice.locator("#modal .dialog-head")).to_be_visible()
            expect(alice.locator(".skeleton")).to_have_count(0)
            if PICTURES:
                alice.screenshot(path=Path(PICTURES) / f"{name}-{width}-{theme}.png", full_page=not dialog)
            wrong += [f"{name} at {width}: {found}" for found in alice.evaluate(STICKS_OUT)]
            try:
                check_accessibility(alice)
            except AssertionError as error:
                wrong.append(f"{name}, {theme}: {error}")
    assert wrong == []


def test_what_changes_is_said(world: World, alice: Page, live_server: Any) -> None:
    """In a list, in a dialog (which silences the page below it), and on a restore's page; once, and only changes."""
    tab, _ = world.paths["tab"]
    alice.goto(live_server.url + tab)
    said = alice.locator("#announce")
    expect(said).to_be_empty()
    Backup.objects.filter(status="verifying").update(status="verified")
    alice.evaluate("htmx.trigger('#backup-list', 'poll')")
    expect(said).to_contain_text("Verified")
    expect(said).not_to_contain_text("Corrupt")
    running = Backup.objects.get(status="dumping")
    alice.locator(f"#backup-{running.pk} th a").click()
    dialog = alice.get_by_role("dialog", name="Backup of orders-production")
    expect(dialog.get_by_role("status").last).to_be_empty()
    Backup.objects.filter(pk=running.pk).update(status="stored")
    alice.evaluate("htmx.trigger('#backup-detail', 'poll')")
    expect(dialog.locator(".announce")).to_have_text("Backup of orders-production: Stored")
    path, _ = world.paths["restore-running"]
    alice.goto(live_server.url + path)
    Restore.objects.filter(status="running").update(status="failed", error={"code": "x", "detail": "No."})
    alice.evaluate("htmx.trigger('#restore-progress', 'poll')")
    expect(said).to_contain_text("Failed")


def test_two_answers_at_once_leave_the_focus_where_it_was(world: World, alice: Page, live_server: Any) -> None:
    """The second comes before the first has settled: nothing has the focus then, though somebody had it."""
    tab, _ = world.paths["tab"]
    alice.goto(live_server.url + tab)
    expect(alice.locator(".skeleton")).to_have_count(0)
    button = alice.locator("#backup-list a[aria-label^=Restore]").first
    label = button.get_attribute("aria-label")
    button.focus()
    alice.evaluate(
        """() => {
          const cards = document.querySelector("#backup-cards");
          document.querySelector("#backup-list").dataset.before = "";
          const detail = { target: cards, shouldSwap: true };
          const second = () => cards.dispatchEvent(new CustomEvent("htmx:beforeSwap", { bubbles: true, detail }));
          document.addEventListener("htmx:afterSwap", second, { once: true });
          htmx.trigger("#backup-list", "poll");
        }"""
    )
    expect(alice.locator("#backup-list[data-before]")).to_have_count(0)
    expect(alice.get_by_label(label or "", exact=True)).to_be_focused()


def test_a_preflight_is_said_and_readable_on_a_phone(world: World, alice: Page, live_server: Any) -> None:
    alice.set_viewport_size({"width": 390, "height": 900})
    path, _ = world.paths["restore-in-place"]
    alice.goto(live_server.url + path)
    expect(alice.locator("#announce")).to_contain_text("Preflight")
    row = alice.locator("#preflight tr", has_text="order_items")
    expect(row.get_by_role("cell", name="6\u202f120\u202f442")).to_be_visible()
