"""Text and melody -> what the decoder is conditioned on. Knows nothing of codes or requests."""
