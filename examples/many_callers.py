"""Call one model from many threads: their clips are decoded together, one step for all.

python examples/many_callers.py
"""

from concurrent.futures import ThreadPoolExecutor

from musicgen import Generation, MusicGen, Request, save

PROMPTS = ["lofi chill, piano", "trap, dark bells", "deep house, organ", "calm ambient, pad"]

model = MusicGen.load("weights/demo")


def generate(seed: int) -> Generation:
    """One caller's clip."""
    return model.generate(Request(prompt=PROMPTS[seed % len(PROMPTS)], duration=2, seed=seed))


with ThreadPoolExecutor(8) as callers:
    generations = list(callers.map(generate, range(8)))
for generation in generations:
    save(generation, f"caller-{generation.seed}.mp3")

# The same request by itself gives the same samples, bit for bit.
assert generate(5).wavs[0].equal(generations[5].wavs[0])
print(f"{len(generations)} clips; clip 5 generated again is identical")
