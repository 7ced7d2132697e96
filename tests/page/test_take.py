"""What the page shows and offers of one take. All tests use one page.

The first ones look at its take and leave it as it is. The last ones make more takes from it.
"""

import io
import re

import pytest
import soundfile
from actions import (
    PROMPT,
    downloads,
    field,
    generate,
    measured,
    open_settings,
    press,
    radios,
    ready,
)
from cog_client import content
from playwright.sync_api import expect

SEED, SECONDS = 80, 4


@pytest.fixture(scope="module")
def page(url, visit_once):
    page = visit_once(url)
    page.get_by_label("Prompt").fill(PROMPT)
    open_settings(page)
    generate(page, duration=SECONDS, seed=SEED)
    return page


def show_the_first(page):
    page.get_by_role("radio", name=re.compile("1 · lofi")).check()
    expect(page.locator("#players")).to_contain_text("Take 1")


def test_a_prompt_becomes_audio_of_the_requested_duration(page):
    [audio] = downloads(page)
    wav, rate = soundfile.read(io.BytesIO(audio))
    assert wav.shape == (SECONDS * rate, 2)
    assert wav.std() > 0.01
    expect(page.locator("#result").get_by_label("Play", exact=True)).to_be_visible()


def test_it_is_measured_and_compared_with_its_prompt(page):
    measured = page.locator("#measured")
    expect(measured).to_contain_text("−14.0 LUFS")
    expect(measured).to_contain_text("prompt: 80 bpm")
    expect(measured).to_contain_text("prompt: C minor")
    expect(measured).to_contain_text(re.compile(r"Real-time factor\s*\d+\.\d×"))
    expect(
        measured.get_by_role("img", name=re.compile("Mel spectrogram over 4.0 s"))
    ).to_be_visible()
    expect(measured.get_by_role("img", name=re.compile("Chromagram over 4.0 s"))).to_be_visible()


def test_downloads_have_names_and_are_wav_and_mp3(page):
    for kind in ("wav", "mp3"):
        with page.expect_download() as begun:
            page.locator("#players").get_by_role("link", name=kind, exact=True).click()
        name = f"take-1 lofi-chill-C-minor-80bpm seed-{SEED}.{kind}"
        assert begun.value.suggested_filename == name
        found = soundfile.info(io.BytesIO(begun.value.path().read_bytes()))
        assert (found.format.lower(), found.samplerate) == (kind, 32000)
        assert found.duration == pytest.approx(SECONDS, abs=0.1)


def test_the_mp3_is_the_one_that_the_server_makes(page, server):
    answer = server.predict(prompt=PROMPT, duration=SECONDS, seed=SEED, output_format="mp3")
    assert downloads(page, "mp3") == [content(answer["output"]["audio"])[1]]


def test_a_link_fills_the_form(page, url, visit):
    link = page.get_by_role("link", name="link", exact=True)
    other = visit(url, "/" + link.get_attribute("href"))
    expect(other.get_by_label("Prompt")).to_have_value(PROMPT)
    expect(field(other, "duration")).to_have_value(str(SECONDS))
    expect(other.locator("#seed-chip")).to_contain_text(f"Seed {SEED} is kept")
    press(other, "Generate")
    ready(other, 1)
    assert downloads(other) == downloads(page)


def test_a_second_tab_shows_the_same_takes(page, url):
    other = page.context.new_page()
    other.goto(url)
    measured(other, 1)
    assert downloads(other) == downloads(page)
    other.close()


def test_the_player_repeats(page):
    repeat, players = page.get_by_label("Repeat"), page.locator("#players")
    repeat.check()
    players.get_by_label("Play", exact=True).click()
    page.wait_for_timeout(1000 * (SECONDS + 1))  # longer than the clip
    pause = players.get_by_label("Pause", exact=True)
    expect(pause).to_be_visible()
    pause.click()
    repeat.uncheck()


def test_what_the_server_cannot_do_is_not_offered(page):
    for name in ("song_id", "key", "multi_band_diffusion"):
        expect(page.locator(f"#field-{name}")).to_have_count(0)


def test_takes_are_listed_and_two_can_be_compared_at_one_position(page):
    show_the_first(page)
    made = radios(page).count()
    press(page, "Vary")
    ready(page, made + 1)
    compare = page.locator("#compare")
    compare.get_by_role("button", name="Play").click()
    heard = """() => [...document.querySelectorAll('.ab audio')].map(
        sound => ({at: sound.currentTime, heard: !sound.muted && !sound.paused}))"""
    page.wait_for_function(f"({heard})()[0].at > 0.5")
    compare.get_by_role("button", name="B: Take 1").click()
    a, b = page.evaluate(heard)
    assert (a["heard"], b["heard"]) == (False, True)
    assert b["at"] > 0.5
    assert abs(a["at"] - b["at"]) < 0.1
    page.get_by_role("radio", name=re.compile("1 · lofi")).check()
    expect(page.get_by_role("heading", name="Take 1")).to_be_visible()
    expect(page.get_by_role("heading", name=f"Take {made + 1}")).to_have_count(0)


def test_a_take_is_reproduced_by_its_seed(page):
    show_the_first(page)
    first = downloads(page)
    press(page, "Reuse settings and seed")
    expect(page.locator("#status")).to_contain_text("the settings and the seed of Take 1")
    expect(page.locator("#field-prompt textarea")).to_be_focused()
    generate(page)
    assert downloads(page) == first
    page.locator("#seed-chip").click()
    expect(page.locator("#seed-chip")).to_have_count(0)
    generate(page)
    assert downloads(page) != first


def test_control_enter_generates_and_keeps_the_focus(page):
    field(page, "duration").fill("2")
    prompt = page.get_by_label("Prompt")
    prompt.fill(PROMPT)
    made = radios(page).count()
    prompt.press("Control+Enter")
    ready(page, made + 1)
    expect(prompt).to_be_focused()
    expect(prompt).to_have_value(PROMPT)


def test_a_result_can_be_continued(page):
    show_the_first(page)
    press(page, "Continue")
    expect(page.locator("#status")).to_contain_text("The form continues Take 1")
    expect(page.locator("#use")).to_contain_text("starts with seconds 0 to 4.0 of 4.0")
    expect(field(page, "duration")).to_have_value("8")
    generate(page)
    [audio] = downloads(page)
    assert soundfile.info(io.BytesIO(audio)).duration == 8
