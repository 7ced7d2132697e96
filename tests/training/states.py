"""Compares the states of a model before and after training."""

import torch


def changed(before, after):
    """Returns the names of the modules whose states differ."""
    assert before.keys() == after.keys()
    return {
        name.partition(".")[0]
        for name, value in before.items()
        if not torch.equal(value, after[name])
    }
