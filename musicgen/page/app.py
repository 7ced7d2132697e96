"""The page: where things stand, and what happens when they are used."""

from collections.abc import Callable
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from musicgen.page import fields, hum, results, runs, takes
from musicgen.page.form import Form, Updates
from musicgen.page.runs import Controls
from musicgen.page.studio import Studio
from musicgen.page.takes import Take

HERE = Path(__file__).parent
PROMPTS = (
    "lofi chill, warm piano, C minor, 80 bpm",
    "deep house, organ chords, flute melody, A minor, 124 bpm",
    "calm ambient, soft pad, bells, G major, 70 bpm, no drums",
)
HUMMED = "pop, piano chords, flute melody, A minor, 120 bpm"
SECONDS = 8  # of an example


def build(studio: Studio) -> gr.Blocks:
    """The page of a server. Raises MusicGenError if it does not tell its inputs."""
    described = fields.read(studio.server.document())
    page: gr.Blocks
    with gr.Blocks(title="MusicGen", analytics_enabled=False) as page:
        made = gr.State([], delete_callback=_forget)
        shown = gr.State(0)
        gr.HTML(_head(studio.server.url), elem_id="head")
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=320):
                form = Form(described)
                with gr.Row():
                    go = gr.Button("Generate", variant="primary", elem_id="generate")
                    stop = gr.Button("Cancel", interactive=False, elem_id="cancel")
                status = gr.HTML(elem_id="status")
                _examples(form, studio.folder)
            with gr.Column(scale=3, min_width=320):
                result = gr.Column(elem_id="result")
                listed = gr.Radio([], label="Takes of this visit", visible=False, elem_id="takes")
                _compare(made, shown)
                measured = gr.HTML(elem_id="measured")
        controls = Controls(go, stop, status, gr.State(""), made, shown, listed)
        begin = partial(_begin, studio, form, controls)
        begin(gr.on, [go.click, *form.submits])
        stop.click(studio.server.cancel, controls.running, None, queue=False)
        listed.input(lambda number: number, listed, shown, show_progress="hidden")
        shown.change(results.measured, [made, shown], measured, show_progress="minimal")
        with result:
            _players(page, form, controls, begin)
    return page


def serve(page: gr.Blocks, port: int) -> None:
    """Show the page until somebody ends it. It asks no other host for anything."""
    system = ("system-ui", "sans-serif")
    theme = gr.themes.Default(
        primary_hue="indigo", neutral_hue="slate", font=system, font_mono=("monospace",)
    )
    page.launch(
        server_name="127.0.0.1",
        server_port=port,
        inbrowser=True,
        quiet=True,
        theme=theme,
        css_paths=HERE / "page.css",
        head=f"<script>{(HERE / 'page.js').read_text()}</script>",
        footer_links=[],
        ssr_mode=False,
    )


def _head(url: str) -> str:
    return (
        "<h1>MusicGen</h1><p>Type, hum, listen, compare, keep. "
        f"Music comes from <code>{escape(url)}</code>.</p>"
    )


def _begin(studio: Studio, form: Form, controls: Controls, listen: Any, *triggers: Any) -> None:
    """Make a prediction of the form when an event happens: `listen` is what gradio registers by."""
    listen(
        *triggers,
        fn=partial(runs.run, studio, form, controls),
        inputs=[controls.takes, controls.running, *form.inputs],
        outputs=[*controls.all, *form.outputs],
        show_progress="hidden",
        concurrency_limit=None,
    ).then(None, js="afterRun")


def _examples(form: Form, folder: Path) -> None:
    """Prompts that the demo model knows, and a melody to follow."""
    hummed = hum.write(folder / "hummed.wav")
    rows: list[dict[str, Any]] = [{"prompt": prompt} for prompt in PROMPTS]
    rows.append({"prompt": HUMMED, "input_audio": str(hummed)})
    common = {"input_audio": None, "duration": SECONDS, "continuation": False, "seed": None}
    names = [name for name in ("prompt", *common) if name in form.components]
    gr.Examples(
        [[(common | row).get(name) for name in names] for row in rows],
        [form.components[name] for name in names],
        example_labels=[*PROMPTS, "a hummed melody, as flute over piano"],
    )


def _players(page: gr.Blocks, form: Form, controls: Controls, begin: Callable[..., None]) -> None:
    """The take that is shown, drawn anew when another is."""

    @gr.render([controls.takes, controls.shown], [page.load, controls.shown.change])
    def draw(made: list[Take], number: int) -> None:
        results.players(form, results.find(made, number), lambda event: begin(event.then))


def _compare(made: gr.State, shown: gr.State) -> None:
    """Two clips at the same position: the one that is shown, and the one before it."""
    with gr.Column(visible=False, elem_id="compare") as room:
        with gr.Row():
            a = gr.Dropdown([], label="A", min_width=140, interactive=True)
            b = gr.Dropdown([], label="B", min_width=140, interactive=True)
        both = gr.HTML()

    def offer(all_takes: list[Take], number: int) -> Updates:
        names = list(takes.clips(all_takes))
        current = results.find(all_takes, number)
        first = current.clips[0].name if current else None
        other = next((name for name in names if name != first), None)
        return {
            room: gr.update(visible=len(names) > 1),
            a: gr.Dropdown(names, value=first),
            b: gr.Dropdown(names, value=other),
            both: results.compared(all_takes, first, other),
        }

    shown.change(offer, [made, shown], [room, a, b, both], show_progress="hidden")
    gr.on([a.input, b.input], results.compared, [made, a, b], both, show_progress="hidden")


def _forget(made: list[Take]) -> None:
    """Remove what a visit made, when it is over."""
    for clip in takes.clips(made).values():
        clip.file.unlink(missing_ok=True)
