"""The command: measures a checkpoint over fixed seeds, beside the same one untrained or another.

Songs are drawn from seeds that training never uses. What is asked of a model is asked of the
songs themselves too ("recordings"): no model can be expected to do better than those. As a set,
other songs stand in for them.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import soundfile
import torch

from musicgen.checkpoints import folders
from musicgen.pipeline import MusicGen
from musicgen.request import Request
from training import captions, codec, dataset, lm, measures, song, synth
from training.export import export

FIRST_SEED = codec.HELD_OUT * 2
SEEDS = 20
SECONDS = float(dataset.SECONDS)
PROMPT_SECONDS = 3.0
SEEN_AHEAD = 0.2  # seconds before the prompt's end whose rendering depends on what follows
FEW = 10  # prompts of which there is less to ask, or whose clips are looked at
SPEED_SECONDS = 8
HIGHEST_SHOWN = 14000  # Hz
T = TypeVar("T")
TEMPO, KEY = "tempo within 5%", "key in the first 3"


@dataclass(frozen=True)
class Recording:
    """A held-out song: wav [2, N], its lead alone [2, N], the prompt that describes it."""

    song: song.Song
    seed: int
    wav: np.ndarray
    lead: np.ndarray

    @property
    def prompt(self) -> str:
        words = [self.song.style, self.song.chord_sound, self.song.lead_sound, self.key]
        return ", ".join([*words, f"{self.song.tempo} bpm"])

    @property
    def key(self) -> str:
        return captions.key_name(self.song)

    def has_tempo(self, wav: np.ndarray) -> bool:
        return measures.is_tempo(measures.tempo(wav), self.song.tempo)

    def has_key(self, wav: np.ndarray) -> bool:
        return self.key in measures.keys(wav)[:3]


def recordings(count: int, first: int = FIRST_SEED) -> list[Recording]:
    made = []
    for seed in range(first, first + count):
        drawn = song.draw(np.random.default_rng(seed))
        stems = synth.render(drawn, SECONDS)
        made.append(Recording(drawn, seed, synth.mix(stems), stems["lead"]))
    return made


class Judge:
    """What one model makes of the recordings."""

    def __init__(self, model: MusicGen, heard: list[Recording], folder: Path) -> None:
        self.model, self.heard, self.folder = model, heard, folder
        self.prompted = cache(self._prompted)

    def generate(self, recording: Recording, **fields: object) -> np.ndarray:
        """One clip [2, N]; `audio` may be a wav [C, N]."""
        audio = fields.pop("audio", None)
        if audio is not None:
            path = self.folder / "audio.wav"
            soundfile.write(path, np.asarray(audio).T, synth.SAMPLE_RATE, subtype="FLOAT")
            fields["audio"] = path
        seed = recording.seed % 2**16
        request = Request(**{"duration": SECONDS, "seed": seed} | fields)  # type: ignore[arg-type]
        return self.model.generate(request).wavs[0].numpy()

    def _prompted(self, count: int | None = None) -> list[np.ndarray]:
        """What the prompts of the first recordings, or of all, give."""
        return [self.generate(one, prompt=one.prompt) for one in self.heard[:count]]

    def rebuild(self, wav: np.ndarray) -> np.ndarray:
        """wav [2, N] through the codec."""
        codes = self.model.codec.encode(torch.from_numpy(wav))
        return self.model.codec.decode(codes[None], [0])[0].numpy()[:, : wav.shape[1]]

    def codec(self) -> dict[str, float]:
        rebuilt = [self.rebuild(one.wav) for one in self.heard]
        pairs = [
            (one.wav[side], wav[side])
            for one, wav in zip(self.heard, rebuilt, strict=True)
            for side in (0, 1)
        ]
        return {
            "codec: log-spectral distance, dB": mean(
                measures.log_spectral_distance(*pair) for pair in pairs
            ),
            "codec: SI-SDR, dB": mean(measures.si_sdr(*pair) for pair in pairs),
        }

    def text(self) -> dict[str, float]:
        """How many prompts' clips have the tempo, and the key, that was asked for."""
        pairs = list(zip(self.heard, self.prompted(), strict=True))
        return {
            TEMPO: sum(one.has_tempo(wav) for one, wav in pairs),
            KEY: sum(one.has_key(wav) for one, wav in pairs),
        }

    def sound(self) -> dict[str, float]:
        """How near the clips of all prompts come to the recordings, as a set."""
        return sound(self.prompted(), [one.wav for one in self.heard])

    def melody(self) -> dict[str, float]:
        """Chroma cosine with a melody that was given, and of other songs' clips with it."""
        given = mean(
            measures.chroma_similarity(self.generate(one, audio=one.lead), one.lead)
            for one in self.heard
        )
        others = zip(self.heard, others_of(self.prompted()), strict=True)
        not_given = mean(measures.chroma_similarity(wav, one.lead) for one, wav in others)
        return {"melody: cosine, given": given, "melody: cosine, not given": not_given}

    def continuation(self) -> dict[str, float]:
        cut = round(PROMPT_SECONDS * synth.SAMPLE_RATE)
        kept = cut - round(SEEN_AHEAD * synth.SAMPLE_RATE)
        differences, seams, tempos = [], [], []
        for one in self.heard:
            prompt = one.wav[:, :cut]
            wav = self.generate(one, audio=prompt, continuation=True)
            differences.append(np.abs(wav[:, :kept] - self.rebuild(prompt)[:, :kept]).max())
            seams.append(measures.seam(wav, cut) <= 1)
            tempos.append(one.has_tempo(wav[:, cut:]))
        return {
            "continuation: largest difference from the prompt's rendering": float(max(differences)),
            "continuation: no click at the seam": sum(seams),
            "continuation: tempo carries on": sum(tempos),
        }

    def greedy(self) -> dict[str, float]:
        """How many of the first prompts give the same clip twice at temperature 0."""
        pairs = [
            [
                self.generate(one, prompt=one.prompt, temperature=0.0, duration=2, seed=seed)
                for seed in (1, 2)
            ]
            for one in self.heard[:FEW]
        ]
        return {"temperature 0: the same clip twice": sum(np.array_equal(*pair) for pair in pairs)}

    def speed(self) -> dict[str, float]:
        started = time.perf_counter()
        self.generate(self.heard[0], prompt=self.heard[0].prompt, duration=SPEED_SECONDS)
        return {f"seconds for {SPEED_SECONDS} s of audio": time.perf_counter() - started}

    def everything(self) -> dict[str, float]:
        parts: list[Callable[[], dict[str, float]]] = [
            self.codec, self.text, self.sound, self.melody, self.continuation, self.greedy
        ]  # fmt: skip
        found: dict[str, float] = {}
        for part in parts:
            measured = part()
            print(*(f"{name}: {value:.3g}" for name, value in measured.items()), sep="\n")
            found |= measured
        return found


def sound(wavs: list[np.ndarray], recorded: list[np.ndarray]) -> dict[str, float]:
    """Level of rests, power of hats, and the distance of wavs [2, N] from what was recorded."""
    return {
        "rests: level, dBFS": measures.floor(wavs),
        "hats: power from 6 to 12 kHz, dBFS": measures.hats(wavs),
        "Frechet distance from the recordings": measures.frechet_distance(wavs, recorded),
    }


def reference(heard: list[Recording]) -> dict[str, float]:
    """The same questions asked of the recordings themselves."""
    cut = round(PROMPT_SECONDS * synth.SAMPLE_RATE)
    pairs = list(zip(heard, others_of(heard), strict=True))
    more = recordings(len(heard), FIRST_SEED + len(heard))
    return {
        **sound([one.wav for one in more], [one.wav for one in heard]),
        TEMPO: sum(one.has_tempo(one.wav) for one in heard),
        KEY: sum(one.has_key(one.wav) for one in heard),
        "melody: cosine, given": mean(
            measures.chroma_similarity(one.wav, one.lead) for one in heard
        ),
        "melody: cosine, not given": mean(
            measures.chroma_similarity(other.wav, one.lead) for one, other in pairs
        ),
        "continuation: tempo carries on": sum(one.has_tempo(one.wav[:, cut:]) for one in heard),
    }


def others_of(songs: list[T]) -> list[T]:
    """For each song's, what is another's."""
    return [*songs[3:], *songs[:3]]


def mean(values) -> float:
    return float(np.mean(list(values)))


def spectrograms(titled: dict[str, np.ndarray], path: Path) -> None:
    """Draw the spectrogram of each wav [N]."""
    from matplotlib.figure import Figure

    figure = Figure((10, 1.6 * len(titled)), layout="constrained")
    axes = figure.subplots(len(titled), 1, sharex=True)
    for axis, (title, wav) in zip(axes, titled.items(), strict=True):
        _specgram(axis, wav)
        axis.set(title=title, ylabel="Hz")
    figure.savefig(path, dpi=70)


def _specgram(axis: Any, wav: np.ndarray) -> None:
    axis.specgram(wav + 1e-6, NFFT=1024, Fs=synth.SAMPLE_RATE, noverlap=512, vmin=-130, vmax=-30)
    axis.set_ylim(0, HIGHEST_SHOWN)


def judged(weights: Path, seeds: int) -> dict[str, float]:
    """Everything but the speed, which wants the machine for itself."""
    with tempfile.TemporaryDirectory() as folder:
        return Judge(MusicGen.load(weights), recordings(seeds), Path(folder)).everything()


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="training/evaluate",
        description="Measure a checkpoint over fixed seeds, beside an untrained or an earlier one.",
    )
    parser.add_argument("--model", type=Path, default=folders.DEFAULT)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--before", type=Path, help="the earlier one; its clips are looked at, too")
    options = parser.parse_args()
    heard = recordings(options.seeds)
    with tempfile.TemporaryDirectory() as folder:
        name, other = "before", options.before
        if other is None:
            name, other = "untrained", Path(folder) / "untrained"
            export(codec.build(), lm.Demo(), other, "untrained")
        weights = {"trained": options.model, name: other}
        with ProcessPoolExecutor(len(weights), get_context("spawn")) as pool:
            found = pool.map(judged, weights.values(), [options.seeds] * len(weights))
            results = dict(zip(weights, found, strict=True))
        judges = {key: Judge(MusicGen.load(w), heard, Path(folder)) for key, w in weights.items()}
        for key, judge in judges.items():
            results[key] |= judge.speed()
        draw(judges["trained"], judges[name], name, options.model / "spectrograms.png")
        if options.before:
            shown = {key: judge.prompted(FEW) for key, judge in judges.items()}
            shown["recording"] = [one.wav for one in heard[:FEW]]
            look(shown, [one.prompt for one in heard], options.model / "look.png")
    results["recordings"] = reference(heard)
    (options.model / "evaluation.json").write_text(json.dumps(results, indent=2) + "\n")
    print(table(results, len(heard)))


def draw(trained: Judge, other: Judge, name: str, path: Path) -> None:
    """Spectrograms of the first recording, of both codecs' rendering, of what its prompt gives."""
    one = trained.heard[0]
    given = trained.generate(one, prompt=one.prompt)
    pictures = {}
    for channel, side in enumerate(("left", "right")):
        pictures |= {
            f"{side}: recording": one.wav[channel],
            f"{side}: through the codec": trained.rebuild(one.wav)[channel],
            f"{side}: through the codec, {name}": other.rebuild(one.wav)[channel],
            f"{side}: generated, {one.prompt}": given[channel],
        }
    spectrograms(pictures, path)


def look(shown: dict[str, list[np.ndarray]], prompts: list[str], path: Path) -> None:
    """Spectrograms of wavs [2, N], each prompt's in a drawn order; prints what is what."""
    from matplotlib.figure import Figure

    names, rows = list(shown), len(next(iter(shown.values())))
    figure = Figure((3.6 * len(names), 1.5 * rows), layout="constrained")
    axes = figure.subplots(rows, len(names), sharex=True, sharey=True)
    for row, columns in enumerate(axes):
        order = np.random.default_rng(row).permutation(names)
        print(row + 1, prompts[row], *order, sep=" | ")
        for letter, axis, name in zip("abc", columns, order, strict=True):
            _specgram(axis, shown[name][row].mean(0))
            axis.set_title(f"{row + 1}{letter}")
    figure.savefig(path, dpi=60)


def table(results: dict[str, dict[str, float]], seeds: int) -> str:
    """The results as Markdown."""
    lines = [f"| over {seeds} seeds | {' | '.join(results)} |", "|---" * (len(results) + 1) + "|"]
    for name in results["trained"]:
        cells = (found.get(name) for found in results.values())
        lines.append(f"| {name} | {' | '.join('' if c is None else f'{c:.3g}' for c in cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
