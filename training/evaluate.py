"""training/evaluate: measure a checkpoint over fixed seeds, beside an untrained or an earlier one.

Songs are drawn from seeds that training never uses. The measures are also taken of the songs
themselves ("recordings"), as an upper bound for any model. Measures of a set use a second set of
songs there.
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
from musicgen.runtime.devices import PRECISIONS
from training import captions, codec, dataset, lm, measures, song, synth
from training.export import export

FIRST_SEED = codec.HELD_OUT * 2
SEEDS = 20
SECONDS = float(dataset.SECONDS)
PROMPT_SECONDS = 3.0
LOOKAHEAD = 0.2  # seconds; the codec renders the end of a prompt depending on what follows it
FEW = 10  # prompts of the slower measures and of the spectrograms
SPEED_SECONDS = 8
HIGHEST_SHOWN = 14000  # Hz
T = TypeVar("T")
TEMPO, KEY = "tempo within 5%", "key in the first 3"


@dataclass(frozen=True)
class Recording:
    """A held-out song: wav [2, N], its lead alone [2, N], and its prompt."""

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


class Evaluator:
    """Measures one model on the recordings."""

    def __init__(self, model: MusicGen, songs: list[Recording], folder: Path) -> None:
        self.model, self.songs, self.folder = model, songs, folder
        self.prompted = cache(self._prompted)

    def generate(self, recording: Recording, **fields: object) -> np.ndarray:
        """Returns one generated clip [2, N]; `audio` [C, N] is sent as input_audio."""
        audio = fields.pop("audio", None)
        if audio is not None:
            path = self.folder / "audio.wav"
            soundfile.write(path, np.asarray(audio).T, synth.SAMPLE_RATE, subtype="FLOAT")
            fields["input_audio"] = path
        seed = recording.seed % 2**16
        request = Request(**{"duration": SECONDS, "seed": seed} | fields)  # type: ignore[arg-type]
        return self.model.generate(request).wavs[0].numpy()

    def _prompted(self, count: int | None = None) -> list[np.ndarray]:
        """Returns clips generated from the prompts of the first `count` recordings, or of all."""
        return [self.generate(one, prompt=one.prompt) for one in self.songs[:count]]

    def rebuild(self, wav: np.ndarray) -> np.ndarray:
        """Returns wav [2, N] encoded and decoded by the codec."""
        codes = self.model.codec.encode(torch.from_numpy(wav))
        return self.model.codec.decode(codes[None], [0])[0].numpy()[:, : wav.shape[1]]

    def codec(self) -> dict[str, float]:
        """Returns distances of the recordings from their encoded and decoded versions."""
        rebuilt = [self.rebuild(one.wav) for one in self.songs]
        pairs = [
            (one.wav[side], wav[side])
            for one, wav in zip(self.songs, rebuilt, strict=True)
            for side in (0, 1)
        ]
        return {
            "codec: log-spectral distance, dB": mean(
                measures.log_spectral_distance(*pair) for pair in pairs
            ),
            "codec: SI-SDR, dB": mean(measures.si_sdr(*pair) for pair in pairs),
        }

    def text(self) -> dict[str, float]:
        """Returns how many clips have the tempo and the key of their prompt."""
        pairs = list(zip(self.songs, self.prompted(), strict=True))
        return {
            TEMPO: sum(one.has_tempo(wav) for one, wav in pairs),
            KEY: sum(one.has_key(wav) for one, wav in pairs),
        }

    def sound(self) -> dict[str, float]:
        """Returns measures of the set of all clips, and its distance from the recordings."""
        return sound(self.prompted(), [one.wav for one in self.songs])

    def melody(self) -> dict[str, float]:
        """Returns the chroma cosine with the melody, for clips with and without that melody."""
        given = mean(
            measures.chroma_similarity(self.generate(one, audio=one.lead), one.lead)
            for one in self.songs
        )
        others = zip(self.songs, others_of(self.prompted()), strict=True)
        not_given = mean(measures.chroma_similarity(wav, one.lead) for one, wav in others)
        return {"melody: cosine, given": given, "melody: cosine, not given": not_given}

    def continuation(self) -> dict[str, float]:
        """Returns measures of continuations: the prompt's rendering, the seam, the tempo."""
        cut = round(PROMPT_SECONDS * synth.SAMPLE_RATE)
        kept = cut - round(LOOKAHEAD * synth.SAMPLE_RATE)
        differences, seams, tempos = [], [], []
        for one in self.songs:
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
        """Returns how many prompts give the same clip with two seeds at temperature 0."""
        pairs = [
            [
                self.generate(one, prompt=one.prompt, temperature=0.0, duration=2, seed=seed)
                for seed in (1, 2)
            ]
            for one in self.songs[:FEW]
        ]
        return {"temperature 0: the same clip twice": sum(np.array_equal(*pair) for pair in pairs)}

    def speed(self) -> dict[str, float]:
        """Returns the seconds of generating one clip."""
        started = time.perf_counter()
        self.generate(self.songs[0], prompt=self.songs[0].prompt, duration=SPEED_SECONDS)
        return {f"seconds for {SPEED_SECONDS} s of audio": time.perf_counter() - started}

    def everything(self) -> dict[str, float]:
        """Returns all measures except the speed, and prints them."""
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
    """Returns the level of rests, the power of hats, and the distance from `recorded`."""
    return {
        "rests: level, dBFS": measures.floor(wavs),
        "hats: power from 6 to 12 kHz, dBFS": measures.hats(wavs),
        "Frechet distance from the recordings": measures.frechet_distance(wavs, recorded),
    }


def reference(songs: list[Recording]) -> dict[str, float]:
    """Returns the same measures of the recordings themselves."""
    cut = round(PROMPT_SECONDS * synth.SAMPLE_RATE)
    pairs = list(zip(songs, others_of(songs), strict=True))
    more = recordings(len(songs), FIRST_SEED + len(songs))
    return {
        **sound([one.wav for one in more], [one.wav for one in songs]),
        TEMPO: sum(one.has_tempo(one.wav) for one in songs),
        KEY: sum(one.has_key(one.wav) for one in songs),
        "melody: cosine, given": mean(
            measures.chroma_similarity(one.wav, one.lead) for one in songs
        ),
        "melody: cosine, not given": mean(
            measures.chroma_similarity(other.wav, one.lead) for one, other in pairs
        ),
        "continuation: tempo carries on": sum(one.has_tempo(one.wav[:, cut:]) for one in songs),
    }


def others_of(songs: list[T]) -> list[T]:
    """Returns the list rotated by three, so that each item is paired with another song's."""
    return [*songs[3:], *songs[:3]]


def mean(values) -> float:
    return float(np.mean(list(values)))


def spectrograms(titled: dict[str, np.ndarray], path: Path) -> None:
    """Plot the spectrogram of each wav [N]."""
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


def evaluate(weights: Path, seeds: int, precision: str | None = None) -> dict[str, float]:
    """Returns all measures except the speed, which needs an idle machine."""
    model = MusicGen.load(weights, precision=precision)
    with tempfile.TemporaryDirectory() as folder:
        return Evaluator(model, recordings(seeds), Path(folder)).everything()


def compare_precisions(weights: Path, seeds: int) -> dict[str, dict[str, float]]:
    """Returns the measures of the exact mode, of the CPU's fast mode and of the recordings."""
    count = len(PRECISIONS)
    with ProcessPoolExecutor(count, get_context("spawn")) as pool:
        found = pool.map(evaluate, [weights] * count, [seeds] * count, PRECISIONS)
        results = dict(zip(PRECISIONS, found, strict=True))
    return {**results, "recordings": reference(recordings(seeds))}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="training/evaluate",
        description="Measure a checkpoint over fixed seeds, beside an untrained or an earlier one.",
    )
    parser.add_argument("--model", type=Path, default=folders.DEFAULT)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--before", type=Path, help="the earlier checkpoint; look.png shows it too")
    parser.add_argument(
        "--precisions",
        action="store_true",
        help="compare the exact with the fast mode of the CPU instead; writes no files",
    )
    options = parser.parse_args()
    if options.precisions:
        print(table(compare_precisions(options.model, options.seeds), options.seeds))
        return
    songs = recordings(options.seeds)
    with tempfile.TemporaryDirectory() as folder:
        name, other = "before", options.before
        if other is None:
            name, other = "untrained", Path(folder) / "untrained"
            export(codec.build(), lm.Demo(), other, "untrained")
        weights = {"trained": options.model, name: other}
        with ProcessPoolExecutor(len(weights), get_context("spawn")) as pool:
            found = pool.map(evaluate, weights.values(), [options.seeds] * len(weights))
            results = dict(zip(weights, found, strict=True))
        evaluators = {
            key: Evaluator(MusicGen.load(w), songs, Path(folder)) for key, w in weights.items()
        }
        for key, evaluator in evaluators.items():
            results[key] |= evaluator.speed()
        draw(evaluators["trained"], evaluators[name], name, options.model / "spectrograms.png")
        if options.before:
            shown = {key: evaluator.prompted(FEW) for key, evaluator in evaluators.items()}
            shown["recording"] = [one.wav for one in songs[:FEW]]
            look(shown, [one.prompt for one in songs], options.model / "look.png")
    results["recordings"] = reference(songs)
    (options.model / "evaluation.json").write_text(json.dumps(results, indent=2) + "\n")
    print(table(results, len(songs)))


def draw(trained: Evaluator, other: Evaluator, name: str, path: Path) -> None:
    """Plot the first recording, both codecs' versions of it, and the clip of its prompt."""
    one = trained.songs[0]
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
    """Plot wavs [2, N], those of each prompt in a random order; print the order."""
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
    """Returns the results as a Markdown table."""
    lines = [f"| over {seeds} seeds | {' | '.join(results)} |", "|---" * (len(results) + 1) + "|"]
    for name in next(iter(results.values())):
        cells = (found.get(name) for found in results.values())
        lines.append(f"| {name} | {' | '.join('' if c is None else f'{c:.3g}' for c in cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
