"""The page in a real browser, with real servers of the demo model."""

import io
import re

import pytest
import soundfile
import sounds
from actions import (
    DESKTOP,
    PROMPT,
    downloads,
    error,
    field,
    generate,
    open_settings,
    picture,
    press,
    ready,
)
from playwright.sync_api import expect


@pytest.fixture
def four_clips(play):
    """The address of a page that started its own server, for the songstarter predictor."""
    with play("--predictor", "songstarter") as url:
        yield url


@pytest.fixture(scope="module")
def page(url, visit_once, tmp_path_factory):
    """A page with 3 s of uploaded audio."""
    tune = tmp_path_factory.mktemp("tune") / "tune.m4a"
    page = visit_once(url)
    upload = page.locator("#field-input_audio input[type=file]")
    upload.set_input_files(sounds.write(tune, sounds.melody(3.0, 48000)))
    return page


def test_a_melody_is_uploaded_cut_and_followed(page):
    use = page.locator("#use")
    expect(use).to_contain_text("Melody: seconds 0 to 3.0 of 3.0")
    field(page, "continuation_start").fill("1")
    expect(use.get_by_role("img", name=re.compile(r"used: 1 to 3\.0 s"))).to_be_visible()
    field(page, "continuation_start").fill("0")
    page.get_by_label("Prompt").fill("flute, piano")
    generate(page, duration=3)
    cosine = page.get_by_text(re.compile(r"and the result, cosine similarity \d\.\d\d"))
    expect(cosine).to_be_visible()


def test_wrong_numbers_are_shown_at_their_fields_until_they_are_edited(url, visit):
    page = visit(url)
    open_settings(page)
    field(page, "duration").fill("")
    field(page, "seed").fill("abc")
    press(page, "Generate")
    said = "Length: enter a whole number, 1 to 300 seconds; it is empty."
    expect(error(page, "duration")).to_have_text(said)
    said = "Seed: enter a whole number, 0 to 4294967295; not abc."
    expect(error(page, "seed")).to_have_text(said)
    field(page, "seed").fill("")
    field(page, "duration").fill("0")
    field(page, "top_k").fill("-1")
    open_settings(page)  # close the settings again
    press(page, "Generate")
    expect(page.locator("#status")).to_contain_text("see the highlighted field")
    said = "Length: enter a whole number, 1 to 300 seconds; not 0."
    expect(error(page, "duration")).to_have_text(said)
    said = "Sound choices: enter a whole number, 0 or more; not -1."
    expect(error(page, "top_k")).to_have_text(said)
    expect(field(page, "duration")).to_be_focused()
    field(page, "duration").fill("2")
    expect(error(page, "duration")).to_have_count(0)
    expect(error(page, "top_k")).to_be_visible()
    field(page, "top_k").fill("250")
    expect(page.locator(".field-error")).to_have_count(0)
    generate(page)


def test_audio_is_continued(page):
    page.get_by_label("Continue this audio").check()
    field(page, "continuation_end").fill("2")
    field(page, "duration").fill("5")
    said = "Continuation: starts with seconds 0 to 2.0 of 3.0, then 3.0 s are new"
    expect(page.locator("#use")).to_contain_text(said)
    generate(page)
    [audio] = downloads(page)
    assert soundfile.info(io.BytesIO(audio)).duration == 5


def test_the_models_errors_are_shown_at_their_fields(page):
    page.get_by_label("Continue this audio").uncheck()
    field(page, "continuation_end").fill("")
    field(page, "continuation_start").fill("9")
    press(page, "Generate")
    expect(error(page, "continuation_start")).to_contain_text("starts past the end of input_audio")


@pytest.fixture(scope="module")
def form(url, visit_once):
    """A page that generates nothing."""
    return visit_once(url)


def choose(form, label, option):
    form.get_by_label(label, exact=True).click()
    form.get_by_role("option", name=option, exact=True).click()


def test_tempo_key_and_bars_are_written_into_the_prompt_and_the_length(form):
    prompt = form.get_by_label("Prompt")
    prompt.fill("deep house")
    expect(form.locator("#in-bars")).to_contain_text("Choose a tempo")
    choose(form, "Key", "A minor")
    expect(prompt).to_have_value("deep house, A minor")
    choose(form, "Tempo (bpm)", "124")
    expect(prompt).to_have_value("deep house, A minor, 124 bpm")
    choose(form, "Length in bars", "4 bars")
    expect(field(form, "duration")).to_have_value("9")
    expect(form.locator("#in-bars")).to_have_text("9 s are 4.7 bars at 124 bpm.")
    prompt.fill("slow, F# major, 70 bpm")
    expect(form.get_by_label("Key", exact=True)).to_have_value("F# major")
    expect(form.get_by_label("Tempo (bpm)", exact=True)).to_have_value("70")


def test_the_microphone_is_recorded(form):
    form.get_by_label("Record audio").click()
    press(form, "Record")
    form.wait_for_timeout(1500)
    press(form, "Stop")
    expect(form.locator("#use")).to_contain_text("Melody: seconds")


def test_examples_fill_in_a_prompt_and_a_hummed_melody(form):
    form.get_by_text("a hummed melody").click()
    expect(form.get_by_label("Prompt")).to_have_value(re.compile("flute"))
    expect(form.locator("#use")).to_contain_text("seconds 0 to 4.0 of 4.0")


def test_an_error_of_a_file_has_the_files_own_name(url, visit, tmp_path):
    page = visit(url)
    (tmp_path / "not.mp3").write_text("no audio")
    page.locator("#field-input_audio input[type=file]").set_input_files(tmp_path / "not.mp3")
    expect(page.locator("#use")).to_contain_text("not.mp3: cannot be read as audio")
    press(page, "Generate")
    expect(error(page, "input_audio")).to_contain_text(
        "Melody or beginning: not.mp3 cannot be read as audio"
    )
    # The browser's player says it, too, as soon as it has tried.
    visit.noticed[:] = [line for line in visit.noticed if "Waveform load error" not in line]


def test_songstarter_shows_its_four_clips_side_by_side(four_clips, visit):
    page = visit(four_clips, viewport={"width": 1600, "height": 1000})
    expect(page.locator("#field-song_id, #field-key")).to_have_count(0)
    page.get_by_label("Prompt").fill(PROMPT)
    open_settings(page)
    generate(page, duration=4, seed=7)
    clips = downloads(page)
    assert len(set(clips)) == 4
    assert {soundfile.info(io.BytesIO(clip)).duration for clip in clips} == {4}
    tops = {round(box.bounding_box()["y"]) for box in page.locator("#measured section").all()}
    assert len(tops) == 1
    expect(page.locator("#measured section").last).to_contain_text("10")  # its seed
    picture(page, "page-four-clips")


@pytest.mark.full  # it makes the screenshot of the README
def test_the_page_as_the_readme_shows_it(url, visit):
    page = visit(url, viewport=DESKTOP)
    page.get_by_text("a hummed melody").click()
    expect(page.locator("#use")).to_contain_text("Melody: seconds")
    open_settings(page)
    field(page, "seed").fill("80")
    open_settings(page)
    generate(page, duration=8)
    press(page, "Vary")
    ready(page, 2)
    expect(page.locator("#compare .ab")).to_be_visible()
    picture(page, "page")
