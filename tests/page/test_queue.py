"""Several predictions at once, and the keyboard."""

import re

from actions import PROMPT, field, generate, press, ready
from playwright.sync_api import expect


def radios(page):
    return page.locator("#takes").get_by_role("radio")


def test_four_variations_are_generated_together_with_seeds_that_follow(url, visit):
    page = visit(url, "/?seed=80&duration=2")
    press(page, "4 variations")
    expect(page.get_by_role("progressbar")).to_have_count(4)
    expect(radios(page)).to_have_count(4)
    texts = " ".join(page.locator("#takes label").all_inner_texts())
    assert set(re.findall(r"seed (\d+)", texts)) == {"80", "81", "82", "83"}


def test_more_can_be_asked_for_while_one_is_generated_and_all_be_cancelled(url, visit):
    page = visit(url)
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


def test_control_enter_generates_and_keeps_the_focus(url, visit):
    page = visit(url)
    field(page, "duration").fill("2")
    prompt = page.get_by_label("Prompt")
    prompt.fill(PROMPT)
    prompt.press("Control+Enter")
    ready(page)
    expect(prompt).to_be_focused()
    expect(prompt).to_have_value(PROMPT)
