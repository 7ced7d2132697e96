"""Start-up stays short: libraries that are slow to import are imported on first use."""

import subprocess
import sys

SLOW = ("audiocraft", "transformers", "demucs", "google.cloud", "librosa", "scipy.signal", "spacy")


def imported(code):
    """The slow libraries that a process has imported after `code`."""
    check = f"import sys; {code}; print(*[name for name in {SLOW} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_a_server_with_text_alone_imports_no_slow_library(checkpoints):
    load = "from musicgen.pipeline import MusicGen; from musicgen.request import Request; "
    load += f"m = MusicGen.load({str(checkpoints['stereo-melody'])!r}, 'cpu'); "
    load += "m.generate(Request(prompt='x', duration=1))"
    assert imported(f"import predict, songstarter, streaming; {load}") == []


def test_commands_start_without_torch():
    code = "import musicgen.commands.cli, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
