"""scripts/bench --audio: the seconds to load audio files, as `input_audio` is loaded."""

import json
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from time import perf_counter

import imageio_ffmpeg

from musicgen.audio import load_slice

SECONDS_SHORT, HOURS_LONG = 180, 2
SLICE = 2  # seconds at the end of a long file
LOAD = {"sample_rate": 32000, "channels": 2}
TONE = "aevalsrc='0.3*sin(440*PI*t)|0.3*sin(660*PI*t)':s=44100:d=60"
# Format -> ffmpeg's options. A flac is encoded anew, because its frames have numbers.
FORMATS = {
    "mp3": ("-c", "copy"),
    "mp3 without index": ("-c", "copy", "-write_xing", "0"),
    "flac": (),
    "m4a": ("-c", "copy"),
}


def main(repeats: int) -> None:
    """Print a table, then one line of JSON."""
    with tempfile.TemporaryDirectory() as folder:
        files = make_files(Path(folder))
        results = {name: measure(*arguments, repeats) for name, arguments in files.items()}
    print("| file | median s | fastest s |\n|---|---|---|")
    for name, seconds in results.items():
        print(f"| {name} | {median(seconds):.2f} | {min(seconds):.2f} |")
    print(json.dumps({"repeats": repeats, "seconds": results}))


def make_files(folder: Path) -> dict[str, tuple[Path, int, float]]:
    """What is loaded -> (file, first second, at most so many seconds of it)."""
    folder.mkdir(exist_ok=True)
    minute = folder / "minute.wav"
    run_ffmpeg("-f", "lavfi", "-i", TONE, minute)
    for suffix in ("mp3", "m4a"):
        run_ffmpeg("-i", minute, "-b:a", "128k", minute.with_suffix(f".{suffix}"))
    short = repeat(minute.with_suffix(".mp3"), folder / "short.mp3", SECONDS_SHORT, FORMATS["mp3"])
    found = {f"mp3 of {SECONDS_SHORT} s, all of it": (short, 0, float(SECONDS_SHORT))}
    length = HOURS_LONG * 3600
    for name, options in FORMATS.items():
        suffix = name.split()[0]
        source = minute.with_suffix(f".{suffix}") if "copy" in options else minute
        path = repeat(source, folder / f"{name.replace(' ', '-')}.{suffix}", length, options)
        label = f"{name} of {HOURS_LONG} hours, last {SLICE} s"
        found[label] = (path, length - SLICE, float(SLICE))
    return found


def repeat(source: Path, path: Path, seconds: int, options: Sequence[str]) -> Path:
    """A file of `seconds` from a file of one minute."""
    run_ffmpeg("-stream_loop", "-1", "-i", source, "-t", seconds, *options, path)
    return path


def run_ffmpeg(*arguments: str | int | Path) -> None:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *map(str, arguments)]
    subprocess.run(command, check=True)


def measure(path: Path, start: int, limit: float, repeats: int) -> list[float]:
    """Seconds of each repeat, after one that warms up."""
    seconds = []
    for _ in range(repeats + 1):
        begin = perf_counter()
        load_slice(path, start, None, limit=limit, **LOAD)
        seconds.append(perf_counter() - begin)
    return seconds[1:]
