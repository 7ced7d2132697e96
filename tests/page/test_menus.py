"""The menus for tempo, key and bars."""

from actions import field
from playwright.sync_api import expect


def choose(page, label, option):
    page.get_by_label(label, exact=True).click()
    page.get_by_role("option", name=option, exact=True).click()


def test_tempo_key_and_bars_are_written_into_the_prompt_and_the_length(url, visit):
    page = visit(url)
    prompt = page.get_by_label("Prompt")
    prompt.fill("deep house")
    expect(page.locator("#in-bars")).to_contain_text("Choose a tempo")
    choose(page, "Key", "A minor")
    expect(prompt).to_have_value("deep house, A minor")
    choose(page, "Tempo (bpm)", "124")
    expect(prompt).to_have_value("deep house, A minor, 124 bpm")
    choose(page, "Length in bars", "4 bars")
    expect(field(page, "duration")).to_have_value("9")
    expect(page.locator("#in-bars")).to_have_text("9 s are 4.7 bars at 124 bpm.")
    prompt.fill("slow, F# major, 70 bpm")
    expect(page.get_by_label("Key", exact=True)).to_have_value("F# major")
    expect(page.get_by_label("Tempo (bpm)", exact=True)).to_have_value("70")
