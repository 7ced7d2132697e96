"""Generate a clip from a text prompt and save it as mp3.

python examples/generate.py "soul, rhodes, F minor, 90 bpm"
"""

import sys

from musicgen import MusicGen, Request, save

prompt = sys.argv[1] if len(sys.argv) > 1 else "lofi chill, warm piano, C minor, 80 bpm"
model = MusicGen.load("weights/demo")
generation = model.generate(Request(prompt=prompt, duration=4, seed=80))
[path] = save(generation, "generate.mp3")
print(f"{path}: {generation.duration:.1f} s, seed {generation.seed}")
