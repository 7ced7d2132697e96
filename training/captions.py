"""Describes songs as people write prompts: parts in any order, some omitted."""

import numpy as np

from training.song import Song

SHARP = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
FLAT = ("C", "Db", "D", "Eb", "E", "F", "Gb", "G", "Ab", "A", "Bb", "B")

STYLE_WORDS = {
    "house": ("house", "deep house", "house groove", "dance music"),
    "techno": ("techno", "driving techno", "electronic music"),
    "lofi": ("lofi", "lofi chill", "chill lofi beat", "lo-fi"),
    "hip hop": ("hip hop", "hip hop beat", "trap", "rap beat"),
    "rock": ("rock", "rock song", "indie rock"),
    "funk": ("funk", "funky groove", "disco funk"),
    "pop": ("pop", "pop song", "catchy pop"),
    "ambient": ("ambient", "calm ambient", "ambient soundscape"),
}
SOUND_WORDS = {
    "piano": ("piano", "warm piano", "piano chords"),
    "organ": ("organ", "organ chords", "hammond organ"),
    "pad": ("pad", "soft pad", "synth pad", "strings"),
    "flute": ("flute", "flute melody", "whistle"),
    "bell": ("bell", "bells", "bell melody"),
    "saw": ("saw lead", "bright synth lead", "saw synth melody"),
    "marimba": ("marimba", "marimba melody", "xylophone"),
}
MOODS = {
    "major": ("happy", "bright", "uplifting", "cheerful"),
    "minor": ("sad", "dark", "melancholic", "moody"),
}
SIDES = {-1: ("lead on the left",), 1: ("lead on the right",)}
DRUM_WORDS = {True: ("drums", "with drums"), False: ("no drums", "without drums")}
TURN_WORDS = {
    "break": ("break", "with breaks", "stops"),
    "fill": ("fill", "drum fill", "with drum fills"),
}
SWING_WORDS = ("swing", "swung", "shuffle")
FILLERS = ("instrumental", "loop", "track", "music", "high quality", "melody", "beat", "zzz")
PACES = ("fast", "energetic"), ("slow", "relaxed")
FAST, SLOW = 130, 90
# What a caption may name -> how often it does.
NAMED = {
    "style": 0.8, "chords": 0.6, "lead": 0.6, "drums": 0.2, "side": 0.2,
    "mood": 0.25, "pace": 0.2, "key": 0.85, "tempo": 0.85, "filler": 0.2,
    "turn": 0.6, "swing": 0.6,
}  # fmt: skip
SENTENCE = "a {mood} {style} song with {chords} and {lead} in {key} at {tempo}"
SENTENCES = 0.15  # share of the captions that are a whole sentence


def key_name(song: Song, rng: np.random.Generator | None = None) -> str:
    """Returns the key, such as "A# minor"; with `rng` sometimes as "Bb minor" or "Bbm"."""
    names = SHARP if rng is None or rng.random() < 0.6 else FLAT
    short = rng is not None and song.mode == "minor" and rng.random() < 0.15
    return names[song.tonic] + ("m" if short else f" {song.mode}")


def caption(song: Song, rng: np.random.Generator) -> str:
    """Returns a random caption of the song: "lofi chill, warm piano, C minor, 80 bpm"."""
    words = describe(song, rng)
    if rng.random() < SENTENCES:
        return SENTENCE.format(**words)
    parts = [text for name, text in words.items() if rng.random() < NAMED[name]]
    if rng.random() < 0.5:
        rng.shuffle(parts)
    return ", ".join(parts)


def describe(song: Song, rng: np.random.Generator) -> dict[str, str]:
    """Returns a random wording for each property of the song."""
    choices = {
        "style": STYLE_WORDS[song.style],
        "chords": SOUND_WORDS[song.chord_sound],
        "lead": SOUND_WORDS[song.lead_sound],
        "drums": DRUM_WORDS[song.drums],
        "side": SIDES[song.lead_side],
        "mood": MOODS[song.mode],
        "filler": FILLERS,
    }
    if song.turn == "break" or song.fills:
        choices["turn"] = TURN_WORDS[song.turn]
    if song.swing:
        choices["swing"] = SWING_WORDS
    if not SLOW <= song.tempo < FAST:
        choices["pace"] = PACES[song.tempo < SLOW]
    picked = {name: words[int(rng.integers(len(words)))] for name, words in choices.items()}
    return picked | {"key": key_name(song, rng), "tempo": f"{song.tempo} bpm"}


def vocabulary() -> list[str]:
    """Returns every text that captions contain, without tempos and the unknown word."""
    tables = (STYLE_WORDS, SOUND_WORDS, MOODS, SIDES, DRUM_WORDS, TURN_WORDS)
    texts = [text for table in tables for words in table.values() for text in words]
    minors = [f"{name}m" for name in (*SHARP, *FLAT)]
    plain = SENTENCE.translate(str.maketrans("", "", "{}"))
    return [
        *texts,
        *MOODS,
        *SHARP,
        *FLAT,
        *minors,
        *SWING_WORDS,
        *FILLERS[:-1],
        *PACES[0],
        *PACES[1],
        plain,
        "bpm",
    ]
