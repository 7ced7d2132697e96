"""Labels and hints of the fields that are known here. All others are named as in the schema."""

from typing import NamedTuple

from musicgen.commands.inputs import Field


class Words(NamedTuple):
    """How a field is called on the page, what it does, and the unit of its number."""

    label: str
    hint: str
    unit: str = ""


WORDS = {
    "prompt": Words(
        "Prompt",
        "Genre, instruments, mood, key, tempo. Ctrl+Enter or ⌘+Enter generates.",
    ),
    "input_audio": Words(
        "Melody or beginning",
        "Upload or record audio. The music follows its melody, or continues it.",
    ),
    "continuation": Words("Continue this audio", "Off: the music follows its melody."),
    "continuation_start": Words("From second", "0 is the beginning.", "seconds"),
    "continuation_end": Words("To second", "Empty: to the end.", "seconds"),
    "duration": Words("Length", "If audio is continued, this includes it.", "seconds"),
    "multi_band_diffusion": Words(
        "Cleaner sound", "Multi-Band Diffusion: fewer artefacts, much slower."
    ),
    "normalization_strategy": Words(
        "Level",
        "loudness: −14 LUFS, as on streaming services. rms: −18 dBFS. peak: as loud as its peaks "
        "allow. clip: as generated.",
    ),
    "top_k": Words(
        "Sound choices", "How many likely sounds each step chooses from. 0: from all of them."
    ),
    "top_p": Words(
        "Sound choices by probability",
        "Above 0, each step chooses from the likeliest sounds with this probability together, "
        "instead of from a number of them.",
    ),
    "temperature": Words("Variety", "Above 1: more surprising. Below 1: more predictable."),
    "classifier_free_guidance": Words(
        "Strictness", "How strictly the music follows the prompt and the melody."
    ),
    "seed": Words("Seed", "The same seed and settings give the same music. Empty: a new one."),
    "song_id": Words("Storage number", "Store the music on the server under this number."),
    "key": Words("Storage password", "The server's password for storing music."),
}


def label(field: Field) -> str:
    """The label of a field."""
    known = WORDS.get(field.name)
    return known.label if known else field.name.replace("_", " ").capitalize()


def hint(field: Field) -> str:
    """The hint and the range of values."""
    known = WORDS.get(field.name)
    text = known.hint if known else field.description
    return " ".join(filter(None, [text, _range(field)]))


def _range(field: Field) -> str:
    if not field.bounds or field.minimum is None:
        return ""
    unit = WORDS[field.name].unit if field.name in WORDS else ""
    # -1 stands for an empty field, which the hint describes.
    if field.minimum == -1 and field.name in WORDS:
        low, high = "0", f" to {field.maximum:.0f}" if field.maximum else " or more"
        return f"{low}{high}{unit and ' ' + unit}."
    return f"{field.bounds}{unit and ' ' + unit}."


def fix(field: Field) -> str:
    """What to enter, for an error message: "enter a whole number, 1 to 300 seconds"."""
    kind = "a whole number" if field.kind == "integer" else "a number"
    bounds = _range(field).rstrip(".")
    return f"enter {kind}{bounds and ', ' + bounds}"
