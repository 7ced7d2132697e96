"""The form: the most important inputs first, the others folded, each with its error message."""

from collections.abc import Container, Iterable
from html import escape
from typing import Any

import gradio as gr

from musicgen.commands.inputs import Field
from musicgen.page import describe, fields, menus, words

# The order of inputs that are always visible, if the server has them. All others are folded, in the
# server's order.
PROMPT = ("prompt",)
AUDIO = ("input_audio",)
MODE = ("continuation",)  # shown with the audio
ENDS = ("continuation_start", "continuation_end")
SLICE = MODE + ENDS
LENGTH = ("duration",)
# After one of these changes, errors about it are no longer true: the slice depends on the audio.
TOGETHER = {"input_audio": AUDIO + SLICE, "continuation": AUDIO + SLICE}
SEED = "seed"

Updates = dict[Any, Any]


class Form:
    """The components of the inputs, created inside the gr.Blocks that is open."""

    def __init__(self, described: dict[str, Field], offered: Container[str]) -> None:
        """`described` are all inputs of the server; those in `offered` become components."""
        self.described = described
        self.offered = {name for name in described if name in offered and name not in fields.FIXED}
        self.fixed = {
            name: value
            for name, value in fields.FIXED.items()
            if name in described and value in described[name].choices
        }
        self.components: dict[str, Any] = {}
        self.errors: dict[str, gr.HTML] = {}
        self._add(PROMPT)
        if "prompt" in self.components:
            menus.tempo_and_key(self.components["prompt"])
        self._add(AUDIO)
        with gr.Column(visible=False, elem_id="slice") as self.slice:
            self.use = gr.HTML(elem_id="use")
            self._add(MODE)
            with gr.Row():
                for name in ENDS:
                    with gr.Column(min_width=140):
                        self._add([name])
        self._add_length()
        with gr.Accordion("More settings", open=False, elem_id="more") as self.folded:
            self._add([name for name in self.described if name not in self.components])
        self._describe_use()
        self._forget_errors()

    def _add(self, names: Iterable[str]) -> None:
        for name in names:
            if name in self.offered:
                field = self.described[name]
                self.components[name] = fields.component(field)
                if field.kind == "audio":  # gr.Audio is the only component without an info text
                    gr.HTML(f"<p>{escape(words.hint(field))}</p>", elem_classes="info")
                self.errors[name] = gr.HTML(elem_id=f"error-{name}", elem_classes="error")

    def _add_length(self) -> None:
        with gr.Row(elem_classes="menus"):
            with gr.Column(min_width=140):
                self._add(LENGTH)
            if {"prompt", "duration"} <= self.offered:
                with gr.Column(min_width=140):
                    longest = self.described["duration"].maximum
                    menus.bars(self.components["prompt"], self.components["duration"], longest)

    def _describe_use(self) -> None:
        """Show how the audio will be used, and update that when an input changes."""
        names = [n for n in (*AUDIO, *SLICE, *LENGTH) if n in self.components]
        inputs = [self.components[name] for name in names]
        described = [self.described[name] for name in names]

        def update(*values: Any) -> Updates:
            settings = fields.settings(described, values)
            file = settings.get("input_audio")
            return {self.slice: gr.update(visible=bool(file)), self.use: describe.use(settings)}

        gr.on(
            [component.change for component in inputs],
            update,
            inputs,
            [self.slice, self.use],
            show_progress="hidden",
        )

    def _forget_errors(self) -> None:
        """Remove the error of a field when the user edits the field, in the browser alone.

        A number's change event can come after the answer to a request with that number.
        """
        for name, component in self.components.items():
            stale = [self.errors[n] for n in TOGETHER.get(name, (name,)) if n in self.errors]
            empty = ", ".join("''" for _ in stale)
            result = f"[{empty}]" if len(stale) > 1 else "''"
            edited = component.change if name in AUDIO else component.input
            edited(None, None, stale, js=f"() => {result}", show_progress="hidden")

    @property
    def fields(self) -> list[Field]:
        """The inputs in the order of the components."""
        return [self.described[name] for name in self.components]

    @property
    def inputs(self) -> list[Any]:
        """The components, as inputs of an event."""
        return list(self.components.values())

    @property
    def outputs(self) -> list[Any]:
        """The components that `show_errors` updates."""
        return [*self.errors.values(), self.folded]

    def show_errors(self, messages: dict[str, str]) -> Updates:
        """Updates that show each message at its field, and no message at the others."""
        visible = {*PROMPT, *AUDIO, *SLICE, *LENGTH}
        shown: Updates = {error: _error(messages.get(name)) for name, error in self.errors.items()}
        folded = any(name in self.errors and name not in visible for name in messages)
        return shown | ({self.folded: gr.Accordion(open=True)} if folded else {})

    def filled(self, settings: dict[str, Any]) -> Updates:
        """Updates that fill in a take's settings; other fields stay as they are."""
        return {
            component: _shown(self.described[name], settings[name])
            for name, component in self.components.items()
            if name in settings
        }

    def continued(self, settings: dict[str, Any], file: str, seconds: float) -> Updates:
        """Updates that continue a take's clip to twice its length, with a new seed."""
        longest = self.described["duration"].maximum or 2 * seconds
        slices = {name: self.described[name].default for name in SLICE if name in self.described}
        length = min(round(2 * seconds), longest)
        new = {"input_audio": file, "continuation": True, "duration": length, "seed": None}
        return self.filled(settings | slices | new)


def _shown(field: Field, value: Any) -> Any:
    """A setting as its component shows it: a text field without a value is empty."""
    return "" if value is None and field.kind in ("text", "integer", "number") else value


def _error(message: str | None) -> str:
    return f'<p class="field-error" role="alert">{escape(message)}</p>' if message else ""
