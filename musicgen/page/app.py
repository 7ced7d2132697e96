"""The page: its layout, and the events of its components."""

from collections.abc import Callable
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from musicgen.commands.inputs import read_fields
from musicgen.page import hum, provenance, results, runs, takes
from musicgen.page.backend import Backend
from musicgen.page.form import Form, Updates
from musicgen.page.runs import Controls
from musicgen.page.takes import Take

HERE = Path(__file__).parent
PROMPTS = (
    "lofi chill, warm piano, C minor, 80 bpm",
    "deep house, organ chords, flute melody, A minor, 124 bpm",
    "calm ambient, soft pad, bells, G major, 70 bpm, no drums",
)
HUMMED_PROMPT = "pop, piano chords, flute melody, A minor, 120 bpm"
EXAMPLE_SECONDS = 8


def build(backend: Backend) -> gr.Blocks:
    """The page for a server, its form made from the server's OpenAPI document."""
    described = read_fields(backend.server.document())
    page: gr.Blocks
    with gr.Blocks(title="MusicGen", analytics_enabled=False) as page:
        made = gr.State([], delete_callback=_delete_files)
        shown = gr.State(0)
        gr.HTML(_head(backend.server.url), elem_id="head")
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=320):
                form = Form(described)
                with gr.Row():
                    generate = gr.Button("Generate", variant="primary", elem_id="generate")
                    cancel = gr.Button("Cancel", interactive=False, elem_id="cancel")
                status = gr.HTML(elem_id="status")
                _examples(form, backend.folder)
                provenance.add(form)
            with gr.Column(scale=3, min_width=320):
                result = gr.Column(elem_id="result")
                takes_list = gr.Radio(
                    [], label="Takes of this visit", visible=False, elem_id="takes"
                )
                _compare(made, shown)
                measured = gr.HTML(elem_id="measured")
        running = gr.State("")
        controls = Controls(generate, cancel, status, running, made, shown, takes_list)
        run_on = partial(_run_on, backend, form, controls)
        run_on(gr.on, [generate.click, *form.submits])
        cancel.click(backend.cancel, running, None, queue=False)
        takes_list.input(lambda number: number, takes_list, shown, show_progress="hidden")
        shown.change(results.measurements, [made, shown], measured, show_progress="minimal")
        with result:
            _players(page, form, controls, run_on)
    return page


def serve(page: gr.Blocks, port: int) -> None:
    """Start serving the page, in threads. The page loads nothing from another host."""
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
        prevent_thread_lock=True,
    )


def _head(url: str) -> str:
    return (
        "<h1>MusicGen</h1><p>Describe or hum the music, generate it, compare takes. "
        f"Server: <code>{escape(url)}</code></p>"
    )


def _run_on(
    backend: Backend, form: Form, controls: Controls, listener: Any, *triggers: Any
) -> None:
    """Run a prediction on an event. `listener` is gradio's function that registers for it."""
    listener(
        *triggers,
        fn=partial(runs.run, backend, form, controls),
        inputs=[controls.takes, controls.running, *form.inputs],
        outputs=[*controls.all, *form.outputs],
        show_progress="hidden",
        concurrency_limit=None,
    ).then(None, js="afterRun")


def _examples(form: Form, folder: Path) -> None:
    """Prompts like those that the demo model was trained on, and a melody to follow."""
    hummed = hum.write(folder / "hummed.wav")
    rows: list[dict[str, Any]] = [{"prompt": prompt} for prompt in PROMPTS]
    rows.append({"prompt": HUMMED_PROMPT, "input_audio": str(hummed)})
    common = {"input_audio": None, "duration": EXAMPLE_SECONDS, "continuation": False, "seed": None}
    names = [name for name in ("prompt", *common) if name in form.components]
    gr.Examples(
        [[(common | row).get(name) for name in names] for row in rows],
        [form.components[name] for name in names],
        example_labels=[*PROMPTS, "a hummed melody, as flute over piano"],
    )


def _players(page: gr.Blocks, form: Form, controls: Controls, run_on: Callable[..., None]) -> None:
    """The players of the take that is shown, rendered again when another take is selected."""

    @gr.render([controls.takes, controls.shown], [page.load, controls.shown.change])
    def draw(made: list[Take], number: int) -> None:
        results.players(form, results.find(made, number), lambda event: run_on(event.then))


def _compare(made: gr.State, shown: gr.State) -> None:
    """Compares two clips at the same position, at first the shown clip and the one before it."""
    with gr.Column(visible=False, elem_id="compare") as panel:
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
            panel: gr.update(visible=len(names) > 1),
            a: gr.Dropdown(names, value=first),
            b: gr.Dropdown(names, value=other),
            both: results.compared(all_takes, first, other),
        }

    shown.change(offer, [made, shown], [panel, a, b, both], show_progress="hidden")
    gr.on([a.input, b.input], results.compared, [made, a, b], both, show_progress="hidden")


def _delete_files(made: list[Take]) -> None:
    """Delete the audio files of a visit that has ended."""
    for clip in takes.clips(made).values():
        clip.file.unlink(missing_ok=True)
