"""EnCodec in chunks equals EnCodec in one call, whatever its kernel sizes."""

import pytest
import torch
from audiocraft.models.builders import get_compression_model
from omegaconf import OmegaConf

from musicgen.rendering import encodec
from musicgen.rendering.codec import from_audiocraft
from training import configs

SHAPES = {
    "published": {},
    "causal": {"causal": True, "pad_mode": "reflect"},
    "long kernels": {"kernel_size": 31, "residual_kernel_size": 15},
    "many residual layers": {"n_residual_layers": 4, "dilation_base": 4},
    "few samples per frame": {"ratios": [2, 2]},
    "without LSTM": {"lstm": 0, "residual_kernel_size": 21},
}


@pytest.mark.parametrize("name", SHAPES)
def test_chunks_equal_one_call(monkeypatch, name):
    config = OmegaConf.create(configs.codec_config())
    config.seanet.update(SHAPES[name])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = get_compression_model(config).eval()
        codec = encodec.load_encodec(from_audiocraft(None, config), theirs.state_dict())
        wav = torch.randn(1, 1, 50 * codec.config.hop)
        embeddings = torch.randn(1, codec.config.dimension, 50)
    layers = codec.encoder[: -2 - codec.lstms]
    with torch.inference_mode():
        whole = layers(wav), codec.render(embeddings)
        monkeypatch.setattr(encodec, "CHUNK_FRAMES", 7)
        chunks = (
            encodec._in_chunks(layers, wav, codec.config.hop, 1, codec.margin),
            codec.render(embeddings),
        )
    for expected, found in zip(whole, chunks, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
