"""Codes <-> sound: EnCodec and Multi-Band Diffusion. Independent of prompts and requests."""
