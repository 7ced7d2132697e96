"""Follow the melody of an audio file, then continue the result.

python examples/melody_and_continuation.py docs/demo.mp3
"""

import sys
from pathlib import Path

from musicgen import MusicGen, Request, save

melody = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/demo.mp3")
model = MusicGen.load("weights/demo")

followed = model.generate(Request(prompt="string quartet", input_audio=melody, duration=4, seed=1))
[path] = save(followed, "melody.wav")

# `duration` includes the part that is continued: 4 s of it here, so 4 s are new.
continued = model.generate(Request(input_audio=path, continuation=True, duration=8, seed=1))
save(continued, "continuation.wav")
print(f"melody.wav: {followed.duration:.1f} s; continuation.wav: {continued.duration:.1f} s")
