"""Predictions that run and wait. All tests use one page; only the first needs it without takes."""

import re

from actions import field, generate, press, radios
from playwright.sync_api import expect


def test_four_variations_are_generated_together_with_seeds_that_follow(page):
    field(page, "seed").fill("80")
    field(page, "duration").fill("2")
    press(page, "4 variations")
    expect(page.get_by_role("progressbar")).to_have_count(4)
    expect(radios(page)).to_have_count(4)
    texts = " ".join(page.locator("#takes label").all_inner_texts())
    assert set(re.findall(r"seed (\d+)", texts)) == {"80", "81", "82", "83"}


def test_more_can_be_asked_for_while_one_is_generated_and_all_be_cancelled(page):
    field(page, "duration").fill("200")
    for count in range(1, 7):
        press(page, "Generate")
        expect(page.locator("#progress .job")).to_have_count(count)
    expect(page.locator("#progress").get_by_text("Waiting.")).to_have_count(2)
    press(page, "Cancel all (6)")
    expect(page.locator("#progress .job")).to_have_count(0)
    expect(page.locator("#status")).to_have_text("Cancelled.")
    field(page, "duration").fill("2")
    generate(page)


def test_progress_is_shown_and_cancel_ends_the_work(page, server):
    field(page, "duration").fill("300")
    press(page, "Generate")
    expect(page.get_by_role("progressbar", name="Progress")).to_be_visible()
    expect(page.locator("#progress")).to_contain_text(re.compile(r"\d:\d\d of 5:00 made · .* left"))
    expect(page.locator("#said[aria-live=polite]")).to_have_text("0:00 of 5:00 made")
    press(page, "Cancel")
    expect(page.locator("#status")).to_contain_text("Cancelled")
    expect(page.get_by_role("button", name="Generate")).to_be_focused()
    # Only 300 s take so many steps.
    long = r'decode:[^"]*/15\d{3} [^}]*"prediction_id":"(\w+)"'
    [cancelled] = set(re.findall(long, server.log.read_text()))
    steps = server.log.read_text().count(cancelled)
    generate(page, duration=8)
    assert server.log.read_text().count(cancelled) == steps  # it logs its steps each second
