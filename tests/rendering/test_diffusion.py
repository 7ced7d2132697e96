"""Diffusion equals audiocraft's, for each channel, and depends on a clip's codes and seed alone."""

import pytest
import tiny_checkpoints
import torch
from audiocraft.models import MultiBandDiffusion as Oracle
from audiocraft.models.builders import get_compression_model, get_diffusion_model, get_processor
from audiocraft.models.multibanddiffusion import DiffusionProcess
from audiocraft.modules.diffusion_schedule import NoiseSchedule
from banded import CPU, FRAMES, HOP, draw, read
from omegaconf import OmegaConf

from musicgen.checkpoints.checkpoint import CODEC_FILE, DIFFUSION_FILE, open_checkpoint
from musicgen.errors import InputError
from musicgen.pipeline import MusicGen
from musicgen.rendering import diffusion
from musicgen.rendering.codec import Codec
from musicgen.rendering.diffusion import EQUALIZER_BANDS, MultiBandDiffusion
from musicgen.request import Request


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """The models are so small that several threads would be slower than one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def interleave(left, right):
    """[B, K, T] twice -> [B, 2 K, T] in the order left, right of each codebook."""
    return torch.stack([left, right], dim=2).flatten(1, 2)


def oracle(folder):
    """audiocraft's MultiBandDiffusion of the same files, built as `get_mbd_musicgen` does."""
    package = read(folder / CODEC_FILE)
    codec = get_compression_model(OmegaConf.create(package["xp.cfg"]))
    codec.load_state_dict(package["best_state"])
    package = read(folder / DIFFUSION_FILE)
    processes = []
    for index in range(package["n_bands"]):
        config = package[index]["cfg"]
        model = get_diffusion_model(config)
        model.load_state_dict(package[index]["model_state"])
        processor = get_processor(config.processor, package["sample_rate"])
        processor.load_state_dict(package[index]["processor_state"])
        schedule = NoiseSchedule(**config.schedule, sample_processor=processor, device="cpu")
        processes.append(DiffusionProcess(model.eval(), schedule))
    return Oracle(processes, codec.eval())


def test_mono_equals_audiocraft(folders, mono):
    codes = draw(1, 4, FRAMES)
    theirs = oracle(folders["text"])
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(7)
        expected = theirs.tokens_to_wav(codes)
    actual = mono.decode(codes, [7])
    assert float(expected.std()) > 1e-3
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-5)


def test_output_is_finite_float32_of_the_codes_length(mono, stereo):
    for decoder, channels in ((mono, 1), (stereo, 2)):
        wav = decoder.decode(draw(2, 4 * channels, FRAMES), [0, 2**32 - 1])
        assert wav.shape == (2, channels, FRAMES * HOP)
        assert wav.dtype == torch.float32
        assert wav.device == CPU
        assert torch.isfinite(wav).all()


def test_each_stereo_channel_equals_mono_of_its_codes(mono, stereo):
    left, right = draw(2, 1, 4, FRAMES)
    wav = stereo.decode(interleave(left, right), [3])
    for channel, codes in enumerate((left, right)):
        expected = mono.decode(codes, [3])[:, 0]
        torch.testing.assert_close(wav[:, channel], expected, rtol=1e-3, atol=1e-5)
    assert not torch.allclose(wav[:, 0], wav[:, 1], atol=1e-3)


def test_equal_codes_give_equal_channels(stereo):
    codes = draw(1, 4, FRAMES)
    left, right = stereo.decode(interleave(codes, codes), [3])[0]
    torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-5)


def test_a_seed_is_reproducible(mono):
    codes = draw(1, 4, FRAMES)
    first, again, other = (mono.decode(codes, [seed]) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=1e-3)


def test_a_clip_does_not_depend_on_its_neighbours(stereo):
    codes = draw(3, 8, FRAMES)
    batch = stereo.decode(codes, [4, 5, 6])
    for index in range(3):
        alone = stereo.decode(codes[index, None], [4 + index])
        assert torch.equal(batch[index], alone[0])


def test_global_generators_are_untouched_and_unused(mono):
    codes = draw(1, 4, FRAMES)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = mono.decode(codes, [1])
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(mono.decode(codes, [1]), first)


def test_progress_names_each_band_and_its_failure_leaves_the_decoder_usable(mono, monkeypatch):
    codes = draw(1, 4, FRAMES)
    expected = mono.decode(codes, [1])
    names = []

    class CancelledError(Exception):
        """Raised by a server to cancel a prediction."""

    class Bar(diffusion.tqdm):
        def __init__(self, **arguments):
            names.append(arguments["desc"])
            super().__init__(**arguments)

        def update(self, n=1):
            if len(names) == 3:
                raise CancelledError
            return super().update(n)

    with monkeypatch.context() as patch:
        patch.setattr(diffusion, "tqdm", Bar)
        with pytest.raises(CancelledError):
            mono.decode(codes, [1])
    assert names == [f"diffusion band {number}/4" for number in (1, 2, 3)]
    assert torch.equal(mono.decode(codes, [1]), expected)


def test_a_silent_codec_gives_silence_not_nan(mono):
    silence = torch.zeros(1, 1, FRAMES * HOP)
    noise = torch.randn(silence.shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(mono._equalize(noise, silence), silence)
    assert torch.equal(mono._equalize(silence, noise), silence)


def test_equalizer_matches_each_band_of_each_channel(mono):
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 1, 32000, generator=generator)
    reference = torch.randn(2, 1, 32000, generator=generator).cumsum(-1) * 0.01
    reference[1] *= 0.1
    levels = mono.split(mono._equalize(noise, reference)).std(dim=(2, 3))
    expected = mono.split(reference).std(dim=(2, 3))
    assert levels.shape == (EQUALIZER_BANDS, 2)
    # Neighbouring bands overlap, so the match is close and not exact.
    assert float((levels / expected).log2().abs().median()) < 0.2


def test_missing_weights_are_reported_before_anything_runs(folders, tmp_path, monkeypatch):
    for name in (path.name for path in folders["text"].iterdir() if path.name != DIFFUSION_FILE):
        (tmp_path / name).symlink_to(folders["text"] / name)
    model = MusicGen(open_checkpoint(tmp_path), CPU)

    def fail(*_arguments):
        raise AssertionError("generation started")

    monkeypatch.setattr(model, "_prepare", fail)
    monkeypatch.setattr(model.engine, "generate", fail)
    with pytest.raises(InputError) as caught:
        model.generate(Request(prompt="x", duration=1, multi_band_diffusion=True))
    assert caught.value.field == "multi_band_diffusion"
    for part in (
        "multi_band_diffusion=True",
        DIFFUSION_FILE,
        "scripts/weights pull",
        "--diffusion",
    ):
        assert part in str(caught.value)


def test_pipeline_decodes_by_diffusion_and_loads_it_once(folders):
    model = MusicGen(open_checkpoint(folders["stereo"]), CPU)
    plain = Request(prompt="x", duration=0.4, seed=1)
    by_codec = model.generate(plain).wavs[0]
    assert "diffusion" not in vars(model)
    request = Request(prompt="x", duration=0.4, seed=1, multi_band_diffusion=True)
    by_diffusion = model.generate(request).wavs[0]
    loaded = model.renderers.diffusion
    assert torch.equal(model.generate(request).wavs[0], by_diffusion)
    assert model.renderers.diffusion is loaded
    assert by_diffusion.shape == by_codec.shape == (2, FRAMES * HOP)
    assert not torch.allclose(by_codec, by_diffusion, atol=1e-3)


def test_the_random_diffusion_file_is_deterministic_and_keeps_the_generator(folders, tmp_path):
    before = torch.get_rng_state()
    tiny_checkpoints.write_diffusion(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    written = (tmp_path / DIFFUSION_FILE).read_bytes()
    assert written == (folders["text"] / DIFFUSION_FILE).read_bytes()


def test_a_clip_in_windows_is_close_to_one_call(mono, monkeypatch):
    """Only the statistics of the normalization reach beyond the overlap: 35 dB below the sound.

    With longer windows the difference is smaller: 38 dB with 2 s, 43 dB with 4 s.
    """
    codes = draw(1, 4, 100)
    whole = mono.decode(codes, [1])
    monkeypatch.setattr(diffusion, "WINDOW", 60)
    monkeypatch.setattr(diffusion, "OVERLAP", 20)
    cut = mono.decode(codes, [1])
    assert cut.shape == whole.shape
    assert not torch.equal(cut, whole)
    assert float((cut - whole).std() / whole.std()) < 10 ** (-30 / 20)


def test_the_equalizer_in_pieces_equals_one_call(mono, monkeypatch):
    wav, reference = torch.randn(2, 2, 1, 50_000).cumsum(-1) / 100
    whole = mono._equalize(wav, reference)
    monkeypatch.setattr(diffusion, "PIECE", 12_345)
    torch.testing.assert_close(mono._equalize(wav, reference), whole, rtol=1e-4, atol=1e-5)


def test_the_processor_in_pieces_equals_one_call(mono, monkeypatch):
    wav = torch.randn(2, 1, 50_000).cumsum(-1) / 100
    whole = [band.restore(wav) for band in mono.bands]
    monkeypatch.setattr(diffusion, "PIECE", 12_345)
    for band, expected in zip(mono.bands, whole, strict=True):
        torch.testing.assert_close(band.restore(wav), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_half_precision_is_close_to_full(folders):
    """With the same noise on both devices, the error of fp16 stays 40 dB below the sound."""
    checkpoint = open_checkpoint(folders["stereo"])
    device = torch.device("cuda")
    codes = draw(1, 8, FRAMES)
    with torch.inference_mode():
        wavs = []
        for where in (CPU, device):
            decoder = MultiBandDiffusion(checkpoint, Codec(checkpoint, where), where)
            clip = decoder._begin(codes[0], 3)
            noise = torch.Generator().manual_seed(3)
            for band in decoder.bands:
                length = clip.reference.shape[-1]
                clip.wav += band.sample(clip.condition, length, noise, lambda: None)
            wavs.append(decoder._equalize(clip.wav, clip.reference).cpu())
    error = (wavs[1] - wavs[0]).std() / wavs[0].std()
    assert float(error) < 0.01
