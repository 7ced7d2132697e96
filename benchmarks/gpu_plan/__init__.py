"""Predicts a decode step's time on GPUs that are not available, from the launches it would make."""
