"""The page has no barrier that axe-core finds, except those in gradio's own components."""

import pytest
from actions import (
    DESKTOP,
    PHONE,
    PROMPT,
    field,
    generate,
    measured,
    open_settings,
    press,
    ready,
)
from playwright.sync_api import expect

# Rule -> selectors of gradio's own elements that break it.
GRADIO = {
    # Their accessible names leave out their texts: "Drop Audio Here - or - Click to Upload", "1x".
    "label-content-name-mismatch": (".upload-container", ".playback"),
}
FOUND = """(gradio) => axe.run({runOnly: %s}).then(result => result.violations.flatMap(
    ({id, nodes}) => nodes.filter(({target}) => !(gradio[id] ?? []).some(
        selector => document.querySelector(target[0])?.closest(selector)))
    .map(node => `${id}: ${node.html.slice(0, 120)} ${node.any[0]?.message ?? ''}`)))"""
RULES = "['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice']"
# Colours are measured after their transitions, but some animations never end.
ENDED = """() => Promise.allSettled(document.getAnimations()
    .filter(one => one.effect.getComputedTiming().endTime !== Infinity).map(one => one.finished))"""


@pytest.fixture(scope="module")
def page(url, visit_once):
    return visit_once(url, viewport=DESKTOP, color_scheme="light")


def found(page, axe):
    page.evaluate(ENDED)
    page.evaluate(axe)
    return page.evaluate(FOUND % RULES, GRADIO)


def two_takes(page):
    """Make two takes, with the settings open."""
    open_settings(page)
    page.get_by_label("Prompt").fill(PROMPT)
    field(page, "seed").fill("80")
    generate(page, duration=2)
    press(page, "Vary")
    ready(page, 2)


def show_error(page):
    field(page, "duration").fill("0")
    press(page, "Generate")
    expect(page.locator(".field-error")).to_be_visible()


def test_every_control_has_a_name_and_can_be_reached_by_keyboard(page):
    open_settings(page)
    named = """() => [...document.querySelectorAll('input, textarea, button, select')].filter(
        item => item.offsetParent && !(item.labels?.length || item.ariaLabel ||
            item.textContent.trim() || item.title || item.getAttribute('aria-labelledby'))
    ).map(item => item.outerHTML)"""
    assert page.evaluate(named) == []
    page.get_by_label("Prompt").focus()
    unreached = {"field-input_audio", "field-duration", "field-seed", "generate"}
    for _ in range(80):
        page.keyboard.press("Tab")
        unreached -= {
            page.evaluate("document.activeElement.closest('[id^=field-], #generate')?.id")
        }
        if not unreached:
            break
    assert not unreached
    open_settings(page)  # close the settings again


def test_axe_finds_no_barrier(page, visit_once, axe):
    """In light colours on a desktop, then in dark colours on a phone."""
    assert found(page, axe) == []
    two_takes(page)
    show_error(page)
    assert found(page, axe) == []
    page.emulate_media(color_scheme="dark")
    page.set_viewport_size(PHONE)
    visit_once.reload(page)
    measured(page, 2)
    open_settings(page)
    show_error(page)
    assert found(page, axe) == []


@pytest.mark.full
@pytest.mark.parametrize(("colours", "size"), [("light", PHONE), ("dark", DESKTOP)])
def test_axe_finds_no_barrier_in_other_colours(url, visit, axe, colours, size):
    page = visit(url, viewport=size, color_scheme=colours)
    assert found(page, axe) == []
    two_takes(page)
    show_error(page)
    assert found(page, axe) == []
