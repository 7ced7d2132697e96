"""The page shows the tags of a file and fills in the form to make it again."""

import pytest
from cog_client import content
from playwright.sync_api import expect


@pytest.fixture
def page(visit, url):
    return visit(url)


def choose(page, file):
    page.get_by_text("Make a file again").click()
    page.locator("#again input[type=file]").set_input_files(file)


def field(page, name):
    return page.locator(f"#field-{name}").locator("input, textarea").first


def test_a_file_shows_its_tags_and_fills_in_the_form(page, server, tmp_path):
    made = server.predict(prompt="lofi", duration=2, seed=11, top_k=50)["output"]["audio"]
    (tmp_path / "take.mp3").write_bytes(content(made)[1])
    page.get_by_text("More settings").click()
    for name, value in {"prompt": "my own", "duration": 5, "seed": 3, "top_p": 0.5}.items():
        field(page, name).fill(str(value))
    choose(page, tmp_path / "take.mp3")
    tags = page.locator("#provenance")
    expect(tags).to_contain_text("trainedAlgorithmicMedia")
    expect(tags).to_contain_text("It was made with a further input: prompt.")
    page.get_by_role("button", name="Again", exact=True).click()
    for name, value in {"duration": "2", "seed": "11", "top_k": "50", "top_p": "0"}.items():
        expect(field(page, name)).to_have_value(value)
    expect(field(page, "prompt")).to_have_value("my own")


def test_a_file_without_tags_offers_nothing(page, tune):
    choose(page, tune)
    expect(page.locator("#provenance")).to_contain_text("This file has no tags of this server")
    expect(page.get_by_role("button", name="Again", exact=True)).to_have_count(0)
