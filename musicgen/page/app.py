"""The page: its layout, and the events of its components."""

from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from musicgen.commands.inputs import read_fields
from musicgen.page import downloads, hum, marks, provenance, results, takes
from musicgen.page.backend import Backend
from musicgen.page.form import SEED, Form, Updates
from musicgen.page.offered import offered
from musicgen.page.runs import Controls, Runs
from musicgen.page.takes import Take
from musicgen.page.visits import Visits

HERE = Path(__file__).parent
PROMPTS = (
    "lofi chill, warm piano, C minor, 80 bpm",
    "deep house, organ chords, flute melody, A minor, 124 bpm",
    "calm ambient, soft pad, bells, G major, 70 bpm, no drums",
)
HUMMED_PROMPT = "pop, piano chords, flute melody, A minor, 120 bpm"
EXAMPLE_SECONDS = 8
TICK_SECONDS = 0.5
SCRIPTS = ("page.js", "listen.js")
VARIATIONS = 4
EMPTY = '<p class="empty">Results appear here. Write a prompt or choose an example.</p>'
# It encrypts only the id of a visit in the browser's storage, where it must outlive this process.
BROWSER_SECRET = "musicgen-page"


def build(backend: Backend, visits: Visits) -> gr.Blocks:
    """The page for a server, its form made from the server's OpenAPI document."""
    document = backend.server.document()
    described = read_fields(document)
    shown = offered(backend.server, described)
    page: gr.Blocks
    with gr.Blocks(title="MusicGen", analytics_enabled=False) as page:
        gr.HTML(_head(backend.server.url), elem_id="head")
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=320):
                form = Form(described, shown)
                provenance.add(form)
                with gr.Column(elem_id="actions"):
                    buttons, message, rows, said, heard, undo = _actions(form, document)
            with gr.Column(scale=3, min_width=320, elem_id="result"):
                with gr.Column(elem_id="empty") as empty:
                    gr.HTML(EMPTY)
                    _examples(form, backend.folder)
                players = gr.Column(elem_id="players")
                takes_list = gr.Radio([], label="Takes", visible=False, elem_id="takes")
                marked = marks.create()
                controls = Controls(
                    *_states(),
                    timer=gr.Timer(TICK_SECONDS, active=False),
                    cancel=buttons["cancel"],
                    message=message,
                    rows=rows,
                    said=said,
                    heard=heard,
                    takes_list=takes_list,
                    empty=empty,
                    marks=marked[0],
                )
                runs = Runs(visits, form, controls)
                _compare(runs)
                _loops(runs)
                measured = gr.HTML(elem_id="measured")
        marks.connect(runs, *marked[1:], undo)
        _connect(page, runs, buttons)
        _measure(runs, measured)
        with players:
            _players(runs)
    return page


def serve(page: gr.Blocks, visits: Visits, port: int, keep: Path | None) -> None:
    """Start serving the page, in threads. The page loads nothing from another host."""
    system = ("system-ui", "sans-serif")
    theme = gr.themes.Default(
        primary_hue="indigo", neutral_hue="slate", font=system, font_mono=("monospace",)
    )
    app, _, _ = page.launch(
        server_name="127.0.0.1",
        server_port=port,
        inbrowser=True,
        quiet=True,
        theme=theme,
        css_paths=HERE / "page.css",
        head="".join(f"<script>{(HERE / name).read_text()}</script>" for name in SCRIPTS),
        footer_links=[],
        ssr_mode=False,
        prevent_thread_lock=True,
        allowed_paths=[str(keep)] if keep else None,
    )
    downloads.add_routes(app, visits)


def _head(url: str) -> str:
    return (
        "<h1>MusicGen</h1><p>Describe or hum the music, generate it, compare takes. "
        f"Server: <code>{escape(url)}</code></p>"
    )


def _states() -> tuple[gr.State, gr.BrowserState, gr.State, gr.State, gr.State]:
    stored = gr.BrowserState(None, storage_key="musicgen-visit", secret=BROWSER_SECRET)
    return gr.State(""), stored, gr.State(0), gr.State(0), gr.State("")


def _actions(
    form: Form, document: dict[str, Any]
) -> tuple[dict[str, gr.Button], gr.HTML, gr.HTML, gr.HTML, gr.HTML, gr.Button]:
    """The bar that stays in sight: buttons, the kept seed, the status.

    The buttons that ask for takes work once the page knows its visit.
    """
    _seed_chip(form)
    buttons = {}
    with gr.Row():
        buttons["generate"] = gr.Button(
            "Generate", variant="primary", interactive=False, min_width=80, elem_id="generate"
        )
        if SEED in form.components and not _gives_several(document):
            buttons["variations"] = gr.Button(
                f"{VARIATIONS} variations", interactive=False, min_width=80
            )
        buttons["cancel"] = gr.Button("Cancel", interactive=False, min_width=80, elem_id="cancel")
    rows = gr.HTML(elem_id="progress")
    heard = gr.HTML(elem_id="listen")
    with gr.Row():
        message = gr.HTML(elem_id="status")
        undo = gr.Button("Undo", visible=False, size="sm", min_width=80, scale=0, elem_id="undo")
    said = gr.HTML(elem_id="said")
    return buttons, message, rows, said, heard, undo


def _gives_several(document: dict[str, Any]) -> bool:
    """Whether one prediction of the server gives several clips already."""
    output: Any = document["components"]["schemas"].get("Output", {})
    return output.get("items", {}).get("format") == "uri"  # type: ignore[no-any-return]


def _seed_chip(form: Form) -> None:
    """A button that shows the seed of the form, if there is one, and removes it."""
    if SEED not in form.components:
        return
    seed = form.components[SEED]
    chip = gr.Button("", visible=False, size="sm", elem_id="seed-chip")

    def show(value: str) -> Any:
        kept = f"Seed {value} is kept  ✕"
        return gr.Button(kept if value else "", visible=bool(value))

    seed.change(show, seed, chip, show_progress="hidden")
    chip.click(lambda: "", None, seed, show_progress="hidden")


def _connect(page: gr.Blocks, runs: Runs, buttons: dict[str, gr.Button]) -> None:
    """Register the events of the buttons, of the timer, and of opening the page."""
    controls, form = runs.controls, runs.form
    news = list({id(item): item for item in [*controls.of_news, *form.outputs]}.values())
    entering = [controls.visit, controls.stored, *news, *form.inputs]
    askers = [buttons[name] for name in ("generate", "variations") if name in buttons]
    page.load(runs.enter, controls.stored, entering, show_progress="hidden").then(
        lambda: {asker: gr.Button(interactive=True) for asker in askers},
        None,
        askers,
        show_progress="hidden",
    )
    page.load(None, None, None, js="whenLoaded")
    run_on(runs, buttons["generate"].click)
    if "variations" in buttons:
        run_on(runs, buttons["variations"].click, VARIATIONS)
    buttons["cancel"].click(runs.cancel, controls.visit, None, queue=False)
    looking = [controls.visit, controls.seen, controls.shown]
    controls.timer.tick(runs.refresh, looking, news, show_progress="hidden", concurrency_limit=None)
    controls.seen.change(None, None, None, js="afterRun")
    controls.heard.change(None, None, None, js="listen")
    controls.takes_list.input(
        lambda number: number, controls.takes_list, controls.shown, show_progress="hidden"
    )


def run_on(runs: Runs, listener: Any, count: int = 1) -> gr.events.Dependency:
    """Ask for takes on an event. `listener` is gradio's function that registers for it."""
    controls, form = runs.controls, runs.form
    return listener(  # type: ignore[no-any-return]
        partial(runs.submit, count),
        [controls.visit, *form.inputs],
        [*controls.of_jobs, controls.message, *form.outputs],
        show_progress="hidden",
        concurrency_limit=None,
    ).then(None, js="afterRun")


def _examples(form: Form, folder: Path) -> None:
    """Prompts like those that the demo model was trained on, and a melody to follow."""
    hummed = hum.write(folder / "hummed.wav")
    rows: list[dict[str, Any]] = [{"prompt": prompt} for prompt in PROMPTS]
    rows.append({"prompt": HUMMED_PROMPT, "input_audio": str(hummed)})
    common = {"input_audio": None, "duration": EXAMPLE_SECONDS, "continuation": False, SEED: ""}
    names = [name for name in ("prompt", *common) if name in form.components]
    gr.Examples(
        [[(common | row).get(name) for name in names] for row in rows],
        [form.components[name] for name in names],
        example_labels=[*PROMPTS, "a hummed melody, as flute over piano"],
    )


def _shown(runs: Runs, visit: str, number: int) -> Take | None:
    known = runs.visits.get(visit)
    return known.library.find(number) if known else None


def _players(runs: Runs) -> None:
    """The players of the take that is shown, rendered again when another take is selected."""
    controls = runs.controls

    @gr.render([controls.visit, controls.shown], [controls.shown.change])
    def draw(visit: str, number: int) -> None:
        if take := _shown(runs, visit, number):
            results.players(
                runs.form, controls.message, visit, take, lambda event: run_on(runs, event.then)
            )


def _measure(runs: Runs, measured: gr.HTML) -> None:
    controls = runs.controls

    def measure(visit: str, number: int) -> Any:
        yield from results.measurements(_shown(runs, visit, number))

    controls.shown.change(
        measure, [controls.visit, controls.shown], measured, show_progress="minimal"
    )


def _loops(runs: Runs) -> None:
    """Loops of the take that is shown, and more seeds if its tempo is not the asked one."""
    controls, form = runs.controls, runs.form
    found = gr.HTML(elem_id="loops")
    more = gr.Button(f"Try {VARIATIONS} more", visible=False, size="sm", elem_id="more-seeds")

    def find(visit: str, number: int) -> Updates:
        html, missed = results.loops_html(visit, _shown(runs, visit, number))
        return {found: html, more: gr.Button(visible=missed and SEED in form.components)}

    def next_seeds(visit: str, number: int) -> Updates:
        take = _shown(runs, visit, number)
        if take is None:
            return {}
        last = take.clips[-1].seed
        return form.filled(take.settings | {SEED: "" if last is None else last + 1})

    at = [controls.visit, controls.shown]
    controls.shown.change(find, at, [found, more], show_progress="hidden")
    filled = more.click(next_seeds, at, form.inputs, show_progress="hidden")
    started = run_on(runs, filled.then, VARIATIONS)
    if SEED in form.components:
        started.then(lambda: "", None, form.components[SEED], show_progress="hidden")


def _compare(runs: Runs) -> None:
    """Compares two clips at the same position, at first the shown clip and the one before it."""
    with gr.Column(visible=False, elem_id="compare") as panel:
        with gr.Row():
            a = gr.Dropdown([], label="A", min_width=140, interactive=True)
            b = gr.Dropdown([], label="B", min_width=140, interactive=True)
        both = gr.HTML()
    controls = runs.controls

    def offer(visit: str, number: int) -> Updates:
        made = _takes(visit)
        names = list(takes.clips(made))
        current = takes.find(made, number)
        first = current.clips[0].name if current else None
        other = next((name for name in names if name != first), None)
        return {
            panel: gr.Column(visible=len(names) > 1),
            a: gr.Dropdown(names, value=first),
            b: gr.Dropdown(names, value=other),
            both: results.compared(made, first, other),
        }

    def _takes(visit: str) -> list[Take]:
        known = runs.visits.get(visit)
        return known.library.takes if known else []

    gr.on(
        [controls.shown.change, controls.listed.change],
        offer,
        [controls.visit, controls.shown],
        [panel, a, b, both],
        show_progress="hidden",
    )
    gr.on(
        [a.input, b.input],
        lambda visit, *names: results.compared(_takes(visit), *names),
        [controls.visit, a, b],
        both,
        show_progress="hidden",
    )
