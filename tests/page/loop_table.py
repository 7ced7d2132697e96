"""A table of the loops of 20 prompts: python tests/page/loop_table.py http://127.0.0.1:5000

Seeds are tried in order until a loop of two bars has the asked tempo, at most SEEDS of them. The
seam is the largest jump from the last to the first sample of all loops of that clip, next to the
median jump between two samples of the clip.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import soundfile

from musicgen.commands import client
from musicgen.commands.client import Client
from musicgen.page import loops, prompts

STYLES = ("deep house, organ chords", "lofi chill, warm piano", "pop, piano chords", "soul, rhodes")
# A beat of the demo's music lasts a whole number of 20 ms, and these tempos do nearly.
TEMPOS = (79, 97, 111, 125, 143)
BARS = 2
SEEDS = 9  # the first, and those of two times "Try 4 more"


def main(url: str) -> None:
    server = Client(url.rstrip("/"))
    print("| prompt | seeds tried | bpm of 2 bars | off | seam | median jump |")
    print("| --- | --- | --- | --- | --- | --- |")
    found = 0
    with tempfile.TemporaryDirectory() as folder:
        for style in STYLES:
            for tempo in TEMPOS:
                row, fits = measure(server, f"{style}, A minor, {tempo} bpm", tempo, Path(folder))
                print(row, flush=True)
                found += fits
    print(f"\n{found} of {len(STYLES) * len(TEMPOS)} within {loops.TOLERANCE:.0%}")


def measure(server: Client, prompt: str, tempo: int, folder: Path) -> tuple[str, bool]:
    """A row of the table for one prompt, and whether a loop has its tempo."""
    inputs = {"prompt": prompt, "output_format": "wav"}
    inputs |= {"duration": prompts.seconds_of_bars(BARS, tempo) + 4}
    best = f"| {prompt} | {SEEDS} | none | | | |"
    for seed in range(1, SEEDS + 1):
        prediction = server.predict(inputs | {"seed": seed})
        file = client.save(prediction.audio[0], folder, client.new_id())
        cuts = loops.find(file, float(tempo))
        two = next((loop for loop in cuts.found if loop.bars == BARS), None)
        if two is None:
            continue
        seam, median = seams(file, cuts)
        off = two.tempo / tempo - 1
        best = f"| {prompt} | {seed} | {two.tempo:.1f} | {off:+.1%} | {seam:.5f} | {median:.5f} |"
        if cuts.has_tempo(two):
            return best, True
    return best, False


def seams(file: Path, cuts: loops.Loops) -> tuple[float, float]:
    """The largest jump at a seam, and the median jump of the clip."""
    whole, _ = soundfile.read(file, dtype=np.float32, always_2d=True)
    joined = [loops.samples(file, loop)[0] for loop in cuts.found]
    largest = max(float(np.abs(wave[0] - wave[-1]).max()) for wave in joined)
    return largest, float(np.median(np.abs(np.diff(whole, axis=0)).max(1)))


if __name__ == "__main__":
    main(sys.argv[1])
