"""A page served by scripts/play, and a browser."""

import os
import re
import shutil
import subprocess
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import plain_http
import pytest
from actions import open_settings
from playwright.sync_api import expect, sync_playwright

from musicgen.commands.server import ROOT, free_port

# Without a window, Chromium loads a page in half of the processor time.
BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
MISSING = (
    "These tests need a browser. Install Chromium (Debian: apt-get install "
    "chromium-headless-shell), so that PATH has one of these: " + ", ".join(BROWSERS)
)
AXE = "axe-core@4.14.1"
# What gradio logs of the requests that the browser ends when it leaves a page.
ENDED = re.compile(r"AbortError|Connection errored out")
PATIENCE = 120_000  # ms for an element to appear, so that no test waits for ever
# A fake microphone that beeps, allowed without asking.
FLAGS = ("--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")


# What ends after the last test of this folder.
at_end = ExitStack()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(nextitem):
    """Close the browser: while it is open, playwright runs an event loop, and no other can run."""
    if nextitem is None or nextitem.path.parent != Path(__file__).parent:
        at_end.close()


@pytest.fixture(scope="session")
def browser():
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.fail(MISSING)
    expect.set_options(timeout=PATIENCE)
    playwright = at_end.enter_context(sync_playwright())
    return at_end.enter_context(playwright.chromium.launch(executable_path=path, args=FLAGS))


@pytest.fixture(scope="session")
def play(tmp_path_factory):
    """(arguments of scripts/play) -> a context that serves its page and has the page's address."""
    return lambda *arguments: page_server(tmp_path_factory.mktemp("page"), *arguments)


@contextmanager
def page_server(folder, *arguments):
    """The address of the page of scripts/play with these arguments. `folder` receives its log."""
    port = free_port()
    environment = {**os.environ, "BROWSER": "true", "OMP_NUM_THREADS": "1"}
    command = [ROOT / "scripts" / "play", "--port", str(port), *arguments]
    with (folder / "log").open("w+") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            url = f"http://127.0.0.1:{port}"
            while not _answers(url):
                log.seek(0)
                assert process.poll() is None, log.read()
                time.sleep(0.05)
            yield url
        finally:
            process.terminate()
            process.wait()


@pytest.fixture(scope="session")
def server(demo_server):
    """The server that `url` uses."""
    return demo_server


@pytest.fixture(scope="session")
def url(play, server):
    """The address of a page for a running server. Each visit has takes of its own."""
    with play("--server", server.url) as url:
        yield url


def _answers(url):
    try:
        return plain_http.get(url).is_success
    except httpx.ConnectError:
        return False


@pytest.fixture
def visit(browser):
    """(url, query, **options of the browser) -> the opened page, closed after the test."""
    with visits(browser) as visit:
        yield visit


@pytest.fixture(scope="module")
def visit_once(browser):
    """The same for a page that all tests of a module look at."""
    with visits(browser) as visit:
        yield visit


@pytest.fixture(scope="module")
def page(url, visit_once):
    """A page with its settings open, for all tests of a module."""
    page = visit_once(url)
    open_settings(page)
    return page


@contextmanager
def visits(browser):
    """(url, query, **options of the browser) -> the opened page. Fails at the end if a page has
    logged an error or loaded anything from another host."""
    noticed, reloaded = [], []
    with ExitStack() as stack:

        def start(url, query="", **options):
            context = browser.new_context(permissions=["microphone"], **options)
            context.set_default_timeout(PATIENCE)
            stack.callback(context.close)
            page = context.new_page()

            def look(request):
                if not request.url.startswith((url, "data:", "blob:")):
                    noticed.append(f"asked {request.url}")

            page.on("request", look)
            page.on("pageerror", lambda error: noticed.append(f"error {error}"))
            page.on(
                "console",
                lambda line: noticed.append(line.text) if line.type == "error" else None,
            )
            page.goto(url + query)
            expect(page.get_by_role("button", name="Generate")).to_be_enabled()
            return page

        def reload(page):
            reloaded.append(page)
            page.reload()

        start.noticed, start.reload = noticed, reload
        yield start
    assert [line for line in noticed if not (reloaded and ENDED.search(line))] == []


@pytest.fixture(scope="session")
def axe(tmp_path_factory):
    """axe-core's source, which checks a page for barriers."""
    folder = tmp_path_factory.mktemp("axe")
    subprocess.run(["npm", "install", "--no-save", "--silent", AXE], cwd=folder, check=True)
    return (folder / "node_modules" / "axe-core" / "axe.min.js").read_text()
