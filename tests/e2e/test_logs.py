"""A log that is followed on its page: each line once, soon, in order; and a region's pages."""

from __future__ import annotations

import re
import time

import psycopg
from playwright.sync_api import Page, expect

from tests.e2e.conftest import Install, check_accessibility
from tests.e2e.test_main_path import copied_uri, create, is_running


def fail(uri: str, first: int, count: int) -> None:
    """Statements that the server logs as errors."""
    with psycopg.connect(uri, autocommit=True) as connection:
        for number in range(first, first + count):
            try:
                connection.execute(f"select * from nosuch_{number}")
            except psycopg.Error:
                continue


def seen(page: Page) -> list[int]:
    messages = page.locator("#log-list .msg").all_text_contents()
    return [int(m[1]) for text in messages if (m := re.match(r'relation "nosuch_(\d+)"', text))]


def until(page: Page, number: int, seconds: float = 60) -> None:
    began = time.monotonic()
    while number not in seen(page):
        assert time.monotonic() - began < seconds, seen(page)[-5:]
        page.wait_for_timeout(50)


def test_a_log_is_followed(operator: Page, install: Install) -> None:
    create(operator, install, "logs-e2e")
    is_running(operator)
    uri = copied_uri(operator)
    operator.goto(f"{operator.url}logs/")
    fail(uri, 0, 1)
    until(operator, 0)
    fail(uri, 1, 200)
    until(operator, 200)
    assert seen(operator) == list(range(201))
    pause = operator.get_by_role("button", name="Pause")
    pause.click()
    fail(uri, 201, 3)
    operator.wait_for_timeout(2500)
    assert seen(operator)[-1] == 200
    pause.click()
    until(operator, 203)
    assert seen(operator) == list(range(204)), "nothing is lost by a pause"
    operator.get_by_label("Search in the log").fill("nosuch_203")
    expect(operator.locator("#log-list li")).to_have_count(1)
    fail(uri, 204, 1)
    fail(uri, 203, 1)
    expect(operator.locator("#log-list li")).to_have_count(2)
    check_accessibility(operator)


def test_a_region_is_added_and_checked(operator: Page, install: Install) -> None:
    operator.goto(f"{install.url}/operator/regions/new/")
    for label, text in (("Name", "Far"), ("Slug", "far"), ("Endpoint", "tcp://10.1.2.3:2375")):
        operator.get_by_label(label, exact=True).fill(text)
    operator.get_by_label("Runtime").select_option("docker")
    operator.get_by_label("Port start").fill("41000")
    operator.get_by_label("Port end").fill("41010")
    operator.get_by_role("button", name="Add region").click()
    expect(operator.get_by_text("Without TLS whoever reaches that port owns the machine")).to_be_visible()
    check_accessibility(operator)
    operator.get_by_label("Endpoint", exact=True).fill("unix:///nowhere.sock")
    operator.get_by_role("button", name="Add region").click()
    expect(operator.locator("#region-check")).to_contain_text(
        "There is no such socket", timeout=30_000, ignore_case=True
    )
    check_accessibility(operator)
    operator.get_by_role("button", name="Remove").click()
    expect(operator.get_by_text("Far was removed.")).to_be_visible()
