"""MusicGen inference: a request in, normalized audio files out. Knows nothing of Cog."""
