"""EnCodec in chunks and pieces equals EnCodec in one call, whatever its kernel sizes."""

import copy
from itertools import pairwise

import pytest
import torch
from audiocraft.models.builders import get_compression_model
from omegaconf import OmegaConf

from musicgen.rendering import encodec, pieces
from musicgen.rendering.codec import from_audiocraft
from training import configs

SHAPES = {
    "published": {},
    "causal": {"causal": True, "pad_mode": "reflect"},
    "long kernels": {"kernel_size": 31, "residual_kernel_size": 15},
    "long causal kernels": {"kernel_size": 31, "causal": True, "pad_mode": "reflect"},
    "many residual layers": {"n_residual_layers": 4, "dilation_base": 4},
    "few samples per frame": {"ratios": [2, 2]},
    "odd ratios": {"ratios": [3, 5, 7]},
    "without LSTM": {"lstm": 0, "residual_kernel_size": 21},
}
# Lengths at which the schedule changes: one piece, a rest that joins it, a rest of its own.
FRAMES = [1, 25, 36, 37, 62, 150, 301]


@pytest.fixture(scope="module", params=SHAPES)
def codec(request):
    config = OmegaConf.create(configs.codec_config())
    config.seanet.update(SHAPES[request.param])
    config.encodec.sample_rate = 50 * int(torch.tensor(list(config.seanet.ratios)).prod())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = get_compression_model(config).eval()
    return encodec.load_encodec(from_audiocraft(None, config), theirs.state_dict())


def random(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
def test_encoding_in_chunks_equals_one_call(monkeypatch, codec):
    wav = random(1, 1, 50 * codec.config.hop)
    layers = codec.encoder[: -2 - codec.lstms]
    monkeypatch.setattr(encodec, "CHUNK_FRAMES", 7)
    torch.testing.assert_close(codec._in_chunks(layers, wav), layers(wav), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("frames", FRAMES)
@torch.inference_mode()
def test_rendering_in_pieces_equals_one_call(codec, frames):
    embeddings = random(2, codec.config.dimension, frames)
    found = pieces.render(codec, embeddings)
    assert found.shape[-1] == frames * codec.config.hop
    torch.testing.assert_close(found, codec.decoder(embeddings), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("frames", FRAMES)
def test_pieces_cover_the_clip_in_order(codec, frames):
    found = pieces.Rendering(codec, frames).spans
    assert [span.start for span in found] == [0, *(span.stop for span in found[:-1])]
    assert found[-1].stop == found[-1].high == frames
    assert all(span.stop <= span.high for span in found)
    assert all(second.low <= first.high for first, second in pairwise(found))


def test_the_reach_is_exact(codec):
    """A changed frame changes the samples of exactly those frames that reach it."""
    codec = copy.deepcopy(codec).double()  # small changes are lost in float32
    frames, changed = 101, 50
    for layers, width, (before, after) in (
        (codec.decoder[:1], codec.config.dimension, codec.first_reach),
        (codec.upsampling, codec.decoder[0].out_channels, codec.upsampling_reach),
    ):
        x = random(1, width, frames).double()
        other = x.clone()
        other[..., changed] += 100
        with torch.inference_mode():
            differs = (layers(x) != layers(other)).any(1)[0].unflatten(0, (frames, -1)).any(1)
        touched = differs.nonzero().flatten().tolist()
        assert touched == list(range(changed - after, changed + before + 1))
