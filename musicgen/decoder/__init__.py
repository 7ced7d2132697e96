"""The language model and its loop: conditions in, codes out. Knows nothing of text or audio."""
