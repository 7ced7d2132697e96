"""Predicts the time of a decode step on a GPU that is not available, from recorded launches."""
