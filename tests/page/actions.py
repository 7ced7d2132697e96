"""What a visitor does with the page, for the tests."""

import os
from pathlib import Path

from playwright.sync_api import expect

PROMPT = "lofi chill, warm piano, C minor, 80 bpm"
PHONE = {"width": 390, "height": 844}
DESKTOP = {"width": 1280, "height": 900}


def field(page, name):
    """The input element of a number."""
    return page.locator(f"#field-{name}").locator("input, textarea")


def press(page, name):
    page.get_by_role("button", name=name, exact=True).click()


def generate(page, **numbers):
    """Press the button and wait for the next take."""
    for name, value in numbers.items():
        field(page, name).fill(str(value))
    made = radios(page).count()
    press(page, "Generate")
    return ready(page, made + 1)


def radios(page, **options):
    """The takes in the list, all or those with these options of playwright, such as `name`."""
    return page.locator("#takes").get_by_role("radio", **options)


def ready(page, take):
    """Wait until a take is ready, shown and measured."""
    expect(page.locator("#status .ready")).to_contain_text(f"Take {take} is ready")
    measured(page, take)


def measured(page, take):
    expect(
        page.locator("#measured").get_by_role("heading", name=f"Take {take}").first
    ).to_be_visible()
    expect(page.locator("#loops-heading")).to_be_visible()


def open_settings(page):
    page.get_by_text("More settings").click()


def downloads(page, kind="wav"):
    """The bytes behind the download links of the result's players."""
    links = page.locator("#players a[download]").filter(has_text=kind)
    expect(links.first).to_be_visible()
    addresses = [links.nth(index).evaluate("link => link.href") for index in range(links.count())]
    return [page.context.request.get(address).body() for address in addresses]


def error(page, name):
    return page.locator(f"#error-{name}").get_by_role("alert")


def picture(page, name):
    """Save a screenshot if the environment variable SCREENSHOTS names a folder."""
    if folder := os.environ.get("SCREENSHOTS"):
        page.wait_for_timeout(1500)  # until animations have ended and waveforms are drawn
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)
