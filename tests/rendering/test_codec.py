"""EnCodec gives audiocraft's codes and sound, from either format, for each channel separately."""

import pytest
import sounds
import torch
import transformers
from audiocraft.models.builders import get_compression_model
from audiocraft.models.encodec import InterleaveStereoCompressionModel
from audiocraft.models.loaders import load_compression_model
from omegaconf import OmegaConf

from musicgen.checkpoints.checkpoint import CODEC_FILE, open_checkpoint
from musicgen.checkpoints.folders import LM_FILE
from musicgen.errors import WeightsError
from musicgen.rendering import encodec
from musicgen.rendering.codec import Codec, from_audiocraft
from musicgen.rendering.encodec import load_encodec
from musicgen.rendering.pieces import render
from training import configs

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=["text", "stereo"])
def pair(request, checkpoints):
    """(ours, audiocraft's) of a mono and of a stereo checkpoint."""
    folder = checkpoints[request.param]
    reference = load_compression_model(folder).eval()
    if request.param == "stereo":
        reference = InterleaveStereoCompressionModel(reference)
    return Codec(open_checkpoint(folder), CPU), reference


@pytest.mark.parametrize("seconds", [0.00003, 0.019, 0.02, 0.021, 1.2345, 10.0, 23.4567])
def test_codes_equal_audiocrafts(pair, seconds):
    ours, reference = pair
    wav = torch.from_numpy(sounds.melody(seconds, 32000, ours.channels))
    if ours.channels == 2:
        wav[1] = wav[1].flip(0) * 0.5
    with torch.no_grad():
        expected, _ = reference.encode(wav[None])
    codes = ours.encode(wav)
    assert codes.shape[-1] == -(-wav.shape[-1] // 640)
    assert torch.equal(codes, expected[0])


@pytest.mark.parametrize("frames", [1, 2, 333, 500, 501, 1203])
def test_sound_equals_audiocrafts(pair, frames):
    ours, reference = pair
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(configs.CARD, (2, 4 * ours.channels, frames), generator=generator)
    with torch.no_grad():
        expected = reference.decode(codes)
    wav = ours.decode(codes, [0, 0])
    assert wav.shape == (2, ours.channels, 640 * frames)
    assert torch.allclose(wav, expected, atol=1e-5 * float(expected.abs().max()))


def test_a_codec_without_lstm_equals_audiocrafts():
    config = OmegaConf.create(configs.codec_config())
    config.seanet.lstm = 0
    theirs = get_compression_model(config).eval()
    ours = load_encodec(from_audiocraft(None, config), theirs.state_dict())
    wav = torch.randn(1, 1, 700 * ours.config.hop + 5)  # longer than a chunk
    with torch.inference_mode():
        codes, _ = theirs.encode(wav)
        assert torch.equal(ours.encode(wav), codes)
        rendered = render(ours, ours.embed(codes))
        assert torch.allclose(rendered, theirs.decode(codes), atol=1e-5)


def test_a_clip_does_not_depend_on_its_neighbours(pair):
    ours, _ = pair
    codes = torch.randint(configs.CARD, (3, 4 * ours.channels, 20))
    together = ours.decode(codes, [0, 0, 0])
    assert torch.equal(together[1:2], ours.decode(codes[1:2], [0]))


def test_the_right_codes_do_not_affect_the_left_channel(checkpoints):
    stereo = Codec(open_checkpoint(checkpoints["stereo"]), CPU)
    codes = torch.randint(configs.CARD, (4, 2, 30))
    changed = codes.clone()
    changed[:, 1] = (changed[:, 1] + 1) % configs.CARD
    wavs = stereo.decode(torch.stack([codes, changed]).flatten(1, 2), [0, 0])
    assert torch.equal(wavs[0, 0], wavs[1, 0])
    assert not torch.equal(wavs[0, 1], wavs[1, 1])


@pytest.mark.parametrize("shard", ["5GB", "20KB"], ids=["one file", "shards"])
def test_a_codec_saved_by_transformers_equals_transformers(checkpoints, tmp_path, shard):
    """The codec file of upstream's stereo checkpoints only names facebook/encodec_32khz."""
    sizes = {"hidden_size": 32, "num_filters": 4, "codebook_size": configs.CARD}
    config = transformers.EncodecConfig(
        sampling_rate=32000,
        upsampling_ratios=[8, 5, 4, 4],
        target_bandwidths=[2.2],
        use_causal_conv=False,
        use_conv_shortcut=False,
        **sizes,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        reference = transformers.EncodecModel(config).eval()
        for layer in reference.quantizer.layers:
            layer.codebook.embed.normal_()
    reference.save_pretrained(tmp_path / "encodec_32khz", max_shard_size=shard)
    assert (len(list((tmp_path / "encodec_32khz").glob("*.safetensors"))) > 8) == (shard == "20KB")
    (tmp_path / LM_FILE).write_bytes((checkpoints["text"] / LM_FILE).read_bytes())
    torch.save({"pretrained": "facebook/encodec_32khz"}, tmp_path / CODEC_FILE)
    ours = Codec(open_checkpoint(tmp_path), CPU)
    assert (ours.sample_rate, ours.frame_rate) == (32000, 50.0)
    wav = torch.from_numpy(sounds.melody(1.2345, 32000, 1))
    with torch.no_grad():
        codes = reference.encode(wav[None])[0][0]
        expected = reference.decode(codes[None], [None])[0]
    assert torch.equal(ours.encode(wav), codes[0])
    assert torch.allclose(ours.decode(codes, [0]), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("made_with", "said", "message"),
    [
        ({"rvq": {"n_q": 8}}, {"rvq": {"n_q": 8}}, "has 8 codebooks, the language model 4"),
        ({}, {"seanet": {"activation": "ReLU"}}, "seanet.activation='ReLU' is not supported"),
        ({}, {"seanet": {"n_filters": 8}}, "EnCodec's weights do not fit its configuration"),
    ],
)
def test_a_codec_that_does_not_fit_is_an_error(checkpoints, tmp_path, made_with, said, message):
    base = OmegaConf.create(configs.codec_config())
    state = get_compression_model(OmegaConf.merge(base, made_with)).state_dict()
    config = OmegaConf.to_yaml(OmegaConf.merge(base, said))
    torch.save({"xp.cfg": config, "best_state": state}, tmp_path / CODEC_FILE)
    (tmp_path / LM_FILE).write_bytes((checkpoints["text"] / LM_FILE).read_bytes())
    with pytest.raises(WeightsError, match=message):
        Codec(open_checkpoint(tmp_path), CPU)


@pytest.mark.parametrize("name", ["vq.layers.{}._codebook", "layers.{}.codebook"])
def test_codebooks_are_ordered_by_number(name):
    books = {f"quantizer.{name.format(i)}.embed": torch.full((2, 3), float(i)) for i in range(12)}
    translated = encodec._translate(dict(sorted(books.items(), reverse=True)))["codebooks"]
    assert translated[:, 0, 0].tolist() == list(range(12))
