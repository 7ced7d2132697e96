"""The page on a phone."""

from actions import PHONE, PROMPT, field, generate, measured, open_settings, picture, press, ready
from playwright.sync_api import expect

# Targets smaller than 44 px, but for those in a label, a text or a menu of the browser.
SMALL = """() => [...document.querySelectorAll('button, a[href], [role=slider]')]
    .filter(item => item.checkVisibility() && item.getBoundingClientRect().height > 0)
    .filter(item => item.getBoundingClientRect().height < 44)
    .map(item => item.outerHTML.slice(0, 150))"""


def fits(page):
    return page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


def test_the_page_fits_a_phone_in_light_and_dark_and_its_targets_a_thumb(url, visit):
    page = visit(url, viewport=PHONE, has_touch=True, color_scheme="light")
    page.get_by_label("Prompt").fill(PROMPT)
    open_settings(page)
    field(page, "seed").fill("80")
    open_settings(page)
    generate(page, duration=4)
    expect(page.locator("#result")).to_be_in_viewport()
    assert fits(page)
    picture(page, "page-phone-light")
    page.emulate_media(color_scheme="dark")
    visit.reload(page)
    measured(page, 1)
    assert fits(page)
    picture(page, "page-phone")
    press(page, "Vary")
    ready(page, 2)
    assert page.evaluate(SMALL) == []
