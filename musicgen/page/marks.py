"""What can be done with the take that is shown: rename, star, delete, and undo the deletion."""

from typing import Any

import gradio as gr

from musicgen.page.form import Updates
from musicgen.page.results import note
from musicgen.page.runs import Runs
from musicgen.page.takes import Take

STAR, STARRED = "☆ Star", "★ Starred"


def create() -> tuple[gr.Column, gr.Textbox, gr.Button, gr.Button]:
    """Create the components: their column, the name, "Star" and "Delete"."""
    with gr.Column(visible=False, elem_id="marks") as column:
        name = gr.Textbox(label="Name of this take", placeholder="its prompt", elem_id="name")
        with gr.Row():
            star = gr.Button(STAR, size="sm", min_width=80, elem_id="star")
            delete = gr.Button("Delete", size="sm", min_width=80, elem_id="delete")
    return column, name, star, delete


def connect(
    runs: Runs, name: gr.Textbox, star: gr.Button, delete: gr.Button, undo: gr.Button
) -> None:
    """Register the events of the components."""
    controls = runs.controls
    at = [controls.visit, controls.shown]

    def shown(visit: str, number: int) -> tuple[Any, Any]:
        take = _find(runs, visit, number)
        starred = take is not None and take.starred
        return (take.name if take else ""), gr.Button(STARRED if starred else STAR)

    def listed(visit: str, number: int) -> Updates:
        return controls.list_updates(runs.visits[visit].library.takes, number)

    def rename(visit: str, number: int, text: str) -> Updates:
        runs.visits[visit].library.rename(number, text or "")
        return listed(visit, number)

    def mark(visit: str, number: int) -> Updates:
        runs.visits[visit].library.star(number)
        return listed(visit, number) | {star: shown(visit, number)[1]}

    def remove(visit: str, number: int) -> Updates:
        runs.visits[visit].library.delete(number)
        gone = {controls.message: note(f"Take {number} is deleted."), undo: gr.Button(visible=True)}
        return listed(visit, 0) | gone

    def restore(visit: str) -> Updates:
        take = runs.visits[visit].library.restore()
        back = note(f"Take {take.number} is back.") if take else ""
        number = take.number if take else 0
        return listed(visit, number) | {controls.message: back, undo: gr.Button(visible=False)}

    quiet: dict[str, Any] = {"show_progress": "hidden"}
    gr.on([name.submit, name.blur], rename, [*at, name], controls.of_list, **quiet)
    star.click(mark, at, [*controls.of_list, star], **quiet)
    with_message = [*controls.of_list, controls.message, undo]
    delete.click(remove, at, with_message, **quiet)
    undo.click(restore, controls.visit, with_message, **quiet)
    controls.shown.change(shown, at, [name, star], **quiet)


def _find(runs: Runs, visit: str, number: int) -> Take | None:
    known = runs.visits.get(visit)
    return known.library.find(number) if known else None
