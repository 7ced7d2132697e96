"""The language model and its decode loop: conditions in, codes out. Independent of audio."""
