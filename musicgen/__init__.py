"""MusicGen inference: a request in, normalized audio files out. Knows nothing of Cog."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent  # the repository, or /src in Cog's image
