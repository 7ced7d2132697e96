"""The page has no barrier that axe-core finds, except those in gradio's own components."""

import pytest
from actions import DESKTOP, PHONE, PROMPT, generate, open_settings, press, ready
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
# Targets smaller than 44 px, but for those in a label, a text or a menu of the browser.
SMALL = """() => [...document.querySelectorAll('button, a[href], [role=slider]')]
    .filter(item => item.checkVisibility() && item.getBoundingClientRect().height > 0)
    .filter(item => item.getBoundingClientRect().height < 44)
    .map(item => item.outerHTML.slice(0, 150))"""


def found(page, axe):
    page.evaluate(ENDED)
    page.evaluate(axe)
    return page.evaluate(FOUND % RULES, GRADIO)


@pytest.mark.parametrize(
    ("colours", "size"),
    [
        pytest.param("light", DESKTOP, id="light-desktop"),
        pytest.param("dark", PHONE, id="dark-phone"),
        pytest.param("light", PHONE, id="light-phone", marks=pytest.mark.full),
        pytest.param("dark", DESKTOP, id="dark-desktop", marks=pytest.mark.full),
    ],
)
def test_axe_finds_no_barrier(url, visit, axe, colours, size):
    page = visit(url, viewport=size, color_scheme=colours)
    assert found(page, axe) == []
    open_settings(page)
    page.get_by_label("Prompt").fill(PROMPT)
    generate(page, duration=4, seed=80)
    press(page, "Vary")
    ready(page, 2)
    page.locator("#field-duration input").fill("0")
    press(page, "Generate")
    expect(page.locator(".field-error")).to_be_visible()
    assert found(page, axe) == []


def test_targets_on_a_phone_are_44_pixels_high(url, visit):
    page = visit(url, viewport=PHONE, has_touch=True)
    page.get_by_label("Prompt").fill(PROMPT)
    generate(page, duration=4)
    press(page, "Vary")
    ready(page, 2)
    assert page.evaluate(SMALL) == []
