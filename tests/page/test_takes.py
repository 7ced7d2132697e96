"""Takes: kept over a reload and over a restart, renamed, starred, deleted, saved under names."""

import re

import pytest
from actions import PROMPT, downloads, field, generate, measured, open_settings, press, radios
from cog_server import cog_server
from playwright.sync_api import expect

from musicgen.checkpoints.folders import DEFAULT


@pytest.fixture
def server_with_key(tmp_path_factory):
    """A server that can upload for callers with its key."""
    upload = {"UPLOAD_BUCKET": "songs", "UPLOAD_KEY": "secret"}
    with cog_server(tmp_path_factory.mktemp("uploads"), DEFAULT, **upload) as server:
        yield server


def in_list(page, text):
    return radios(page, name=re.compile(text))


@pytest.fixture(scope="module")
def page(url, visit_once):
    return visit_once(url)


def test_takes_survive_a_reload_and_are_renamed_starred_and_deleted(page, visit_once):
    page.get_by_label("Prompt").fill(PROMPT)
    generate(page, duration=2)
    first = downloads(page)
    page.get_by_label("Name of this take").fill("rainy street")
    page.get_by_label("Name of this take").press("Enter")
    expect(in_list(page, "1 · rainy street")).to_be_visible()
    press(page, "☆ Star")
    expect(in_list(page, "★ 1 · rainy street")).to_be_visible()
    visit_once.reload(page)
    measured(page, 1)
    expect(in_list(page, "★ 1 · rainy street")).to_be_checked()
    assert downloads(page) == first
    press(page, "Delete")
    expect(page.locator("#status")).to_have_text("Take 1 is deleted.")
    expect(page.get_by_text("Results appear here")).to_be_visible()
    press(page, "Undo")
    expect(in_list(page, "★ 1 · rainy street")).to_be_checked()
    assert downloads(page) == first


def test_what_is_being_generated_survives_a_reload(page, visit_once):
    field(page, "duration").fill("30")
    press(page, "Generate")
    expect(page.get_by_role("progressbar")).to_be_visible()
    visit_once.reload(page)
    expect(page.get_by_role("progressbar")).to_be_visible()
    press(page, "Cancel")
    expect(page.locator("#status")).to_have_text("Cancelled.")


def test_a_link_with_wrong_values_and_files_fills_in_the_rest(url, visit):
    page = visit(url, "/?duration=999&seed=x&input_audio=/etc/passwd&key=k&nothing=1&prompt=soul")
    expect(page.get_by_label("Prompt")).to_have_value("soul")
    expect(field(page, "duration")).to_have_value("8")
    expect(page.locator("#seed-chip")).to_have_count(0)


def test_kept_takes_survive_a_restart_of_the_page_and_hold_no_key(
    play, server_with_key, visit, tmp_path
):
    arguments = "--server", server_with_key.url, "--keep", str(tmp_path)
    with play(*arguments) as url:
        page = visit(url)
        page.get_by_label("Prompt").fill(PROMPT)
        open_settings(page)
        key = field(page, "key")
        assert key.get_attribute("type") == "password"
        key.fill("open sesame")
        generate(page, duration=2, seed=80)
        page.get_by_text("All settings of this take").click()
        assert "open sesame" not in page.content()
        page.close()
    saved = "take-1 lofi-chill-C-minor-80bpm seed-80.wav"
    assert {path.name for path in tmp_path.iterdir()} == {"take-1.json", saved}
    assert "open sesame" not in (tmp_path / "take-1.json").read_text()
    with play(*arguments) as url:
        later = visit(url)
        measured(later, 1)
        assert downloads(later) == [(tmp_path / saved).read_bytes()]
        later.close()
