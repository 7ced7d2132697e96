"""Codes <-> sound: EnCodec, Multi-Band Diffusion. Knows nothing of what codes were made from."""
