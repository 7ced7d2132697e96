"""A take is heard while it is made, to the last bit; then its levelled file takes over."""

import hashlib
import io
from urllib.parse import urlencode

import pytest
import soundfile
from actions import downloads, field, generate, measured, press, ready
from cog_server import cog_server
from playwright.sync_api import expect

from musicgen.checkpoints.folders import DEFAULT
from musicgen.commands import client

SEED, SECONDS = 80, 12
INPUTS = {"prompt": "lofi chill, warm piano, C minor, 80 bpm", "seed": SEED, "duration": SECONDS}
# The bytes of all samples that the browser got, in hexadecimal digits.
HEARD = """() => preview.parts.flatMap(part => Array.from(new Uint8Array(part.buffer)))
  .map(byte => byte.toString(16).padStart(2, "0")).join("")"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server of the demo model that streams."""
    with cog_server(tmp_path_factory.mktemp("streaming"), DEFAULT, "streaming") as server:
        yield server


@pytest.fixture(scope="module")
def url(play, server):
    """The address of a page for a server that streams."""
    with play("--server", server.url) as url:
        yield url


@pytest.fixture
def asked(url, visit):
    """The page, a moment after a take was asked for."""
    page = visit(url, f"/?{urlencode(INPUTS)}")
    press(page, "Generate")
    return page


def bar(page):
    return page.get_by_role("group", name="The take so far")


def test_it_plays_before_the_take_is_ready_and_the_file_takes_over(asked, server):
    page = asked
    page.wait_for_function("preview?.position > 0")
    assert not page.locator("#status .ready").count(), "the take was ready before"
    expect(bar(page)).to_contain_text("Preview; levelled at the end")
    page.wait_for_function("preview.complete")
    heard = bytes.fromhex(page.evaluate(HEARD))
    page.wait_for_function("preview.levelled")
    position = page.evaluate("preview.position")
    assert 0 < position <= SECONDS, "it began anew"
    plain = {**INPUTS, "normalization_strategy": "clip", "output_format": "wav"}
    content, _ = client.fetch(client.Client(server.url).predict(plain).audio[0])
    samples, _ = soundfile.read(io.BytesIO(content), dtype="int16")
    assert hashlib.sha256(heard).digest() == hashlib.sha256(samples.tobytes()).digest()
    ready(page, 1)
    page.evaluate("preview.sources[0].playbackRate.value = 10")
    expect(bar(page)).to_be_hidden()  # at the end


def test_it_can_be_paused_and_ends_when_its_prediction_is_cancelled(url, visit):
    page = visit(url)
    field(page, "duration").fill("200")
    press(page, "Generate")
    page.wait_for_function("preview?.position > 0")
    button = bar(page).get_by_role("button")
    button.focus()
    button.press("Enter")
    expect(button).to_have_accessible_name("Play")
    position = page.evaluate("preview.position")
    button.press("Enter")
    expect(button).to_have_accessible_name("Pause")
    page.wait_for_function("at => preview.position > at", arg=position)
    press(page, "Cancel")
    expect(page.locator("#status")).to_have_text("Cancelled.")
    expect(bar(page)).to_be_hidden()


def test_a_reload_does_not_play_an_ended_take_again(url, visit):
    page = visit(url)
    generate(page, duration=2)
    saved = downloads(page)
    visit.reload(page)
    measured(page, 1)
    assert page.evaluate("preview") is None
    assert downloads(page) == saved


@pytest.mark.full
def test_there_is_no_gap(asked):
    """On a machine where the demo is made faster than it is played."""
    asked.wait_for_function("preview?.levelled")
    assert asked.evaluate("preview.gaps") == 0
