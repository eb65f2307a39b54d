"""A backup in a browser: taken, proven, restored into a new project, and over the live database with Undo."""

from __future__ import annotations

import re

import psycopg
from playwright.sync_api import Locator, Page, expect

from tests.e2e.conftest import Install, check_accessibility
from tests.e2e.test_main_path import SLOW, copied_uri, create, is_running

MINUTES = 240_000


def rows_of(uri: str) -> int:
    with psycopg.connect(uri) as connection:
        found = connection.execute("select count(*) from notes").fetchone()
    assert found is not None
    return int(found[0])


def back_up(page: Page, project: str, label: str) -> None:
    """By hand, until it is proven."""
    page.goto(f"{project}backups/")
    page.locator(".project-head").get_by_text("Back up now").click()
    dialog = page.locator("#modal")
    dialog.get_by_label("Label").fill(label)
    dialog.get_by_role("button", name="Back up now").click()
    row = page.locator("#backup-list tbody tr", has_text=label)
    expect(row).to_be_visible()
    expect(row).to_contain_text("match", timeout=MINUTES)  # the list polls by itself; its words say what went wrong
    expect(row.locator(".badge").first).to_have_text("Verified")


def add_storage(page: Page, install: Install) -> None:
    """An operator's folder for everybody, tried before it is believed."""
    page.goto(f"{install.url}/operator/storages/")
    check_accessibility(page)
    page.locator(".choice", has_text="Filesystem").click()
    expect(page.get_by_label("Bucket", exact=True)).to_be_hidden()
    page.get_by_label("Name", exact=True).fill("cellar")
    page.get_by_role("textbox", name="Folder", exact=True).fill("e2e/cellar")
    page.get_by_role("button", name="Add target").click()
    expect(page.get_by_text("cellar works and is added.")).to_be_visible(timeout=SLOW)
    row = page.locator("tbody tr", has_text="cellar")
    row.get_by_role("button", name="Test cellar").click()
    expect(page.locator("#modal .checks li:not(.broken)")).to_have_count(7, timeout=SLOW)
    page.locator("#modal").get_by_role("link", name="Done").click()
    if "default" not in row.inner_text():
        row.get_by_label("Actions for cellar").click()
        row.get_by_role("button", name="Make default").click()
        expect(page.locator("tbody tr", has_text="cellar")).to_contain_text("default")


def test_a_backup_is_taken_proven_and_restored(operator: Page, install: Install) -> None:
    page = operator
    add_storage(page, install)
    create(page, install, "orders-backup")
    is_running(page)
    project = page.url
    uri = copied_uri(page)
    with psycopg.connect(uri, autocommit=True) as connection:
        connection.execute("create table notes (id int primary key, text text)")
        connection.execute("insert into notes select n, 'note ' || n from generate_series(1, 500) n")

    page.goto(f"{project}backups/")
    expect(page.get_by_role("heading", name="No backup yet")).to_be_visible()
    check_accessibility(page)
    back_up(page, project, "before-the-change")
    row = page.locator("#backup-list tbody tr", has_text="before-the-change")
    expect(row).to_contain_text(re.compile("tables? match"))
    expect(page.locator("#backup-figures")).to_contain_text("restored and compared")
    check_accessibility(page)

    row.locator("th a").click()
    dialog = page.locator("#modal")
    expect(dialog.locator("tr", has_text="notes")).to_contain_text("500")
    expect(dialog.locator(".timeline .badge")).to_have_text("Passed")
    check_accessibility(page)
    page.keyboard.press("Escape")

    downloaded(page, row)

    row.get_by_role("link", name=re.compile("Restore")).click()
    check_accessibility(page)
    page.get_by_label("Name of the new project").fill("orders-restored")
    page.get_by_role("button", name="Restore into new project").click()
    page.wait_for_url(re.compile(r"/projects/[0-9a-f-]{36}/$"))
    expect(page.locator("h1")).to_have_text("orders-restored")
    expect(page.locator(".project-head .badge").first).to_have_text("Running", timeout=MINUTES)
    assert rows_of(copied_uri(page)) == 500
    assert rows_of(uri) == 500, "the source was left alone"

    with psycopg.connect(uri, autocommit=True) as connection:
        connection.execute("insert into notes select n, 'later' from generate_series(501, 600) n")
    in_place_and_back(page, project, uri)


def downloaded(page: Page, row: Locator) -> None:
    """As stored it is age's, decrypted the engine's own archive."""
    row.get_by_role("link", name=re.compile("Download")).click()
    dialog = page.locator("#modal")
    check_accessibility(page)
    for link, begins in (("As stored", b"age-encryption.org/v1"), ("Decrypted", b"PGDMP")):
        with page.expect_download(timeout=MINUTES) as found:
            dialog.get_by_role("link", name=link).click()
        assert found.value.path().read_bytes().startswith(begins), link
    page.keyboard.press("Escape")


def in_place_and_back(page: Page, project: str, uri: str) -> None:
    """Rows that were written after the backup are gone with it, and come back with Undo."""
    page.goto(f"{project}backups/")
    row = page.locator("#backup-list tbody tr", has_text="before-the-change")
    row.get_by_role("link", name=re.compile("Restore")).click()
    page.locator(".choice", has_text="In place").click()
    button = page.get_by_role("button", name="Restore in place")
    expect(button).to_be_disabled(timeout=SLOW)
    check_accessibility(page)
    page.get_by_label("Type orders-backup").fill("orders-backup")
    button.click()
    page.wait_for_url(re.compile("/restores/"))
    expect(page.get_by_text("orders-backup is restored")).to_be_visible(timeout=MINUTES)
    assert rows_of(uri) == 500
    page.goto(project)
    banner = page.locator(".alert", has_text="was restored")
    expect(banner).to_be_visible()
    banner.get_by_role("link", name="Undo restore").click()
    page.locator("#modal").get_by_role("button", name="Undo restore").click()
    page.wait_for_url(re.compile("/restores/"))
    expect(page.get_by_text("The database from before is live again")).to_be_visible(timeout=MINUTES)
    assert rows_of(uri) == 600
    page.goto(project)
    is_running(page)
    expect(page.get_by_text("was restored")).to_have_count(0)


def test_a_schedule_says_when_it_runs_while_somebody_types(operator: Page, install: Install) -> None:
    page = operator
    create(page, install, "schedule-backup")
    is_running(page)
    page.goto(f"{page.url}backups/")
    page.get_by_label("More actions for this schedule").click()  # the daily one that a new project has
    page.get_by_role("button", name="Remove schedule").click()
    expect(page.get_by_text("No schedule yet")).to_be_visible()
    page.get_by_role("link", name="Add schedule").click()
    words = page.locator("#words-new")
    expect(words).to_contain_text("02:00")
    page.get_by_role("button", name="Every 4 h").click()
    expect(page.get_by_label("Cron expression")).to_have_value("0 */4 * * *")
    expect(words).not_to_contain_text("02:00")
    expect(page.locator("#runs-new li")).to_have_count(5)
    page.get_by_label("Cron expression").fill("61 * * * *")
    expect(words).to_contain_text("Use five fields")
    page.get_by_label("Cron expression").fill("30 3 * * *")
    expect(words).to_contain_text("03:30")
    check_accessibility(page)
    page.get_by_role("button", name="Add schedule").click()
    expect(page.get_by_text("is backed up on this schedule")).to_be_visible()
    expect(page.locator("#backup-figures")).to_contain_text("in ")
    # With a storage there is a daily one already, since the project was made.
    mine = page.locator("section.card").filter(has=page.locator('input[name="cron"][value="30 3 * * *"]'))
    mine.get_by_role("button", name="Pause").click()
    expect(mine.get_by_text("Paused", exact=True)).to_be_visible()
    mine.get_by_role("button", name="Resume").click()
    expect(page.get_by_text("It goes on.")).to_be_visible()
    check_accessibility(page)
    retention_is_tried_first(page)


def retention_is_tried_first(page: Page) -> None:
    """Rules are tried before they are saved; what is removed is what was shown."""
    page.get_by_role("link", name="Change…").click()
    page.locator("#modal").get_by_text("Verify every backup").click()  # not what this is about
    page.locator("#modal").get_by_role("button", name="Save").click()
    expect(page.get_by_text("Not after backups")).to_be_visible()
    rows = page.locator("#backup-list tbody tr")
    for count in (1, 2):
        page.get_by_label("More actions for this schedule").click()
        page.get_by_role("button", name="Back up now").click()
        expect(rows).to_have_count(count)
        expect(rows.locator(".badge", has_text="Stored")).to_have_count(count, timeout=MINUTES)
    dialog = page.locator("#modal")
    page.get_by_role("button", name="What these rules would remove").click()
    expect(dialog).to_contain_text("Nothing would be removed; 2 backups stay")
    check_accessibility(page)
    page.keyboard.press("Escape")
    page.get_by_text("Keep rules of your own").click()
    page.get_by_label("Keep", exact=True).select_option("own")
    for name in ("Latest", "Daily", "Weekly", "Monthly"):
        page.get_by_label(name, exact=True).fill("1" if name == "Latest" else "")
    page.get_by_role("button", name="What these rules would remove").click()
    expect(dialog).to_contain_text("1 backup would be removed")
    expect(dialog).to_contain_text("not saved yet")
    expect(dialog.get_by_role("button", name=re.compile("Remove"))).to_have_count(0)
    check_accessibility(page)
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Save changes").click()
    expect(page.locator(".toast", has_text="Saved")).to_be_visible()
    page.get_by_role("button", name="What these rules would remove").click()
    dialog.get_by_role("button", name="Remove 1 now").click()
    expect(page.get_by_text("1 backup will be removed from storage.")).to_be_visible()
    expect(rows).to_have_count(1, timeout=MINUTES)
