"""The longest clips, in stereo and in every mode, take bounded memory and delay no short clip."""

import base64
from pathlib import Path

import numpy as np
import pytest
import sounds
import tiny_checkpoints
from cog_client import data_uri, samples
from gate import until

from musicgen.commands.client import Client
from musicgen.commands.events import Metric

LONGEST = 300
# Bytes that the worker may need at its peak beyond its idle memory. Activations, which grow with
# the width of a network, are negligible in these tiny models.
MEMORY = 1.5e9
MODES = [
    ("text", "mp3", "loudness"),
    ("text", "wav", "clip"),
    ("melody", "mp3", "rms"),
    ("continuation", "wav", "peak"),
    ("diffusion", "mp3", "loudness"),
]


@pytest.fixture(scope="module")
def server(start_server, tmp_path_factory):
    folder = tmp_path_factory.mktemp("diffusing")
    tiny_checkpoints.write_checkpoint(folder, "stereo-melody")
    tiny_checkpoints.write_diffusion(folder)
    return start_server("predict", folder)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """mode -> inputs that select it; the melody is as long as the clip."""
    folder = tmp_path_factory.mktemp("long")
    song = data_uri(sounds.write(folder / "a.mp3", sounds.melody(float(LONGEST))), "audio/mp3")
    return {
        "text": {"prompt": "warm piano"},
        "melody": {"prompt": "warm piano", "input_audio": song},
        "continuation": {"input_audio": song, "continuation": True, "continuation_end": 200},
        "diffusion": {"multi_band_diffusion": True},
    }


def peak(worker):
    """The largest resident memory of a process in bytes, since `reset_peak`."""
    lines = Path(f"/proc/{worker.pid}/status").read_text().splitlines()
    [line] = [line for line in lines if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def reset_peak(worker):
    Path(f"/proc/{worker.pid}/clear_refs").write_text("5")


def needed(processes, call):
    """What `call` returns, and the bytes of memory that each process needed for it."""
    for process in processes:
        reset_peak(process)
    idle = [process.memory_info().rss for process in processes]
    result = call()
    return result, [peak(process) - before for process, before in zip(processes, idle, strict=True)]


@pytest.mark.full
@pytest.mark.parametrize(("mode", "output_format", "normalization"), MODES)
def test_five_minutes_of_stereo_take_bounded_memory(
    server, inputs, mode, output_format, normalization
):
    common = {"output_format": output_format, "normalization_strategy": normalization}
    begun = inputs[mode] | {"continuation_end": 1} if mode == "continuation" else inputs[mode]
    server.predict(**common, **begun, duration=2)  # loads lazily loaded parts
    asked = {**common, **inputs[mode], "duration": LONGEST}
    answer, [more] = needed([server.worker()], lambda: server.predict(**asked))
    print(mode, output_format, normalization, f"{more / 1e6:.0f} MB")
    check_clip(answer["output"])
    assert more < MEMORY


def check_clip(output):
    assert output["duration"] == LONGEST
    if output["output_format"] == "wav":
        wav, rate = samples(output["audio"])
        assert wav.shape == (2, LONGEST * rate)
        assert np.isfinite(wav).all()


@pytest.fixture(scope="module")
def streaming_server(start_server):
    return start_server("streaming")


@pytest.mark.full
@pytest.mark.parametrize(("output_format", "normalization"), [("mp3", "loudness"), ("wav", "clip")])
def test_five_minutes_in_pieces_take_bounded_memory(streaming_server, output_format, normalization):
    """In the worker, and in Cog's process, which keeps the last events and all of the answer."""
    asked = {"output_format": output_format, "normalization_strategy": normalization}
    client, worker = Client(streaming_server.url), streaming_server.worker()
    client.predict({**asked, "duration": 2})

    def read():
        seconds = 0.0
        for event in client.stream({**asked, "duration": LONGEST}):
            if isinstance(event, Metric) and event.name == "piece" and event.value:
                size = len(base64.b64decode(event.value["pcm"]))
                seconds += size / (2 * event.value["channels"] * event.value["sample_rate"])
        return seconds, event.output

    (seconds, output), more = needed([worker, worker.parent()], read)
    print(output_format, normalization, *(f"{size / 1e6:.0f} MB" for size in more))
    check_clip(output)
    assert seconds == LONGEST
    assert max(more) < MEMORY


def test_a_short_clip_is_made_while_a_long_diffusion_runs(server):
    """Decode steps, codec and file of a short clip all proceed before the diffusion ends."""
    long = server.begin("long", multi_band_diffusion=True, duration=6)
    until(lambda: server.says("long", "diffusion band 1"))
    for _ in range(2):
        server.predict(duration=1)
    assert not server.says("long", "Prediction worker completed")
    assert not server.says("long", "band 4/4: 100%")
    long.close()
    until(lambda: server.says("long", "cancelled"))
