"""Joins codecs into one, whose output is the sum of theirs and whose codes are all of theirs."""

from itertools import accumulate, pairwise

import torch
from audiocraft.models.encodec import EncodecModel
from torch import Tensor

V, G = "weight_v", "weight_g"  # weight norm stores a direction and a magnitude


@torch.no_grad()
def join(parts: list[EncodecModel], whole: EncodecModel) -> EncodecModel:
    """Returns `whole` with the filters, dimensions and codebooks of `parts`, in this order.

    No weight connects the filters of two parts, and each codebook uses only its part's dimensions.
    """
    states, joined = [part.state_dict() for part in parts], whole.state_dict()
    for name in joined:
        if name.endswith(V):
            weight = _blocks([_weight(state, name) for state in states], joined[name].shape)
            joined[name].copy_(weight)
            joined[_size(name)].copy_(_norm(weight))
        elif name.endswith("bias"):
            biases = [state[name] for state in states]
            shared = joined[name].shape == biases[0].shape
            joined[name].copy_(sum(biases) if shared else torch.cat(biases))
    whole.load_state_dict(joined)
    _join_codebooks(parts, whole)
    return whole


def _weight(state: dict[str, Tensor], name: str) -> Tensor:
    return state[_size(name)] * state[name] / _norm(state[name])


def _size(name: str) -> str:
    return name.removesuffix(V) + G


def _norm(weight: Tensor) -> Tensor:
    return weight.flatten(1).norm(dim=1)[:, None, None]


def _blocks(weights: list[Tensor], shape: torch.Size) -> Tensor:
    """Returns weights [a, b, kernel] as a block diagonal; all parts share the audio channel."""
    placed = torch.zeros(shape)
    rows, columns = (_ends([w.shape[axis] for w in weights], shape[axis]) for axis in (0, 1))
    for weight, row, column in zip(weights, rows, columns, strict=True):
        placed[row, column] = weight
    return placed


def _ends(sizes: list[int], whole: int) -> list[slice]:
    """Returns the slice of each part: consecutive, unless all share one channel."""
    if whole == 1:
        return [slice(0, 1)] * len(sizes)
    return [slice(*ends) for ends in pairwise(accumulate(sizes, initial=0))]


def _join_codebooks(parts: list[EncodecModel], whole: EncodecModel) -> None:
    dimensions = _ends([part.quantizer.dimension for part in parts], whole.quantizer.dimension)
    layers = iter(whole.quantizer.vq.layers)
    for part, dimension in zip(parts, dimensions, strict=True):
        for source in part.quantizer.vq.layers:
            book, own = next(layers)._codebook, source._codebook
            for name in ("embed", "embed_avg"):
                getattr(book, name).zero_()[:, dimension] = getattr(own, name)
            book.cluster_size.copy_(own.cluster_size)
            book.inited.fill_(1)
