"""A part of the page that shows the tags of a file and fills in the form to make it again."""

from html import escape

import gradio as gr

from musicgen import provenance
from musicgen.commands import again
from musicgen.errors import MusicGenError
from musicgen.page.form import Form, Updates
from musicgen.provenance import PRIVATE, SETTINGS, Provenance

NO_TAGS = (
    "This file has no tags of this server with which it can be made again: another program, an "
    "earlier version or <code>MUSICGEN_TAGS=off</code> made it, its tags were removed, or it is a "
    "loop."
)
NOT_SIGNED = "Tags are not signed: anybody can write them."


def add(form: Form) -> None:
    """Add the part to the page: an upload, its tags, and the button "Again"."""
    with gr.Accordion("Make a file again", open=False, elem_id="again"):
        upload = gr.File(label="mp3 or wav file of this server", file_types=[".mp3", ".wav"])
        tags = gr.HTML(elem_id="provenance")
        button = gr.Button("Again", visible=False, size="sm")

    def show(file: str | None) -> tuple[str, gr.Button]:
        try:
            made = provenance.read(file) if file else None
            if made:
                again.settings(made, form.described)  # raises for what this server does not have
        except MusicGenError as exc:
            return f'<p class="failed" role="alert">{escape(str(exc))}</p>', gr.Button(
                visible=False
            )
        if made is None:
            return f"<p>{NO_TAGS if file else ''}</p>", gr.Button(visible=False)
        return describe(made), gr.Button(visible=True)

    def fill(file: str) -> Updates:
        made = provenance.read(file)
        return form.filled(filled(made, form)) if made else {}

    upload.change(show, upload, [tags, button], show_progress="hidden")
    button.click(fill, upload, form.inputs, show_progress="hidden")


def filled(made: Provenance, form: Form) -> dict[str, object]:
    """The form's values that make a file again. Inputs that its tags do not have stay as they are.

    Raises MusicGenError for values that the server does not have.
    """
    reset = [name for name in (*SETTINGS, *PRIVATE) if name not in made.needs]
    defaults = {name: form.described[name].default for name in reset if name in form.described}
    return defaults | again.settings(made, form.described)


def describe(made: Provenance) -> str:
    """The tags as an HTML table, with what is missing in them."""
    facts = {
        "software": made.software,
        "model": made.model,
        "digital source type": made.digital_source_type,
        "precision": made.precision,
        **made.inputs,
    }
    rows = "".join(
        f"<tr><th scope='row'>{escape(name)}</th><td>{escape(provenance.text(value))}</td></tr>"
        for name, value in facts.items()
    )
    names = " and ".join(name.replace("_", " ") for name in made.needs)
    missing = (
        f"<p>It was made with a further input: {names}. Give it yourself.</p>" if names else ""
    )
    return f"<table>{rows}</table>{missing}<p>{NOT_SIGNED}</p>"
