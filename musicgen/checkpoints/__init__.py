"""Checkpoints on disk: choose the folder, check and read its files, fetch and convert models.

Independent of what the models compute.
"""
