"""The codec in two bands: what each hears, how they are joined, the decoder on its own."""

import pytest
import torch
from states import changed
from tones import tone

from training import codec, synth
from training.join import join

RATE = synth.SAMPLE_RATE


@pytest.mark.parametrize("heard", [codec.LOW.heard, codec.HIGH.heard, codec.DECODER_HEARD])
def test_codec_batches_are_the_same_at_every_visit(heard):
    wav = codec.segments(5, heard)
    assert wav.shape == (heard.segments, 1, round(heard.seconds * RATE))
    assert torch.equal(wav, codec.segments(5, heard))
    assert not torch.equal(wav, codec.segments(6, heard))


def test_a_band_is_what_lies_above():
    low, high = (torch.from_numpy(tone([pitch])).float()[:1, None] for pitch in (60, 120))
    inside = slice(codec.TAPS, -codec.TAPS)
    heard = codec.above(low + high, codec.HIGH.above)
    assert (heard - high)[..., inside].abs().max() < 0.01
    assert torch.equal(codec.above(low, 0.0), low)


def trained(band):
    """As if it were: every codebook filled."""
    model = codec.build([band])
    for number, layer in enumerate(model.quantizer.vq.layers):
        generator = torch.Generator().manual_seed(number)
        layer._codebook.embed.normal_(0, 0.5, generator=generator)
        layer._codebook.inited.fill_(1)
    return model.eval()


@torch.inference_mode()
def test_bands_side_by_side_are_one_codec():
    parts = [trained(band) for band in codec.BANDS.values()]
    whole = join(parts, codec.build()).eval()
    wav = codec.segments(3)[:4]
    codes = [part.encode(wav)[0] for part in parts]
    assert torch.equal(whole.encode(wav)[0], torch.cat(codes, dim=1))
    sound = sum(part(wav).x for part in parts)
    assert sound.abs().max() > 1e-3
    assert torch.allclose(whole(wav).x, sound, atol=1e-5 * float(sound.abs().max()))


def test_training_the_decoder_leaves_the_codes(tmp_path):
    whole = join([trained(band) for band in codec.BANDS.values()], codec.build())
    wav = codec.segments(3)[:2]
    before = {name: value.clone() for name, value in whole.state_dict().items()}
    codes = whole.eval().encode(wav)[0]
    codec.train_decoder(tmp_path, whole, 2, "cpu")
    assert torch.equal(whole.encode(wav)[0], codes)
    assert changed(before, whole.state_dict()) == {"decoder"}
