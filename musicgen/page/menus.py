"""Menus for tempo, key and bars: they write into the prompt and the length."""

from typing import Any

import gradio as gr

from musicgen.page import prompts

TEMPOS = tuple(str(bpm) for bpm in (60, 70, 75, 80, 85, 90, 95, 100, 105, 110, 115, 120))
TEMPOS += tuple(str(bpm) for bpm in (124, 128, 132, 140, 150, 160, 174, 180))
BARS = (1, 2, 4, 8, 16)
ANY = "any"
NO_TEMPO = "Choose a tempo, and the length can be set in bars."


def tempo_and_key(prompt: gr.Textbox) -> None:
    """Create the menus for tempo and key in a row. They follow the prompt, too."""
    with gr.Row(elem_classes="menus"):
        tempo = gr.Dropdown(
            [ANY, *TEMPOS],
            value=ANY,
            label="Tempo (bpm)",
            allow_custom_value=True,
            min_width=120,
            elem_id="tempo",
        )
        key = gr.Dropdown([ANY, *prompts.ALL_KEYS], value=ANY, label="Key", min_width=120)
    tempo.input(_write_tempo, [prompt, tempo], prompt, show_progress="hidden")
    key.input(_write_key, [prompt, key], prompt, show_progress="hidden")
    prompt.change(_read, prompt, [tempo, key], show_progress="hidden")


def bars(prompt: gr.Textbox, duration: Any, longest: float | None) -> None:
    """Create the menu for bars, and a line that says the length in bars."""
    menu = gr.Dropdown(
        [(f"{bars} bar{'s' if bars > 1 else ''}", bars) for bars in BARS],
        value=None,
        label="Length in bars",
        info="4 beats each. One beat is added, so that a loop can be cut.",
        elem_id="bars",
    )
    said = gr.HTML(elem_id="in-bars", elem_classes="info")

    def write(chosen: int | None, text: str) -> Any:
        tempo = prompts.tempo(text or "")
        if not chosen or not tempo:
            return gr.skip()
        return min(prompts.seconds_of_bars(chosen, tempo), longest or float("inf"))

    menu.input(write, [menu, prompt], duration, show_progress="hidden")
    gr.on(
        [prompt.change, duration.change],
        in_bars,
        [prompt, duration],
        said,
        show_progress="hidden",
    )


def in_bars(prompt: str, seconds: float | None) -> str:
    """A length in bars at the prompt's tempo, as HTML."""
    tempo = prompts.tempo(prompt or "")
    if not tempo:
        return f"<p>{NO_TEMPO}</p>"
    if not isinstance(seconds, int | float):
        return ""
    count = seconds * tempo / 60 / prompts.BEATS_PER_BAR
    return f"<p>{seconds:g} s are {count:.1f} bars at {tempo:.0f} bpm.</p>"


def _write_tempo(prompt: str, bpm: str) -> Any:
    digits = "".join(filter(str.isdigit, str(bpm)))
    if bpm != ANY and len(digits) not in (2, 3):
        return gr.skip()
    return prompts.with_tempo(prompt or "", None if bpm == ANY else digits)


def _write_key(prompt: str, key: str) -> str:
    return prompts.with_key(prompt or "", None if key == ANY else key)


def _read(prompt: str) -> tuple[str, str]:
    tempo = prompts.tempo(prompt or "")
    return (f"{tempo:.0f}" if tempo else ANY), prompts.key(prompt or "") or ANY
