"""The codec's two bands: their batches, joining them, and training the decoder alone."""

import pytest
import torch
from states import changed
from tones import tone

from training import codec, synth
from training.join import join

RATE = synth.SAMPLE_RATE


@pytest.mark.parametrize("batches", [codec.LOW.batches, codec.HIGH.batches, codec.DECODER_BATCHES])
def test_a_batch_depends_only_on_its_seed(batches):
    wav = codec.segments(5, batches)
    assert wav.shape == (batches.segments, 1, round(batches.seconds * RATE))
    assert torch.equal(wav, codec.segments(5, batches))
    assert not torch.equal(wav, codec.segments(6, batches))


def test_the_high_band_contains_only_higher_frequencies():
    low, high = (torch.from_numpy(tone([pitch])).float()[:1, None] for pitch in (60, 120))
    inside = slice(codec.TAPS, -codec.TAPS)
    band = codec.above(low + high, codec.HIGH.above)
    assert (band - high)[..., inside].abs().max() < 0.01
    assert torch.equal(codec.above(low, 0.0), low)


def trained(band):
    """Returns an untrained codec whose codebooks are filled, like those of a trained one."""
    model = codec.build([band])
    for number, layer in enumerate(model.quantizer.vq.layers):
        generator = torch.Generator().manual_seed(number)
        layer._codebook.embed.normal_(0, 0.5, generator=generator)
        layer._codebook.inited.fill_(1)
    return model.eval()


@torch.inference_mode()
def test_joined_bands_have_the_codes_and_the_sum_of_both():
    parts = [trained(band) for band in codec.BANDS.values()]
    whole = join(parts, codec.build()).eval()
    wav = codec.segments(3)[:4]
    codes = [part.encode(wav)[0] for part in parts]
    assert torch.equal(whole.encode(wav)[0], torch.cat(codes, dim=1))
    sound = sum(part(wav).x for part in parts)
    assert sound.abs().max() > 1e-3
    assert torch.allclose(whole(wav).x, sound, atol=1e-5 * float(sound.abs().max()))


def test_training_the_decoder_does_not_change_the_codes(tmp_path):
    whole = join([trained(band) for band in codec.BANDS.values()], codec.build())
    wav = codec.segments(3)[:2]
    before = {name: value.clone() for name, value in whole.state_dict().items()}
    codes = whole.eval().encode(wav)[0]
    codec.train_decoder(tmp_path, whole, 2, "cpu")
    assert torch.equal(whole.encode(wav)[0], codes)
    assert changed(before, whole.state_dict()) == {"decoder"}
