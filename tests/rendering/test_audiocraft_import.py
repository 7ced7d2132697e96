"""Imports of audiocraft where it is not installed."""

import subprocess
import sys

from musicgen.commands.server import ROOT

WITHOUT = """
import importlib.util, sys
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name: find_spec(name) if name in sys.modules else None
sys.modules["audiocraft"] = None
for attempt in range(2):
    try:
        import musicgen.rendering.audiocraft
    except ImportError as exc:
        print(exc.name)
"""


def test_every_import_names_the_missing_library_not_only_the_first():
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == 2 * ["audiocraft.models"]
