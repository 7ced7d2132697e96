"""T5's encoder: tokens -> embeddings.

Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text
Transformer". The arithmetic is transformers'. transformers itself is not used because importing it
takes longer than everything else that starts a server.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from musicgen.checkpoints.limits import check_numbers
from musicgen.checkpoints.transformers_model import CONFIG_FILE, TransformersModel
from musicgen.errors import WeightsError

# Setting of transformers' configuration -> its default.
DEFAULTS: dict[str, Any] = {
    "feed_forward_proj": "relu",
    "layer_norm_epsilon": 1e-6,
    "num_heads": 8,
    "num_layers": 6,
    "relative_attention_max_distance": 128,
    "relative_attention_num_buckets": 32,
}
# Number -> the largest accepted value, far above that of the largest T5.
LIMITS = {
    "layer_norm_epsilon": 1.0,
    "num_heads": 2**10,
    "num_layers": 2**8,
    "relative_attention_max_distance": 2**20,
    "relative_attention_num_buckets": 2**12,
}


class T5Encoder:
    """The encoder of a T5 in transformers' format, in fp32 on `device`."""

    def __init__(self, model: TransformersModel, device: torch.device) -> None:
        config = DEFAULTS | model.config
        if config["feed_forward_proj"] != "relu":
            raise WeightsError(
                f"{model.folder}: T5 with feed_forward_proj={config['feed_forward_proj']!r} is not "
                "supported; the text encoder of a MusicGen has 'relu'."
            )
        path = model.folder / CONFIG_FILE
        check_numbers(path, config, LIMITS)
        self.heads: int = config["num_heads"]
        self.epsilon: float = config["layer_norm_epsilon"]
        self.buckets: int = config["relative_attention_num_buckets"]
        self.distance: int = config["relative_attention_max_distance"]
        if self.buckets % 4 or self.distance <= self.buckets // 4:
            raise WeightsError(
                f"{path}: relative_attention_max_distance={self.distance} with "
                f"relative_attention_num_buckets={self.buckets} is not supported; the number of "
                "buckets must be a multiple of 4, and the distance more than a quarter of it."
            )
        self.state = _encoder_state(model, config["num_layers"], self.buckets, self.heads, device)
        self.width = self.state["embedding"].shape[1]
        self.layers = [
            {key: self.state[name] for key, name in _layer_names(i).items()}
            for i in range(config["num_layers"])
        ]

    def __call__(self, tokens: Tensor) -> Tensor:
        """Tokens [L] -> [L, d_model]."""
        x = F.embedding(tokens, self.state["embedding"])
        bias = self._position_bias(len(tokens))
        for layer in self.layers:
            x = x + self._attend(self._norm(x, layer["norm1"]), layer, bias)
            hidden = F.relu(F.linear(self._norm(x, layer["norm2"]), layer["up"]))
            x = x + F.linear(hidden, layer["down"])
        return self._norm(x, self.state["norm"])

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, weight.shape, weight, self.epsilon)

    def _attend(self, x: Tensor, layer: Mapping[str, Tensor], bias: Tensor) -> Tensor:
        """Self-attention of x [L, d_model]; T5's scores are not scaled."""
        q, k, v = (
            F.linear(x, layer[key]).unflatten(-1, (self.heads, -1)).transpose(0, 1) for key in "qkv"
        )
        weights = torch.softmax(q @ k.mT + bias, dim=-1)
        return F.linear((weights @ v).transpose(0, 1).flatten(1), layer["out"])

    def _position_bias(self, length: int) -> Tensor:
        """The term of each attention score that depends on the tokens' distance: [heads, L, L].

        Half of the buckets are for earlier tokens, half for later ones. In each half, half of the
        buckets stand for one distance each, the others for logarithmic ranges up to `distance`.
        """
        table = self.state["bias"]
        position = torch.arange(length, device=table.device)
        offset = position[None, :] - position[:, None]
        half = self.buckets // 2
        exact = half // 2
        distance = offset.abs()
        scale = (half - exact) / math.log(self.distance / exact)
        far = exact + (torch.log(distance.clamp(min=1) / exact) * scale).long()
        bucket = torch.where(distance < exact, distance, far.clamp(max=half - 1))
        return F.embedding(bucket + half * (offset > 0), table).permute(2, 0, 1)


def _layer_names(index: int) -> dict[str, str]:
    """The name of a layer's weight here -> its name in transformers."""
    attention, feed_forward = (f"encoder.block.{index}.layer.{part}." for part in (0, 1))
    return {
        **{key: f"{attention}SelfAttention.{key}.weight" for key in "qkv"},
        "out": f"{attention}SelfAttention.o.weight",
        "norm1": f"{attention}layer_norm.weight",
        "up": f"{feed_forward}DenseReluDense.wi.weight",
        "down": f"{feed_forward}DenseReluDense.wo.weight",
        "norm2": f"{feed_forward}layer_norm.weight",
    }


def _encoder_state(
    model: TransformersModel, layers: int, buckets: int, heads: int, device: torch.device
) -> dict[str, Tensor]:
    """The encoder's weights in fp32. The embedding, shared with the decoder, may have two names."""
    embedding = "shared.weight" if "shared.weight" in model.state else "encoder.embed_tokens.weight"
    names = {
        "embedding": embedding,
        "bias": "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        "norm": "encoder.final_layer_norm.weight",
        **{name: name for i in range(layers) for name in _layer_names(i).values()},
    }
    missing = [name for name in names.values() if name not in model.state]
    read = {*names.values(), "encoder.embed_tokens.weight"}
    unread = [key for key in model.state if key.startswith("encoder.") and key not in read]
    if unread:
        raise WeightsError(
            f"{model.weights_file}: {unread[0]} is not part of a T5 encoder of {layers} layers "
            f"({len(unread)} such in all), so it would be ignored; fetch it again."
        )
    if missing:
        raise WeightsError(f"{model.folder}: the text encoder has no {missing[0]}; fetch it again.")
    if model.state[names["bias"]].shape != (buckets, heads):
        raise WeightsError(
            f"{model.folder}: the text encoder's weights are not those of its configuration."
        )
    return {key: model.state[name].to(device, torch.float32) for key, name in names.items()}
