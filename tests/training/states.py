"""What a training changed."""

import torch


def changed(before, after):
    """The modules, by their names, of which two states differ."""
    assert before.keys() == after.keys()
    return {
        name.partition(".")[0]
        for name, value in before.items()
        if not torch.equal(value, after[name])
    }
