"""Weights on the disk: found, checked, read, fetched, converted. Knows not what they compute."""
